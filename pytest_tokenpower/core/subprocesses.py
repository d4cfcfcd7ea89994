"""A child in a process group of its own: started with a log, waited for, and ended with all that it started.

On Linux that is its group, the tree below it, and every process that has inherited its mark in the environment: what
left the group, and even what outlived its parents, is found. A process that has done both and cleared its environment
before the child ended is not, and elsewhere than on Linux only the group is: no more can be promised without a cgroup.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pytest_tokenpower.core import progress
from pytest_tokenpower.errors import UsageError

TAIL_LINES = 20

TAIL_BYTES = 6000

CAUSES = 3

CAUSES_BYTES = 500_000

_RAISED = re.compile(
    r"(?:\([^()]*\) )?(?:(?:ERROR|CRITICAL) [^\]]*\] )?((?:\w+\.)*\w*(?:Error|Exception|Exit)\w*): (.*\S)"
)
"""The last line of a traceback, perhaps behind vLLM's names of a process, a level, a time and a place."""


class ProcessGroup:
    """``arguments`` run in ``cwd`` in a session of their own, standard output and error in ``log``; POSIX only."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        log: Path,
        env: dict[str, str],
        pass_fds: Iterable[int] = (),
        cwd: Path | None = None,
    ) -> None:
        if os.name != "posix":
            raise UsageError(
                "engines and restarts in processes of their own need Linux or macOS; EngineSpec(..., isolated=False) "
                "runs an engine in the tests' process"
            )
        self.log = log
        self._mark = uuid.uuid4().hex
        self._tree: set[tuple[int, int]] = set()
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                arguments,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                pass_fds=tuple(pass_fds),
                env={**env, MARK: f"{env.get(MARK, '')}{self._mark}."},
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._ended = False

    def exited(self) -> bool:
        """Whether the child itself has ended; it is not reaped, so that its group's number stays its own."""
        if self._ended:
            return True
        if not hasattr(os, "waitid"):  # macOS before Python 3.13: it is reaped after all
            return self._process.poll() is not None
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        return found is not None

    def interrupt(self) -> None:
        """Ask the child alone to end, as Ctrl-C does."""
        if not self.exited():
            self._look()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGINT)

    def end(self, patience_s: float) -> str:
        """Wait so long for the child to end by itself, then kill all that is left of it; says how it ended."""
        if not self._ended:
            until = time.monotonic() + patience_s
            self._look()
            while not self.exited() and time.monotonic() < until:
                time.sleep(0.02)
            until = time.monotonic() + 10.0
            # What it started goes first: as long as the child lives, nothing below it loses its place in the tree.
            _kill(self._others)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
            # What was orphaned is reaped by somebody else; its memory is free once it is gone or a zombie.
            while (left := self._others()) and time.monotonic() < until:
                _kill(self._others)
                time.sleep(0.02)
            for process in left:
                progress.report_progress(f"process {process.pid}, which it has started, cannot be ended")
            self._ended = True
        code = self._process.returncode
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def _look(self) -> None:
        """Remember what is below the child now: after its end nothing is."""
        self._tree |= {(one.pid, one.start) for one in _below(self.pid, processes())}

    def _others(self) -> frozenset[Process]:
        """Return what was started by the child, by whatever way that shows, and still runs."""
        table = processes()
        found = {one for one in table if one.group == self.pid or (one.pid, one.start) in self._tree}
        found |= _below(self.pid, table)
        mark = self._mark.encode()
        found |= {one for one in table if mark in _environment(one.pid)}
        return frozenset(one for one in found if one.pid != self.pid)

    def raised(self, offset: int, but: str) -> list[str]:
        """Return the first exceptions that the log names from ``offset`` on, without those ``but`` speaks of."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(offset, self.log.stat().st_size - CAUSES_BYTES))
                lines = stream.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return []
        found = [match for line in lines if (match := _RAISED.fullmatch(line.rstrip())) is not None]
        said = [f"{match[1]}: {match[2]}" for match in found if match[2] not in but]
        return list(dict.fromkeys(said))[:CAUSES]

    def tail(self) -> str:
        """Return the last lines of the log."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
                lines = stream.read().decode("utf-8", "replace").splitlines()
        except OSError as error:
            return f"(the log {self.log} cannot be read: {error})"
        return "\n".join(lines[-TAIL_LINES:]) or "(nothing was printed)"


MARK = "PYTEST_TOKENPOWER_STARTED_BY"
"""The variable that all that a child starts inherits: a mark for each child in a row of them, the outermost first."""


class Process(NamedTuple):
    """A process that runs; its number may be another's later, with another start."""

    pid: int
    parent: int
    group: int
    start: int


def processes() -> frozenset[Process]:
    """All processes that run, from /proc; zombies do not. Empty where there is no /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The command may hold spaces and brackets: state, parent and group follow its last bracket.
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] not in "ZX":
                found.append(Process(int(entry.name), int(fields[1]), int(fields[2]), int(fields[19])))
        except (OSError, ValueError, IndexError):
            continue
    return frozenset(found)


def group_members(group: int) -> tuple[int, ...]:
    """Return the processes of a group that still run."""
    return tuple(one.pid for one in processes() if one.group == group)


def _below(pid: int, table: Iterable[Process]) -> frozenset[Process]:
    children: dict[int, list[Process]] = {}
    for one in table:
        children.setdefault(one.parent, []).append(one)
    found: set[Process] = set()
    waiting = [pid]
    while waiting:
        for one in children.get(waiting.pop(), ()):
            if one not in found:
                found.add(one)
                waiting.append(one.pid)
    return frozenset(found)


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _kill(some: Callable[[], Iterable[Process]]) -> None:
    """Kill these processes, and those that they start meanwhile."""
    killed: set[Process] = set()
    while more := set(some()) - killed:
        for one in more:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(one.pid, signal.SIGKILL)
        killed |= more


def keep_descendants() -> None:
    """Stay the ancestor of all that this process starts: what loses its parent becomes its child (Linux)."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def end_with_parent(lifeline: int) -> None:
    """In a child: end it with all that it started once its parent, which holds the pipe's other end, is gone."""
    import threading

    def wait() -> None:
        with contextlib.suppress(OSError):
            os.read(lifeline, 1)
        kill_group()

    keep_descendants()
    threading.Thread(target=wait, daemon=True).start()


def kill_group() -> None:
    """End this process at once, with all below it and its whole group."""
    _kill(lambda: _below(os.getpid(), processes()))
    os.killpg(os.getpgid(0), signal.SIGKILL)


def inherited_path() -> str:
    """PYTHONPATH for a child that is to find the modules that this process finds."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)
