"""The ratio of runs: exact where it can be worked out, and as sure as it says where runs scatter."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.stats.ratio import ALLOWANCE_DF, log_ratio
from pytest_tokenpower.stats.types import RunSummary


def runs(*locations: float, error: float = 1e-4) -> list[RunSummary]:
    return [RunSummary(each, error**2, 6) for each in locations]


def test_one_run_a_side_has_the_allowance_and_the_rounds_error() -> None:
    change = log_ratio(runs(0.2, error=0.003), runs(0.1, error=0.004), 0.01)
    assert change.delta == pytest.approx(0.1)
    assert change.stderr == pytest.approx(math.sqrt(2 * 0.01**2 + 0.003**2 + 0.004**2))
    # Satterthwaite's of two sides that are nearly alike: about the sum of both.
    assert change.df == pytest.approx(2 * ALLOWANCE_DF, rel=0.01)


def test_many_runs_are_welchs_t() -> None:
    from scipy.stats import ttest_ind

    draw = np.random.default_rng(3)
    a, b = draw.normal(0.05, 0.02, 400), draw.normal(0.0, 0.005, 300)
    change = log_ratio(runs(*a), runs(*b), 0.01)
    welch = ttest_ind(a, b, equal_var=False).confidence_interval()
    assert change.interval() == pytest.approx((welch.low, welch.high), abs=2e-4)


def test_without_another_side_it_is_the_figure_itself() -> None:
    change = log_ratio(runs(math.log(0.7)), (), 0.01)
    assert 1 + change.change == pytest.approx(0.7)
    assert change.df == ALLOWANCE_DF


@given(st.integers(1, 5), st.integers(1, 5), st.floats(-1, 1), st.floats(0, 0.1))
def test_both_ways_say_the_same(first: int, second: int, shift: float, scatter: float) -> None:
    draw = np.random.default_rng(first * 10 + second)
    of, to = runs(*draw.normal(shift, 0.01, first)), runs(*draw.normal(0, 0.01, second))
    there, back = log_ratio(of, to, scatter), log_ratio(to, of, scatter)
    assert there.delta == pytest.approx(-back.delta)
    assert there.stderr == pytest.approx(back.stderr)
    assert there.p_above(0.1) == pytest.approx(back.p_below(-0.1))


@pytest.mark.parametrize(("count", "scatter"), [(1, 0.01), (2, 0.01), (3, 0.01), (6, 0.02), (6, 0.005)])
def test_its_intervals_hold_the_truth_as_often_as_they_say(count: int, scatter: float) -> None:
    draw = np.random.default_rng(7)
    inside = 0
    for _ in range(1500):
        of, to = [
            runs(*(draw.normal(0.0, scatter, count) + draw.normal(0, 0.002, count)), error=0.002)
            for _ in "ab"
        ]
        low, high = log_ratio(of, to, 0.01).interval()
        inside += low <= 0 <= high
    # 95 % of 1,500 is 1,425 with a standard deviation of 8.4; three of them.
    assert inside >= 1400
