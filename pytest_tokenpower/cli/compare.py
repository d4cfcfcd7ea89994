"""`tokenpower compare`: two stored states, test by test, by the rule of the gate; the exit code is the answer."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_tokenpower.baselines.resolve import Baseline
from pytest_tokenpower.baselines.store import Store
from pytest_tokenpower.cli.access import RUN_HELP, Place, add_storage
from pytest_tokenpower.errors import StoreError, UsageError
from pytest_tokenpower.record import MeasurementRecord
from pytest_tokenpower.settings import DEFAULT_BASELINE_RUNS, DEFAULT_REGRESSION

FAIL_ON = ("regressed", "inconclusive", "missing", "nothing")
"""What may make the exit code 1; ``missing``: a test of A that B does not hold, or holds under another key."""

EPILOG = f"""\
A and B are each {RUN_HELP}.
A ref stands, as A, for its newest clean runs along its first-parent history, as the baseline of a build does, and
as B for the newest run of its own commit.

exit codes: 0, or 1 for what --fail-on names, or 4 for a mistake in the arguments
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two sides, the limit, and what makes the command fail."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("baseline", metavar="A", help="what is compared with")
    parser.add_argument("candidate", metavar="B", help="what is judged")
    parser.add_argument(
        "--fail-on",
        metavar="KINDS",
        default="regressed",
        help=f"what gives exit code 1, separated by commas: {', '.join(FAIL_ON)} (default: regressed)",
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
        default=[],
        help="a key field that may differ, as in energy_key_ignore; may be given again",
    )
    parser.add_argument(
        "--baseline-runs",
        metavar="N",
        type=int,
        default=DEFAULT_BASELINE_RUNS,
        help=f"how many runs of A count, newest first (default: {DEFAULT_BASELINE_RUNS})",
    )
    add_storage(parser)


@dataclass(frozen=True)
class Compared:
    """The tests of B with their verdicts against A, and the tests that only one side holds."""

    measurements: tuple[MeasurementRecord, ...]
    only_baseline: tuple[str, ...]
    only_candidate: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def kinds(self) -> Counter[str]:
        """How often each verdict was given; ``missing`` for what could not be compared."""
        found = Counter(verdict.kind for measured in self.measurements for verdict in measured.verdicts)
        found["missing"] = len(self.only_baseline) + found.pop("no baseline", 0)
        return found


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison; 1 where it shows what --fail-on names."""
    fail_on = _fail_on(arguments.fail_on)
    threshold = _threshold(arguments.regression)
    if arguments.baseline_runs < 1:
        raise UsageError(f"--baseline-runs={arguments.baseline_runs}: must be at least 1")
    place = Place.of(arguments)
    baseline = place.runs(arguments.baseline, arguments.baseline_runs)
    candidate = place.runs(arguments.candidate, commit_only=True)
    found = compare(baseline, candidate, threshold, tuple(arguments.key_ignore))
    for line in as_text(found, baseline, candidate):
        print(line)
    kinds = found.kinds()
    return int(any(kinds[kind] for kind in fail_on))


def compare(
    baseline: Baseline, candidate: Baseline, threshold: float | None, ignore: Sequence[str] = ()
) -> Compared:
    """Judge the newest valid measurement of each test of ``candidate``; raises UsageError where no test is in both."""
    import msgspec

    from pytest_tokenpower.verdict import StoredRuns, against_baseline, judge_baseline

    ours, theirs = _newest(candidate), _tests(baseline)
    judged, notes = [], []
    for test, (run_id, measured) in ours.items():
        if test not in theirs:
            continue
        found = baseline.find(test, measured.key, ignore, existing=ours)
        # A run is never its own baseline.
        runs = [each for each in found.runs if each.run_id != run_id]
        why = found.why or "the only run there is the one that is compared"
        before = against_baseline(measured.verdicts)
        limit = threshold or (before.threshold if before else None) or DEFAULT_REGRESSION
        stored = StoredRuns(
            baseline.label,
            tuple(each.measurement for each in runs),
            tuple(each.run_id for each in runs),
            why,
        )
        judged.append(msgspec.structs.replace(measured, verdicts=(judge_baseline(measured, stored, limit),)))
        if found.note:
            notes.append(f"{test}: {found.note}")
    if not judged:
        raise UsageError(
            f"no test is in both {baseline.label} ({_count(len(theirs), 'test')}) and "
            f"{candidate.label} ({_count(len(ours), 'valid test')})"
        )
    return Compared(
        tuple(judged),
        tuple(sorted(theirs - ours.keys())),
        tuple(sorted(ours.keys() - theirs)),
        tuple(notes),
    )


def _newest(side: Baseline) -> dict[str, tuple[str, MeasurementRecord]]:
    """The newest comparable measurement of each test, with the id of its run."""
    found: dict[str, tuple[str, MeasurementRecord]] = {}
    for entry in side.entries:
        try:
            contents = side.store.contents(entry)
            for test, inside in contents.measurements.items():
                if inside.comparable and test not in found:
                    found[test] = (contents.run_id, side.store.measurement(entry, test))
        except StoreError:
            continue  # Named in store.problems.
    return found


def _tests(side: Baseline) -> set[str]:
    """The tests of the newest readable runs, as many as could make a baseline."""
    tests: set[str] = set()
    for entry in side.entries[: 4 * side.limit_runs]:
        try:
            tests.update(side.store.contents(entry).measurements)
        except StoreError:
            continue  # Named in store.problems.
    return tests


def as_text(found: Compared, baseline: Baseline, candidate: Baseline) -> list[str]:
    """The table, what each verdict rests on, and what could not be compared."""
    from pytest_tokenpower.reports.terminal import table
    from pytest_tokenpower.verdict import FAILING

    entries = candidate.entries
    lines = [
        f"{candidate.label} ({_count(len(entries), 'run')}, the newest counts) against {baseline.label} "
        f"({len(baseline.entries)} stored)",
        "",
        *(line for line, _ in table(found.measurements)),
        "",
    ]
    for measured in found.measurements:
        for verdict in measured.verdicts:
            if verdict.kind == "passed" and not verdict.provisional:
                continue
            word = verdict.kind.upper() if verdict.kind in FAILING else verdict.kind
            lines += [f"{measured.test.rpartition('::')[2]}: {word}: {verdict.message}", ""]
    lines += found.notes
    for tests, side in (
        (found.only_baseline, baseline.label),
        (found.only_candidate, candidate.label),
    ):
        if tests:
            listed = ", ".join(tests[:5]) + (f" and {len(tests) - 5} more" if len(tests) > 5 else "")
            lines.append(f"Only in {side}: {listed}")
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


def _threshold(text: str | None) -> float | None:
    if text is None:
        return None
    number = text.strip()
    try:
        share = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 10 or (share >= 1 and not number.endswith("%")):
        raise UsageError(f"--regression={text}: must be a share such as 3% or 0.03")
    return share


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
