"""Calibrations of boards: what fixed work and waiting draw on each, one file a board in the store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from pytest_tokenpower.core.files import write_whole
from pytest_tokenpower.core.records import Figure, WaitingRecord
from pytest_tokenpower.errors import StoreError

FOLDER = "calibrations"

STALE_DAYS = 90
"""Boards age, coolers clog: a calibration that is older than this is not used any more."""


class CalibrationRecord(msgspec.Struct, frozen=True, tag_field="type", tag="tokenpower-calibration"):
    """A board's calibration: joules per piece of each fixed work, and what it draws while it waits.

    ``device`` is its id (a UUID), ``created`` the day and time in UTC, ``driver`` the version that it was made with.
    """

    device: str
    name: str
    driver: str
    created: str
    pieces: dict[str, Figure]
    waiting: WaitingRecord

    def days_old(self, now: datetime | None = None) -> float:
        """How many days ago it was made."""
        made = datetime.fromisoformat(self.created.replace("Z", "+00:00"))
        return ((now or datetime.now(timezone.utc)) - made).total_seconds() / 86_400


def write_calibration(store: Path, found: CalibrationRecord) -> Path:
    """Write a board's calibration over an earlier one; returns its file.

    Raises:
        StoreError: the folder cannot be written.
    """
    path = store / FOLDER / f"{re.sub(r'[^A-Za-z0-9._-]', '_', found.device)}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror or error})") from error
    return path


def read_calibrations(store: Path) -> Iterator[CalibrationRecord]:
    """Return the calibrations of a store.

    Raises:
        StoreError: one of them is not readable.
    """
    for path in sorted((store / FOLDER).glob("*.json")):
        try:
            yield msgspec.json.decode(path.read_bytes(), type=CalibrationRecord)
        except (OSError, msgspec.MsgspecError, ValueError) as error:
            raise StoreError(
                f"{path}: not readable as a calibration ({error}): remove it, or make it anew with tokenpower calibrate"
            ) from error
