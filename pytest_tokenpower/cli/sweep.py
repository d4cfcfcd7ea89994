"""`tokenpower sweep`: a suite with a live table, and its results as a table, CSV and JSON."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from pytest_tokenpower.core.figures import FIGURES
from pytest_tokenpower.core.files import write_whole
from pytest_tokenpower.core.records import RunRecord, decode_run
from pytest_tokenpower.core.settings import EVENTS_VARIABLE
from pytest_tokenpower.core.subprocesses import ProcessGroup
from pytest_tokenpower.core.text import per_token
from pytest_tokenpower.errors import TokenPowerError, UsageError
from pytest_tokenpower.reporting.suites import (
    cell_rows,
    claims_table,
    duration,
    frontier,
    live_table,
    objective_lines,
    results_table,
)
from pytest_tokenpower.reporting.terminal import source
from pytest_tokenpower.suites.claims import runs_of
from pytest_tokenpower.suites.estimate import this_machine
from pytest_tokenpower.suites.grid import Suite
from pytest_tokenpower.suites.instances import instances
from pytest_tokenpower.suites.objectives import judge_objectives
from pytest_tokenpower.suites.pareto import usual_figures
from pytest_tokenpower.suites.progress import Event, Progress, plan
from pytest_tokenpower.suites.schema import json_schema

EPILOG = """\
It runs pytest on the suite: what follows -- are pytest's own arguments, such as --energy-source=nvml,rapl, -k fp8 or
--energy-autosave. Interrupted (Ctrl-C, a lost machine), it goes on with --resume.

exit codes: 0, or 1 where a cell or a claim failed, or 4 for a mistake in the suite or the arguments, or 130 interrupted
"""

POLL_S = 0.2
PATIENCE_S = 30.0
"""How long an interrupted pytest may take to close its engine."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which suite, and where its results go."""
    parser.epilog = EPILOG
    parser.usage = "tokenpower sweep SUITE [OPTIONS] [-- PYTEST ARGUMENTS]"
    parser.add_argument("suite", metavar="SUITE", type=Path, nargs="?", help="a file *.energy.toml")
    parser.add_argument("--resume", action="store_true", help="go on with the interrupted sweep")
    parser.add_argument("--csv", metavar="PATH", type=Path, help="write a line a cell")
    parser.add_argument("--json", metavar="PATH", type=Path, help="write cells and claims")
    parser.add_argument(
        "--pareto",
        metavar="FIGURE",
        action="append",
        help="weigh FIGURE against J/token in the table of cells that no other beats (repeatable; by default "
        "tokens_per_second, ttft_p90_seconds and quality, where every cell has them)",
    )
    parser.add_argument(
        "--schema", action="store_true", help="print the JSON Schema of suite files, for editors"
    )
    parser.add_argument("arguments", metavar="PYTEST ARGUMENTS", nargs="*", help="what pytest is given, too")


def run(arguments: argparse.Namespace) -> int:
    """Run the sweep and show it."""
    if arguments.schema:
        print(json.dumps(json_schema(), indent=1))
        return 0
    if arguments.suite is None:
        raise UsageError("name a suite, a file *.energy.toml")
    for option, path in (("--csv", arguments.csv), ("--json", arguments.json)):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise UsageError(f"{option}={path}: must be a file in a folder that exists")
    for figure in arguments.pareto or ():
        if figure not in FIGURES:
            raise UsageError(f"--pareto={figure}: is no figure; there are {', '.join(FIGURES)}")
    suite = Suite.read(arguments.suite)
    instances(suite)
    simulated = "--energy-simulated-engines" in arguments.arguments
    progress = Progress(plan(suite, this_machine(simulated=simulated)), time.monotonic())
    with tempfile.TemporaryDirectory(prefix="tokenpower-sweep-") as folder:
        record, code = _run(Path(folder), arguments, progress)
    sources = dict.fromkeys(source(one) for one in record.measurements if one.method)
    print("\n".join(("", *sources, *([""] if sources else []), *results_table(record.measurements))))
    if record.claims:
        print("\n".join(("", *claims_table(record.claims))))
    for outcome in judge_objectives(suite, runs_of(suite, record.measurements)):
        print("\n".join(("", *objective_lines(outcome))))
    _export(arguments, cell_rows(record.measurements), record)
    if figures := arguments.pareto or usual_figures(record.measurements):
        print("\n".join(("", *frontier(record.measurements, figures))))
    return code


