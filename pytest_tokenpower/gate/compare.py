"""Two stored runs, judged test by test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import msgspec

from pytest_tokenpower.core.records import MeasurementRecord
from pytest_tokenpower.core.settings import DEFAULT_REGRESSION
from pytest_tokenpower.core.text import plural
from pytest_tokenpower.errors import StoreError, UsageError
from pytest_tokenpower.gate.evidence import Boards
from pytest_tokenpower.gate.priors import Priors
from pytest_tokenpower.gate.verdict import Policy, judge, settle
from pytest_tokenpower.store.baseline import Baseline
from pytest_tokenpower.store.calibrations import read_calibrations
from pytest_tokenpower.store.keys import differences
from pytest_tokenpower.store.renames import EarlierNames
from pytest_tokenpower.store.store import Contents

_MOST_RUNS = 20


@dataclass(frozen=True)
class Compared:
    """The tests of B with their verdicts against A, and the tests that only one side holds."""

    measurements: tuple[MeasurementRecord, ...]
    only_baseline: tuple[str, ...]
    only_candidate: tuple[str, ...]

    def kinds(self) -> Counter[str]:
        """How often each verdict was given; ``missing`` for what could not be compared."""
        found = Counter(verdict.kind for measured in self.measurements for verdict in measured.verdicts)
        found["missing"] = len(self.only_baseline) + found.pop("no baseline", 0)
        return found


def compare(
    baseline: Baseline, candidate: Baseline, threshold: float | None, ignore: Sequence[str] = ()
) -> Compared:
    """Judge each test of ``candidate``, all its comparable runs together; raises UsageError where no test is in both.

    The rule is the gate's: what a test was called before is its own, its noise is learned from the baseline's other
    tests, Holm over all tests that are compared.
    """
    ours, there = measurements_of(candidate), _newest(baseline)
    repository = candidate.repository or baseline.repository
    tip = candidate.tip or next((each.commit for each in _newest(candidate)), None)
    names = EarlierNames.read(repository, tip)
    baseline = replace(baseline, names=names)
    called = {
        test: {name for each in there if (name := names.held(each.commit, test, each.measurements))}
        for test in ours
    }
    theirs = {test for each in there for test in each.measurements}
    both = [test for test in ours if called[test]]
    if not both:
        raise UsageError(
            f"no test is in both {baseline.label} ({plural(len(theirs), 'test')}) and "
            f"{candidate.label} ({plural(len(ours), 'valid test')})"
            + "".join(dict.fromkeys((baseline.store.left_out, candidate.store.left_out)))
        )
    priors = Priors()
    stores = {side.store.path: side.store for side in (candidate, baseline)}.values()
    boards = Boards.of(one for store in stores for one in read_calibrations(store))
    judged = []
    for test in both:
        run_ids, (measured, *restarts) = ours[test]
        policy = Policy(
            threshold or (measured.gate.regression if measured.gate else None) or DEFAULT_REGRESSION,
            tuple(ignore),
            len(both),
            priors=priors,
            boards=boards,
            # A run is never its own baseline.
            left_out=frozenset(run_ids),
        )
        verdict = judge(measured, baseline, policy, restarts=restarts)
        judged.append(msgspec.structs.replace(measured, verdicts=(verdict,)))
    settled = settle(judged)
    return Compared(
        tuple(
            msgspec.structs.replace(
                each, verdicts=tuple(settled.get((each.test, v.against), v) for v in each.verdicts)
            )
            for each in judged
        ),
        tuple(sorted(theirs.difference(ours, *called.values()))),
        tuple(sorted(ours.keys() - both)),
    )


def measurements_of(side: Baseline) -> dict[str, tuple[list[str], list[MeasurementRecord]]]:
    """Return each test's comparable measurements under its newest key, newest first, with their runs' ids."""
    found: dict[str, tuple[list[str], list[MeasurementRecord]]] = {}
    for entry in side.entries[:_MOST_RUNS]:
        try:
            contents = side.store.contents(entry)
            for test, inside in contents.measurements.items():
                ids, measured = found.get(test, ([], []))
                if inside.comparable and (not measured or not differences(measured[0].key, inside.key)):
                    measured.append(side.store.dated(entry, test))
                    ids.append(contents.run_id)
                    found[test] = ids, measured
        except StoreError:
            continue  # Named in store.problems.
    return found


def _newest(side: Baseline) -> list[Contents]:
    """Return what the newest readable runs hold, of as many as could make a baseline."""
    found = []
    for entry in side.entries[: 4 * side.limit_runs]:
        with suppress(StoreError):  # Named in store.problems.
            found.append(side.store.contents(entry))
    return found
