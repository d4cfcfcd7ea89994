"""Why a baseline has no comparable run of a test, in a sentence for the person who expected one."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_tokenpower.store.keys import KeyDifference, describe
from pytest_tokenpower.store.store import StoredFile


@dataclass
class NoBaseline:
    """What a search for a test comes across instead of a comparable run; filled as the search goes on.

    Of ``entries`` runs ``searched`` were looked into and ``unreadable`` of those could not be read. In the others
    were ``invalid`` measurements of the test and ``differing`` ones with another key, ``nearest`` being the
    smallest difference; ``regressed`` comparable ones were judged regressed and are not blessed, the oldest on
    ``regressed_commit``. ``contents`` are the tests of each readable run.
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
    contents: list[Mapping[str, object]] = field(default_factory=list)

    def add_differing(self, found: tuple[KeyDifference, ...]) -> None:
        """Count a measurement with another key; the newest of the nearest ones is kept."""
        self.differing += 1
        if not self.nearest or len(found) < len(self.nearest):
            self.nearest = found

    def add_regressed(self, commit: str) -> None:
        """Count a measurement that regressed; they come newest first."""
        self.regressed += 1
        self.regressed_commit = commit

    @property
    def unblessed(self) -> str:
        """That runs regressed and are not blessed, and how to bless them; empty if none did."""
        if not self.regressed:
            return ""
        verb = "is" if self.regressed == 1 else "are"
        return (
            f"{_count(self.regressed, 'stored run')} on {self.label} regressed and {verb} not blessed; to accept: "
            f"tokenpower bless {self.regressed_commit[:10]} --reason ..."
        )


def why_not_found(
    absence: NoBaseline, existing: Collection[str], dirty: StoredFile | None, elsewhere: StoredFile | None
) -> str:
    """For a baseline that has runs, none of which fits the test.

    A stored test that is not among the ``existing`` ones may be this one under an older name; ``dirty`` and
    ``elsewhere`` are runs outside of the baseline that hold the test.
    """
    test, label = absence.test, absence.label
    if absence.regressed:
        return absence.unblessed
    if absence.nearest:
        if absence.differing == 1:
            return f"the one stored run on {label} is not comparable: {describe(absence.nearest)}"
        return (
            f"none of {absence.differing} stored runs on {label} is comparable; "
            f"the nearest differs in {describe(absence.nearest)}"
        )
    if absence.invalid:
        return (
            f"{_count(absence.invalid, 'measurement')} of it on {label}, none to be compared with: "
            "the test failed by itself or its measurement was invalid"
        )
    newest = "newest " if absence.entries > absence.searched else ""
    why = f"nothing is stored for {test} in the {newest}{_count(absence.searched, 'run')} on {label}"
    if absence.unreadable:
        why += f" ({absence.unreadable} of them not readable)"
    if dirty:
        return f"{why}; it is stored only with uncommitted changes, which are no baseline"
    if elsewhere:
        return f"{why}; it is stored only outside of that history ({_commit(elsewhere)})"
    gone = {stored: None for tests in absence.contents for stored in tests if stored not in existing}
    close = difflib.get_close_matches(test, list(gone), n=1, cutoff=0.7)
    return f"{why}; the most similar test stored there is {close[0]}: was it renamed?" if close else why


def why_no_history(
    label: str,
    commits: Sequence[str],
    dirty: Sequence[StoredFile],
    others: Sequence[StoredFile],
    store: Path,
) -> str:
    """For a ref none of whose ``commits`` has a clean run in ``store``."""
    if not commits:
        return f"HEAD is the first commit of {label}: there is nothing before it to compare with"
    if dirty:
        return (
            f"{_count(len(dirty), 'stored run')} on {label}, all with uncommitted changes, which are no baseline: "
            "save a run of a clean work tree"
        )
    if others:
        return (
            f"{_count(len(others), 'stored run')}, none on the history of {label} "
            f"(the newest: {_commit(others[0])}); save runs of it first (--energy-autosave)"
        )
    return f"no run is stored in {store}: save runs of {label} first (--energy-autosave)"


def _commit(entry: StoredFile) -> str:
    return f"commit {entry.commit[:7]}" if entry.commit else "outside git"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
