"""Temperature adjustment: ln(J/token) reduced to one GPU temperature, because leakage grows with it.

Only leakage is taken out. A change that heats the GPU by drawing more power still shows: its power is in the
energy itself, and the slope comes from within runs, where the code is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_tokenpower.stats.runs import lag1_autocorrelation
from pytest_tokenpower.stats.types import DEFAULT_PRIOR, FloatArray, Prior

PRIOR_SLOPE = 0.0017
PRIOR_SLOPE_SD = 0.0010
"""Of ln(J/token) per °C: 0.17 ± 0.10 %, from vLLM on H100s at 50 to 70 °C (0.08 to 0.33 % in single runs)."""

MOST_SHIFT_CELSIUS = 10.0
MOST_GAP_CELSIUS = 3.0
_MOST_SLOPE_SIGMAS = 4.0


@dataclass(frozen=True)
class Adjustment:
    """Both sides' values at ``reference_celsius``.

    ``baseline`` and ``new`` hold ln(J/token) per run and round, ``slope`` ± ``slope_stderr`` is of
    ln(J/token) per °C, ``shift_celsius`` how much warmer the new side was. ``squared_error`` = shift²
    var(slope) is what a comparison of the two sides must add to its se².
    """

    baseline: tuple[tuple[float, ...], ...]
    new: tuple[tuple[float, ...], ...]
    slope: float
    slope_stderr: float
    reference_celsius: float
    shift_celsius: float
    squared_error: float


@dataclass(frozen=True)
class Refusal:
    """Why the values cannot be reduced to a common temperature; the raw comparison stands alone."""

    reason: str


def within_run_slope(
    values: FloatArray, temperatures: FloatArray, rounds: Sequence[int], prior: Prior = DEFAULT_PRIOR
) -> tuple[FloatArray, FloatArray]:
    """Return the slope pooled within runs and its variance: ANCOVA, never from differences between runs.

    ``values`` and ``temperatures`` are (..., N), the runs one after another on the last axis with
    ``rounds[i]`` values each. b = sum(x y)/sum(x²) of the run-centred x and y, var(b) = s² deff/sum(x²), s²
    the residual variance on N - runs - 1 degrees of freedom drawn towards the prior's, deff = (1 + phi)/(1 -
    phi) for the residuals' autocorrelation (Cochran 1957, Biometrics 13:261, for the pooled slope). Where the
    temperature never moved the slope is 0 and its variance infinite.
    """
    x, y = _centred(temperatures, rounds), _centred(values, rounds)
    sxx, sxy = (x * x).sum(axis=-1), (x * y).sum(axis=-1)
    moved = sxx > 1e-9
    slope = np.divide(sxy, sxx, out=np.zeros_like(sxy), where=moved)
    residuals = y - slope[..., None] * x
    squares = (residuals**2).sum(axis=-1)
    pairs = np.repeat(np.arange(len(rounds)), rounds)
    same_run = pairs[1:] == pairs[:-1]
    products = (residuals[..., 1:] * residuals[..., :-1] * same_run).sum(axis=-1)
    weight = float(sum(max(count - 3, 0) for count in rounds))
    phi = lag1_autocorrelation(products, squares, float(np.mean(rounds)), weight, prior)
    df = max(sum(rounds) - len(rounds) - 1, 0)
    variance = (prior.round_df * prior.round_sd**2 + squares) / (prior.round_df + df)
    error = np.divide(variance * (1 + phi) / (1 - phi), sxx, out=np.full_like(sxx, np.inf), where=moved)
    return slope, error


def shrunk_slope(slope: FloatArray, error: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return slope and variance drawn towards the prior, each weighted by its precision (normal-normal Bayes)."""
    precision = 1 / error + PRIOR_SLOPE_SD**-2
    return (slope / error + PRIOR_SLOPE * PRIOR_SLOPE_SD**-2) / precision, 1 / precision


