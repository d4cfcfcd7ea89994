"""`tokenpower noise`: identical code again and again in fresh processes, and the limit that this machine can hold."""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pytest_tokenpower.core.denominators import denominator, figure_per, unit_of
from pytest_tokenpower.core.files import scratch_prefix
from pytest_tokenpower.core.records import RunRecord, decode_run
from pytest_tokenpower.core.settings import fraction
from pytest_tokenpower.core.text import plural, readable, short_test_name
from pytest_tokenpower.errors import TokenPowerError, UsageError
from pytest_tokenpower.gate.noise import FEWEST_RUNS, REFUSED, MeasuredNoise, NoAnswer, analyse
from pytest_tokenpower.runner.child import ChildRun, child_arguments
from pytest_tokenpower.stats.noise import RunNoise, Trend
from pytest_tokenpower.stats.planning import NoiseParts

DEFAULT_RUNS = 8

EPILOG = """\
What can be held: the smallest limit at which, against as many stored runs as energy_baseline_runs says, identical
code fails in at most 1 % of builds, a rise of twice the limit fails in at least 95 %, and the limit is not below the
smallest rise that fails at all. Runs of one sitting do not tell what another day brings: --keep=FOLDER adds to what
earlier sittings have kept there, and answers from all of them.

exit codes: 0, or 1 where a limit is below the noise or identical code failed too often, or where a test could not be
measured often enough, or 4 for a mistake in the arguments or a pytest run that does not measure
"""

