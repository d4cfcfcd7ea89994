"""Why a baseline has no comparable run of a test, in a sentence for the person who expected one."""

from __future__ import annotations

import difflib
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pytest_tokenpower.core.records import RunRecord
from pytest_tokenpower.core.text import listed, plural
from pytest_tokenpower.errors import HistoryError
from pytest_tokenpower.store.acceptances import Acceptances
from pytest_tokenpower.store.git import Repository, first_parent_history
from pytest_tokenpower.store.keys import KeyDifference, describe
from pytest_tokenpower.store.store import StoredFile


@dataclass
class NoBaseline:
    """What a search for a test comes across instead of a comparable run; filled as the search goes on.

    Of ``entries`` runs ``searched`` were looked into and ``unreadable`` of those could not be read. In the others
    were ``invalid`` measurements of the test and ``differing`` ones with another key, ``nearest`` being the
    smallest difference; ``regressed`` comparable ones were judged regressed and are not accepted, the oldest on
    ``regressed_commit`` with the change ``rise``. ``rootless`` runs do not say which of several packages' tests of
    that node id they measured. ``contents`` are the tests of each readable run.
    """

    test: str
    label: str
    entries: int
    searched: int = 0
    unreadable: int = 0
    invalid: int = 0
    differing: int = 0
    nearest: tuple[KeyDifference, ...] = ()
    regressed: int = 0
    regressed_commit: str = ""
    rise: float = 0.0
    rootless: int = 0
    contents: list[Mapping[str, object]] = field(default_factory=list)

    def add_differing(self, found: tuple[KeyDifference, ...]) -> None:
        """Count a measurement with another key; the newest of the nearest ones is kept."""
        self.differing += 1
        if not self.nearest or len(found) < len(self.nearest):
            self.nearest = found

    def add_regressed(self, commit: str, rise: float) -> None:
        """Count a measurement that regressed; they come newest first."""
        self.regressed += 1
        self.regressed_commit = commit
        self.rise = max(self.rise, rise)

    @property
    def unaccepted(self) -> str:
        """That runs regressed and are not accepted, and how to accept them; empty if none did."""
        if not self.regressed:
            return ""
        verb = "is" if self.regressed == 1 else "are"
        return (
            f"{plural(self.regressed, 'stored run')} on {self.label} regressed and {verb} not accepted. If it is "
            f"intended: {accept_command(self.test, self.rise, self.regressed_commit)}"
        )


def accept_command(test: str, rise: float, since: str = "") -> str:
    """Return the command that accepts a rise (a share) of a test, for a change that was merged ``since`` a commit."""
    merged = f" --since {since[:10]}" if since else ""
    return f"tokenpower accept {shlex.quote(test)} --up-to {accepted_percent(rise)}%{merged} --reason ..."


def accepted_percent(rise: float) -> int:
    """Return the whole percent that a rise is accepted up to: a little more than it was, as the next may be."""
    return max(0, math.floor(100 * rise) + 2) if rise > 0 else 0


def why_not_found(
    absence: NoBaseline, dirty: StoredFile | None, elsewhere: StoredFile | None, gone: Callable[[str], bool]
) -> str:
    """For a baseline that has runs, none of which fits the test.

    A stored test that is ``gone`` may be this one under an older name; ``dirty`` and ``elsewhere`` are runs outside of
    the baseline that hold the test.
    """
    test, label = absence.test, absence.label
    if absence.regressed:
        return absence.unaccepted
    if absence.nearest:
        if absence.differing == 1:
            return f"the one stored run on {label} is not comparable: {describe(absence.nearest)}"
        return (
            f"none of {absence.differing} stored runs on {label} is comparable; "
            f"the nearest differs in {describe(absence.nearest)}"
        )
    if absence.invalid:
        return (
            f"{plural(absence.invalid, 'measurement')} of it on {label}, none to be compared with: "
            "the test failed by itself or its measurement was invalid"
        )
    if absence.rootless:
        return (
            f"{plural(absence.rootless, 'stored run')} on {label} hold a test of this node id and do not say of which "
            "folder, which an earlier version of the plugin did not record: store runs anew (--energy-autosave)"
        )
    newest = "newest " if absence.entries > absence.searched else ""
    why = f"nothing is stored for {test} in the {newest}{plural(absence.searched, 'run')} on {label}"
    if absence.unreadable:
        why += f" ({absence.unreadable} of them not readable)"
    if dirty:
        return f"{why}; it is stored only with uncommitted changes, which are no baseline"
    if elsewhere:
        return f"{why}; it is stored only outside of that history ({_commit(elsewhere)})"
    stored = dict.fromkeys(stored for tests in absence.contents for stored in tests)
    close = [one for one in difflib.get_close_matches(test, list(stored), n=3, cutoff=0.7) if gone(one)]
    if not close:
        return why
    return (
        f"{why}; the most similar test stored there is {close[0]}: was it renamed? Then tokenpower rename "
        f"{shlex.quote(close[0])} {shlex.quote(test)}"
    )