def _run(folder: Path, arguments: argparse.Namespace, progress: Progress) -> tuple[RunRecord, int]:
    """Run pytest, showing what it says of the cells, and read its record."""
    events, record = folder / "events.jsonl", folder / "record.json"
    events.touch()
    command = [
        *(sys.executable, "-m", "pytest", os.fspath(arguments.suite), "--color=no"),
        *(("--energy-resume",) if arguments.resume else ()),
        *arguments.arguments,
        f"--energy-json={record}",
    ]
    environment = {**os.environ, EVENTS_VARIABLE: str(events), "PYTHONUNBUFFERED": "1"}
    child = ProcessGroup(command, log=folder / "log.txt", env=environment, cwd=Path.cwd())
    screen = _Screen(progress)
    seen = _Tail(events)
    try:
        while True:
            over = child.exited()
            for event in seen.new():
                screen.take(event)
            screen.draw()
            if over:
                break
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        child.interrupt()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        how = child.end(PATIENCE_S)
        raise KeyboardInterrupt(
            f"after {len(progress.ended)} of {len(progress.steps)} cells; --resume goes on with it"
        ) from None
    finally:
        how = child.end(PATIENCE_S)
    if how not in ("exit status 0", "exit status 1") or not record.exists():
        raise TokenPowerError(f"pytest measured nothing ({how}):\n{child.tail()}")
    return decode_run(record.read_bytes(), source=str(record)), int(how == "exit status 1")


class _Tail:
    """The lines that a file gets, whole ones only."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0
        self._decoder = msgspec.json.Decoder(Event)

    def new(self) -> Iterator[Event]:
        with self._path.open("rb") as stream:
            stream.seek(self._at)
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.splitlines():
            # On a disk that was full for a while lines are cut off.
            with suppress(msgspec.DecodeError):
                yield self._decoder.decode(line)


class _Screen:
    """A table that is drawn over itself on a terminal; elsewhere a line for each cell that has ended."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._live = sys.stdout.isatty()
        self._lines = 0

    def take(self, event: Event) -> None:
        now = time.monotonic()
        self._progress.take(event, now)
        if event.outcome and not self._live:
            done, count = len(self._progress.ended), len(self._progress.steps)
            joules = event.figures.get("joules_per_token")
            what = event.reason or (per_token(joules) if joules is not None else "")
            left = self._progress.seconds_left(now)
            more = f", about {duration(left)} left" if left else ""
            print(f"{done}/{count} {event.cell}: {event.outcome} {what}{more}", flush=True)

    def draw(self) -> None:
        if not self._live:
            return
        size = shutil.get_terminal_size()
        lines = live_table(self._progress, time.monotonic(), rows=size.lines - 3, width=size.columns)
        if self._lines:
            # The one control sequence that is meant: what a test's name has of them is shown, not obeyed.
            sys.stdout.flush()
            plain = getattr(sys.stdout, "plain", sys.stdout)
            plain.write(f"\x1b[{self._lines}F\x1b[J")
            plain.flush()
        print("\n".join(lines), flush=True)
        self._lines = len(lines)


def _export(arguments: argparse.Namespace, rows: Sequence[dict[str, object]], record: RunRecord) -> None:
    if arguments.csv is not None:
        fields = list(dict.fromkeys(name for row in rows for name in row))
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, fields)
        writer.writeheader()
        writer.writerows(rows)
        _write("--csv", arguments.csv, stream.getvalue())
    if arguments.json is not None:
        claims = msgspec.to_builtins(record.claims)
        whole = {"suite": str(arguments.suite), "commit": record.commit, "cells": rows, "claims": claims}
        _write("--json", arguments.json, json.dumps(whole, indent=1) + "\n")


def _write(option: str, path: Path, text: str) -> None:
    try:
        write_whole(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise TokenPowerError(
            f"{option}={path}: {error.strerror}: the same command with --resume writes it without measuring again"
        ) from None
