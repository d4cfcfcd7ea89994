"""`tokenpower fleet`: the boards of a pool, their calibrations, and which one is off or drifts."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime, timezone
from typing import Any

from pytest_tokenpower.cli.store_access import add_storage
from pytest_tokenpower.core.text import plural, signed, table_lines, with_interval
from pytest_tokenpower.errors import StoreError, UsageError
from pytest_tokenpower.gate.fleet import CalibrationState, Fleet, FleetBoard, fleets, measurements_on
from pytest_tokenpower.gate.history import read_line
from pytest_tokenpower.stats.change import Change
from pytest_tokenpower.store.access import StoreContext
from pytest_tokenpower.store.calibrations import STALE_DAYS, read_calibrations

EPILOG = f"""\
A board's offset is its J/token less the other boards' mean, in the tests and at the levels that both ran, with its 95 %
interval; of its calibration, the joules of fixed work. It is OFF where that is surely more than boards of one model
differ (1 % for all boards together). Drift is the change of the offset in 30 days, from two weeks and five occasions
on: what all boards do together is the code's doing. A calibration is used for {STALE_DAYS} days, with one driver.

exit codes: 0, or 1 where a board is off, or 4 for a mistake in the arguments
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which runs are read."""
    parser.epilog = EPILOG
    parser.add_argument("--ref", metavar="REF", help="the branch whose runs are read (default: HEAD)")
    parser.add_argument(
        "--runs", type=int, default=500, metavar="N", help="read the newest N runs (default: 500)"
    )
    parser.add_argument("--test", metavar="TEXT", default="", help="only tests whose ids hold this text")
    parser.add_argument("--json", action="store_true", help="the same as one JSON object")
    add_storage(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the boards; 1 where one is off."""
    if arguments.runs < 1:
        raise UsageError(f"--runs={arguments.runs}: must be at least 1")
    place = StoreContext.of(arguments)
    kept = list(read_calibrations(place.store))
    try:
        line = read_line(place, arguments.ref, arguments.runs)
        measured = measurements_on(place.store, line, arguments.test)
    except StoreError as error:
        # A pool may be calibrated before its first run is stored.
        if not kept:
            for problem in place.store.problems:
                print(f"Left out: {problem.path}: {problem.reason}", file=sys.stderr)
            raise
        print(f"Calibrations alone: {error}", file=sys.stderr)
        measured = []
    if arguments.test and not measured:
        raise StoreError(
            f"{place.store.path}: no comparable measurement here is of a test whose id holds "
            f"{arguments.test!r} (--test)"
        )
    found = fleets(measured, kept)
    if not found:
        raise StoreError(
            f"{place.store.path}: no run here names the boards that it was measured on, and no board is calibrated "
            "(tokenpower calibrate)"
        )
    if arguments.json:
        left_out = [{"path": str(each.path), "reason": each.reason} for each in place.store.problems]
        document = {"fleets": [as_json(each) for each in found], "left_out": left_out}
        print(json.dumps(document, indent=1, allow_nan=False))
    else:
        print("\n".join(line for each in found for line in as_text(each)).rstrip())
        for problem in place.store.problems:
            print(f"Left out: {problem.path}: {problem.reason}")
    return int(any(board.off for each in found for board in each.boards))


def as_text(fleet: Fleet) -> list[str]:
    """Return the table of a model's boards, and a sentence for each that needs one."""
    columns = ("board", "hosts", "measured", "last run", "offset [95 %]", "drift a month", "calibration")
    rows = [_row(board) for board in fleet.boards]
    lines = [
        f"{fleet.model}: {plural(len(fleet.boards), 'board')}"
        + (", J/token at one pace" if fleet.at_one_pace else ""),
        "",
        *table_lines(rows, columns),
        "",
    ]
    for board in fleet.boards:
        lines += _findings(board)
    if len(fleet.boards) > 1 and all(board.standing is None for board in fleet.boards):
        lines.append("No test was run on two of these boards at one level: their J/token cannot be compared.")
    return [*lines, ""]


def _row(board: FleetBoard) -> list[str]:
    last = datetime.fromtimestamp(board.last, timezone.utc).date().isoformat() if board.last else "-"
    return [
        board.board,
        ", ".join(board.hosts[:3]) + (f" +{len(board.hosts) - 3}" if len(board.hosts) > 3 else "") or "-",
        f"{board.measurements} on {plural(board.occasions, 'occasion')}" if board.measurements else "-",
        last,
        _interval(board.standing.offset) + (" OFF" if board.standing.off else "") if board.standing else "-",
        _interval(board.drift.monthly) + (" DRIFTS" if board.drift.sure else "") if board.drift else "-",
        _calibration(board.calibration) if board.calibration or board.uncalibrated else "each of them",
    ]


def _interval(change: Change) -> str:
    return with_interval(change.change, *change.change_interval())


def _calibration(state: CalibrationState | None) -> str:
    if state is None:
        return "none"
    words = [
        f"{plural(round(max(state.days_old, 0)), 'day')} old" + (" (too old)" if state.stale else ""),
        f"driver {state.driver}",
    ]
    if state.standing is not None:
        words.append(signed(state.standing.offset.change) + (" OFF" if state.standing.off else ""))
    if state.change is not None:
        words.append(f"{signed(state.change)} in {plural(round(state.change_days), 'day')}")
    return ", ".join(words)


def _findings(board: FleetBoard) -> list[str]:
    lines = []
    of_work = board.calibration.standing if board.calibration else None
    for standing, what in ((board.standing, "J/token"), (of_work, "joules of fixed work")):
        if standing is not None and standing.off:
            lines.append(
                f"{board.board} is off: its {what} lie {_interval(standing.offset)} from the other boards' mean, more "
                f"than boards differ (p = {standing.p_off:.2g}). Look at its cooling, power limit and clocks, and keep "
                "it out of the pool until then."
            )
    if board.drift is not None and board.drift.sure:
        lines.append(
            f"{board.board} drifts: {_interval(board.drift.monthly)} in 30 days against the other boards, over "
            f"{board.drift.days:.0f} days (p = {board.drift.p:.2g}). Calibrate it again, and look at its cooling."
        )
    lines += [
        f"{device} needs a calibration: tokenpower calibrate, on {', '.join(board.hosts) or 'its host'}."
        for device in board.uncalibrated
    ]
    return lines


def as_json(fleet: Fleet) -> dict[str, Any]:
    """Return what ``--json`` prints of a model's boards."""
    return {
        "model": fleet.model,
        "at_one_pace": fleet.at_one_pace,
        "boards": [
            {
                "board": board.board,
                "hosts": list(board.hosts),
                "tests": board.tests,
                "measurements": board.measurements,
                "occasions": board.occasions,
                "last_run": board.last,
                "off": board.off,
                "offset": _change(board.standing.offset, board.standing.p_off) if board.standing else None,
                "monthly_drift": _change(board.drift.monthly, board.drift.p) if board.drift else None,
                "calibration": _state(board.calibration),
                "uncalibrated": list(board.uncalibrated),
            }
            for board in fleet.boards
        ],
    }


def _change(change: Change, p_value: float) -> dict[str, Any]:
    return {"change": change.change, "interval": list(change.change_interval()), "p_value": p_value}


def _state(state: CalibrationState | None) -> dict[str, Any] | None:
    if state is None:
        return None
    return {
        "driver": state.driver,
        "days_old": state.days_old,
        "stale": state.stale,
        "count": state.count,
        "change": state.change,
        "change_days": state.change_days,
        "offset": _change(state.standing.offset, state.standing.p_off) if state.standing else None,
    }
