"""`tokenpower calibrate` on simulated boards, and what it is worth to the gate."""

from __future__ import annotations

import json
import math
from datetime import datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pytest_tokenpower.core.records import Figure, MeasurementRecord, WaitingRecord
from pytest_tokenpower.gate.evidence import Boards
from pytest_tokenpower.gate.verdict import Policy, judge
from pytest_tokenpower.store.baseline import ComparableRuns
from pytest_tokenpower.store.calibrations import CalibrationRecord, read_calibrations, write_calibration
from pytest_tokenpower.store.store import Store
from tests.support.commands import Command
from tests.support.measurements import measured
from tests.support.verdicts import text

A, B = (f"GPU-{each * 8}-0000-0000-0000-000000000000" for each in "ab")


def board(uuid: str, watts: float) -> dict[str, object]:
    return {"uuid": uuid, "power": {"points": [[0, watts]]}}


@pytest.mark.slow
def test_boards_are_calibrated_and_kept(tmp_path: Path, tokenpower: Command) -> None:
    scenario = tmp_path / "boards.json"
    scenario.write_text(json.dumps({"boards": [board(A, 500), board(B, 525)]}))
    ended = tokenpower(
        "calibrate", f"--source=simulated:{scenario}", "--window=0.3", f"--storage={tmp_path / 'store'}"
    )
    assert (ended.code, ended.err) == (0, "")
    first, second = read_calibrations(Store(tmp_path / "store"))
    assert (first.device, second.device) == (A, B)
    assert first.waiting.watts == pytest.approx(500, rel=0.03)
    assert second.waiting.watts == pytest.approx(525, rel=0.03)
    assert set(first.pieces) == {"matmul", "memory"}
    assert f"{A} (" in ended.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--source=rapl"], "--source=rapl: must be nvml, simulated or simulated:SCENARIO.json"),
        (["--window=0"], "--window=0: must be from 0.05 to 60 seconds"),
    ],
)
def test_mistakes(tmp_path: Path, tokenpower: Command, arguments: list[str], said: str) -> None:
    ended = tokenpower("calibrate", f"--storage={tmp_path / 'store'}", *arguments)
    assert (ended.code, ended.err) == (4, f"tokenpower calibrate: {said}\n")


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_of_a_calibration_changes_nothing_unnoticed(at: int, bit: int) -> None:
    made = calibration(A, 1.0)
    with TemporaryDirectory() as folder:
        store = Store(Path(folder))
        path = write_calibration(store.path, made)
        assert list(read_calibrations(store)) == [made]
        data = bytearray(path.read_bytes())
        data[at % len(data)] ^= 1 << bit
        path.write_bytes(data)
        left = list(read_calibrations(store))
        assert left in ([], [made])
        [reason] = [one.reason for one in store.problems if one.path == path] or [""]
        assert ("make it anew with tokenpower calibrate" in reason) == (not left)


@pytest.mark.parametrize("watts", [0.0, -5.0, math.inf, math.nan])
def test_a_calibration_that_cannot_have_happened_is_left_out(tmp_path: Path, watts: float) -> None:
    write_calibration(tmp_path, replace(calibration(A, 1.0), waiting=WaitingRecord(watts, 3.0)))
    write_calibration(tmp_path, calibration(B, 1.0))
    store = Store(tmp_path)
    assert [one.device for one in read_calibrations(store)] == [B]
    assert len(store.problems) == 1


@pytest.mark.parametrize("piece", ["matmul", "memory"])
def test_a_calibration_without_a_piece_of_work_is_left_out_and_ends_no_run(
    tmp_path: Path, piece: str
) -> None:
    whole = calibration(A, 1.0)
    write_calibration(tmp_path, replace(whole, pieces={piece: whole.pieces[piece]}))
    store = Store(tmp_path)
    assert Boards.of(read_calibrations(store)) == Boards()
    [problem] = store.problems
    assert f"lacks the joules of {'memory' if piece == 'matmul' else 'matmul'}" in problem.reason


def calibration(device: str, factor: float, *, days: float = 1, driver: str = "580.1") -> CalibrationRecord:
    made = datetime.now(timezone.utc).replace(microsecond=0) - timedelta(days=days)
    pieces = {name: Figure(20 * factor, 0.01) for name in ("matmul", "memory")}
    waiting = WaitingRecord(120.0, 3.0, 40.0)
    return msgspec.convert(
        msgspec.to_builtins(CalibrationRecord(device, "H100", driver, made.isoformat(), pieces, waiting)),
        CalibrationRecord,
    )


def on(board: str, level: float, day: float) -> MeasurementRecord:
    found = measured("t", level)
    rounds = tuple(replace(one, device_joules={board: one.joules}) for one in found.rounds)
    return replace(found, rounds=rounds, host="box", started=day * 86_400, facts={f"{board}.driver": "580.1"})


STORED = ComparableRuns(
    "main",
    tuple(on(A, 0.2 * each, day) for day, each in enumerate((0.999, 1.001, 1.0, 1.0015, 0.9985))),
    tuple("abcde"),
)


def test_calibrated_boards_are_compared() -> None:
    """The other board draws 5 % more, of identical code and of fixed work alike."""
    boards = Boards.of([calibration(A, 1.0), calibration(B, 1.05)])
    same = judge(on(B, 0.21, 9), STORED, Policy(0.03, boards=boards))
    assert same.change == pytest.approx(0.0, abs=0.003)
    assert same.kind == "passed"
    assert "What their calibrations foretell of the difference is taken out." in text(same)
    assert judge(on(B, 0.21 * 1.1, 9), STORED, Policy(0.03, boards=boards)).kind == "regressed"


@pytest.mark.parametrize(
    "second",
    [calibration(B, 1.05, days=200), calibration(B, 1.05, driver="590.2"), calibration("GPU-c", 1.05)],
)
def test_what_is_stale_or_of_another_driver_does_not_count(second: CalibrationRecord) -> None:
    boards = Boards.of([calibration(A, 1.0), second])
    verdict = judge(on(B, 0.21, 9), STORED, Policy(0.03, boards=boards))
    assert (verdict.kind, verdict.change) == ("inconclusive", pytest.approx(0.05, abs=0.002))  # type: ignore[comparison-overlap]
    assert "`tokenpower calibrate` on each takes most of that out" in text(verdict)
    assert ("is too old" in text(verdict)) == (second.days_old() > 100)
