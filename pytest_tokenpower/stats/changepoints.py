"""Where the level of a test changed in its history: steps in the locations of its runs, by a moderated t."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from pytest_tokenpower.stats.change import Change
from pytest_tokenpower.stats.types import DEFAULT_PRIOR, FloatArray, Prior, RunSummary

FEWEST_RUNS = 2
"""A level has at least so many runs: one run apart from all others is an outlier, not a level."""

_DECAY = math.sqrt(0.5)
_MOST_PLACEMENTS = 10


@dataclass(frozen=True, kw_only=True)
class ChangePoint(Change):
    """A step: the run at ``index`` is the first of a new level, and the change is that from the level before it.

    ``p_value`` is two-sided and corrected for the places where the step could have been.
    """

    index: int
    p_value: float


def change_points(
    runs: Sequence[RunSummary], prior: Prior = DEFAULT_PRIOR, *, alpha: float = 0.01, least: float = 0.0
) -> tuple[ChangePoint, ...]:
    """Return the steps in the locations of ``runs`` (in the order of history), oldest first.

    Binary segmentation (Scott & Knott 1974, Biometrics 30:507; Vostrikova 1981, Sov. Math. Dokl. 24:55) over seeded
    intervals (Kovács, Bühlmann, Li & Munk 2023, Biometrika 110:249): a level that came and went again hides from
    the plain kind, as neither of its edges parts the whole history well. Within an interval each split is tested
    by the moderated t of two groups of runs (Smyth 2004), v = max(w², [nu0 (tau0² + w²) + SS]/df), df = nu0 + n - 2,
    se² = v (1/k + 1/(n - k)); the largest |t| counts (Worsley 1979, JASA 74:365), with Bonferroni's correction for
    all splits of its layer of intervals. Layer j of ever shorter intervals gets alpha/2^(j+1), so that a history
    without any step shows one with probability at most ``alpha``. Found steps are then placed anew between their
    neighbours, where that makes them significant too. Steps smaller than ``least`` (a log ratio) are passed
    over.
    """
    if prior.nu0 <= 0 and len(runs) < 3:
        return ()
    history = _History(
        np.array([run.location for run in runs], dtype=np.float64),
        np.array([run.squared_error for run in runs], dtype=np.float64),
        prior,
        least,
    )
    return _placed(history, _segmented(history, 0, len(runs), alpha), alpha)


@dataclass(frozen=True)
class _History:
    locations: FloatArray
    squared_errors: FloatArray
    prior: Prior
    least: float

    def best_split(self, start: int, stop: int, *, tests: float) -> ChangePoint | None:
        """Return the most significant split of runs ``start`` to ``stop``, its p corrected for ``tests`` tests."""
        count = stop - start
        if count < 2 * FEWEST_RUNS:
            return None
        values = self.locations[start:stop]
        values = values - values.mean()
        left = np.arange(FEWEST_RUNS, count - FEWEST_RUNS + 1)
        sums = np.cumsum(values)[left - 1]
        deltas = -sums / (count - left) - sums / left
        inverse = 1 / left + 1 / (count - left)
        squares = np.maximum((values**2).sum() - deltas**2 / inverse, 0.0)
        error = self.squared_errors[start:stop].mean()
        df = self.prior.nu0 + count - 2
        variance = np.maximum(error, (self.prior.nu0 * (self.prior.tau0**2 + error) + squares) / df)
        stderr = np.sqrt(variance * inverse)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(deltas == 0, 0.0, np.abs(deltas) / stderr)
        t = np.where(np.abs(deltas) >= self.least, t, 0.0)
        at = int(np.argmax(t))
        if t[at] == 0:
            return None
        p = min(1.0, 2 * tests * float(stdtr(df, -t[at])))
        return ChangePoint(float(deltas[at]), float(stderr[at]), df, index=start + int(left[at]), p_value=p)


def _segmented(history: _History, start: int, stop: int, alpha: float) -> list[ChangePoint]:
    best: ChangePoint | None = None
    for layer, intervals in enumerate(_seeded(start, stop)):
        splits = sum(last - first - 2 * FEWEST_RUNS + 1 for first, last in intervals)
        for first, last in intervals:
            found = history.best_split(first, last, tests=splits * 2.0 ** (layer + 1))
            if found is not None and (best is None or found.p_value < best.p_value):
                best = found
    if best is None or best.p_value >= alpha:
        return []
    return [
        *_segmented(history, start, best.index, alpha),
        best,
        *_segmented(history, best.index, stop, alpha),
    ]


def _seeded(start: int, stop: int) -> Iterator[list[tuple[int, int]]]:
    """Layers of evenly spread, overlapping intervals, each layer's shorter than the last one's by sqrt(1/2)."""
    total = stop - start
    layer = 0
    while True:
        length = math.ceil(total * _DECAY**layer)
        if length < 2 * FEWEST_RUNS:
            return
        pieces = 2 * math.ceil((1 / _DECAY) ** layer) - 1
        starts = np.linspace(0, total - length, pieces).round().astype(int)
        yield list(dict.fromkeys((start + int(each), start + int(each) + length) for each in starts))
        layer += 1


def _placed(history: _History, found: list[ChangePoint], alpha: float) -> tuple[ChangePoint, ...]:
    for _ in range(_MOST_PLACEMENTS):
        edges = [0, *(point.index for point in found), len(history.locations)]
        moved: dict[int, ChangePoint] = {}
        for point, before, after in zip(found, edges, edges[2:], strict=False):
            anew = history.best_split(before, after, tests=float(after - before - 2 * FEWEST_RUNS + 1))
            # A stray run between two steps may hide there what a shorter interval showed.
            kept = anew if anew is not None and anew.p_value < alpha else point
            moved[kept.index] = kept
        settled = list(moved) == [point.index for point in found]
        found = [moved[index] for index in sorted(moved)]
        if settled:
            break
    return tuple(found)
