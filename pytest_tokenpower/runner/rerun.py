"""`--energy-rerun-baseline`: the baseline's commit and this one measured in turn, in fresh processes, A B B A.

No stored history is needed. The baseline's commit is checked out in a git worktree in a temporary folder, which is
taken away again, also when the run is interrupted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from pytest_tokenpower.core.files import scratch_prefix
from pytest_tokenpower.core.records import MeasurementRecord, RunRecord, VerdictRecord
from pytest_tokenpower.errors import HistoryError, TokenPowerError
from pytest_tokenpower.gate.operating_point import unlikeness
from pytest_tokenpower.gate.verdict import Policy, judge, judge_ceilings
from pytest_tokenpower.runner.child import ChildRun, child_arguments
from pytest_tokenpower.runner.requirements import Differing, differing_requirements
from pytest_tokenpower.runner.sources import import_roots
from pytest_tokenpower.store.acceptances import Acceptances
from pytest_tokenpower.store.baseline import ComparableRuns
from pytest_tokenpower.store.git import Repository, changed_files, check_out_submodules, run_git
from pytest_tokenpower.store.identity import repository_test
from pytest_tokenpower.store.keys import LENGTHS
from pytest_tokenpower.store.renames import EarlierNames

ORDER = ("baseline", "candidate", "candidate", "baseline")


@dataclass(frozen=True)
class Rerun:
    """The runs of both sides, in the order in which they ran, and what the baseline is called.

    ``commit`` is the baseline's; ``accepted`` says how far tests may rise over it, by their names from the top level,
    ``root`` being pytest's root directory from there. ``note`` tells what the comparison cannot see.
    """

    label: str
    baseline: tuple[RunRecord, ...]
    candidate: tuple[RunRecord, ...]
    commit: str = ""
    accepted: Acceptances = field(default_factory=Acceptances)
    root: str | None = None
    note: str = ""
    names: EarlierNames = field(default_factory=EarlierNames)

    def judge(self, test: str, policy: Policy, ceilings: Mapping[str, float]) -> MeasurementRecord | None:
        """Judge the candidate's first run of a test over all runs; None where it measured nothing.

        A test that compares two variants itself has no baseline: what its first run found stands.
        """
        baseline, candidate = self.of_test(test)
        if not candidate:
            return None
        first = candidate[0]
        if spoilt := self._spoilt(test, candidate):
            return replace(
                first,
                verdicts=(VerdictRecord("invalid", reason=f"measured in a process of its own: {spoilt}"),),
            )
        if first.variants:
            return first
        # All alternate, so that both sides share their occasion, however long it takes.
        first, *again = alternating = [_together(one, first) for one in candidate]
        stored = self._stored(
            test, alternating, [_together(one, first) for one in baseline], policy.key_ignore
        )
        verdict = judge(first, stored, policy, restarts=again)
        return replace(
            first,
            verdicts=(*judge_ceilings(first, ceilings, policy), verdict),
            restarts=tuple(one.rounds for one in again),
        )

    def failure(self, test: str) -> str:
        """Return what a test failed with on the candidate's side, other than by a verdict; empty where it did not."""
        return failures_of(self.candidate, test)

    def _stored(
        self,
        test: str,
        candidate: Sequence[MeasurementRecord],
        baseline: Sequence[MeasurementRecord],
        ignore: Sequence[str],
    ) -> ComparableRuns:
        """Return the baseline's runs of a test that all the candidate's compare with, or why there are none."""
        first, name = candidate[0], repository_test(self.root, test)
        for again in candidate[1:]:
            if unlike := unlikeness(first, again, ignore):
                return ComparableRuns(
                    self.label, (), why=f"two runs of the same code are not comparable: {unlike}"
                )
        held = [(one, unlikeness(first, one, (*ignore, *LENGTHS))) for one in baseline if one.comparable]
        alike = tuple(one for one, unlike in held if not unlike)
        if not baseline:
            why = "its commit has no such test"
        elif held:
            why = f"not comparable, {held[0][1]}"
        else:
            why = "its run of this test failed or was invalid"
        if failed := failures_of(self.baseline, test):
            why = f"its run of this test failed: {failed}"
        fewer = (
            f"Only {len(alike)} of {len(self.baseline)} runs of {self.label} could be used: what the machine drifts by "
            "from run to run is in the difference."
        )
        return ComparableRuns(
            self.label,
            alike,
            tuple(f"rerun-{at + 1}" for at in range(len(alike))),
            why,
            " ".join(filter(None, (fewer if len(alike) < len(self.baseline) else "", self.note))),
            acceptance=self.accepted.allowance(self.commit, name),
            test=name,
        )

    def _spoilt(self, test: str, candidate: Sequence[MeasurementRecord]) -> str:
        """Why the candidate's runs of a test cannot be judged; empty where they can."""
        if failed := self.failure(test):
            return f"it failed: {failed}"
        reasons = [reason for one in candidate for reason in one.reasons]
        if len(candidate) < len(self.candidate):
            reasons.append(f"only {len(candidate)} of {len(self.candidate)} runs measured it")
        return "; ".join(dict.fromkeys(reasons))

    def of_test(self, test: str) -> tuple[tuple[MeasurementRecord, ...], tuple[MeasurementRecord, ...]]:
        """Return the measurements of one test on both sides; a side without it is empty."""
        identity = repository_test(self.root, test)
        there = {repository_test(self.root, one.test) for run in self.baseline for one in run.measurements}
        name = self.names.held(self.commit, identity, there)
        baseline, candidate = (
            tuple(
                one
                for run in runs
                for one in run.measurements
                if repository_test(self.root, one.test) == wanted
            )
            for runs, wanted in ((self.baseline, name), (self.candidate, identity))
        )
        return baseline, candidate


