"""One test at a time on a device, whatever processes of a user run tests there: a lock file per GPU."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from pytest_tokenpower.core import progress
from pytest_tokenpower.errors import MeterError

QUIET_WAIT_S = 2.0
"""A wait for longer than this is told."""


@contextlib.contextmanager
def hold_devices(device_ids: Iterable[str]) -> Iterator[None]:
    """Hold the lock of each device; waits for as long as another process of this user holds one.

    Locks are taken in one order, so that two processes cannot wait for each other. The system lets go of them when
    their process ends, however it ends.
    """
    from filelock import FileLock, Timeout

    folder = _own_folder()
    with contextlib.ExitStack() as stack:
        for device_id in sorted(set(device_ids)):
            name = re.sub(r"[^A-Za-z0-9._-]", "_", device_id)
            lock = FileLock(folder / f"{name}.lock", mode=0o600)
            try:
                stack.enter_context(lock.acquire(timeout=QUIET_WAIT_S))
            except Timeout:
                progress.report_progress(
                    f"{device_id}: waiting for another process that measures on this GPU"
                )
                stack.enter_context(lock.acquire())
        yield


def _own_folder() -> Path:
    """The user's folder of locks, which nobody else can write to, so that no lock in it is another's link."""
    if sys.platform == "win32":
        # The temporary folder is the user's own there.
        folder = Path(tempfile.gettempdir()) / "tokenpower-locks"
        folder.mkdir(exist_ok=True)
        return folder
    folder = Path(tempfile.gettempdir()) / f"tokenpower-locks-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = os.lstat(folder)
    except OSError as error:
        raise MeterError(
            f"{folder}: no folder for the locks of GPUs ({error.strerror}); remove it, "
            "or set TMPDIR to a folder of yours"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise MeterError(
            f"{folder}: a link, or a folder that user {found.st_uid} or others can write to (mode "
            f"{stat.S_IMODE(found.st_mode):o}); have it removed, or set TMPDIR to a folder of yours"
        )
    return folder
