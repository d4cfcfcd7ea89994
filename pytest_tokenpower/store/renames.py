"""What a test was called before: by git's own detection of renamed files, and by what was committed with a rename.

Git does not know of functions, and not of a file that was moved and rewritten at once. What it cannot tell is never
guessed: a small file says it, which is reviewed with the rename.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.store.committed import committed_file, read_committed, toml_string, write_committed
from pytest_tokenpower.store.git import RENAMED_FOLDER, Repository
from pytest_tokenpower.store.identity import file_of, in_file
from pytest_tokenpower.store.keys import LENGTHS, differences, ignoring

_COMMITS = 20
"""So many stored commits are asked for the renames since: each asks git once."""


class Rename(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """That ``test`` was called ``was``; both from the repository's top level.

    Without brackets it stands for every parameter, and a class, file or folder for all that is in it.
    """

    test: str
    was: str

    def earlier(self, test: str) -> str | None:
        """Return the earlier name of a test; None where it is not about it."""
        inside = test.removeprefix(self.test)
        if not test.startswith(self.test) or (inside and not inside.startswith(("[", "::", "/"))):
            return None
        return self.was + inside


def decode_rename(text: str, *, source: str) -> Rename:
    """Return a rename from its TOML; raises UsageError that names ``source``."""
    try:
        found = msgspec.toml.decode(text, type=Rename)
    except msgspec.DecodeError as error:
        raise UsageError(
            f"{source} is no rename ({error}): write it with tokenpower rename, or remove it"
        ) from error
    if not found.test or not found.was:
        raise UsageError(f"{source}: a rename names the test and what it was called")
    return found


def write_rename(repository: Repository, found: Rename) -> Path:
    """Write a rename into the work tree, over an earlier one of the test; returns its file. Raises StoreError."""
    text = (
        "# Written by `tokenpower rename`, reviewed with the change that renames.\n"
        f"test = {toml_string(found.test)}\nwas = {toml_string(found.was)}\n"
    )
    return write_committed(repository, committed_file(RENAMED_FOLDER, found.test), text)


def likely_renames(
    gone: Mapping[str, Mapping[str, Fact]], new: Mapping[str, Mapping[str, Fact]]
) -> dict[str, str]:
    """Return which new test each one that is gone may have become: of the same key and parameters, the most similar.

    By the tests' names without their parameters. To be asked, never assumed.
    """
    found: dict[str, str] = {}
    for test, key in gone.items():
        base, bracket, given = test.partition("[")
        if base in found:
            continue
        alike = [
            name.partition("[")[0]
            for name, other in new.items()
            if name.partition("[")[1:] == (bracket, given)
            and not differences(ignoring(key, LENGTHS), ignoring(other, LENGTHS))
        ]
        alike = [name for name in alike if name not in found.values()]
        if near := difflib.get_close_matches(base, alike, n=1, cutoff=0.0):
            found[base] = near[0]
    return found


class EarlierNames:
    """What the tests of a commit were called at earlier ones.

    Args:
        repository: where the commits are; None outside git, where nothing is known.
        tip: the commit whose names are asked for; None for the work tree.
        declared: the renames that were committed.
    """

    def __init__(
        self, repository: Repository | None = None, tip: str | None = None, declared: Sequence[Rename] = ()
    ) -> None:
        self._repository = repository
        self._tip = tip
        self._declared = tuple(declared)
        self._files: dict[str, dict[str, str]] = {}

    @classmethod
    def read(cls, repository: Repository | None, tip: str | None) -> EarlierNames:
        """Return those that git and the work tree's files tell; raises UsageError or StoreError for a bad file."""
        if repository is None:
            return cls()
        texts = read_committed(repository, RENAMED_FOLDER).items()
        declared = [decode_rename(text, source=str(repository.top_level / file)) for file, text in texts]
        return cls(repository, tip, declared)

    def declared(self, test: str) -> tuple[str, ...]:
        """Return a test's earlier names by what was committed, the latest first."""
        # Each counts once: what moved out of a folder or a class into the one around it fits its own earlier name.
        names: dict[str, frozenset[Rename]] = {test: frozenset()}
        queue = [test]
        for name in queue:
            for one in self._declared:
                was = None if one in names[name] else one.earlier(name)
                if was is not None and was not in names:
                    names[was] = names[name] | {one}
                    queue.append(was)
        return tuple(queue[1:])

    def at(self, commit: str | None, test: str) -> Iterator[str]:
        """Yield what a test may have been called at a commit, the likeliest first, its present name left out."""
        names = (test, *self.declared(test))
        for name in names:
            if name != test:
                yield name
            file = self.file_at(commit, file_of(name))
            if file is not None:
                yield in_file(name, file)

    def held(self, commit: str | None, test: str, held: Collection[str]) -> str | None:
        """Return the name by which a run of a commit holds a test, under its present name or an earlier one."""
        if test in held:
            return test
        return next((name for name in self.at(commit, test) if name in held), None)

    def file_at(self, commit: str | None, file: str) -> str | None:
        """Return the path that a file had at a commit; None where git tells of no rename."""
        if commit is None or self._repository is None:
            return None
        if commit not in self._files:
            if len(self._files) >= _COMMITS:
                return None
            self._files[commit] = self._repository.renames(commit, self._tip)
        return self._files[commit].get(file)
