"""The moderated t on runs: how much more energy the new code takes per token, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from pytest_tokenpower.stats.runs import FloatArray, RunSummary
from pytest_tokenpower.stats.types import DEFAULT_PRIOR, Prior

Mode = Literal["stored", "interleaved", "constant"]

_POWER_80 = 0.8416212335729143
"""The normal quantile of 80 %."""


class Difference(NamedTuple):
    """Arrays: a log ratio, its standard error, its degrees of freedom, the variance v of a run's location."""

    delta: FloatArray
    stderr: FloatArray
    df: float
    variance: FloatArray


OCCASION_SHARE = 0.5
"""How much of the run-to-run variance fresh processes on one occasion are taken to share: the state of the machine, not
of the process. Assumed: on one H100 eight processes within nine minutes spread by 0.18 %, as runs of several days and
boards do (0.16 %), which speaks for less; a noisier machine may share more."""


@dataclass(frozen=True)
class Estimate:
    """ln(new / baseline) of J/token with its uncertainty: Student's t with ``df`` about ``delta``.

    ``baseline_runs`` are the stored runs K (interleaved: the restarts; constant: 0), ``new_runs`` J.
    ``run_sd`` is the SD of one run's location that the rule arrived at, run effect and rounds together.
    """

    delta: float
    stderr: float
    df: float
    baseline_runs: int
    new_runs: int
    run_sd: float
    mode: Mode = "stored"

    @property
    def change(self) -> float:
        """The change as a fraction: 0.02 is 2 % more energy per token."""
        return math.expm1(self.delta)

    @property
    def provisional(self) -> bool:
        """Whether two stored runs or fewer stand behind it, so that the prior decides more than the data."""
        return self.mode == "stored" and self.baseline_runs <= 2

    def lower(self, alpha: float = 0.05) -> float:
        """L = delta - t(1 - alpha, df) se, a one-sided lower bound of the log ratio."""
        return self.delta - self._quantile(1 - alpha) * self.stderr

    def upper(self, beta: float = 0.05) -> float:
        """U = delta + t(1 - beta, df) se, a one-sided upper bound of the log ratio."""
        return self.delta + self._quantile(1 - beta) * self.stderr

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided interval of the log ratio."""
        half = self._quantile((1 + level) / 2) * self.stderr
        return self.delta - half, self.delta + half

    def change_interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided interval of the change, as fractions."""
        low, high = self.interval(level)
        return math.expm1(low), math.expm1(high)

    def p_above(self, reference: float = 0.0) -> float:
        """One-sided p of "at most ``reference``" (a log ratio): small where the new code surely takes more."""
        return float(p_above(np.array(self.delta - reference), np.array(self.stderr), self.df))

    def p_below(self, reference: float = 0.0) -> float:
        """One-sided p of "at least ``reference``" (a log ratio): small where the new code surely takes less."""
        return float(p_above(np.array(reference - self.delta), np.array(self.stderr), self.df))

    def smallest_failing(self, alpha: float = 0.05) -> float:
        """The smallest log ratio that is significant, t(1 - alpha, df) se: the noise floor of the gate."""
        return self._quantile(1 - alpha) * self.stderr

    def resolvable(self, threshold: float, alpha: float = 0.05) -> float:
        """The change, as a fraction, that fails in 80 % of runs: max(theta, t(1 - alpha) se) + 0.84 se."""
        floor = max(math.log1p(threshold), self.smallest_failing(alpha))
        return math.expm1(floor + _POWER_80 * self.stderr)

    def _quantile(self, probability: float) -> float:
        return float(stdtrit(self.df, probability))


