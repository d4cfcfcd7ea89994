"""A soak: one piece of work without a pause for hours, in stretches, each with its energy and conditions. Pure."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec

from pytest_tokenpower.analysis.rounds import denominator_of, good, joules_per_unit, units_per
from pytest_tokenpower.core.denominators import figure_per, unit_of
from pytest_tokenpower.core.integrity import read_lines, with_digest
from pytest_tokenpower.core.records import RoundRecord
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.stats.changepoints import ChangePoint, change_points
from pytest_tokenpower.stats.drift import Drift, drift
from pytest_tokenpower.stats.types import RunSummary

MOST_STRETCHES = 1440
LEAST_STRETCH_S = 10.0

MOST_LEVELS = 96
"""Steps are looked for between so many means of stretches: neighbours are too much alike to be evidence each."""

LEAST_STEP = 0.01
"""A smaller step is no finding."""


def stretch_seconds(seconds: float) -> float:
    """How long a stretch is: a day has 1440, however long a soak there are no more."""
    return max(LEAST_STRETCH_S, seconds / MOST_STRETCHES)


class SoakAsked(msgspec.Struct, frozen=True):
    """A soak that is to be done: for how long, into which file, on from what is in it, and the largest drift."""

    seconds: float
    out: str
    resume: bool = False
    max_drift: float | None = None

    @classmethod
    def read(cls, text: str) -> SoakAsked:
        """Read what :meth:`encode` gave."""
        return msgspec.json.decode(text, type=cls)

    def encode(self) -> str:
        """Return it as JSON."""
        return msgspec.json.encode(self).decode()


class SoakBegun(msgspec.Struct, frozen=True, tag_field="type", tag="tokenpower-soak"):
    """The first line of a soak's file: of which test, of which work or commit, with which source of energy.

    ``provenance`` is that of a measurement; empty in files that do not tell it.
    """

    test: str
    fingerprint: str
    source: str
    created: str
    provenance: str = ""


class Stretch(msgspec.Struct, frozen=True, tag_field="type", tag="stretch"):
    """A stretch, ``at_s`` seconds of soaking after the beginning (interruptions are left out)."""

    at_s: float
    round: RoundRecord


def encode_line(entry: SoakBegun | Stretch) -> bytes:
    """Return a line of the file, ending in a digest of itself."""
    return with_digest(msgspec.json.encode(entry)) + b"\n"


def read_soak(data: bytes) -> tuple[SoakBegun | None, tuple[Stretch, ...], int]:
    """Return the lines of a soak's file up to the first that is not whole, and how many bytes these are."""
    return read_lines(data, SoakBegun, Stretch)


def goes_on(out: Path, begun: SoakBegun) -> list[Stretch]:
    """Return what a soak's file holds, and cut off what a kill has left of a line; raises UsageError."""
    before, stretches, size = read_soak(out.read_bytes())
    if before is None or (before.test, before.fingerprint, before.source) != (
        begun.test,
        begun.fingerprint,
        begun.source,
    ):
        raise UsageError(
            f"{out}: is a soak of other work, of another commit, or with another source of energy: give this one its "
            "own --out"
        )
    os.truncate(out, size)
    return list(stretches)


@dataclass(frozen=True)
class Course:
    """A soak stretch by stretch: since when (hours), joules per unit of those that are kept, and what the board did.

    ``limited`` are shares of the stretch by limit; None is what is not known.
    """

    hours: tuple[float, ...]
    joules_per_unit: tuple[float | None, ...]
    watts: tuple[float | None, ...]
    celsius: tuple[float | None, ...]
    sm_clock_mhz: tuple[float | None, ...]
    memory_gib: tuple[float | None, ...]
    limited: Mapping[str, tuple[float, ...]]


def course(stretches: Sequence[Stretch]) -> Course:
    """Return what there is to draw of a soak."""
    rounds = [each.round for each in stretches]
    per = denominator_of(rounds)
    names = dict.fromkeys(name for one in rounds for name, share in one.limited_shares.items() if share > 0)
    return Course(
        tuple(each.at_s / 3600 for each in stretches),
        tuple(_value(one, per) or None for one in rounds),
        tuple(one.joules / one.seconds if good([one]) and one.joules is not None else None for one in rounds),
        tuple(one.temperature_celsius for one in rounds),
        tuple(one.sm_clock_mhz for one in rounds),
        tuple(one.memory_gib for one in rounds),
        {name: tuple(one.limited_shares.get(name, 0.0) for one in rounds) for name in names},
    )


