"""The files of a store: what their names say, and how one appears whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, NamedTuple

from pytest_tokenpower.errors import StoreError, UsageError
from pytest_tokenpower.record import RunRecord

State = Literal["clean", "dirty", "nogit"]

COMMIT_LENGTH = 12
"""File names carry this many digits of a commit."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_FILE = re.compile(
    r"(\d{8}T\d{6}\.\d{6}Z)_([0-9a-f]{12}|nocommit)_(clean|dirty|nogit)_([0-9a-f]{8})"
    rf"(?:@({_NAME.pattern}))?\.json",
    re.ASCII,
)
_STATES: dict[str, State] = {"clean": "clean", "dirty": "dirty", "nogit": "nogit"}
_NO_LINKS = frozenset(
    {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
)


class StoredRun(NamedTuple):
    """A stored run as its file name tells it; nothing is read for it.

    ``created`` is UTC as ``YYYYMMDDThhmmss.ffffffZ`` (its order is the order of time), ``commit`` the first
    :data:`COMMIT_LENGTH` digits or None, ``id8`` the first digits of the run's id.
    """

    folder: str
    file: str
    created: str
    commit: str | None
    state: State
    id8: str
    name: str | None

    @property
    def path(self) -> Path:
        """The run's file."""
        return Path(self.folder, self.file)

    def belongs_to(self, run_id: str, commit: str | None) -> bool:
        """Whether the name is that of a run with this id on this commit."""
        return _id8(run_id) == self.id8 and (commit or "")[:COMMIT_LENGTH] == (self.commit or "")


def validate_name(name: str) -> str:
    """``name`` if it can name a saved run; raises UsageError that says what a name is made of."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a saved run: up to 64 letters, digits, '.', '_' and '-', "
            "beginning with a letter, a digit or '_'"
        )
    if name.endswith(".json"):
        raise UsageError(
            f"{name!r} is no name for a saved run: it would be taken for a file; leave out '.json'"
        )
    return name


def file_name(run: RunRecord) -> str:
    """``<UTC time>_<commit|nocommit>_<clean|dirty|nogit>_<id>[@NAME].json``, in the order of time when sorted.

    Raises StoreError where the run's time or commit is malformed, UsageError for its name.
    """
    entry = describe_run(
        "", "", run_id=run.id, created=run.created, commit=run.commit, dirty=run.dirty, name=run.name
    )
    commit = "nocommit" if entry.commit is None else entry.commit
    name = "" if run.name is None else f"@{validate_name(run.name)}"
    file = f"{entry.created}_{commit}_{entry.state}_{entry.id8}{name}.json"
    if not _FILE.fullmatch(file):
        raise StoreError(f"run {run.id}: {run.commit!r} is not a full commit")
    return file


def parse_file_name(folder: str, file: str) -> StoredRun | None:
    """The entry that a file's name describes; None if it is not the name of a stored run."""
    found = _FILE.fullmatch(file)
    if found is None:
        return None
    created, commit, state, id8, name = found.groups()
    return StoredRun(
        folder, file, created, None if commit == "nocommit" else commit, _STATES[state], id8, name
    )


def describe_run(
    folder: str,
    file: str,
    *,
    run_id: str,
    created: str,
    commit: str | None,
    dirty: bool | None,
    name: str | None,
) -> StoredRun:
    """The entry of a run whose file has any name; raises StoreError for a malformed time."""
    return StoredRun(
        folder,
        file,
        _file_time(created),
        None if commit is None else commit[:COMMIT_LENGTH],
        "nogit" if dirty is None else "dirty" if dirty else "clean",
        _id8(run_id),
        name,
    )


def _file_time(created: str) -> str:
    try:
        moment = datetime.fromisoformat(created.replace("Z", "+00:00"))  # Python 3.10 does not read "Z".
    except ValueError as error:
        raise StoreError(f"a run's time must be ISO 8601, not {created!r}") from error
    if moment.tzinfo is not None:
        moment = moment.astimezone(timezone.utc)
    return moment.strftime("%Y%m%dT%H%M%S.%fZ")


def _id8(run_id: str) -> str:
    digits = run_id.replace("-", "")[:8]
    if re.fullmatch(r"[0-9a-f]{8}", digits):
        return digits
    return hashlib.sha256(run_id.encode("utf-8", "backslashreplace")).hexdigest()[:8]


def publish(folder: Path, file: str, data: bytes) -> None:
    """Make ``folder/file`` appear with all of its data, or not at all; raises FileExistsError, never replaces."""
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        _link(temporary, folder / file)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(folder)


def _link(temporary: Path, final: Path) -> None:
    try:
        os.link(temporary, final)
    except FileExistsError:
        # NFS may carry out a link, lose the answer and find its own link when it asks again.
        if temporary.stat().st_nlink != 2:
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # No hard links here (FAT, some network shares): reserve the name, then rename over our own empty file.
        os.close(os.open(final, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(temporary, final)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # Not every file system syncs folders.
            raise
    finally:
        os.close(descriptor)


def json_files(folder: Path) -> list[Path]:
    """The JSON files of a folder that may be runs, by name; none where it cannot be listed."""
    try:
        files = sorted(os.listdir(folder))
    except OSError:  # No folder, or not ours to read: it holds nothing for us.
        return []
    return [folder / file for file in files if file.endswith(".json") and not file.startswith(".")]


def is_store(path: Path) -> bool:
    """Whether a path holds stored runs; a folder or file that merely has a branch's name (docs, main) is no store."""
    return (path / "runs").is_dir() or any(parse_file_name("", file.name) for file in json_files(path))
