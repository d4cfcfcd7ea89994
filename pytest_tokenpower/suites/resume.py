"""The journal of a sweep: a line for each finished cell, so that an interrupted sweep goes on where it stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import msgspec

from pytest_tokenpower.core.integrity import read_lines, with_digest
from pytest_tokenpower.core.records import MeasurementRecord, impossible
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.meters.types import Device
from pytest_tokenpower.suites.schema import SUFFIX

FINGERPRINT = "suite.fingerprint"
"""The fact of a measurement that says which cell it is of, whatever the cell is called."""

FILE = "suite.file"
"""The fact of a measurement that says which suite file it is of, from pytest's root directory."""


class Begun(msgspec.Struct, frozen=True, tag_field="type", tag="tokenpower-sweep"):
    """The first line: of which suite, at which commit, with which source of energy."""

    suite: str
    created: str
    source: str
    commit: str | None = None


class Finished(msgspec.Struct, frozen=True, tag_field="type", tag="cell"):
    """A cell that is measured, and that nobody need measure again."""

    fingerprint: str
    measurement: MeasurementRecord


@dataclass(frozen=True)
class Journal:
    """What a journal's file holds. Beyond ``good_bytes`` is what a kill has cut off, or a hand has changed."""

    begun: Begun | None = None
    finished: Mapping[str, Finished] = field(default_factory=dict)
    good_bytes: int = 0

    def of(self, test: str, fingerprint: str) -> MeasurementRecord | None:
        """Return the measurement of a cell that is finished: the same test, of the same work on the same engine."""
        found = self.finished.get(test)
        return None if found is None or found.fingerprint != fingerprint else found.measurement

    def problem(self, now: Begun) -> str:
        """Why a sweep that begins now cannot go on with this one; empty where it can."""
        if self.begun is None:
            return ""
        if self.begun.commit != now.commit:
            return (
                f"the interrupted sweep of {now.suite} is of commit {_short(self.begun.commit)}, and this is "
                f"{_short(now.commit)}: check that one out to go on, or begin anew without --energy-resume"
            )
        if self.begun.source != now.source:
            return (
                f"the interrupted sweep of {now.suite} was measured with --energy-source={self.begun.source}, and this "
                f"run with {now.source}: use the same, or begin anew without --energy-resume"
            )
        return ""


def _short(commit: str | None) -> str:
    return commit[:12] if commit else "none (outside git)"


def read_journal(data: bytes) -> Journal:
    """Return the journal in a file's bytes, up to the first line that is not whole."""
    begun, lines, good = read_lines(data, Begun, Finished, lambda line: not impossible(line.measurement))
    return Journal(begun, {line.measurement.test: line for line in lines}, good)


def encode_line(entry: Begun | Finished) -> bytes:
    """Return a line of the journal, ending in a digest of itself."""
    return with_digest(msgspec.json.encode(entry)) + b"\n"


def finishes(measured: MeasurementRecord) -> bool:
    """Tell whether a measurement is of a cell, and good: one that is not to be trusted is tried again."""
    return FINGERPRINT in measured.facts and measured.comparable


def measured_here(measured: MeasurementRecord, devices: Sequence[Device]) -> bool:
    """Tell whether a measurement is of boards and a driver as they are now; what both do not tell is not compared."""
    now: dict[str, set[Fact]] = {}
    for device in devices:
        for name, value in device.key_facts.items():
            now.setdefault(f"{device.scope}.{name}", set()).add(value)
    drivers = {device.facts["driver"] for device in devices if "driver" in device.facts}
    then = {value for name, value in measured.facts.items() if name.endswith(".driver")}
    same = all(
        measured.key[name] in known for name, known in now.items() if len(known) == 1 and name in measured.key
    )
    return same and (not drivers or then <= drivers)


def journal_name(suite: str) -> str:
    """Return the file's name for a suite at a path from pytest's root directory."""
    stem = PurePosixPath(suite).name.removesuffix(SUFFIX)
    return f"{stem}-{hashlib.sha256(suite.encode()).hexdigest()[:8]}.jsonl"
