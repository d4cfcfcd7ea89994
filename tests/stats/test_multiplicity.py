"""One error rate over many comparisons and looks: Holm against statsmodels, O'Brien-Fleming by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from pytest_tokenpower.stats.multiplicity import holm, repeated_p

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def levels(stages: int, alpha: float) -> list[float]:
    """Return the p at each look that is worth ``alpha``."""
    return [
        float(brentq(lambda p, at=look: repeated_p(p, at, stages) - alpha, 1e-12, alpha))
        for look in range(1, stages + 1)
    ]


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_holm_is_statsmodels(count: int) -> None:
    from statsmodels.stats.multitest import multipletests

    values = np.random.default_rng(count).random(count) ** 4
    values[::5] = values[0]
    assert holm(values) == pytest.approx(multipletests(values, method="holm")[1], abs=1e-12)


@given(p_values)
def test_holm_does_not_mind_the_order(values: list[float]) -> None:
    assert sorted(holm(values)) == pytest.approx(sorted(holm(values[::-1])))


def test_holm_works_along_the_last_axis() -> None:
    values = np.random.default_rng(0).random((3, 5))
    assert holm(values) == pytest.approx(np.stack([holm(row) for row in values]))
    assert holm([]).size == 0


@pytest.mark.parametrize("bad", [[-0.1], [1.1], [float("nan")]])
def test_holm_refuses_what_is_no_probability(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        holm(bad)


def test_three_looks_have_the_published_levels() -> None:
    """O'Brien & Fleming's at 5 %; two-sided 5 % with five looks ends at z = 2.040 (Jennison & Turnbull, table 2.3)."""
    assert levels(3, 0.05) == pytest.approx((0.0015, 0.018, 0.044), abs=5e-4)
    assert levels(5, 0.025)[-1] == pytest.approx(0.02067, abs=5e-5)


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_repeated_looks_err_as_often_as_promised(stages: int) -> None:
    rng = np.random.default_rng(stages)
    walk = np.cumsum(rng.standard_normal((200_000, stages)), axis=1) / np.sqrt(np.arange(1, stages + 1))
    limits = [-float(_normal_quantile(level)) for level in levels(stages, 0.05)]
    assert (walk > limits).any(axis=1).mean() == pytest.approx(0.05, abs=0.0025)


def test_a_repeated_p_is_never_below_the_p_of_its_look() -> None:
    for look in (1, 2, 3):
        worth = [repeated_p(p, look) for p in (0.0, 1e-12, 0.001, 0.05, 0.4, 0.5, 1.0)]
        assert worth == sorted(worth)
        assert all(
            found >= p for found, p in zip(worth, (0.0, 1e-12, 0.001, 0.05, 0.4, 0.5, 1.0), strict=True)
        )
        assert worth[-1] == 1.0
    assert repeated_p(0.03, 1, 1) == pytest.approx(0.03)
    with pytest.raises(ValueError, match="look 4 is none of 3"):
        repeated_p(0.01, 4)


def _normal_quantile(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)
