"""A change and its error: exact against Student's t, and no claim against its own interval."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pytest_tokenpower.stats.change import Change

errors = st.floats(1e-5, 0.1)
changes = st.builds(
    Change, st.floats(-0.5, 0.5), errors, st.floats(1, 200), st.just(0.0) | errors, st.just(math.inf) | errors
)


def test_it_is_students_t() -> None:
    change = Change(0.02, 0.01, 5)
    assert change.p_above() == pytest.approx(stats.t.sf(2, 5))
    assert change.p_below() == pytest.approx(stats.t.cdf(2, 5))
    assert change.interval() == pytest.approx(stats.t.interval(0.95, 5, 0.02, 0.01))
    assert change.change == pytest.approx(math.expm1(0.02))


@given(changes, st.floats(0.001, 0.4))
def test_p_and_interval_agree(change: Change, tail: float) -> None:
    low, high = change.interval(1 - 2 * tail)
    assert (change.p_above() < tail) == (low > 0) or abs(low) < 1e-9
    assert (change.p_below() < tail) == (high < 0) or abs(high) < 1e-9


def test_without_error_the_sign_decides() -> None:
    exact = Change(0.01, 0.0, 3)
    assert (exact.p_above(), exact.p_below()) == (0.0, 1.0)
    assert Change(0.0, 0.0, 3).p_above() == 0.5


def test_a_part_that_is_well_known_makes_up_for_none_that_is_not() -> None:
    alone = Change(0.05, 0.002, 2)
    both = Change(0.05, 0.004, 32, parts=((0.002, 2), (0.0035, 40)))
    assert both.margin(0.0005) == pytest.approx(alone.margin(0.0005))
    assert both.p_above() == pytest.approx(alone.p_above())
    assert both.margin(0.05) == pytest.approx(stats.t.isf(0.05, 32) * 0.004)


def test_rounds_of_which_there_are_few_say_less() -> None:
    few = Change(0.05, 0.005, 4, 0.02, least_df=2)
    assert few.margin(0.01) == pytest.approx(stats.t.isf(0.01, 2) * 0.02)
    assert few.p_above() == pytest.approx(stats.t.sf(0.05 / 0.02, 2))


def test_nothing_is_nearer_than_the_rounds_say() -> None:
    change = Change(0.05, 0.005, 4, 0.02)
    assert change.margin(0.01) == pytest.approx(stats.norm.isf(0.01) * 0.02)
    assert change.margin(1e-6) == pytest.approx(stats.t.isf(1e-6, 4) * 0.005)
    assert change.p_above() == pytest.approx(max(stats.t.sf(10, 4), stats.norm.sf(2.5)))
    # Runs that agree to the last digit are no certainty.
    assert Change(0.05, 0.0, 4, 0.02).p_above() == pytest.approx(stats.norm.sf(2.5))


def test_nothing_is_farther_than_is_surely_enough() -> None:
    change = Change(0.05, 0.005, 2, most=0.02)
    assert change.margin(0.0005) == pytest.approx(stats.norm.isf(0.0005) * 0.02)
    assert change.margin(0.05) == pytest.approx(stats.t.isf(0.05, 2) * 0.005)
    assert change.p_above() == pytest.approx(min(stats.t.sf(10, 2), stats.norm.sf(2.5)))
