"""A stored run is what was written, and can have happened; or it is named and left out."""

import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.core.integrity import with_digest
from pytest_tokenpower.core.records import MeasurementRecord, RoundRecord, decode_run, encode_run
from pytest_tokenpower.errors import StoreError
from pytest_tokenpower.store.store import MOST_RUN_BYTES, Store
from tests.support.repositories import run

GOOD = RoundRecord(
    start_ns=1, seconds=2.0, joules=30.0, stderr_joules=0.1, prompt_tokens=10, generated_tokens=100
)
RUN = msgspec.structs.replace(
    run(1),
    measurements=(
        MeasurementRecord("test_a.py::test_b", {"board": "x"}, "measured", "gpu", "m", (GOOD,), True),
    ),
)
WRITTEN = encode_run(RUN)


@given(at=st.integers(0, len(WRITTEN) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_changes_nothing_unnoticed(at: int, bit: int) -> None:
    data = bytearray(WRITTEN)
    data[at] ^= 1 << bit
    try:
        read = decode_run(bytes(data), source="x")
    except StoreError:
        return
    assert read == RUN


def test_another_layout_of_the_same_json_is_no_damage() -> None:
    assert decode_run(msgspec.json.format(WRITTEN, indent=2), source="x") == RUN


def test_a_run_without_its_digest_is_refused() -> None:
    with pytest.raises(StoreError, match="does not end in its digest"):
        decode_run(msgspec.json.encode(RUN), source="x")


def test_a_measurement_that_changes_after_the_file_was_checked_is_refused(store: Store) -> None:
    path = store.write(RUN)
    (entry,) = store.entries()
    assert store.measurement(entry, "test_a.py::test_b") == RUN.measurements[0]
    path.write_bytes(path.read_bytes().replace(b'"joules":30.0', b'"joules":31.0'))
    with pytest.raises(StoreError, match="changed while it was read"):
        store.measurement(entry, "test_a.py::test_b")
    assert [problem.path for problem in store.problems] == [path]


@pytest.mark.parametrize("planted", ["pipe", "folder", "huge"])
def test_what_is_no_file_of_a_run_is_named_and_never_waited_for(planted: str, store: Store) -> None:
    path = store.write(RUN)
    path.unlink()
    if planted == "pipe":
        os.mkfifo(path)
    elif planted == "folder":
        path.mkdir()
    else:
        with path.open("wb") as stream:
            stream.truncate(MOST_RUN_BYTES + 1)
    (entry,) = store.entries()
    with pytest.raises(StoreError, match=r"it is no file|67108865 bytes, more than any has"):
        store.contents(entry)


@pytest.mark.parametrize(
    "change",
    [
        {"joules": 0.0},
        {"joules": -3.0},
        {"joules": 1e300},
        {"seconds": 0.0},
        {"seconds": -1.0},
        {"stderr_joules": -1.0},
        {"generated_tokens": -1},
        {"generated_tokens": 10**15},
        {"prompt_tokens": 0, "generated_tokens": 0, "responses": 0},
        {"cached_prompt_tokens": 10**6},
        {"repeats": 0},
    ],
)
def test_what_cannot_have_happened_is_left_out(change: dict[str, float], store: Store) -> None:
    bad = msgspec.structs.replace(
        RUN,
        measurements=(
            msgspec.structs.replace(RUN.measurements[0], rounds=(msgspec.structs.replace(GOOD, **change),)),
        ),
    )
    path = store.write(RUN)
    path.write_bytes(with_digest(msgspec.json.encode(bad)))
    (entry,) = store.entries()
    for read in (lambda: store.measurement(entry, "test_a.py::test_b"), lambda: store.load(entry)):
        with pytest.raises(StoreError, match=r"impossible: round 1 of test_a\.py::test_b"):
            read()
    assert [problem.path for problem in store.problems] == [path]


def test_undecodable_bytes_are_named(store: Store) -> None:
    path = store.write(RUN)
    path.write_bytes(path.read_bytes().replace(b'"board"', b'"boar\xe4"'))
    (entry,) = store.entries()
    for read in (store.contents, store.load):
        with pytest.raises(StoreError, match=path.name):
            read(entry)
