"""One run of a test as a location and its squared error: trimmed mean, autocorrelation, design effect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pytest_tokenpower.stats.types import DEFAULT_PRIOR, FloatArray, Prior, RunSummary

TRIM = 0.2
MOST_LAG1 = 0.8
_NO_SCATTER = 1e-20
"""Sums of squares of ln(J/token) below this are rounding, not rounds."""


def trimmed_mean(values: FloatArray) -> FloatArray:
    """Return the 20 % trimmed mean over the last axis: floor(0.2 n) values are cut from each end."""
    cut = int(TRIM * values.shape[-1])
    ordered = np.sort(values, axis=-1)
    return np.asarray(ordered[..., cut : values.shape[-1] - cut].mean(axis=-1))


def yuen_variance(values: FloatArray) -> FloatArray:
    """Return the variance s² over the last axis for which s²/n is the squared error of the 20 % trimmed mean.

    s² = n (n-1) s_w² / (h (h-1)), s_w² the winsorised variance and h the values left after trimming (Yuen
    1974, Biometrika 61:165; Tukey & McLaughlin 1963). Without trimming (n < 5) it is the sample variance;
    zero at n = 1.
    """
    n = values.shape[-1]
    if n < 2:
        return np.zeros(values.shape[:-1])
    cut = int(TRIM * n)
    kept = n - 2 * cut
    ordered = np.sort(values, axis=-1)
    winsorised = np.clip(ordered, ordered[..., cut, None], ordered[..., n - cut - 1, None])
    return np.asarray(winsorised.var(axis=-1, ddof=1) * (n * (n - 1) / (kept * (kept - 1))))


def lag_sums(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the sums of lag-1 products and of squares about the mean over the last axis; their ratio is r1."""
    centred = values - values.mean(axis=-1, keepdims=True)
    return np.asarray((centred[..., 1:] * centred[..., :-1]).sum(axis=-1)), np.asarray(
        (centred**2).sum(axis=-1)
    )


def lag1_autocorrelation(
    products: FloatArray, squares: FloatArray, rounds: float, weight: float, prior: Prior
) -> FloatArray:
    """Return the phi of an AR(1) from the pooled sums of runs of (on average) ``rounds`` rounds, within 0 to 0.8.

    (n r1 + 1)/(n - 3) takes out the bias of r1 = products/squares, about -(1 + 3 phi)/n (Kendall 1954,
    Biometrika 41:403; Marriott & Pope 1954). The prior's value counts as ``prior.lag1_rounds`` rounds against
    ``weight``, the sum of n - 3 over the runs; it stands alone where there is nothing to estimate from.
    """
    known = (squares > _NO_SCATTER) & (rounds > 3)
    r1 = np.divide(products, squares, out=np.zeros_like(squares), where=known)
    estimate = (rounds * r1 + 1) / (rounds - 3) if rounds > 3 else np.zeros_like(squares)
    total = weight + prior.lag1_rounds
    mixed = (weight * estimate + prior.lag1_rounds * prior.lag1) / total if total > 0 else estimate
    return np.asarray(np.clip(np.where(known, mixed, prior.lag1), 0.0, MOST_LAG1))


def location_squared_error(variance: FloatArray, lag1: FloatArray, rounds: int) -> FloatArray:
    """Return the squared error of the mean of n = ``rounds`` AR(1) values with sample variance ``variance``.

    w² = s² / (1 - (deff - 1)/(n - 1)) · deff/n: deff is how much autocorrelation inflates the variance of a
    mean, and the divisor undoes the bias of s², which autocorrelation makes too small. For an AR(1) both are
    exact with deff = 1 + 2 sum((1 - k/n) phi^k) = (1 + phi)/(1 - phi) - 2 phi (1 - phi^n)/(n (1 - phi)²)
    (Bayley & Hammersley 1946, J. R. Stat. Soc. Suppl. 8:184). It is held to n/2 (from four rounds on), where
    s² would say too little.
    """
    exact = (1 + lag1) / (1 - lag1) - 2 * lag1 * (1 - lag1**rounds) / (rounds * (1 - lag1) ** 2)
    deff = np.clip(exact, 1.0, rounds / 2 if rounds > 3 else float(rounds))
    bias = 1 - (deff - 1) / max(rounds - 1, 1)
    return np.asarray(variance / bias * deff / rounds)


