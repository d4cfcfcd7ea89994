"""Stopping on precision."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.stats.runs import summarise_runs
from pytest_tokenpower.stats.stopping import enough
from pytest_tokenpower.stats.types import DEFAULT_PRIOR

CALM = [0.0001 * (-1) ** i for i in range(30)]
WILD = list(0.05 * np.random.default_rng(1).standard_normal(30))


def test_a_calm_run_stops_at_the_fewest_and_a_wild_one_at_the_most() -> None:
    assert next(n for n in range(1, 31) if enough(CALM[:n])) == 6
    assert [n for n in range(1, 31) if enough(WILD[:n])] == [30]


def test_it_stops_where_the_error_is_half_the_run_to_run_sd() -> None:
    values = list(0.006 * np.random.default_rng(2).standard_normal(30))
    for n in range(6, 30):
        error = summarise_runs([values[:n]])[0].squared_error
        assert enough(values[:n]) == (4 * error <= DEFAULT_PRIOR.tau0**2)
    assert not enough(values[:6])


def test_the_meters_own_error_holds_it_open() -> None:
    assert enough(CALM[:8], meter_squared_error=0.002**2)
    assert not enough(CALM[:8], meter_squared_error=0.003**2)


@given(st.integers(1, 30), st.floats(-5, 5))
def test_where_the_values_lie_is_of_no_account(n: int, shift: float) -> None:
    values = [0.005 * np.sin(3.0 * i) for i in range(n)]
    assert enough(values) == enough([value + shift for value in values])


def test_limits_can_be_set() -> None:
    assert enough(WILD[:4], fewest=2, most=4)
    assert not enough(CALM[:6], fewest=7)


def test_stopping_does_not_bias_the_mean() -> None:
    """Means of runs stopped on precision average to the truth: the rule looks at spread only."""
    rng = np.random.default_rng(3)
    means = []
    for _ in range(300):
        values = 0.004 * rng.standard_normal(30)
        n = next(n for n in range(6, 31) if enough(list(values[:n])))
        means.append(values[:n].mean())
    assert np.mean(means) == pytest.approx(0.0, abs=4 * np.std(means) / 300**0.5)
