"""Change points: planted steps found where they are, noise left alone, the rule checked against scipy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy
from numpy.typing import NDArray

from pytest_tokenpower.stats.changepoints import change_points
from pytest_tokenpower.stats.types import DEFAULT_PRIOR, RunSummary

NO_PRIOR = replace(DEFAULT_PRIOR, nu0=0.0)


def runs(locations: NDArray[np.float64] | list[float], error: float = 0.0) -> list[RunSummary]:
    return [RunSummary(float(location), error**2, 20) for location in locations]


@pytest.mark.parametrize(
    ("count", "spread"), [(5, 0.003), (12, 0.003), (40, 0.003), (12, 0.012), (40, 0.012)]
)
def test_noise_is_left_alone(count: int, spread: float) -> None:
    random = np.random.default_rng(20251122)
    trials = 80
    alarms = sum(
        bool(change_points(runs(random.normal(0, spread, count), 0.001), alpha=0.05)) for _ in range(trials)
    )
    # At most 5 % by construction; beyond 10 of 80 the odds of chance are below 1 %.
    assert alarms <= 10


def test_drawn_from_what_the_rule_assumes_false_alarms_stay_below_alpha() -> None:
    # Few runs, so that the correction has the least slack: one place for a step.
    random = np.random.default_rng(7)
    trials = 1000
    spreads = DEFAULT_PRIOR.tau0 * np.sqrt(DEFAULT_PRIOR.nu0 / random.chisquare(DEFAULT_PRIOR.nu0, trials))
    alarms = sum(bool(change_points(runs(random.normal(0, sd, 4)), alpha=0.1)) for sd in spreads)
    # The first layer has half of alpha and the only split: 5 % of 1000, give or take 3 SD.
    assert alarms == pytest.approx(50, abs=21)


@pytest.mark.parametrize(
    ("count", "steps"),
    [
        (12, {6: 0.03}),
        (40, {20: 0.02}),
        (40, {38: 0.03}),
        (40, {2: -0.03}),
        (60, {25: 0.03, 35: -0.03}),
        (60, {10: 0.02, 20: 0.02, 30: 0.02, 40: 0.02, 50: 0.02}),
        (200, {150: 0.02, 156: -0.02}),
    ],
)
def test_planted_steps_are_found_in_their_places(count: int, steps: dict[int, float]) -> None:
    random = np.random.default_rng(count)
    locations = random.normal(0, 0.003, count)
    for at, size in steps.items():
        locations[at:] += size
    found = change_points(runs(locations, 0.001))
    assert [change.index for change in found] == list(steps)
    for change, size in zip(found, steps.values(), strict=True):
        low, high = change.change_interval(0.9999)
        assert low < math.expm1(size) < high
        assert change.p_value < 0.01


def test_a_single_run_apart_is_no_level() -> None:
    locations = [0.0, 0.001, -0.001, 0.0, 0.05, 0.0, 0.001, -0.001]
    assert change_points(runs(locations)) == ()
    assert change_points(runs([*locations[:4], 0.05])) == ()


def test_a_stray_run_hides_no_step() -> None:
    random = np.random.default_rng(11)
    locations = random.normal(0, 0.002, 17)
    locations[8:13] += 0.05
    locations[16] += 0.1
    assert [change.index for change in change_points(runs(locations))] == [8, 13]


def test_steps_below_the_least_are_passed_over() -> None:
    locations = [0.0, 0.0001] * 5 + [0.004, 0.0041] * 5
    assert [change.index for change in change_points(runs(locations), NO_PRIOR)] == [10]
    assert change_points(runs(locations), NO_PRIOR, least=0.005) == ()


def test_without_a_prior_it_is_the_t_test_corrected_for_its_places() -> None:
    locations = np.random.default_rng(3).normal(0, 0.01, 10)
    locations[5:] += 0.06
    (change,) = change_points(runs(locations), NO_PRIOR)
    expected = scipy.stats.ttest_ind(locations[5:], locations[:5])
    assert change.index == 5
    assert change.df == 8
    assert change.delta / change.stderr == pytest.approx(expected.statistic)
    assert change.p_value == pytest.approx(7 * expected.pvalue)  # Levels of two runs or more: seven places.


def test_the_error_of_the_runs_is_a_floor() -> None:
    step = [0.0] * 5 + [0.02] * 5
    assert change_points(runs(step, 0.001))
    assert change_points(runs(step, 0.03)) == ()


def test_the_order_of_time_reversed() -> None:
    random = np.random.default_rng(5)
    locations = random.normal(0, 0.002, 30)
    locations[12:] += 0.03
    (ahead,) = change_points(runs(locations))
    (back,) = change_points(runs(locations[::-1]))
    assert back.index == 30 - ahead.index
    assert back.delta == pytest.approx(-ahead.delta)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_too_few_runs_have_no_steps(count: int) -> None:
    assert change_points(runs([0.0, 1.0, 2.0][:count])) == ()
    assert change_points(runs([0.0] * count), NO_PRIOR) == ()


def test_equal_runs_have_no_step() -> None:
    assert change_points(runs([1.0] * 20)) == ()
    assert change_points(runs([1.0] * 20), NO_PRIOR) == ()
