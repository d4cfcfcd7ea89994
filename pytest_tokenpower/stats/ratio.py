"""The ratio of two figures that were measured apart: Welch's t on the logarithms of runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pytest_tokenpower.stats.change import Change
from pytest_tokenpower.stats.types import RunSummary

ALLOWANCE_DF = 2.0
"""What the scatter that is believed is worth, in degrees of freedom. Worth 4, intervals of 95 % held the truth in 90 %
where six runs scattered by twice of what was believed."""

FEWEST_RUNS = 3
"""From so many on, runs that scatter by more than is believed are believed alone."""


def log_ratio(of: Sequence[RunSummary], to: Sequence[RunSummary], scatter: float) -> Change:
    """ln(of / to) of the runs of both sides, or ln(of) without runs of ``to``; each side has a variance of its own.

    A run is one process, and the rounds within it do not hold what processes differ by: ``scatter`` is what that is
    believed to be (standard deviation of the logarithm), worth ALLOWANCE_DF degrees of freedom beside the runs' own.
    The variance of a side is at least that of its rounds. Degrees of freedom by Welch (1947) and Satterthwaite (1946).
    """
    first, v1, df1 = _side(of, scatter)
    if not to:
        return Change(first, float(np.sqrt(v1)), df1)
    second, v2, df2 = _side(to, scatter)
    total = v1 + v2
    df = total**2 / (v1**2 / df1 + v2**2 / df2) if total > 0 else df1 + df2
    return Change(first - second, float(np.sqrt(total)), df)


def _side(runs: Sequence[RunSummary], scatter: float) -> tuple[float, float, float]:
    """Mean, squared error and degrees of freedom of one side."""
    locations = np.array([run.location for run in runs])
    rounds = float(np.mean([run.squared_error for run in runs]))
    df = ALLOWANCE_DF + len(runs) - 1
    squares = float(((locations - locations.mean()) ** 2).sum())
    variance = max((ALLOWANCE_DF * (scatter**2 + rounds) + squares) / df, rounds)
    if len(runs) >= FEWEST_RUNS:
        variance = max(variance, squares / (len(runs) - 1))
    return float(locations.mean()), variance / len(runs), df
