"""The first-parent line of a branch: the commits that were, one after another, its state."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from pytest_tokenpower.baselines.git import HISTORY_LIMIT, Repository, ResolvedRef, run_git
from pytest_tokenpower.errors import HistoryError

_USUAL_NAMES = ("main", "master", "trunk", "develop")
_SUBJECTS_AT_ONCE = 200


def first_parents(repository: Repository, ref: str) -> tuple[ResolvedRef, tuple[str, ...]]:
    """The commit of ``ref`` and its first parents, newest first, at most HISTORY_LIMIT.

    Raises HistoryError for an unknown ref. In a shallow clone the line ends where history was cut off.
    """
    found = repository.resolve(ref)
    return found, line_of(repository, found.commit)


def line_of(repository: Repository, commit: str) -> tuple[str, ...]:
    """A commit and its first parents, newest first, at most HISTORY_LIMIT; raises HistoryError."""
    chain = run_git(
        repository.top_level, "rev-list", "--first-parent", f"--max-count={HISTORY_LIMIT}", commit
    )
    if chain.code != 0:
        raise HistoryError(f"{repository.top_level}: git rev-list {commit[:7]} failed: {chain.complaint}")
    return tuple(chain.stdout.split())


def default_branch(repository: Repository) -> ResolvedRef | None:
    """The branch that others grow from: origin's HEAD, or else a branch with a usual name, or else HEAD itself.

    None in a repository without a commit.
    """
    head = run_git(repository.top_level, "symbolic-ref", "--quiet", "--short", "refs/remotes/origin/HEAD")
    for name in (*([head.line] if head.code == 0 else []), *_USUAL_NAMES):
        try:
            return repository.resolve(name)
        except HistoryError:
            continue
    if repository.head is None:
        return None
    return ResolvedRef(repository.branch or "HEAD", repository.head)


def merged_by(repository: Repository, commit: str, line: Collection[str], tip: str) -> str | None:
    """The commit of ``line`` (which ends in ``tip``) that brought ``commit`` in; None if none did."""
    path = run_git(
        repository.top_level, "rev-list", "--first-parent", "--ancestry-path", f"{commit}..{tip}"
    ).stdout.split()
    return next((each for each in reversed(path) if each in line), None)


def subjects(repository: Repository, commits: Iterable[str]) -> dict[str, str]:
    """The first line of each commit's message; commits that git does not know are left out."""
    wanted = list(dict.fromkeys(commits))
    found: dict[str, str] = {}
    for start in range(0, len(wanted), _SUBJECTS_AT_ONCE):
        some = wanted[start : start + _SUBJECTS_AT_ONCE]
        shown = run_git(
            repository.top_level, "log", "--no-walk=unsorted", "--ignore-missing", "--format=%H%x00%s", *some
        )
        for line in shown.stdout.splitlines():
            commit, _, subject = line.partition("\0")
            found[commit] = subject
    return found
