"""Joules at an SLO: of the operating points that hold it surely, the one of the fewest joules per token. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_tokenpower.core.records import Figure
from pytest_tokenpower.suites.claims import Runs
from pytest_tokenpower.suites.grid import Cell, Suite
from pytest_tokenpower.suites.schema import Objective

SURELY = 1.96
"""So many standard errors under its limit a latency has to be."""


@dataclass(frozen=True)
class Point:
    """An operating point: its joules per token and its latencies; ``holds`` is None where a latency is not known."""

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
    """Judge each objective by the first run of each cell that was measured."""
    outcomes = []
    for objective in suite.table.slo:
        points = []
        for cell in suite.matching(objective.where):
            if measured := runs.get(cell.name):
                figures = measured[0].figures
                found = tuple(figures.get(name) for name, _ in limits_of(objective))
                points.append(
                    Point(cell, figures["joules_per_token"].value, found, _holds(found, limits_of(objective)))
                )
        points.sort(key=lambda point: point.joules_per_token)
        outcomes.append(
            Outcome(objective, tuple(points), next((each for each in points if each.holds), None))
        )
    return tuple(outcomes)


def _holds(found: Sequence[Figure | None], limits: Sequence[tuple[str, float]]) -> bool | None:
    known = [figure for figure in found if figure is not None]
    if len(known) < len(limits):
        return None
    return all(
        figure.value + SURELY * figure.stderr <= limit
        for figure, (_, limit) in zip(known, limits, strict=True)
    )
