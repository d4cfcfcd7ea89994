"""Baselines out of real git histories: each the right runs, or the right error."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from pytest_tokenpower.errors import HistoryError
from pytest_tokenpower.store import git as git_module
from pytest_tokenpower.store.baseline import Baseline, ComparableRuns
from pytest_tokenpower.store.git import Repository, explain_absence
from pytest_tokenpower.store.store import Store, default_store_path
from tests.support.repositories import KEY, TEST, Git, measurement, numbers, run


def here(git: Git) -> Repository:
    repository = Repository.discover(git.path)
    assert repository is not None
    return repository


def find(git: Git, store: Store, ref: str = "main", test: str = TEST) -> ComparableRuns:
    return Baseline.resolve(ref, store, here(git), folder=git.path).find(test, KEY)


def history(git: Git, store: Store, count: int) -> list[str]:
    """Commit on the branch at hand, run N stored for the Nth."""
    commits = [git.commit(f"change {number}") for number in range(count)]
    for number, commit in enumerate(commits):
        store.write(run(number, commit=commit))
    return commits


def test_topic_branch_is_judged_by_main_newest_first(git: Git, store: Store) -> None:
    commits = history(git, store, 7)
    git("switch", "--quiet", "--create", "topic")
    topic = git.commit("topic")
    store.write(run(8, commit=topic))
    baseline = Baseline.resolve("main", store, here(git))
    assert baseline.label == f"main@{commits[-1][:7]}"
    assert baseline.commits == tuple(reversed(commits))
    found = baseline.find(TEST, KEY)
    assert numbers(found.run_ids) == [6, 5, 4, 3, 2]
    assert found.commits == tuple(commits[:1:-1])
    newest = found.runs[0]
    assert msgspec.structs.replace(newest, started=None) == measurement()
    # When it was measured is known from the run where it does not say so itself.
    assert [each.started for each in found.runs[:2]] == [
        newest.started,
        (newest.started or 0) - 7200,
    ]
    assert found.why == ""


def test_runs_follow_commits_and_then_time(git: Git, store: Store) -> None:
    first, second = git.commit("one"), git.commit("two")
    for number, commit in ((1, second), (2, first), (3, second), (4, first)):
        store.write(run(number, commit=commit))
    git("switch", "--quiet", "--create", "topic")
    git.commit("topic")
    assert numbers(find(git, store).run_ids) == [3, 1, 4, 2]


def test_what_main_got_after_the_branch_left_does_not_count(git: Git, store: Store) -> None:
    history(git, store, 2)
    git("switch", "--quiet", "--create", "topic")
    git.commit("topic")
    git("switch", "--quiet", "main")
    store.write(run(9, commit=git.commit("later")))
    git("switch", "--quiet", "topic")
    assert numbers(find(git, store).run_ids) == [1, 0]


def test_runs_of_a_merged_topic_do_not_count(git: Git, store: Store) -> None:
    history(git, store, 1)
    git("switch", "--quiet", "--create", "topic")
    store.write(run(5, commit=git.commit("topic")))
    git("switch", "--quiet", "main")
    git("merge", "--quiet", "--no-ff", "--no-edit", "topic")
    store.write(run(6, commit=git.head))
    git("switch", "--quiet", "--create", "next")
    git.commit("next")
    assert numbers(find(git, store).run_ids) == [6, 0]


def test_on_main_itself_the_baseline_begins_at_the_first_parent(git: Git, store: Store) -> None:
    commits = history(git, store, 3)
    baseline = Baseline.resolve("main", store, here(git))
    assert baseline.label == f"main@{commits[1][:7]}"
    assert numbers(baseline.find(TEST, KEY).run_ids) == [1, 0]


def test_behind_main_the_baseline_begins_at_the_first_parent(git: Git, store: Store) -> None:
    commits = history(git, store, 4)
    git("switch", "--quiet", "--detach", commits[2])
    assert numbers(find(git, store).run_ids) == [1, 0]


def test_on_main_after_a_merge_the_first_parent_is_the_old_main(git: Git, store: Store) -> None:
    history(git, store, 1)
    git("switch", "--quiet", "--create", "topic")
    store.write(run(5, commit=git.commit("topic")))
    git("switch", "--quiet", "main")
    git("merge", "--quiet", "--no-ff", "--no-edit", "topic")
    assert numbers(find(git, store).run_ids) == [0]


def test_on_main_with_changes_head_itself_counts(git: Git, store: Store) -> None:
    commits = history(git, store, 3)
    git.write("workload.py", "slower")
    baseline = Baseline.resolve("main", store, here(git))
    assert baseline.label == f"main@{commits[2][:7]}"
    assert numbers(baseline.find(TEST, KEY).run_ids) == [2, 1, 0]


def test_the_first_commit_has_nothing_before_it(git: Git, store: Store) -> None:
    history(git, store, 1)
    baseline = Baseline.resolve("main", store, here(git))
    assert baseline.label == "main"
    assert "first commit of main" in baseline.find(TEST, KEY).why


def test_a_tag_pins_the_baseline(git: Git, store: Store) -> None:
    history(git, store, 2)
    git("tag", "v1.0")
    history_later = [git.commit(f"later {number}") for number in range(2)]
    store.write(run(9, commit=history_later[0]))
    assert numbers(find(git, store, "v1.0").run_ids) == [1, 0]


def test_detached_head(git: Git, store: Store) -> None:
    history(git, store, 2)
    git("switch", "--quiet", "--detach")
    git.commit("elsewhere")
    assert here(git).branch is None
    assert numbers(find(git, store).run_ids) == [1, 0]


def test_pull_request_checked_out_as_a_merge_commit(git: Git, store: Store, tmp_path: Path) -> None:
    history(git, store, 2)
    git("switch", "--quiet", "--create", "topic")
    store.write(run(5, commit=git.commit("topic", topic="x")))
    git("switch", "--quiet", "main")
    store.write(run(3, commit=git.commit("main goes on", other="y")))
    git("switch", "--quiet", "--detach")
    git("merge", "--quiet", "--no-ff", "--no-edit", "topic")
    git("update-ref", "refs/pull/1/merge", "HEAD")
    # As actions/checkout with fetch-depth: 0 leaves it: detached, no local branch.
    checkout = Git.init(tmp_path / "checkout")
    checkout("remote", "add", "origin", f"file://{git.path}")
    checkout(
        "fetch",
        "--quiet",
        "origin",
        "+refs/heads/*:refs/remotes/origin/*",
        "+refs/pull/1/merge:refs/remotes/pull/1",
    )
    checkout("checkout", "--quiet", "--force", "refs/remotes/pull/1")
    baseline = Baseline.resolve("main", store, here(checkout), folder=checkout.path)
    assert baseline.label == f"origin/main@{git('rev-parse', 'main')[:7]}"
    assert numbers(baseline.find(TEST, KEY).run_ids) == [3, 1, 0]


def test_no_local_main(git: Git, store: Store, tmp_path: Path) -> None:
    history(git, store, 2)
    git("branch", "topic")
    clone = git.clone(tmp_path / "clone", "--branch=topic")
    clone.commit("topic")
    assert here(clone).resolve("main").name == "origin/main"
    assert numbers(find(clone, store).run_ids) == [1, 0]


def test_main_of_another_remote(git: Git, store: Store, tmp_path: Path) -> None:
    history(git, store, 2)
    git("branch", "topic")
    clone = git.clone(tmp_path / "clone", "--branch=topic", "--origin=upstream")
    clone.commit("topic")
    assert here(clone).resolve("main").name == "upstream/main"
    assert numbers(find(clone, store, "upstream/main").run_ids) == [1, 0]


def test_shallow_clone_says_what_to_set(git: Git, store: Store, tmp_path: Path) -> None:
    history(git, store, 3)
    clone = git.clone(tmp_path / "clone", "--depth=1")
    clone.commit("topic")
    assert here(clone).is_shallow
    with pytest.raises(HistoryError, match=r"shallow clone.*`fetch-depth: 0`.*git fetch --unshallow"):
        Baseline.resolve("main", store, here(clone))
    clone("fetch", "--quiet", "--unshallow")
    assert numbers(find(clone, store, "origin/main").run_ids) == [2, 1, 0]


def test_shallow_clone_of_a_topic_does_not_know_main(git: Git, store: Store, tmp_path: Path) -> None:
    history(git, store, 3)
    git("branch", "topic")
    clone = git.clone(tmp_path / "clone", "--depth=1", "--branch=topic")
    with pytest.raises(
        HistoryError, match=r"tried main, origin/main.*git fetch origin main.*`fetch-depth: 0`"
    ):
        Baseline.resolve("ref:main", store, here(clone))
    # The command that the message gives for a clone of one branch works.
    clone("fetch", "--quiet", "--unshallow")
    clone("fetch", "--quiet", "origin", "main:refs/remotes/origin/main")
    assert here(clone).resolve("main").name == "origin/main"


def test_unknown_ref_names_what_was_tried_and_what_is_similar(git: Git) -> None:
    git.commit("one")
    with pytest.raises(HistoryError, match=r"no 'mian' \(tried mian\)\. Similar: main\. There is no remote"):
        here(git).resolve("mian")


@pytest.mark.parametrize("ref", ["", "--all", "main..topic", "main\0", "no such"])
def test_text_that_is_no_ref(git: Git, ref: str) -> None:
    git.commit("one")
    with pytest.raises(HistoryError):
        here(git).resolve(ref)


def test_unrelated_histories(git: Git) -> None:
    git.commit("one")
    git("switch", "--quiet", "--orphan", "island")
    git.commit("two")
    with pytest.raises(HistoryError, match="no commit in common"):
        here(git).baseline_commits("main")


def test_a_repository_without_a_commit(git: Git) -> None:
    repository = here(git)
    assert (repository.head, repository.branch, repository.dirty) == (None, "main", False)
    with pytest.raises(HistoryError, match="git knows no 'main'"):
        repository.baseline_commits("main")
    git.commit("one")
    git("switch", "--quiet", "--orphan", "island")
    with pytest.raises(HistoryError, match="no commit yet"):
        here(git).baseline_commits("main")


def test_history_is_cut_at_the_limit(git: Git, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = history(git, store, 5)
    monkeypatch.setattr(git_module, "HISTORY_LIMIT", 2)
    assert here(git).baseline_commits("main") == (commits[3], commits[2])


def test_worktrees_share_a_store_and_have_their_own_head(git: Git, tmp_path: Path) -> None:
    store = Store(default_store_path(here(git), git.path))
    assert store.path == git.path / ".git" / "tokenpower"
    history(git, store, 2)
    git("worktree", "add", "--quiet", "-b", "topic", os.fspath(tmp_path / "tree"))
    tree = Git(tmp_path / "tree")
    topic = tree.commit("topic")
    repository = here(tree)
    assert (repository.head, repository.branch, repository.top_level) == (topic, "topic", tree.path)
    assert default_store_path(repository, tree.path) == store.path
    assert numbers(find(tree, store).run_ids) == [1, 0]
    tree("clean", "-ffdxq")
    git("clean", "-ffdxq")
    assert len(store.entries()) == 2


def test_in_a_submodule_the_inner_repository_counts(git: Git, tmp_path: Path) -> None:
    outer = Git.init(tmp_path / "outer")
    git.commit("inner")
    outer("submodule", "--quiet", "add", f"file://{git.path}", "inner")
    outer.commit("outer")
    inner = Git(outer.path / "inner")
    repository = here(inner)
    assert repository.top_level == inner.path
    assert repository.head == git.head != here(outer).head
    store = Store(default_store_path(repository, inner.path))
    assert store.path == outer.path / ".git" / "modules" / "inner" / "tokenpower"
    store.write(run(1, commit=inner.head))
    inner.commit("topic")
    assert numbers(find(inner, store, "origin/main").run_ids) == [1]


def test_a_folder_below_the_top_level(git: Git) -> None:
    commit = git.commit("one")
    git.write("tests/deep/test_x.py", "")
    repository = Repository.discover(git.path / "tests" / "deep" / "test_x.py")
    assert repository is not None
    assert (repository.head, repository.common_dir) == (commit, git.path / ".git")


def test_no_git_at_all(tmp_path: Path, store: Store) -> None:
    assert Repository.discover(tmp_path) is None
    assert explain_absence(tmp_path) == f"{tmp_path} is in no git repository"
    assert default_store_path(None, tmp_path) == tmp_path / ".tokenpower"
    for text in ("ref:main", "main"):
        with pytest.raises(HistoryError, match="in no git repository"):
            Baseline.resolve(text, store, None, folder=tmp_path)
    store.write(run(1, name="before"))
    store.write(run(2, name="before"))
    assert numbers(Baseline.resolve("before", store, None, folder=tmp_path).find(TEST, KEY).run_ids) == [2, 1]


def test_git_is_not_installed(git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    assert Repository.discover(git.path) is None
    assert "is it installed" in explain_absence(git.path)


def test_a_repository_of_another_user(git: Git, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert Repository.discover(git.path) is None
    assert f"safe.directory {git.path}" in explain_absence(git.path)


def test_a_worktree_whose_repository_was_moved(git: Git, tmp_path: Path) -> None:
    git.commit("one")
    git("worktree", "add", "--quiet", os.fspath(tmp_path / "tree"))
    git.path.rename(tmp_path / "moved")
    assert f"not a git repository: {git.path}" in explain_absence(tmp_path / "tree")


def test_a_bare_repository(git: Git, tmp_path: Path) -> None:
    git.commit("one")
    bare = git.clone(tmp_path / "bare", "--bare")
    assert Repository.discover(bare.path) is None
    assert "work tree" in explain_absence(bare.path)


def test_in_a_hook_the_work_tree_counts_not_the_hooks_repository(
    git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = git.commit("one")
    other = Git.init(tmp_path / "other")
    other.commit("two")
    monkeypatch.setenv("GIT_DIR", os.fspath(other.path / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", os.fspath(other.path / ".git" / "index"))
    repository = here(git)
    assert (repository.head, repository.dirty) == (commit, False)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("workload.py", "modified"),
        ("data.bin", "modified"),
        ("workload.py", "staged"),
        ("workload.py", "deleted"),
        ("conftest.py", "new"),
        ("package/module.py", "new"),
        ("pytest.ini", "new"),
        ("suite.yaml", "new"),
    ],
)
def test_changes_make_a_tree_dirty(git: Git, file: str, change: str) -> None:
    git.write("data.bin", "0")
    git.commit("one")
    assert not here(git).dirty
    if change == "deleted":
        (git.path / file).unlink()
    else:
        git.write(file, "changed")
    if change == "staged":
        git("add", file)
    assert here(git).changes == (file,)
    assert here(git).dirty


@pytest.mark.parametrize(
    "file",
    [
        "junit.xml",
        "energy.json",
        "model.safetensors",
        "ignored.py",
        ".venv/lib/python3.12/site-packages/x.py",
    ],
)
def test_what_a_job_leaves_behind_does_not(git: Git, file: str) -> None:
    git.write(".gitignore", "ignored.py\n")
    git.commit("one")
    git.write(file, "x")
    assert not here(git).dirty


def test_a_submodule_at_another_commit_makes_a_tree_dirty(git: Git, tmp_path: Path) -> None:
    outer = Git.init(tmp_path / "outer")
    git.commit("inner")
    outer("submodule", "--quiet", "add", f"file://{git.path}", "inner")
    outer.commit("outer")
    inner = Git(outer.path / "inner")
    inner.write("notes.txt", "untracked")
    assert not here(outer).dirty
    inner.write("workload.py", "modified")
    assert here(outer).changes == ("inner",)
    inner.commit("another commit")
    assert here(outer).changes == ("inner",)


def test_a_git_that_does_not_answer_is_never_a_clean_tree(git: Git, monkeypatch: pytest.MonkeyPatch) -> None:
    git.commit("one")
    monkeypatch.setattr(git_module, "SCAN_S", 0.0)
    assert here(git).dirty
    assert "no answer" in here(git).changes[0]


def test_a_git_that_fails_is_never_a_clean_tree(git: Git) -> None:
    git.commit("one")
    (git.path / ".git" / "index").write_bytes(b"no index")
    assert here(git).dirty
    assert "git could not say" in here(git).changes[0]


def test_runs_with_changes_are_no_baseline_for_a_ref(git: Git, store: Store) -> None:
    commits = [git.commit("one"), git.commit("two")]
    git("switch", "--quiet", "--create", "topic")
    git.commit("topic")
    store.write(run(1, commit=commits[1], dirty=True))
    assert "1 stored run on main@" in find(git, store).why
    assert "all with uncommitted changes" in find(git, store).why
    store.write(run(2, measurement("other"), commit=commits[0]))
    assert "stored only with uncommitted changes" in find(git, store).why


def test_runs_outside_of_the_history_are_told(git: Git, store: Store) -> None:
    git.commit("one")
    git("switch", "--quiet", "--create", "topic")
    git.commit("topic")
    assert f"no run is stored in {store.path}" in find(git, store).why
    topic = git.head
    store.write(run(1, commit=topic))
    why = find(git, store).why
    assert "1 stored run, none on the history of main@" in why
    assert topic[:7] in why
    store.write(run(2, measurement("other"), commit=git("rev-parse", "main")))
    assert f"stored only outside of that history (commit {topic[:7]})" in find(git, store).why


def test_a_renamed_test_is_suggested_and_not_assumed(git: Git, store: Store) -> None:
    store.write(run(1, commit=git.commit("one")))
    git("switch", "--quiet", "--create", "topic")
    git.commit("topic")
    renamed = TEST.replace("test_chat[", "test_chatting[")
    found = find(git, store, test=renamed)
    assert not found.runs
    assert f"most similar test stored there is {TEST}: was it renamed? Then tokenpower rename" in found.why
    assert "similar" not in find(git, store, test="tests/test_wholly_else.py::test_it").why
    git.write("tests/energy/test_chat.py", "def test_chat(energy): ...\n")  # The other one is still there.
    assert "similar" not in find(git, store, test=renamed).why