_SAID = {
    "holds": "holds",
    "likely holds": "holds, as far as so few runs can tell: more runs would make it sure",
    "tight": "WARNING: tighter than this machine can hold",
    "below the noise": "REFUSED: below the noise",
    "fails identical code": "REFUSED: it fails identical code",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many runs, of what, and where their records are."""
    parser.epilog = EPILOG
    parser.usage = "tokenpower noise [OPTIONS] [-- PYTEST ARGUMENTS]"
    parser.add_argument(
        "--runs", metavar="N", type=int, default=DEFAULT_RUNS, help=f"pytest runs (default: {DEFAULT_RUNS})"
    )
    parser.add_argument(
        "--threshold",
        metavar="SHARE",
        help="the limit to answer for, such as 2%% (default: each test's own, from its marker or energy_regression)",
    )
    parser.add_argument(
        "--baseline-runs",
        metavar="K",
        type=int,
        help="how many stored runs a build is compared with (default: energy_baseline_runs of the project)",
    )
    parser.add_argument(
        "--keep",
        metavar="FOLDER",
        type=Path,
        help="keep the runs' records in a folder, beside those of earlier occasions",
    )
    parser.add_argument(
        "--from",
        metavar="FOLDER",
        type=Path,
        dest="kept",
        help="run nothing: answer from records that --keep kept",
    )
    parser.add_argument("--json", action="store_true", help="the answer as JSON; progress goes to stderr")
    parser.add_argument("arguments", metavar="PYTEST ARGUMENTS", nargs="*", help="what pytest is to run")


def run(arguments: argparse.Namespace) -> int:
    """Measure, or read what was measured, and answer; 1 where a limit cannot be held."""
    threshold = None if arguments.threshold is None else fraction("--threshold", arguments.threshold)
    if arguments.baseline_runs is not None and arguments.baseline_runs < 1:
        raise UsageError(f"--baseline-runs={arguments.baseline_runs}: must be at least 1")
    runs = _kept(arguments) if arguments.kept is not None else _measured(arguments)
    found = analyse(runs, threshold=threshold, baseline_runs=arguments.baseline_runs)
    if arguments.json:
        print(json.dumps({"runs": len(runs), "tests": [_as_json(each) for each in found]}, indent=2))
    else:
        print("\n".join(line for each in found for line in ("", *_as_text(each))))
    return int(
        any(not each.meant if isinstance(each, NoAnswer) else each.answer in REFUSED for each in found)
    )


def _kept(arguments: argparse.Namespace) -> list[RunRecord]:
    """Return the records of a folder."""
    if arguments.arguments:
        raise UsageError("--from runs nothing: leave the pytest arguments away")
    folder: Path = arguments.kept
    if not folder.is_dir():
        raise UsageError(f"--from={folder}: is no folder")
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise UsageError(f"--from={folder}: holds no record (*.json)")
    runs = _different(_decoded(paths), f"--from={folder}")
    _tell_of_commits(runs, f"--from={folder}")
    return runs


def _different(runs: Sequence[RunRecord], option: str) -> list[RunRecord]:
    """Return the runs, each once: twice the same one would be a machine without noise."""
    different = {run.id: run for run in runs}
    if copies := len(runs) - len(different):
        print(f"{option}: {copies} of {len(runs)} records left out: copies", file=sys.stderr)
    return list(different.values())


def _tell_of_commits(runs: Sequence[RunRecord], option: str) -> None:
    if len({(run.commit, run.dirty) for run in runs}) > 1:
        print(
            f"{option}: the runs are of different commits: what these differ by counts as noise",
            file=sys.stderr,
        )


_NUMBERED = re.compile(r"noise-(\d+)\.json")


def _decoded(paths: Iterable[Path]) -> list[RunRecord]:
    return [decode_run(path.read_bytes(), source=str(path)) for path in paths]


def _measured(arguments: argparse.Namespace) -> list[RunRecord]:
    """So many fresh processes of pytest, one after the other, with a line of progress each."""
    if arguments.runs < FEWEST_RUNS:
        raise UsageError(f"--runs={arguments.runs}: must be at least {FEWEST_RUNS}")
    # Judged here, not there: a child run compares with nothing, whatever its ini file names.
    child = ChildRun(Path.cwd(), child_arguments(arguments.arguments))
    runs: list[RunRecord] = []
    with ExitStack() as stack:
        if arguments.keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=scratch_prefix("noise"))))
        else:
            folder = _folder(arguments.keep)
        # What cannot be read is said before hours are spent, and no earlier record is written over.
        earlier = _different(_decoded(sorted(folder.glob("*.json"))), f"--keep={arguments.keep}")
        taken = [int(found[1]) for each in folder.iterdir() if (found := _NUMBERED.fullmatch(each.name))]
        for number in range(1, arguments.runs + 1):
            began = time.monotonic()
            path = folder / f"noise-{max(taken, default=0) + number:02}.json"
            record = child.run(path, f"run {number} of pytest {shlex.join(arguments.arguments)}".rstrip())
            if number == 1:
                _check(record, arguments.arguments)
                _tell_of_commits([*earlier, record], f"--keep={arguments.keep}")
            runs.append(record)
            print(
                f"[{number}/{arguments.runs}] {time.monotonic() - began:.0f} s: {_line(record)}",
                file=sys.stderr if arguments.json else sys.stdout,
                flush=True,
            )
        return [*earlier, *runs]


def _folder(path: Path) -> Path:
    if path.exists() and not path.is_dir():
        raise UsageError(f"--keep={path}: is no folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--keep={path}: cannot be made: {error.strerror}") from None
    return path.absolute()


def _check(record: RunRecord, arguments: Sequence[str]) -> None:
    """Nothing is repeated that measures nothing."""
    command = f"pytest {shlex.join(arguments)}".rstrip()
    if not record.measurements:
        raise UsageError(f"`{command}` runs no test that measures energy: nothing to repeat")
    if not any(one.comparable or one.variants for one in record.measurements):
        reasons = "; ".join(
            f"{short_test_name(one.test)}: {', '.join(one.reasons) or 'no reason is recorded'}"
            for one in record.measurements
        )
        raise TokenPowerError(f"the first run of `{command}` gave no valid measurement: {reasons}")


def _line(record: RunRecord) -> str:
    parts = []
    for one in record.measurements[:3]:
        name = figure_per(denominator(one.key))
        figure = one.figures.get(name)
        parts.append(
            f"{short_test_name(one.test)} {_shown(name, figure.value) if figure else 'not measured'}"
        )
    more = len(record.measurements) - len(parts)
    return ", ".join(parts) + (f" and {more} more" if more else "")


def _shown(figure: str, value: float) -> str:
    [text], unit = readable(unit_of(figure), value)
    return f"{text} {unit}"


def _as_text(found: MeasuredNoise | NoAnswer) -> Iterator[str]:
    if isinstance(found, NoAnswer):
        yield f"{found.test}: no answer: {found.why}"
        return
    honest = "" if found.provenance == "measured" else f"{found.provenance.upper()}, not measured: "
    yield f"{found.test}  ({honest}{found.method}; {found.runs} runs, {_shown(found.figure, found.value)})"
    yield _row("rounds", _rounds(found.raw, found.meter_error))
    if found.adjusted is None:
        yield _row("runs", f"{_spread(found.raw)}; {found.refusal}")
    else:
        yield _row("runs", f"{_spread(found.raw)}; at one GPU temperature {_spread(found.adjusted)}")
    if trend := _trend((found.adjusted or found.raw).run_drift, "run"):
        yield _row("", trend + (": NOT STEADY, warm the machine up" if found.unsteady else ""))
    yield from _parts(found.parts)
    others = f", one of {found.family} tests" if found.family > 1 else ""
    yield _row(
        "can hold",
        f"{_limit(found.holds)} (with 95 % confidence {_limit(found.holds_surely)}) against "
        f"{found.baseline_runs} stored runs{others}; noise floor {_limit(found.noise_floor)}",
    )
    judged = found.judged
    low, high = (100 * share for share in judged.false_failure_interval)
    rest = ", ".join(f"{count} {kind}" for kind, count in judged.kinds.items() if kind != "regressed")
    yield _row(
        f"limit {100 * found.limit:.3g} %",
        f"{_SAID[found.answer]}; {judged.false_failures} of {judged.runs} runs failed against "
        f"{judged.baseline_runs} others (95 %: {low:.0f} to {high:.0f} %){f'; {rest}' if rest else ''}",
    )
    for why in found.left_out:
        yield _row("left out", why)


def _rounds(noise: RunNoise, meter_error: float) -> str:
    parts = []
    if noise.round_sd is not None:
        parts.append(f"SD {_percent(noise.round_sd)}")
    if noise.lag1 is not None:
        parts.append(f"lag-1 {noise.lag1:.2f}")
    if trend := _trend(noise.round_drift, "round"):
        parts.append(trend)
    parts.append(f"the meter's own error {_percent(meter_error)}")
    return ", ".join(parts)


def _parts(parts: NoiseParts) -> Iterator[str]:
    """Return what occasions, pace and boards make of the noise, as far as these runs tell."""
    if parts.occasions < FEWEST_RUNS:
        yield _row(
            "occasions",
            f"{plural(parts.occasions, 'occasion')}: what another day brings is not in these figures; "
            "--keep=FOLDER again on other days tells",
        )
    elif parts.total is not None:
        within = f", within one {_percent(parts.within.sd)}" if parts.within is not None else ""
        yield _row(
            "occasions", f"{parts.occasions}: SD {_percent(parts.total.sd)} from one to the next{within}"
        )
    if parts.work is not None and parts.total is not None:
        yield _row("pace", f"at one pace SD {_percent(parts.work.sd)}")
    if parts.boards is not None:
        yield _row("boards", f"{parts.boards.df + 1}: SD {_percent(parts.boards.sd)} between them")


def _spread(noise: RunNoise) -> str:
    runs = noise.runs
    return f"SD {_percent(runs.sd)} (95 %: {_percent(runs.low).removesuffix(' %')} to {_percent(runs.high)})"


def _trend(trend: Trend | None, unit: str) -> str:
    if trend is None:
        return ""
    return f"drift {round(100 * trend.slope, 2) + 0.0:+.2f} ± {100 * trend.stderr:.2f} % a {unit}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.095 else f"{100 * share:.0f} %"


def _limit(share: float) -> str:
    """Two digits, rounded up: a limit that is set as it is written holds."""
    step = 10.0 ** (math.floor(math.log10(100 * share)) - 1)
    return f"{math.ceil(100 * share / step - 1e-9) * step:.3g} %"


def _row(head: str, text: str) -> str:
    return f"  {head:<11} {text}"


def _as_json(found: MeasuredNoise | NoAnswer) -> dict[str, Any]:

    fields = asdict(found)
    if isinstance(found, NoAnswer):
        return fields
    for name in ("raw", "adjusted"):
        noise: RunNoise | None = getattr(found, name)
        if noise is not None:
            fields[name]["runs"] |= {"low": noise.runs.low, "high": noise.runs.high}
    fields["judged"] |= {
        "runs": found.judged.runs,
        "false_failures": found.judged.false_failures,
        "false_failure_interval": found.judged.false_failure_interval,
    }
    return fields | {"answer": found.answer}
