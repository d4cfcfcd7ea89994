"""One test at a time on a device, whatever processes run tests there: a lock file per GPU.

The files lie in the user's cache, which is one folder with and without a login session. TOKENPOWER_LOCKS names another
one, which several users or containers may share: it is not theirs to make, and has the mode 1777 where all may write.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from pytest_tokenpower.core import progress
from pytest_tokenpower.errors import MeterError
from pytest_tokenpower.meters.processes import command_of, is_in_tree

FOLDER_VARIABLE = "TOKENPOWER_LOCKS"

QUIET_WAIT_S = 2.0
"""A wait for longer than this is told."""

REMINDER_S = 60.0
"""And told again this often."""

_POLL_S = 0.05

_CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv", "/var/run/secrets/kubernetes.io")

_noted: list[str] = []


@contextlib.contextmanager
def hold_devices(device_ids: Iterable[str]) -> Iterator[None]:
    """Hold the lock of each device; waits for as long as another process holds one, and says which.

    Locks are taken in one order, so that two processes cannot wait for each other. The system lets go of them when
    their process ends, however it ends. Raises MeterError where there is no folder for them that is safe to use.
    """
    ids = sorted(set(device_ids))
    if not ids or sys.platform == "win32":
        yield
        return
    folder, shared = _folder()
    with contextlib.ExitStack() as stack:
        for device_id in ids:
            name = re.sub(r"[^A-Za-z0-9._-]", "_", device_id)
            descriptor = _open(folder / f"{name}.lock", shared=shared)
            stack.callback(_release, descriptor)
            _acquire(descriptor, device_id)
        yield


def _acquire(descriptor: int, device_id: str) -> None:
    import fcntl

    began = time.monotonic()
    told_s = QUIET_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise MeterError(f"the lock of {device_id} cannot be taken ({error.strerror})") from error
        else:
            _sign(descriptor)
            return
        waited_s = time.monotonic() - began
        if waited_s >= told_s:
            told_s += REMINDER_S
            holder, ours = _holder(descriptor)
            # xdist's workers always take turns: that is no news.
            progress.report_progress(
                f"{device_id}: waiting for {holder}, which measures on this GPU ({waited_s:.0f} s so far)",
                urgent=not ours,
            )
        time.sleep(_POLL_S)


def _release(descriptor: int) -> None:
    import fcntl

    # A process that was forked meanwhile has the descriptor, too, and would hold the lock with it.
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _sign(descriptor: int) -> None:
    """Leave in the lock who holds it, for those whom the system does not tell: other containers."""
    with contextlib.suppress(OSError):
        # A file with a second name may be somebody's.
        if os.fstat(descriptor).st_nlink == 1:
            os.ftruncate(descriptor, 0)
            os.pwrite(
                descriptor,
                f"process {os.getpid()} of {_user(os.getuid())} on {os.uname().nodename}".encode(),
                0,
            )


def _holder(descriptor: int) -> tuple[str, bool]:
    """Who holds a lock, and whether it is of this run."""
    pid = _holding_pid(os.fstat(descriptor).st_ino)
    if pid is not None:
        with contextlib.suppress(OSError):
            owner = _user(os.stat(f"/proc/{pid}").st_uid)
            return f"process {pid} ({command_of(pid)}) of {owner}", bool(is_in_tree(pid))
    with contextlib.suppress(OSError):
        if signed := os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip():
            return signed, False
    return "a process of another container or host", False


def _holding_pid(inode: int) -> int | None:
    """Return the process that holds a lock on a file, from the system's list of them; None where that does not tell."""
    with contextlib.suppress(OSError):
        for row in Path("/proc/locks").read_text().splitlines():
            fields = row.split()
            if fields[1:2] == ["FLOCK"] and fields[5].endswith(f":{inode}") and int(fields[4]) > 0:
                return int(fields[4])
    return None


def _user(number: int) -> str:
    import pwd

    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"


def _open(path: Path, *, shared: bool) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        try:
            # Not with O_CREAT: in a folder for all, the system refuses that for files of others.
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            try:
                descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                descriptor = os.open(path, flags)
            else:
                if shared:
                    os.fchmod(descriptor, 0o666)
    except OSError as error:
        what = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise MeterError(f"{path}: this lock of a GPU cannot be opened ({what}); {_REMEDY}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise MeterError(f"{path}: this lock of a GPU is no file; {_REMEDY}")
    return descriptor


_REMEDY = f"have it removed, or name a folder of yours in {FOLDER_VARIABLE}"


def _folder() -> tuple[Path, bool]:
    """Return the folder of the locks, and whether others may write to it, too."""
    if named := os.environ.get(FOLDER_VARIABLE):
        folder = Path(named)
        try:
            found = os.lstat(folder)
        except OSError as error:
            raise MeterError(f"{FOLDER_VARIABLE}={named}: no folder for locks ({error.strerror})") from error
        open_to_others = bool(found.st_mode & 0o022)
        if not stat.S_ISDIR(found.st_mode) or (open_to_others and not found.st_mode & stat.S_ISVTX):
            raise MeterError(
                f"{FOLDER_VARIABLE}={named}: must be a folder, and no link; if others can write to it, with mode 1777"
            )
        return folder, open_to_others
    folder = _base() / "tokenpower-locks"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.lstat(folder)
    except OSError as error:
        raise MeterError(
            f"{folder}: no folder for the locks of GPUs ({error.strerror}); {_REMEDY}"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise MeterError(
            f"{folder}: a link, or a folder that {_user(found.st_uid)} or others can write to (mode "
            f"{stat.S_IMODE(found.st_mode):o}); {_REMEDY}"
        )
    if not _noted and any(map(os.path.exists, _CONTAINER_MARKS)):
        _noted.append(
            f"locks in {folder} do not reach other containers of this host: share a folder with them, and name it in "
            f"{FOLDER_VARIABLE}, if they measure on the same GPUs"
        )
        progress.report_progress(_noted[0])
    return folder, False


def _base() -> Path:
    """Return a folder of this user that can be written to: the cache, the runtime directory, or a temporary one."""
    home = os.environ.get("HOME", "")
    candidates = (
        os.environ.get("XDG_CACHE_HOME", ""),
        os.path.join(home, ".cache") if home else "",
        os.environ.get("XDG_RUNTIME_DIR", ""),
    )
    for path in filter(os.path.isabs, candidates):
        # The cache itself may not be there yet; what is another user's (sudo keeps HOME) is not for us.
        there = path if os.path.isdir(path) else os.path.dirname(path)
        with contextlib.suppress(OSError):
            if os.stat(there).st_uid == os.getuid() and os.access(there, os.W_OK):
                return Path(path)
    return Path(tempfile.gettempdir(), f"tokenpower-{os.getuid()}")
