"""Boards against each other: sound fleets are left in peace, a board that is off or drifts is found."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_tokenpower.stats.fleet import MONTH_S, Unit, calibrated_standings, deviations, drifts, standings
from pytest_tokenpower.stats.scatter import Groups

DAY_S = 86_400.0


def fleet(
    random: np.random.Generator,
    boards: int = 8,
    occasions: int = 20,
    *,
    off: float = 0.0,
    monthly: float = 0.0,
    levels: int = 1,
) -> list[Unit]:
    """Three tests on boards that differ by 1 %, occasions by 0.5 %; the first board is off, and drifts."""
    own = random.normal(0, 0.01, boards)
    own[0] += off
    days = np.linspace(0, 120, occasions)
    names = [(f"b{board}", f"b{board}@{at}") for board in range(boards) for at in range(occasions)]
    started = {
        occasion: days[at] * DAY_S
        for (_, occasion), at in zip(names, list(range(occasions)) * boards, strict=True)
    }
    shared = dict(zip((name for _, name in names), random.normal(0, 0.004, len(names)), strict=True))
    tests = []
    for test in range(3):
        steps = random.normal(0, 0.05, levels)
        values, cells = [], []
        for board in range(boards):
            for at in range(occasions):
                level = at * levels // occasions
                aged = monthly * days[at] * DAY_S / MONTH_S if board == 0 else 0.0
                noise = shared[f"b{board}@{at}"] + random.normal(0, 0.003)
                values.append(test + steps[level] + own[board] + aged + noise)
                cells.append((str(level), f"b{board}"))
        tests.append(Groups.of(values, [1e-6] * len(values), cells, [occasion for _, occasion in names]))
    return deviations(tests, started)


def test_offsets_and_drifts_are_exact_without_noise_whatever_the_code_did() -> None:
    levels = {"one": 1.0, "two": 1.4}
    boards = {"a": 0.0, "b": 0.03, "c": -0.03}
    rows = [
        (level + boards[board], (name, board), f"{board}@{name}{at}")
        for name, level in levels.items()
        for board in boards
        for at in range(3)
    ]
    groups = Groups.of(
        [row[0] for row in rows], [0.0] * len(rows), [r[1] for r in rows], [r[2] for r in rows]
    )
    units = deviations([groups], {row[2]: float(at) for at, row in enumerate(rows)})
    found = standings(units)
    assert {board: pytest.approx(each.offset.delta) for board, each in found.items()} == {
        "a": 0.0,
        "b": 0.045,
        "c": -0.045,
    }
    assert standings([unit for unit in units if unit.board == "a"]) == {}
    alone = Groups.of([1.0, 1.1], [0.0, 0.0], [("x", "a"), ("y", "b")], ["o", "p"])
    assert deviations([alone], {"o": 0.0, "p": 1.0}) == []


def test_a_sound_fleet_is_rarely_accused_and_a_board_that_is_off_is_found() -> None:
    random = np.random.default_rng(16)
    accused = drifting = found = 0
    for _ in range(100):
        units = fleet(random, occasions=8)
        accused += any(each.off for each in standings(units).values())
        drifting += any(each.sure for each in drifts(units).values())
        sick = standings(fleet(random, occasions=8, off=0.10))
        found += sick["b0"].off
        assert not any(each.off for board, each in sick.items() if board != "b0" and each.offset.delta > 0)
    # Promised: 1 % of fleets. Binomial, so that chance alone passes here in 999 of 1000 cases.
    assert accused <= 6
    assert drifting <= 6
    assert found >= 94


def test_intervals_hold_the_truth_and_a_drift_is_told_across_levels_of_the_code() -> None:
    random = np.random.default_rng(17)
    inside = sure = 0
    for _ in range(100):
        units = fleet(random, monthly=0.01, levels=3)
        each = drifts(units)["b0"]
        low, high = each.monthly.interval()
        inside += low <= 0.01 <= high
        sure += each.sure
        assert each.days == pytest.approx(120)
    assert inside >= 88
    assert sure >= 95
    assert drifts([unit for unit in units if unit.started < 13 * DAY_S]) == {}


def test_a_calibration_far_from_the_others_is_off() -> None:
    found = calibrated_standings({"a": 3.0, "b": 3.01, "c": 2.99, "d": 3.005, "e": 3.15})
    assert [board for board, each in found.items() if each.off] == ["e"]
    assert found["e"].offset.delta == pytest.approx(0.15 - 0.00125)
    assert calibrated_standings({"a": 3.0}) == {}


def chain(boards: int, noise: float) -> tuple[dict[str, float], np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Each board shares its levels with its two neighbours only; where boards are found, and where they are."""
    random = np.random.default_rng(18)
    own = random.normal(0, 0.01, boards)
    own -= own.mean()
    values, cells, occasions, started = [], [], [], {}
    for level in range(boards - 1):
        for board in (level, level + 1):
            for at in range(4):
                occasion = f"b{board:02}@{level}.{at}"
                started[occasion] = (level + at / 4 + 0.05 * (board > level)) * 5 * DAY_S
                values.append(0.1 * level + own[board] + random.normal(0, noise))
                cells.append((str(level), f"b{board:02}"))
                occasions.append(occasion)
    groups = Groups.of(values, [1e-6] * len(values), cells, occasions)
    units = deviations([groups], started)
    names = sorted({unit.board for unit in units})
    return {
        name: float(np.mean([unit.deviation for unit in units if unit.board == name])) for name in names
    }, own


def test_boards_that_share_levels_only_in_a_chain_are_placed_exactly() -> None:
    found, own = chain(16, 0.0)
    assert list(found.values()) == pytest.approx(own, abs=1e-9)
    found, own = chain(16, 0.003)
    # A step of the chain is known to 0.003 / sqrt(2), and no two boards are more than 15 steps apart.
    assert np.ptp(np.array(list(found.values())) - own) < 3 * 0.003 * (15 / 2) ** 0.5
