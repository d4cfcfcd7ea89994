"""The temperature adjustment: the slope against least squares, what it must leave alone, when it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.stats.temperature import (
    PRIOR_SLOPE,
    PRIOR_SLOPE_SD,
    Adjustment,
    Refusal,
    adjust_temperature,
    shrunk_slope,
    within_run_slope,
)
from pytest_tokenpower.stats.types import DEFAULT_PRIOR, FloatArray

Side = tuple[list[list[float]], list[list[float] | None]]


def side(
    rng: np.random.Generator,
    runs: int,
    *,
    slope: float,
    effect: float = 0.0,
    warmer: float = 0.0,
    sd: float = 0.003,
) -> Side:
    celsius = [52.0 + warmer + rng.normal(0, 1) + 0.5 * np.arange(12) for _ in range(runs)]
    values = [effect + slope * (t - 55.0) + sd * rng.standard_normal(12) for t in celsius]
    return [list(v) for v in values], [list(t) for t in celsius]


def adjusted(old: Side, new: Side) -> Adjustment:
    result = adjust_temperature(*old, *new)
    assert isinstance(result, Adjustment)
    return result


def test_slope_and_variance_are_those_of_regression_with_a_mean_per_run() -> None:
    rng = np.random.default_rng(1)
    values, temperatures = side(rng, 3, slope=0.002)
    y, t = np.concatenate(values), np.concatenate([np.asarray(run) for run in temperatures])
    design = np.column_stack([t, np.kron(np.eye(3), np.ones((12, 1)))])
    coefficients, squares, *_ = np.linalg.lstsq(design, y, rcond=None)
    plain = replace(DEFAULT_PRIOR, round_df=0, lag1=0.0, lag1_rounds=1e12)
    slope, error = within_run_slope(y, t, [12, 12, 12], plain)
    assert slope == pytest.approx(coefficients[0])
    assert error == pytest.approx(squares[0] / 32 * np.linalg.inv(design.T @ design)[0, 0])


def test_variance_allows_for_autocorrelated_residuals() -> None:
    """Over many runs the slope scatters by the standard error that is claimed for it, or less."""
    rng = np.random.default_rng(2)
    noise = rng.standard_normal((4_000, 3, 12))
    for i in range(1, 12):
        noise[..., i] = 0.4 * noise[..., i - 1] + (1 - 0.4**2) ** 0.5 * noise[..., i]
    celsius = np.broadcast_to(np.arange(12.0) * 0.5, noise.shape)
    slopes, errors = within_run_slope(
        0.005 * noise.reshape(4_000, -1), celsius.reshape(4_000, -1), [12, 12, 12]
    )
    assert 0.8 < slopes.var() / errors.mean() < 1.1


def test_shrinking_weighs_by_precision() -> None:
    slope, variance = shrunk_slope(np.array(0.003), np.array(PRIOR_SLOPE_SD**2))
    assert slope == pytest.approx((0.003 + PRIOR_SLOPE) / 2)
    assert variance == pytest.approx(PRIOR_SLOPE_SD**2 / 2)
    slope, variance = shrunk_slope(np.array(0.0), np.array(np.inf))
    assert (slope, variance) == pytest.approx((PRIOR_SLOPE, PRIOR_SLOPE_SD**2))


@given(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
def test_differences_between_runs_never_enter_the_slope(a: float, b: float) -> None:
    rng = np.random.default_rng(3)
    values, temperatures = side(rng, 2, slope=0.002)
    t = np.concatenate([np.asarray(run) for run in temperatures])
    shifted = np.concatenate([np.asarray(values[0]) + a, np.asarray(values[1]) + b])
    plain, _ = within_run_slope(np.concatenate(values), t, [12, 12])
    moved, _ = within_run_slope(shifted, t, [12, 12])
    assert moved == pytest.approx(float(plain), abs=1e-9)


def test_leakage_is_taken_out_and_the_effect_left_in() -> None:
    rng = np.random.default_rng(4)
    old = side(rng, 3, slope=0.002, sd=0.0005)
    new = side(rng, 1, slope=0.002, effect=0.01, warmer=4.0, sd=0.0005)
    result = adjusted(old, new)
    raw = np.mean(new[0]) - np.mean(old[0])
    assert raw == pytest.approx(0.018, abs=0.003)
    assert np.mean(result.new) - np.mean(result.baseline) == pytest.approx(0.01, abs=0.001)
    assert result.slope == pytest.approx(0.002, abs=1e-4)


def test_added_error_grows_with_the_distance() -> None:
    near, far = (
        adjusted(
            side(np.random.default_rng(5), 2, slope=0.002),
            side(np.random.default_rng(6), 1, slope=0.002, warmer=w),
        )
        for w in (0.0, 6.0)
    )
    assert far.squared_error == pytest.approx(far.shift_celsius**2 * far.slope_stderr**2)
    assert far.squared_error > near.squared_error
    assert far.slope_stderr < PRIOR_SLOPE_SD


def test_steady_temperatures_leave_the_prior_slope() -> None:
    values, celsius = [[0.0, 0.01, 0.02, 0.0]], [[60.0] * 4]
    result = adjusted((values, list(celsius)), (values, [[62.0] * 4]))
    assert (result.slope, result.slope_stderr) == pytest.approx((PRIOR_SLOPE, PRIOR_SLOPE_SD))


@pytest.mark.parametrize(
    ("old", "new", "far"),
    [
        ([50.0, 50.0, 51.0, 51.0], [55.0, 55.0, 56.0, 56.0], True),
        ([55.0, 55.0, 56.0, 56.0], [50.0, 50.0, 51.0, 51.0], True),
        ([40.0, 40.0, 40.0, 60.0], [58.0, 60.0, 60.0, 60.0], True),
        ([50.0, 50.0, 51.0, 51.0], [53.0, 53.0, 54.0, 54.0], False),
        ([48.0, 50.0, 52.0, 60.0], [58.0, 59.0, 60.0, 63.0], False),
    ],
)
def test_too_far_apart_is_refused_with_both_ranges(old: list[float], new: list[float], far: bool) -> None:
    result = adjust_temperature([[0.0] * 4], [old], [[0.0] * 4], [new])
    assert isinstance(result, Refusal) == far
    if isinstance(result, Refusal):
        assert (
            f"baseline {old[0]:.0f} to {old[-1]:.0f} °C, now {new[0]:.0f} to {new[-1]:.0f} °C"
            in result.reason
        )


def test_the_order_of_runs_does_not_matter() -> None:
    """Neighbours in the list are not neighbours in time: the autocorrelation stops at a run's end."""
    values, temperatures = side(np.random.default_rng(9), 4, slope=0.002)
    values = [[v + 0.002 * np.cos(0.6 * i) for i, v in enumerate(run)] for run in values]
    order = [2, 0, 3, 1]
    here = within_run_slope(np.concatenate(values), np.concatenate([t or [] for t in temperatures]), [12] * 4)
    there = within_run_slope(
        np.concatenate([values[i] for i in order]),
        np.concatenate([temperatures[i] or [] for i in order]),
        [12] * 4,
    )
    assert np.asarray(there) == pytest.approx(np.asarray(here))


