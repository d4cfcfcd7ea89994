"""The noise of repeated runs of identical code, and the limit that the gate can hold at that noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.special import betaincinv, chdtri, gammaincinv, ndtr, stdtrit

from pytest_tokenpower.stats.runs import FloatArray, location_squared_error, summarise_runs
from pytest_tokenpower.stats.types import DEFAULT_PRIOR, Prior

MOST_FALSE_FAILURES = 0.01
LEAST_FOUND = 0.95
"""What a limit must give to be held: identical code fails in at most 1 %, twice the limit is found in 95 %."""

_QUANTILES = 400
_WIDEST = 10.0


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

    def at_most(self, confidence: float = 0.95) -> float:
        """The one-sided upper limit of the SD."""
        return self.sd * math.sqrt(self.df / float(chdtri(self.df, confidence)))


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
    prior: Prior = DEFAULT_PRIOR,
    *,
    meter_errors_per_run: Sequence[Sequence[float]] | None = None,
) -> RunNoise:
    """The noise of two or more runs, ln(J/token) per round, in the order in which they ran.

    Estimated from these runs alone, but for ``location_error``, which is the gate's (:func:`summarise_runs`, with the
    prior and the meter's own errors). The rounds' SD is corrected for autocorrelation, which makes a sample's variance
    too small; a drift within runs is the mean of the runs' own slopes, runs being the units. Raises ValueError below
    two runs.
    """
    if len(values_per_run) < 2:
        raise ValueError("the spread of runs needs at least two of them")
    arrays = [np.asarray(values, dtype=np.float64) for values in values_per_run]
    summaries = summarise_runs(values_per_run, meter_errors_per_run=meter_errors_per_run, prior=prior)
    locations = np.array([run.location for run in summaries])
    lag1 = None
    if any(len(values) > 3 for values in arrays):
        lag1 = summarise_runs(values_per_run, prior=replace(prior, lag1_rounds=0.0, lag1=0.0))[0].lag1
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


@dataclass(frozen=True)
class StoredGate:
    """The rule that one new run is judged by: so many stored runs, and this noise of identical code.

    ``run_sd`` is the true SD of a run's figure, ``location_error`` the rounds' share in it that the rule knows of;
    ``extra_squared_error`` is what the temperature adjustment adds to se². ``family`` comparisons are made in one
    pytest run; a test fails by itself only with p < ``alpha``/``family``.
    """

    run_sd: float
    location_error: float
    baseline_runs: int
    prior: Prior = DEFAULT_PRIOR
    extra_squared_error: float = 0.0
    family: int = 1
    alpha: float = 0.05

    @property
    def df(self) -> float:
        """The degrees of freedom of the moderated t."""
        return self.prior.nu0 + self.baseline_runs - 1

    @cached_property
    def standard_errors(self) -> FloatArray:
        """Equally likely values of the rule's se: the stored runs' sum of squares is run_sd² chi²(K - 1).

        v = max(w², [nu0 (tau0² + w²) + SS]/df), se² = v (1 + 1/K): the rule of ``moderated.stored_difference`` for
        one new run with as many rounds as the stored ones have.
        """
        freedom = self.baseline_runs - 1
        at = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
        squares = self.run_sd**2 * 2 * gammaincinv(freedom / 2, at) if freedom else np.zeros(_QUANTILES)
        error = self.location_error**2
        variance = np.maximum(error, (self.prior.nu0 * (self.prior.tau0**2 + error) + squares) / self.df)
        return np.asarray(np.sqrt(variance * (1 + 1 / self.baseline_runs) + self.extra_squared_error))

    @property
    def noise_floor(self) -> float:
        """The change, as a fraction, that is just significant for one test alone: mean of t(1 - alpha, df) se."""
        return math.expm1(float(stdtrit(self.df, 1 - self.alpha)) * float(self.standard_errors.mean()))

    def failing_share(self, change: float, threshold: float) -> float:
        """How often a run whose true change is ``change`` fails at a limit of ``threshold``, both fractions.

        It fails where delta > max(theta, t(1 - alpha/family, df) se). For normal runs delta, with SD run_sd
        sqrt(1 + 1/K), is independent of se (Cochran 1934), so the share is a mean over the values of se.
        """
        needed = np.maximum(
            math.log1p(threshold),
            float(stdtrit(self.df, 1 - self.alpha / self.family)) * self.standard_errors,
        )
        spread = max(self.run_sd * math.sqrt(1 + 1 / self.baseline_runs), 1e-12)
        return float(ndtr((math.log1p(change) - needed) / spread).mean())

    def smallest_threshold(self) -> float:
        """The limit that this noise lets the gate hold, as a fraction.

        The smallest at which identical code fails in at most 1 %, twice the limit is found in at least 95 %, and
        the limit is not below the noise floor.
        """
        low, high = 0.0, _WIDEST
        for _ in range(60):
            middle = (low + high) / 2
            # Both shares improve with the limit.
            if (
                self.failing_share(0.0, middle) <= MOST_FALSE_FAILURES
                and self.failing_share(2 * middle, middle) >= LEAST_FOUND
            ):
                high = middle
            else:
                low = middle
        return max(high, self.noise_floor)


def clopper_pearson(count: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of a share of which ``count`` of ``trials`` were seen (Biometrika 26:404, 1934)."""
    if not 0 <= count <= trials or trials < 1:
        raise ValueError(f"{count} of {trials} is no share")
    tail = (1 - level) / 2
    low = 0.0 if count == 0 else float(betaincinv(count, trials - count + 1, tail))
    high = 1.0 if count == trials else float(betaincinv(count + 1, trials - count, 1 - tail))
    return low, high
