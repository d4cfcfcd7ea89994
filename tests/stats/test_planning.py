"""The parts of the noise, and limits that are held."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_tokenpower.stats.comparison import compare
from pytest_tokenpower.stats.pace import Waiting
from pytest_tokenpower.stats.planning import failing_share, noise_parts, smallest_limit
from pytest_tokenpower.stats.rule import Policy, decide

from .simulator import WATTS, Machine


def test_the_parts_are_found() -> None:
    rng = np.random.default_rng(1)
    machine = Machine(run_sd=0.002, occasion_sd=0.006, pace_sd=0.0, round_sd=0.001)
    runs = machine.runs(rng, 120, occasions=40)
    runs += machine.runs(rng, 120, occasions=40, board="B", board_effect=0.03, first_occasion=100)
    found = noise_parts(runs)
    assert (found.runs, found.occasions) == (240, 80)
    assert found.total is not None
    assert found.within is not None
    assert found.boards is not None
    assert found.total.sd == pytest.approx((0.006**2 + 0.002**2 / 3) ** 0.5, rel=0.2)
    assert found.within.sd == pytest.approx(0.002, rel=0.2)
    assert found.boards.sd == pytest.approx(0.03 / 2**0.5, rel=0.15)
    assert found.work is None


def test_a_host_bound_test_has_less_work_noise() -> None:
    rng = np.random.default_rng(2)
    runs = Machine(run_sd=0.002, pace_sd=0.1, waiting_share=0.5).runs(rng, 12)
    found = noise_parts(runs, {"A": Waiting(WATTS, 3.0)})
    assert found.total is not None
    assert found.work is not None
    assert found.work.sd < 0.2 * found.total.sd


def test_one_run_tells_nothing() -> None:
    found = noise_parts(Machine().runs(np.random.default_rng(3), 1))
    assert (found.total, found.within, found.boards) == (None, None, None)
    with pytest.raises(ValueError, match="at least one run"):
        noise_parts([])


def test_the_limit_is_held() -> None:
    rng = np.random.default_rng(4)
    machine = Machine(run_sd=0.004, round_sd=0.001)
    limit = smallest_limit(0.004, 5, Policy(0.03))
    kinds = {
        change: [
            decide(compare(machine.runs(rng, 5), machine.runs(rng, 1, change=change)), Policy(limit)).kind
            for _ in range(300)
        ]
        for change in (0.0, 2 * limit)
    }
    assert kinds[0.0].count("regressed") <= 7
    assert kinds[2 * limit].count("regressed") >= 0.92 * 300


@pytest.mark.slow
@pytest.mark.parametrize("stored_runs", [1, 3, 5])
@pytest.mark.parametrize("change", [0.0, 0.03])
def test_the_failing_share_is_what_the_rule_does(stored_runs: int, change: float) -> None:
    rng = np.random.default_rng(5)
    machine = Machine(run_sd=0.01, round_sd=0.0001)
    policy = Policy(0.01, family=3)
    failed = [
        decide(compare(machine.runs(rng, stored_runs), machine.runs(rng, 1, change=change)), policy).kind
        == "regressed"
        for _ in range(600)
    ]
    assert failing_share(change, 0.01, stored_runs, policy) == pytest.approx(np.mean(failed), abs=0.05)


def test_more_runs_hold_a_finer_limit_and_more_tests_a_coarser_one() -> None:
    limits = [smallest_limit(0.005, runs, Policy(0.03)) for runs in (3, 5, 8, 20)]
    assert limits == sorted(limits, reverse=True)
    assert smallest_limit(0.005, 5, Policy(0.03, family=50)) > limits[1]


@pytest.mark.parametrize("family", [1, 20, 200])
def test_three_quiet_runs_hold_no_coarser_limit_than_one(family: int) -> None:
    one, three = (smallest_limit(0.0015, runs, Policy(0.03, family=family)) for runs in (1, 3))
    assert three < one
