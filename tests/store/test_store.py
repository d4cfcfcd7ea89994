"""The store: nothing is lost, nothing is overwritten, nothing foreign is fatal."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import time
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.core.records import RunRecord, encode_run
from pytest_tokenpower.errors import StoreError, UsageError
from pytest_tokenpower.store.store import Store, file_name, parse_file_name, validate_name
from tests.support.repositories import KEY, TEST, measurement, run, write_many

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", fullmatch=True).filter(
    lambda name: not name.endswith(".json")
)


def leftovers(store: Store) -> list[str]:
    return [file for file in os.listdir(store.folder) if file.startswith(".")]


def test_a_run_comes_back_as_it_was(store: Store) -> None:
    written = run(65, measurement(), measurement("other", {"axis.batch": 8}), commit=COMMIT, name="v1")
    path = store.write(written)
    assert path == store.path / "runs" / "20251127T100000.000000Z_0123456789ab_clean_00000041@v1.json"
    (entry,) = store.entries()
    assert entry.path == path
    assert (entry.commit, entry.state, entry.name) == (COMMIT[:12], "clean", "v1")
    assert store.load(entry) == written
    assert store.load(entry) is store.load(entry)
    assert store.contents(entry).commit == COMMIT
    assert [store.measurement(entry, each.test) for each in written.measurements] == list(
        written.measurements
    )
    assert store.problems == ()
    assert leftovers(store) == []


def test_a_store_that_does_not_exist_is_empty_and_is_not_made(store: Store) -> None:
    assert store.entries() == ()
    assert not store.path.exists()


def test_entries_are_newest_first(store: Store) -> None:
    for number in (3, 1, 2):
        store.write(run(number))
    assert [store.load(entry) for entry in store.entries()] == [run(3), run(2), run(1)]


@given(
    st.datetimes(datetime(1970, 1, 2), datetime(9999, 1, 1), timezones=st.timezones()),
    st.none() | st.from_regex("[0-9a-f]{40}|[0-9a-f]{64}", fullmatch=True),
    st.booleans(),
    st.uuids().map(str) | st.uuids().map(lambda uuid: uuid.hex) | st.text(),
    st.none() | NAMES,
)
def test_a_file_name_tells_what_the_run_says(
    created: datetime, commit: str | None, dirty: bool, run_id: str, name: str | None
) -> None:
    record = RunRecord(
        run_id, str(created), (), name=name, commit=commit, dirty=None if commit is None else dirty
    )
    file = file_name(record)
    entry = parse_file_name("folder", file)
    assert entry is not None
    assert entry.path == Path("folder", file)
    assert entry.created == created.astimezone(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
    assert entry.commit == (None if commit is None else commit[:12])
    assert entry.state == ("nogit" if commit is None else "dirty" if dirty else "clean")
    assert entry.name == name
    assert entry.belongs_to(run_id, commit)
    assert not entry.belongs_to(run_id, "f" * 40 if commit is None else None)


@given(st.text())
def test_a_name_is_valid_exactly_if_it_survives_in_a_file_name(name: str) -> None:
    try:
        validate_name(name)
    except UsageError:
        assert not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", name) or name.endswith(".json")
        return
    entry = parse_file_name("", file_name(run(name=name)))
    assert entry is not None
    assert entry.name == name


@pytest.mark.parametrize(
    "name", ["", ".hidden", "-option", "a/b", "a b", "a@b", "ümlaut", "x\n", "run.json", "x" * 65]
)
def test_names_that_are_refused(store: Store, name: str) -> None:
    with pytest.raises(UsageError, match="no name for a saved run"):
        store.write(run(name=name))
    assert store.entries() == ()


@pytest.mark.parametrize("commit", ["main", "0123", "0123456789AB", "../../../etc"])
def test_a_commit_that_is_none_is_refused(store: Store, commit: str) -> None:
    with pytest.raises(StoreError, match="not a full commit"):
        store.write(run(commit=commit))


def test_nothing_is_overwritten(store: Store) -> None:
    path = store.write(run(1, commit=COMMIT))
    before = path.read_bytes()
    with pytest.raises(StoreError, match="stored already"):
        store.write(run(1, measurement("other"), commit=COMMIT))
    assert path.read_bytes() == before
    assert leftovers(store) == []


def test_a_run_that_could_not_be_read_back_is_not_stored(store: Store) -> None:
    with pytest.raises(StoreError, match="could not be read back"):
        store.write(run(1, measurement(joules=float("nan"))))
    with pytest.raises(StoreError, match="could not be read back"):
        store.write(run(1, measurement("tests/\udc80.py::test")))
    assert store.entries() == ()


def test_many_writers_and_a_reader_at_once(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=write_many, args=(os.fspath(store.path), 1 + 100 * writer, 20))
        for writer in range(3)
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        # What is listed is whole, at any moment.
        for entry in store.entries():
            store.contents(entry)
        time.sleep(0.01)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    expected = {run(1 + 100 * writer + number).id for writer in range(3) for number in range(20)}
    assert {store.load(entry).id for entry in store.entries()} == expected
    assert store.problems == ()
    assert leftovers(store) == []


def test_a_store_is_checked_before_anything_is_measured(store: Store, tmp_path: Path) -> None:
    store.check_writable()
    assert os.listdir(store.folder) == []
    (tmp_path / "file").write_text("")
    blocked = Store(tmp_path / "file" / "store")
    with pytest.raises(StoreError, match=r"file/store/runs: .*Not a directory.*--energy-storage=PATH"):
        blocked.check_writable()
    with pytest.raises(StoreError, match="--energy-storage=PATH"):
        blocked.write(run())


def test_a_folder_that_is_a_link_is_not_written_through(store: Store, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    store.path.mkdir()
    store.folder.symlink_to(private)
    for act in (store.check_writable, lambda: store.write(run())):
        with pytest.raises(StoreError, match=r"runs: .*it is a link, which is not followed"):
            act()
    assert os.listdir(private) == []
    # The store itself may be one: somebody has named it.
    (tmp_path / "named").symlink_to(private)
    Store(tmp_path / "named").write(run())
    assert os.listdir(private) == ["runs"]


def test_a_full_disk_leaves_nothing_behind(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for action in (store.check_writable, lambda: store.write(run())):
        with pytest.raises(StoreError, match="No space left"):
            action()
    assert os.listdir(store.folder) == []


def test_a_file_system_without_hard_links(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    store.check_writable()
    store.write(run(1))
    with pytest.raises(StoreError, match="stored already"):
        store.write(run(1, measurement("other")))
    (entry,) = store.entries()
    assert store.load(entry) == run(1)
    assert leftovers(store) == []


def test_nfs_that_links_and_then_says_that_it_exists(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def lost_answer(source: Path, target: Path) -> None:
        real(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", lost_answer)
    store.write(run(1))
    assert store.load(store.entries()[0]) == run(1)


def damaged(text: bytes) -> dict[str, tuple[bytes, str]]:
    return {
        "empty": (b"", "not readable as JSON"),
        "cut": (text[: len(text) // 2], "not readable as JSON"),
        "no JSON": (b"\x00\xff" * 50, "not readable as JSON"),
        "foreign": (b'{"benchmarks": []}', "not a run of pytest-tokenpower"),
        "a list": (b"[1, 2]", "not readable as JSON|not a run"),
        "newer": (text.replace(b'"version":2', b'"version":99'), "schema version 99"),
        "malformed": (text.replace(b'"comparable":true', b'"comparable":7'), "malformed run"),
        "bad key": (text.replace(b'"gpu.name":"NVIDIA H100"', b'"gpu.name":["H100"]'), "malformed run"),
        "another's": (encode_run(run(2)), "does not belong to the run in it"),
        "another commit": (encode_run(run(1, commit="f" * 40)), "does not belong to the run in it"),
    }


@pytest.mark.parametrize("damage", list(damaged(b"")))
def test_a_damaged_file_is_named_and_skipped(store: Store, damage: str) -> None:
    path = store.write(run(1, commit=COMMIT))
    data, reason = damaged(path.read_bytes())[damage]
    path.write_bytes(data)
    store.write(run(2))
    good, bad = store.entries()
    for read in (store.contents, store.load):
        with pytest.raises(StoreError, match=reason) as caught:
            read(bad)
        assert str(path) in str(caught.value)
    assert store.load(good) == run(2)
    (problem,) = store.problems
    assert problem.path == path
    assert str(path) not in problem.reason


def test_damage_in_the_rounds_costs_the_file(store: Store) -> None:
    path = store.write(run(1, measurement(joules=100.5), measurement("other")))
    path.write_bytes(path.read_bytes().replace(b'"joules":100.5', b'"joules":100.6', 1))
    (entry,) = store.entries()
    for test in (TEST, "other"):
        with pytest.raises(StoreError, match="damaged"):
            store.measurement(entry, test)
    assert [problem.path for problem in store.problems] == [path]


def test_files_that_are_not_ours_are_counted(store: Store) -> None:
    store.write(run(1))
    for file in ("notes.txt", "0001_abc_2025.json", ".nfs0001", ".something.tmp"):
        (store.folder / file).write_text("x")
    (store.folder / "folder").mkdir()
    assert len(store.entries()) == 1
    assert [problem.path.name for problem in store.problems] == ["0001_abc_2025.json", "folder", "notes.txt"]


def test_a_file_that_vanishes_is_a_problem_and_no_crash(store: Store) -> None:
    store.write(run(1))
    (entry,) = store.entries()
    entry.path.unlink()
    with pytest.raises(StoreError, match="No such file"):
        store.contents(entry)
    assert len(store.problems) == 1


def test_a_broken_file_is_read_once(store: Store) -> None:
    path = store.write(run(1))
    text = path.read_bytes()
    path.write_bytes(b"")
    (entry,) = store.entries()
    with pytest.raises(StoreError, match="not readable as JSON"):
        store.contents(entry)
    path.write_bytes(text)
    with pytest.raises(StoreError, match="not readable as JSON"):
        store.contents(entry)
    assert Store(store.path).contents(entry).run_id == run(1).id


def test_a_file_that_was_indented_by_hand_reads_the_same(store: Store) -> None:
    written = run(1, measurement(), measurement("other"), measurement("third", joules=7.0))
    path = store.write(written)
    path.write_bytes(msgspec.json.format(path.read_bytes(), indent=2))
    (entry,) = store.entries()
    assert [store.measurement(entry, each.test) for each in written.measurements] == list(
        written.measurements
    )


def test_the_last_comparable_of_several_measurements_stands_for_the_run(store: Store) -> None:
    path = store.write(
        run(1, measurement(joules=1.0), measurement(joules=2.0), measurement(joules=3.0, comparable=False))
    )
    assert store.measurement(store.open_file(path), TEST) == measurement(joules=2.0)


def test_a_run_file_under_another_name(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "energy.json"
    path.write_bytes(encode_run(run(5, commit=COMMIT, dirty=True, name="nightly")))
    entry = store.open_file(path)
    assert (entry.path, entry.commit, entry.state, entry.name) == (path, COMMIT[:12], "dirty", "nightly")
    assert store.contents(entry).measurements[TEST].key == KEY
    assert store.load(entry).id == run(5).id


def test_temporary_files_of_killed_writers_are_swept(store: Store) -> None:
    store.write(run(1))
    old, young = store.folder / ".0123.tmp", store.folder / ".4567.tmp"
    for each in (old, young):
        each.write_bytes(b"half a run")
    os.utime(old, (0, 0))
    store.check_writable()
    assert not old.exists()
    assert young.exists()
