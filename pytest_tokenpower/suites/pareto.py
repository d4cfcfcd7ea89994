"""Cells that no other cell beats in joules per token and other figures at once (Pareto). Pure."""

from __future__ import annotations

import math
import re
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


def having(measurements: Sequence[MeasurementRecord], figures: Sequence[str]) -> list[MeasurementRecord]:
    """Return the cells that have all the figures, of several runs of one the first; a doubtful one has none."""
    cells: dict[str, MeasurementRecord] = {}
    for one in measurements:
        if FILE in one.facts and all(name in one.figures for name in figures):
            cells.setdefault(cell_of(one), one)
    return list(cells.values())


def usual_figures(measurements: Sequence[MeasurementRecord]) -> tuple[str, ...]:
    """Return those of AGAINST that every good cell has: a missing one would hide its cell."""
    known = having(measurements, (MAIN,))
    return tuple(name for name in AGAINST if known and all(name in one.figures for one in known))


def not_beaten(
    measurements: Sequence[MeasurementRecord], figures: Sequence[str]
) -> tuple[MeasurementRecord, ...]:
    """Return the cells that no other beats, the fewest joules per token first.

    One cell beats another where it is surely better in one of joules per token and the figures, and surely worse in
    none. Cells of other work, or of another provenance, do not compete.
    """
    known = having(measurements, (MAIN, *figures))
    best = [
        one
        for one in known
        if not any(_competes(other, one) and _beats(other, one, (MAIN, *figures)) for other in known)
    ]
    return tuple(sorted(best, key=lambda one: one.figures[MAIN].value))


def strengths(measurements: Sequence[MeasurementRecord]) -> dict[str, tuple[str, ...]]:
    """Return for each cell the figures of AGAINST in which, with joules per token, no other beats it.

    None where nothing competes.
    """
    # Of several runs of a cell its first good one stands for it, wherever it has a figure.
    cells = having([*having(measurements, (MAIN,)), *measurements], ())
    found: dict[str, tuple[str, ...]] = {one.test: () for one in cells}
    for figure in AGAINST:
        known = having(cells, (MAIN, figure))
        for one in not_beaten(known, (figure,)):
            if any(_competes(other, one) for other in known):
                found[one.test] += (figure,)
    return found


def cell_of(one: MeasurementRecord) -> str:
    """Return the id of a cell without the number of its run."""
    return re.sub(r"@run\d+$", "", one.test)


def _competes(other: MeasurementRecord, one: MeasurementRecord) -> bool:
    return cell_of(other) != cell_of(one) and _class(other) == _class(one)


def _class(one: MeasurementRecord) -> tuple[object, ...]:
    return (one.provenance, one.scope, *(one.facts.get(name) for name in _WORK))


def _beats(other: MeasurementRecord, one: MeasurementRecord, figures: Sequence[str]) -> bool:
    leads = [_lead(other.figures[name], one.figures[name], name) for name in figures]
    return min(leads) >= -SURELY and max(leads) > SURELY


def _lead(other: Figure, one: Figure, name: str) -> float:
    """Return by how many standard errors the other is better."""
    gap = (other.value - one.value) * (1 if name in MORE_IS_BETTER else -1)
    error = math.hypot(other.stderr, one.stderr)
    return gap / error if error > 0 else math.copysign(math.inf, gap) if gap else 0.0
