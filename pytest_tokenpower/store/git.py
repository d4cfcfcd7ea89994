"""What git knows of the work tree and its history. The only module that runs the git program."""

from __future__ import annotations

import difflib
import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pytest_tokenpower.errors import HistoryError

HISTORY_LIMIT = 1000
"""A baseline reaches back over at most this many commits."""

UNTRACKED_CODE = ("*.py", "*.so", "*.pyd", "*.pth", "*.toml", "*.ini", "*.cfg", "*.yaml", "*.yml")
"""Untracked files of these kinds make a work tree dirty: Python or pytest picks them up by their being there."""

_NOT_OURS = frozenset({"site-packages", "node_modules"})

_ENVIRONMENT_MARKS = ("pyvenv.cfg", "conda-meta")
"""What lies in the top folder of a virtual environment, by whatever name it goes."""

ACCEPTED_FOLDER = ".tokenpower/accepted"
RENAMED_FOLDER = ".tokenpower/renamed"
"""Where acceptances and renames are committed. Of hidden folders these are the ones that have a say in verdicts."""

_TEST_FILES = (":(top)*.py", ":(top)*.toml")
"""Among these renames are looked for: tests are in Python files, and in suites."""

_QUICK_S = 30.0

SCAN_S = 120.0


# Set by git for its hooks; inherited by a pytest that runs in one, they would point at the wrong repository, or have
# our patterns of files mean something else (and a new conftest.py go unseen).
_INHERITED_VARIABLES = frozenset(
    {
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_COMMON_DIR",
        "GIT_DIR",
        "GIT_GLOB_PATHSPECS",
        "GIT_ICASE_PATHSPECS",
        "GIT_INDEX_FILE",
        "GIT_LITERAL_PATHSPECS",
        "GIT_NAMESPACE",
        "GIT_NOGLOB_PATHSPECS",
        "GIT_OBJECT_DIRECTORY",
        "GIT_PREFIX",
        "GIT_SHALLOW_FILE",
        "GIT_WORK_TREE",
    }
)


@dataclass(frozen=True)
class GitOutput:
    """How the git program ended, and what it wrote. ``stdout`` is decoded as file names are."""

    code: int
    stdout: str
    stderr: str

    @property
    def line(self) -> str:
        """The output without its line end."""
        return self.stdout.rstrip("\n")

    @property
    def complaint(self) -> str:
        """What git wrote to stderr, on one line."""
        return " ".join(self.stderr.split()) or f"exit status {self.code}"


