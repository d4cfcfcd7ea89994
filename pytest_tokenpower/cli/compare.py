"""`tokenpower compare`: two stored states, test by test, by the rule of the gate; the exit code is the answer."""

from __future__ import annotations

import argparse
from shutil import get_terminal_size

from pytest_tokenpower.cli import compare_service
from pytest_tokenpower.cli.store_access import add_storage
from pytest_tokenpower.core.settings import DEFAULT_BASELINE_RUNS, DEFAULT_REGRESSION, fraction
from pytest_tokenpower.core.text import listed, plural
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.gate.compare import Compared, compare
from pytest_tokenpower.gate.messages import message
from pytest_tokenpower.reporting.columns import Layout, table
from pytest_tokenpower.store.access import RUN_HELP, StoreContext
from pytest_tokenpower.store.baseline import Baseline
from pytest_tokenpower.store.store import Store

FAIL_ON = ("regressed", "invalid", "inconclusive", "missing", "nothing")
"""What may make the exit code 1; ``missing``: a test of A that B does not hold, or holds under another key."""

DEFAULT_FAIL_ON = "regressed,invalid"
"""What fails a test in the gate."""

EPILOG = f"""\
A and B are each {RUN_HELP}.
A ref stands, as A, for its newest clean runs along its first-parent history, as the baseline of a build does, and
as B for all runs of its own commit, taken together. B may also be a service: prometheus:URL.

exit codes: 0, or 1 for what --fail-on names, or 4 for a mistake in the arguments
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the two sides, the limit, and what makes the command fail."""
    parser.epilog = EPILOG
    parser.add_argument("baseline", metavar="A", help="what is compared with")
    parser.add_argument("candidate", metavar="B", help="what is judged")
    parser.add_argument(
        "--fail-on",
        metavar="KINDS",
        help=f"what gives exit code 1, separated by commas: {', '.join(FAIL_ON)} (default: {DEFAULT_FAIL_ON})",
    )
    parser.add_argument(
        "--regression",
        metavar="SHARE",
        help="how much more energy per token is a regression, such as 2%% (default: the limit that each test of B "
        f"was judged by, or {100 * DEFAULT_REGRESSION:g}%%)",
    )
    parser.add_argument(
        "--key-ignore",
        metavar="FIELD",
        action="append",
        help="a key field that may differ, as in energy_key_ignore; may be given again",
    )
    parser.add_argument(
        "--baseline-runs",
        metavar="N",
        type=int,
        default=DEFAULT_BASELINE_RUNS,
        help=f"how many runs of A count, newest first (default: {DEFAULT_BASELINE_RUNS})",
    )
    compare_service.add_arguments(parser)
    add_storage(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison; 1 where it shows what --fail-on names."""
    fail_on = _fail_on(arguments.fail_on or DEFAULT_FAIL_ON)
    threshold = None if arguments.regression is None else fraction("--regression", arguments.regression)
    if arguments.baseline_runs < 1:
        raise UsageError(f"--baseline-runs={arguments.baseline_runs}: must be at least 1")
    service = arguments.candidate.startswith(compare_service.PREFIX)
    for name in ("fail_on", "regression", "key_ignore") if service else compare_service.OPTIONS:
        if getattr(arguments, name) is not None:
            why = "a service, which is not judged" if service else "no service (prometheus:URL)"
            raise UsageError(f"--{name.replace('_', '-')} says nothing here, as B is {why}: leave it away")
    if service:
        return compare_service.run(arguments)
    place = StoreContext.of(arguments)
    baseline = place.runs(arguments.baseline, arguments.baseline_runs)
    candidate = place.runs(arguments.candidate, commit_only=True)
    found = compare(baseline, candidate, threshold, tuple(arguments.key_ignore or ()))
    for line in as_text(found, baseline, candidate):
        print(line)
    kinds = found.kinds()
    return int(any(kinds[kind] for kind in fail_on))


def as_text(found: Compared, baseline: Baseline, candidate: Baseline) -> list[str]:
    """Return the table, what each verdict rests on, and what could not be compared."""
    entries, stored = candidate.entries, len(baseline.entries)
    newest = f"the newest {baseline.limit_runs} of " if stored > baseline.limit_runs else ""
    lines = [
        f"{candidate.label} ({plural(len(entries), 'run')}) against {baseline.label} "
        f"({newest}{plural(stored, 'run')})",
        "",
        *(line for line, _ in table(found.measurements, Layout(), get_terminal_size().columns)),
        "",
    ]
    for measured in found.measurements:
        for verdict in measured.verdicts:
            if verdict.kind == "passed" and not verdict.provisional:
                continue
            lines += [message(verdict, measured.test), ""]
    for tests, side in (
        (found.only_baseline, baseline.label),
        (found.only_candidate, candidate.label),
    ):
        if tests:
            lines.append(f"Only in {side}: {listed(tests, 5)}")
    stores: list[Store] = [baseline.store] + ([candidate.store] * (candidate.store is not baseline.store))
    for store in stores:
        lines += [f"Skipped: {problem.path}: {problem.reason}" for problem in store.problems[:5]]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _fail_on(text: str) -> frozenset[str]:
    kinds = [kind.strip() for kind in text.split(",") if kind.strip()]
    unknown = [kind for kind in kinds if kind not in FAIL_ON]
    if unknown or not kinds or ("nothing" in kinds and len(kinds) > 1):
        raise UsageError(f"--fail-on={text}: must be {', '.join(FAIL_ON[:-1])} (one or more), or nothing")
    return frozenset(kinds) - {"nothing"}
