"""Which stored runs some baseline still needs, and which may go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_tokenpower.core.records import VerdictRecord
from pytest_tokenpower.errors import HistoryError, StoreError
from pytest_tokenpower.store.acceptances import Acceptances
from pytest_tokenpower.store.git import Repository, default_branch, first_parent_history, run_git
from pytest_tokenpower.store.store import COMMIT_LENGTH, Store, StoredFile


@dataclass(frozen=True)
class Line:
    """A history that baselines are taken from: its commits, newest first, or runs that are taken at their word."""

    name: str
    commits: tuple[str, ...] = ()


def lines_of(repository: Repository) -> tuple[Line, ...]:
    """Return the lines that a baseline may be on: the default branch, where each other branch left it, and every tag.

    Raises HistoryError where history is cut off, as what lies beyond cannot be told from what nobody needs.
    """
    if repository.is_shallow:
        raise HistoryError(
            f"{repository.top_level} is a shallow clone: which runs its branches need cannot be told; "
            "run git fetch --unshallow"
        )
    main = default_branch(repository)
    if main is None:
        return ()
    starts = {main.commit: main.name}
    if repository.head is not None:
        starts.setdefault(repository.head, "HEAD")
    listed = run_git(
        repository.top_level,
        "for-each-ref",
        "--format=%(refname)%00%(objecttype)%00%(objectname)%00%(*objecttype)%00%(*objectname)",
        "refs/heads",
        "refs/remotes",
        "refs/tags",
    )
    if listed.code != 0:
        raise HistoryError(f"{repository.top_level}: git for-each-ref failed: {listed.complaint}")
    for row in listed.stdout.splitlines():
        name, kind, commit, inner_kind, inner = row.split("\0")
        commit = inner if inner_kind else commit
        if (inner_kind or kind) != "commit":
            continue  # A tag of a file or a folder.
        # A branch is a baseline itself (release/1.0), and what it left the default branch at is its own.
        starts.setdefault(commit, name)
        base = run_git(repository.top_level, "merge-base", main.commit, commit)
        if base.code == 0:
            starts.setdefault(base.line, f"{name}'s beginning")
    return tuple(Line(name, first_parent_history(repository, commit)) for commit, name in starts.items())


class Retention:
    """What the baselines of a store's lines need, each run read at most once."""

    def __init__(self, store: Store, repository: Repository | None, keep: int) -> None:
        self._store = store
        self._repository = repository
        self._keep = keep
        self._verdicts: dict[tuple[str, str], tuple[VerdictRecord, ...] | None] = {}

    def needed(self, entries: Sequence[StoredFile], lines: Iterable[Line]) -> set[StoredFile]:
        """Return the runs that a baseline may want: on each line the newest of every test and key, and those newer.

        Only what counts as a baseline is counted; a run that regressed and may yet be accepted is kept on top. Runs
        with a name, and runs outside git, are lines of their own. A file that cannot be read is kept.
        """
        found: set[StoredFile] = set()
        for line in lines:
            order = {commit[:COMMIT_LENGTH]: at for at, commit in enumerate(line.commits)}
            ours = [entry for entry in entries if entry.state == "clean" and entry.commit in order]
            ours.sort(key=lambda entry: order[entry.commit or ""])
            accepted = Acceptances.read(self._repository, line.commits) if self._repository else None
            found |= self._newest(ours, accepted)
        for name in {entry.name for entry in entries} - {None}:
            found |= self._newest([entry for entry in entries if entry.name == name], None)
        return found | self._newest([entry for entry in entries if entry.commit is None], None)

    def _newest(self, entries: Sequence[StoredFile], accepted: Acceptances | None) -> set[StoredFile]:
        found: set[StoredFile] = set()
        counted: dict[tuple[str, int], int] = {}
        for entry in entries:
            try:
                contents = self._store.contents(entry)
            except StoreError:
                found.add(entry)
                continue
            for test, place in contents.measurements.items():
                # Equal keys of a store are one object.
                which = (test, id(place.key))
                if not place.comparable or counted.get(which, 0) >= self._keep:
                    continue
                found.add(entry)
                if accepted is None or self._counts(entry, test, accepted):
                    counted[which] = counted.get(which, 0) + 1
        return found

    def _counts(self, entry: StoredFile, test: str, accepted: Acceptances) -> bool:
        if (entry.file, test) not in self._verdicts:
            try:
                verdicts = self._store.measurement(entry, test).verdicts
            except StoreError:
                verdicts = None
            self._verdicts[entry.file, test] = verdicts
        verdicts = self._verdicts[entry.file, test]
        if verdicts is None:
            return False
        return accepted.counts(verdicts, entry.commit, test)
