"""`tokenpower compare`: two stored states, test by test, by the rule of the gate; the exit code is the answer."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_tokenpower.baselines.histories import histories
from pytest_tokenpower.baselines.key import differences
from pytest_tokenpower.baselines.resolve import Baseline
from pytest_tokenpower.baselines.store import Store
from pytest_tokenpower.cli.access import RUN_HELP, Place, add_storage
from pytest_tokenpower.errors import StoreError, UsageError
from pytest_tokenpower.measurement import log_joules_per_token
from pytest_tokenpower.record import MeasurementRecord
from pytest_tokenpower.settings import DEFAULT_BASELINE_RUNS, DEFAULT_REGRESSION

if TYPE_CHECKING:
    from pytest_tokenpower.stats.prior import Prior

FAIL_ON = ("regressed", "inconclusive", "missing", "nothing")
"""What may make the exit code 1; ``missing``: a test of A that B does not hold, or holds under another key."""

_MOST_RUNS = 20

EPILOG = f"""\
A and B are each {RUN_HELP}.
A ref stands, as A, for its newest clean runs along its first-parent history, as the baseline of a build does, and
as B for all runs of its own commit, taken together.

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
    """Judge each test of ``candidate``, all its comparable runs together; raises UsageError where no test is in both.

    The rule is the gate's: the moderated t on runs, its prior learned from the baseline's other tests, Holm over all
    tests that are compared.
    """
    import msgspec

    from pytest_tokenpower.verdict import StoredRuns, against_baseline, judge_baseline, settle

    ours, theirs = _runs(candidate), _tests(baseline)
    both = [test for test in ours if test in theirs]
    if not both:
        raise UsageError(
            f"no test is in both {baseline.label} ({_count(len(theirs), 'test')}) and "
            f"{candidate.label} ({_count(len(ours), 'valid test')})"
        )
    priors: dict[str, dict[str, Prior]] = {}
    judged, notes = [], []
    for test in both:
        run_ids, (measured, *restarts) = ours[test]
        found = baseline.find(test, measured.key, ignore, existing=ours)
        # A run is never its own baseline.
        runs = [each for each in found.runs if each.run_id not in run_ids]
        before = against_baseline(measured.verdicts)
        limit = threshold or (before.threshold if before else None) or DEFAULT_REGRESSION
        stored = StoredRuns(
            baseline.label,
            tuple(each.measurement for each in runs),
            tuple(each.run_id for each in runs),
            found.why or "the only runs there are those that are compared",
        )
        prior = _prior(baseline, measured, priors)
        verdict = judge_baseline(measured, stored, limit, prior, family=len(both), restarts=restarts)
        judged.append(msgspec.structs.replace(measured, verdicts=(verdict,)))
        if found.note:
            notes.append(f"{test}: {found.note}")
    settled = settle(judged)
    return Compared(
        tuple(
            msgspec.structs.replace(
                each, verdicts=tuple(settled.get((each.test, v.against), v) for v in each.verdicts)
            )
            for each in judged
        ),
        tuple(sorted(theirs - ours.keys())),
        tuple(sorted(ours.keys() - theirs)),
        tuple(notes),
    )


def _runs(side: Baseline) -> dict[str, tuple[list[str], list[MeasurementRecord]]]:
    """The comparable measurements of each test under its newest key, newest first, with the ids of their runs."""
    found: dict[str, tuple[list[str], list[MeasurementRecord]]] = {}
    for entry in side.entries[:_MOST_RUNS]:
        try:
            contents = side.store.contents(entry)
            for test, inside in contents.measurements.items():
                ids, measured = found.get(test, ([], []))
                if inside.comparable and (not measured or not differences(measured[0].key, inside.key)):
                    measured.append(side.store.measurement(entry, test))
                    ids.append(contents.run_id)
                    found[test] = ids, measured
        except StoreError:
            continue  # Named in store.problems.
    return found


def _prior(baseline: Baseline, measured: MeasurementRecord, known: dict[str, dict[str, Prior]]) -> Prior:
    """What is believed of a test's noise, learned from the baseline's other tests on the same kind of machine."""
    from pytest_tokenpower.stats.prior import DEFAULT_PRIOR, learn_priors
    from pytest_tokenpower.stats.runs import summarise_runs

    machine = repr([measured.key.get(name) for name in ("provenance", "scope", "gpu.name", "cpu.name")])
    if machine not in known:
        runs = {
            test: summarise_runs([log_joules_per_token(run.rounds) for run in each])
            for test, each in histories(baseline, measured.key).items()
            if len(each) > 1
        }
        known[machine] = learn_priors({test: runs.get(test, []) for test in (*runs, "")})
    learned = known[machine]
    return learned.get(measured.test, learned.get("", DEFAULT_PRIOR))


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
        f"{candidate.label} ({_count(len(entries), 'run')}) against {baseline.label} "
        f"(the newest {baseline.limit_runs} of {len(baseline.entries)})",
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
