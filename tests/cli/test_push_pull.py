"""`tokenpower push` and `pull`: a store on a branch of real (bare, local) remotes, alone and in a race."""

from __future__ import annotations

import multiprocessing
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from pytest_tokenpower.core.records import Figure, WaitingRecord
from pytest_tokenpower.errors import HistoryError
from pytest_tokenpower.store import remote as remote_store
from pytest_tokenpower.store.calibrations import CalibrationRecord, read_calibrations, write_calibration
from pytest_tokenpower.store.git import GitOutput, Repository
from pytest_tokenpower.store.remote import BRANCH, StoreBranch, push
from pytest_tokenpower.store.store import Store, default_store_path
from tests.support.commands import Command
from tests.support.repositories import Git, measurement, run


class Clone:
    """A clone with its store."""

    def __init__(self, git: Git) -> None:
        repository = Repository.discover(git.path)
        assert repository is not None
        self.git = git
        self.repository = repository
        self.store = Store(default_store_path(repository, git.path))

    def save(self, *numbers: int) -> None:
        for number in numbers:
            self.store.write(run(number, commit=f"{number:040x}"))

    def files(self) -> list[str]:
        return sorted(entry.file for entry in self.store.entries())


@pytest.fixture
def remote(git: Git, tmp_path: Path) -> Git:
    """Return a bare repository that the project was pushed to."""
    git.commit("one")
    bare = git.clone(tmp_path / "remote.git", "--bare")
    bare("config", "uploadpack.allowFilter", "true")
    bare("config", "uploadpack.allowAnySHA1InWant", "true")
    return bare


@pytest.fixture
def first(remote: Git, tmp_path: Path) -> Clone:
    return Clone(remote.clone(tmp_path / "first"))


@pytest.fixture
def second(remote: Git, tmp_path: Path) -> Clone:
    return Clone(remote.clone(tmp_path / "second"))


def stored_there(remote: Git) -> list[str]:
    listed = remote("ls-tree", "-r", "--name-only", BRANCH).splitlines()
    return sorted(path.rpartition("/")[2] for path in listed if path.startswith("runs/"))


def at(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone.git.path)


