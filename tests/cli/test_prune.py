"""`tokenpower prune`: what no baseline needs goes, everything else stays."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from pytest_tokenpower.core.records import MeasurementRecord, RunRecord
from pytest_tokenpower.store.baseline import Baseline
from pytest_tokenpower.store.git import Repository
from pytest_tokenpower.store.store import Store
from tests.support.commands import Command
from tests.support.histories import OTHER, at_level, regressed, stored_levels
from tests.support.repositories import KEY, TEST, Git, numbers, run

# The runs of these tests are of one day of November 2025, so all are old.
NOW = ("--older-than=0",)


def left(store: Store) -> list[int]:
    return sorted(int(entry.id8, 16) for entry in store.entries())


def aged(record: RunRecord, year: int) -> RunRecord:
    return msgspec.structs.replace(record, created=record.created.replace("2025", str(year)))


def test_the_newest_runs_of_the_line_stay(git: Git, store: Store, tokenpower: Command) -> None:
    stored_levels(git, store, [1.0] * 6)
    dry = tokenpower("prune", "--keep=2", *NOW, "--dry-run")
    assert (dry.code, dry.err) == (0, "")
    assert left(store) == [0, 1, 2, 3, 4, 5]
    ended = tokenpower("prune", "--keep=2", *NOW)
    assert left(store) == [4, 5]
    assert "4 of 6 runs removed" in ended.out
    assert [line.split()[0] for line in ended.out.splitlines()[:4]] == [f"0000000{n}" for n in (3, 2, 1, 0)]
    assert ended.out == dry.out.replace("would be removed", "removed")
    assert "0 of 2 runs removed" in tokenpower("prune", "--keep=2", *NOW).out


def test_only_old_runs_go(git: Git, store: Store, tokenpower: Command) -> None:
    commit = git.commit("one")
    for number in range(3):
        store.write(aged(run(number, at_level(), commit=commit, dirty=True), 2900))
    store.write(run(9, at_level(), commit=commit, dirty=True))
    ended = tokenpower("prune")
    assert left(store) == [0, 1, 2]
    assert "Kept: 3 not older than 90 days, 0 older" in ended.out
    assert "with uncommitted changes" in ended.out


def test_every_test_and_key_has_its_own_newest(git: Git, store: Store, tokenpower: Command) -> None:
    commit = git.commit("one")
    elsewhere = msgspec.structs.replace(at_level(), key=KEY | {"gpu.name": "NVIDIA A100"})
    records: list[tuple[MeasurementRecord, ...]] = [
        (at_level(),),
        (at_level(test=OTHER),),
        (elsewhere,),
        (at_level(comparable=False), at_level(test=OTHER)),
        (at_level(),),
        (at_level(comparable=False),),
    ]
    for number, measurements in enumerate(records):
        store.write(run(number, *measurements, commit=commit))
    tokenpower("prune", "--keep=1", *NOW)
    assert left(store) == [2, 3, 4]


def test_every_branch_and_tag_keeps_its_baseline(git: Git, store: Store, tokenpower: Command) -> None:
    commits = stored_levels(git, store, [1.0] * 8)
    git("branch", "topic", commits[5])
    git("tag", "v1.0", commits[1])
    git("tag", "--annotate", "--message=x", "v2.0", commits[3])
    git("switch", "--quiet", "topic")
    git.commit("topic")
    git("switch", "--quiet", "main")
    wanted = {}
    for ref in ("v1.0", "v2.0", "topic"):
        repository = Repository.discover(git.path)
        found = Baseline.resolve(ref, store, repository, 1, at_ref=True).find(TEST, KEY)
        wanted[ref] = numbers(found.run_ids)
    tokenpower("prune", "--keep=1", *NOW)
    assert wanted == {"v1.0": [1], "v2.0": [3], "topic": [5]}
    assert left(store) == [1, 3, 5, 7]
    git("branch", "--quiet", "-D", "topic")
    tokenpower("prune", "--keep=1", *NOW)
    assert left(store) == [1, 3, 7]


def test_runs_beside_the_line_go(git: Git, store: Store, tokenpower: Command) -> None:
    commits = stored_levels(git, store, [1.0] * 2)
    store.write(run(10, at_level(), commit=commits[1], dirty=True))
    store.write(run(11, at_level(), commit="a" * 40))
    tokenpower("prune", *NOW)
    assert left(store) == [0, 1]


def test_saved_names_stay(git: Git, store: Store, tokenpower: Command) -> None:
    git.commit("one")
    for number in range(3):
        store.write(run(number, at_level(), commit="a" * 40, dirty=True, name="v1"))
    tokenpower("prune", "--keep=2", *NOW)
    assert left(store) == [1, 2]


def test_what_regressed_takes_no_ones_place(git: Git, store: Store, tokenpower: Command) -> None:
    commits = stored_levels(git, store, [1.0] * 3)
    for number in (5, 6):
        record = run(
            number,
            at_level(1.1, verdicts=regressed(f"main@{commits[-1][:7]}")),
            commit=git.commit(f"worse {number}"),
        )
        store.write(record)
    tokenpower("prune", "--keep=1", *NOW)
    assert left(store) == [2, 5, 6]


def test_what_cannot_be_read_stays(git: Git, store: Store, tokenpower: Command) -> None:
    stored_levels(git, store, [1.0] * 2)
    store.entries()[1].path.write_bytes(b"")
    ended = tokenpower("prune", "--keep=1", *NOW)
    assert left(store) == [0, 1]
    assert "or that cannot be read" in ended.out


def test_outside_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenpower: Command) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / ".tokenpower")
    for number in range(3):
        store.write(run(number, at_level()))
    tokenpower("prune", "--keep=1", *NOW)
    assert left(store) == [2]
    store.write(run(8, at_level(), commit="a" * 40))
    ended = tokenpower("prune", "--keep=1", *NOW)
    assert ended.code == 4
    assert "in no git repository" in ended.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--keep=0"], "--keep=0: must be at least 1"),
        (["--older-than=-1"], "--older-than=-1: must be days from 0"),
        (["--older-than=nan"], "--older-than=nan: must be days"),
        ([], "no run is stored"),
    ],
)
def test_mistakes(git: Git, tokenpower: Command, arguments: list[str], complaint: str) -> None:
    git.commit("one")
    ended = tokenpower("prune", *arguments)
    assert ended.code == 4
    assert re.search(complaint, ended.err)


def test_a_shallow_clone_cannot_tell(
    git: Git, store: Store, tokenpower: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored_levels(git, store, [1.0] * 3)
    clone = git.clone(tmp_path / "clone", "--depth=1")
    monkeypatch.chdir(clone.path)
    ended = tokenpower("prune", *NOW, f"--storage={store.path}")
    assert ended.code == 4
    assert "shallow clone" in ended.err
    assert left(store) == [0, 1, 2]
