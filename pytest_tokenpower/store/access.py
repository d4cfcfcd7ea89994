"""How a command finds its store and the runs that it was asked for."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_tokenpower.errors import HistoryError, StoreError, UsageError
from pytest_tokenpower.store.baseline import Baseline
from pytest_tokenpower.store.git import Repository, explain_absence
from pytest_tokenpower.store.identity import file_of, repository_test, root_in
from pytest_tokenpower.store.store import COMMIT_LENGTH, Store, StoredFile, default_store_path

RUN_HELP = (
    "a git ref, the name of a saved run, a run file, or the first digits of a run's id; ref:, name:, path: or run: "
    "in front say which"
)

_RUN_ID = re.compile(r"[0-9a-f]{4,32}")

_MOST_LISTED = 20

_MOST_RUNS = 50


@dataclass(frozen=True)
class StoreContext:
    """The store that a command works on, and the repository around the current folder."""

    store: Store
    repository: Repository | None
    folder: Path

    @classmethod
    def of(cls, arguments: argparse.Namespace, *, may_be_new: bool = False) -> StoreContext:
        """Return the store that the command line names; raises UsageError for a missing one unless it may be new."""
        folder = Path.cwd()
        repository = Repository.discover(folder)
        if arguments.storage is None:
            return cls(Store(default_store_path(repository, folder)), repository, folder)
        path = folder / arguments.storage.expanduser()
        if not path.is_dir() and (path.exists() or not may_be_new):
            raise UsageError(f"--storage={arguments.storage}: {path} is no folder")
        # The folder of the run files is as good as the store that it belongs to.
        return cls(Store(path.parent if path.name == "runs" else path), repository, folder)

    def entries(self) -> tuple[StoredFile, ...]:
        """Every stored run, newest first; raises StoreError where there is none."""
        entries = self.store.entries()
        if not entries:
            raise StoreError(
                f"no run is stored in {self.store.path}: save runs with pytest --energy-autosave, or name another "
                "store with --storage=PATH"
            )
        return entries

    def needs_repository(self) -> Repository:
        """Return the repository; raises HistoryError that says why there is none."""
        if self.repository is None:
            raise HistoryError(f"this command needs git history, but {explain_absence(self.folder)}")
        return self.repository

    def test_in_repository(self, text: str) -> str:
        """Return the test from the repository's top level: a stored one, or a node id of a file that is there.

        Raises UsageError for one that is neither.
        """
        repository, known = self.needs_repository(), self.stored_tests()
        bases = {test.partition("[")[0] for test in known}
        if text in known or text in bases:
            return text
        here = self.in_repository(text)
        if "::" in text and (
            here in known or here in bases or (repository.top_level / file_of(here)).is_file()
        ):
            return here
        if not known:
            raise UsageError(
                f"{self.store.path} holds no run of {text!r}: give the test's whole id (path/test_file.py::test_name)"
            )
        return choose_test(text, known)

    def in_repository(self, text: str) -> str:
        """Return a path or node id that was given here, from the repository's top level."""
        return repository_test(root_in(self.needs_repository(), self.folder), text)

    def stored_tests(self) -> frozenset[str]:
        """Return the tests of the newest readable runs."""
        known: set[str] = set()
        for entry in self.store.entries()[:_MOST_RUNS]:
            with suppress(StoreError):  # Named in store.problems.
                known.update(self.store.contents(entry).measurements)
        return frozenset(known)

    def runs(self, text: str, limit_runs: int = 5, *, commit_only: bool = False) -> Baseline:
        """Return the runs that ``text`` names (:data:`RUN_HELP`), newest first; a ref stands for its first-parent line.

        With ``commit_only`` a ref stands for its own commit. Raises UsageError, HistoryError or StoreError.
        """
        prefix, colon, value = text.partition(":")
        by_id = self._by_id(value if colon and prefix == "run" else text)
        if colon and prefix == "run":
            if not by_id:
                raise UsageError(
                    f"no run in {self.store.path} has an id that begins with {value!r}; "
                    f"the newest: {_listed(entry.id8 for entry in self.store.entries())}"
                )
            return self._one(by_id, value)
        try:
            found = Baseline.resolve(
                text, self.store, self.repository, limit_runs, folder=self.folder, at_ref=True
            )
        except HistoryError:
            if by_id:
                return self._one(by_id, text)
            raise
        if by_id and found.kind == "ref":
            raise UsageError(f"{text!r} is a git ref and a run: say which with ref:{text} or run:{text}")
        if commit_only and found.kind == "ref":
            return self._commit_only(found)
        return found

    def _by_id(self, digits: str) -> list[StoredFile]:
        plain = digits.replace("-", "")
        if not _RUN_ID.fullmatch(plain):
            return []
        some = [entry for entry in self.store.entries() if entry.id8.startswith(plain[:8])]
        return some if len(plain) <= 8 else [e for e in some if self._id_of(e).startswith(plain)]

    def _id_of(self, entry: StoredFile) -> str:
        try:
            return self.store.contents(entry).run_id.replace("-", "")
        except StoreError:
            return entry.id8

    def _one(self, entries: Sequence[StoredFile], text: str) -> Baseline:
        if len(entries) > 1:
            raise UsageError(
                f"run {text!r} is ambiguous: {_listed(entry.id8 for entry in entries)} begin so; give more digits"
            )
        return Baseline("path", f"run {entries[0].id8}", self.store, tuple(entries))

    def _commit_only(self, found: Baseline) -> Baseline:
        commit = found.commits[0]
        here = tuple(entry for entry in found.entries if entry.commit == commit[:COMMIT_LENGTH])
        if here:
            return replace(found, entries=here)
        dirty = sum(entry.commit == commit[:COMMIT_LENGTH] for entry in found.dirty_entries)
        raise UsageError(
            f"no run of {found.label} is stored"
            + (f" but {dirty} with uncommitted changes (name one by its id)" if dirty else "")
            + f". {self._newest_runs()}"
        )

    def _newest_runs(self) -> str:
        entries = self.store.entries()
        if not entries:
            return f"{self.store.path} holds no run: save runs with pytest --energy-autosave"
        newest = entries[0]
        where = f" of commit {newest.commit[:7]}" if newest.commit else ""
        return f"The newest run in {self.store.path} is {newest.id8}{where}"


def choose_test(text: str, tests: Collection[str]) -> str:
    """Return the test that ``text`` names: exactly, or as a part of one name only; raises UsageError."""
    if text in tests:
        return text
    fitting = sorted(test for test in tests if text in test)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UsageError(f"{text!r} fits {len(fitting)} tests; say which:{_lines(fitting)}")
    if not tests:
        raise UsageError(f"no stored run holds the test {text!r}, or any other")
    near = difflib.get_close_matches(text, tests, n=5, cutoff=0.5)
    raise UsageError(
        f"no stored test is called like {text!r}; "
        + (f"the most similar:{_lines(near)}" if near else f"the stored ones:{_lines(sorted(tests))}")
    )


def _lines(tests: Sequence[str]) -> str:
    more = [f"and {len(tests) - _MOST_LISTED} more"] if len(tests) > _MOST_LISTED else []
    return "".join(f"\n  {test}" for test in [*tests[:_MOST_LISTED], *more])


def _listed(ids: Iterable[str]) -> str:
    some = list(dict.fromkeys(ids))
    return ", ".join(some[:5]) + (" ..." if len(some) > 5 else "") or "none"


def when(created: str) -> str:
    """Return a time as the store's file names have it, for people: 2025-11-22 14:03."""
    return f"{created[:4]}-{created[4:6]}-{created[6:8]} {created[9:11]}:{created[11:13]}"
