"""`tokenpower soak`: a cell of a suite for hours without a pause: J/token and conditions over time, drift, steps."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from pytest_tokenpower.core.records import RoundRecord
from pytest_tokenpower.core.settings import fraction
from pytest_tokenpower.core.text import per_token
from pytest_tokenpower.engines.execution import Execution
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.meters import sources
from pytest_tokenpower.reporting.suites import duration, soak_lines
from pytest_tokenpower.runner.locks import hold_devices
from pytest_tokenpower.runner.soak import soak
from pytest_tokenpower.runner.telemetry import TelemetrySession
from pytest_tokenpower.suites.build import engine_of, work_of
from pytest_tokenpower.suites.grid import Cell, Suite
from pytest_tokenpower.suites.soak import (
    SoakBegun,
    Stretch,
    encode_line,
    read_soak,
    stretch_seconds,
    summarise,
)

EPILOG = """\
Each stretch of a minute (of a day; shorter of a shorter soak) is written to the file as it ends. Interrupted, the
soak goes on with the same command and --resume, until it has lasted as long as is asked for, interruptions left out.

exit codes: 0, or 1 where --max-drift is surely exceeded, or 4 for a mistake
"""

PROGRESS_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which cell, for how long."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("suite", metavar="SUITE", type=Path, help="a file *.energy.toml")
    parser.add_argument("--cell", metavar="NAME", help="which of its cells (default: its only one)")
    parser.add_argument("--hours", metavar="H", type=float, default=24.0, help="how long (default: 24)")
    parser.add_argument("--source", default="auto", help="what measures, as --energy-source")
    parser.add_argument(
        "--simulated-engines",
        action="store_true",
        help="a forecast stands for the engine, on simulated boards",
    )
    parser.add_argument("--out", metavar="PATH", type=Path, help="the soak's file (default: soak-CELL.jsonl)")
    parser.add_argument("--resume", action="store_true", help="go on with the soak in that file")
    parser.add_argument(
        "--max-drift", metavar="SHARE", help="fail where J/token surely drifts by more, such as 2%%"
    )


def run(arguments: argparse.Namespace) -> int:
    """Soak, and say what came of it."""
    limit = None if arguments.max_drift is None else fraction(None, arguments.max_drift)
    if not arguments.hours > 0:
        raise UsageError(f"--hours={arguments.hours:g}: must be above 0")
    suite = Suite.read(arguments.suite)
    cell = _cell(suite, arguments.cell)
    source = arguments.source
    if arguments.simulated_engines:
        if source.partition(":")[0] != "simulated":
            raise UsageError(
                "--simulated-engines: what no engine does cannot be measured; use --source simulated"
            )
        source = "simulated:virtual" if source == "simulated" else source
    out = arguments.out or Path(f"soak-{cell.name}.jsonl")
    begun = SoakBegun(cell.name, suite.fingerprint(cell), source, datetime.now(timezone.utc).isoformat())
    stretches = _begin(out, begun, resume=arguments.resume)
    done_s = stretches[-1].at_s + stretches[-1].round.seconds if stretches else 0.0
    whole_s = arguments.hours * 3600
    if done_s < whole_s:
        with _bench(source) as bench, out.open("ab") as stream:
            keeper = _Keeper(stretches, stream, done_s, whole_s)
            spec = engine_of(suite, [cell], simulated=bench.clock if arguments.simulated_engines else None)
            with spec.start() as engine:
                work = Execution(engine, work_of(suite, cell))
                measured = bench if work.device_ids is None else bench.on_gpus(work.device_ids)
                soak(work, measured, whole_s - done_s, stretch_seconds(whole_s), keeper.keep)
    found = summarise(stretches)
    print("\n".join(soak_lines(cell.name, source, found, limit)))
    return int(limit is not None and found.drift is not None and found.drift.change.p_above(limit) < 0.05)


def _cell(suite: Suite, name: str | None) -> Cell:
    cells = {cell.name: cell for cell in suite.cells}
    if name is None and len(cells) == 1:
        return suite.cells[0]
    if name not in cells:
        said = f"--cell={name}: there is no such cell" if name else "name one of its cells with --cell"
        raise UsageError(f"{suite.path}: {said}; there are {', '.join(cells)}")
    return cells[name]


def _begin(out: Path, begun: SoakBegun, *, resume: bool) -> list[Stretch]:
    """Begin the file, or read what is in it."""
    if not resume:
        if out.exists():
            raise UsageError(f"{out}: exists; --resume goes on with it, --out names another")
        out.write_bytes(encode_line(begun))
        return []
    if not out.exists():
        raise UsageError(f"{out}: there is no soak to go on with")
    before, stretches, size = read_soak(out.read_bytes())
    if before is None or (before.fingerprint, before.source) != (begun.fingerprint, begun.source):
        raise UsageError(
            f"{out}: is a soak of other work, or with another source of energy: give it its own --out"
        )
    os.truncate(out, size)
    return list(stretches)


@contextmanager
def _bench(source: str) -> Iterator[TelemetrySession]:
    started = sources.begin(source)
    try:
        session = TelemetrySession(started.collector, started.devices, None, started.notes)
        real = [
            each.gpu_id
            for each in session.devices
            if each.gpu_id is not None and "measured" in session.provenance
        ]
        with hold_devices(real):
            yield session
    finally:
        started.collector.stop()


class _Keeper:
    """Writes each stretch down, and says from time to time how far the soak is."""

    def __init__(self, stretches: list[Stretch], stream: BinaryIO, done_s: float, whole_s: float) -> None:
        self._stretches, self._stream = stretches, stream
        self._done_s, self._whole_s = done_s, whole_s
        self._told = time.monotonic()

    def keep(self, at_s: float, record: RoundRecord) -> None:
        stretch = Stretch(self._done_s + at_s, record)
        self._stretches.append(stretch)
        self._stream.write(encode_line(stretch))
        self._stream.flush()
        if time.monotonic() - self._told >= PROGRESS_S:
            self._told = time.monotonic()
            joules = (
                "" if record.joules is None else f", {per_token(record.joules / record.generated_tokens)}"
            )
            now_s = stretch.at_s + record.seconds
            print(f"{duration(now_s)} of {duration(self._whole_s)}{joules}", flush=True)
