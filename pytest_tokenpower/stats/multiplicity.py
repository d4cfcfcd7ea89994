"""One error rate over many comparisons (Holm) and over repeated looks (O'Brien and Fleming)."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri


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


def repeated_p(p: float, look: int, stages: int = 3) -> float:
    """Return the one-sided p that the ``look``-th of ``stages`` looks is worth when all of them are counted.

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
    """Return a grid below the boundary, its trapezium weights, and the density of a step between its points."""
    grid, step = np.linspace(-10 * math.sqrt(stages), 0.0, 801, retstep=True)
    weights = np.full(grid.shape, step)
    weights[[0, -1]] /= 2
    return grid, weights, np.exp(-((grid[:, None] - grid) ** 2) / 2) / math.sqrt(2 * math.pi)


def _crossing(boundary: float, stages: int) -> float:
    """Return the chance that a walk of ``stages`` N(0, 1) steps is ever above boundary·sqrt(stages)."""
    # The grid hangs below the boundary.
    grid, weights, kernel = _walk(stages)
    limit = boundary * math.sqrt(stages)
    crossed = float(ndtr(-limit))
    density = np.exp(-((grid + limit) ** 2) / 2) / math.sqrt(2 * math.pi)
    for _ in range(1, stages):
        crossed += float(np.sum(weights * density * ndtr(grid)))
        density = kernel @ (weights * density)
    return crossed
