"""The noise of identical runs against simulated truths."""

from __future__ import annotations

import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_tokenpower.stats.noise import (
    Spread,
    clopper_pearson,
    estimate_noise,
)


def identical_runs(
    rng: np.random.Generator,
    runs: int,
    rounds: int,
    *,
    run_sd: float = 0.0,
    round_sd: float = 0.0,
    lag1: float = 0.0,
    round_drift: float = 0.0,
    run_drift: float = 0.0,
) -> list[list[float]]:
    """AR(1) rounds about the runs' own levels, with trends: ln(J/token), (runs, rounds)."""
    series = rng.standard_normal((runs, rounds))
    for at in range(1, rounds):
        series[:, at] = lag1 * series[:, at - 1] + (1 - lag1**2) ** 0.5 * series[:, at]
    levels = run_sd * rng.standard_normal(runs) + run_drift * np.arange(runs)
    values: list[list[float]] = (
        round_sd * series + round_drift * np.arange(rounds) + levels[:, None] - 1.7
    ).tolist()
    return values


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    run_sd=st.floats(0.001, 0.02),
    round_sd=st.floats(0.001, 0.02),
    lag1=st.floats(0.0, 0.6),
)
def test_estimates_are_within_their_sampling_error(
    seed: int, run_sd: float, round_sd: float, lag1: float
) -> None:
    """Of 40 runs of 20 rounds, so that five standard errors are a narrow band."""
    runs, rounds = 40, 20
    rng = np.random.default_rng(seed)
    found = estimate_noise(identical_runs(rng, runs, rounds, run_sd=run_sd, round_sd=round_sd, lag1=lag1))
    inflation = (1 + lag1) / (1 - lag1)
    assert found.round_sd == pytest.approx(round_sd, rel=5 * (inflation / (2 * runs * rounds)) ** 0.5 + 0.03)
    assert found.lag1 == pytest.approx(lag1, abs=5 * (runs * rounds) ** -0.5)
    location = (run_sd**2 + inflation * round_sd**2 / rounds) ** 0.5
    assert found.runs.sd == pytest.approx(location, rel=5 * (2 * runs) ** -0.5 + 0.05)
    assert found.rounds == runs * rounds


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    round_drift=st.floats(-0.003, 0.003),
    run_drift=st.floats(-0.01, 0.01),
)
def test_drifts_are_found_with_an_honest_error(seed: int, round_drift: float, run_drift: float) -> None:
    values = identical_runs(
        np.random.default_rng(seed),
        12,
        10,
        run_sd=0.003,
        round_sd=0.005,
        lag1=0.4,
        round_drift=round_drift,
        run_drift=run_drift,
    )
    found = estimate_noise(values)
    for trend, truth in ((found.round_drift, round_drift), (found.run_drift, run_drift)):
        assert trend is not None
        assert trend.stderr > 0
        assert abs(trend.slope - truth) < 8 * trend.stderr


def test_a_trend_is_called_certain_in_five_percent_of_trendless_machines() -> None:
    rng = np.random.default_rng(1)
    found = [
        estimate_noise(identical_runs(rng, 8, 6, run_sd=0.01, round_sd=0.004)).run_drift for _ in range(600)
    ]
    share = np.mean([trend is not None and trend.certain for trend in found])
    assert 0.02 < share < 0.08


def test_the_run_drift_is_the_least_squares_line_of_scipy() -> None:
    values = identical_runs(np.random.default_rng(2), 9, 1, run_sd=0.01)
    line = scipy.stats.linregress(np.arange(9), np.concatenate(values))
    found = estimate_noise(values).run_drift
    assert found is not None
    assert (found.slope, found.stderr, found.df) == pytest.approx((line.slope, line.stderr, 7))


def test_single_rounds_tell_nothing_of_rounds() -> None:
    found = estimate_noise([[0.0], [0.01]])
    assert (found.round_sd, found.lag1, found.round_drift, found.run_drift) == (None, None, None, None)
    assert (found.runs.sd, found.runs.df) == pytest.approx((0.01 / 2**0.5, 1))
    doubtful = estimate_noise([[0.0], [0.01]], meter_errors_per_run=[[0.02], [0.03]])
    assert doubtful.location_error == pytest.approx(((0.02**2 + 0.03**2) / 2) ** 0.5)
    assert doubtful.location_error > found.location_error
    with pytest.raises(ValueError, match="at least two"):
        estimate_noise([[0.0, 0.1]])


def test_the_interval_of_a_spread_holds_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    spreads = [Spread(float(sample.std(ddof=1)), 7) for sample in rng.standard_normal((2000, 8))]
    assert np.mean([each.low < 1 < each.high for each in spreads]) == pytest.approx(0.95, abs=0.02)
    assert np.mean([each.at_most() > 1 for each in spreads]) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("count", "trials"), [(0, 8), (1, 8), (8, 8), (3, 56)])
def test_clopper_pearson_is_scipys(count: int, trials: int) -> None:
    exact = scipy.stats.binomtest(count, trials).proportion_ci(method="exact")
    assert clopper_pearson(count, trials) == pytest.approx((exact.low, exact.high))
    with pytest.raises(ValueError, match="no share"):
        clopper_pearson(trials + 1, trials)
