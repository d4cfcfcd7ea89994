"""Drift: the straight line's own figure, and an interval that holds the truth also where neighbours are alike."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pytest_tokenpower.stats.drift import FEWEST, drift


def test_an_exact_line_is_found_exactly() -> None:
    hours = [0.0, 1.0, 2.0, 3.0, 4.0]
    found = drift(hours, [math.exp(0.01 * hour) for hour in hours])
    assert found is not None
    assert found.change.delta == pytest.approx(0.04)
    assert found.change.stderr == pytest.approx(0.0, abs=1e-9)


def test_too_little_says_nothing() -> None:
    assert drift([], []) is None
    assert drift([1.0] * 9, [1.0] * 9) is None
    assert drift(list(range(FEWEST - 1)), [1.0] * (FEWEST - 1)) is None


@pytest.mark.parametrize("lag1", [0.0, 0.5, 0.8])
def test_its_interval_holds_the_truth_where_neighbours_are_alike(lag1: float) -> None:
    draw, inside, trials, n = np.random.default_rng(11), 0, 800, 300
    for _ in range(trials):
        noise = draw.normal(0, 0.01, n)
        for at in range(1, n):
            noise[at] += lag1 * noise[at - 1]
        found = drift(np.arange(n).tolist(), np.exp(noise + 0.02 * np.arange(n) / (n - 1)).tolist())
        assert found is not None
        low, high = found.change.interval()
        inside += low <= 0.02 <= high
    # 95 % of 800 with a standard deviation of 6; the estimate of the autocorrelation costs a little at 0.8.
    assert inside >= 0.92 * trials
