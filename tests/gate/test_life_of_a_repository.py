"""What happens to a baseline over months: sittings, other boards, steps, families; and what the verdict says of it."""

from __future__ import annotations

import math
from datetime import date, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from pytest_tokenpower.core.records import MeasurementRecord, WaitingRecord
from pytest_tokenpower.gate.evidence import Boards, calibrations_of, waiting_of
from pytest_tokenpower.gate.verdict import Policy, judge
from pytest_tokenpower.stats.boards import Calibration
from pytest_tokenpower.store.acceptances import Acceptance, write_acceptance
from pytest_tokenpower.store.baseline import Baseline, ComparableRuns
from pytest_tokenpower.store.git import Repository
from pytest_tokenpower.store.store import Store
from tests.support.histories import at_level
from tests.support.measurements import measured, stored
from tests.support.repositories import Git, plain_git, run
from tests.support.verdicts import judge_stored, text

DAY = 86_400.0
WOBBLE = (0.999, 1.001, 1.0, 1.0015, 0.9985)


def at(
    level: float,
    seconds: float,
    *,
    board: str = "GPU-aaaaaaaa-1",
    host: str = "box",
    celsius: float | None = None,
) -> MeasurementRecord:
    """Return a run at a level, at a time, on a board."""
    found = measured("t.py::t", level)
    rounds = tuple(
        replace(one, device_joules={board: one.joules}, temperature_celsius=celsius) for one in found.rounds
    )
    return replace(found, rounds=rounds, host=host, started=seconds)


def baseline(*runs: MeasurementRecord) -> ComparableRuns:
    """Return stored runs, newest first."""
    return ComparableRuns("main@1a2b3c4", runs, tuple(map(str, range(len(runs)))))


def test_five_runs_of_one_sitting_are_one_occasion() -> None:
    sitting = baseline(*(at(0.2 * each, 120.0 * number) for number, each in enumerate(WOBBLE)))
    tomorrow = judge_stored(at(0.204, DAY), sitting, 0.01)
    assert tomorrow.kind == "inconclusive"
    assert "The 5 stored runs are of one sitting (within 8 minutes) and count as one occasion." in text(
        tomorrow
    )
    # What a day makes of it is not known, and is taken to be large.
    assert (tomorrow.change_low or 0) < 0 < (tomorrow.change_high or 0)
    # The next quarter of an hour is the same sitting: what that has shown counts.
    same_sitting = judge_stored(at(0.204, 900.0), sitting, 0.01)
    assert same_sitting.kind == "regressed"
    assert "sitting" not in text(same_sitting)
    days = baseline(*(at(0.2 * each, DAY * number) for number, each in enumerate(WOBBLE)))
    assert judge_stored(at(0.204, 9 * DAY), days, 0.01).kind == "regressed"
    assert "sitting" not in text(judge_stored(at(0.204, 9 * DAY), days, 0.01))


def test_a_board_of_another_number_is_named_and_fails_nothing() -> None:
    """Identical code; the other board of this model draws 5 % more."""
    other = "GPU-bbbbbbbb-2"
    for apart in (DAY, 60.0):
        runs = baseline(*(at(0.2 * each, apart * number) for number, each in enumerate(WOBBLE[:3])))
        verdict = judge_stored(at(0.21, 4 * apart, board=other), runs, 0.03)
        assert verdict.kind == "inconclusive"
        assert (
            "Another board: this run is on GPU-bbbbbbbb-2, the stored runs on GPU-aaaaaaaa-1. Boards of one model "
            in text(verdict)
        )
        assert "tokenpower calibrate on each board, or stored runs of this one, tell" in verdict.undecided
        # It hides no waste that is larger than boards differ.
        assert judge_stored(at(0.4, 4 * apart, board=other), runs, 0.03).kind == "regressed"
    same = judge_stored(at(0.21, 4 * DAY), baseline(*runs.runs), 0.03)
    assert "Another board" not in text(same)
    # In a pool that has both the board is named all the same.
    pool = baseline(
        *(
            at(0.2 * each, DAY * day, board=(other, "GPU-aaaaaaaa-1")[day % 2])
            for day, each in enumerate(WOBBLE)
        )
    )
    there = text(judge_stored(at(0.201, 9 * DAY, board=other), pool, 0.03))
    assert "This run is on GPU-bbbbbbbb-2, stored runs also on GPU-aaaaaaaa-1." in there


