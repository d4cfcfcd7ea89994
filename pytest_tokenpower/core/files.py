"""Files that are whole or not there; and an end of what killed writers leave behind."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

SWEPT_AFTER_S = 3600.0
"""A writer's temporary file that is older than this has no writer any more."""

_SUFFIX = ".tmp"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a file to write instead of ``path``, whose place it takes when it is complete.

    Whoever reads ``path`` sees the old contents or the new ones, also when the writer is killed. A link stays one; what
    is no file (a terminal, a pipe, /dev/null) is written to as it is. Raises OSError, and then ``path`` is as it was.
    """
    target = Path(os.path.realpath(path))
    mode = _mode_of(target)
    if mode is not None and not stat.S_ISREG(mode):
        yield path
        return
    sweep(target.parent, f".{target.name}.")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}{_SUFFIX}")
    try:
        yield temporary
        if mode is not None:
            temporary.chmod(stat.S_IMODE(mode))
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file through :func:`replacing`; raises OSError."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """Return the contents of a file; raises OSError also for what is none or larger.

    A pipe would wait for its writer, and a device never ends.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no file", os.fspath(path))
    if found.st_size > most_bytes:
        raise OSError(errno.EFBIG, f"{found.st_size} bytes, more than any has", os.fspath(path))
    with path.open("rb") as stream:
        return stream.read(most_bytes)


def sweep(folder: Path, prefix: str) -> None:
    """Remove the temporary files of writers that are gone, as far as they are ours to remove."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(prefix) or not entry.name.endswith(_SUFFIX):
                continue
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(found.st_mode) and time.time() - found.st_mtime > SWEPT_AFTER_S:
                    os.unlink(entry.path)


FOLDER_SWEPT_AFTER_S = 86_400.0
"""A message may have sent somebody to a log in it."""

_FOLDER = re.compile(r"tokenpower-[a-z]+-(\d+)-")


def scratch_prefix(what: str) -> str:
    """Begin the name of a temporary folder of this process; what killed processes left a day ago is removed.

    Killed, a process leaves its folders: nobody else knows that they are its own.
    """
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            named = _FOLDER.match(entry.name) if os.name == "posix" else None
            if named and _is_left_over(entry, int(named[1])):
                shutil.rmtree(entry.path, ignore_errors=True)
    return f"tokenpower-{what}-{os.getpid()}-"


def _is_left_over(entry: os.DirEntry[str], pid: int) -> bool:
    with contextlib.suppress(OSError):
        found = entry.stat(follow_symlinks=False)
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
        if not ours or time.time() - found.st_mtime < FOLDER_SWEPT_AFTER_S:
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
    return False


def _mode_of(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None
