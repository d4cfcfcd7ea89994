"""`tokenpower bless`: a merged regression is no baseline until a person accepts it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec
import pytest

from pytest_tokenpower.core.records import VerdictRecord
from pytest_tokenpower.gate.verdict import judge_baseline
from pytest_tokenpower.store.baseline import Baseline, ComparableRuns, Found
from pytest_tokenpower.store.blessings import FOLDER, read_blessings
from pytest_tokenpower.store.git import Repository
from pytest_tokenpower.store.store import Store
from tests.support.commands import Command
from tests.support.histories import OTHER, at_level, regressed, stored_levels, verdict
from tests.support.repositories import KEY, TEST, Git, numbers, run


def find(git: Git, store: Store, ref: str = "main", test: str = TEST) -> Found:
    """What a branch of HEAD would be compared with."""
    return Baseline.resolve(ref, store, Repository.discover(git.path), at_ref=True).find(test, KEY)


def gate(git: Git, store: Store, number: int, level: float, test: str = TEST) -> VerdictRecord:
    """What a run of the gate does on a new commit of main: judge it by the baseline, and store it with the verdict."""
    git.commit(f"change {number}")
    baseline = Baseline.resolve("main", store, Repository.discover(git.path))
    measured = at_level(level, test, seed=number)
    found = baseline.find(test, measured.key)
    stored = ComparableRuns(
        baseline.label,
        tuple(each.measurement for each in found.runs),
        tuple(each.run_id for each in found.runs),
        found.why,
    )
    decided = judge_baseline(measured, stored, 0.03)
    store.write(run(number, msgspec.structs.replace(measured, verdicts=(decided,)), commit=git.head))
    return decided


def test_the_gate_stays_awake_until_the_blessing(git: Git, store: Store, tokenpower: Command) -> None:
    kinds = [gate(git, store, number, 1.0).kind for number in range(5)]
    assert kinds[0] == "no baseline"
    assert set(kinds[2:]) == {"passed"}
    # The same changed code, run after run: without the rule the third or fourth would pass.
    assert [gate(git, store, number, 1.06).kind for number in range(5, 12)] == ["regressed"] * 7
    found = find(git, store)
    assert numbers(found.runs) == [4, 3, 2, 1, 0]
    worse = git("rev-parse", "HEAD~6")
    assert found.note == (
        f"7 stored runs on main@{git.head[:7]} regressed and are not blessed; to accept: "
        f"tokenpower bless {worse[:10]} --reason ..."
    )
    ended = tokenpower("bless", worse, "--reason", "longer  context\nis worth it")
    assert (ended.code, ended.err) == (0, "")
    assert "counts with it: 6 later runs of the same level" in ended.out
    # The new level, and nothing from before it.
    assert numbers(find(git, store).runs) == [11, 10, 9, 8, 7]
    assert find(git, store).note == ""
    assert gate(git, store, 12, 1.06).kind == "passed"
    assert gate(git, store, 13, 1.12).kind == "regressed"
    (blessing,) = read_blessings(store.path)
    assert (blessing.commit, blessing.tests) == (worse, (TEST,))
    assert blessing.reason == "longer context is worth it"
    assert blessing.author == "A Developer <developer@example.org>"


def test_a_second_regression_is_not_blessed_with_the_first(
    git: Git, store: Store, tokenpower: Command
) -> None:
    for number, level in enumerate([1.0] * 4 + [1.06, 1.06, 1.15, 1.15]):
        gate(git, store, number, level)
    first = git("rev-parse", "HEAD~3")
    out = tokenpower("bless", first, "--reason=x").out
    assert "counts with it: 1 later run" in out
    assert out.count("stays out: it regressed against this level too") == 2
    found = find(git, store)
    assert numbers(found.runs) == [5, 4]
    assert "2 stored runs" in found.note
    second = git("rev-parse", "HEAD~1")
    assert second[:10] in found.note
    assert tokenpower("bless", second, "--reason=y").code == 0
    assert numbers(find(git, store).runs) == [7, 6]


def test_a_level_that_nobody_measured_after_is_still_there(
    git: Git, store: Store, tokenpower: Command
) -> None:
    stored_levels(git, store, [1.0] * 3)
    gate(git, store, 3, 1.1)
    assert tokenpower("bless", "HEAD", "--reason=x").code == 0
    assert numbers(find(git, store).runs) == [3]
    # Another machine has no run at the new level: what it has keeps standing.
    other = KEY | {"gpu.name": "NVIDIA A100"}
    store.write(run(20, msgspec.structs.replace(at_level(), key=other), commit=git("rev-parse", "HEAD~1")))
    baseline = Baseline.resolve("main", store, Repository.discover(git.path), at_ref=True)
    assert numbers(baseline.find(TEST, other).runs) == [20]


def test_a_machine_without_a_run_at_the_level_shows_nothing_of_it(
    git: Git, store: Store, tokenpower: Command
) -> None:
    label = f"main@{stored_levels(git, store, [1.0])[0][:7]}"
    worse = at_level(1.1, verdicts=regressed(label))
    store.write(run(5, worse, commit=git.commit("worse")))
    elsewhere = msgspec.structs.replace(worse, key=KEY | {"gpu.name": "NVIDIA A100"})
    store.write(run(6, elsewhere, commit=git.commit("later")))
    ended = tokenpower("bless", "HEAD~1", "--reason=x")
    assert f"run 00000006 of {git.head[:7]} stays out: its machine" in ended.out
    assert read_blessings(store.path)[0].later_runs == {}


def test_only_regressed_runs_say_why_there_is_no_baseline(git: Git, store: Store) -> None:
    old = git.commit("old")
    store.write(run(1, at_level(verdicts=regressed("main@0000000")), commit=git.commit("new")))
    assert find(git, store).why == (
        f"1 stored run on main@{git.head[:7]} regressed and is not blessed; to accept: "
        f"tokenpower bless {git.head[:10]} --reason ..."
    )
    assert old != git.head


def test_names_and_paths_are_taken_at_their_word(git: Git, store: Store) -> None:
    store.write(run(1, at_level(verdicts=regressed("main@0000000")), commit=git.commit("one"), name="v1"))
    repository = Repository.discover(git.path)
    for text in ("name:v1", f"path:{store.path}"):
        assert numbers(Baseline.resolve(text, store, repository).find(TEST, KEY).runs) == [1]


def test_the_nearest_baseline_decides(git: Git, store: Store) -> None:
    commits = stored_levels(git, store, [1.0] * 3)
    pinned, rolling = f"v1.0@{commits[0][:7]}", f"main@{commits[2][:7]}"
    crept = (verdict("regressed", pinned), verdict("passed", rolling))
    store.write(run(10, at_level(verdicts=crept), commit=git.commit("crept")))
    assert numbers(find(git, store).runs)[0] == 10
    stepped = (verdict("passed", pinned), verdict("regressed", rolling))
    store.write(run(11, at_level(verdicts=stepped), commit=git.commit("stepped")))
    assert numbers(find(git, store).runs)[0] == 10
    alone = (verdict("regressed", pinned),)
    store.write(run(12, at_level(verdicts=alone), commit=git.commit("alone")))
    assert numbers(find(git, store).runs)[0] == 10
    over = (VerdictRecord("over budget", "over.", "joules_per_token"), verdict("passed", rolling))
    store.write(run(13, at_level(verdicts=over), commit=git.commit("over")))
    assert numbers(find(git, store).runs)[0] == 13


def test_an_improvement_may_be_made_the_level(git: Git, store: Store, tokenpower: Command) -> None:
    for number, level in enumerate([1.0] * 4 + [0.8]):
        gate(git, store, number, level)
    assert numbers(find(git, store).runs) == [4, 3, 2, 1, 0]
    assert tokenpower("bless", "HEAD", "--reason=faster kernels").code == 0
    assert numbers(find(git, store).runs) == [4]


def test_tests_are_blessed_one_by_one(git: Git, store: Store, tokenpower: Command) -> None:
    label = f"main@{git.commit('one')[:7]}"
    store.write(run(1, at_level(), at_level(test=OTHER), commit=git.head))
    worse = [at_level(1.1, test, verdicts=regressed(label)) for test in (TEST, OTHER)]
    store.write(run(2, *worse, commit=git.commit("two")))
    assert tokenpower("bless", "HEAD", "--test=summary", "--reason=x").code == 0
    assert numbers(find(git, store, test=OTHER).runs) == [2]
    assert numbers(find(git, store).runs) == [1]
    assert tokenpower("bless", "HEAD", "--reason=y").code == 0
    assert numbers(find(git, store).runs) == [2]


def test_a_blessing_of_another_line_says_nothing_here(git: Git, store: Store, tokenpower: Command) -> None:
    stored_levels(git, store, [1.0] * 2)
    git("switch", "--quiet", "--create", "release")
    store.write(run(5, at_level(1.1, verdicts=regressed("main@x")), commit=git.commit("release")))
    assert tokenpower("bless", "HEAD", "--reason=x").code == 0
    assert numbers(find(git, store, "release").runs) == [5]
    assert numbers(find(git, store, "main").runs) == [1, 0]


def test_the_merge_is_blessed_not_what_was_merged(git: Git, store: Store, tokenpower: Command) -> None:
    stored_levels(git, store, [1.0] * 2)
    git("switch", "--quiet", "--create", "topic")
    topic = git.commit("topic", topic="x")
    git("switch", "--quiet", "main")
    git("merge", "--quiet", "--no-ff", "--no-edit", "topic")
    ended = tokenpower("bless", topic, "--reason=x")
    assert ended.code == 4
    assert f"{topic[:7]} came to main with {git.head[:7]}" in ended.err
    assert f"bless {git.head[:7]}" in ended.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["HEAD", "--reason= "], "--reason is empty"),
        (["HEAD", "--reason=x"], r"no test regressed or improved in the runs of \w{7}.*no newer run on main"),
        (["HEAD", "--reason=x", "--test=zzz"], "no stored test is called like 'zzz'"),
        (["nowhere", "--reason=x"], "git knows no 'nowhere'"),
        (["unmeasured", "--reason=x"], r"no clean run of \w{7} is stored"),
        (["aside", "--reason=x"], "is not on the first-parent history of main"),
    ],
)
def test_mistakes(git: Git, store: Store, tokenpower: Command, arguments: list[str], complaint: str) -> None:
    stored_levels(git, store, [1.0])
    git("switch", "--quiet", "--create", "aside")
    git.commit("aside")
    git("switch", "--quiet", "main")
    git.commit("unmeasured")
    git("tag", "unmeasured")
    stored_levels(git, store, [1.0], first=5)
    ended = tokenpower("bless", *arguments)
    assert (ended.code, ended.out) == (4, "")
    assert re.search(f"tokenpower bless: .*{complaint}", ended.err)
    assert not (store.path / FOLDER).exists()


def test_an_unmeasured_commit_names_those_that_regressed(git: Git, store: Store, tokenpower: Command) -> None:
    label = f"main@{stored_levels(git, store, [1.0])[0][:7]}"
    store.write(run(5, at_level(1.1, verdicts=regressed(label)), commit=git.commit("worse")))
    worse = git.head
    git.commit("unmeasured")
    ended = tokenpower("bless", "HEAD", "--reason=x")
    assert f"commits of main with runs that regressed: {worse[:7]}" in ended.err


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenpower: Command) -> None:
    monkeypatch.chdir(tmp_path)
    assert "in no git repository" in tokenpower("bless", "HEAD", "--reason=x").err


def test_a_blessing_that_cannot_be_read_stops_the_run(git: Git, store: Store, tokenpower: Command) -> None:
    label = f"main@{stored_levels(git, store, [1.0])[0][:7]}"
    store.write(run(5, at_level(1.1, verdicts=regressed(label)), commit=git.commit("worse")))
    assert tokenpower("bless", "HEAD", "--reason=x").code == 0
    (file,) = (store.path / FOLDER).iterdir()
    text = file.read_bytes()
    for damaged, complaint in (
        (b"", "not a blessing"),
        (
            text.replace(b'"version":1', b'"version":9')
            if b"version" in text
            else text[:-2] + b',"version":9}',
            "version 9",
        ),
    ):
        file.write_bytes(damaged)
        ended = tokenpower("compare", "HEAD", "HEAD")
        assert ended.code == 4
        assert os.fspath(file) in ended.err
        assert complaint in ended.err
