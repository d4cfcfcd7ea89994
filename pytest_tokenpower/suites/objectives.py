"""Joules at an SLO: of the operating points that hold it surely, the one of the fewest joules per token. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from pytest_tokenpower.core.records import Figure, MeasurementRecord
from pytest_tokenpower.suites.claims import Runs
from pytest_tokenpower.suites.grid import Cell, Suite
from pytest_tokenpower.suites.schema import Objective

SURELY = 1.96
"""So many standard errors under its limit a latency has to be."""


@dataclass(frozen=True)
class Point:
    """An operating point: its joules per token and its latencies; ``holds`` is None where a latency is not known.

    Of several runs the joules are the mean, and the latencies those of the worst.
    """

    cell: Cell
    joules_per_token: float
    latencies: tuple[Figure | None, ...]
    holds: bool | None


@dataclass(frozen=True)
class Outcome:
    """What became of an objective; ``best`` is None where no point holds it."""

    objective: Objective
    points: tuple[Point, ...]
    best: Point | None

    @property
    def limits(self) -> tuple[tuple[str, float], ...]:
        """The figures that are limited, and to how many seconds."""
        return limits_of(self.objective)


def limits_of(objective: Objective) -> tuple[tuple[str, float], ...]:
    """Return the figures that an objective limits, and to how many seconds."""
    named = (("ttft", objective.ttft_ms), ("tpot", objective.tpot_ms))
    return tuple(
        (f"{name}_p{objective.percentile}_seconds", ms / 1e3) for name, ms in named if ms is not None
    )


def judge_objectives(suite: Suite, runs: Runs) -> tuple[Outcome, ...]:
    """Judge each objective by the cells that were measured: what holds it does so in every run."""
    outcomes = []
    for objective in suite.table.slo:
        points = []
        for cell in suite.matching(objective.where):
            if measured := runs.get(cell.name):
                found = tuple(_worst(measured, name) for name, _ in limits_of(objective))
                joules = fmean(one.figures["joules_per_token"].value for one in measured)
                points.append(Point(cell, joules, found, _holds(found, limits_of(objective))))
        points.sort(key=lambda point: point.joules_per_token)
        outcomes.append(
            Outcome(objective, tuple(points), next((each for each in points if each.holds), None))
        )
    return tuple(outcomes)


def _worst(measured: Sequence[MeasurementRecord], name: str) -> Figure | None:
    figures = [one.figures[name] for one in measured if name in one.figures]
    return max(figures, key=_at_most) if len(figures) == len(measured) else None


def _at_most(figure: Figure) -> float:
    """Return what a figure surely is not above."""
    return figure.value + SURELY * figure.stderr


def _holds(found: Sequence[Figure | None], limits: Sequence[tuple[str, float]]) -> bool | None:
    known = [figure for figure in found if figure is not None]
    if len(known) < len(limits):
        return None
    return all(_at_most(figure) <= limit for figure, (_, limit) in zip(known, limits, strict=True))
