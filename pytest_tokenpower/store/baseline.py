"""From ``--energy-baseline=REF|NAME|PATH`` to the stored runs that a measurement is judged against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from pytest_tokenpower.core.records import MeasurementRecord
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import HistoryError, StoreError, UsageError
from pytest_tokenpower.store.blessings import Accepted, read_blessings
from pytest_tokenpower.store.explain import NoBaseline, why_no_history, why_not_found
from pytest_tokenpower.store.git import Repository, explain_absence, first_parent_history
from pytest_tokenpower.store.keys import KeyDifference, differences, ignoring
from pytest_tokenpower.store.store import (
    COMMIT_LENGTH,
    IndexedMeasurement,
    Store,
    StoredFile,
    is_store,
    json_files,
)


def stored_runs(
    baseline: Baseline,
    measured: MeasurementRecord,
    ignore: Sequence[str],
    left_out: Collection[str] = (),
) -> ComparableRuns:
    """What a baseline holds that a measurement can be compared with.

    Key fields in ``ignore`` may differ; runs whose ids are in ``left_out`` are those that are judged.
    """
    found = baseline.find(measured.test, measured.key, ignore)
    runs = [run for run in found.runs if run.run_id not in left_out]
    return ComparableRuns(
        label=baseline.label,
        runs=tuple(run.measurement for run in runs),
        run_ids=tuple(run.run_id for run in runs),
        why=found.why or "the only runs there are those that are compared",
        note=found.note,
    )


@dataclass(frozen=True)
class ComparableRuns:
    """The comparable runs of a baseline, newest first, and what the baseline is called.

    ``why`` says why there are none, ``note`` what else the reader should know of them.
    """

    label: str
    runs: tuple[MeasurementRecord, ...]
    run_ids: tuple[str, ...] = ()
    why: str = ""
    note: str = ""


ALIKE = ("provenance", "scope", "gpu.name", "cpu.name")


def histories(baseline: Baseline, key: Mapping[str, Fact]) -> dict[str, list[MeasurementRecord]]:
    """Per test the newest comparable runs under one key, on the same kind of machine as ``key``.

    At most ``baseline.limit_runs`` runs of each test. What the store cannot read is left out and stands in its
    problems.
    """
    found: dict[str, list[MeasurementRecord]] = {}
    keys: dict[str, dict[str, Fact]] = {}
    # Each run usually holds every test: twice the runs that are wanted find them, a store of thousands or not.
    for entry in baseline.entries[: 2 * baseline.limit_runs]:
        try:
            contents = baseline.store.contents(entry)
            for test, place in contents.measurements.items():
                runs = found.setdefault(test, [])
                alike = all(place.key.get(name) == key.get(name) for name in ALIKE)
                same = keys.setdefault(test, place.key) == place.key
                if not (place.comparable and alike and same and len(runs) < baseline.limit_runs):
                    continue
                measured = baseline.store.measurement(entry, test)
                # A regression that nobody blessed is another level, not noise.
                if baseline.accepted is None or baseline.accepted.counts(
                    test, measured.verdicts, contents.run_id, entry.commit
                ):
                    runs.append(measured)
        except StoreError:
            continue
    return found


Kind = Literal["ref", "name", "path"]


SEARCH_BYTES = 64 * 2**20


"""A test is looked for until this much has been read: one that was never stored does not read the whole store."""


_ELSEWHERE_RUNS = 5


_MEANINGS: dict[Kind, str] = {"ref": "a git ref", "name": "a saved run", "path": "a store"}


_KINDS: dict[str, Kind] = {kind: kind for kind in _MEANINGS}


class BaselineRun(NamedTuple):
    """One stored run of one test: a unit of evidence. ``commit`` is None for a run outside git."""

    run_id: str
    commit: str | None
    measurement: MeasurementRecord


@dataclass(frozen=True)
class Found:
    """The comparable runs of a test, newest first; without any, ``why`` says what is in the way.

    ``differences`` is how the nearest stored key differs, where a different key is the reason. ``note`` tells of
    newer runs that regressed and are not blessed: the comparison is with what was before them.
    """

    runs: tuple[BaselineRun, ...] = ()
    why: str = ""
    differences: tuple[KeyDifference, ...] = ()
    note: str = ""


def parse_baseline(text: str) -> tuple[Kind | None, str]:
    """``ref:``, ``name:`` or ``path:`` and what follows; None where the kind is to be found out.

    Raises UsageError for empty text.
    """
    prefix, colon, rest = text.strip().partition(":")
    kind = _KINDS.get(prefix) if colon else None
    value = rest if kind else text.strip()
    if not value:
        raise UsageError(f"baseline {text!r} is empty: give a git ref, the name of a saved run, or a path")
    return kind, value


@dataclass(frozen=True)
class Baseline:
    """The stored runs that count as the baseline, newest first, and the others that explain an absence.

    ``label`` is what reports call it (``main@1a2b3c4``); ``commits`` is the baseline's history for a ref and empty
    otherwise. For a ref only clean runs on ``commits`` count, and of those that regressed only the blessed ones
    (``accepted``, None otherwise); a name or a path is taken at its word.
    """

    kind: Kind
    label: str
    store: Store
    entries: tuple[StoredFile, ...]
    limit_runs: int = 5
    commits: tuple[str, ...] = ()
    dirty_entries: tuple[StoredFile, ...] = field(default=(), repr=False)
    other_entries: tuple[StoredFile, ...] = field(default=(), repr=False)
    accepted: Accepted | None = field(default=None, repr=False)

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
    ) -> Baseline:
        """What ``text`` means here; paths are relative to ``folder`` (the current one).

        The history of a ref begins where HEAD left it, or with ``at_ref`` at the ref itself. The store's entries are
        taken as they are now. Raises UsageError where the text means nothing or two things, HistoryError where git
        cannot answer, StoreError for a run file or a blessing that is not readable.
        """
        kind, value = parse_baseline(text)
        search = _Search(value, store, repository, limit_runs, folder or Path.cwd(), at_ref)
        return search.as_kind(kind) if kind else search.guess()

    def find(
        self,
        test: str,
        key: Mapping[str, Fact],
        ignore: Iterable[str] = (),
        *,
        existing: Collection[str] = (),
    ) -> Found:
        """The newest comparable runs of ``test`` whose key equals ``key``, fields in ``ignore`` left out.

        ``existing`` are the tests that were collected: a stored one that is not among them may be this one under
        an older name, which ``why`` then suggests and nothing assumes. Raises UsageError for an ignore pattern
        that names a protected field.
        """
        patterns = (ignore,) if isinstance(ignore, str) else tuple(ignore)
        wanted = ignoring(key, patterns)
        known: dict[int, tuple[KeyDifference, ...]] = {}
        runs: list[BaselineRun] = []
        seen = NoBaseline(test, self.label, len(self.entries))
        for entry, place in self._places(test, self.entries, seen):
            if runs and self.accepted and self.accepted.before_level(test, entry.commit):
                break
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
                measurement = self.store.measurement(entry, test)
            except StoreError:
                seen.unreadable += 1  # Named in store.problems.
                continue
            run_id, commit = self.store.contents(entry)[:2]
            if self.accepted and not self.accepted.counts(test, measurement.verdicts, run_id, entry.commit):
                if not runs:
                    seen.add_regressed(commit or "")
                continue
            runs.append(BaselineRun(run_id, commit, measurement))
            if len(runs) == self.limit_runs:
                break
        if runs:
            return Found(tuple(runs), note=seen.unblessed)
        return Found((), self._why(test, seen, existing), seen.nearest)

    def _places(
        self, test: str, entries: tuple[StoredFile, ...], seen: NoBaseline
    ) -> Iterator[tuple[StoredFile, IndexedMeasurement]]:
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
            place = contents.measurements.get(test)
            if place is not None:
                yield entry, place

    def _why(self, test: str, seen: NoBaseline, existing: Collection[str]) -> str:
        others = (self.dirty_entries, self.other_entries)
        if not self.entries:
            if self.kind != "ref":
                return f"{self.label} holds no run"
            return why_no_history(self.label, self.commits, *others, self.store.path)
        outside = [None if seen.nearest or seen.invalid else self._outside(test, runs) for runs in others]
        return why_not_found(seen, existing, *outside)

    def _outside(self, test: str, entries: tuple[StoredFile, ...]) -> StoredFile | None:
        places = self._places(test, entries[:_ELSEWHERE_RUNS], NoBaseline(test, self.label, len(entries)))
        return next((entry for entry, _ in places), None)


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
        if len(fitting) > 1:
            raise UsageError(
                f"baseline {self.value!r} is {' and '.join(_MEANINGS[kind] for kind in fitting)}: "
                f"say which with {' or '.join(f'{kind}:{self.value}' for kind in fitting)}"
            )
        if fitting:
            return self.as_kind(fitting[0])
        if self.path.is_file() or json_files(self.path):
            return self._of_path()
        raise HistoryError(
            f"baseline {self.value!r} is no git ref, no saved run and no path of stored runs. As a ref: {no_ref} "
            f"{self._saved_names()} {self.path} {'holds no runs' if self.path.exists() else 'does not exist'}."
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
            accepted=Accepted(read_blessings(self.store.path), commits),
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
