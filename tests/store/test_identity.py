"""Whose runs judge a test: those of the same place in the repository, under whatever name it had there."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.store.baseline import Baseline, ComparableRuns
from pytest_tokenpower.store.git import Repository
from pytest_tokenpower.store.identity import repository_test, root_in
from pytest_tokenpower.store.store import Store
from tests.support.repositories import KEY, Git, measurement, numbers, run

TEST = "tests/test_chat.py::test_chat"
PACKAGES = ("chat", "summarise")

parts = st.lists(st.sampled_from(["a", "b", "tests"]), max_size=3).map("/".join)


def here(git: Git) -> Repository:
    found = Repository.discover(git.path)
    assert found is not None
    return found


def find(git: Git, store: Store, root: str | None, test: str = TEST, ref: str = "main") -> ComparableRuns:
    return Baseline.resolve(ref, store, here(git), root=root, at_ref=True).find(test, KEY)


def packages(git: Git, *names: str) -> str:
    for name in names:
        git.write(f"{name}/tests/test_chat.py", f"# {name}\n" + "def test_chat(): ...\n" * 20)
    return git.commit("packages")


@given(parts, parts)
def test_one_file_is_one_test_whatever_the_root(root: str, below: str) -> None:
    file = posixpath.join(below, "t.py")
    assert repository_test(root, f"{file}::x") == repository_test("", f"{posixpath.join(root, file)}::x")
    assert repository_test(None, f"{file}::x") == f"{file}::x"


def test_a_root_is_seen_from_the_top_level(git: Git, tmp_path: Path) -> None:
    git.write("chat/tests/x.py", "")
    (tmp_path / "link").symlink_to(git.path / "chat")
    assert root_in(here(git), git.path) == ""
    assert root_in(here(git), tmp_path / "link") == "chat"
    assert root_in(None, tmp_path) is None
    assert repository_test("chat", f"..{os.sep}summarise/t.py::x") == "summarise/t.py::x"


def test_packages_of_a_monorepo_never_judge_each_other(git: Git, store: Store) -> None:
    commit = packages(git, *PACKAGES)
    for number in range(6):
        store.write(run(number, measurement(TEST), commit=commit, root=PACKAGES[number % 2]))
    assert numbers(find(git, store, "chat").run_ids) == [4, 2, 0]
    assert numbers(find(git, store, "summarise").run_ids) == [5, 3, 1]
    # From the top level it is the same file, so the same test.
    assert numbers(find(git, store, "", f"chat/{TEST}").run_ids) == [4, 2, 0]
    assert find(git, store, "", TEST).runs == ()


def test_runs_without_a_root_count_where_one_file_only_can_be_meant(git: Git, store: Store) -> None:
    store.write(run(1, measurement(TEST), commit=packages(git, "chat")))
    store.write(run(2, measurement(TEST), commit=packages(git, *PACKAGES)))
    assert numbers(find(git, store, "chat").run_ids) == [1]
    found = find(git, store, "summarise")
    assert found.runs == ()
    assert "2 stored runs on main" in found.why
    assert "do not say of which folder" in found.why


def test_runs_without_a_root_of_a_plain_repository_go_on_counting(git: Git, store: Store) -> None:
    git.write("tests/test_chat.py", "")
    store.write(run(1, measurement(TEST), commit=git.commit("one")))
    assert numbers(find(git, store, "").run_ids) == [1]


@pytest.mark.parametrize("edited", [False, True])
def test_a_renamed_file_and_a_moved_root_are_followed(git: Git, store: Store, edited: bool) -> None:
    commit = packages(git, "chat")
    store.write(run(1, measurement(TEST), commit=commit, root="chat"))
    git("mv", "chat", "conversation")
    if edited:
        with (git.path / "conversation/tests/test_chat.py").open("a") as file:
            file.write("# moved\n")
    git.commit("moved")
    found = find(git, store, "conversation")
    assert numbers(found.run_ids) == [1]
    assert f"runs of {commit[:7]} and before are those of chat/{TEST}" in found.note
    assert find(git, store, "conversation", "tests/test_chat.py::test_other").runs == ()


def test_a_copy_is_no_rename(git: Git, store: Store) -> None:
    store.write(run(1, measurement(TEST), commit=packages(git, "chat"), root="chat"))
    git.write("copy/tests/test_chat.py", (git.path / "chat/tests/test_chat.py").read_text())
    git.commit("copied")
    assert find(git, store, "copy").runs == ()


def test_the_words_name_the_commits_that_were_measured(git: Git, store: Store) -> None:
    commits = [git.commit(f"change {number}") for number in range(4)]
    for number in range(3):
        store.write(run(number, measurement(TEST), commit=commits[1]))
    store.write(run(9, measurement(TEST), commit=commits[0]))
    found = find(git, store, None)
    label = f"main@{commits[3][:7]}"
    words = f"4 runs of {commits[1][:7]} and 1 commit before, 2 commits before {label}"
    assert found.note == (
        f"Compared with {words}, of which no comparable run is stored: the difference may be main's own, as the "
        "commits in between were not measured."
    )
    store.write(run(10, measurement(TEST), commit=commits[3]))
    assert find(git, store, None).note == ""


def test_history_that_was_rewritten_is_no_history(git: Git, store: Store) -> None:
    git.commit("one")
    gone = git.commit("two")
    store.write(run(1, measurement(TEST), commit=gone))
    git("reset", "--quiet", "--hard", "HEAD~1")
    git.commit("another two")
    found = find(git, store, None)
    assert found.runs == ()
    assert f"none on the history of main@{git.head[:7]} (the newest: commit {gone[:7]})" in found.why
