"""Calibrations of boards: what fixed work and waiting draw on each. Each is kept, so that a board's drift shows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from pytest_tokenpower.core.files import read_bounded, write_whole
from pytest_tokenpower.core.integrity import has_digest, is_damaged, with_digest
from pytest_tokenpower.core.records import Figure, WaitingRecord
from pytest_tokenpower.errors import StoreError
from pytest_tokenpower.stats.boards import FORETELLING
from pytest_tokenpower.store.store import MOST_RUN_BYTES, Store, make_folder, unwritable

FOLDER = "calibrations"

STALE_DAYS = 90
"""Boards age, coolers clog: a calibration that is older than this is not used any more."""


class CalibrationRecord(msgspec.Struct, frozen=True, tag_field="type", tag="tokenpower-calibration"):
    """A board's calibration: joules per piece of each fixed work, and what it draws while it waits.

    ``device`` is its id (a UUID), ``created`` the day and time in UTC, ``driver`` the version that it was made with,
    ``job`` the CI job that made it.
    """

    device: str
    name: str
    driver: str
    created: str
    pieces: dict[str, Figure]
    waiting: WaitingRecord
    job: str = ""

    @property
    def made(self) -> datetime:
        """When it was made."""
        return datetime.fromisoformat(self.created.replace("Z", "+00:00"))

    def days_old(self) -> float:
        """How many days ago it was made."""
        return (datetime.now(timezone.utc) - self.made).total_seconds() / 86_400

    @property
    def possible(self) -> bool:
        """Whether every figure of it can have been measured."""
        figures = [(each.value, each.stderr) for each in self.pieces.values()]
        figures.append((self.waiting.watts, self.waiting.stderr))
        return all(value > 0 <= error and math.isfinite(value + error) for value, error in figures)

    @property
    def file(self) -> str:
        """The name of its file in every store."""
        device = re.sub(r"[^A-Za-z0-9._-]", "_", self.device)
        return f"{device}_{self.made.astimezone(timezone.utc):%Y%m%dT%H%M%SZ}.json"


def decode_calibration(data: bytes, file: str) -> CalibrationRecord:
    """Return a calibration from its JSON; raises StoreError that names ``file``."""
    try:
        if not has_digest(data) or is_damaged(data):
            raise ValueError("it is not what was written")
        found = msgspec.json.decode(data, type=CalibrationRecord)
        if found.made.tzinfo is None:
            raise ValueError(f"created has no time zone: {found.created}")
        if found.days_old() < -1:
            raise ValueError(
                f"it was made in the future, {found.created}: a clock was wrong there, or is here"
            )
        if not found.possible:
            raise ValueError("its figures cannot have been measured")
        if lacking := [name for name in FORETELLING if name not in found.pieces]:
            raise ValueError(f"it lacks the joules of {' and '.join(lacking)}")
        return found
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise StoreError(
            f"{file}: not readable as a calibration ({error}): remove it, or make it anew with tokenpower calibrate"
        ) from error


def write_calibration(store: Path, found: CalibrationRecord) -> Path:
    """Write a board's calibration beside its earlier ones; returns its file.

    Raises:
        StoreError: the folder cannot be written.
    """
    path = store / FOLDER / found.file
    try:
        make_folder(path.parent)
        write_whole(path, msgspec.json.format(with_digest(msgspec.json.encode(found)), indent=1) + b"\n")
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def calibration_paths(store: Path) -> list[Path]:
    """Return the files of a store's calibrations."""
    return sorted((store / FOLDER).glob("*.json"))


def read_calibrations(store: Store) -> Iterator[CalibrationRecord]:
    """Yield every calibration of a store, earlier ones of a board too; what is no calibration is in its problems."""
    for path in calibration_paths(store.path):
        try:
            found = decode_calibration(read_bounded(path, MOST_RUN_BYTES), str(path))
        except OSError as error:
            store.leave_out(str(path), f"cannot be read ({error.strerror or error})")
        except StoreError as error:
            store.leave_out(str(path), str(error))
        else:
            yield found
