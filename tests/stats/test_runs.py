"""A run's location and squared error: against scipy, by simulation, and by invariance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pytest_tokenpower.stats.runs import (
    lag1_autocorrelation,
    lag_sums,
    location_squared_error,
    summarise_blocks,
    summarise_runs,
    trimmed_mean,
    yuen_variance,
)
from pytest_tokenpower.stats.types import DEFAULT_PRIOR, FloatArray, Prior

NO_PRIOR = Prior(tau0=0, nu0=0, round_sd=0, lag1=0, round_df=0, lag1_rounds=0, source="none")

rounds_of_a_run = arrays(
    np.float64, st.integers(2, 30), elements=st.integers(-1000, 1000).map(lambda i: i / 1000)
)


def autoregressive(rng: np.random.Generator, shape: tuple[int, ...], phi: float) -> FloatArray:
    series = rng.standard_normal(shape)
    for i in range(1, shape[-1]):
        series[..., i] = phi * series[..., i - 1] + (1 - phi**2) ** 0.5 * series[..., i]
    return series


@given(rounds_of_a_run)
def test_trimmed_mean_is_scipys(values: FloatArray) -> None:
    assert trimmed_mean(values) == pytest.approx(scipy.stats.trim_mean(values, 0.2), abs=1e-12)


@pytest.mark.parametrize("n", [5, 9, 10, 15, 30])
def test_yuen_variance_is_the_one_of_scipys_trimmed_t_test(n: int) -> None:
    """ttest_ind(trim=0.2) of a sample against its shifted self has se² = 2 s²/n, so t tells s²."""
    values = np.random.default_rng(n).standard_normal(n)
    t = scipy.stats.ttest_ind(values + 1.0, values, trim=0.2, equal_var=False).statistic
    assert yuen_variance(values) == pytest.approx(n / (2 * t**2))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_without_trimming_the_variance_is_the_samples(n: int) -> None:
    values = np.random.default_rng(n).standard_normal(n)
    assert yuen_variance(values) == pytest.approx(values.var(ddof=1))


def test_autocorrelation_is_unbiased_in_short_runs() -> None:
    """Raw r1 of 10 rounds is about 0.2 too small at phi = 0.4: the correction must take that out."""
    values = autoregressive(np.random.default_rng(1), (20_000, 10), 0.4)
    products, squares = lag_sums(values)
    pooled = lag1_autocorrelation(products.sum(), squares.sum(), 10, 7.0 * 20_000, NO_PRIOR)
    assert products.sum() / squares.sum() < 0.25
    assert pooled == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize(("phi", "n"), [(0.0, 8), (0.3, 10), (0.4, 20), (0.6, 30)])
def test_squared_error_is_the_true_variance_of_the_mean(phi: float, n: int) -> None:
    """With phi known, the average w² must be the variance that the mean has over many runs."""
    values = autoregressive(np.random.default_rng(2), (40_000, n), phi)
    errors = location_squared_error(values.var(axis=-1, ddof=1), np.full(40_000, phi), n)
    assert errors.mean() == pytest.approx(values.mean(axis=-1).var(), rel=0.03)


def test_whole_summary_is_calibrated_on_autocorrelated_runs() -> None:
    """Six runs of 12 rounds, trimming and estimated phi and all: w² is on the safe side, by a third at most."""
    values = 0.005 * autoregressive(np.random.default_rng(3), (5_000, 6, 12), 0.4)
    runs = [summarise_runs([list(run) for run in group]) for group in values]
    locations = np.array([run.location for group in runs for run in group])
    errors = np.array([run.squared_error for group in runs for run in group])
    assert 1.0 < errors.mean() / locations.var() < 1.35


def test_runs_of_unequal_length_keep_their_places() -> None:
    runs = summarise_runs([[1.0] * 6, [2.0] * 3, [3.0] * 6, [4.0]])
    assert [run.location for run in runs] == [1.0, 2.0, 3.0, 4.0]
    assert [run.rounds for run in runs] == [6, 3, 6, 1]


def test_few_rounds_lean_on_the_prior() -> None:
    one, two, three = (summarise_runs([values])[0] for values in ([0.1], [0.1, 0.1], [0.1, 0.1, 0.1]))
    assert one.squared_error == pytest.approx(DEFAULT_PRIOR.round_sd**2)
    assert one.lag1 == DEFAULT_PRIOR.lag1
    assert one.squared_error > two.squared_error > three.squared_error > 0


def test_two_wild_rounds_are_not_explained_away() -> None:
    calm, wild = (summarise_runs([values])[0] for values in ([0.0, 0.002], [0.0, 0.2]))
    assert wild.squared_error > 100 * calm.squared_error


def test_without_a_prior_one_round_is_refused() -> None:
    with pytest.raises(ValueError, match="spread of one round"):
        summarise_runs([[0.1]], prior=NO_PRIOR)


def test_meter_error_is_a_floor_and_not_added() -> None:
    values = [[0.0, 0.01, -0.01, 0.005, -0.005, 0.0]]
    plain = summarise_runs(values)[0]
    small = summarise_runs(values, meter_errors_per_run=[[0.001] * 6])[0]
    large = summarise_runs(values, meter_errors_per_run=[[0.05] * 6])[0]
    assert small == plain
    assert large.squared_error == pytest.approx(0.05**2 / 6)


@pytest.mark.parametrize(
    ("values", "errors"),
    [
        ([[]], None),
        ([[float("nan")]], None),
        ([[0.0]], [[50.0, 51.0]]),
        ([[0.0]], []),
        ([[0.0]], [[float("inf")]]),
    ],
)
def test_malformed_runs_are_refused(values: list[list[float]], errors: list[list[float]] | None) -> None:
    with pytest.raises(ValueError, match=r"run 0|meter errors for"):
        summarise_runs(values, meter_errors_per_run=errors)


@given(rounds_of_a_run, st.floats(-5, 5))
def test_a_shift_moves_the_location_alone(values: FloatArray, shift: float) -> None:
    before, after = summarise_runs([list(values), list(values + shift)])
    assert after.location == pytest.approx(before.location + shift, abs=1e-9)
    assert after.squared_error == pytest.approx(before.squared_error, abs=1e-12, rel=1e-6)


@given(rounds_of_a_run, st.floats(0.1, 10))
def test_scaling_data_and_prior_together_scales_the_error(values: FloatArray, factor: float) -> None:
    scaled_prior = replace(DEFAULT_PRIOR, round_sd=DEFAULT_PRIOR.round_sd * factor)
    before = summarise_runs([list(values)])[0]
    after = summarise_runs([list(values * factor)], prior=scaled_prior)[0]
    assert after.squared_error == pytest.approx(before.squared_error * factor**2, rel=1e-5)


@given(st.lists(rounds_of_a_run, min_size=2, max_size=4))
def test_the_order_of_runs_does_not_matter(runs: list[FloatArray]) -> None:
    lists = [list(run) for run in runs]
    forwards, backwards = summarise_runs(lists), summarise_runs(lists[::-1])
    for one, other in zip(forwards, backwards[::-1], strict=True):
        assert one.location == other.location
        assert one.squared_error == pytest.approx(other.squared_error, rel=1e-9)


def test_blocks_expect_no_autocorrelation() -> None:
    (blocks,) = summarise_blocks([[0.01, 0.012, 0.011]])
    (rounds,) = summarise_runs([[0.01, 0.012, 0.011]])
    assert blocks.lag1 == 0
    assert blocks.squared_error < rounds.squared_error
