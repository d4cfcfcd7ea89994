"""A store on a branch of a git remote: files are only ever added, no work tree or ref is touched."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from pytest_tokenpower.core.credentials import without_credentials
from pytest_tokenpower.core.files import read_bounded
from pytest_tokenpower.core.jobs import Job
from pytest_tokenpower.core.records import decode_run
from pytest_tokenpower.core.text import plural
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import HistoryError, StoreError, TokenPowerError, UsageError
from pytest_tokenpower.store.calibrations import FOLDER as CALIBRATIONS
from pytest_tokenpower.store.calibrations import calibration_paths, decode_calibration
from pytest_tokenpower.store.git import GitOutput, Repository, ask_git, run_git
from pytest_tokenpower.store.pulled import Pulled, read_pulled, write_pulled
from pytest_tokenpower.store.store import (
    MOST_RUN_BYTES,
    Problem,
    Store,
    StoredFile,
    file_name,
    make_folder,
    parse_file_name,
    publish,
    unwritable,
)

BRANCH = "tokenpower-store"

_REF = f"refs/heads/{BRANCH}"

_RUNS = "runs"

_NETWORK_S = 600.0

_AT_ONCE = 16

MOST_FILES = 20_000

MOST_BYTES = 2 << 30
"""A pull takes no more than this: whoever may write to the branch could fill the disk of everyone who reads it."""

_README = b"""Runs and calibrations of pytest-tokenpower, written by `tokenpower push`, read by `tokenpower pull`.
Files are only ever added. Do not merge this branch into another one.
"""


def run_path(entry: StoredFile) -> str:
    """Where a run is on the branch: in the folder of its month, so that a push writes small trees."""
    return f"{_RUNS}/{entry.created[:4]}-{entry.created[4:6]}/{entry.file}"


class StoreBranch:
    """The branch on one remote: what it holds, and commits on top of it. Raises HistoryError for what git refuses."""

    def __init__(self, repository: Repository, remote: str) -> None:
        self._top = repository.top_level
        self._remote = remote
        # Keeps what was fetched from being collected, so that the next fetch is small.
        self._kept = f"refs/tokenpower/{hashlib.sha256(os.fsencode(remote)).hexdigest()[:12]}"

    def tip(self) -> str | None:
        """Return the branch's commit on the remote; None where there is no such branch."""
        listed = run_git(self._top, "ls-remote", "--refs", self._remote, _REF, timeout_s=_NETWORK_S)
        if listed.code != 0:
            raise HistoryError(f"git ls-remote {self._remote} failed: {listed.complaint}")
        return listed.stdout.split()[0] if listed.stdout else None

    def fetch(self) -> str | None:
        """Have the branch's objects here; returns its commit."""
        asked: set[str] = set()
        for _ in range(_FETCHES):
            tip = self.tip()
            if tip is None or self._has(tip):
                if tip is not None:
                    self._git("update-ref", self._kept, tip)
                return tip
            # A clone with a filter (blob:none) would leave the runs away; the user's own refs stay as they are.
            # What it has without its trees (tree:0) is given once more only if that is asked for.
            fetched = self._fetch("--no-filter", *(["--refetch"] if tip in asked else []), _REF)
            asked.add(tip)
            if fetched.code != 0:
                raise HistoryError(f"git fetch {self._remote} {BRANCH} failed: {fetched.complaint}")
        raise HistoryError(
            f"git fetch {self._remote} {BRANCH}: it moved on {_FETCHES} times in a row; run it again"
        )

    def _fetch(self, *arguments: str, stdin: bytes = b"") -> GitOutput:
        options = ("--quiet", "--no-tags", "--no-prune", "--no-recurse-submodules", "--refmap=")
        return run_git(
            self._top,
            *("-c", "gc.auto=0", "-c", "maintenance.auto=false"),
            "fetch",
            *options,
            *(argument for argument in arguments if argument.startswith("--")),
            self._remote,
            *(argument for argument in arguments if not argument.startswith("--")),
            stdin=stdin,
            timeout_s=_NETWORK_S,
        )

    def _has(self, commit: str) -> bool:
        return self._git("cat-file", "-e", f"{commit}^{{tree}}").code == 0

    def files(self, tip: str) -> dict[str, str]:
        """Return the runs and calibrations on the branch: blobs by file name."""
        found = {}
        for _, kind, blob, path in self._tree(tip, recursive=True):
            folder, _, file = path.rpartition("/")
            top = folder.partition("/")[0]
            if kind == "blob" and ((top == _RUNS and parse_file_name("", file)) or folder == CALIBRATIONS):
                found[file] = blob
        return found

    def contents(self, wanted: Mapping[str, str]) -> Iterator[tuple[str, bytes | None]]:
        """Each file's bytes, the newest first and some at once; None for one that is larger than any run."""
        files = iter(sorted(wanted, reverse=True))
        while some := list(islice(files, _AT_ONCE)):
            sizes = self._sizes([wanted[file] for file in some])
            if missing := sorted({wanted[file] for file in some} - sizes.keys()):
                # The branch came with an earlier fetch of a clone with a filter.
                listed = "".join(f"{blob}\n" for blob in missing).encode()
                self._fetch("--filter=blob:none", "--stdin", stdin=listed)
                sizes |= self._sizes(missing)
            small = [file for file in some if sizes.get(wanted[file], 0) <= MOST_RUN_BYTES]
            found = self._blobs([wanted[file] for file in small])
            yield from ((file, None) for file in some if file not in small)
            for file in small:
                if wanted[file] not in found:
                    raise HistoryError(
                        f"{self._remote} {BRANCH}: the contents of {file} are not here; run git fetch --refetch "
                        f"--no-filter {self._remote} {BRANCH}"
                    )
                yield file, found[wanted[file]]

    def _sizes(self, blobs: Sequence[str]) -> dict[str, int]:
        """Bytes of the blobs that are here."""
        asked = "".join(f"{blob}\n" for blob in blobs).encode()
        listed = self._git("cat-file", "--batch-check=%(objectname) %(objectsize)", stdin=asked).stdout
        rows = (row.split() for row in listed.splitlines())
        return {blob: int(size) for blob, size, *_ in rows if size.isdecimal()}

    def _blobs(self, blobs: Sequence[str]) -> dict[str, bytes]:
        output = run_git(
            self._top,
            "cat-file",
            "--batch",
            stdin="".join(f"{blob}\n" for blob in blobs).encode(),
            timeout_s=_NETWORK_S,
        )
        data = os.fsencode(output.stdout)
        found: dict[str, bytes] = {}
        at = 0
        while at < len(data):
            end = data.index(b"\n", at)
            blob, kind, *size = data[at:end].decode().split()
            at = end + 1
            if kind == "blob":
                length = int(size[0])
                found[blob] = data[at : at + length]
                at += length + 1
        return found

    def commit(self, tip: str | None, added: Mapping[str, Path]) -> str:
        """Return the hash of a commit on top of ``tip`` with ``added`` (path on the branch to local file)."""
        paths = list(added)
        hashed = self._must(
            "hash-object",
            *("-w", "--no-filters", "--stdin-paths"),
            stdin=b"".join(os.fsencode(added[path].absolute()) + b"\n" for path in paths),
        ).split()
        blobs = dict(zip(paths, hashed, strict=True))
        if tip is None:
            blobs["README.md"] = self._must("hash-object", "-w", "--stdin", stdin=_README).strip()
        tree = self._with(tip, [(tuple(path.split("/")), blob) for path, blob in blobs.items()])
        count = len(added)
        message = f"Add {count} file{'' if count == 1 else 's'}\n"
        parent = () if tip is None else ("-p", tip)
        return self._must(
            *self._identity(), "commit-tree", tree, *parent, "-F", "-", stdin=message.encode()
        ).strip()

    def _with(self, tree: str | None, added: Iterable[tuple[tuple[str, ...], str]]) -> str:
        """``tree`` with further files (paths in parts); what it holds already stays as it is."""
        entries = {name: (mode, kind, each) for mode, kind, each, name in self._tree(tree)} if tree else {}
        below: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for (name, *rest), blob in added:
            if rest:
                below.setdefault(name, []).append((tuple(rest), blob))
            else:
                entries.setdefault(name, ("100644", "blob", blob))
        for name, files in below.items():
            known = entries.get(name)
            inner = known[2] if known is not None and known[1] == "tree" else None
            entries[name] = ("040000", "tree", self._with(inner, files))
        listed = "".join(f"{mode} {kind} {each}\t{name}\0" for name, (mode, kind, each) in entries.items())
        return self._must("mktree", "-z", "--missing", stdin=os.fsencode(listed)).strip()

    def _tree(self, tree: str, *, recursive: bool = False) -> Iterator[tuple[str, str, str, str]]:
        """Mode, kind, hash and name of each entry."""
        options = ("-r", "-z") if recursive else ("-z",)
        # From the top of the repository, whatever the folder that git runs in.
        for row in self._must("ls-tree", "--full-tree", *options, tree).split("\0"):
            if row:
                head, _, name = row.partition("\t")
                mode, kind, each = head.split()
                yield mode, kind, each, name

    def push(self, commit: str) -> GitOutput:
        """Move the remote's branch to ``commit``, which only works from the commit below it."""
        answer = run_git(
            self._top,
            "push",
            # No hook: the project's own checks are about its code, of which nothing is pushed.
            *("--quiet", "--no-verify", "--no-follow-tags", "--recurse-submodules=no"),
            self._remote,
            f"{commit}:{_REF}",
            timeout_s=_NETWORK_S,
        )
        if answer.code == 0:
            self._git("update-ref", self._kept, commit)
        return answer

    def _identity(self) -> tuple[str, ...]:
        # A CI job often has none, and a commit needs one.
        known = all(self._git("var", f"GIT_{role}_IDENT").code == 0 for role in ("AUTHOR", "COMMITTER"))
        return () if known else ("-c", "user.name=tokenpower", "-c", "user.email=tokenpower@localhost")

    def _git(self, *arguments: str, stdin: bytes = b"") -> GitOutput:
        return run_git(self._top, *arguments, stdin=stdin)

    def _must(self, *arguments: str, stdin: bytes = b"") -> str:
        return ask_git(self._top, *arguments, stdin=stdin, timeout_s=_NETWORK_S)


