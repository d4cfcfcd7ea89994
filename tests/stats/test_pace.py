"""Pace: waiting watts from windows of waiting, and slopes within runs that only check them."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_tokenpower.stats.pace import Waiting, assumed_waiting, at_pace, measured_waiting, slope_check


def test_waiting_watts_are_the_mean_of_their_windows() -> None:
    found = measured_waiting([120.0, 122.0, 124.0], [40.0, 42.0, 44.0])
    assert (found.watts, found.celsius) == (122.0, 42.0)
    assert found.stderr == pytest.approx(0.025 * 122)
    assert found.at(52.0) == pytest.approx(122 * np.exp(0.06))
    assert found.at(None) == 122.0
    with pytest.raises(ValueError, match="at least one window"):
        measured_waiting([])
    assert assumed_waiting(700).watts == pytest.approx(126)
    assert assumed_waiting(700).assumed


def test_at_one_pace_only_the_work_is_left() -> None:
    seconds = np.array([0.001, 0.002, 0.003])
    assert at_pace(0.1 + 125 * seconds, seconds, 125.0, 0.002) == pytest.approx(np.full(3, 0.35))
    assert at_pace(100 * seconds, seconds, 125.0, 0.002) is None


@pytest.mark.parametrize(("slope", "agrees"), [(125.0, True), (140.0, True), (500.0, False)])
def test_slopes_check_the_watts(slope: float, agrees: bool) -> None:
    rng = np.random.default_rng(1)
    seconds = [0.001 * np.exp(0.1 * rng.standard_normal(20)) for _ in range(3)]
    joules = [0.1 + slope * each + 0.001 * rng.standard_normal(20) for each in seconds]
    found = slope_check(joules, seconds, Waiting(125.0, 5.0))
    assert found.watts == pytest.approx(slope, rel=0.1)
    assert found.agrees is agrees


def test_a_steady_pace_checks_nothing() -> None:
    seconds = [np.full(10, 0.001) + 1e-6 * np.arange(10)]
    assert slope_check([np.full(10, 0.2)], seconds, Waiting(125.0, 5.0)).agrees is None
    assert slope_check([np.array([0.2, 0.2])], [np.array([0.1, 0.2])], Waiting(125.0, 5.0)).agrees is None
