"""`main` is the newest of what is known by that name, and what was not taken is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_tokenpower.store.git import Repository, ResolvedRef, run_git, unreadable_repository
from pytest_tokenpower.store.store import Store, default_store_path
from tests.support.repositories import Git


def resolve(git: Git, ref: str = "main") -> ResolvedRef:
    found = Repository.discover(git.path)
    assert found is not None
    return found.resolve(ref)


@pytest.fixture
def clone(git: Git, tmp_path: Path) -> Git:
    git.commit("one")
    return git.clone(tmp_path / "clone")


def fetched(git: Git, clone: Git) -> str:
    newest = git.commit("on the remote", remote="x")
    clone("fetch", "--quiet")
    return newest


def changes(git: Git) -> tuple[str, ...]:
    found = Repository.discover(git.path)
    assert found is not None
    return found.changes


def test_a_local_branch_behind_its_remote_is_not_taken(git: Git, clone: Git) -> None:
    old, newest = clone.head, fetched(git, clone)
    assert resolve(clone) == ResolvedRef(
        "origin/main", newest, f"origin/main is taken, as main ({old[:7]}) is behind it"
    )


def test_a_local_branch_ahead_of_its_remote_is_taken(clone: Git) -> None:
    newest = clone.commit("not pushed")
    assert resolve(clone) == ResolvedRef("main", newest)


def test_of_diverged_branches_both_are_named(git: Git, clone: Git) -> None:
    here, there = clone.commit("here", here="x"), fetched(git, clone)
    found = resolve(clone)
    assert (found.name, found.commit) == ("main", here)
    assert found.note == (
        f"main ({here[:7]}) and origin/main ({there[:7]}) have diverged; main is taken: give origin/main for the other"
    )
    assert resolve(clone, "origin/main") == ResolvedRef("origin/main", there)


def test_a_stale_remote_is_not_taken(git: Git, clone: Git, tmp_path: Path) -> None:
    clone("remote", "rename", "origin", "fork")
    newest = git.commit("on the remote")
    clone("remote", "add", "upstream", str(git.path))
    clone("fetch", "--quiet", "upstream")
    clone("switch", "--quiet", "--detach")
    clone("branch", "--quiet", "--delete", "--force", "main")
    found = resolve(clone)
    assert (found.name, found.commit) == ("upstream/main", newest)
    assert "fork/main" in found.note


def test_what_others_work_on_beside_it_is_not_worth_a_word(git: Git, clone: Git, tmp_path: Path) -> None:
    colleague = git.clone(tmp_path / "colleague")
    colleague.commit("elsewhere", elsewhere="x")
    clone("remote", "add", "colleague", str(colleague.path))
    clone("fetch", "--quiet", "colleague")
    newest = clone.commit("here", here="x")
    assert resolve(clone) == ResolvedRef("main", newest)


def test_a_colleagues_main_is_not_ours_however_far_ahead_it_is(git: Git, clone: Git, tmp_path: Path) -> None:
    colleague = git.clone(tmp_path / "colleague")
    ahead = colleague.commit("not merged")
    clone("remote", "add", "colleague", str(colleague.path))
    clone("fetch", "--quiet", "colleague")
    assert resolve(clone) == ResolvedRef("main", clone.head)
    clone("switch", "--quiet", "--detach", ahead)
    clone("branch", "--quiet", "--delete", "--force", "main")
    clone("remote", "remove", "origin")
    assert resolve(clone) == ResolvedRef("colleague/main", ahead)


def test_a_tag_of_a_branchs_name_is_not_taken(git: Git) -> None:
    old = git.commit("one")
    git("tag", "main")
    newest = git.commit("two")
    assert resolve(git) == ResolvedRef(
        "main", newest, f"the tag main ({old[:7]}) is not taken: give refs/tags/main for it"
    )
    assert resolve(git, "refs/tags/main").commit == old
    git("tag", "v1", old)
    assert resolve(git, "v1") == ResolvedRef("v1", old)


@pytest.mark.parametrize(
    ("command", "kind", "full"),
    [("branch", "local branch", "refs/heads/origin/main"), ("tag", "tag", "refs/tags/origin/main")],
)
def test_a_branch_of_a_remote_is_not_mistaken(
    git: Git, clone: Git, command: str, kind: str, full: str
) -> None:
    old = clone.head
    clone(command, "origin/main")
    newest = fetched(git, clone)
    assert resolve(clone, "origin/main") == ResolvedRef(
        "origin/main", newest, f"the {kind} origin/main ({old[:7]}) is not taken: give {full} for it"
    )
    assert resolve(clone, full).commit == old
    assert resolve(clone).commit == newest


@pytest.mark.parametrize("ref", ["HEAD", "HEAD~1", "@{0}", "main~1", "main^{commit}"])
def test_expressions_are_taken_as_they_are(git: Git, clone: Git, ref: str) -> None:
    clone.commit("two")
    fetched(git, clone)
    assert resolve(clone, ref) == ResolvedRef(ref, clone("rev-parse", ref))


@pytest.mark.parametrize("name", [".venv", "env", "tools/some environment"])
@pytest.mark.parametrize("mark", ["pyvenv.cfg", "conda-meta/history"])
def test_a_virtual_environment_makes_no_tree_dirty(git: Git, name: str, mark: str) -> None:
    git.commit("one")
    git.write(f"{name}/{mark}", "")
    git.write(f"{name}/bin/tool.py", "")
    found = Repository.discover(git.path)
    assert found is not None
    assert found.changes == ()


@pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
def test_an_edit_that_git_was_told_not_to_see_makes_the_tree_dirty(git: Git, flag: str) -> None:
    git.write("engine.py", "SECONDS = 1\n")
    git.write("other.py", "")
    git.commit("one")
    git("update-index", flag, "engine.py", "other.py")
    assert not changes(git)
    git.write("engine.py", "SECONDS = 2\n")
    (git.path / "other.py").unlink()  # As in a sparse checkout.
    assert changes(git) == ("engine.py",)


def test_what_this_clone_replaced_is_not_history(git: Git) -> None:
    first = git.commit("one")
    second = git.commit("two")
    git("replace", second, git("commit-tree", "-m", "without parents", f"{second}^{{tree}}"))
    found = Repository.discover(git.path)
    assert found is not None
    assert found.baseline_commits("main") == (first,)


def test_what_this_clone_grafted_is_not_history(git: Git) -> None:
    first = git.commit("one")
    second = git.commit("two")
    git.write(".git/info/grafts", f"{second}\n")
    found = Repository.discover(git.path)
    assert found is not None
    assert found.baseline_commits("main") == (first,)


@pytest.mark.parametrize("kind", ["LITERAL", "NOGLOB", "GLOB", "ICASE"])
def test_what_a_hook_says_of_patterns_hides_no_new_file(
    git: Git, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    git.commit("one")
    git.write("tests/conftest.py", "")
    monkeypatch.setenv(f"GIT_{kind}_PATHSPECS", "1")
    assert changes(git) == ("tests/conftest.py",)


def test_hidden_folders_make_no_tree_dirty_but_for_acceptances(git: Git) -> None:
    git.commit("one")
    git.write("outputs/1/.hydra/config.yaml", "")
    git.write(".tokenpower/accepted/x.toml", "")
    found = Repository.discover(git.path)
    assert found is not None
    assert found.changes == (".tokenpower/accepted/x.toml",)


def test_a_repository_that_git_refuses_has_no_store_elsewhere(
    git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_tokenpower.errors import HistoryError

    git.commit("one")
    assert unreadable_repository(git.path) == ""
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert Repository.discover(git.path) is None
    with pytest.raises(HistoryError, match=r"safe\.directory .*--energy-storage=PATH"):
        default_store_path(None, git.path)


def test_outside_git_the_store_is_where_it_was(tmp_path: Path) -> None:
    assert Store(default_store_path(None, tmp_path)).path == tmp_path / ".tokenpower"


@pytest.mark.parametrize(("may_fetch", "told"), [(False, "1"), (True, "0")])
def test_a_checkout_of_a_partial_clone_may_fetch_and_a_question_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may_fetch: bool, told: str
) -> None:
    """The variable that git obeys from 2.44 on."""
    program = tmp_path / "git"
    program.write_text('#!/bin/sh\nprintf %s "$GIT_NO_LAZY_FETCH"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert run_git(tmp_path, "status", may_fetch=may_fetch).stdout == told