_FETCHES = 20
"""So often the branch may move on between a look at it and the fetch."""

PATIENCE_S = 300.0
"""Twenty jobs that push at once are all through in half a minute."""


@dataclass(frozen=True)
class SyncResult:
    """The files that went over, and those that did not, with the reason.

    ``held_back`` are sound, and not this job's. ``exists``: the remote has such a branch.
    """

    remote: str
    files: tuple[str, ...]
    left_out: tuple[Problem, ...] = ()
    exists: bool = True
    held_back: tuple[str, ...] = ()


def choose_remote(repository: Repository, name: str | None) -> str:
    """Return a remote's name, a URL or a path; without one, origin or the only remote.

    Raises UsageError that lists them.
    """
    known = run_git(repository.top_level, "remote").stdout.split()
    listed = f"the remotes of {repository.top_level}: {', '.join(known) or 'none (git remote add NAME URL)'}"
    if name is None:
        if "origin" in known or len(known) == 1:
            return "origin" if "origin" in known else known[0]
        raise UsageError(f"name a remote, as there is none called origin; {listed}")
    if name in known or (not name.startswith("-") and ("/" in name or ":" in name)):
        return name
    raise UsageError(f"{name!r} is no remote; {listed}")


def push(
    repository: Repository, store: Store, remote: str, *, job: Job | None = None, everything: bool = False
) -> SyncResult:
    """Add the runs and calibrations stored since the last pull to the branch on ``remote``; nothing there is changed.

    What was in the store before is not this job's: a pull request's job may have left it. In a CI ``job`` a run must
    also say that the job has made it. Where others push at the same time it merges and tries again,
    for PATIENCE_S.

    Args:
        repository: any clone that knows the remote.
        store: whose runs.
        remote: a name, URL or path.
        job: the CI job that pushes.
        everything: add all runs, whoever made them; not in a CI job.

    Raises:
        UsageError: the job runs the code of a change that is not merged, or did not pull.
        HistoryError: git or the remote refuses.
    """
    left = _left_by_others(repository, store, job, everything)
    branch = StoreBranch(repository, remote)
    left_out: dict[str, Problem] = {}
    held_back: set[str] = set()
    until = time.monotonic() + PATIENCE_S
    for attempt in count(1):
        tip = branch.fetch()
        there = branch.files(tip) if tip else {}
        added = {}
        for path, file in _local_files(store):
            if file.name in there or path in left_out or file.name in held_back:
                continue
            if file.name in left:
                held_back.add(file.name)
                continue
            try:
                made_by = _made_by(store, file)
            except (TokenPowerError, OSError) as error:
                left_out[path] = Problem(file, str(error).removeprefix(f"{file}: "))
                continue
            if job is None or made_by == job.name:
                added[path] = file
            else:
                held_back.add(file.name)
        result = SyncResult(
            remote,
            tuple(sorted(file.name for file in added.values())),
            tuple(left_out.values()),
            exists=tip is not None,
            held_back=tuple(sorted(held_back)),
        )
        if not added:
            return result
        answer = branch.push(branch.commit(tip, added))
        if answer.code == 0:
            return result
        # Only the remote's branch tells for sure that another push was quicker.
        if branch.tip() == tip and "lock" not in answer.stderr:
            raise HistoryError(f"git push to {remote} {BRANCH} failed: {answer.complaint}")
        if time.monotonic() > until:
            break
        time.sleep(random.random() * min(0.2 * 2**attempt, 5.0))
    raise HistoryError(
        f"git push to {remote} {BRANCH}: others were quicker {plural(attempt, 'time')} in a row; run it again"
    )