def test_temperatures_of_another_board_are_no_covariate() -> None:
    runs = baseline(*(at(0.2 * each, DAY * number, celsius=60) for number, each in enumerate(WOBBLE)))
    verdict = judge_stored(at(0.2, 9 * DAY, board="GPU-bbbbbbbb-2", celsius=66), runs, 0.03)
    assert verdict.raw_change == verdict.change
    assert "leakage is a board's own, and no stored run is of this one" in text(verdict)


def test_a_device_without_a_uuid_is_its_hosts() -> None:
    runs = baseline(*(at(0.2, DAY * number, board="cpu") for number in range(3)))
    assert "Another board" not in text(judge_stored(at(0.2, 4 * DAY, board="cpu"), runs, 0.03))
    elsewhere = judge_stored(at(0.2, 4 * DAY, board="cpu", host="other"), runs, 0.03)
    assert "Another board: this run is on other:cpu, the stored runs on box:cpu." in text(elsewhere)


def test_a_container_of_another_name_is_the_host_of_its_board() -> None:
    """Five containers, one board, one sitting."""
    runs = baseline(*(at(0.2 * each, 60.0 * n, host=f"runner-{n}") for n, each in enumerate(WOBBLE)))
    verdict = judge_stored(at(0.2, DAY, host="runner-9"), runs, 0.03)
    assert "are of one sitting" in text(verdict)


@pytest.mark.parametrize("new", [1, 2, 3, 4])
def test_a_saving_that_is_thrown_away_is_found_from_its_first_stored_run_on(new: int) -> None:
    """20 % were saved and merged, ``new`` of five stored runs are at that level; a change costs 25 % again."""
    runs = baseline(
        *(at((0.16 if number < new else 0.2) * each, -DAY * number) for number, each in enumerate(WOBBLE))
    )
    verdict = judge_stored(at(0.2, DAY), runs, 0.03)
    assert verdict.kind == "regressed"
    assert verdict.change == pytest.approx(0.25, abs=0.01)
    assert judge_stored(at(0.16, DAY), runs, 0.03).kind in ("passed", "inconclusive")


@pytest.mark.parametrize("accepted", [False, True])
@pytest.mark.parametrize("others", [1, 6])
def test_a_step_of_one_test_does_not_blind_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, accepted: bool, others: int
) -> None:
    """Other tests got 20 % dearer at the fourth of five commits, which was accepted or not; this one never changed."""
    plain_git(monkeypatch, tmp_path)
    git, store = Git.init(tmp_path / "project"), Store(tmp_path / "store")
    names = [f"tests/energy/test_chat.py::test_other[{number}]" for number in range(others)]
    for number in range(5):
        if number == 3 and accepted:
            for name in names:
                place = Repository.discover(git.path)
                assert place is not None
                write_acceptance(place, Acceptance(name, 0.25, "agreed", date.today() + timedelta(days=9)))
        git("add", "--all")
        commit = git.commit(f"main {number}")
        level = 1.2 if number >= 3 else 1.0
        tests = [at_level(level, test=name, seed=number) for name in names]
        store.write(run(number, at_level(seed=number), *tests, commit=commit))
    git("switch", "--quiet", "--create", "feature")
    git.commit("10 % dearer")
    found = Baseline.resolve("main", store, Repository.discover(git.path))
    verdict = judge(replace(at_level(1.1, seed=9), started=2e9), found, Policy(0.03, family=1 + others))
    assert verdict.kind == "regressed"
    stepped = judge(
        replace(at_level(1.32, test=names[0], seed=9), started=2e9), found, Policy(0.03, family=1 + others)
    )
    assert stepped.kind == "regressed"
    assert stepped.change == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    ("family", "levels", "up"),
    [
        (5, (0.2,), 1.05),
        (20, (0.2,), 1.08),
        (20, (0.2, 0.2005, 0.1995), 1.035),
        (200, (0.2, 0.2003, 0.1997), 1.035),
    ],
)
def test_what_could_be_told_is_told_of_the_whole_family(
    family: int, levels: tuple[float, ...], up: float
) -> None:
    verdict = judge_stored(measured("t", 0.2 * up), stored(*levels), 0.03, family=family)
    assert verdict.kind == "inconclusive"
    floor = verdict.noise_floor or 0.0
    assert floor > up - 1
    assert (verdict.resolvable or 0.0) > floor
    assert f"among {family} comparisons a rise of J/token fails here from" in text(verdict)
    # What is said to fail does.
    assert (
        judge_stored(measured("t", 0.2 * (1 + floor) * 1.0001), stored(*levels), 0.03, family=family).kind
        == "regressed"
    )
    assert (
        judge_stored(measured("t", 0.2 * (1 + floor) * 0.999), stored(*levels), 0.03, family=family).kind
        != "regressed"
    )


