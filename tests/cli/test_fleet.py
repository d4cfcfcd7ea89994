"""`tokenpower fleet`: a pool of eight boards over four months, one of them off, one drifting, one never calibrated."""

from __future__ import annotations

import json
import random
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest

from pytest_tokenpower.core.records import Figure, WaitingRecord
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.gate.fleet import model_of
from pytest_tokenpower.store.calibrations import CalibrationRecord, write_calibration
from pytest_tokenpower.store.store import Store
from tests.support.commands import Command
from tests.support.histories import OTHER, at_level
from tests.support.repositories import TEST, Git, run

BOARDS = tuple(f"GPU-{each * 8}-0000-0000-0000-000000000000" for each in "abcdef12")
OFF, DRIFTS, BARE = BOARDS[2], BOARDS[5], BOARDS[7]
NOW = datetime.now(timezone.utc).replace(microsecond=0)


def calibrated(device: str, factor: float, days: float) -> CalibrationRecord:
    pieces = {name: Figure(20 * factor, 0.01) for name in ("matmul", "memory")}
    created = (NOW - timedelta(days=days)).isoformat()
    return CalibrationRecord(device, "NVIDIA H100", "580.1", created, pieces, WaitingRecord(120.0, 3.0))


@pytest.fixture
def pool(git: Git, store: Store) -> Store:
    """Store a run every 36 hours on a board by chance; code becomes 4 % dearer halfway."""
    chance = random.Random(16)
    commits = [git.commit("one"), git.commit("two")]
    for number in range(80):
        days = 120 - 1.5 * number
        board = BOARDS[number % 8] if number % 3 else chance.choice(BOARDS)
        level = (1.04 if number >= 40 else 1.0) * (1.09 if board == OFF else 1.0)
        level *= 1 + 0.012 * (120 - days) / 30 * (board == DRIFTS)
        level *= 1 + 0.004 * (BOARDS.index(board) - 3.5) / 3.5
        started = (NOW - timedelta(days=days)).timestamp()
        measured = [
            msgspec.structs.replace(
                one,
                rounds=tuple(
                    msgspec.structs.replace(each, device_joules={board: each.joules}) for each in one.rounds
                ),
                host=f"runner-{BOARDS.index(board)}",
                started=started,
                facts={f"{board}.driver": "580.1"},
            )
            for one in (at_level(level, name, seed=number) for name in (TEST, OTHER))
        ]
        made = run(number, *measured, commit=commits[number >= 40])
        store.write(
            msgspec.structs.replace(
                made, created=(NOW - timedelta(days=days)).isoformat(timespec="microseconds")
            )
        )
    for at, board in enumerate(BOARDS[:-1]):
        write_calibration(store.path, calibrated(board, 1 + 0.003 * (at % 3), 100))
        write_calibration(
            store.path, calibrated(board, 1 + 0.003 * (at % 3) + 0.01 * (board == OFF), 10 + 9.5 * at)
        )
    return store


def test_the_board_that_is_off_and_the_one_that_drifts_are_named(pool: Store, tokenpower: Command) -> None:
    ended = tokenpower("fleet")
    assert (ended.code, ended.err) == (1, "")
    assert "NVIDIA H100: 8 boards" in ended.out
    said = [line for line in ended.out.splitlines() if " is off:" in line or " drifts:" in line]
    assert [line.split(":")[0] for line in said] == [f"{OFF} is off", f"{DRIFTS} drifts"]
    assert f"{BARE} needs a calibration: tokenpower calibrate, on runner-7." in ended.out
    assert ended.out.count("needs a calibration") == 1


def test_json_has_the_figures_with_their_intervals(pool: Store, tokenpower: Command) -> None:
    ended = tokenpower("fleet", "--json", "--test=test_chat[")
    [fleet] = json.loads(ended.out)["fleets"]
    boards = {one["board"]: one for one in fleet["boards"]}
    assert boards.keys() == {*BOARDS}
    assert [name for name, one in boards.items() if one["off"]] == [OFF]
    low, high = boards[OFF]["offset"]["interval"]
    # The fixture's levels: 9 % and a place of its own, against seven others of which one rises to 4.8 % in four months.
    places = [0.004 * (at - 3.5) / 3.5 for at in range(8)]
    others = (sum(places) - places[2] + 0.024) / 7
    assert low < 1.09 * (1 + places[2]) / (1 + others) - 1 < high
    low, high = boards[DRIFTS]["monthly_drift"]["interval"]
    assert low < 0.012 < high
    assert sum(one["measurements"] for one in fleet["boards"]) == 80
    assert boards[BARE]["calibration"] is None
    state = boards[OFF]["calibration"]
    assert (state["count"], state["change"], state["change_days"]) == (2, pytest.approx(0.01, rel=0.02), 71)
    assert state["days_old"] == pytest.approx(29, abs=0.1)
    assert not state["stale"]


