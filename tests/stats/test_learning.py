"""Learning from other tests: limma's estimate, robust against steps and honest about few tests."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pytest_tokenpower.stats.comparison import Run, compare
from pytest_tokenpower.stats.learning import fit_scatter, learn_noise
from pytest_tokenpower.stats.noise import clopper_pearson
from pytest_tokenpower.stats.rule import Policy, decide
from pytest_tokenpower.stats.scatter import DEFAULT_NOISE, Scatter, scatter

from .simulator import Machine


def test_the_fit_finds_the_distribution_that_variances_come_from() -> None:
    rng = np.random.default_rng(3)
    true = 0.004**2 * 6 / rng.chisquare(6, 3000)
    found = fit_scatter([(float(v * rng.chisquare(4) / 4), 4.0) for v in true])
    assert found is not None
    assert found.sd == pytest.approx(0.004, rel=0.1)
    assert found.df == pytest.approx(6, rel=0.3)


def test_few_tests_do_not_seem_alike() -> None:
    rng = np.random.default_rng(4)
    fits = [fit_scatter([(0.002**2 * rng.chisquare(4) / 4, 4.0) for _ in range(6)]) for _ in range(100)]
    assert np.median([fit.df for fit in fits if fit is not None]) < 12
    assert fit_scatter([(1e-6, 4.0)] * 2) is None
    assert fit_scatter([(1e-6, 1.0)] * 9) is None


def test_a_step_that_nobody_saw_moves_little() -> None:
    calm = [(0.002**2 * f, 4.0) for f in (0.5, 0.8, 1.0, 1.2, 1.5, 0.9)]
    before, after = fit_scatter(calm), fit_scatter([*calm, (0.1**2, 4.0)])
    assert before is not None
    assert after is not None
    assert after.sd < 3 * before.sd


def test_no_store_teaches_nothing() -> None:
    assert learn_noise({}) == {}
    assert learn_noise({"a": [], "b": [[]]})["a"] == DEFAULT_NOISE


def test_tests_of_two_runs_teach_nothing_and_are_not_counted() -> None:
    rng = np.random.default_rng(5)
    machine = Machine(run_sd=0.002)
    tests = {str(at): [machine.runs(rng, 5 if at < 4 else 2)] for at in range(8)}
    assert "from 3 other tests" in learn_noise(tests)["0"].source


def test_boards_are_learned_from_all_tests() -> None:
    rng = np.random.default_rng(6)
    effects = {name: 0.04 * rng.standard_normal() for name in "ABCDEFGH"}
    tests = {
        str(at): [
            [run for n, e in effects.items() for run in Machine().runs(rng, 3, board=n, board_effect=e)]
        ]
        for at in range(4)
    }
    assert learn_noise(tests)["0"].board.sd == pytest.approx(np.std(list(effects.values()), ddof=1), rel=0.3)


def test_neighbours_with_a_step_blind_nobody() -> None:
    from pytest_tokenpower.stats.levels import split_levels

    rng = np.random.default_rng(7)
    calm = Machine(run_sd=0.002, round_sd=0.003)
    tests = {
        str(at): split_levels([*calm.runs(rng, 3), *calm.runs(rng, 2, change=-0.2, first_occasion=3)])
        for at in range(6)
    }
    noise = learn_noise({**tests, "mine": [calm.runs(rng, 5)]})["mine"]
    assert noise.total.sd < 0.006
    found = [
        decide(compare(calm.runs(rng, 5), calm.runs(rng, 1, change=0.1), noise), Policy(0.03)).kind
        for _ in range(50)
    ]
    assert found.count("regressed") == 50


@pytest.mark.parametrize("stored", [1, 3, 5])
def test_quiet_neighbours_are_not_believed_over_the_test_s_own_runs(stored: int) -> None:
    rng = np.random.default_rng(9)
    quiet, noisy = Machine(run_sd=0.002), Machine(run_sd=0.01)
    failed = covered = 0
    builds = 400
    for at in range(builds):
        if at % 40 == 0:
            noise = learn_noise({**{str(i): [quiet.runs(rng, 5)] for i in range(6)}, "mine": []})["mine"]
        found = compare(noisy.runs(rng, stored), noisy.runs(rng, 1), noise)
        failed += decide(found, Policy(0.01)).kind == "regressed"
        low, high = found.total.interval()
        covered += low <= 0 <= high
    assert clopper_pearson(failed, builds)[0] <= 0.015
    assert covered >= 0.88 * builds


def test_alike_neighbours_sharpen() -> None:
    rng = np.random.default_rng(10)
    machine = Machine(run_sd=0.0015, round_sd=0.003)
    noise = learn_noise({str(at): [machine.runs(rng, 8)] for at in range(12)})["0"]
    assert noise.learned
    runs: tuple[list[Run], list[Run]] = (machine.runs(rng, 5), machine.runs(rng, 1))
    alone, helped = (
        decide(compare(*runs, each), Policy(0.005)).smallest_failing for each in (DEFAULT_NOISE, noise)
    )
    assert helped < 0.9 * alone


def test_the_scatter_is_the_test_s_own_moderated_by_what_agrees() -> None:
    believed, caution = Scatter(0.005, 6.0), Scatter(0.007, 9.0)

    def found(sd: float, df: int, most: float) -> Scatter:
        return scatter(df * sd**2, df, believed, caution, most_believed=most)

    alone, agreed = found(0.01, 4, 0.0), found(0.005, 4, 2.0)
    assert [alone.sd, alone.df] == pytest.approx([0.01, 4])
    assert [agreed.sd, agreed.df] == pytest.approx([0.005, 6])
    half = found(0.005 * math.sqrt(2), 4, 2.0)
    assert half.df == pytest.approx(4 + 2 / 16)
    assert half.sd**2 == pytest.approx((4 * 2 + 2 / 16) * 0.005**2 / half.df)
    # A test of fewer than three units is taken to be noisy, whatever they show.
    assert found(0.001, 1, 0.0) == caution
    # What is beyond that is known from those few alone, with no jump.
    beyond = found(0.014, 1, 0.0)
    assert (beyond.sd, beyond.df) == pytest.approx((0.014, (4 / 3) ** 2))
    assert found(0.00701, 1, 0.0).df == caution.df
    within = scatter(0.0, 0, believed, caution, most_believed=0.0, within=(3 * 0.02**2, 3))
    assert (within.sd, within.df) == pytest.approx((0.02, 3 / (1 - 0.007**2 / 0.02**2) ** 2))