@pytest.mark.parametrize("level", [0.18, 0.187, 0.19, 0.196, 0.2, 0.204, 0.206, 0.21, 0.22])
@pytest.mark.parametrize("spread", [0.0003, 0.003, 0.02])
def test_what_is_said_agrees_with_the_printed_interval(level: float, spread: float) -> None:
    runs = stored(*(0.2 * math.exp(spread * each) for each in (-1.2, -0.4, 0.1, 0.5, 1.0)))
    verdict = judge_stored(measured("t", level), runs, 0.03)
    low, high = verdict.change_low or 0.0, verdict.change_high or 0.0
    if verdict.kind == "regressed":
        assert low > 0
    if verdict.kind == "improved":
        assert high < 0
    if verdict.kind == "passed":
        assert low < 0.03


def test_runs_before_a_step_are_not_counted_as_the_baseline_and_the_step_is_named() -> None:
    levels = [0.26 * each for each in WOBBLE[:4]] + [0.2 * each for each in WOBBLE[:4]]
    runs = baseline(*(at(level, DAY * (10 - number)) for number, level in enumerate(levels)))
    verdict = judge_stored(at(0.26, 12 * DAY), runs, 0.03)
    assert verdict.baseline_runs == ("0", "1", "2", "3")
    assert verdict.baseline_value == pytest.approx(0.26, rel=0.01)
    assert "(4 runs)" in text(verdict)
    assert "Compared with the newest 4 of 8 stored runs: before them the level was another" in text(verdict)


def test_a_calibration_under_another_driver_is_used_for_no_run_of_the_board() -> None:
    one = at(0.2, 0.0)
    old, new = (replace(one, facts={"GPU-aaaaaaaa-1.driver": driver}) for driver in ("550.1", "580.2"))
    board = "GPU-aaaaaaaa-1"
    boards = Boards(
        waiting={board: WaitingRecord(120.0, 3.0)},
        calibrations={board: Calibration(1.0, 0.01)},
        drivers={board: "580.2"},
    )
    assert list(calibrations_of([new, new], boards)) == [board]
    assert calibrations_of([old, new], boards) == {}
    assert waiting_of([new, new], boards)[board].watts == 120.0
    assert board not in waiting_of([old, new], boards)


def test_work_and_pace_by_guessed_waiting_watts_are_called_estimates() -> None:
    paces = (1.0, 1.2, 0.8, 1.1, 0.9)
    key = {"gpu.power_limit_watts": 700.0}

    def paced(pace: float, number: float) -> MeasurementRecord:
        found = at(0.2 + 0.126 * (pace - 1) / 1000, DAY * number)
        rounds = tuple(replace(one, seconds=one.seconds * pace) for one in found.rounds)
        return replace(found, rounds=rounds, key={**found.key, **key}, provenance="measured", scope="gpu")

    runs = baseline(*(paced(pace, number) for number, pace in enumerate(paces)))
    verdict = judge_stored(paced(1.0, 9), runs, 0.03)
    assert verdict.work is not None
    assert (
        "Work and pace are estimates: the board's waiting watts are guessed from its power limit (126 ± 42 W)"
        in text(verdict)
    )