def shrunk_variance(variance: FloatArray, rounds: int, prior: Prior) -> FloatArray:
    """Return the variance of rounds drawn towards the prior's, which is worth ``prior.round_df`` (Smyth 2004)."""
    df = prior.round_df + rounds - 1
    if df <= 0:
        raise ValueError("the spread of one round is unknown without a prior (Prior.round_df is 0)")
    return np.asarray((prior.round_df * prior.round_sd**2 + (rounds - 1) * variance) / df)


def summarise_runs(
    values_per_run: Sequence[Sequence[float]],
    *,
    meter_errors_per_run: Sequence[Sequence[float]] | None = None,
    prior: Prior = DEFAULT_PRIOR,
) -> list[RunSummary]:
    """Every run's location and squared error; give the runs of both sides of a comparison in one call.

    ``values_per_run`` are ln(J/token) per round, ``meter_errors_per_run`` the standard error of each round's value by
    the meter's own account. The scatter of the rounds already holds the meter's error, so that one is a floor: w² >=
    mean(e²)/n. A run of one to three rounds takes its spread largely from the prior. Raises ValueError for a run
    without rounds, lists that do not match, or values that are not finite.
    """
    arrays = [np.asarray(values, dtype=np.float64) for values in values_per_run]
    for index, values in enumerate(arrays):
        if values.ndim != 1 or not values.size or not np.isfinite(values).all():
            raise ValueError(f"run {index}: needs at least one round, and every value finite")
    floors = _meter_floors(meter_errors_per_run, arrays)
    members: dict[int, list[int]] = {}
    for index, values in enumerate(arrays):
        members.setdefault(len(values), []).append(index)
    stacks = {rounds: np.stack([arrays[index] for index in indices]) for rounds, indices in members.items()}
    lag1 = _pooled_lag1(stacks, prior)
    summaries: dict[int, RunSummary] = {}
    for rounds, stack in stacks.items():
        locations = trimmed_mean(stack)
        variances = shrunk_variance(yuen_variance(stack), rounds, prior)
        errors = location_squared_error(variances, lag1, rounds)
        for place, index in enumerate(members[rounds]):
            summaries[index] = RunSummary(
                location=float(locations[place]),
                squared_error=max(float(errors[place]), floors[index]),
                rounds=rounds,
                round_sd=math.sqrt(variances[place]),
                lag1=float(lag1),
            )
    return [summaries[index] for index in range(len(arrays))]


def summarise_blocks(
    differences_per_restart: Sequence[Sequence[float]], prior: Prior = DEFAULT_PRIOR
) -> list[RunSummary]:
    """One summary per restart of its ABBA blocks' differences, ln(candidate) - ln(baseline) in each block.

    A block's difference is (b1 + b2)/2 - (a1 + a2)/2: slow noise cancels in it, so no autocorrelation is
    expected beforehand; what the blocks show is allowed for. Its prior SD is that of one round.
    """
    return summarise_runs(differences_per_restart, prior=replace(prior, lag1=0.0))


def _pooled_lag1(stacks: Mapping[int, FloatArray], prior: Prior) -> FloatArray:
    known = {rounds: stack for rounds, stack in stacks.items() if rounds > 3}
    if not known:
        return np.array(prior.lag1)
    products, squares = np.sum([np.sum(lag_sums(stack), axis=-1) for stack in known.values()], axis=0)
    runs = sum(len(stack) for stack in known.values())
    total = sum(stack.size for stack in known.values())
    return lag1_autocorrelation(
        np.array(products), np.array(squares), total / runs, float(total - 3 * runs), prior
    )


def _meter_floors(
    errors_per_run: Sequence[Sequence[float]] | None, arrays: Sequence[FloatArray]
) -> list[float]:
    """Return the squared error of each run's mean by the meter's own account; 0 where it gives none."""
    if errors_per_run is None:
        return [0.0] * len(arrays)
    if len(errors_per_run) != len(arrays):
        raise ValueError(f"meter errors for {len(errors_per_run)} runs, values for {len(arrays)}")
    floors = []
    for index, (given, values) in enumerate(zip(errors_per_run, arrays, strict=True)):
        errors = np.asarray(given, dtype=np.float64)
        if errors.shape != values.shape or not np.isfinite(errors).all():
            raise ValueError(f"run {index}: needs one finite meter error per round")
        floors.append(float(np.mean(errors**2)) / len(values))
    return floors
