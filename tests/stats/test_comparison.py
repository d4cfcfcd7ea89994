"""The comparison: exact against scipy and statsmodels, its parts by the physics, its refusals by name."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pytest_tokenpower.stats.boards import Calibration, calibration
from pytest_tokenpower.stats.change import Change
from pytest_tokenpower.stats.comparison import (
    Blocks,
    Run,
    compare,
    compare_blocks,
    compare_ceiling,
    compare_figures,
)
from pytest_tokenpower.stats.noise import clopper_pearson
from pytest_tokenpower.stats.pace import Waiting, measured_waiting
from pytest_tokenpower.stats.rule import Policy, decide

from .simulator import WATTS, Machine

WAITING = {"A": Waiting(WATTS, 1.0)}


def flat(
    joules: float, seconds: float = 0.0005, *, board: str = "A", occasion: str = "", rounds: int = 8
) -> Run:
    wobble = 0.002 * (-1.0) ** np.arange(rounds)
    return Run(
        tuple((joules * np.exp(wobble)).tolist()),
        (seconds,) * rounds,
        board=board,
        host="h",
        occasion=occasion,
    )


def test_it_is_the_prediction_interval_of_one_more_run() -> None:
    values = [0.2, 0.206, 0.195, 0.211, 0.204]
    found = compare([flat(value) for value in values], [flat(0.22)]).total
    logs = np.log(values)
    stderr = logs.std(ddof=1) * math.sqrt(1 + 1 / 5)
    assert (found.stderr, found.df) == pytest.approx((stderr, 4))
    assert found.p_above() == pytest.approx(stats.t.sf((math.log(0.22) - logs.mean()) / stderr, 4))


def test_total_is_work_and_pace() -> None:
    rng = np.random.default_rng(1)
    machine = Machine(pace_sd=0.08, waiting_share=0.5, run_sd=0.002)
    found = compare(machine.runs(rng, 5), machine.runs(rng, 1, work=0.04), waiting=WAITING)
    assert found.work is not None
    assert found.pace is not None
    assert found.total.change == pytest.approx(found.work.change + found.pace.delta)
    assert found.work.change == pytest.approx(0.02, abs=0.006)
    assert found.work.stderr < 0.2 * found.total.stderr


def test_a_slower_host_alone_is_all_pace() -> None:
    found = compare([flat(0.2) for _ in range(5)], [flat(0.2 + WATTS * 0.0002, 0.0007)], waiting=WAITING)
    assert found.work is not None
    assert found.pace is not None
    assert found.work.change == pytest.approx(0.0, abs=1e-6)
    assert found.pace.delta == pytest.approx(WATTS * 0.0002 / 0.2, rel=1e-5)


def test_the_doubt_about_the_waiting_watts_is_in_the_work() -> None:
    base, new = [flat(0.2) for _ in range(5)], [flat(0.2 + WATTS * 0.0002, 0.0007)]
    sure, vague = (compare(base, new, waiting={"A": Waiting(WATTS, error)}).work for error in (0.0, 20.0))
    assert sure is not None
    assert vague is not None
    assert vague.stderr**2 - sure.stderr**2 == pytest.approx((0.0002 * 20 / 0.2) ** 2, rel=1e-3)


@pytest.mark.parametrize("waiting", [{}, {"A": Waiting(600.0, 1.0)}], ids=["unknown", "more than was drawn"])
def test_without_usable_waiting_watts_there_is_no_work(waiting: dict[str, Waiting]) -> None:
    found = compare([flat(0.2)] * 5, [flat(0.2)], waiting=waiting)
    assert (found.work, found.pace) == (None, None)


def test_boards_weigh_as_in_generalised_least_squares() -> None:
    import statsmodels.api as sm

    boards = ["A", "A", "B", "B", "B", "C"]
    logs = np.log([0.2, 0.201, 0.207, 0.206, 0.208, 0.196])
    found = compare(
        [flat(float(np.exp(value)), board=board) for value, board in zip(logs, boards, strict=True)],
        [flat(0.21, board="A")],
    ).total
    squares = sum(((logs[i:j] - logs[i:j].mean()) ** 2).sum() for i, j in ((0, 2), (2, 5)))
    everyone = [*boards, "A"]
    same = np.array([[one == other for other in everyone] for one in everyone], dtype=float)
    fitted = sm.GLS(
        np.append(logs, math.log(0.21)),
        sm.add_constant(np.array([0.0] * 6 + [1.0])),
        sigma=squares / 3 * np.eye(7) + 0.015**2 * same,
    ).fit()
    assert found.stderr == pytest.approx(fitted.bse[1] / math.sqrt(fitted.scale), rel=1e-6)
    assert found.delta == pytest.approx(fitted.params[1], rel=1e-6)


def test_another_board_neither_fails_nor_passes() -> None:
    base = [flat(0.2 * math.exp(w)) for w in (0.001, -0.001, 0.0, 0.002, -0.002)]
    found = compare(base, [flat(0.21, board="B")])
    assert found.other_board
    assert decide(found, Policy(0.03)).kind == "inconclusive"
    assert decide(compare(base, [flat(0.21)]), Policy(0.03)).kind == "regressed"
    # As docs/verdict.md has it.
    assert math.expm1(found.total.margin(0.01)) == pytest.approx(0.16, abs=0.005)


def test_a_calibrated_board_is_compared() -> None:
    base = [flat(0.2 * math.exp(w)) for w in (0.001, -0.001, 0.0, 0.002, -0.002)]
    known = {"A": Calibration(0.0, 0.001), "B": Calibration(0.04, 0.001)}
    identical = compare(base, [flat(0.2 * math.exp(0.04), board="B")], calibrations=known)
    assert identical.calibrated
    assert identical.total.delta == pytest.approx(0.0, abs=1e-6)
    assert decide(identical, Policy(0.03)).kind == "passed"
    worse = compare(base, [flat(0.2 * math.exp(0.04) * 1.06, board="B")], calibrations=known)
    assert decide(worse, Policy(0.03)).kind == "regressed"


def test_temperature_is_taken_out_on_one_board_only() -> None:
    rng = np.random.default_rng(4)
    machine = Machine(leakage=0.002, celsius_sd=2.0, run_sd=0.001, round_sd=0.002)
    here = compare(machine.runs(rng, 5), machine.runs(rng, 1))
    assert here.temperature.slope == pytest.approx(0.002, abs=0.0006)
    assert abs(here.total.delta) < 0.005
    elsewhere = compare(machine.runs(rng, 5, board="B"), machine.runs(rng, 1))
    assert elsewhere.total.delta == pytest.approx(elsewhere.raw.delta)
    assert elsewhere.temperature.refused


def test_runs_of_one_sitting_are_one_occasion() -> None:
    values = [0.2, 0.2004, 0.1996, 0.2002, 0.1998]
    sitting = compare([flat(v, occasion="mon") for v in values], [flat(0.206, occasion="tue")])
    days = compare([flat(v, occasion=str(at)) for at, v in enumerate(values)], [flat(0.206, occasion="tue")])
    assert (sitting.occasions, days.occasions) == (1, 5)
    assert (sitting.known, days.known) == (False, True)
    assert sitting.total.margin(0.01) > 2 * days.total.margin(0.01)


def test_on_one_occasion_its_effect_falls_out() -> None:
    values = [0.2, 0.2004, 0.1996, 0.2002, 0.1998]
    found = compare([flat(v, occasion="mon") for v in values], [flat(0.2, occasion="mon")])
    assert found.known
    assert found.total.df == 4
    assert found.total.stderr == pytest.approx(np.log(values).std(ddof=1) * math.sqrt(1.2), rel=1e-6)


@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_more_restarts_never_widen_the_error(stored: int, restarts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = [flat(0.2 * math.exp(0.005 * rng.standard_normal()), occasion=str(at)) for at in range(stored)]
    one = [flat(0.2, occasion="now")]
    alone, more = compare(base, one), compare(base, one * restarts)
    assert more.total.stderr <= alone.total.stderr * (1 + 1e-9)


def test_earlier_levels_tell_the_noise_and_not_the_level() -> None:
    before = [flat(0.25 * math.exp(w)) for w in (0.001, -0.001, 0.002, -0.002)]
    found = compare([flat(0.2)], [flat(0.25)], earlier=[before])
    assert found.known
    assert found.total.delta == pytest.approx(math.log(1.25), abs=1e-6)
    assert decide(found, Policy(0.03)).kind == "regressed"
    assert decide(compare([flat(0.2)], [flat(0.21)]), Policy(0.03)).kind == "inconclusive"


def test_blocks_are_a_t_on_restarts() -> None:
    rng = np.random.default_rng(2)
    mine = np.array([[0, 1, 1, 0]] * 3, dtype=float)
    restarts = []
    for _ in range(6):
        logs = (0.01 + 0.005 * rng.standard_normal()) * mine + 0.001 * rng.standard_normal((3, 4))
        restarts.append(Blocks(0.2 * np.exp(logs), mine))
    found = compare_blocks(restarts).total
    each = [float((np.log(one.joules_per_token) * (2 * mine - 1)).sum(axis=1).mean() / 2) for one in restarts]
    t = stats.ttest_1samp(each, 0.0, alternative="greater")
    assert found.delta == pytest.approx(np.mean(each))
    # What is believed beforehand moderates it as far as the restarts bear it out.
    variance = float(np.var(each, ddof=1))
    weight = 3 * min(1.0, 0.0025**2 / variance) ** 4
    plain = found.delta / t.statistic
    assert found.df == pytest.approx(5 + weight)
    assert found.stderr**2 == pytest.approx((5 * plain**2 + weight * 0.0025**2 / 6) / (5 + weight))


def test_many_rounds_make_up_for_no_runs() -> None:
    """Three runs agree by chance; the judged one has few rounds, whose scatter the stored rounds tell well."""
    wobble = 0.006 * (-1.0) ** np.arange(40)
    stored = [
        Run(tuple((0.2 * np.exp(level + wobble)).tolist()), occasion=str(at))
        for at, level in enumerate((-0.001, 0.0, 0.001))
    ]
    new = Run(tuple((0.21 * np.exp(wobble[:6])).tolist()), occasion="new")
    total = compare(stored, [new]).total
    by_runs = stats.t.isf(0.0005, 2) * 0.001 * math.sqrt(4 / 3)
    assert total.df > 10
    assert total.margin(0.0005) >= by_runs * 0.999


def _one_restart(scatter: float, blocks: int = 12) -> Change:
    mine = np.array([[0, 1, 1, 0]] * blocks, dtype=float)
    noisy = np.random.default_rng(6).standard_normal((blocks, 4))
    return compare_blocks([Blocks(0.2 * np.exp(scatter * noisy), mine)]).total


def test_the_blocks_of_one_restart_are_what_its_error_is_known_from() -> None:
    # A trimmed mean of twelve keeps eight.
    noisy = _one_restart(0.5)
    assert noisy.margin(0.01) == pytest.approx(stats.t.isf(0.01, 7) * noisy.least)
    # Blocks that agree say nothing of restarts: they are taken to differ by 1 %.
    quiet = _one_restart(1e-6)
    assert quiet.margin(0.01) == pytest.approx(stats.norm.isf(0.01) * 0.01)
    # As docs/verdict.md has it.
    assert f"{math.expm1(quiet.margin(0.01)):.1%}" == "2.4%"


@pytest.mark.parametrize("blocks", [1, 3, 12])
def test_what_one_restart_can_tell_has_no_jump(blocks: int) -> None:
    margins = [_one_restart(at / 2000, blocks).margin(0.01) for at in range(60)]
    assert max(abs(after - before) for before, after in pairwise(margins)) < 0.0125
    assert margins == sorted(margins)


@pytest.mark.parametrize(("restarts", "most"), [(1, 0.01), (2, 0.01), (3, 0.0105), (4, 0.0115), (6, 0.0115)])
def test_processes_that_differ_by_a_percent_are_no_regression(restarts: int, most: float) -> None:
    """Blocks that agree leave the scatter of processes alone; the share is a mean over what they may show of it."""
    mine = np.array([[0.0, 1.0, 1.0, 0.0]] * 3)
    shape = np.random.default_rng(1).standard_normal(restarts)
    shape -= shape.mean()
    failing = []
    for at in (np.arange(200) + 0.5) / 200:
        squares = 0.01**2 * (stats.chi2.ppf(at, restarts - 1) if restarts > 1 else 0.0)
        effects = shape * math.sqrt(squares / (shape @ shape)) if restarts > 1 else shape
        change = compare_blocks([Blocks(0.2 * np.exp(each * mine), mine) for each in effects]).total
        failing.append(stats.norm.sf(change.margin(0.01) * math.sqrt(restarts) / 0.01))
    assert np.mean(failing) <= most


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [1, 3, 5, 12])
def test_few_noisy_blocks_of_one_restart_fail_no_identical_code(blocks: int) -> None:
    """Rounds scatter by 5 %, ten times what is believed beforehand."""
    rng = np.random.default_rng(3)
    mine = np.array([[0, 1, 1, 0]] * blocks, dtype=float)
    failed = 0
    for _ in range(1000):
        values = 0.2 * np.exp(0.05 * rng.standard_normal((blocks, 4)))
        failed += decide(compare_blocks([Blocks(values, mine)]), Policy(0.0015)).kind == "regressed"
    assert clopper_pearson(failed, 1000)[0] <= 0.01


def test_blocks_part_work_from_pace() -> None:
    mine = np.array([[0, 1, 1, 0]] * 4, dtype=float)
    rng = np.random.default_rng(3)
    restarts = []
    for _ in range(3):
        seconds = 0.0008 * np.exp(0.1 * rng.standard_normal((4, 4)))
        restarts.append(Blocks(0.1 * (1 + 0.04 * mine) + WATTS * seconds, mine, seconds))
    found = compare_blocks(restarts, waiting=Waiting(WATTS, 1.0))
    assert found.work is not None
    assert found.pace is not None
    assert found.work.change == pytest.approx(0.02, abs=0.002)
    assert found.total.change == pytest.approx(found.work.change + found.pace.delta)


def test_a_ceiling_is_a_limit_of_nothing_more() -> None:
    for joules, kind in ((0.23, "regressed"), (0.17, "improved"), (0.1983, "inconclusive")):
        assert decide(compare_ceiling([flat(joules)], 0.2), Policy(0.0)).kind == kind
    with pytest.raises(ValueError, match="positive"):
        compare_ceiling([flat(0.2)], 0.0)


def test_another_figure_of_the_same_runs() -> None:
    runs = [flat(0.2)] * 5
    found = compare_figures(runs, runs[:1], [[level] * 4 for level in (0.0, 0.01, -0.01, 0.005, -0.005, 0.1)])
    assert found.delta == pytest.approx(0.1)
    with pytest.raises(ValueError, match="2 values for 6 runs"):
        compare_figures(runs, runs[:1], [[0.0], [0.1]])


def test_inputs_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        compare([], [flat(0.2)])
    with pytest.raises(ValueError, match="different boards"):
        compare([flat(0.2)], [flat(0.2), flat(0.2, board="B")])
    with pytest.raises(ValueError, match="positive"):
        Run((0.2, -0.1))
    with pytest.raises(ValueError, match="seconds_per_token"):
        Run((0.2, 0.2), (0.1,))
    with pytest.raises(ValueError, match="memory"):
        calibration({"matmul": (1.0, 0.01)})


# Real runs ------------------------------------------------------------------------------------------------------------

RECORDS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "h100_runs.json").read_text())


def real_runs(work: str, board: str | None = None) -> list[Run]:
    return [
        Run(
            tuple(each["joules_per_token"]),
            tuple(each["seconds_per_token"]),
            tuple(each["celsius"]),
            board=each["board"],
            host="host",
            occasion=each["created"],
        )
        for each in RECORDS
        if each["work"] == work and board in (None, each["board"])
    ]


def real_waiting() -> dict[str, Waiting]:
    rows = [each for each in RECORDS if each["work"] == "test_wait"]
    return {
        board: measured_waiting(
            [each["watts"] for each in rows if each["board"] == board],
            [each["celsius"] for each in rows if each["board"] == board],
        )
        for board in {each["board"] for each in rows}
    }


@pytest.mark.parametrize("work", ["short-1b chat[4-32]", "default-mp chat[16-64]", "inproc-8b chat[32-64]"])
def test_real_runs_of_identical_code_never_fail(work: str) -> None:
    """VLLM on H100s, each run against all others, at limits below what the total can tell."""
    runs = real_runs(work)
    waiting = {runs[0].board: Waiting(125.0, 5.0)}
    for at, run in enumerate(runs):
        found = compare([*runs[:at], *runs[at + 1 :]], [run], waiting=waiting)
        assert decide(found, Policy(0.01)).kind in ("passed", "inconclusive")
        assert decide(found, Policy(0.03)).kind == "passed"
        low, high = found.total.interval()
        assert low <= 0 <= high


def test_pace_explains_a_test_that_waits_for_its_host() -> None:
    runs = real_runs("short-1b chat[4-32]")
    found = [
        compare([*runs[:at], *runs[at + 1 :]], [run], waiting={run.board: Waiting(125.0, 5.0)})
        for at, run in enumerate(runs)
    ]
    total = np.std([each.total.delta for each in found])
    work = np.std([each.work.delta for each in found if each.work is not None])
    assert total > 0.04
    assert work < 0.01
    assert all(each.slope is not None and each.slope.agrees for each in found)


def test_calibration_foretells_real_boards() -> None:
    def mean(work: str, board: str) -> float:
        return float(
            np.mean([each["joules"] for each in RECORDS if each["work"] == work and each["board"] == board])
        )

    waiting = real_waiting()
    known = {
        board: calibration(
            {"matmul": (mean("test_matmul", board), 0.002), "memory": (mean("test_gemv", board), 0.002)}
        )
        for board in waiting
    }
    boards = {board: real_runs("calibrated chat[32-64]", board) for board in waiting}
    levels = {
        b: float(np.mean([np.log(r.joules_per_token).mean() for r in runs])) for b, runs in boards.items()
    }
    raw = np.std(list(levels.values()), ddof=1)
    left = np.std([levels[board] - known[board].log_joules for board in levels], ddof=1)
    assert raw > 0.012
    assert left < 0.005
    for board, runs in boards.items():
        for other, stored in boards.items():
            if other == board:
                continue
            found = compare(stored, runs[:1], waiting=waiting, calibrations=known)
            assert decide(found, Policy(0.03)).kind == "passed"
            low, high = found.total.interval()
            assert low <= 0 <= high
            blind = compare(stored, runs[:1], waiting=waiting)
            assert decide(blind, Policy(0.03)).kind in ("passed", "inconclusive")
