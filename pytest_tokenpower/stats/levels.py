"""Levels of a test's history: where an accepted change or a step ends the runs that are a baseline."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from pytest_tokenpower.stats.change import MOST_DF, Change
from pytest_tokenpower.stats.changepoints import change_points
from pytest_tokenpower.stats.comparison import Run, readings
from pytest_tokenpower.stats.scatter import (
    CAUTION_SD,
    DEFAULT_NOISE,
    FEWEST_DF,
    Groups,
    Noise,
    Scatter,
    scatter,
)
from pytest_tokenpower.stats.types import DEFAULT_PRIOR, RunSummary

STEP_ALPHA = 0.01
LONE_ALPHA = 0.001
"""One occasion apart from all others is mostly an outlier, so that it takes more to make a level of it."""


_Known = tuple[float, int]
"""The sum of squares of occasions about their levels, and its degrees of freedom."""


def split_levels(
    runs: Sequence[Run], *, starts: Collection[int] = (), noise: Noise = DEFAULT_NOISE
) -> tuple[tuple[Run, ...], ...]:
    """Cut a history into levels, the present one last.

    Steps are sought in the means of occasions (runs of one occasion share its effect, and a sitting is no level) of
    each board by itself (another board is no step), and from run to run within each occasion: what they share falls
    out there, and a branch that gets five merges an hour has no other place for its steps.

    Args:
        runs: The history, oldest first.
        starts: The indices of runs that begin a new level because somebody said so: accepted changes.
        noise: What is believed of the scatter.

    Returns:
        The levels in the order of history; together they are ``runs``.

    Raises:
        ValueError: An index is none of ``runs``.
    """
    if any(not 0 <= at < len(runs) for at in starts):
        raise ValueError(f"a level starts at none of the {len(runs)} runs")
    if not runs:
        return ()
    said = sorted({0, *starts})
    edges = set(said)
    for first, last in zip(said, [*said[1:], len(runs)], strict=True):
        for board in dict.fromkeys(run.board for run in runs[first:last]):
            places = [at for at in range(first, last) if runs[at].board == board]
            known = _scatter(_parts(runs[:first], edges), board)
            edges.update(_steps([runs[at] for at in places], places, noise, known))
    return _parts(runs, edges)


def _parts(runs: Sequence[Run], edges: Collection[int]) -> tuple[tuple[Run, ...], ...]:
    ordered = [*sorted(at for at in edges if at < len(runs)), len(runs)]
    return tuple(tuple(runs[first:last]) for first, last in pairwise(ordered))


def _scatter(levels: Sequence[Sequence[Run]], board: str) -> _Known:
    """Return how the occasions of one board scatter about their levels."""
    mine = [each for level in levels if (each := [run for run in level if run.board == board])]
    return readings(mine)[0].between() if mine else (0.0, 0)


def _steps(runs: Sequence[Run], places: Sequence[int], noise: Noise, known: _Known) -> set[int]:
    """Return the places of the runs that begin a level; ``known`` is the scatter of the levels before."""
    parts, found = list(runs), set()
    for occasion in dict.fromkeys(run.occasion for run in runs if run.occasion):
        inside = [at for at, run in enumerate(runs) if run.occasion == occasion]
        for number, step in enumerate(
            _unit_steps([replace(runs[at], occasion="") for at in inside], noise, (0.0, 0))
        ):
            found.add(inside[step])
            for at in inside[step:]:
                parts[at] = replace(parts[at], occasion=f"{occasion} {number}")
    return {places[at] for at in found.union(_unit_steps(parts, noise, known))}


def _unit_steps(runs: Sequence[Run], noise: Noise, known: _Known) -> list[int]:
    """Return the first runs of the occasions that begin a level; in order."""
    groups, _ = readings([runs])
    # Groups stand in the order in which their first runs do.
    begins, count = _first_runs(runs), len(groups.means)
    if count < FEWEST_DF + 2:
        # Too few to tell by themselves, as after an acceptance: the levels before tell how the test scatters.
        last = count > 1 and _lone(groups, slice(0, count - 1), count - 1, noise, known)
        return [begins[-1]] if last else []
    summaries = [
        RunSummary(float(mean), float(error), 1)
        for mean, error in zip(groups.means, groups.errors, strict=True)
    ]
    found = [point.index for point in change_points(summaries, DEFAULT_PRIOR, alpha=STEP_ALPHA)]
    edges = [0, *found, len(summaries)]
    if edges[-1] - edges[-2] > FEWEST_DF and _lone(
        groups, slice(edges[-2], edges[-1] - 1), edges[-1] - 1, noise
    ):
        found.append(edges[-1] - 1)
    if edges[1] > FEWEST_DF and _lone(groups, slice(1, edges[1]), 0, noise):
        found.append(1)
    return sorted(begins[at] for at in found)


def _first_runs(runs: Sequence[Run]) -> list[int]:
    seen: dict[str, int] = {}
    for at, run in enumerate(runs):
        seen.setdefault(run.occasion or f"\0{at}", at)
    return list(seen.values())


def _lone(groups: Groups, others: slice, at: int, noise: Noise, known: _Known = (0.0, 0)) -> bool:
    """Whether one occasion at the end of a level lies apart from all of the level."""
    means = groups.means[others]
    squares = known[0] + float(((means - means.mean()) ** 2).sum())
    df = known[1] + len(means) - 1
    if df < FEWEST_DF:
        return False
    # The belief counts in full, learned or not: one run is to be told from many.
    unit = scatter(squares, df, noise.total, Scatter(CAUTION_SD, MOST_DF), most_believed=noise.total.df)
    stderr = max(unit.sd, math.sqrt(float(np.mean(groups.errors)))) * math.sqrt(1 + 1 / len(means))
    change = Change(float(groups.means[at] - means.mean()), stderr, unit.df)
    return 2 * min(change.p_above(), change.p_below()) < LONE_ALPHA