def test_there_and_back(
    remote: Git, first: Clone, second: Clone, tokenpower: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.save(1, 2)
    at(first, monkeypatch)
    ended = tokenpower("push")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"Added 2 files to {BRANCH} of origin.\n"
    assert tokenpower("push").out == f"{BRANCH} of origin has every run of this store.\n"
    at(second, monkeypatch)
    second.save(3)
    assert tokenpower("pull", "origin").out == f"Added 2 files from {BRANCH} of origin.\n"
    assert tokenpower("pull").out == f"This store has every run of {BRANCH} of origin.\n"
    assert second.files() == sorted([*first.files(), second.store.entries()[0].file])
    for entry in first.store.entries():
        assert (second.store.folder / entry.file).read_bytes() == entry.path.read_bytes()
    ended = tokenpower("push")
    assert ended.out.startswith(f"Added nothing to {BRANCH} of origin.\nHeld back: 1 run that ")
    assert tokenpower("push", "--all", f"file://{remote.path}").code == 0
    at(first, monkeypatch)
    assert tokenpower("pull").code == 0
    assert first.files() == second.files() == stored_there(remote)
    # A line of pushes, each with all that was there before, beside the code's history.
    assert remote("rev-list", "--count", BRANCH) == "2"
    assert remote("rev-list", "--max-parents=0", "--count", BRANCH, "main") == "2"
    assert "README.md" in remote("ls-tree", "--name-only", BRANCH)


def test_calibrations_go_over_and_earlier_ones_stay(
    remote: Git, first: Clone, second: Clone, tokenpower: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = {name: Figure(20.0, 0.01) for name in ("matmul", "memory")}
    for day in ("01", "02"):
        made = f"2026-11-{day}T10:00:00Z"
        write_calibration(
            first.store.path,
            CalibrationRecord("GPU-1", "H100", "580.1", made, pieces, WaitingRecord(120.0, 3.0)),
        )
    broken = first.store.path / "calibrations" / "GPU-1_20261103T100000Z.json"
    broken.write_text("{}")
    at(first, monkeypatch)
    ended = tokenpower("push")
    assert (
        f"Added 2 files to {BRANCH} of origin.\nLeft out: {broken}: not readable as a calibration"
        in ended.out
    )
    at(second, monkeypatch)
    assert tokenpower("pull").out == f"Added 2 files from {BRANCH} of origin.\n"
    broken.unlink()
    assert list(read_calibrations(second.store)) == list(read_calibrations(first.store))


def test_work_tree_index_and_refs_are_left_alone(first: Clone, second: Clone) -> None:
    git = first.git
    git.write("staged.py", "1")
    git("add", "staged.py")
    git.write("loose.txt", "2")
    first.save(1)
    second.save(2)
    push(second.repository, second.store, "origin")

    def state() -> tuple[str, ...]:
        index = (git.path / ".git" / "index").read_bytes().hex()
        # Git itself notes where the remote's branch is now (refs/remotes).
        refs = git("for-each-ref", "refs/heads", "refs/remotes/origin/main", "refs/tags", "refs/notes")
        return (git("status", "--porcelain"), git.head, refs, index)

    before = state()
    push(first.repository, first.store, "origin")
    assert state() == before


def test_a_push_runs_no_hook_and_needs_no_identity(
    remote: Git, first: Clone, tokenpower: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = first.git.path / ".git" / "hooks" / "pre-push"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.delenv(f"GIT_{role}_NAME")
        monkeypatch.delenv(f"GIT_{role}_EMAIL")
    first.git("config", "user.useConfigOnly", "true")
    first.save(1)
    at(first, monkeypatch)
    ended = tokenpower("push")
    assert (ended.code, ended.err) == (0, "")
    assert remote("log", "-1", "--format=%an", BRANCH) == "tokenpower"


def test_the_first_pull_finds_no_branch(
    first: Clone, tokenpower: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    at(first, monkeypatch)
    ended = tokenpower("pull", f"--storage={tmp_path / 'new'}")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"origin has no branch {BRANCH} yet: nothing was pushed so far.\n"


def test_a_pull_makes_a_new_store(
    first: Clone, second: Clone, tokenpower: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first.save(1)
    push(first.repository, first.store, "origin")
    at(second, monkeypatch)
    assert tokenpower("pull", f"--storage={tmp_path / 'new'}").code == 0
    assert [entry.file for entry in Store(tmp_path / "new").entries()] == first.files()


@pytest.mark.parametrize(
    "options",
    [
        ["--depth=1"],
        ["--filter=blob:none"],
        ["--filter=tree:0"],
        ["--single-branch", "--branch=main"],
        ["--single-branch", "--filter=blob:none"],
    ],
)
def test_clones_as_ci_makes_them(
    remote: Git,
    first: Clone,
    tmp_path: Path,
    options: list[str],
    tokenpower: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first.save(1, 2)
    push(first.repository, first.store, "origin")
    clone = Clone(remote.clone(tmp_path / "ci", *options))
    # A lazy fetch would hide that the filter left the runs away.
    monkeypatch.setenv("GIT_NO_LAZY_FETCH", "1")
    at(clone, monkeypatch)
    shallow = clone.repository.is_shallow
    assert tokenpower("pull").code == 0
    assert clone.files() == first.files()
    clone.save(3)
    assert tokenpower("push").code == 0
    assert stored_there(remote) == clone.files()
    again = Repository.discover(clone.git.path)
    assert again is not None
    assert again.is_shallow == shallow


def test_another_push_in_between_is_merged(
    remote: Git, first: Clone, second: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.save(1)
    second.save(2)
    real = StoreBranch.push
    calls = []

    def overtaken(self: StoreBranch, commit: str) -> GitOutput:
        calls.append(commit)
        if len(calls) == 1:
            push(second.repository, second.store, "origin")
        return real(self, commit)

    monkeypatch.setattr(StoreBranch, "push", overtaken)
    done = push(first.repository, first.store, "origin")
    assert done.files == tuple(first.files())
    assert len(calls) == 3
    assert stored_there(remote) == sorted(first.files() + second.files())


def test_it_gives_up_when_its_patience_is_over(
    remote: Git, first: Clone, second: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.save(1)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    real = StoreBranch.push
    calls: list[str] = []

    def overtaken(self: StoreBranch, commit: str) -> GitOutput:
        calls.append(commit)
        number = 100 + len(calls)
        second.save(number)
        with monkeypatch.context() as patch:
            patch.setattr(StoreBranch, "push", real)
            push(second.repository, second.store, "origin")
        return real(self, commit)

    monkeypatch.setattr(StoreBranch, "push", overtaken)
    monkeypatch.setattr(remote_store, "PATIENCE_S", 0.0)
    with pytest.raises(HistoryError, match="others were quicker 1 time in a row"):
        push(first.repository, first.store, "origin")
    assert len(calls) == 1
    assert stored_there(remote) == second.files()


def push_some(path: str, first_number: int, pushes: int) -> None:
    """Do what one job does: it saves a run and pushes, again and again."""
    clone = Clone(Git(Path(path)))
    for number in range(first_number, first_number + pushes):
        clone.save(number)
        push(clone.repository, clone.store, "origin")


@pytest.mark.slow
def test_twenty_jobs_that_push_at_once(remote: Git, tmp_path: Path) -> None:
    """In threads: git is what races."""
    clones = [Clone(remote.clone(tmp_path / f"job{number}")) for number in range(20)]
    for number, clone in enumerate(clones):
        clone.save(number)
    with ThreadPoolExecutor(20) as pool:
        done = list(pool.map(lambda clone: push(clone.repository, clone.store, "origin"), clones))
    assert [len(each.files) for each in done] == [1] * 20
    assert stored_there(remote) == sorted(file for clone in clones for file in clone.files())


def github(monkeypatch: pytest.MonkeyPatch, run_id: int, event: str = "push") -> None:
    for name, value in {
        "ACTIONS": "true",
        "REPOSITORY": "me/app",
        "RUN_ID": str(run_id),
        "RUN_ATTEMPT": "1",
        "JOB": "main",
        "EVENT_NAME": event,
        "REF": "refs/heads/main",
    }.items():
        monkeypatch.setenv(f"GITHUB_{name}", value)


def test_what_an_earlier_job_left_is_not_pushed(
    first: Clone, remote: Git, tokenpower: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(first, monkeypatch)
    first.save(1)
    assert tokenpower("pull").code == 0
    first.save(2)
    assert tokenpower("push").code == 0
    assert [name[-13:-5] for name in stored_there(remote)] == ["00000002"]
    # Nor does a note that was damaged or edited since.
    note = first.store.path / "pulled.json"
    note.write_text(note.read_text().replace("00000001", "00000003"))
    ended = tokenpower("push")
    assert (ended.code, ended.err.count("run tokenpower pull again")) == (4, 1)
    # A file that the earlier job has left in the note's place does not help it.
    note.unlink()
    os.mkfifo(note)
    assert "(it is no file): remove it, and run tokenpower pull again" in tokenpower("push").err
    note.unlink()
    note.symlink_to(first.git.path / "elsewhere")
    assert tokenpower("pull").code == 0
    assert not (first.git.path / "elsewhere").exists()
    assert "Held back: 1 run" in tokenpower("push").out


def test_a_ci_job_pushes_what_says_that_it_has_made_it(
    first: Clone, remote: Git, tokenpower: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    github(monkeypatch, 7)
    at(first, monkeypatch)
    first.save(1)
    ended = tokenpower("push")
    assert (ended.code, "this job has not pulled" in ended.err) == (4, True)
    assert tokenpower("pull").code == 0
    mine = "github/me/app/7/1/main"
    for number, job in ((2, mine), (3, "github/me/app/6/1/main")):
        made = run(number, commit=f"{number:040x}")
        first.store.write(msgspec.structs.replace(made, host={"hostname": "gpu1", "job": job}))
    assert "Held back: 2 runs" in tokenpower("push").out
    assert [name[-13:-5] for name in stored_there(remote)] == ["00000002"]
    github(monkeypatch, 8)
    assert "this job has not pulled" in tokenpower("push").err
    ended = tokenpower("push", "--all")
    assert (ended.code, "in CI each job pushes its own runs" in ended.err) == (4, True)


@pytest.mark.parametrize("option", [[], ["--all"]])
def test_a_pull_requests_job_pushes_nothing(
    first: Clone, tokenpower: Command, monkeypatch: pytest.MonkeyPatch, option: list[str]
) -> None:
    github(monkeypatch, 7, "pull_request")
    at(first, monkeypatch)
    assert tokenpower("pull").code == 0
    first.save(1)
    ended = tokenpower("push", *option)
    assert (ended.code, ended.out) == (4, "")
    assert "runs the code of a pull request" in ended.err


@pytest.mark.parametrize("foreign", [False, True])
def test_a_job_that_a_comment_started_pushes_only_from_the_commit_that_it_is_about(
    first: Clone, remote: Git, tokenpower: Command, monkeypatch: pytest.MonkeyPatch, foreign: bool
) -> None:
    at(first, monkeypatch)
    github(monkeypatch, 7, "issue_comment")
    monkeypatch.setenv("GITHUB_SHA", "b" * 40 if foreign else first.git.head)
    assert tokenpower("pull").code == 0
    made = run(2, commit=f"{2:040x}")
    first.store.write(msgspec.structs.replace(made, host={"job": "github/me/app/7/1/main"}))
    ended = tokenpower("push")
    assert (ended.code, "nothing is published" in ended.err) == ((4, True) if foreign else (0, False))
    assert bool(remote("branch", "--list", BRANCH)) is not foreign


def test_clones_that_race(remote: Git, first: Clone, second: Clone) -> None:
    context = multiprocessing.get_context("spawn")
    jobs = [
        context.Process(target=push_some, args=(os.fspath(clone.git.path), number, 4))
        for clone, number in ((first, 1), (second, 101))
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
        assert job.exitcode == 0
    expected = sorted(first.files() + second.files())
    assert len(expected) == 8
    assert stored_there(remote) == expected
    # Nothing was forced: each push is on top of another one.
    assert (
        remote("rev-list", "--count", BRANCH)
        == remote("rev-list", "--count", "--first-parent", BRANCH)
        == "8"
    )


def test_what_is_broken_stays_here(
    first: Clone, remote: Git, tokenpower: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.save(1, 2)
    broken = first.store.entries()[0].path
    broken.write_bytes(b"{}")
    at(first, monkeypatch)
    ended = tokenpower("push")
    assert ended.code == 0
    assert f"Left out: {broken}: not a run of pytest-tokenpower" in ended.out
    assert stored_there(remote) == [first.store.entries()[1].file]


def test_what_is_foreign_stays_there(
    remote: Git, first: Clone, second: Clone, tokenpower: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.save(1)
    push(first.repository, first.store, "origin")
    work = Git(second.git.path)
    work("fetch", "--quiet", "origin", BRANCH)
    work("switch", "--quiet", "--detach", "FETCH_HEAD")
    (good,) = first.files()
    month = work.path / "runs" / "2025-11"
    renamed = good.replace("00000001", "00000009")
    (month / renamed).write_bytes((month / good).read_bytes())
    (month / "notes.txt").write_text("x")
    (work.path / "runs" / "escape").symlink_to("/etc/passwd")
    work("add", "--all")
    work("commit", "--quiet", "--message=by hand")
    work("push", "--quiet", "origin", f"HEAD:refs/heads/{BRANCH}")
    work("switch", "--quiet", "main")
    at(second, monkeypatch)
    ended = tokenpower("pull")
    assert ended.code == 0
    assert second.files() == [good]
    assert f"Left out: origin/{BRANCH}/runs/{renamed}: its name does not belong to the run in it" in ended.out
    # What others put there by hand stays there.
    second.save(5)
    assert tokenpower("push").code == 0
    assert {"runs/2025-11/notes.txt", "runs/escape"} <= set(
        remote("ls-tree", "-r", "--name-only", BRANCH).splitlines()
    )


def test_a_large_store_goes_over_in_parts(
    first: Clone, second: Clone, tokenpower: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        first.store.write(run(number, measurement(f"test_{number}"), commit=f"{number:040x}"))
    push(first.repository, first.store, "origin")
    at(second, monkeypatch)
    assert tokenpower("pull").code == 0
    assert {entry.file: second.store.load(entry) for entry in second.store.entries()} == {
        entry.file: first.store.load(entry) for entry in first.store.entries()
    }


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["push", "upstream"], "'upstream' is no remote; the remotes of .*: origin$"),
        (["pull", "--", "-x"], "'-x' is no remote"),
        (
            ["push", "/nonexistent/x.git"],
            "git ls-remote /nonexistent/x.git failed: .*does not appear to be a git",
        ),
        (["pull", "/nonexistent/x.git"], "git ls-remote /nonexistent/x.git failed"),
    ],
)
def test_mistakes(
    first: Clone, tokenpower: Command, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    first.save(1)
    at(first, monkeypatch)
    ended = tokenpower(*arguments)
    assert (ended.code, ended.out) == (4, "")
    assert re.search(complaint, ended.err)
    assert ended.err.count("\n") == 1


def test_no_remote_and_no_git(
    git: Git, store: Store, tokenpower: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git.commit("one")
    assert "no run is stored" in tokenpower("push").err
    store.write(run(1))
    assert "name a remote, as there is none called origin" in tokenpower("push").err
    assert "none (git remote add NAME URL)" in tokenpower("pull").err
    git("remote", "add", "upstream", os.fspath(tmp_path / "nowhere.git"))
    assert "git ls-remote upstream failed" in tokenpower("push").err
    monkeypatch.chdir(tmp_path)
    assert "in no git repository" in tokenpower("pull").err


def test_a_remote_that_refuses(
    remote: Git, first: Clone, tokenpower: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = remote.path / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho no runs here >&2\nexit 1\n")
    hook.chmod(0o755)
    first.save(1)
    at(first, monkeypatch)
    ended = tokenpower("push")
    assert ended.code == 4
    assert f"git push to origin {BRANCH} failed" in ended.err
    assert "no runs here" in ended.err


def test_a_pull_is_bounded(
    first: Clone, second: Clone, tokenpower: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.save(1, 2, 3)
    at(first, monkeypatch)
    assert tokenpower("push").code == 0
    at(second, monkeypatch)
    monkeypatch.setattr(remote_store, "MOST_FILES", 2)
    said = tokenpower("pull").out.splitlines()
    assert said[0] == f"Added 2 files from {BRANCH} of origin."
    assert re.fullmatch(rf"Left out: origin/{BRANCH}: a pull takes at most 2 runs of \d+ MiB: .*", said[1])
    assert second.files() == first.files()[1:]  # the newest
    monkeypatch.setattr(remote_store, "MOST_RUN_BYTES", 10)
    said = tokenpower("pull").out.splitlines()
    assert said[1].endswith(f"{first.files()[0]}: larger than any run")
    monkeypatch.undo()
    at(second, monkeypatch)
    monkeypatch.setattr(remote_store, "MOST_BYTES", 10)
    assert "Added" not in tokenpower("pull").out
    assert second.files() == first.files()[1:]


def test_a_password_of_a_remote_is_not_shown(
    first: Clone, tokenpower: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.save(1)
    at(first, monkeypatch)
    for command in ("push", "pull"):
        ended = tokenpower(command, "http://bob:s3cretpw@127.0.0.1:9/x.git")
        assert ended.code == 4
        assert "http://127.0.0.1:9/x.git" in ended.err
        assert "s3cretpw" not in ended.out + ended.err


def test_a_pull_takes_no_option_of_a_push(tokenpower: Command) -> None:
    ended = tokenpower("pull", "--all")
    assert (ended.code, "unrecognized arguments: --all" in ended.err) == (2, True)
