"""Which cells no other cell beats in joules per token and another figure at once (Pareto). Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pytest_tokenpower.core.figures import MORE_IS_BETTER
from pytest_tokenpower.core.records import Figure, MeasurementRecord
from pytest_tokenpower.suites.resume import FILE

MAIN = "joules_per_token"

AGAINST: Mapping[str, str] = {
    "tokens_per_second": "tok/s",
    "ttft_p90_seconds": "TTFT",
    "quality": "quality",
}
"""What a saving is most often paid with, and how it is called in tables."""

SURELY = 1.96
"""So many standard errors apart, two cells are not alike."""

_WORK = (FILE, "cell.prompts", "cell.prompt_tokens", "cell.new_tokens")
"""Only cells of one work compete: a token of a long context costs more whoever generates it."""


def not_beaten(measurements: Sequence[MeasurementRecord], figure: str) -> tuple[MeasurementRecord, ...]:
    """Return the cells that no other beats, the fewest joules per token first.

    One cell beats another where it is surely better in one of the two and not surely worse in the other. Cells of
    other work, or of another provenance, do not compete; of several runs of a cell the first stands for it.
    """
    cells: dict[str, MeasurementRecord] = {}
    for one in measurements:
        if MAIN in one.figures and figure in one.figures:
            cells.setdefault(_cell(one), one)
    best = [
        one
        for one in cells.values()
        if not any(_competes(other, one) and _beats(other, one, figure) for other in cells.values())
    ]
    return tuple(sorted(best, key=lambda one: one.figures[MAIN].value))


def strengths(measurements: Sequence[MeasurementRecord]) -> dict[str, tuple[str, ...]]:
    """Return for each cell the figures of AGAINST in which no other beats it; none where nothing competes."""
    cells = [one for one in measurements if FILE in one.facts]
    found: dict[str, tuple[str, ...]] = {one.test: () for one in cells}
    for figure in AGAINST:
        known = [one for one in cells if MAIN in one.figures and figure in one.figures]
        competing = [one for one in known if any(_competes(other, one) for other in known)]
        for one in not_beaten(competing, figure):
            found[one.test] += (figure,)
    return found


def _cell(one: MeasurementRecord) -> str:
    return one.test.partition("@run")[0]


def _competes(other: MeasurementRecord, one: MeasurementRecord) -> bool:
    return _cell(other) != _cell(one) and _class(other) == _class(one)


def _class(one: MeasurementRecord) -> tuple[object, ...]:
    return (one.provenance, one.scope, *(one.facts.get(name) for name in _WORK))


def _beats(other: MeasurementRecord, one: MeasurementRecord, figure: str) -> bool:
    leads = [_lead(other.figures[name], one.figures[name], name) for name in (MAIN, figure)]
    return min(leads) >= -SURELY and max(leads) > SURELY


def _lead(other: Figure, one: Figure, name: str) -> float:
    """Return by how many standard errors the other is better."""
    gap = (other.value - one.value) * (1 if name in MORE_IS_BETTER else -1)
    error = math.hypot(other.stderr, one.stderr)
    return gap / error if error > 0 else math.copysign(math.inf, gap) if gap else 0.0
