"""`tokenpower bless`: accept the energy of a commit, so that its level becomes the baseline."""

from __future__ import annotations

import argparse
import getpass
import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_tokenpower.cli.store_access import add_storage
from pytest_tokenpower.core.records import MeasurementRecord
from pytest_tokenpower.core.settings import DEFAULT_REGRESSION
from pytest_tokenpower.errors import HistoryError, StoreError, UsageError
from pytest_tokenpower.gate.verdict import Policy, against_baseline, judge
from pytest_tokenpower.store.access import StoreContext, choose_test
from pytest_tokenpower.store.baseline import ComparableRuns
from pytest_tokenpower.store.blessings import Accepted, new_blessing, read_blessings, write_blessing
from pytest_tokenpower.store.git import Repository, default_branch, first_parent_history, merged_by, run_git
from pytest_tokenpower.store.keys import differences
from pytest_tokenpower.store.store import COMMIT_LENGTH, StoredFile

_MOST_RUNS = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which commit, which tests, and why."""
    parser.add_argument("commit", metavar="COMMIT", help="the commit that brought the new level")
    parser.add_argument(
        "--test",
        metavar="TEST",
        action="append",
        default=[],
        help="a test's id, or a part of it that fits no other; may be given again "
        "(default: every test whose level moved at the commit)",
    )
    parser.add_argument("--reason", metavar="TEXT", required=True, help="why the new level is accepted")
    add_storage(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the blessing and say what it changes; raises a TokenPowerError where there is nothing to bless."""
    reason = " ".join(arguments.reason.split())
    if not reason:
        raise UsageError("--reason is empty: say why the new level is accepted; the next reader will ask")
    place = StoreContext.of(arguments)
    repository = place.needs_repository()
    line = _line_with(repository, repository.resolve(arguments.commit).commit)
    stored = _FirstParentHistory(place, line)
    tests = stored.tests(arguments.test)
    later = {test: stored.later_runs(test) for test in tests}
    blessing = new_blessing(
        line.commits[line.position],
        tests,
        reason,
        _author(repository),
        {test: [each.run_id for each in runs if each.accepted] for test, runs in later.items()},
    )
    write_blessing(place.store.path, blessing)
    print(
        f"Blessed {blessing.commit[:10]} for {_count(len(tests), 'test')}: its level is the baseline from here on."
    )
    for test in tests:
        print(f"  {test}")
        for each in later[test]:
            if not each.accepted:
                print(f"    run {each.run_id[:8]} of {each.commit[:7]} stays out: {each.why}")
        counted = sum(each.accepted for each in later[test])
        if counted:
            print(f"    counts with it: {_count(counted, 'later run')} of the same level")
    return 0


@dataclass(frozen=True)
class _Branch:
    """A first-parent line (newest first) and the place of the blessed commit on it."""

    name: str
    commits: tuple[str, ...]
    position: int


def _line_with(repository: Repository, commit: str) -> _Branch:
    if repository.is_shallow:
        raise HistoryError(
            f"{repository.top_level} is a shallow clone: its history is cut off; run git fetch --unshallow"
        )
    main = default_branch(repository)
    lines = []
    if main is not None:
        lines.append((main.name, first_parent_history(repository, main.commit)))
    if repository.head is not None:
        lines.append((repository.branch or "HEAD", first_parent_history(repository, repository.head)))
    for name, commits in lines:
        if commit in commits:
            return _Branch(name, commits, commits.index(commit))
    for name, commits in lines[:1]:
        brought = merged_by(repository, commit, set(commits), commits[0])
        if brought is not None:
            raise UsageError(
                f"{commit[:7]} came to {name} with {brought[:7]}, where the runs of {name} are: bless {brought[:7]}"
            )
    names = " or ".join(dict.fromkeys(name for name, _ in lines))
    raise UsageError(
        f"{commit[:7]} is not on the first-parent history of {names}: a blessing is given to what was merged"
    )


@dataclass(frozen=True)
class _Later:
    """A run after the blessed commit that had regressed; ``why`` it is not of the blessed level, empty if it is."""

    run_id: str
    commit: str
    why: str

    @property
    def accepted(self) -> bool:
        """Whether it counts with the blessed level."""
        return not self.why


