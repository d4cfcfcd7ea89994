"""One test at a time on a device, whatever processes run tests there: a lock file per GPU."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from pytest_tokenpower.core import progress

QUIET_WAIT_S = 2.0
"""A wait for longer than this is told."""


@contextlib.contextmanager
def hold_devices(device_ids: Iterable[str]) -> Iterator[None]:
    """Hold the lock of each device; waits for as long as another process of this machine holds one.

    Locks are taken in one order, so that two processes cannot wait for each other. The system lets go of them when
    their process ends, however it ends.
    """
    from filelock import FileLock, Timeout

    folder = Path(tempfile.gettempdir()) / "tokenpower-locks"
    folder.mkdir(mode=0o777, exist_ok=True)
    # Other users' tests wait for the same GPU; a folder of ours that they cannot write would stop them.
    with contextlib.suppress(OSError):
        os.chmod(folder, 0o1777)
    with contextlib.ExitStack() as stack:
        for device_id in sorted(set(device_ids)):
            name = re.sub(r"[^A-Za-z0-9._-]", "_", device_id)
            lock = FileLock(folder / f"{name}.lock", mode=0o666)
            try:
                stack.enter_context(lock.acquire(timeout=QUIET_WAIT_S))
            except Timeout:
                progress.report_progress(
                    f"{device_id}: waiting for another process that measures on this GPU"
                )
                stack.enter_context(lock.acquire())
        yield
