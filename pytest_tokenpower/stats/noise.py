"""The noise of repeated runs of identical code, within runs and between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import betaincinv, chdtri, stdtrit

from pytest_tokenpower.stats.runs import location_squared_error, summarise_runs
from pytest_tokenpower.stats.types import DEFAULT_PRIOR, FloatArray


@dataclass(frozen=True)
class Spread:
    """A standard deviation on ``df`` degrees of freedom, with its 95 % interval for normal data."""

    sd: float
    df: int

    @property
    def low(self) -> float:
        """The lower end of the 95 % interval."""
        return self.sd * math.sqrt(self.df / float(chdtri(self.df, 0.025)))

    @property
    def high(self) -> float:
        """The upper end of the 95 % interval."""
        return self.sd * math.sqrt(self.df / float(chdtri(self.df, 0.975)))

    def at_most(self) -> float:
        """Return the one-sided upper limit of the SD, with 95 % confidence."""
        return self.sd * math.sqrt(self.df / float(chdtri(self.df, 0.95)))


@dataclass(frozen=True)
class Trend:
    """A change of ln(J/token) per round or per run, its standard error, and its degrees of freedom."""

    slope: float
    stderr: float
    df: int

    @property
    def certain(self) -> bool:
        """Whether it differs from none at the two-sided 5 % level."""
        return abs(self.slope) > float(stdtrit(self.df, 0.975)) * self.stderr


@dataclass(frozen=True)
class RunNoise:
    """What identical runs scatter by; SDs are of ln(J/token), so 0.005 is 0.5 %.

    ``round_sd`` and ``lag1`` are the SD and the autocorrelation of the rounds of one run (lag1 is None where no run
    has over three rounds), ``location_error`` is what they leave uncertain in a run's figure, ``round_drift`` the
    trend within runs. ``runs`` is the spread of the runs' figures, the rounds' share included, ``run_drift`` their
    trend in the order in which they ran. What so few rounds or runs cannot tell is None.
    """

    rounds: int
    round_sd: float | None
    lag1: float | None
    location_error: float
    round_drift: Trend | None
    runs: Spread
    run_drift: Trend | None


def estimate_noise(
    values_per_run: Sequence[Sequence[float]],
    *,
    meter_errors_per_run: Sequence[Sequence[float]] | None = None,
) -> RunNoise:
    """Return the noise of two or more runs, ln(J/token) per round, in the order in which they ran.

    Estimated from these runs alone, but for ``location_error``, which is the gate's (:func:`summarise_runs`, with the
    meter's own errors). The rounds' SD is corrected for autocorrelation, which makes a sample's variance
    too small; a drift within runs is the mean of the runs' own slopes, runs being the units. Raises ValueError below
    two runs.
    """
    if len(values_per_run) < 2:
        raise ValueError("the spread of runs needs at least two of them")
    arrays = [np.asarray(values, dtype=np.float64) for values in values_per_run]
    summaries = summarise_runs(values_per_run, meter_errors_per_run=meter_errors_per_run)
    locations = np.array([run.location for run in summaries])
    lag1 = None
    if any(len(values) > 3 for values in arrays):
        lag1 = summarise_runs(values_per_run, prior=replace(DEFAULT_PRIOR, lag1_rounds=0.0, lag1=0.0))[0].lag1
    return RunNoise(
        rounds=sum(map(len, arrays)),
        round_sd=_round_sd(arrays, lag1 or 0.0),
        lag1=lag1,
        location_error=math.sqrt(np.mean([run.squared_error for run in summaries])),
        round_drift=_mean_slope(arrays),
        runs=Spread(float(locations.std(ddof=1)), len(locations) - 1),
        run_drift=_slope(locations),
    )


def _round_sd(runs: Sequence[FloatArray], lag1: float) -> float | None:
    squares, df = 0.0, 0
    for values in runs:
        n = len(values)
        if n < 2:
            continue
        # location_squared_error is s²/bias · deff/n with bias = 1 - (deff - 1)/(n - 1): solved for the bias.
        inflation = n * float(location_squared_error(np.array(1.0), np.array(lag1), n))
        squares += (n - 1) * float(values.var(ddof=1)) * (n - 1 + inflation) / n
        df += n - 1
    return math.sqrt(squares / df) if df else None


def _mean_slope(runs: Sequence[FloatArray]) -> Trend | None:
    slopes = np.array([trend.slope for values in runs if (trend := _slope(values)) is not None])
    if len(slopes) < 2:
        return None
    return Trend(float(slopes.mean()), float(slopes.std(ddof=1)) / math.sqrt(len(slopes)), df=len(slopes) - 1)


def _slope(values: FloatArray) -> Trend | None:
    """Least squares of ``values`` on their number, as many rounds or runs as there are from three on."""
    n = len(values)
    if n < 3:
        return None
    x = np.arange(n) - (n - 1) / 2
    sxx = float((x * x).sum())
    slope = float((x * values).sum()) / sxx
    residuals = values - values.mean() - slope * x
    return Trend(slope, math.sqrt(float((residuals**2).sum()) / (n - 2) / sxx), df=n - 2)


def clopper_pearson(count: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided interval of a share: ``count`` of ``trials`` were seen (Biometrika 26:404, 1934)."""
    if not 0 <= count <= trials or trials < 1:
        raise ValueError(f"{count} of {trials} is no share")
    tail = (1 - level) / 2
    low = 0.0 if count == 0 else float(betaincinv(count, trials - count + 1, tail))
    high = 1.0 if count == trials else float(betaincinv(count + 1, trials - count, 1 - tail))
    return low, high
