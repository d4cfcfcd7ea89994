"""The prior: its default, and what a store of other tests teaches it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pytest_tokenpower.stats.prior import DEFAULT_PRIOR, learn_prior, learn_priors
from pytest_tokenpower.stats.runs import RunSummary


def store(
    rng: np.random.Generator, tests: int, runs: int, tau: float, error: float = 0.0
) -> list[list[RunSummary]]:
    sd = (tau**2 + error) ** 0.5
    return [
        [RunSummary(mean + sd * rng.standard_normal(), error, 10) for _ in range(runs)]
        for mean in rng.normal(0, 1, tests)
    ]


def test_learns_the_run_to_run_sd_and_takes_the_rounds_error_out() -> None:
    """Over many stores the learned variance is tau², not tau² + w²."""
    rng = np.random.default_rng(1)
    vague = replace(DEFAULT_PRIOR, nu0=0.0)
    learned = [learn_prior(store(rng, 5, 5, 0.01, error=5e-5), vague).tau0 ** 2 for _ in range(400)]
    assert np.mean(learned) == pytest.approx(1e-4, rel=0.06)


def test_degrees_of_freedom_count_half_and_at_most_twelve() -> None:
    rng = np.random.default_rng(2)
    assert learn_prior(store(rng, 2, 4, 0.01)).nu0 == DEFAULT_PRIOR.nu0 + 3
    assert learn_prior(store(rng, 30, 5, 0.01)).nu0 == 12


def test_a_small_store_moves_the_prior_a_little_a_large_one_a_lot() -> None:
    rng = np.random.default_rng(3)
    little = learn_prior(store(rng, 1, 2, 0.02))
    much = learn_prior(store(rng, 30, 5, 0.02))
    assert DEFAULT_PRIOR.tau0 <= little.tau0 < much.tau0
    assert much.tau0 == pytest.approx((12 / 14 * 0.02**2 + 2 / 14 * 0.005**2) ** 0.5, rel=0.15)
    assert much.tau0_interleaved == pytest.approx(much.tau0 / 2)
    assert "30 other tests" in much.source


def test_nothing_to_learn_from_leaves_the_base() -> None:
    assert learn_prior([]) is DEFAULT_PRIOR
    assert learn_prior([[RunSummary(0.0, 0.0, 5)]]) is DEFAULT_PRIOR


def test_identical_runs_do_not_teach_certainty() -> None:
    learned = learn_prior([[RunSummary(0.0, 0.0, 5)] * 20], replace(DEFAULT_PRIOR, nu0=0.0))
    assert learned.tau0 == pytest.approx(0.001)


@pytest.mark.parametrize(
    "wrong", [{"tau0": -1.0}, {"nu0": float("nan")}, {"lag1": 0.9}, {"round_sd": float("inf")}]
)
def test_impossible_priors_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(DEFAULT_PRIOR, **wrong)  # type: ignore[arg-type]


def test_all_tests_at_once_each_from_the_others() -> None:
    tests = {f"t{i}": runs for i, runs in enumerate(store(np.random.default_rng(4), 4, 3, 0.01))}
    tests["new"] = tests["t0"][:1]
    learned = learn_priors(tests)
    for name in tests:
        alone = learn_prior([runs for other, runs in tests.items() if other != name])
        assert (learned[name].tau0, learned[name].nu0) == pytest.approx((alone.tau0, alone.nu0))
        assert learned[name].source == alone.source
    assert learn_priors({}) == {}
