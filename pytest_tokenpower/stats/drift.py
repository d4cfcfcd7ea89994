"""How a figure drifts over time: the slope of its logarithm, with an error that knows of autocorrelation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_tokenpower.stats.change import Change

FEWEST = 5
MOST_LAG1 = 0.95


@dataclass(frozen=True)
class Drift:
    """The change from beginning to end by the straight line through all points, and the lag-1 autocorrelation."""

    change: Change
    lag1: float


def drift(times: Sequence[float], values: Sequence[float]) -> Drift | None:
    """Fit ln(value) to time; None below FEWEST points, or where no time passes.

    What is left of an AR(1) beside the line makes neighbours alike: so many points are worth n (1 - φ)/(1 + φ), φ being
    the residuals' lag-1 autocorrelation, its bias of about -(1 + 4 φ)/n taken out (Marriott & Pope 1954).
    """
    n = len(values)
    t = np.asarray(times, dtype=np.float64)
    y = np.log(np.asarray(values, dtype=np.float64))
    span = float(t[-1] - t[0]) if n else 0.0
    if n < FEWEST or span <= 0:
        return None
    centred = t - t.mean()
    squares = float((centred**2).sum())
    slope = float((centred * y).sum()) / squares
    left = y - y.mean() - slope * centred
    total = float((left**2).sum())
    lag1 = float((left[1:] * left[:-1]).sum()) / total if total > 0 else 0.0
    lag1 = min(max((n * lag1 + 1) / (n - 4), 0.0), MOST_LAG1)
    worth = (1 - lag1) / (1 + lag1)
    stderr = math.sqrt(total / (n - 2) / squares / worth)
    return Drift(Change(slope * span, stderr * span, max(n * worth - 2, 1.0)), lag1)
