"""From ``--energy-baseline=REF|NAME|PATH`` to the stored runs that a measurement is judged against."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from pytest_tokenpower.core.records import MeasurementRecord
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import HistoryError, StoreError, UsageError
from pytest_tokenpower.store.acceptances import Acceptances, PlacedAcceptance
from pytest_tokenpower.store.explain import NoBaseline, measured_before, why_no_history, why_not_found
from pytest_tokenpower.store.git import Repository, explain_absence, first_parent_history
from pytest_tokenpower.store.identity import file_of, repository_test
from pytest_tokenpower.store.keys import LENGTHS, KeyDifference, differences, ignoring, only_lengths
from pytest_tokenpower.store.renames import EarlierNames
from pytest_tokenpower.store.store import (
    COMMIT_LENGTH,
    Contents,
    IndexedMeasurement,
    Store,
    StoredFile,
    is_store,
    json_files,
)


@dataclass(frozen=True)
class ComparableRuns:
    """The comparable runs of a baseline, newest first, and what the baseline is called.

    ``earlier`` are those of earlier accepted levels, the latest level first: they tell how the test scatters. ``why``
    says why there are none, ``note`` what else the reader should know of them: newer runs that regressed and are not
    accepted, commits in between that were not measured, an earlier name. ``commits``
    are those of the runs, where the baseline is a line of them. ``acceptance`` is the one by which ``test`` (from the
    repository's top level) may rise over them.
    ``own``: the candidate is a commit of the baseline's own branch, so that a change is that branch's own.
    ``history``: with which options ``tokenpower history`` shows them, None where they are not stored; ``acceptable``: a
    rise over them can be accepted, for which there must be a repository.
    """

    label: str
    runs: tuple[MeasurementRecord, ...]
    run_ids: tuple[str, ...] = ()
    why: str = ""
    note: str = ""
    acceptance: PlacedAcceptance | None = None
    test: str = ""
    own: bool = False
    earlier: tuple[tuple[MeasurementRecord, ...], ...] = ()
    history: str | None = None
    acceptable: bool = True
    commits: tuple[str | None, ...] = ()


ALIKE = ("provenance", "scope", "gpu.name", "cpu.name")


def histories(
    baseline: Baseline, key: Mapping[str, Fact]
) -> dict[str, tuple[tuple[MeasurementRecord, ...], ...]]:
    """Per test the newest comparable runs under one key, on the same kind of machine as ``key``.

    By accepted level, the present one and each level's newest run first; at most ``baseline.limit_runs`` runs of each
    level and twice as many of each test. What the store cannot read is left out and stands in its problems.
    """
    found: dict[str, dict[int, list[MeasurementRecord]]] = {}
    keys: dict[str, dict[str, Fact]] = {}
    # Each run usually holds every test: twice the runs that are wanted find them, a store of thousands or not.
    for entry in baseline.entries[: 2 * baseline.limit_runs]:
        try:
            contents = baseline.store.contents(entry)
            for test, place in contents.measurements.items():
                alike = all(place.key.get(name) == key.get(name) for name in ALIKE)
                same = alike and keys.setdefault(test, place.key) == place.key
                accepted = baseline.accepted
                level = accepted.level(entry.commit, test) if accepted else 0
                runs = found.setdefault(test, {}).setdefault(level, [])
                if not (place.comparable and same and len(runs) < baseline.limit_runs):
                    continue
                measured = baseline.store.dated(entry, test)
                # A regression that nobody accepted is another level, not noise.
                if accepted is None or accepted.counts(measured.verdicts, entry.commit, test):
                    runs.append(measured)
        except StoreError:
            continue
    return {
        test: tuple(tuple(levels[at]) for at in sorted(levels) if levels[at])
        for test, levels in found.items()
    }


Kind = Literal["ref", "name", "path"]

SEARCH_BYTES = 64 * 2**20
"""A test is looked for until this much has been read: one that was never stored does not read the whole store."""

_ELSEWHERE_RUNS = 5

_MEANINGS: dict[Kind, str] = {"ref": "a git ref", "name": "a saved run", "path": "a store"}

_KINDS: dict[str, Kind] = {kind: kind for kind in _MEANINGS}


def parse_baseline(text: str) -> tuple[Kind | None, str]:
    """Return the kind (None: to be found out) and what follows ``ref:``, ``name:`` or ``path:``; raises UsageError."""
    prefix, colon, rest = text.strip().partition(":")
    kind = _KINDS.get(prefix) if colon else None
    value = rest if kind else text.strip()
    if not value:
        raise UsageError(f"baseline {text!r} is empty: give a git ref, the name of a saved run, or a path")
    return kind, value


class _Run(NamedTuple):
    run_id: str
    commit: str | None
    measurement: MeasurementRecord


@dataclass(frozen=True)
class Baseline:
    """The stored runs that count as the baseline, newest first, and the others that explain an absence.

    ``label`` is what reports call it (``main@1a2b3c4``); ``commits`` is the baseline's history for a ref and empty
    otherwise. For a ref only clean runs on ``commits`` count, and of those that regressed only the accepted ones
    (``accepted``, None otherwise); a name or a path is taken at its word.
    By ``rises`` a test may rise over either. Tests are asked for by their node ids under
    ``root``, pytest's root directory from the repository's top level. ``note`` tells of a choice between several
    things of one name; ``own``: HEAD is a commit of the ref itself, with nothing changed since. ``tip`` is the commit
    that is compared, None for the work tree.
    """

    kind: Kind
    label: str
    store: Store
    entries: tuple[StoredFile, ...]
    limit_runs: int = 5
    commits: tuple[str, ...] = ()
    dirty_entries: tuple[StoredFile, ...] = field(default=(), repr=False)
    other_entries: tuple[StoredFile, ...] = field(default=(), repr=False)
    accepted: Acceptances | None = field(default=None, repr=False)
    rises: Acceptances | None = field(default=None, repr=False)
    root: str | None = None
    note: str = ""
    own: bool = False
    tip: str | None = None
    repository: Repository | None = field(default=None, repr=False)
    names: EarlierNames = field(default_factory=EarlierNames, repr=False, compare=False)
    _files: dict[str, frozenset[str]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def resolve(
        cls,
        text: str,
        store: Store,
        repository: Repository | None,
        limit_runs: int = 5,
        *,
        folder: Path | None = None,
        at_ref: bool = False,
        root: str | None = None,
    ) -> Baseline:
        """Return what ``text`` means here.

        Args:
            text: a git ref, a saved name or a path; ``ref:``, ``name:`` or ``path:`` in front says which.
            store: the store, whose entries are taken as they are now.
            repository: the repository around; None outside git.
            limit_runs: how many runs of a test count.
            folder: what paths are relative to (default: the current one).
            at_ref: the history of a ref begins at the ref itself, not where HEAD left it.
            root: pytest's root directory from the top level, if tests are asked for by node ids relative to it.

        Raises:
            UsageError: the text means nothing, or a committed acceptance or rename is malformed.
            HistoryError: git cannot answer.
            StoreError: a run file is not readable.
        """
        kind, value = parse_baseline(text)
        search = _Search(value, store, repository, limit_runs, folder or Path.cwd(), at_ref)
        found = search.as_kind(kind) if kind else search.guess()
        rises = found.accepted
        if rises is None and repository is not None and not at_ref:
            rises = Acceptances.read(repository, ())
        names = EarlierNames.read(repository, found.tip)
        return replace(found, root=root, repository=repository, rises=rises, names=names)

    @property
    def history_options(self) -> str | None:
        """Return the options with which ``tokenpower history`` finds these runs; None for files that are no store."""
        if not self.store.folder.is_dir():
            return None
        own = ".tokenpower" if self.repository is None else self.repository.common_dir / "tokenpower"
        place = os.path.relpath(self.store.path)
        return "" if place == os.path.relpath(own) else f"--storage={shlex.quote(place)}"

    def identity(self, test: str) -> str:
        """Return a node id of the candidate, from the repository's top level."""
        return repository_test(self.root, test)

    def find(
        self, test: str, key: Mapping[str, Fact], ignore: Iterable[str] = (), left_out: Collection[str] = ()
    ) -> ComparableRuns:
        """Return the newest comparable runs of ``test`` whose key equals ``key``, fields in ``ignore`` left out.

        Runs whose ids are in ``left_out`` are passed over: those before them count.

        Where there is none, those that differ in the lengths of prompts and answers alone.

        A stored test that the work tree no longer has may be this one under an older name, which ``why`` then
        suggests and nothing assumes. Raises UsageError for an ignore pattern that names a protected field.
        """
        patterns = (ignore,) if isinstance(ignore, str) else tuple(ignore)
        wanted = ignoring(key, patterns)
        known: dict[int, tuple[KeyDifference, ...]] = {}
        runs: list[_Run] = []
        earlier: dict[int, list[_Run]] = {}
        names: dict[str, str | None] = {}
        newest = 0
        met = False
        mine = self.identity(test)
        seen = NoBaseline(mine, self.label, len(self.entries))
        for entry, name, place in self._places(test, self.entries, seen):
            run_id, commit = self.store.contents(entry)[:2]
            if run_id in left_out:
                met = True
                continue
            # What was before the newest run's accepted level tells how the test scatters.
            began = self.accepted.level(entry.commit, mine, name) if self.accepted else 0
            level = max(began - newest, 0) if runs else 0
            before = earlier.setdefault(level, []) if level else runs
            if not place.comparable:
                seen.invalid += 1
                continue
            found = known.get(id(place.key))  # Equal keys of a store are one object.
            if found is None:
                found = known[id(place.key)] = differences(wanted, ignoring(place.key, patterns))
            if found:
                seen.add_differing(found)
                continue
            try:
                measurement = self.store.dated(entry, name)
            except StoreError:
                seen.unreadable += 1  # Named in store.problems.
                continue
            if self.accepted and not self.accepted.counts(measurement.verdicts, entry.commit, mine, name):
                if not runs:
                    risen = self.accepted.nearest(measurement.verdicts)
                    seen.add_regressed(commit or "", (risen and risen.change) or 0.0)
                continue
            if not level:
                names.setdefault(name, commit)
            newest = newest if runs else began
            before.append(_Run(run_id, commit, measurement))
            if len(before) == self.limit_runs:
                break
        if runs:
            return self._found(mine, runs, [earlier[at] for at in sorted(earlier)], names, seen)
        if only_lengths(seen.nearest):
            # None is exact: those of other lengths are compared at equal ones.
            return self.find(test, key, (*patterns, *LENGTHS), left_out)
        only_judged = met and not (seen.regressed or seen.nearest or seen.invalid)
        why = "the only runs there are those that are compared" if only_judged else self._why(test, seen)
        return ComparableRuns(self.label, (), why=why, test=mine)

    def _found(
        self,
        mine: str,
        runs: Sequence[_Run],
        earlier: Sequence[Sequence[_Run]],
        names: Mapping[str, str | None],
        seen: NoBaseline,
    ) -> ComparableRuns:
        newest = runs[0].commit
        unaccepted = seen.unaccepted
        notes = [unaccepted] if unaccepted else []
        if self.commits and newest in self.commits[1:]:
            stored = [run.commit for run in runs]
            notes.append(measured_before(stored, self.commits, self.label, unaccepted=bool(unaccepted)))
        for name, commit in names.items():
            if self.root is not None and name not in (mine, self._node_id(mine)):
                notes.append(
                    f"Its runs of {(commit or '')[:7]} and before are those of {name}, as it was called then."
                )
        return ComparableRuns(
            self.label,
            tuple(run.measurement for run in runs),
            tuple(run.run_id for run in runs),
            note=" ".join(notes),
            acceptance=self.rises.allowance(newest, mine, *names) if self.rises else None,
            test=mine,
            own=self.own,
            earlier=tuple(tuple(run.measurement for run in level) for level in earlier if level),
            history=self.history_options,
            acceptable=self.repository is not None,
            commits=tuple(run.commit for run in runs) if self.accepted else (),
        )

    def _node_id(self, mine: str) -> str:
        """Return a test of ours as pytest calls it."""
        return mine.removeprefix(f"{self.root}/") if self.root else mine

    def _places(
        self, test: str, entries: tuple[StoredFile, ...], seen: NoBaseline
    ) -> Iterator[tuple[StoredFile, str, IndexedMeasurement]]:
        """Each run that holds the test, with the name that it has there."""
        size = 0
        for entry in entries:
            if size > SEARCH_BYTES:
                return
            seen.searched += 1
            try:
                contents = self.store.contents(entry)
            except StoreError:
                seen.unreadable += 1  # Named in store.problems.
                continue
            size += contents.size
            seen.contents.append(contents.measurements)
            name = self._name_in(contents, test, seen)
            if name is not None:
                yield entry, name, contents.measurements[name]

    def _name_in(self, contents: Contents, test: str, seen: NoBaseline) -> str | None:
        """Return what a run calls the test: as we do, by its node id alone, or by an earlier name."""
        mine = self.identity(test)
        held = contents.measurements
        if contents.root is None and self.root is not None:
            if test not in held:
                return None
            if self._is_ours(contents.commit, test):
                return test
            seen.rootless += 1
            return None
        return self.names.held(contents.commit, mine, held)

    def _is_ours(self, commit: str | None, test: str) -> bool:
        """Whether a run that does not say its root measured our test: its commit holds that file in our place only."""
        file, mine = file_of(test), file_of(self.identity(test))
        files = self._files_at(commit)
        fitting = {path for path in files if path == file or path.endswith(f"/{file}")}
        return not fitting or fitting in ({mine}, {self.names.file_at(commit, mine)})

    def _files_at(self, commit: str | None) -> frozenset[str]:
        if commit is None or self.repository is None:
            return frozenset()
        if commit not in self._files:
            self._files[commit] = self.repository.files_at(commit)
        return self._files[commit]

    def newest_tests(self) -> dict[str, Mapping[str, Fact]]:
        """Return the comparable tests under our root that the newest runs hold, by node id, with their newest keys."""
        found: dict[str, Mapping[str, Fact]] = {}
        for contents in self._newest():
            if contents.root == self.root:
                for test, place in contents.measurements.items():
                    if place.comparable:
                        found.setdefault(self._node_id(test), place.key)
        return dict(sorted(found.items()))

    def earlier_names(self, tests: Iterable[str]) -> frozenset[str]:
        """Return the node ids by which the newest runs may hold tests that have another name now."""
        commits = {contents.commit for contents in self._newest()}
        return frozenset(
            self._node_id(name)
            for test in tests
            for commit in commits
            for name in self.names.at(commit, self.identity(test))
        )

    def _newest(self) -> Iterator[Contents]:
        for entry in self.entries[: self.limit_runs]:
            with suppress(StoreError):  # Named in store.problems.
                yield self.store.contents(entry)

    def _why(self, test: str, seen: NoBaseline) -> str:
        others = (self.dirty_entries, self.other_entries)
        if not self.entries:
            if self.kind != "ref":
                return f"{self.label} holds no run"
            return why_no_history(self.label, self.commits, *others, self.store.path)
        dirty, elsewhere = (
            None if seen.nearest or seen.invalid else self._outside(test, runs) for runs in others
        )
        return why_not_found(seen, dirty, elsewhere, self._is_gone)

    def _is_gone(self, stored: str) -> bool:
        """Whether the work tree's file does not speak of a stored test any more."""
        if self.repository is None:
            return False
        file, _, name = stored.partition("[")[0].partition("::")
        try:
            text = (self.repository.top_level / file).read_text("utf-8", "replace")
        except OSError:
            return True
        return not all(re.search(rf"\b{re.escape(part)}\b", text) for part in name.split("::"))

    def _outside(self, test: str, entries: tuple[StoredFile, ...]) -> StoredFile | None:
        places = self._places(test, entries[:_ELSEWHERE_RUNS], NoBaseline(test, self.label, len(entries)))
        return next((entry for entry, *_ in places), None)


def _is_on(repository: Repository, commit: str) -> bool:
    """Whether the work tree is in the history of a ref's commit: the branch itself, not a change to it."""
    return (
        repository.head is not None
        and not repository.dirty
        and repository.is_ancestor(repository.head, commit)
    )


@dataclass(frozen=True)
class _Search:
    """Finds out what a baseline's text stands for."""

    value: str
    store: Store
    repository: Repository | None
    limit_runs: int
    folder: Path
    at_ref: bool = False

    @property
    def path(self) -> Path:
        return self.folder / Path(self.value).expanduser()

    @cached_property
    def entries(self) -> tuple[StoredFile, ...]:
        return self.store.entries()

    def as_kind(self, kind: Kind) -> Baseline:
        if kind == "ref":
            return self._of_ref()
        return self._of_name() if kind == "name" else self._of_path()

    def guess(self) -> Baseline:
        if self.value.endswith(".json") or self.value.startswith(("/", "./", "../", "~")):
            return self._of_path()
        no_ref = self._no_ref()
        fits = (no_ref is None, bool(self._named()), is_store(self.path))
        fitting = [kind for kind, fit in zip(_MEANINGS, fits, strict=True) if fit]
        if fitting:
            # What else goes by that name cannot stop every build: anyone may save a run, or add a folder.
            chosen, *others = fitting
            note = "; ".join(
                f"{self.value} is also {_MEANINGS[kind]}, which is not taken: give {kind}:{self.value} for it"
                for kind in others
            )
            found = self.as_kind(chosen)
            return replace(found, note="; ".join(filter(None, (found.note, note))))
        if self.path.is_file() or json_files(self.path):
            return self._of_path()
        absence = "holds no runs" if self.path.exists() else "does not exist"
        raise HistoryError(
            f"baseline {self.value!r} is no git ref, no saved run and no path of stored runs. As a ref: {no_ref} "
            f"{self._saved_names()}" + (f" {self.path} {absence}." if "://" not in self.value else "")
            # A URL is no path, and its password is not to be printed as a folder's name.
        )

    def _no_ref(self) -> str | None:
        """Why the text is no ref; None if it is one."""
        if self.repository is None:
            return f"{explain_absence(self.folder)}."
        try:
            self.repository.resolve(self.value)
        except HistoryError as error:
            return str(error)
        return None

    def _named(self) -> tuple[StoredFile, ...]:
        return tuple(entry for entry in self.entries if entry.name == self.value)

    def _saved_names(self) -> str:
        names = Counter(entry.name for entry in self.entries if entry.name)
        return f"Saved runs in {self.store.path}: {', '.join(sorted(names)) or 'none with a name'}."

    def _of_ref(self) -> Baseline:
        if self.repository is None:
            raise HistoryError(
                f"baseline {self.value!r} needs git history, but {explain_absence(self.folder)}. "
                "Without git, name a saved run (--energy-save=NAME) or a path"
            )
        ref = self.repository.resolve(self.value)
        repository = self.repository
        commits = (
            first_parent_history(repository, ref.commit)
            if self.at_ref
            else repository.baseline_commits(self.value)
        )
        order = {commit[:COMMIT_LENGTH]: position for position, commit in enumerate(commits)}
        # Stable: the runs of one commit stay newest first.
        ours = sorted((e for e in self.entries if e.commit in order), key=lambda e: order[e.commit or ""])
        return Baseline(
            kind="ref",
            label=f"{ref.name}@{commits[0][:7]}" if commits else ref.name,
            store=self.store,
            entries=tuple(entry for entry in ours if entry.state == "clean"),
            limit_runs=self.limit_runs,
            commits=commits,
            dirty_entries=tuple(entry for entry in ours if entry.state != "clean"),
            other_entries=tuple(entry for entry in self.entries if entry.commit not in order),
            accepted=Acceptances.read(repository, commits),
            note=ref.note,
            own=not self.at_ref and _is_on(repository, ref.commit),
            tip=ref.commit if self.at_ref else None,
        )

    def _of_name(self) -> Baseline:
        entries = self._named()
        if not entries:
            raise UsageError(f"no run is saved under the name {self.value!r}. {self._saved_names()}")
        return Baseline("name", self.value, self.store, entries, self.limit_runs)

    def _of_path(self) -> Baseline:
        path = self.path
        if path.is_file():
            store = Store(path.parent)
            entry = store.open_file(path)
            store.contents(entry)  # Now, where an unreadable file is still an error of usage.
            return Baseline("path", self.value, store, (entry,), self.limit_runs)
        if not path.is_dir():
            raise UsageError(f"baseline {self.value!r}: {path} does not exist; give a store or a run file")
        store = Store(path)
        if store.folder.is_dir():
            return Baseline("path", self.value, store, store.entries(), self.limit_runs)
        entries = []
        for file in json_files(path):
            try:
                entries.append(store.open_file(file))
            except StoreError:
                continue  # Named in store.problems.
        if not entries:
            raise UsageError(f"baseline {self.value!r}: {path} holds no run of pytest-tokenpower")
        entries.sort(key=lambda entry: (entry.created, entry.id8), reverse=True)
        return Baseline("path", self.value, store, tuple(entries), self.limit_runs)
