"""From an estimate to a verdict: thresholds, Holm's family, repeated looks, the noise floor."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, stdtrit

from pytest_tokenpower.stats.moderated import Estimate, p_above

if TYPE_CHECKING:
    from pytest_tokenpower.stats.runs import FloatArray

Kind = Literal["passed", "regressed", "improved", "inconclusive"]
BudgetKind = Literal["passed", "over budget", "inconclusive"]

_KINDS: tuple[Kind, ...] = ("regressed", "improved", "passed", "inconclusive")


def decide(
    estimate: Estimate,
    threshold: float,
    *,
    alpha: float = 0.05,
    beta: float = 0.05,
    p_adjusted: float | None = None,
    p_improved: float | None = None,
) -> Kind:
    """The verdict on a change against a relative ``threshold`` (0.03 is 3 %), theta = ln(1 + threshold).

    regressed: one-sided p < alpha and delta > theta; improved: the mirror image; passed: neither and U =
    delta + t(1 - beta) se < theta; otherwise inconclusive. ``p_adjusted`` is the family's Holm-adjusted p of
    an increase and ``p_improved`` that of a decrease; without them the test's own p counts.
    """
    code = decide_codes(
        np.array(estimate.delta),
        np.array(estimate.stderr),
        estimate.df,
        threshold,
        alpha=alpha,
        beta=beta,
        p_increase=None if p_adjusted is None else np.array(p_adjusted),
        p_decrease=None if p_improved is None else np.array(p_improved),
    )
    return _KINDS[int(code)]


def decide_codes(
    delta: FloatArray,
    stderr: FloatArray,
    df: float,
    threshold: float,
    *,
    alpha: float = 0.05,
    beta: float = 0.05,
    p_increase: FloatArray | None = None,
    p_decrease: FloatArray | None = None,
) -> NDArray[np.int64]:
    """:func:`decide` over arrays of one shape: 0 regressed, 1 improved, 2 passed, 3 inconclusive."""
    theta = math.log1p(threshold)
    increase = p_above(delta, stderr, df) if p_increase is None else p_increase
    decrease = p_above(-delta, stderr, df) if p_decrease is None else p_decrease
    upper = delta + stdtrit(df, 1 - beta) * stderr
    return np.asarray(
        np.select(
            [(increase < alpha) & (delta > theta), (decrease < alpha) & (delta < -theta), upper < theta],
            [0, 1, 2],
            default=3,
        )
    )


def decide_budget(
    estimate: Estimate, *, alpha: float = 0.05, beta: float = 0.05, p_adjusted: float | None = None
) -> BudgetKind:
    """The verdict on an absolute ceiling, ``estimate`` being from ``compare_constant``.

    over budget: p < alpha that it is above the ceiling; passed: U below it; otherwise inconclusive.
    """
    p = estimate.p_above() if p_adjusted is None else p_adjusted
    if p < alpha and estimate.delta > 0:
        return "over budget"
    return "passed" if estimate.upper(beta) < 0 else "inconclusive"


def below_noise_floor(estimate: Estimate, threshold: float, alpha: float = 0.05) -> bool:
    """Whether the threshold is too fine for this noise: t(1 - alpha, df) se > ln(1 + threshold)."""
    return estimate.smallest_failing(alpha) > math.log1p(threshold)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjusted p-values, in the order given, over the last axis.

    Comparing them with alpha bounds the chance of any false failure in the family by alpha, whatever the
    dependence (Holm 1979, Scand. J. Statist. 6:65). Raises ValueError for a p outside 0 to 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("every p-value must be from 0 to 1")
    if p.size == 0:
        return np.zeros(p.shape)
    order = np.argsort(p, axis=-1, kind="stable")
    factors = np.arange(p.shape[-1], 0, -1)
    stepped = np.maximum.accumulate(np.take_along_axis(p, order, axis=-1) * factors, axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(stepped, 1.0), axis=-1)
    return adjusted


@lru_cache(maxsize=32)
def obrien_fleming_levels(stages: int = 3, alpha: float = 0.05) -> tuple[float, ...]:
    """One-sided levels for ``stages`` equally spaced looks that together err with probability ``alpha``.

    The k-th look rejects at z > c sqrt(stages/k) (O'Brien & Fleming 1979, Biometrics 35:549); c is found by
    recursive integration (Armitage, McPherson & Rowe 1969, J. R. Stat. Soc. A 132:235). Three looks at 5 %:
    0.0015, 0.018, 0.044.
    """
    if stages < 1 or not 0 < alpha < 0.5:
        raise ValueError("needs at least one stage and alpha between 0 and 0.5")
    from scipy.optimize import brentq

    boundary = float(brentq(lambda c: _crossing(c, stages) - alpha, 0.0, 8.0, xtol=1e-9))
    return tuple(float(ndtr(-boundary * math.sqrt(stages / look))) for look in range(1, stages + 1))


def repeated_p(p: float, look: int, stages: int = 3) -> float:
    """The one-sided p that the ``look``-th of ``stages`` looks is worth when all of them are counted.

    The smallest alpha whose O'Brien-Fleming level of this look is above ``p`` (Jennison & Turnbull 1989, J. R. Stat.
    Soc. B 51:305): whoever rejects at the first look where it is below alpha errs with probability alpha at most, so
    that it may enter Holm's rule like any p. At three looks 0.0015, 0.018 and 0.044 are each worth 0.05.
    """
    if not 1 <= look <= stages:
        raise ValueError(f"look {look} is none of {stages}")
    boundary = -float(ndtri(p)) * math.sqrt(look / stages)
    return 1.0 if boundary <= 0 else min(1.0, _crossing(min(boundary, _LARGEST_BOUNDARY), stages))


_LARGEST_BOUNDARY = 8.0


@lru_cache(maxsize=8)
def _walk(stages: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """A grid below the boundary, its trapezium weights, and the density of a step between its points."""
    grid, step = np.linspace(-10 * math.sqrt(stages), 0.0, 801, retstep=True)
    weights = np.full(grid.shape, step)
    weights[[0, -1]] /= 2
    return grid, weights, np.exp(-((grid[:, None] - grid) ** 2) / 2) / math.sqrt(2 * math.pi)


def _crossing(boundary: float, stages: int) -> float:
    """The chance that a walk of ``stages`` N(0, 1) steps is ever above boundary·sqrt(stages)."""
    # The grid hangs below the boundary.
    grid, weights, kernel = _walk(stages)
    limit = boundary * math.sqrt(stages)
    crossed = float(ndtr(-limit))
    density = np.exp(-((grid + limit) ** 2) / 2) / math.sqrt(2 * math.pi)
    for _ in range(1, stages):
        crossed += float(np.sum(weights * density * ndtr(grid)))
        density = kernel @ (weights * density)
    return crossed
