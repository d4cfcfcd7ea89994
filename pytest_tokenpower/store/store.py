"""The store: a folder of immutable run files that any number of processes write to and read from."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sys
import uuid
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from pytest_tokenpower.core.files import read_bounded, sweep
from pytest_tokenpower.core.integrity import has_digest, is_damaged
from pytest_tokenpower.core.records import (
    SCHEMA_VERSION,
    MeasurementRecord,
    RunRecord,
    decode_run,
    encode_run,
    impossible,
)
from pytest_tokenpower.core.text import plural
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import HistoryError, StoreError, UsageError
from pytest_tokenpower.store.git import Repository, unreadable_repository
from pytest_tokenpower.store.identity import repository_test

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


class StoredFile(NamedTuple):
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
    def seconds(self) -> float:
        """When it was written, in seconds since 1970."""
        moment = datetime.strptime(self.created, "%Y%m%dT%H%M%S.%fZ")
        return moment.replace(tzinfo=timezone.utc).timestamp()

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
    entry = describe_run("", "", run)
    commit = "nocommit" if entry.commit is None else entry.commit
    name = "" if run.name is None else f"@{validate_name(run.name)}"
    file = f"{entry.created}_{commit}_{entry.state}_{entry.id8}{name}.json"
    if not _FILE.fullmatch(file):
        raise StoreError(f"run {run.id}: {run.commit!r} is not a full commit")
    return file


def parse_file_name(folder: str, file: str) -> StoredFile | None:
    """Return the entry that a file's name describes; None if it is not the name of a stored run."""
    found = _FILE.fullmatch(file)
    if found is None:
        return None
    created, commit, state, id8, name = found.groups()
    return StoredFile(
        folder, file, created, None if commit == "nocommit" else commit, _STATES[state], id8, name
    )


def describe_run(folder: str, file: str, run: RunRecord | _HeadRun) -> StoredFile:
    """Return the entry of a run whose file has any name; raises StoreError for a malformed time."""
    commit = None if run.commit is None else run.commit[:COMMIT_LENGTH]
    state: State = "nogit" if run.dirty is None else "dirty" if run.dirty else "clean"
    return StoredFile(folder, file, _file_time(run.created), commit, state, _id8(run.id), run.name)


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


def unwritable(place: Path, error: OSError) -> StoreError:
    """Return the error for a store that cannot be written."""
    return StoreError(
        f"{place}: the store cannot be written ({error.strerror or error}). Make the folder writable, or name another "
        "one with --energy-storage=PATH (--storage=PATH of the commands)"
    )


def make_folder(folder: Path) -> None:
    """Make a folder of a store; raises OSError for one that is a link, left there to have us write elsewhere."""
    if folder.is_symlink():
        raise OSError(errno.ELOOP, "it is a link, which is not followed: name the store itself")
    folder.mkdir(parents=True, exist_ok=True)


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
    """Return the JSON files of a folder that may be runs, by name; none where it cannot be listed."""
    try:
        files = sorted(os.listdir(folder))
    except OSError:  # No folder, or not ours to read: it holds nothing for us.
        return []
    return [folder / file for file in files if file.endswith(".json") and not file.startswith(".")]


def is_store(path: Path) -> bool:
    """Whether a path holds stored runs; a folder or file that merely has a branch's name (docs, main) is no store."""
    return (path / "runs").is_dir() or any(parse_file_name("", file.name) for file in json_files(path))


_LOADED_RUNS = 8

MOST_RUN_BYTES = 64 << 20
"""No run is larger: a thousand tests of a hundred rounds each are 30 MB."""


def default_store_path(repository: Repository | None, rootdir: Path) -> Path:
    """Where runs live unless told otherwise.

    Inside the common git directory they survive ``git clean -ffdx``, are shared by all worktrees and cannot be
    committed by accident. Without git: ``.tokenpower`` in pytest's root directory.

    Raises:
        HistoryError: there is a repository that git cannot read; its store is not to be looked for elsewhere.
    """
    if repository is not None:
        return repository.common_dir / "tokenpower"
    if reason := unreadable_repository(rootdir):
        raise HistoryError(
            f"the runs of this repository are in its git folder, and {reason}; or name a store of your own "
            "(--energy-storage=PATH, or --storage=PATH of the command)"
        )
    return rootdir / ".tokenpower"


class IndexedMeasurement(NamedTuple):
    """A measurement's identity, and its place among the measurements of its run.

    ``key`` is one object for all measurements of a store that have the same key.
    """

    key: dict[str, Fact]
    comparable: bool
    position: int


class Contents(NamedTuple):
    """What a run file of ``size`` bytes holds, without its rounds: its measurements by test.

    Tests are named from the repository's top level; where the run does not say its ``root``, by their node ids.
    """

    run_id: str
    commit: str | None
    size: int
    measurements: dict[str, IndexedMeasurement]
    root: str | None = None


