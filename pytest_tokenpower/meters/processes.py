"""Which processes are ours, read from /proc: the process tree of the test run, and servers that it talks to."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

_LISTENING = "0A"
"""TCP_LISTEN in the column ``st`` of /proc/net/tcp."""

_adopted: list[int] = []
"""Once for each that asked for it. Changed and copied in one piece, for meters read it from threads of their own."""


def parent_of(pid: int) -> int | None:
    """Return the parent of a process, or None if /proc does not know it."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The command may hold spaces and brackets; the fields after its last bracket are numbers.
            return int(stat.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None


def root_of_run() -> int:
    """Return the process whose children are ours: this one, or xdist's controller, whose other workers are ours too."""
    return os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()


def adopt(pid: int) -> None:
    """Count a process that others have started, and all below it, as ours: a server that is measured."""
    _adopted.append(pid)


def release(pid: int) -> None:
    """Take one :func:`adopt` back."""
    _adopted.remove(pid)


def adopted() -> frozenset[int]:
    """Return the processes that are adopted now."""
    return frozenset(_adopted)


def is_in_tree(pid: int, root_pid: int | None = None) -> bool | None:
    """Whether a process is ``root_pid`` or below it; None if /proc does not know it.

    Without a root: whether it is ours, the run's or below an adopted process.
    """
    roots = {root_of_run(), *adopted()} if root_pid is None else {root_pid}
    current: int | None = pid
    if parent_of(pid) is None:
        return None
    # Down to process 1, which may be ours: pytest that a container was started with. Its parent is 0.
    while current:
        if current in roots:
            return True
        current = parent_of(current)
    return False


def listener_on(port: int, proc: Path = Path("/proc")) -> int | None:
    """Return the process of this machine that listens on a TCP port: of several that share the socket the topmost.

    None where nobody does, or where it may not be seen (another user's, in a container).
    """
    inodes = {inode for table in ("tcp", "tcp6") for inode in _listening(proc / "net" / table, port)}
    if not inodes:
        return None
    sockets = {f"socket:[{inode}]" for inode in inodes}
    found = {int(entry.name) for entry in proc.glob("[0-9]*") if _holds(entry, sockets)}
    return next((pid for pid in sorted(found) if parent_of(pid) not in found), None)


def _listening(table: Path, port: int) -> list[str]:
    """Return the inodes of the sockets that listen on a port; proc(5) has the columns."""
    try:
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return []
    return [row[9] for row in rows if row[3] == _LISTENING and int(row[1].rpartition(":")[2], 16) == port]


def _holds(process: Path, sockets: set[str]) -> bool:
    try:
        return any(os.readlink(entry) in sockets for entry in (process / "fd").iterdir())
    except OSError:
        return False


def command_of(pid: int) -> str:
    """Return a process's name, as it calls itself; empty where /proc does not know it."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def is_this_machine(host: str) -> bool:
    """Whether a host name or address means this machine: loopback, or an address that a socket here can have.

    Raises OSError where the name does not resolve.
    """
    return any(_is_own(family, address) for family, address in addresses_of(host))


def addresses_of(host: str) -> set[tuple[int, str]]:
    """Return the families and addresses of a host name or address; raises OSError where the name does not resolve."""
    return {
        (family, str(sockaddr[0]))
        for family, _, _, _, sockaddr in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    }


def _is_own(family: int, address: str) -> bool:
    if re.match(r"127\.|::1$", address):
        return True
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as one:
            one.bind((address, 0))
    except OSError:
        return False
    return True