def test_a_run_without_temperatures_is_refused() -> None:
    result = adjust_temperature([[0.0, 0.1]], [[50.0, 51.0]], [[0.0, 0.1]], [None])
    assert result == Refusal("a new run has no temperatures")


def test_a_slope_that_leakage_does_not_explain_is_refused() -> None:
    rng = np.random.default_rng(8)
    old, new = side(rng, 3, slope=0.02), side(rng, 1, slope=0.02)
    result = adjust_temperature(*old, *new)
    assert isinstance(result, Refusal)
    assert "does not explain" in result.reason


def test_lists_that_do_not_match_are_an_error() -> None:
    with pytest.raises(ValueError, match="one temperature per round"):
        adjust_temperature([[0.0, 0.1]], [[50.0]], [[0.0]], [[50.0]])
    with pytest.raises(ValueError, match="each side"):
        adjust_temperature([], [], [[0.0]], [[50.0]])


def test_runs_of_unequal_length() -> None:
    slope = 0.002
    t: list[FloatArray] = [np.array([50.0, 52.0, 54.0]), np.array([51.0, 55.0]), np.array([53.0])]
    y = [slope * run + offset for run, offset in zip(t, (0.0, 0.1, 0.2), strict=True)]
    found, _ = within_run_slope(np.concatenate(y), np.concatenate(t), [3, 2, 1])
    assert found == pytest.approx(slope)