def run_git(
    folder: Path, *arguments: str, stdin: bytes = b"", timeout_s: float = _QUICK_S, may_fetch: bool = False
) -> GitOutput:
    """Run ``git -C folder arguments``: no prompt, no pager, no lock that is optional, messages in English.

    A failing git is an answer (``code``).

    Args:
        folder: where git runs.
        arguments: the command line after ``git``.
        stdin: what git reads.
        timeout_s: how long git may take.
        may_fetch: in a partial clone, objects that are not here may be fetched (a checkout needs their contents).
            git 2.44 and later then obey; earlier ones fetch them in any case.

    Raises:
        HistoryError: git is not installed or does not come back.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _INHERITED_VARIABLES}
    environment |= {
        "LC_ALL": "C",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "0" if may_fetch else "1",
        # History as everybody has it, without what was replaced or grafted in this clone.
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_GRAFT_FILE": os.devnull,
        "GIT_PAGER": "cat",
    }
    try:
        done = subprocess.run(
            ["git", "-C", os.fspath(folder), *arguments],
            input=stdin,
            capture_output=True,
            env=environment,
            timeout=timeout_s,
            check=False,
        )
    except OSError as error:
        raise HistoryError(f"the git program cannot be run ({error.strerror}): is it installed?") from error
    except subprocess.TimeoutExpired as error:
        raise HistoryError(f"{folder}: git {arguments[0]} gave no answer within {timeout_s:g} s") from error
    return GitOutput(done.returncode, os.fsdecode(done.stdout), done.stderr.decode("utf-8", "replace"))


def ask_git(
    folder: Path, *arguments: str, stdin: bytes = b"", timeout_s: float = SCAN_S, may_fetch: bool = False
) -> str:
    """Return what git writes, as :func:`run_git` runs it; raises HistoryError where it fails."""
    done = run_git(folder, *arguments, stdin=stdin, timeout_s=timeout_s, may_fetch=may_fetch)
    if done.code != 0:
        raise HistoryError(f"{folder}: git {arguments[0]} failed: {done.complaint}")
    return done.stdout


@dataclass(frozen=True)
class ResolvedRef:
    """A ref as it was found: ``name`` may be ``origin/main`` where ``main`` was asked for.

    ``note`` says what else goes by that name and was not taken; empty where there is one meaning only.
    """

    name: str
    commit: str
    note: str = ""


@dataclass(frozen=True)
class Repository:
    """A work tree and its repository, as they stood when they were discovered.

    ``head`` is None before the first commit, ``branch`` is None when HEAD is detached. ``changes`` names what
    makes the tree dirty: modified or staged tracked files, submodules at another commit or with modified files,
    and untracked files that are not ignored and of a kind that Python or pytest picks up by itself
    (:data:`UNTRACKED_CODE`: a new ``conftest.py`` changes what is measured). Other untracked files (reports,
    logs, weights, whatever is in a virtual environment or a hidden folder) do not count: CI jobs leave them behind,
    and no run of theirs would ever become a baseline.
    ``common_dir`` is shared by all worktrees; in a submodule everything is the inner repository's.
    """

    top_level: Path
    common_dir: Path
    head: str | None
    branch: str | None
    changes: tuple[str, ...]
    is_shallow: bool

    @classmethod
    def discover(cls, path: Path) -> Repository | None:
        """Return the repository whose work tree holds ``path``; None where there is none (:func:`explain_absence`)."""
        found = _probe(path)
        return found if isinstance(found, cls) else None

    @property
    def dirty(self) -> bool:
        """Whether what runs here may differ from what HEAD holds."""
        return bool(self.changes)

    def resolve(self, ref: str) -> ResolvedRef:
        """Return the commit that ``ref`` names; of a branch the newest that is known here.

        A branch's name stands for the local branch and for the branch of that name on the remotes, whichever is
        ahead of the others: clones of CI agents and developers keep a local ``main`` that nobody updates. Where the
        local branch and the one on its remote have diverged, the local one is taken. A tag of a branch's name is
        not what is meant. ``note`` tells of each such choice.

        Raises:
            HistoryError: nothing goes by that name; lists what was tried and says how to get it.
        """
        if not ref or ref.startswith("-") or "\0" in ref:
            raise HistoryError(f"{ref!r} is not a git ref: give a branch, a tag or a commit")
        if (remote := self._of_remote(ref)) is not None:
            return remote
        branches = self._branches(ref)
        if branches:
            return self._newest(ref, branches)
        commit = _commit_of(self.top_level, ref)
        if commit is not None:
            return ResolvedRef(ref, commit)
        raise HistoryError(self._unknown(ref, [ref, *(f"{remote}/{ref}" for remote in self._remotes())]))

    def _of_remote(self, ref: str) -> ResolvedRef | None:
        """Return the branch of a remote that is named with it (``origin/main``), whatever else goes by that name."""
        if not any(ref.startswith(f"{remote}/") for remote in self._remotes()):
            return None
        commit = _commit_of(self.top_level, f"refs/remotes/{ref}")
        if commit is None:
            return None
        notes = [
            f"the {kind} {ref} ({other[:7]}) is not taken: give {full} for it"
            for kind, full in (("local branch", f"refs/heads/{ref}"), ("tag", f"refs/tags/{ref}"))
            if (other := _commit_of(self.top_level, full)) not in (None, commit)
        ]
        return ResolvedRef(ref, commit, "; ".join(notes))

    def _branches(self, ref: str) -> dict[str, str]:
        """Return the commits of the branches that a name stands for.

        The local one first, then by remote, its own first. What a colleague's remote calls main is their own affair,
        however far ahead it is, unless no other remote has it.
        """
        if ref == "HEAD" or run_git(self.top_level, "check-ref-format", "--branch", ref).line != ref:
            return {}  # HEAD~2, @{u}, a range.
        remotes = self._remotes()
        own = run_git(self.top_level, "config", "--get", f"branch.{ref}.remote").line
        remotes.sort(key=lambda name: name != own)
        spelled = {
            ref: f"refs/heads/{ref}",
            **{f"{each}/{ref}": f"refs/remotes/{each}/{ref}" for each in remotes},
        }
        found = {name: _commit_of(self.top_level, full) for name, full in spelled.items()}
        known = {name: commit for name, commit in found.items() if commit is not None}
        usual = {ref, *(f"{each}/{ref}" for each in (self._remote_of(ref), "origin", "upstream"))}
        return {name: commit for name, commit in known.items() if name in usual} or known

    def _newest(self, ref: str, branches: dict[str, str]) -> ResolvedRef:
        (name, commit), *others = branches.items()
        notes = []
        for other, ahead in others:
            if ahead == commit or self.is_ancestor(ahead, commit):
                continue
            if self.is_ancestor(commit, ahead):
                notes.append(f"{other} is taken, as {name} ({commit[:7]}) is behind it")
                name, commit = other, ahead
            elif other == f"{self._remote_of(ref)}/{ref}" and name == ref:
                notes.append(
                    f"{name} ({commit[:7]}) and {other} ({ahead[:7]}) have diverged; {name} is taken: "
                    f"give {other} for the other"
                )
        tagged = _commit_of(self.top_level, f"refs/tags/{ref}")
        if tagged is not None and tagged != commit:
            notes.append(f"the tag {ref} ({tagged[:7]}) is not taken: give refs/tags/{ref} for it")
        return ResolvedRef(name, commit, "; ".join(notes))

    def _remote_of(self, branch: str) -> str:
        """Return the remote that a local branch belongs to: the one that it tracks, or else origin or the only one."""
        own = run_git(self.top_level, "config", "--get", f"branch.{branch}.remote").line
        return own or next(iter(self._remotes()), "")

    def is_ancestor(self, older: str, newer: str) -> bool:
        """Whether a commit is in the history of another, or is it."""
        return run_git(self.top_level, "merge-base", "--is-ancestor", older, newer).code == 0

    def files_at(self, commit: str) -> frozenset[str]:
        """Return the paths that a commit holds; none where git does not know the commit."""
        listed = run_git(
            self.top_level,
            *("ls-tree", "-r", "-z", "--name-only", "--full-tree", commit),
            timeout_s=SCAN_S,
            may_fetch=True,
        )
        return frozenset(filter(None, listed.stdout.split("\0"))) if listed.code == 0 else frozenset()

    def renames(self, older: str, newer: str | None) -> dict[str, str]:
        """Return the earlier path of each file that was renamed between two commits, by its later path.

        As git tells it: of the two commits, and of each step between them, as a file may have been rewritten since.
        ``newer`` is None for the work tree.
        """
        # A partial clone may lack what is compared; where it cannot be fetched, files of equal contents can be told.
        for similar, may_fetch in ((50, False), (50, True), (100, False)):
            options = (
                "--no-ext-diff",
                "--diff-filter=R",
                "--name-status",
                "-z",
                f"--find-renames={similar}%",
            )
            try:
                whole, here, steps = (
                    self._renamed(command, *options, *what, may_fetch=may_fetch)
                    for command, *what in (
                        ("diff", older, *([newer] if newer else [])),
                        ("diff", newer or "HEAD", *([newer] if newer else [])),
                        ("log", "--topo-order", "--format=", f"{older}..{newer or 'HEAD'}"),
                    )
                )
            except HistoryError:
                continue
            found: dict[str, str] = {}
            for earlier, later in [*here, *steps]:  # The newest step first.
                since = next((name for name, was in found.items() if was == later), later)
                found[since] = earlier
            return {later: earlier for earlier, later in whole} | found
        return {}

    def _renamed(self, *arguments: str, may_fetch: bool) -> list[tuple[str, str]]:
        """Return the earlier and the later path of each rename that ``--name-status -z`` tells of."""
        parts = ask_git(self.top_level, *arguments, "--", *_TEST_FILES, may_fetch=may_fetch).split("\0")
        return list(zip(parts[1::3], parts[2::3], strict=False))

    def baseline_commits(self, ref: str) -> tuple[str, ...]:
        """Return the commits whose runs are the baseline of the work tree against ``ref``, newest first.

        They begin at the merge base of HEAD and ``ref`` and follow first parents, at most
        :data:`HISTORY_LIMIT`. Where HEAD itself is on ``ref`` the merge base is HEAD: then they begin at HEAD's
        first parent (none for a first commit), or at HEAD when the work tree is dirty, as the candidate is not
        HEAD then. Raises HistoryError for an unknown ref, a shallow clone, and unrelated histories.
        """
        target = self.resolve(ref)
        if self.head is None:
            raise HistoryError(
                f"{self.top_level} has no commit yet, so {ref} is no baseline for it: commit first"
            )
        if self.is_shallow:
            # A merge base found in cut-off history may be the wrong one, and its ancestors are missing.
            raise HistoryError(
                f"{self.top_level} is a shallow clone: the history that {target.name} and HEAD share is cut off. "
                + _UNSHALLOW
            )
        base = run_git(self.top_level, "merge-base", self.head, target.commit)
        if base.code == 1:
            raise HistoryError(
                f"{self.top_level}: HEAD ({self.head[:7]}) and {target.name} ({target.commit[:7]}) have no commit "
                "in common: give a ref that HEAD was branched from"
            )
        if base.code != 0:
            raise HistoryError(
                f"{self.top_level}: git merge-base HEAD {target.name} failed: {base.complaint}"
            )
        skip_head = base.line == self.head and not self.dirty
        limits = (f"--max-count={HISTORY_LIMIT}", f"--skip={int(skip_head)}")
        return tuple(ask_git(self.top_level, "rev-list", "--first-parent", *limits, base.line).split())

    def _remotes(self) -> list[str]:
        names = run_git(self.top_level, "remote").stdout.split()
        return sorted(names, key=lambda name: (name != "origin", name))

    def _unknown(self, ref: str, tried: list[str]) -> str:
        remotes = self._remotes()
        parts = [f"{self.top_level}: git knows no {ref!r} (tried {', '.join(tried)})."]
        kinds = ("refs/heads", "refs/tags", "refs/remotes")
        known = run_git(self.top_level, "for-each-ref", "--format=%(refname:short)", *kinds)
        close = difflib.get_close_matches(ref, known.stdout.split(), n=3)
        if close:
            parts.append(f"Similar: {', '.join(close)}.")
        if remotes:
            # The destination is spelled out because a clone of a single branch would not create it.
            remote = next((name for name in remotes if ref.startswith(f"{name}/")), remotes[0])
            branch = ref.removeprefix(f"{remote}/")
            parts.append(
                f"If it is a branch of {remote}: git fetch {remote} {branch} creates {remote}/{branch} in a full "
                f"clone; git fetch {remote} {branch}:refs/remotes/{remote}/{branch} does in any."
            )
        else:
            parts.append("There is no remote to fetch it from: give a branch, a tag or a commit.")
        if self.is_shallow:
            parts.append("This is a shallow clone. " + _UNSHALLOW)
        return " ".join(parts)


_UNSHALLOW = (
    "In GitHub Actions give actions/checkout `fetch-depth: 0` (with `filter: blob:none` it stays quick); "
    "elsewhere run: git fetch --unshallow"
)


def explain_absence(path: Path) -> str:
    """Why :meth:`Repository.discover` finds no repository at ``path``; empty if it finds one."""
    found = _probe(path)
    return found if isinstance(found, str) else ""


def unreadable_repository(path: Path) -> str:
    """Why git cannot read the repository that ``path`` lies in; empty where it can, and where there is none."""
    if any((folder / ".git").exists() for folder in (path.absolute(), *path.absolute().parents)):
        return explain_absence(path)
    return ""


def _probe(path: Path) -> Repository | str:
    folder = path.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        where = run_git(folder, "rev-parse", "--is-shallow-repository", "--git-common-dir", "--show-toplevel")
        lines = where.stdout.splitlines()
        if where.code != 0 or len(lines) != 3:
            return _no_work_tree(folder, where)
        top_level = Path(lines[2])
        branch = run_git(top_level, "symbolic-ref", "--quiet", "--short", "HEAD")
        return Repository(
            top_level=top_level,
            # Relative to the folder that was asked in; --path-format is too new (git 2.31) to rely on.
            common_dir=Path(os.path.realpath(folder / lines[1])),
            head=_commit_of(top_level, "HEAD"),
            branch=branch.line if branch.code == 0 else None,
            changes=_changes(top_level),
            is_shallow=lines[0] == "true",
        )
    except HistoryError as error:
        return str(error)


def _no_work_tree(folder: Path, output: GitOutput) -> str:
    # "not a git repository: PATH" is of a .git file that points to nothing: a worktree whose repository was moved.
    if "not a git repository (" in output.stderr:
        return f"{folder} is in no git repository"
    if "dubious ownership" in output.stderr:
        return (
            f"git refuses to read the repository at {folder}, which belongs to another user; to allow it: "
            f"git config --global --add safe.directory {folder}"
        )
    return f"git finds no work tree at {folder}: {output.complaint}"


def _commit_of(top_level: Path, name: str) -> str | None:
    found = run_git(top_level, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    return found.line if found.code == 0 else None


def _changes(top_level: Path) -> tuple[str, ...]:
    """Return what makes the tree dirty. A question that git does not answer counts as dirty: never a false baseline."""
    try:
        tracked = run_git(
            top_level,
            "status",
            "--porcelain=v1",
            "-z",
            "--untracked-files=no",
            "--ignore-submodules=untracked",
            "--no-renames",
            timeout_s=SCAN_S,
        )
        untracked = run_git(
            top_level,
            "ls-files",
            "-z",
            "--others",
            "--exclude-standard",
            "--",
            *UNTRACKED_CODE,
            timeout_s=SCAN_S,
        )
        unwatched = run_git(top_level, "ls-files", "-z", "-v", "--stage", timeout_s=SCAN_S)
    except HistoryError as error:
        return (f"({error})",)
    failed = [output for output in (tracked, untracked, unwatched) if output.code != 0]
    if failed:
        return (f"(git could not say: {failed[0].complaint})",)
    changed = [entry[3:] for entry in tracked.stdout.split("\0") if entry]
    new = [
        name for name in untracked.stdout.split("\0") if name and _picked_up(top_level, PurePosixPath(name))
    ]
    return (*changed, *_changed_unseen(top_level, unwatched.stdout), *new)


def _changed_unseen(top_level: Path, listed: str) -> list[str]:
    """Return the files that git was told not to look at (assume-unchanged, skip-worktree) and that were changed."""
    wanted = {}
    for entry in filter(None, listed.split("\0")):
        facts, _, name = entry.partition("\t")
        flag, mode, blob, _ = facts.split()
        # A sparse checkout leaves such files away.
        if (flag.islower() or flag == "S") and mode.startswith("100") and (top_level / name).is_file():
            wanted[name] = blob
    if not wanted:
        return []
    paths = "".join(f"{name}\n" for name in wanted)
    hashed = run_git(top_level, "hash-object", "--stdin-paths", stdin=os.fsencode(paths), timeout_s=SCAN_S)
    found = hashed.stdout.split() if hashed.code == 0 else []
    return [name for at, (name, blob) in enumerate(wanted.items()) if found[at : at + 1] != [blob]]


def _picked_up(top_level: Path, path: PurePosixPath) -> bool:
    """Whether an untracked file may be read by its being there: not what is installed, nor in a hidden folder."""
    if path.is_relative_to(ACCEPTED_FOLDER) or path.is_relative_to(RENAMED_FOLDER):
        return True
    folders = path.parent.parts
    if _NOT_OURS.intersection(folders) or any(name.startswith(".") for name in folders):
        return False
    return not any(
        (top_level / folder / mark).exists() for folder in path.parents for mark in _ENVIRONMENT_MARKS
    )


def changed_files(repository: Repository, commit: str) -> tuple[str, ...]:
    """Return the tracked files that differ between a commit and the work tree; raises HistoryError."""
    options = ("--no-ext-diff", "--no-renames", "--name-only", "--ignore-submodules=none", "-z")
    shown = ask_git(repository.top_level, "diff", *options, commit, may_fetch=True)
    return tuple(filter(None, shown.split("\0")))


def check_out_submodules(top_level: Path, tree: Path) -> None:
    """Check out in another work tree the submodules that are checked out in this one, as its commit wants them.

    They come from the copies that this repository holds, or else from where they are kept. Raises HistoryError.
    """
    if not (tree / ".gitmodules").is_file():
        return
    named = run_git(tree, "config", "--file", ".gitmodules", "-z", "--get-regexp", r"^submodule\..*\.path$")
    for row in filter(None, named.stdout.split("\0")):
        key, _, path = row.partition("\n")
        name = key.removeprefix("submodule.").removesuffix(".path")
        inner = run_git(
            top_level / path, "rev-parse", "--absolute-git-dir", "--show-toplevel"
        ).stdout.splitlines()
        if len(inner) != 2 or Path(inner[1]) != Path(os.path.realpath(top_level / path)):
            continue  # Not checked out here: the candidate does without it, too.
        local = ("-c", "protocol.file.allow=always", "-c", f"submodule.{name}.url={inner[0]}")
        for options in (local, ()):
            done = run_git(
                tree,
                *(*options, "submodule", "--quiet", "update", "--init", "--force", "--", path),
                timeout_s=600,
                may_fetch=True,
            )
            if done.code == 0:
                break
        else:
            raise HistoryError(f"{tree}: the submodule {path} cannot be checked out: {done.complaint}")
        check_out_submodules(top_level / path, tree / path)


_USUAL_NAMES = ("main", "master", "trunk", "develop")

_SUBJECTS_AT_ONCE = 200


def first_parents(repository: Repository, ref: str) -> tuple[ResolvedRef, tuple[str, ...]]:
    """Return the commit of ``ref`` and its first parents, newest first, at most HISTORY_LIMIT.

    Raises HistoryError for an unknown ref. In a shallow clone the line ends where history was cut off.
    """
    found = repository.resolve(ref)
    return found, first_parent_history(repository, found.commit)


def first_parent_history(repository: Repository, commit: str) -> tuple[str, ...]:
    """Return a commit and its first parents, newest first, at most HISTORY_LIMIT; raises HistoryError."""
    limit = f"--max-count={HISTORY_LIMIT}"
    return tuple(ask_git(repository.top_level, "rev-list", "--first-parent", limit, commit).split())


def default_branch(repository: Repository) -> ResolvedRef | None:
    """Return the branch that others grow from: origin's HEAD, or else a branch with a usual name, or else HEAD itself.

    None in a repository without a commit.
    """
    head = run_git(repository.top_level, "symbolic-ref", "--quiet", "--short", "refs/remotes/origin/HEAD")
    named = [head.line.removeprefix("origin/")] if head.code == 0 else []
    for name in (*named, *_USUAL_NAMES):
        try:
            return repository.resolve(name)
        except HistoryError:
            continue
    if repository.head is None:
        return None
    return ResolvedRef(repository.branch or "HEAD", repository.head)


def merged_by(repository: Repository, commit: str, line: Sequence[str]) -> str | None:
    """Return the commit of a line (newest first) that brought a commit in: the oldest that has it in its history."""
    if not commit or not line:
        return None
    path = run_git(
        repository.top_level, "rev-list", "--ancestry-path", f"{commit}..{line[0]}", timeout_s=SCAN_S
    )
    descendants = set(path.stdout.split())
    return next((each for each in reversed(line) if each in descendants), None)


def subjects(repository: Repository, commits: Iterable[str]) -> dict[str, str]:
    """Return the first line of each commit's message; commits that git does not know are left out."""
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
