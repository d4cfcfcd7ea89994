"""`tokenpower list`: what the store holds."""

from __future__ import annotations

import json

import msgspec

from pytest_tokenpower.store.store import Store
from tests.support.commands import Command
from tests.support.histories import OTHER
from tests.support.repositories import KEY, TEST, Git, measurement, run


def test_tests_commits_names_boards_and_dates(git: Git, store: Store, tokenpower: Command) -> None:
    commits = [git.commit(f"change {number}") for number in range(5)]
    for number, commit in enumerate(commits):
        store.write(run(number, measurement(), commit=commit, root=""))
    two = KEY | {"gpu.name": "NVIDIA A100", "gpu.count": 2}
    store.write(run(10, measurement(OTHER, two), commit=commits[0], dirty=True, name="before", root="app"))
    store.write(run(11, msgspec.structs.replace(measurement(), comparable=False), root=""))
    ended = tokenpower("list")
    assert (ended.code, ended.err) == (0, "")
    head, _, *rows = ended.out.splitlines()
    assert head == f"7 runs in {store.path}"
    first, second = (row.split() for row in rows[2:])
    assert first[:5] == [f"app/{OTHER}", "2x", "NVIDIA", "A100", "1"]
    assert rows[2].endswith("saved as before; 1 with uncommitted changes")
    newest = [commit[:7] for commit in commits[:1:-1]]
    assert second[:8] == [TEST, "NVIDIA", "H100", "6", *newest, "+2"]
    assert rows[3].endswith("1 outside git; 1 invalid")
    assert "2025-11-22" in second


def test_a_text_chooses_and_json_has_every_run(git: Git, store: Store, tokenpower: Command) -> None:
    commit = git.commit("one")
    store.write(run(1, measurement(), measurement(OTHER), commit=commit))
    told = json.loads(tokenpower("list", "summary", "--json").out)
    assert [each["test"] for each in told["tests"]] == [OTHER]
    assert told["tests"][0]["runs"][0]["commit"] == commit[:12]
    unknown = tokenpower("list", "zzz")
    assert (unknown.code, unknown.out) == (4, "")
    assert "no stored test is called like 'zzz'" in unknown.err
    assert tokenpower("list").out.splitlines()[2].endswith("dates (UTC)"), (
        "a column of remarks where there is none"
    )


def test_what_is_damaged_is_named(git: Git, store: Store, tokenpower: Command) -> None:
    for number in (1, 2):
        store.write(run(number, measurement(), commit=git.commit(f"{number}")))
    broken = store.entries()[0].path
    broken.write_bytes(b"")
    assert f"Left out: {broken}: " in tokenpower("list").out


def test_an_empty_store_says_how_to_fill_it(git: Git, tokenpower: Command) -> None:
    git.commit("one")
    assert "save runs with pytest --energy-autosave" in tokenpower("list").err
