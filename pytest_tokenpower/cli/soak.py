"""`tokenpower soak`: a test's work for hours without a pause: J/token and conditions over time, drift, steps."""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from pathlib import Path

from pytest_tokenpower.core.files import write_whole
from pytest_tokenpower.core.settings import CHILD_VARIABLE, SOAK_VARIABLE, fraction
from pytest_tokenpower.core.subprocesses import ProcessGroup
from pytest_tokenpower.errors import TokenPowerError, UsageError
from pytest_tokenpower.reporting.suites import duration, soak_lines
from pytest_tokenpower.suites.grid import Suite
from pytest_tokenpower.suites.schema import SUFFIX
from pytest_tokenpower.suites.soak import SoakAsked, read_soak, summarise

EPILOG = """\
Each stretch of a minute (of a day; shorter of a shorter soak) is written to the file as it ends. Interrupted, the
soak goes on with the same command and --resume, until it has lasted as long as is asked for, interruptions left out.
It runs pytest on the test: what follows -- are pytest's own arguments.

exit codes: 0, or 1 where the test fails or --max-drift is surely exceeded, or 4 for a mistake
"""

PROGRESS_S = 10.0
POLL_S = 0.2
PATIENCE_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which test, for how long."""
    parser.epilog = EPILOG
    parser.usage = "tokenpower soak TEST [OPTIONS] [-- PYTEST ARGUMENTS]"
    parser.add_argument("test", metavar="TEST", help="a test by its id, or a file *.energy.toml")
    parser.add_argument("--cell", metavar="NAME", help="which cell of the suite (default: its only one)")
    parser.add_argument("--hours", metavar="H", type=float, default=24.0, help="how long (default: 24)")
    parser.add_argument(
        "--source", metavar="SOURCE", help="what measures, as --energy-source (default: as pytest has it)"
    )
    parser.add_argument(
        "--simulated-engines",
        action="store_true",
        help="a forecast stands for a suite's engine, on simulated boards",
    )
    parser.add_argument("--out", metavar="PATH", type=Path, help="the soak's file (default: soak-NAME.jsonl)")
    parser.add_argument("--resume", action="store_true", help="go on with the soak in that file")
    parser.add_argument(
        "--max-drift", metavar="SHARE", help="fail where J/token surely drifts by more, such as 2%%"
    )
    parser.add_argument(
        "--html", metavar="PATH", type=Path, help="write a page of the soak that opens without a network"
    )
    parser.add_argument("arguments", metavar="PYTEST ARGUMENTS", nargs="*", help="what pytest is given, too")


def run(arguments: argparse.Namespace) -> int:
    """Soak, and say what came of it."""
    limit = None if arguments.max_drift is None else fraction("--max-drift", arguments.max_drift)
    if not 0 < arguments.hours < math.inf:
        raise UsageError(f"--hours={arguments.hours:g}: must be above 0")
    if arguments.html is not None and (
        arguments.html.is_dir() or not arguments.html.absolute().parent.is_dir()
    ):
        raise UsageError(f"--html={arguments.html}: must be a file in a folder that exists")
    test = _test(arguments.test, arguments.cell)
    name = "".join(each if each.isalnum() or each in ".+-" else "_" for each in test.rpartition("::")[2])
    out = arguments.out or Path(f"soak-{name}.jsonl")
    if not arguments.resume and out.exists():
        raise UsageError(f"{out}: exists; --resume goes on with it, --out names another")
    if arguments.resume and not out.exists():
        raise UsageError(f"{out}: there is no soak to go on with")
    asked = SoakAsked(arguments.hours * 3600, str(out.absolute()), arguments.resume, limit)
    code = _run(test, arguments, asked)
    begun, stretches, _ = read_soak(out.read_bytes())
    if arguments.html is not None and begun is not None:
        from pytest_tokenpower.reporting.page import soak_page

        write_whole(arguments.html, soak_page(begun, stretches, limit).encode("utf-8", "backslashreplace"))
    print("\n".join(soak_lines(name, begun.source if begun else "", summarise(stretches), limit)))
    return code


def _test(test: str, cell: str | None) -> str:
    """Return the id of what is soaked; of a suite that of a cell."""
    file, _, name = test.partition("::")
    if not file.endswith(SUFFIX):
        if cell is not None:
            raise UsageError(f"--cell={cell}: {file} is no suite (*{SUFFIX})")
        return test
    suite = Suite.read(Path(file))
    cells = [each.name for each in suite.cells]
    wanted = cell or name or (cells[0] if len(cells) == 1 else None)
    if wanted not in cells:
        said = f"--cell={wanted}: there is no such cell" if wanted else "name one of its cells with --cell"
        raise UsageError(f"{suite.path}: {said}; there are {', '.join(cells)}")
    return f"{file}::{wanted}"


def _run(test: str, arguments: argparse.Namespace, asked: SoakAsked) -> int:
    """Run pytest on the test, saying from time to time how far it is."""
    command = [
        *(sys.executable, "-m", "pytest", test, "--color=no", "-q", "-p", "no:cacheprovider"),
        *((f"--energy-source={arguments.source}",) if arguments.source else ()),
        *(("--energy-simulated-engines",) if arguments.simulated_engines else ()),
        *arguments.arguments,
    ]
    environment = {**os.environ, CHILD_VARIABLE: "1", SOAK_VARIABLE: asked.encode(), "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory(prefix="tokenpower-soak-") as folder:
        child = ProcessGroup(command, log=Path(folder) / "log.txt", env=environment, cwd=Path.cwd())
        told = time.monotonic()
        try:
            while not child.exited():
                time.sleep(POLL_S)
                if time.monotonic() - told >= PROGRESS_S:
                    told = time.monotonic()
                    _tell(asked)
        except KeyboardInterrupt:
            child.interrupt()
            raise KeyboardInterrupt(f"the same command with --resume goes on with {asked.out}") from None
        finally:
            how = child.end(PATIENCE_S)
        whole = Path(asked.out).exists() and _done_s(asked) >= asked.seconds
        if how not in ("exit status 0", "exit status 1") or not whole:
            raise TokenPowerError(f"the soak did not come to its end ({how}):\n{child.tail()}")
        if how == "exit status 1":
            print(child.tail())
        return int(how == "exit status 1")


def _done_s(asked: SoakAsked) -> float:
    _, stretches, _ = read_soak(Path(asked.out).read_bytes())
    return stretches[-1].at_s + stretches[-1].round.seconds if stretches else 0.0


def _tell(asked: SoakAsked) -> None:
    if Path(asked.out).exists():
        print(f"{duration(_done_s(asked))} of {duration(asked.seconds)}", flush=True)
