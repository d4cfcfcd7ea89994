"""The rule: levels of a whole build, looks, work beside the total, trades, and both error rates by simulation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.stats.change import Change
from pytest_tokenpower.stats.comparison import Comparison, Run, compare
from pytest_tokenpower.stats.noise import clopper_pearson
from pytest_tokenpower.stats.pace import SlopeCheck, Waiting
from pytest_tokenpower.stats.rule import Decision, Policy, decide, settle, shown

from .simulator import WATTS, Machine

KNOWN = {"A": Waiting(WATTS, 3.0)}


def change(delta: float, stderr: float, df: float = 6) -> Change:
    return Change(delta, stderr, df)


def plain(delta: float, stderr: float, df: float = 6) -> Comparison:
    return Comparison(change(delta, stderr, df), change(delta, stderr, df))


def parts(
    work: float, pace: float, *, work_error: float = 0.002, pace_error: float = 0.02, occasions: int = 5
) -> Comparison:
    total = change(math.log1p(work + pace), math.hypot(work_error, pace_error))
    return Comparison(
        total, total, change(math.log1p(work), work_error), change(pace, pace_error), pace_occasions=occasions
    )


def test_the_total_decides_where_it_can() -> None:
    for delta, kind in ((0.05, "regressed"), (0.0, "passed"), (-0.05, "improved"), (0.028, "inconclusive")):
        found = decide(plain(delta, 0.004), Policy(0.03))
        assert (found.kind, found.part) == (kind, "total")


def test_the_level_is_the_build_s() -> None:
    found = plain(0.04, 0.01)
    p = found.total.p_above()
    assert 0.0005 < p < 0.01
    assert decide(found, Policy(0.03)).kind == "regressed"
    assert decide(found, Policy(0.03, family=20)).kind == "inconclusive"


@given(
    st.floats(-0.2, 0.2), st.floats(1e-4, 0.05), st.floats(1, 60), st.floats(0.001, 0.1), st.integers(1, 200)
)
def test_what_the_message_says_is_what_fails(
    delta: float, stderr: float, df: float, limit: float, family: int
) -> None:
    found = decide(plain(delta, stderr, df), Policy(limit, family=family))
    low, high = change(delta, stderr, df).interval()
    if abs(math.expm1(delta) - found.smallest_failing) > 1e-6:
        assert (found.kind == "regressed") == (math.expm1(delta) > found.smallest_failing)
    if found.kind == "regressed":
        assert low > 0
    if found.kind == "improved":
        assert high < 0
    assert found.below_noise == (found.smallest_failing > limit + 1e-12)


def test_a_wider_family_needs_a_larger_change() -> None:
    sizes = [
        decide(plain(0.0, 0.01), Policy(0.03, family=family)).smallest_failing for family in (1, 5, 20, 200)
    ]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 2 * sizes[0]


def test_doubtful_is_between_one_and_five_percent() -> None:
    found = plain(0.035, 0.0135)
    assert 0.01 < found.total.p_above() < 0.05
    last = decide(found, Policy(0.03))
    assert (last.kind, last.doubtful) == ("inconclusive", True)
    assert decide(plain(0.05, 0.013), Policy(0.03, look=1, looks=3)).kind == "doubtful"


def test_settling_is_holm_over_every_way_of_failing() -> None:
    from statsmodels.stats.multitest import multipletests

    decisions = [decide(plain(delta, 0.01, 30), Policy(0.02, family=3)) for delta in (0.05, 0.0285, 0.0)]
    adjusted = multipletests([each.p_failing for each in decisions], method="holm")[1]
    late = settle([each.kind for each in decisions], [each.p_failing for each in decisions], 0.01)
    at_once = [each.kind == "regressed" for each in decisions]
    assert [one or other for one, other in zip(at_once, late, strict=True)] == [p < 0.01 for p in adjusted]
    assert any(late)
    assert not any(one and other for one, other in zip(at_once, late, strict=True))


def test_a_demanded_saving() -> None:
    for delta, kind in ((-0.2, "passed"), (-0.05, "regressed"), (-0.1, "inconclusive")):
        assert decide(plain(delta, 0.005, 30), Policy(-0.1)).kind == kind


def test_work_decides_beside_a_total_that_pace_scatters() -> None:
    found = decide(parts(0.03, -0.005), Policy(0.01))
    assert (found.kind, found.part) == ("regressed", "work")
    assert decide(parts(0.0, 0.01), Policy(0.01)).kind == "passed"
    assert decide(parts(-0.03, 0.005), Policy(0.01)).kind == "improved"


def test_a_faster_but_hungrier_gpu_is_a_trade() -> None:
    found = decide(parts(0.03, -0.08), Policy(0.01))
    assert (found.kind, found.reason) == ("inconclusive", "trade")


def test_a_slower_host_fails_only_against_a_known_pace() -> None:
    unknown = decide(parts(0.0, 0.2, occasions=2), Policy(0.01))
    assert (unknown.kind, unknown.reason) == ("inconclusive", "pace")
    assert decide(parts(0.0, 0.2, occasions=3), Policy(0.01)).kind == "regressed"
    quiet = decide(parts(0.0, 0.05, pace_error=0.002, occasions=1), Policy(0.03))
    assert (quiet.kind, quiet.part, quiet.reason) == ("inconclusive", "total", "pace")


def test_a_total_that_is_shown_above_the_limit_is_no_pass_though_its_work_is() -> None:
    """The total's own interval is what is printed: neither part alone need be shown to have risen."""
    found = parts(0.0, 0.03, work_error=0.001, pace_error=0.03)
    assert decide(found, Policy(0.01, family=200)).kind == "passed"
    risen = replace(found, total=change(math.log1p(0.03), 0.005))
    assert decide(risen, Policy(0.01, family=200)).kind == "inconclusive"