def p_above(delta: FloatArray, stderr: FloatArray, df: float) -> FloatArray:
    """One-sided p of no increase, the upper tail of Student's t at delta/stderr; 0.5 where both are zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where((delta == 0) & (stderr == 0), 0.0, delta / stderr)
    return np.asarray(stdtr(df, -t))


def stored_difference(
    baseline: FloatArray,
    new: FloatArray,
    baseline_squared_error: FloatArray,
    new_squared_error: FloatArray,
    prior: Prior,
    *,
    same_rounds: bool = True,
    occasion_share: float = 0.0,
) -> Difference:
    """The core of :func:`compare_stored` for locations (..., K) and (..., J) and their squared errors.

    v = max(w², [nu0 (tau0² + w²) + SS_baseline + SS_new]/df) with df = nu0 + K + J - 2, and se² = v (1/K +
    1/J): the moderated t (Smyth 2004) with the between-run variance never below what the rounds alone would
    give. As nu0 -> 0 it is the pooled two-sample t (at J = 1: the prediction interval of one more run).

    With unequal numbers of rounds the run variance is parted from each side's own error: se² = (tau² +
    w_b²)/K + (tau² + w_c²)/J, tau² = v - w². There w² is weighted by the degrees of freedom each side gave to
    v, (K-1) w_b² + (J-1) w_c² over K + J - 2, which makes E[v] = tau² + w²; at K = J = 1, their mean.

    New runs that share an occasion, and with it ``occasion_share`` of v, do not average that share out: v (1/K +
    share + (1 - share)/J).
    """
    base_count, new_count = baseline.shape[-1], new.shape[-1]
    df = prior.nu0 + base_count + new_count - 2
    if df <= 0:
        raise ValueError(
            "one run a side says nothing about the spread of runs without a prior (Prior.nu0 is 0)"
        )
    base_error, new_error = baseline_squared_error.mean(axis=-1), new_squared_error.mean(axis=-1)
    if same_rounds:
        error = (base_count * base_error + new_count * new_error) / (base_count + new_count)
    elif base_count + new_count > 2:
        error = ((base_count - 1) * base_error + (new_count - 1) * new_error) / (base_count + new_count - 2)
    else:
        error = (base_error + new_error) / 2
    squares = _squares(baseline) + _squares(new)
    variance = np.maximum(error, (prior.nu0 * (prior.tau0**2 + error) + squares) / df)
    if same_rounds:
        squared = variance * (1 / base_count + 1 / new_count)
    else:
        tau2 = variance - error
        squared = (tau2 + base_error) / base_count + (tau2 + new_error) / new_count
    squared = squared + occasion_share * variance * (1 - 1 / new_count)
    return Difference(new.mean(axis=-1) - baseline.mean(axis=-1), np.sqrt(squared), df, variance)


def one_sample(locations: FloatArray, squared_errors: FloatArray, tau0: float, nu0: float) -> Difference:
    """The core of the interleaved and the constant comparison: the mean of (..., J) locations.

    v = max(w², [nu0 (tau0² + w²) + SS]/df), df = nu0 + J - 1, se² = v/J (Smyth 2004).
    """
    count = locations.shape[-1]
    df = nu0 + count - 1
    if df <= 0:
        raise ValueError("one run says nothing about the spread of runs without a prior (Prior.nu0 is 0)")
    error = squared_errors.mean(axis=-1)
    variance = np.maximum(error, (nu0 * (tau0**2 + error) + _squares(locations)) / df)
    return Difference(locations.mean(axis=-1), np.sqrt(variance / count), df, variance)


def compare_stored(
    baseline: Sequence[RunSummary],
    new: Sequence[RunSummary],
    prior: Prior = DEFAULT_PRIOR,
    *,
    extra_squared_error: float = 0.0,
    occasion_share: float = 0.0,
) -> Estimate:
    """New runs against stored ones. Restarts that share their occasion with the first: OCCASION_SHARE.

    ``extra_squared_error`` is added to se² (the temperature adjustment's). Raises ValueError where a side is
    empty.
    """
    if not baseline or not new:
        raise ValueError("a comparison needs at least one run on each side")
    found = stored_difference(
        *_columns(baseline, new),
        prior,
        same_rounds=len({run.rounds for run in (*baseline, *new)}) == 1,
        occasion_share=occasion_share,
    )
    return _estimate(found, len(baseline), len(new), "stored", extra_squared_error)


def compare_interleaved(
    differences: Sequence[float],
    squared_errors: Sequence[float],
    prior: Prior = DEFAULT_PRIOR,
    *,
    extra_squared_error: float = 0.0,
) -> Estimate:
    """Two variants run alternately: one mean ABBA log difference per restart, each with its squared error.

    See ``runs.summarise_blocks`` for the differences. Raises ValueError without restarts or for unequal
    lists.
    """
    if not differences or len(differences) != len(squared_errors):
        raise ValueError("needs at least one restart, each with a difference and its squared error")
    found = one_sample(
        np.asarray(differences, dtype=np.float64),
        np.asarray(squared_errors, dtype=np.float64),
        prior.tau0_interleaved,
        prior.nu0,
    )
    return _estimate(found, len(differences), len(differences), "interleaved", extra_squared_error)


def compare_constant(new: Sequence[RunSummary], constant: float, prior: Prior = DEFAULT_PRIOR) -> Estimate:
    """New runs against an absolute ceiling of ``constant`` J/token (positive, not its logarithm).

    The run effect counts: the claim is about the code, not about this one run of it.
    """
    if not new:
        raise ValueError("a comparison needs at least one run")
    if not (math.isfinite(constant) and constant > 0):
        raise ValueError(f"the constant to compare with must be positive, not {constant!r}")
    locations = np.array([run.location for run in new]) - math.log(constant)
    found = one_sample(locations, np.array([run.squared_error for run in new]), prior.tau0, prior.nu0)
    return _estimate(found, 0, len(new), "constant", 0.0)


def _squares(locations: FloatArray) -> FloatArray:
    return np.asarray(((locations - locations.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1))


def _columns(
    baseline: Sequence[RunSummary], new: Sequence[RunSummary]
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    return (
        np.array([run.location for run in baseline]),
        np.array([run.location for run in new]),
        np.array([run.squared_error for run in baseline]),
        np.array([run.squared_error for run in new]),
    )


def _estimate(found: Difference, baseline_runs: int, new_runs: int, mode: Mode, extra: float) -> Estimate:
    return Estimate(
        delta=float(found.delta),
        stderr=math.sqrt(float(found.stderr) ** 2 + extra),
        df=float(found.df),
        baseline_runs=baseline_runs,
        new_runs=new_runs,
        run_sd=math.sqrt(float(found.variance)),
        mode=mode,
    )