def why_no_history(
    label: str, commits: Sequence[str], dirty: Sequence[StoredFile], others: Sequence[StoredFile], store: Path
) -> str:
    """For a ref none of whose ``commits`` has a clean run in ``store``."""
    if not commits:
        return f"HEAD is the first commit of {label}: there is nothing before it to compare with"
    if dirty:
        return (
            f"{plural(len(dirty), 'stored run')} on {label}, all with uncommitted changes, which are no baseline: "
            "save a run of a clean work tree"
        )
    if others:
        return (
            f"{plural(len(others), 'stored run')}, none on the history of {label} "
            f"(the newest: {_commit(others[0])}), which rewritten history and other branches are not; save runs of "
            "it first (--energy-autosave)"
        )
    return f"no run is stored in {store}: save runs of {label} first (--energy-autosave)"


def measured_before(
    runs: Sequence[str | None], commits: Sequence[str], label: str, *, unaccepted: bool
) -> str:
    """Say that stored runs are of earlier commits than ``label``, and how far back on its line.

    Args:
        runs: the commit of each run, newest first; None for a run outside git.
        commits: the line, newest first.
        label: what the baseline is called.
        unaccepted: newer runs regressed and do not count, as the reader is told elsewhere.
    """
    newest, *older = dict.fromkeys(commit for commit in runs if commit)
    words = f"Compared with {plural(len(runs), 'run')} of {newest[:7]}"
    words += f" and {plural(len(older), 'commit')} before" if older else ""
    words += f", {plural(commits.index(newest), 'commit')} before {label}"
    words += "" if unaccepted else ", of which no comparable run is stored"
    between = (
        "those in between count for nothing" if unaccepted else "the commits in between were not measured"
    )
    return f"{words}: the difference may be {label.rpartition('@')[0]}'s own, as {between}."


def what_was_stored(run: RunRecord, path: Path, repository: Repository | None, no_repository: str) -> str:
    """One line on a run that was stored: what, where, and whether it can be a baseline.

    Args:
        run: the run.
        path: its file.
        repository: the repository as it stood when the run began; None where git has none to tell of.
        no_repository: why there is none.
    """
    named = f" under the name {run.name}" if run.name else ""
    head = f"stored {plural(len(run.measurements), 'test')}{named} in {path}: "
    by_name = (
        f"it can be compared with as {run.name}" if run.name else "it can be compared with by its path alone"
    )
    if repository is None or run.commit is None:
        reason = no_repository or "the repository has no commit yet"
        return f"{head}no branch's baseline, as {reason}; {by_name}"
    if run.dirty:
        return (
            f"{head}no branch's baseline, as the work tree of {run.commit[:7]} has changes that are not committed "
            f"({listed(repository.changes, 3)}): commit them, or have git ignore them"
            + (f"; {by_name}" if run.name else "")
        )
    out = [one for one in run.measurements if not one.comparable]
    line = Acceptances(commits=_history(repository, run.commit))
    risen = [one for one in run.measurements if line.regressed(one.verdicts)]
    counting = len(run.measurements) - len({one.test for one in (*out, *risen)})
    words = [f"{counting} can be a baseline" if out or risen else "it can be a baseline"]
    words += [f"{len(out)} cannot (failed or invalid)"] if out else []
    words += [f"{len(risen)} not before it is accepted (regressed)"] if risen else []
    return f"{head}commit {run.commit[:7]}, {', '.join(words)}"


def _history(repository: Repository, commit: str) -> tuple[str, ...]:
    with suppress(HistoryError):  # Without it a test that regressed against any baseline counts as risen.
        return first_parent_history(repository, commit)
    return ()


def _commit(entry: StoredFile) -> str:
    return f"commit {entry.commit[:7]}" if entry.commit else "outside git"
