"""One test at a time on a device, whatever processes run tests there: a lock file per GPU."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path


@contextlib.contextmanager
def exclusively(device_ids: Iterable[str]) -> Iterator[None]:
    """Hold the lock of each device; waits for as long as another process of this machine holds one.

    Locks are taken in one order, so that two processes cannot wait for each other. The system lets go of them when
    their process ends, however it ends.
    """
    from filelock import FileLock

    folder = Path(tempfile.gettempdir()) / "tokenpower-locks"
    folder.mkdir(mode=0o777, exist_ok=True)
    # Other users' tests wait for the same GPU; a folder of ours that they cannot write would stop them.
    with contextlib.suppress(OSError):
        os.chmod(folder, 0o1777)
    with contextlib.ExitStack() as stack:
        for device_id in sorted(set(device_ids)):
            name = re.sub(r"[^A-Za-z0-9._-]", "_", device_id)
            stack.enter_context(FileLock(folder / f"{name}.lock", mode=0o666))
        yield
