"""`tokenpower compare`: which runs each side means, the verdict, and the exit code."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec
import pytest

from pytest_tokenpower.core.records import GateRecord, MeasurementRecord, encode_run
from pytest_tokenpower.store.store import Store
from tests.support.commands import Command
from tests.support.histories import OTHER, at_level, regressed, stored_levels
from tests.support.repositories import KEY, TEST, Git, run


@pytest.mark.parametrize(
    ("level", "kind", "code"), [(1.0, "passed", 0), (1.06, "REGRESSED", 1), (0.9, "improved", 0)]
)
def test_the_exit_code_is_the_answer(
    git: Git, store: Store, tokenpower: Command, level: float, kind: str, code: int
) -> None:
    stored_levels(git, store, [1.0] * 5)
    git("switch", "--quiet", "--create", "topic")
    stored_levels(git, store, [level], first=10)
    ended = tokenpower("compare", "main", "topic")
    assert (ended.code, ended.err) == (code, "")
    assert re.search(rf"^test_chat\[bf16\] .* {kind}$", ended.out, re.MULTILINE)


def test_all_runs_of_the_candidate_count_and_sharpen(git: Git, store: Store, tokenpower: Command) -> None:
    stored_levels(git, store, [1.0] * 5)
    git("switch", "--quiet", "--create", "topic")
    stored_levels(git, store, [1.05], first=10)
    one = tokenpower("compare", "main", "topic").out
    for number in (11, 12, 13):
        store.write(run(number, at_level(1.05, seed=number), commit=git.head))
    four = tokenpower("compare", "main", "topic").out
    assert "(1 run) against" in one
    assert "(4 runs) against" in four
    head = f"against main@{git('rev-parse', '--short=7', 'main')}"
    assert f"{head} (5 runs)\n" in one
    newest = tokenpower("compare", "main", "topic", "--baseline-runs=3").out
    assert f"{head} (the newest 3 of 5 runs)\n" in newest

    def width(text: str) -> float:
        found = re.search(r"\[([+-][\d.]+), ([+-][\d.]+)\]", text)
        assert found is not None
        return float(found[2]) - float(found[1])

    assert width(four) < width(one)


@pytest.mark.parametrize(
    ("fail_on", "code"),
    [("regressed", 0), ("missing", 1), ("regressed,missing", 1), ("inconclusive", 0), ("nothing", 0)],
)
def test_what_fails_is_chosen(git: Git, store: Store, tokenpower: Command, fail_on: str, code: int) -> None:
    first = git.commit("one")
    for number in range(1, 6):
        store.write(run(number, at_level(seed=number), at_level(test=OTHER), commit=first))
    store.write(run(6, at_level(seed=6), commit=git.commit("two")))
    ended = tokenpower("compare", "HEAD~1", "HEAD", f"--fail-on={fail_on}")
    assert ended.code == code
    assert f"Only in HEAD~1@{git('rev-parse', '--short=7', 'HEAD~1')}: {OTHER}" in ended.out


def test_nothing_is_chosen_to_fail(git: Git, store: Store, tokenpower: Command) -> None:
    stored_levels(git, store, [1.0] * 4 + [1.2])
    assert tokenpower("compare", "HEAD~1", "HEAD").code == 1
    assert tokenpower("compare", "HEAD~1", "HEAD", "--fail-on=nothing").code == 0


def test_a_noisy_comparison_may_fail_as_undecided(git: Git, store: Store, tokenpower: Command) -> None:
    stored_levels(git, store, [1.0, 1.06, 1.03])
    assert tokenpower("compare", "HEAD~1", "HEAD").code == 0
    assert tokenpower("compare", "HEAD~1", "HEAD", "--fail-on=inconclusive").code == 1


def test_a_comparison_that_is_not_to_be_trusted_fails_as_in_the_gate(
    git: Git, store: Store, tokenpower: Command
) -> None:
    def at_clock(mhz: float, seed: int) -> MeasurementRecord:
        found = at_level(seed=seed)
        rounds = tuple(
            msgspec.structs.replace(one, sm_clock_mhz=mhz, limited_shares={"power": 0.0})
            for one in found.rounds
        )
        return msgspec.structs.replace(found, rounds=rounds)

    commit = git.commit("one")
    for number in range(1, 6):
        store.write(run(number, at_clock(1980.0, number), commit=commit))
    store.write(run(6, at_clock(1500.0, 6), commit=git.commit("two")))
    ended = tokenpower("compare", "HEAD~1", "HEAD")
    assert "INVALID: test_chat[bf16]: the comparison is not to be trusted: SM clock 1500 MHz" in ended.out
    assert ended.code == 1
    assert tokenpower("compare", "HEAD~1", "HEAD", "--fail-on=regressed").code == 0


def test_the_limit_is_the_tests_own_unless_given(git: Git, store: Store, tokenpower: Command) -> None:
    stored_levels(git, store, [1.0] * 5)
    own = msgspec.structs.replace(at_level(1.1), gate=GateRecord(0.2, 5))
    store.write(run(10, own, commit=git.commit("dearer")))
    assert tokenpower("compare", "HEAD~1", "HEAD").code == 0
    assert tokenpower("compare", "HEAD~1", "HEAD", "--regression=5%").code == 1
    assert tokenpower("compare", "HEAD~1", "HEAD", "--regression=0.3").code == 0


def test_sides_by_name_id_and_file(git: Git, store: Store, tokenpower: Command, tmp_path: Path) -> None:
    commit = git.commit("one")
    first = msgspec.structs.replace(run(1, at_level(), commit=commit, name="good"), id="aaaa1111" + "0" * 24)
    second = msgspec.structs.replace(
        run(2, at_level(1.2), commit=commit, name="bad"), id="bbbb2222" + "0" * 24
    )
    store.write(first)
    store.write(second)
    file = tmp_path / "dear.json"
    file.write_bytes(encode_run(second))
    goods = ("good", "name:good", "aaaa", "run:aaaa1111", first.id)
    bads = ("bad", "run:bbbb2222", os.fspath(file), "bad", "bad")
    for good, bad in zip(goods, bads, strict=True):
        ended = tokenpower("compare", good, bad)
        assert (ended.code, ended.err) == (1, ""), ended.out
    assert tokenpower("compare", os.fspath(file), "good").code == 0


def test_a_run_is_never_its_own_baseline(git: Git, store: Store, tokenpower: Command) -> None:
    stored_levels(git, store, [1.0])
    ended = tokenpower("compare", "HEAD", "HEAD", "--fail-on=missing")
    assert ended.code == 1
    assert "the only runs there are those that are compared" in ended.out


def test_the_runs_that_are_judged_take_no_place_among_those_before_them(
    git: Git, store: Store, tokenpower: Command
) -> None:
    for number, (level, commit) in enumerate([(1.0, git.commit("one")), (1.2, git.commit("two"))]):
        for seed in range(5):
            store.write(run(5 * number + seed, at_level(level, seed=5 * number + seed), commit=commit))
    ended = tokenpower("compare", "HEAD", "HEAD")
    assert ended.code == 1
    assert "(5 runs)." in ended.out
    assert re.search(r"REGRESSED \+(19|20)\.\d %", ended.out)


def test_the_tests_of_a_package_below_the_top_level_are_compared(
    git: Git, store: Store, tokenpower: Command
) -> None:
    for number, (level, commit) in enumerate([(1.0, git.commit("one")), (1.2, git.commit("two"))]):
        for seed in range(5):
            one = at_level(level, seed=5 * number + seed)
            store.write(run(5 * number + seed, one, commit=commit, root="packages/chat"))
    ended = tokenpower("compare", "HEAD~1", "HEAD")
    assert "nothing is stored" not in ended.out
    assert (ended.code, ended.err) == (1, "")
    assert f"tokenpower accept 'packages/chat/{TEST}'" in ended.out


def test_a_renamed_test_is_compared_with_what_it_was_called(
    git: Git, store: Store, tokenpower: Command
) -> None:
    """By git, of a file; by what was committed, of a function."""
    body = "".join(f"# line {number}\n" for number in range(40))
    git.write("tests/test_a.py", body)
    first = git.commit("one")
    for number in range(5):
        store.write(
            run(
                number,
                at_level(test="tests/test_a.py::test_file", seed=number),
                at_level(test="tests/test_a.py::test_old", seed=number),
                commit=first,
                root="",
            )
        )
    git("mv", "tests/test_a.py", "tests/test_b.py")
    moved = tokenpower("rename", "tests/test_a.py::test_old", "tests/test_b.py::test_new")
    assert moved.code == 0, moved.err
    second = git.commit("renamed")
    new = (at_level(1.2, test=f"tests/test_b.py::{name}", seed=6) for name in ("test_file", "test_new"))
    store.write(run(6, *new, commit=second, root=""))
    ended = tokenpower("compare", first, second, "--fail-on=missing")
    assert (ended.code, ended.err) == (0, "")
    assert "Only in" not in ended.out
    assert ended.out.count("REGRESSED +") == 2


def test_another_key_is_not_compared_and_says_why(git: Git, store: Store, tokenpower: Command) -> None:
    store.write(run(1, at_level(), commit=git.commit("one")))
    other = msgspec.structs.replace(at_level(), key=KEY | {"axis.quantization": "fp8"})
    store.write(run(2, other, commit=git.commit("two")))
    ended = tokenpower("compare", "HEAD~1", "HEAD", "--fail-on=missing")
    assert ended.code == 1
    assert "quantization: fp8 here, none there" in ended.out
    assert tokenpower("compare", "HEAD~1", "HEAD", "--fail-on=missing", "--key-ignore=quantization").code == 0


def test_runs_that_regressed_are_no_baseline_here_either(git: Git, store: Store, tokenpower: Command) -> None:
    stored_levels(git, store, [1.0] * 4)
    label = f"main@{git.head[:7]}"
    worse = git.commit("worse")
    store.write(run(10, at_level(1.1, verdicts=regressed(label)), commit=worse))
    store.write(run(11, at_level(1.1, seed=11), commit=git.commit("later")))
    ended = tokenpower("compare", "HEAD~1", "HEAD")
    assert ended.code == 1
    assert f"1 stored run on HEAD~1@{worse[:7]} regressed and is not accepted" in ended.out
    assert tokenpower("accept", TEST, "--up-to=12%", "--since", worse, "--reason=needed").code == 0
    assert tokenpower("compare", "HEAD~1", "HEAD").code == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["main", "HEAD", "--fail-on=slower"],
            r"--fail-on=slower: must be regressed, invalid, inconclusive, ",
        ),
        (["main", "HEAD", "--fail-on=nothing,missing"], "--fail-on=nothing,missing: must be"),
        (["main", "HEAD", "--regression=3"], "--regression=3: is 300%: write '3%' for 3 percent"),
        (["main", "HEAD", "--test=test_chat"], "--test says nothing here, as B is no service"),
        (["main", "HEAD", "--since=2h"], "--since says nothing here, as B is no service"),
        (
            ["main", "prometheus:http://[::1]:1", "--fail-on=regressed"],
            "--fail-on says nothing here, as B is a",
        ),
        (
            ["main", "prometheus:http://[::1]:1", "--regression=2%"],
            "--regression says nothing here, as B is a",
        ),
        (["main", "HEAD", "--baseline-runs=0"], "--baseline-runs=0: must be at least 1"),
        (["main", "HEAD", "--key-ignore=scope"], "'scope' cannot be left out"),
        (["mian", "HEAD"], "baseline 'mian' is no git ref, no saved run"),
        (["main", "run:ffff"], "no run in .* has an id that begins with 'ffff'; the newest: 00000001"),
        (["main", "run:0000"], "run '0000' is ambiguous: 00000001, 00000000 begin so; give more digits"),
        (["main", "bare"], "no run of bare@.* is stored.*The newest run in .* is 00000001 of commit"),
        (["main", "missing.json"], "missing.json does not exist"),
    ],
)
def test_mistakes(git: Git, store: Store, tokenpower: Command, arguments: list[str], complaint: str) -> None:
    stored_levels(git, store, [1.0] * 2)
    git("switch", "--quiet", "--create", "bare")
    git.commit("without a run")
    git("switch", "--quiet", "main")
    ended = tokenpower("compare", *arguments)
    assert (ended.code, ended.out) == (4, "")
    assert re.search(f"tokenpower compare: .*{complaint}", ended.err)
    assert ended.err.count("\n") == 1


def test_no_test_in_both(git: Git, store: Store, tokenpower: Command) -> None:
    store.write(run(1, at_level(), commit=git.commit("one")))
    store.write(run(2, at_level(test=OTHER), commit=git.commit("two")))
    ended = tokenpower("compare", "HEAD", "run:00000001")
    assert ended.code == 0  # HEAD's line holds TEST too.
    assert TEST.rpartition("::")[2] in ended.out
    ended = tokenpower("compare", "run:00000001", "HEAD")
    assert ended.code == 4
    assert "no test is in both run 00000001 (1 test) and HEAD@" in ended.err


def test_a_damaged_run_is_named_where_nothing_is_left(git: Git, store: Store, tokenpower: Command) -> None:
    stored_levels(git, store, [1.0] * 2)
    for entry in store.entries():
        entry.path.write_bytes(entry.path.read_bytes()[:-9])
    ended = tokenpower("compare", "HEAD~1", "HEAD")
    assert ended.code == 4
    assert f"; left out: {store.folder}/" in ended.err
    assert "and 1 other" in ended.err
    ended = tokenpower("history", TEST)
    assert ended.code == 4
    assert f"; left out: {store.folder}/" in ended.err