def adjust_temperature(
    baseline: Sequence[Sequence[float]],
    baseline_temperatures: Sequence[Sequence[float] | None],
    new: Sequence[Sequence[float]],
    new_temperatures: Sequence[Sequence[float] | None],
    prior: Prior = DEFAULT_PRIOR,
) -> Adjustment | Refusal:
    """Both sides reduced to their common mean temperature, y - b (T - T_ref), or why that cannot be done.

    Per run the rounds' ln(J/token) and mean GPU temperatures in °C. Refused: a run without temperatures;
    sides more than 10 °C apart on average, or with more than 3 °C that neither reached between their ranges
    (leakage is not linear that far); a slope that leakage does not explain. Raises ValueError for lists that
    do not match.
    """
    if not baseline or not new:
        raise ValueError("a comparison needs at least one run on each side")
    values = [np.asarray(run, dtype=np.float64) for run in (*baseline, *new)]
    temperatures: list[FloatArray] = []
    for index, (run, given) in enumerate(
        zip(values, (*baseline_temperatures, *new_temperatures), strict=True)
    ):
        if given is None or not np.isfinite(np.asarray(given, dtype=np.float64)).all():
            side = "baseline" if index < len(baseline) else "new"
            return Refusal(f"a {side} run has no temperatures")
        temperatures.append(np.asarray(given, dtype=np.float64))
        if temperatures[-1].shape != run.shape or not run.size:
            raise ValueError(f"run {index}: needs one temperature per round, and at least one round")
    means = np.array([celsius.mean() for celsius in temperatures])
    shift = float(means[len(baseline) :].mean() - means[: len(baseline)].mean())
    old = np.concatenate(temperatures[: len(baseline)])
    fresh = np.concatenate(temperatures[len(baseline) :])
    if reason := _too_far(old, fresh, shift):
        return Refusal(reason)
    rounds = [len(run) for run in values]
    raw_slope, raw_error = within_run_slope(
        np.concatenate(values), np.concatenate(temperatures), rounds, prior
    )
    sigmas = abs(float(raw_slope) - PRIOR_SLOPE) / float(np.sqrt(raw_error + PRIOR_SLOPE_SD**2))
    if sigmas > _MOST_SLOPE_SIGMAS:
        return Refusal(
            f"J/token moves by {float(raw_slope):+.2%} per °C within runs, which leakage "
            f"({PRIOR_SLOPE:.2%} ± {PRIOR_SLOPE_SD:.2%}) does not explain"
        )
    slope, variance = (float(part) for part in shrunk_slope(raw_slope, raw_error))
    reference = float(means.mean())
    adjusted = [
        tuple((run - slope * (celsius - reference)).tolist())
        for run, celsius in zip(values, temperatures, strict=True)
    ]
    return Adjustment(
        baseline=tuple(adjusted[: len(baseline)]),
        new=tuple(adjusted[len(baseline) :]),
        slope=slope,
        slope_stderr=variance**0.5,
        reference_celsius=reference,
        shift_celsius=shift,
        squared_error=shift**2 * variance,
    )


def _too_far(old: FloatArray, fresh: FloatArray, shift: float) -> str:
    (old_low, old_high), (new_low, new_high) = ((side.min(), side.max()) for side in (old, fresh))
    apart = (
        f"baseline {old_low:.0f} to {old_high:.0f} °C, now {new_low:.0f} to {new_high:.0f} °C: "
        "too far apart to adjust; warm the board up to where the baseline was"
    )
    gap = max(new_low - old_high, old_low - new_high)
    return apart if abs(shift) > MOST_SHIFT_CELSIUS or gap > MOST_GAP_CELSIUS else ""


def _centred(values: FloatArray, rounds: Sequence[int]) -> FloatArray:
    starts = np.concatenate([[0], np.cumsum(rounds)[:-1]])
    means = np.add.reduceat(values, starts, axis=-1) / np.asarray(rounds, dtype=np.float64)
    return np.asarray(values - np.repeat(means, rounds, axis=-1))