@dataclass(frozen=True)
class Problem:
    """A file in the store that was left out, and why."""

    path: Path
    reason: str


# Rounds are over 90 % of a file, and most tests of most files are never asked for: both stay undecoded.
class _HeadMeasurement(msgspec.Struct, frozen=True):
    test: str
    key: msgspec.Raw
    comparable: bool


class _HeadRun(msgspec.Struct, frozen=True, tag_field="type", tag="tokenpower-run"):
    id: str
    created: str
    measurements: list[_HeadMeasurement]
    version: int = SCHEMA_VERSION
    name: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    root: str | None = None


class _SplitRun(msgspec.Struct, frozen=True):
    measurements: list[msgspec.Raw]


_head_run = msgspec.json.Decoder(_HeadRun)

_split_run = msgspec.json.Decoder(_SplitRun)

_key = msgspec.json.Decoder(dict[str, Fact])

_measurement = msgspec.json.Decoder(MeasurementRecord)


class Store:
    """The runs in ``path/runs``, one immutable file each.

    Names are unique and files appear whole, so writers need no lock, also over NFS. A file that is corrupt or
    foreign is listed in :attr:`problems`; methods that read one file raise StoreError for it, listings leave it out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._problems: dict[str, Problem] = {}
        self._contents: dict[str, Contents] = {}
        self._spans: dict[str, list[tuple[int, int, int]]] = {}
        self._keys: dict[bytes, dict[str, Fact]] = {}
        self._runs: OrderedDict[str, RunRecord] = OrderedDict()

    @property
    def folder(self) -> Path:
        """The folder of the run files."""
        return self.path / "runs"

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The files found unusable so far, in the order of their paths."""
        return tuple(self._problems[path] for path in sorted(self._problems))

    @property
    def left_out(self) -> str:
        """What is to be added to a sentence that misses something in the store; empty where every file was of use."""
        if not self.problems:
            return ""
        first, *others = self.problems
        more = f", and {plural(len(others), 'other')}" if others else ""
        return f"; left out: {first.path} ({first.reason}){more}"

    def leave_out(self, path: str, reason: str) -> None:
        """List a file of the store that is of no use among the problems."""
        self._problems[path] = Problem(Path(path), reason.removeprefix(f"{path}: "))

    def check_writable(self) -> None:
        """Write, sync and remove a file as :meth:`write` would; raises StoreError with the remedy."""
        probe = f".probe-{uuid.uuid4().hex}.tmp"
        try:
            make_folder(self.folder)
            sweep(self.folder, ".")
            publish(self.folder, probe, b"probe\n")
            (self.folder / probe).unlink()
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def write(self, run: RunRecord) -> Path:
        """Store a run and return its file.

        Nothing stored is ever overwritten. Raises StoreError for a run that is stored already or could not be
        read back (nan is no JSON), and for a folder that cannot be written.
        """
        path = self.folder / file_name(run)
        try:
            data = encode_run(run)
            decode_run(data, source=str(path))
        except (StoreError, ValueError, OverflowError) as error:
            raise StoreError(f"run {run.id} is not stored, as it could not be read back: {error}") from error
        try:
            make_folder(self.folder)
            publish(self.folder, path.name, data)
        except FileExistsError as error:
            raise StoreError(f"{path}: this run is stored already") from error
        except OSError as error:
            raise unwritable(self.folder, error) from error
        return path

    def entries(self) -> tuple[StoredFile, ...]:
        """Every stored run, newest first, from the file names alone. A store that does not exist yet is empty."""
        folder = os.fspath(self.folder)
        try:
            files = os.listdir(folder)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StoreError(f"{folder}: the store cannot be read ({error.strerror})") from error
        found = []
        for file in sorted(files, reverse=True):  # Names begin with the time.
            entry = parse_file_name(folder, file)
            if entry is not None:
                found.append(entry)
            elif not file.startswith("."):  # A writer's temporary file, or one that NFS keeps open.
                self.leave_out(os.path.join(folder, file), "its name is not one of a stored run")
        return tuple(found)

    def open_file(self, path: Path) -> StoredFile:
        """Return an entry for a run file under any name (an export, a download); raises StoreError."""
        folder, file = os.path.split(path)
        entry = parse_file_name(folder, file)
        if entry is None:
            entry = describe_run(folder, file, self._head(self._read(os.fspath(path)), os.fspath(path)))
        return entry

    def contents(self, entry: StoredFile) -> Contents:
        """Return what the run holds, kept once read; raises StoreError."""
        path = os.path.join(entry.folder, entry.file)
        known = self._contents.get(path)
        if known is None:
            if path in self._problems:  # Asked again for each test: once is enough to read a broken file.
                raise StoreError(f"{path}: {self._problems[path].reason}")
            known = self._contents[path] = self._index(entry, self._read(path), path)
        return known

    def measurement(self, entry: StoredFile, test: str) -> MeasurementRecord:
        """Return the measurement of one test in the run, decoded alone; raises StoreError, KeyError if it has none.

        It is named as asked for, from the top level: two packages may have tests of one node id.
        """
        place = self.contents(entry).measurements[test]
        path = os.path.join(entry.folder, entry.file)
        try:
            start, stop, checksum = self._bytes_of(path)[place.position]
            with open(path, "rb") as stream:
                stream.seek(start)
                data = stream.read(stop - start)
            if zlib.crc32(data) != checksum:
                raise self._fault(path, "it changed while it was read")
            found = _measurement.decode(data)
            if what := impossible(found):
                raise self._fault(path, f"impossible: {what}")
            return msgspec.structs.replace(found, test=test)
        except (OSError, msgspec.MsgspecError, ValueError, IndexError, RecursionError) as error:
            raise self._fault(path, f"the measurement of {test} is not readable ({error})") from error

    def dated(self, entry: StoredFile, test: str) -> MeasurementRecord:
        """Return the measurement with the time at which it began; older runs only tell when they were written."""
        found = self.measurement(entry, test)
        return found if found.started is not None else msgspec.structs.replace(found, started=entry.seconds)

    def load(self, entry: StoredFile) -> RunRecord:
        """Return the whole run; the last few are kept. Raises StoreError."""
        path = os.path.join(entry.folder, entry.file)
        run = self._runs.pop(path, None)
        if run is None:
            run = self._decode(self._read(path), path)
            self._check_name(entry, run.id, run.commit, path)
        self._runs[path] = run
        if len(self._runs) > _LOADED_RUNS:
            self._runs.popitem(last=False)
        return run

    def _read(self, path: str) -> bytes:
        try:
            return read_bounded(Path(path), MOST_RUN_BYTES)
        except OSError as error:
            raise self._fault(path, f"cannot be read ({error.strerror})") from error

    def _decode(self, data: bytes, path: str) -> RunRecord:
        try:
            return decode_run(data, source=path)
        except StoreError as error:
            self.leave_out(path, str(error))
            raise

    def _head(self, data: bytes, path: str) -> _HeadRun:
        # Rounds stay undecoded only where the digest answers for them: a run is checked whole before it is written.
        if not has_digest(data) or is_damaged(data):
            self._decode(data, path)
        try:
            run = _head_run.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self._decode(data, path)  # Raises, and says precisely what is wrong.
            raise self._fault(path, f"malformed run ({error})") from error
        if run.version != SCHEMA_VERSION:
            self._decode(data, path)
        return run

    def _index(self, entry: StoredFile, data: bytes, path: str) -> Contents:
        run = self._head(data, path)
        self._check_name(entry, run.id, run.commit, path)
        measurements: dict[str, IndexedMeasurement] = {}
        for position, head in enumerate(run.measurements):
            test = repository_test(run.root, head.test)
            known = measurements.get(test)
            # A test that was run again within the run: its last comparable measurement stands for the run.
            if known is None or head.comparable or not known.comparable:
                try:
                    key = self._intern(bytes(head.key))
                except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                    raise self._fault(path, f"malformed run ({error})") from error
                measurements[sys.intern(test)] = IndexedMeasurement(key, head.comparable, position)
        return Contents(run.id, run.commit, len(data), measurements, run.root)

    def _bytes_of(self, path: str) -> list[tuple[int, int, int]]:
        """Where the measurements of a file stand in it, as [start, stop) with a checksum, in their order."""
        spans = self._spans.get(path)
        if spans is None:
            data = self._read(path)
            self._head(data, path)  # The file may not be the one that was indexed.
            spans, end = [], 0
            for raw in _split_run.decode(data).measurements:
                text = bytes(raw)
                # One comma apart in files that we write; in others (indented by hand) it has to be looked for.
                start = end + 1 if data.startswith(text, end + 1) else data.index(text, end)
                end = start + len(text)
                spans.append((start, end, zlib.crc32(text)))
            self._spans[path] = spans
        return spans

    def _intern(self, raw: bytes) -> dict[str, Fact]:
        key = self._keys.get(raw)
        if key is None:
            key = self._keys[raw] = _key.decode(raw)
        return key

    def _check_name(self, entry: StoredFile, run_id: str, commit: str | None, path: str) -> None:
        # A file that was renamed would put its figures on a commit that they were not taken on.
        if not entry.belongs_to(run_id, commit):
            raise self._fault(path, f"its name does not belong to the run in it ({run_id}, commit {commit})")

    def _fault(self, path: str, reason: str) -> StoreError:
        self.leave_out(path, reason)
        return StoreError(f"{path}: {reason}")