def _together(one: MeasurementRecord, first: MeasurementRecord) -> MeasurementRecord:
    """Return a measurement as of the time and host of the first."""
    return replace(one, host=first.host, started=first.started or 0.0)


def failures_of(runs: Sequence[RunRecord], test: str) -> str:
    """Return what a test failed with in any of the runs, other than by a verdict; empty where it did not."""
    return "; ".join(dict.fromkeys(run.failures[test] for run in runs if test in run.failures))


def rerun(
    repository: Repository | None,
    ref: str,
    arguments: Sequence[str],
    folder: Path,
    say: Callable[[str], None],
    root: str | None = None,
) -> Rerun:
    """Run pytest in turn on both sides.

    Args:
        repository: the repository of the tests.
        ref: the git ref whose merge base with HEAD is the baseline.
        arguments: pytest's command line.
        folder: where it was given.
        say: reports progress.
        root: pytest's root directory from the repository's top level.

    Raises:
        HistoryError: there is no such commit, or it cannot be checked out.
        TokenPowerError: a child run cannot measure (with its output's tail), or imported the other side's code.
    """
    if repository is None:
        raise HistoryError("--energy-rerun-baseline needs a git repository: the baseline is a commit of it")
    commits = repository.baseline_commits(ref)
    if not commits:
        raise HistoryError(f"{ref} has no commit before HEAD: there is no baseline to run again")
    label = f"{ref}@{commits[0][:7]}"
    accepted = Acceptances.read(repository, commits)
    roots = import_roots(repository.top_level)
    repeated = child_arguments(arguments)
    runs: dict[str, list[RunRecord]] = {"baseline": [], "candidate": []}
    with (
        tempfile.TemporaryDirectory(prefix=scratch_prefix("rerun")) as scratch,
        _worktree(repository, commits[0], Path(scratch) / "baseline") as tree,
    ):
        places = (*roots, Path(root or ""), Path(os.path.relpath(folder, repository.top_level)))
        changed = changed_files(repository, commits[0])
        differing = differing_requirements(changed, repository.top_level, tree, places)
        python = _environment(differing, tree, Path(scratch) / "environment", say)
        for number, side in enumerate(ORDER, start=1):
            top = tree if side == "baseline" else repository.top_level
            say(f"[{number}/{len(ORDER)}] {label if side == 'baseline' else 'this work tree'}")
            record = Path(scratch) / f"{number}.json"
            child = ChildRun(
                folder=top / os.path.relpath(folder, repository.top_level),
                arguments=[moved(argument, repository.top_level, top) for argument in repeated],
                python=python if side == "baseline" else sys.executable,
                top=top,
                import_roots=roots,
                foreign=repository.top_level if side == "baseline" else None,
            )
            runs[side].append(child.run(record, f"the {side}'s run"))
    return Rerun(
        label,
        tuple(runs["baseline"]),
        tuple(runs["candidate"]),
        commits[0],
        accepted,
        root,
        _locked(differing),
        EarlierNames.read(repository, None),
    )


def _locked(differing: Differing) -> str:
    """Return that both sides ran with the same packages, though files that lock them differ."""
    if not differing.locked:
        return ""
    verb = "differs" if len(differing.locked) == 1 else "differ"
    return (
        f"{', '.join(differing.locked)} {verb} between the two commits, and both ran with the packages that are "
        "installed here: what other versions of them take is not in the difference."
    )


def moved(argument: str, top: Path, other: Path) -> str:
    """Return an absolute path inside the repository, pointed at the same place of another work tree of it."""
    path, colons, inside = argument.partition("::")
    if not os.path.isabs(path) or not Path(path).is_relative_to(top):
        return argument
    return f"{other / Path(path).relative_to(top)}{colons}{inside}"


@contextmanager
def _worktree(repository: Repository, commit: str, path: Path) -> Iterator[Path]:
    top = repository.top_level
    # A partial clone has to fetch what the checkout needs.
    made = run_git(top, "worktree", "add", "--detach", str(path), commit, timeout_s=600, may_fetch=True)
    if made.code != 0:
        raise HistoryError(f"{top}: git worktree add for {commit[:7]} failed: {made.complaint}")
    try:
        check_out_submodules(top, path)
        yield path
    finally:
        run_git(top, "worktree", "remove", "--force", str(path), timeout_s=300)
        shutil.rmtree(path, ignore_errors=True)
        run_git(top, "worktree", "prune")


def _environment(differing: Differing, tree: Path, path: Path, say: Callable[[str], None]) -> str:
    """Return the Python of the baseline: this one, unless what is installed there differs."""
    if differing.locked:
        say(f"warning: {_locked(differing)}")
    if not differing.install:
        return sys.executable
    say(f"{', '.join(differing.files)} differ: making an environment for the baseline")
    python = path / "bin" / "python"
    # What this environment has stays visible; what the baseline asks for is installed over it.
    for command in (
        [sys.executable, "-m", "venv", "--system-site-packages", str(path)],
        [str(python), "-m", "pip", "install", "--quiet", *differing.install],
    ):
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise TokenPowerError(
                f"the baseline's environment could not be made: {' '.join(command[1:])} failed:\n{done.stderr[-1500:]}"
            )
    _see_parent_packages(path)
    return str(python)


def _see_parent_packages(path: Path) -> None:
    # A virtual environment made from another one sees the base interpreter's packages, not that one's.
    for own in (path / "lib").glob("python*/site-packages"):
        parents = [each for each in sys.path if each.endswith("site-packages") and Path(each) != own]
        (own / "tokenpower-parents.pth").write_text(
            "".join(f"{each}\n" for each in parents), encoding="utf-8"
        )