@dataclass(frozen=True)
class Hour:
    """A part of a soak in means: since when (hours), joules per unit, watts, and conditions where they are known."""

    hour: float
    joules_per_unit: float
    watts: float
    celsius: float | None
    sm_clock_mhz: float | None
    memory_gib: float | None
    limited: Mapping[str, float]
    dropped: int


@dataclass(frozen=True)
class Soaked:
    """What a soak came to: its parts, the drift from the beginning to the end, and steps at their hours.

    ``unit`` is J/token, or what follows from the counts of work that generates nothing.
    """

    hours: float
    unit: str
    parts: tuple[Hour, ...]
    drift: Drift | None
    steps: tuple[tuple[float, ChangePoint], ...]
    dropped: int


def summarise(stretches: Sequence[Stretch], parts: int = 12) -> Soaked:
    """Sum a soak up."""
    per = denominator_of([each.round for each in stretches])
    kept = [each for each in stretches if _value(each.round, per)]
    hours = [each.at_s / 3600 for each in kept]
    values = [_value(each.round, per) for each in kept]
    whole = (stretches[-1].at_s + stretches[-1].round.seconds) / 3600 if stretches else 0.0
    size = max(1, math.ceil(len(kept) / MOST_LEVELS))
    groups = [slice(at, at + size) for at in range(0, len(kept) - len(kept) % size, size)]
    levels = [_level(values[group]) for group in groups]
    steps = _whole_steps(change_points(levels, least=math.log1p(LEAST_STEP)) if len(levels) > 2 else ())
    edges = [whole * at / parts for at in range(parts + 1)]
    split = [
        (first, [each.round for each in stretches if first <= each.at_s / 3600 < last])
        for first, last in pairwise(edges)
    ]
    return Soaked(
        whole,
        unit_of(figure_per(per)),
        tuple(
            _part(first, inside, per) for first, inside in split if any(_value(one, per) for one in inside)
        ),
        drift(hours, values) if values else None,
        tuple((hours[groups[step.index].start], step) for step in steps),
        len(stretches) - len(kept),
    )


def _whole_steps(steps: Sequence[ChangePoint]) -> list[ChangePoint]:
    """Join steps in one direction that follow each other at once: a mean over a step's both sides makes two of it."""
    found: list[ChangePoint] = []
    for step in steps:
        last = found[-1] if found else None
        if last is None or step.index - last.index > 2 or step.delta * last.delta < 0:
            found.append(step)
            continue
        found[-1] = ChangePoint(
            last.delta + step.delta,
            math.hypot(last.stderr, step.stderr),
            min(last.df, step.df),
            index=max(last, step, key=lambda each: abs(each.delta)).index,
            p_value=min(last.p_value, step.p_value),
        )
    return found


def _level(values: Sequence[float]) -> RunSummary:
    logs = [math.log(value) for value in values]
    mean = sum(logs) / len(logs)
    squares = sum((log - mean) ** 2 for log in logs)
    error = squares / max(len(logs) - 1, 1) / len(logs)
    return RunSummary(mean, error, len(logs))


def _value(one: RoundRecord, per: str) -> float:
    """Return the joules per unit of a stretch; 0 where it tells none."""
    return max(joules_per_unit(one, per) or 0.0, 0.0) if good([one]) else 0.0


def _part(hour: float, inside: Sequence[RoundRecord], per: str) -> Hour:
    kept = [one for one in inside if _value(one, per)]
    joules, seconds = sum(one.joules or 0.0 for one in kept), sum(one.seconds for one in kept)
    names = dict.fromkeys(name for one in kept for name in one.limited_shares)
    return Hour(
        hour,
        joules / sum(units_per(per, one) for one in kept),
        joules / seconds,
        _mean([one.temperature_celsius for one in kept]),
        _mean([one.sm_clock_mhz for one in kept]),
        _mean([one.memory_gib for one in kept]),
        {name: _mean([one.limited_shares.get(name) for one in kept]) or 0.0 for name in names},
        len(inside) - len(kept),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
