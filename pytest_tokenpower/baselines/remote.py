"""A store on a branch of a git remote: files are only ever added, and no work tree or index is touched.

The branch has a history of its own, one commit a push: ``runs/YYYY-MM/`` and ``blessings/``. A push is a merge by
file name on top of what is there; it never forces, and when another one was quicker it merges again.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_tokenpower.baselines.blessings import FOLDER, decode_blessing, is_blessing_file
from pytest_tokenpower.baselines.branch import BRANCH, StoreBranch, blessing_path, run_path
from pytest_tokenpower.baselines.files import file_name, publish
from pytest_tokenpower.baselines.git import Repository, run_git
from pytest_tokenpower.baselines.store import Problem, Store
from pytest_tokenpower.errors import HistoryError, StoreError, TokenPowerError, UsageError
from pytest_tokenpower.record import decode_run

ATTEMPTS = 5


@dataclass(frozen=True)
class Exchanged:
    """The files that went over, and those that did not, with the reason. ``exists``: the remote has such a branch."""

    remote: str
    files: tuple[str, ...]
    left_out: tuple[Problem, ...] = ()
    exists: bool = True


def choose_remote(repository: Repository, name: str | None) -> str:
    """A remote's name, a URL or a path; without one, origin or the only remote. Raises UsageError that lists them."""
    known = run_git(repository.top_level, "remote").stdout.split()
    listed = f"the remotes of {repository.top_level}: {', '.join(known) or 'none (git remote add NAME URL)'}"
    if name is None:
        if "origin" in known or len(known) == 1:
            return "origin" if "origin" in known else known[0]
        raise UsageError(f"name a remote, as there is none called origin; {listed}")
    if name in known or (not name.startswith("-") and ("/" in name or ":" in name)):
        return name
    raise UsageError(f"{name!r} is no remote; {listed}")


def push(repository: Repository, store: Store, remote: str) -> Exchanged:
    """Add the store's files to the branch on ``remote``; nothing there is changed or removed.

    Where others push at the same time it merges and tries again, up to ATTEMPTS times. Raises HistoryError for what
    git or the remote refuses.
    """
    branch = StoreBranch(repository, remote)
    left_out: dict[str, Problem] = {}
    for attempt in range(ATTEMPTS):
        tip = branch.fetch()
        there = branch.files(tip) if tip else {}
        added = {}
        for path, file in _local_files(store):
            if Path(path).name in there or path in left_out:
                continue
            reason = _unsound(store, file)
            if reason:
                left_out[path] = Problem(file, reason)
            else:
                added[path] = file
        if not added:
            return Exchanged(remote, (), tuple(left_out.values()), exists=tip is not None)
        answer = branch.push(branch.commit(tip, added))
        if answer.code == 0:
            return Exchanged(
                remote, tuple(sorted(file.name for file in added.values())), tuple(left_out.values())
            )
        # Only the remote's branch tells for sure that another push was quicker.
        if branch.tip() == tip and "lock" not in answer.stderr:
            raise HistoryError(f"git push to {remote} {BRANCH} failed: {answer.complaint}")
        time.sleep(random.random() * 0.2 * 2**attempt)
    raise HistoryError(
        f"git push to {remote} {BRANCH}: others were quicker {ATTEMPTS} times in a row; run it again"
    )


def pull(repository: Repository, store: Store, remote: str) -> Exchanged:
    """Add the branch's files on ``remote`` to the store; nothing stored is changed or removed.

    A file that is no run or blessing under its own name is left out. Raises HistoryError, or StoreError for a store
    that cannot be written.
    """
    branch = StoreBranch(repository, remote)
    tip = branch.fetch()
    if tip is None:
        return Exchanged(remote, (), exists=False)
    here = {Path(path).name for path, _ in _local_files(store)}
    wanted = {file: blob for file, blob in branch.files(tip).items() if file not in here}
    added: list[str] = []
    left_out = []
    for file, data in branch.contents(wanted):
        folder = store.path / FOLDER if is_blessing_file(file) else store.folder
        reason = _foreign(file, data)
        if reason:
            left_out.append(Problem(Path(f"{remote}/{BRANCH}", folder.name, file), reason))
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            publish(folder, file, data)
        except FileExistsError:
            continue  # Another pull was quicker.
        except OSError as error:
            raise StoreError(
                f"{folder}: the store cannot be written ({error.strerror or error}): make the folder writable, or "
                "name another one with --storage=PATH"
            ) from error
        added.append(file)
    return Exchanged(remote, tuple(sorted(added)), tuple(left_out))


def _local_files(store: Store) -> Iterator[tuple[str, Path]]:
    """Each file of the store with its path on the branch."""
    for entry in store.entries():
        yield run_path(entry), entry.path
    blessings = store.path / FOLDER
    if blessings.is_dir():
        for file in sorted(os.listdir(blessings)):
            if is_blessing_file(file):
                yield blessing_path(file), blessings / file


def _unsound(store: Store, file: Path) -> str:
    """Why a file of ours is not worth sharing; empty if it is."""
    try:
        if is_blessing_file(file.name):
            decode_blessing(file.read_bytes(), source=str(file))
        else:
            store.contents(store.open_file(file))
    except (TokenPowerError, OSError) as error:
        return str(error).removeprefix(f"{file}: ")
    return ""


def _foreign(file: str, data: bytes) -> str:
    """Why a file of the remote does not belong into a store; empty if it does."""
    try:
        if is_blessing_file(file):
            decode_blessing(data, source=file)
        elif file_name(decode_run(data, source=file)) != file:
            return "its name does not belong to the run in it"
    except TokenPowerError as error:
        return str(error).removeprefix(f"{file}: ")
    return ""