def _left_by_others(
    repository: Repository, store: Store, job: Job | None, everything: bool
) -> frozenset[str]:
    if job is not None:
        change = job.change
        if job.commit and job.commit != repository.head:
            change = (
                f"{(repository.head or '')[:7]}, which is not the commit {job.commit[:7]} that it is about,"
            )
        if change:
            raise UsageError(
                f"this job runs the code of {change}, which could have written to the store: nothing is "
                "published. Push from jobs that run merged code"
            )
        if everything:
            raise UsageError(
                "--all would publish what other jobs have left in the store: in CI each job pushes its own runs; "
                "a person who knows what is there may push all"
            )
    if everything:
        return frozenset()
    pulled = read_pulled(store)
    if job is not None and (pulled is None or pulled.job != job.name):
        raise UsageError(
            f"{store.path}: this job has not pulled, so that its runs cannot be told from what other jobs left here: "
            "run tokenpower pull before the tests, with the same store"
        )
    return frozenset(pulled.left if pulled else ())


def pull(repository: Repository, store: Store, remote: str, *, job: Job | None = None) -> SyncResult:
    """Add the branch's files on ``remote`` to the store, and note what else is there; nothing stored is changed.

    A file that is no run or calibration under its own name is left out. Raises HistoryError, or StoreError for a store
    that cannot be written.
    """
    branch = StoreBranch(repository, remote)
    tip = branch.fetch()
    here = {file.name for _, file in _local_files(store)}
    there = branch.files(tip) if tip else {}
    write_pulled(store, Pulled(job.name if job else "", tuple(sorted(here - there.keys()))))
    if tip is None:
        return SyncResult(remote, (), exists=False)
    wanted = {file: blob for file, blob in there.items() if file not in here}
    added: list[str] = []
    left_out = []
    taken = dict(sorted(wanted.items(), reverse=True)[:MOST_FILES])
    room = MOST_BYTES
    for file, data in branch.contents(taken):
        folder = store.folder if parse_file_name("", file) else store.path / CALIBRATIONS
        room -= len(data or b"")
        if room < 0:
            break
        reason = "larger than any run" if data is None else _foreign(file, data)
        if reason or data is None:
            left_out.append(Problem(Path(without_credentials(remote), BRANCH, folder.name, file), reason))
            continue
        try:
            make_folder(folder)
            publish(folder, file, data)
        except FileExistsError:
            continue  # Another pull was quicker.
        except OSError as error:
            raise unwritable(folder, error) from error
        added.append(file)
    if len(taken) < len(wanted) or room < 0:
        reason = (
            f"a pull takes at most {MOST_FILES} runs of {MOST_BYTES >> 20} MiB: pull again for older ones"
        )
        left_out.append(Problem(Path(without_credentials(remote), BRANCH), reason))
    return SyncResult(remote, tuple(sorted(added)), tuple(left_out))


def _local_files(store: Store) -> Iterator[tuple[str, Path]]:
    """Each file of the store with its path on the branch."""
    for entry in store.entries():
        yield run_path(entry), entry.path
    for path in calibration_paths(store.path):
        yield f"{CALIBRATIONS}/{path.name}", path


def _made_by(store: Store, file: Path) -> Fact | None:
    """Return the CI job that a file says has made it; raises StoreError for what does not belong into a store."""
    if file.parent.name != CALIBRATIONS:
        return store.load(store.open_file(file)).host.get("job")
    found = decode_calibration(read_bounded(file, MOST_RUN_BYTES), str(file))
    if found.file != file.name:
        raise StoreError(
            f"{file}: its name does not belong to the calibration in it: calibrate the board again"
        )
    return found.job


def _foreign(file: str, data: bytes) -> str:
    """Why a file of the remote does not belong into a store; empty if it does."""
    try:
        if parse_file_name("", file) is None:
            found, what = decode_calibration(data, file).file, "calibration"
        else:
            found, what = file_name(decode_run(data, source=file)), "run"
        if found != file:
            return f"its name does not belong to the {what} in it"
    except TokenPowerError as error:
        return str(error).removeprefix(f"{file}: ")
    return ""