class _FirstParentHistory:
    """The clean runs on the line of the blessed commit."""

    def __init__(self, place: StoreContext, line: _Branch) -> None:
        self._store = place.store
        self._line = line
        self._accepted = Accepted(read_blessings(place.store.path), line.commits)
        positions = {commit[:COMMIT_LENGTH]: at for at, commit in enumerate(line.commits)}
        clean = [entry for entry in place.entries() if entry.state == "clean" and entry.commit in positions]
        clean.sort(key=lambda entry: positions[entry.commit or ""])
        commit = line.commits[line.position][:COMMIT_LENGTH]
        self._here = [entry for entry in clean if entry.commit == commit]
        self._after = [entry for entry in clean if positions[entry.commit or ""] < line.position][
            -_MOST_RUNS:
        ]
        self._clean = clean
        if not self._here:
            raise UsageError(
                f"no clean run of {commit[:7]} is stored, so there is no level to bless; {self._candidates()}"
            )

    def tests(self, wanted: Sequence[str]) -> list[str]:
        """The tests to bless: those named, or those whose level moved at the commit; raises UsageError."""
        moved: dict[str, None] = {}
        known: dict[str, None] = {}
        for entry in self._here:
            for test, measured in self._measurements(entry).items():
                known[test] = None
                verdict = against_baseline(measured.verdicts)
                if self._accepted.regressed(measured.verdicts) or (verdict and verdict.kind == "improved"):
                    moved[test] = None
        if wanted:
            return list(dict.fromkeys(choose_test(text, known) for text in wanted))
        if not moved:
            commit = self._line.commits[self._line.position]
            raise UsageError(
                f"no test regressed or improved in the runs of {commit[:7]}, so its level is the baseline already; "
                f"{self._candidates()}. Name a test with --test to let its baseline begin there all the same"
            )
        return list(moved)

    def later_runs(self, test: str) -> list[_Later]:
        """The later runs of a test that regressed against the old level, each judged against the new one."""
        here = [measured for entry in self._here if (measured := self._one(entry, test)) is not None]
        later = []
        for entry in self._after:
            measured = self._one(entry, test)
            if measured is None or not self._accepted.regressed(measured.verdicts):
                continue
            level = [one for one in here if not differences(one.key, measured.key)]
            before = against_baseline(measured.verdicts)
            limit = (before.threshold if before else None) or DEFAULT_REGRESSION
            contents = self._store.contents(entry)
            verdict = judge(
                measured,
                ComparableRuns("the blessed level", tuple(level), tuple(map(str, range(len(level))))),
                Policy(limit),
            )
            why = ""
            if not level:
                why = "its machine or another part of its key has no run at this level"
            elif _worse(verdict.kind, verdict.change, limit):
                why = "it regressed against this level too"
            later.append(_Later(contents.run_id, contents.commit or "", why))
        return later

    def _measurements(self, entry: StoredFile) -> dict[str, MeasurementRecord]:
        try:
            tests = self._store.contents(entry).measurements
        except StoreError:
            return {}
        return {test: measured for test in tests if (measured := self._one(entry, test)) is not None}

    def _one(self, entry: StoredFile, test: str) -> MeasurementRecord | None:
        """The comparable measurement of a test in a run, if it has one."""
        try:
            inside = self._store.contents(entry).measurements.get(test)
            return self._store.measurement(entry, test) if inside and inside.comparable else None
        except StoreError:
            return None

    def _candidates(self) -> str:
        """The oldest commits of the newest runs that regressed and are not blessed."""
        found: dict[str, None] = {}
        for entry in self._clean[:50]:
            for test, measured in self._measurements(entry).items():
                run_id = self._store.contents(entry).run_id
                if not self._accepted.counts(test, measured.verdicts, run_id, entry.commit):
                    found[(entry.commit or "")[:7]] = None
        if not found:
            return f"no newer run on {self._line.name} regressed"
        return f"commits of {self._line.name} with runs that regressed: {', '.join(reversed(found))}"


def _worse(kind: str, change: float | None, limit: float) -> bool:
    # An undecided run beyond the limit is no proof of the same level.
    return kind == "regressed" or (
        kind == "inconclusive" and change is not None and math.log1p(change) > math.log1p(limit)
    )


def _author(repository: Repository) -> str:
    found = run_git(repository.top_level, "var", "GIT_AUTHOR_IDENT")
    if found.code == 0 and ">" in found.line:
        return found.line[: found.line.index(">") + 1]
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
