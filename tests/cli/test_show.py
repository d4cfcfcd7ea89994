"""`tokenpower show`: everything that a stored run holds, for a person and as JSON."""

from __future__ import annotations

import re

import msgspec
import pytest

from pytest_tokenpower.core.records import decode_run
from pytest_tokenpower.store.store import Store
from tests.support.commands import Command
from tests.support.histories import OTHER, at_level, regressed, stored_levels
from tests.support.repositories import TEST, Git, run


def test_a_run_as_a_person_reads_it(git: Git, store: Store, tokenpower: Command) -> None:
    commit = git.commit("Switch the cache off")
    measured = at_level(verdicts=regressed("main@1234567"))
    rounds = (
        msgspec.structs.replace(measured.rounds[0], reasons=("another process used GPU-0",)),
        *measured.rounds[1:9],
        msgspec.structs.replace(
            measured.rounds[9],
            temperature_celsius=66.0,
            limited_shares={"power": 0.4},
            reasons=("another process used GPU-0",),
        ),
    )
    stored = msgspec.structs.replace(
        run(3, msgspec.structs.replace(measured, rounds=rounds), commit=commit, name="nightly"),
        branch="topic",
        host={"hostname": "runner-1"},
        versions={"vllm": "0.26.1"},
        command=("tests/energy", "--energy-autosave"),
    )
    store.write(stored)
    ended = tokenpower("show", "nightly")
    assert (ended.code, ended.err) == (0, "")
    for text in (
        f"run {stored.id}",
        "nightly",
        f"{commit[:12]} on topic: Switch the cache off",
        "pytest tests/energy --energy-autosave",
        "hostname runner-1",
        "vllm 0.26.1",
        TEST,
        "ring (gpu energy)",
        "8 good of 10, 1 s each, 256 generated tokens",
        "2 of 10: another process used GPU-0",
        "61 to 66 °C, limited by power up to 40% of a round",
        "GPU model NVIDIA H100",
        "regressed.",
    ):
        assert text in ended.out, text
    assert re.search(r"joules_per_token 0\.\d+ ± 0\.\d %  \(J / generated token\)", ended.out)


def test_what_is_not_measured_and_not_valid_says_so(git: Git, store: Store, tokenpower: Command) -> None:
    modelled = msgspec.structs.replace(at_level(comparable=False), provenance="modelled", figures={})
    store.write(run(1, modelled, commit=git.commit("one"), dirty=True))
    out = tokenpower("show").out
    assert "MODELLED, not measured: ring" in out
    assert "INVALID      the test failed by itself" in out
    assert "with uncommitted changes: no baseline" in out


def test_json_is_the_record(git: Git, store: Store, tokenpower: Command) -> None:
    stored_levels(git, store, [1.0])
    out = tokenpower("show", "HEAD", "--json").out
    (entry,) = store.entries()
    assert decode_run(out.encode(), source="stdout") == store.load(entry)
    assert out.count("\n") > 20


def test_the_newest_run_unless_another_is_named(git: Git, store: Store, tokenpower: Command) -> None:
    commits = stored_levels(git, store, [1.0] * 3)
    store.write(run(7, at_level(), commit=commits[0]))
    assert "run 00000007-" in tokenpower("show").out
    assert "run 00000002-" in tokenpower("show", "HEAD").out
    first = tokenpower("show", "HEAD~2").out
    assert "the newest of 2 runs of HEAD~2; the others: 00000000" in first
    assert "run 00000007-" in first
    assert "run 00000001-" in tokenpower("show", "run:00000001").out
    dirty = run(8, at_level(), commit=commits[2], dirty=True)
    store.write(dirty)
    assert "run 00000008-" in tokenpower("show", "run:00000008").out


def test_one_test_of_a_run(git: Git, store: Store, tokenpower: Command) -> None:
    store.write(run(1, at_level(), at_level(test=OTHER), commit=git.commit("one")))
    out = tokenpower("show", "--test=summary").out
    assert OTHER in out
    assert TEST not in out
    assert tokenpower("show", "--test=zzz").code == 4


def test_a_test_below_the_top_level_goes_by_both_its_ids(git: Git, store: Store, tokenpower: Command) -> None:
    name = "tests/energy/test_chat.py::test_chat"
    measured = at_level(test=name), at_level(test=f"{name}_long"), at_level(test=OTHER)
    store.write(run(1, *measured, commit=git.commit("one"), root="packages/chat"))
    for given in (name, f"packages/chat/{name}"):
        ended = tokenpower("show", f"--test={given}")
        assert (ended.code, ended.err) == (0, "")
        assert f"\n{name}\n" in ended.out
        assert f"{name}_long" not in ended.out


def test_outside_git(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, tokenpower: Command
) -> None:
    folder = tmp_path_factory.mktemp("outside")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
    monkeypatch.chdir(folder)
    Store(folder / ".tokenpower").write(run(1, at_level()))
    assert "none: outside git" in tokenpower("show").out
    assert "in no git repository" in tokenpower("show", "HEAD").err


def test_mistakes(git: Git, store: Store, tokenpower: Command) -> None:
    git.commit("one")
    assert "no run is stored in" in tokenpower("show").err
    store.write(run(1, at_level(), commit=git.head, dirty=True))
    ended = tokenpower("show", "HEAD")
    assert ended.code == 4
    assert "1 with uncommitted changes (name one by its id)" in ended.err
    store.entries()[0].path.write_bytes(b"{}")
    ended = tokenpower("show")
    assert ended.code == 4
    assert "not a run of pytest-tokenpower" in ended.err