def test_calibrations_alone_make_a_fleet(
    tmp_path: Path, tokenpower: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for at, board in enumerate(BOARDS):
        write_calibration(
            tmp_path / "pool", calibrated(board, 1.002**at * (1.2 if board == OFF else 1), 100 if at else 5)
        )
    ended = tokenpower("fleet", "--storage=pool")
    assert ended.code == 1
    assert f"{OFF} is off: its joules of fixed work lie " in ended.out
    assert "100 days old (too old)" in ended.out
    assert "cannot be compared" in ended.out


def test_runs_that_are_not_read_beside_calibrations_are_said(
    pool: Store, git: Git, tokenpower: Command
) -> None:
    git("switch", "--quiet", "--orphan", "elsewhere")
    git.commit("nothing in common")
    ended = tokenpower("fleet")
    assert "none of the 80 runs in" in ended.err
    assert "name another branch with --ref=REF" in ended.err
    assert "NVIDIA H100: 7 boards" in ended.out


def test_tests_of_one_node_id_in_two_packages_have_levels_of_their_own(
    git: Git, store: Store, tokenpower: Command
) -> None:
    """Each package runs on one board alone, so that nothing can be told of the boards."""
    commit = git.commit("one")
    for number in range(12):
        one = at_level(1.0 + 0.3 * (number % 2), seed=number)
        rounds = tuple(
            msgspec.structs.replace(each, device_joules={BOARDS[number % 2]: each.joules})
            for each in one.rounds
        )
        found = msgspec.structs.replace(one, rounds=rounds, host="runner")
        store.write(run(number, found, commit=commit, root=("chat", "search")[number % 2]))
    ended = tokenpower("fleet")
    assert ended.code == 0
    assert "No test was run on two of these boards at one level" in ended.out


def test_several_boards_of_one_run_are_calibrated_one_by_one(
    git: Git, store: Store, tokenpower: Command
) -> None:
    first, second, third = BOARDS[:3]
    commit = git.commit("one")
    for number, devices in enumerate([(first, second), (second, third)]):
        one = at_level(seed=number)
        rounds = tuple(
            msgspec.structs.replace(each, device_joules=dict.fromkeys(devices, 1.0)) for each in one.rounds
        )
        store.write(run(number, msgspec.structs.replace(one, rounds=rounds, host="runner"), commit=commit))
    for device in (first, second):
        write_calibration(store.path, calibrated(device, 1.0, 3))
    out = tokenpower("fleet").out
    assert [line for line in out.splitlines() if "needs a calibration" in line] == [
        f"{third} needs a calibration: tokenpower calibrate, on runner."
    ]
    assert re.search(rf"^{first}\+{second} .* each of them$", out, re.MULTILINE)
    assert re.search(rf"^{second}\+{third} .* none$", out, re.MULTILINE)


def test_after_another_driver_a_board_needs_a_calibration_anew(
    git: Git, store: Store, tokenpower: Command
) -> None:
    commit = git.commit("one")
    for number, (board, driver) in enumerate(
        [(BOARDS[0], "580.1"), (BOARDS[1], "580.1"), (BOARDS[0], "600.2")]
    ):
        one = at_level(seed=number)
        rounds = tuple(
            msgspec.structs.replace(each, device_joules={board: each.joules}) for each in one.rounds
        )
        found = msgspec.structs.replace(
            one, rounds=rounds, host=f"runner-{board[4]}", facts={f"{board}.driver": driver}
        )
        store.write(run(number, found, commit=commit))
    for board in BOARDS[:2]:
        write_calibration(store.path, calibrated(board, 1.0, 3))
    out = tokenpower("fleet").out
    assert [line for line in out.splitlines() if "needs a calibration" in line] == [
        f"{BOARDS[0]} needs a calibration: tokenpower calibrate, on runner-a."
    ]


def test_mistakes(tmp_path: Path, tokenpower: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pool").mkdir()
    assert (
        tokenpower("fleet", "--storage=pool", "--runs=0").err
        == "tokenpower fleet: --runs=0: must be at least 1\n"
    )
    ended = tokenpower("fleet", "--storage=pool")
    assert ended.code == 4
    assert ended.err.startswith("tokenpower fleet: no run is stored in ")
    write_calibration(tmp_path / "pool", calibrated(BOARDS[0], 1.0, -0.01))
    write_calibration(tmp_path / "pool", calibrated(BOARDS[1], 1.0, 1))
    assert re.findall(r"\S+ days? old", tokenpower("fleet", "--storage=pool").out) == [
        "0 days old",
        "1 day old",
    ]
    ended = tokenpower("fleet", "--storage=pool", "--test=chat")
    assert (ended.code, "of a test whose id holds 'chat' (--test)" in ended.err) == (4, True)


def test_what_is_left_out_is_said_in_every_format(
    tmp_path: Path, tokenpower: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    future = write_calibration(tmp_path / "pool", calibrated(BOARDS[0], 1.0, -40))
    damaged = write_calibration(tmp_path / "pool", calibrated(BOARDS[1], 1.0, 3))
    damaged.write_bytes(b"\xff{")
    ended = tokenpower("fleet", "--storage=pool")
    assert ended.code == 4
    assert [line.split(": ")[1] for line in ended.err.splitlines() if line.startswith("Left out: ")] == [
        str(path) for path in (future, damaged)
    ]
    assert "it was made in the future" in ended.err
    write_calibration(tmp_path / "pool", calibrated(BOARDS[2], 1.0, 3))
    found = json.loads(tokenpower("fleet", "--storage=pool", "--json").out)
    assert [Path(each["path"]) for each in found["left_out"]] == [future, damaged]
    assert [each["board"] for each in found["fleets"][0]["boards"]] == [BOARDS[2]]
    assert found["fleets"][0]["boards"][0]["uncalibrated"] == []


def test_a_run_over_unlike_boards_is_a_model_of_its_own() -> None:
    unlike: dict[str, Fact] = {"gpu1.name": "H100", "gpu1.count": 2, "gpu2.name": "H200", "gpu2.count": 1}
    assert model_of(unlike) == "2x H100 + H200"
    assert model_of({"gpu.name": "H100", "gpu.count": 1}) == "H100"
    assert model_of({"cpu.name": "EPYC", "cpu.count": 2}) == ""
