"""Which processes are ours: the process tree of the test run, read from /proc."""

from __future__ import annotations

import os


def parent_of(pid: int) -> int | None:
    """The parent of a process, or None if /proc does not know it."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The command may hold spaces and brackets; the fields after its last bracket are numbers.
            return int(stat.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None


def root_of_run() -> int:
    """The process whose children are ours: this one, or xdist's controller, whose other workers are ours too."""
    return os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()


def is_in_tree(pid: int, root_pid: int | None = None) -> bool | None:
    """Whether a process is ``root_pid`` (default: the run's) or below it; None if /proc does not know it."""
    root = root_of_run() if root_pid is None else root_pid
    current: int | None = pid
    if parent_of(pid) is None:
        return None
    while current is not None and current > 1:
        if current == root:
            return True
        current = parent_of(current)
    return False