def test_slopes_that_contradict_keep_work_from_deciding() -> None:
    from dataclasses import replace

    found = decide(replace(parts(0.03, 0.0), slope=SlopeCheck(500.0, 5.0, False)), Policy(0.01))
    assert (found.kind, found.reason) == ("inconclusive", "slope")


def test_a_cause_is_shown_by_its_own_interval() -> None:
    assert shown(change(0.01, 0.001))
    assert not shown(change(0.01, 0.01))


def test_both_errors_are_spent_over_the_looks() -> None:
    """A walk of N(0, 1) steps at a change of nothing, and at one as large as the limit."""
    rng = np.random.default_rng(5)
    walks = rng.standard_normal((200_000, 3)).cumsum(axis=1) / np.sqrt(np.arange(1, 4))
    failing = np.array([-_quantile(Policy(0.03, look=look, looks=3).level) for look in (1, 2, 3)])
    passing = -_quantile(Policy(0.03, looks=3).passing_tail)
    assert (walks > failing).any(axis=1).mean() == pytest.approx(0.01, abs=0.0008)
    assert (walks > passing).any(axis=1).mean() == pytest.approx(0.05, abs=0.002)


def _quantile(tail: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(tail))


def test_bad_policies_are_refused() -> None:
    for bad in ({"alpha": 0.2}, {"family": 0}, {"look": 2}, {"beta": 0.7}):
        with pytest.raises(ValueError, match=r"alpha|family"):
            Policy(0.03, **bad)
    with pytest.raises(ValueError, match="limit"):
        Policy(-1.0)


# Error rates, by simulation of the physics ---------------------------------------------------------------------------

Build = Callable[[np.random.Generator], tuple[list[Run], list[Run]]]


def rates(build: Build, limit: float, builds: int = 500, seed: int = 11) -> Counter[str]:
    rng = np.random.default_rng(seed)
    kinds: Counter[str] = Counter()
    for _ in range(builds):
        base, new = build(rng)
        found = compare(base, new, waiting=KNOWN)
        kinds[decide(found, Policy(limit)).kind] += 1
        low, high = found.total.interval()
        kinds["covered"] += low <= 0 <= high
    return kinds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "stored"),
    [
        (Machine(run_sd=0.001), 5),
        (Machine(run_sd=0.01), 3),
        (Machine(run_sd=0.02), 1),
        (Machine(run_sd=0.02), 5),
        (Machine(run_sd=0.003, pace_sd=0.15, waiting_share=0.5), 5),
        (Machine(run_sd=0.003, pace_sd=0.15, waiting_share=0.5), 1),
    ],
)
def test_identical_code_fails_at_most_once_in_a_hundred_builds(machine: Machine, stored: int) -> None:
    kinds = rates(lambda rng: (machine.runs(rng, stored), machine.runs(rng, 1, first_occasion=99)), 0.01)
    assert clopper_pearson(kinds["regressed"], 500)[0] <= 0.01
    assert kinds["covered"] >= 0.92 * 500


@pytest.mark.parametrize(("stored", "fresh"), [(20, 1), (30, 3)])
def test_a_run_of_few_rounds_is_as_uncertain_as_the_stored_runs_rounds_tell(stored: int, fresh: int) -> None:
    """Rounds scatter by 5 %, of which one or three tell nothing; each stored run is the mean of many."""
    many, few = Machine(round_sd=0.05, rounds=stored), Machine(round_sd=0.05, rounds=fresh)

    def build(rng: np.random.Generator) -> tuple[list[Run], list[Run]]:
        return many.runs(rng, 5), few.runs(rng, 1, first_occasion=9)

    found = rates(build, 0.01)
    # By chance one in a hundred may: more than that share of 500 is surely more.
    assert clopper_pearson(found["regressed"], 500)[0] <= 0.01


def test_one_sitting_does_not_fail_another_day() -> None:
    machine = Machine(run_sd=0.002, occasion_sd=0.01)
    kinds = rates(
        lambda rng: (machine.runs(rng, 5, occasions=1), machine.runs(rng, 1, first_occasion=99)), 0.01
    )
    assert clopper_pearson(kinds["regressed"], 500)[0] <= 0.01
    assert kinds["covered"] >= 0.92 * 500


def test_waste_is_found_where_the_host_scatters() -> None:
    machine = Machine(run_sd=0.0015, round_sd=0.004, pace_sd=0.1, waiting_share=0.5)
    kinds = rates(
        lambda rng: (machine.runs(rng, 5), machine.runs(rng, 1, work=0.04, first_occasion=99)), 0.01, 200
    )
    assert kinds["regressed"] >= 0.93 * 200


def test_a_true_change_is_found() -> None:
    machine = Machine(run_sd=0.003)
    kinds = rates(
        lambda rng: (machine.runs(rng, 5), machine.runs(rng, 1, change=0.05, first_occasion=99)), 0.03, 200
    )
    assert kinds["regressed"] >= 0.97 * 200


def test_decisions_are_values() -> None:
    assert decide(plain(0.0, 0.01), Policy(0.03)) == decide(plain(0.0, 0.01), Policy(0.03))
    assert isinstance(decide(plain(0.0, 0.01), Policy(0.03)), Decision)
