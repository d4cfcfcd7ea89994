"""Why a baseline has no comparable run of a test, in a sentence for the person who expected one."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_tokenpower.baselines.files import StoredRun
from pytest_tokenpower.baselines.key import KeyDifference, describe


@dataclass
class Absence:
    """What a search for a test comes across instead of a comparable run; filled as the search goes on.

    ``searched`` counts the runs looked into, ``unreadable`` those of them that could not be read; ``invalid`` are
    measurements of the test that cannot be compared, ``differing`` ones with another key, ``nearest`` being the
    smallest difference. ``tests`` is what the runs hold.
    """

    searched: int = 0
    unreadable: int = 0
    invalid: int = 0
    differing: int = 0
    nearest: tuple[KeyDifference, ...] = ()
    tests: dict[str, None] = field(default_factory=dict)

    def add_differing(self, found: tuple[KeyDifference, ...]) -> None:
        """Count a measurement with another key; the newest of the nearest ones is kept."""
        self.differing += 1
        if not self.nearest or len(found) < len(self.nearest):
            self.nearest = found


def why_not_found(
    test: str,
    label: str,
    entries: int,
    absence: Absence,
    *,
    dirty: StoredRun | None = None,
    elsewhere: StoredRun | None = None,
) -> str:
    """For a baseline of ``entries`` runs, none of which fits ``test``; two runs outside of it may hold it."""
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
    newest = "newest " if entries > absence.searched else ""
    why = f"nothing is stored for {test} in the {newest}{_count(absence.searched, 'run')} on {label}"
    if absence.unreadable:
        why += f" ({absence.unreadable} of them not readable)"
    if dirty:
        return f"{why}; it is stored only with uncommitted changes, which are no baseline"
    if elsewhere:
        return f"{why}; it is stored only outside of that history ({_commit(elsewhere)})"
    close = difflib.get_close_matches(test, list(absence.tests), n=1, cutoff=0.7)
    return f"{why}; the most similar test stored there is {close[0]}: was it renamed?" if close else why


def why_no_history(
    label: str,
    commits: Sequence[str],
    dirty: Sequence[StoredRun],
    others: Sequence[StoredRun],
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


def _commit(entry: StoredRun) -> str:
    return f"commit {entry.commit[:7]}" if entry.commit else "outside git"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
