"""What a run says of itself when it is stored, and of the tests that it no longer has."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pytest_tokenpower.store.git import Repository
from pytest_tokenpower.store.renames import Rename, write_rename
from tests.support.projects import ALONE, Project

TEST = """
@quick
@pytest.mark.xdist_group("gpu0")
def test_{name}(energy):
    energy(generate)
"""


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(project: Project) -> Path:
    """Return a repository with two energy tests."""
    project.ini("markers = xdist_group(name): runs on one worker")
    project.tests(TEST.format(name="one") + TEST.format(name="two"))
    project.file(".gitignore", "__pycache__\n")
    git(project.path, "init", "--quiet", "--initial-branch=main")
    git(project.path, "add", "--all")
    git(project.path, "commit", "--quiet", "--message=one")
    return project.path


def said(result: pytest.RunResult, beginning: str = "stored ") -> list[str]:
    return [line for line in result.outlines if line.startswith(beginning)]


def test_a_clean_run_says_where_it_is_and_that_it_counts(project: Project, repository: Path) -> None:
    [line] = said(project.run("--energy-autosave", "-q"))
    assert line.startswith(f"stored 2 tests in {repository}/.git/tokenpower/runs/")
    assert line.endswith(
        f": commit {git(repository, 'rev-parse', '--short=7', 'HEAD')}, it can be a baseline"
    )


def test_changes_that_keep_it_from_being_a_baseline_are_named(project: Project, repository: Path) -> None:
    for name in ("a.py", "b.py", "c.ini", "d.cfg"):
        project.file(name, "")
    [line] = said(project.run("--energy-save=before", "test_energy.py"))
    assert "stored 2 tests under the name before in " in line
    assert "no branch's baseline, as the work tree of " in line
    assert "(a.py, b.py, c.ini and 1 more): commit them, or have git ignore them" in line
    assert line.endswith("; it can be compared with as before")


def test_outside_git_it_says_so(project: Project) -> None:
    project.tests(TEST.format(name="one"))
    [line] = said(project.run("--energy-autosave", "-W", "ignore"))
    assert "is in no git repository; it can be compared with by its path alone" in line


def test_what_did_not_measure_is_counted(project: Project, repository: Path) -> None:
    project.tests(TEST.format(name="one") + TEST.format(name="two") + "    assert False\n")
    git(repository, "commit", "--quiet", "--all", "--message=two")
    [line] = said(project.run("--energy-autosave"))
    assert line.endswith(", 1 can be a baseline, 1 cannot (failed or invalid)")


def test_a_repository_that_git_refuses_stores_nothing_elsewhere(
    project: Project, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    result = project.run("--energy-autosave")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"safe.directory {repository}" in result.stderr.str()
    assert not (repository / ".tokenpower").exists()
    [line] = said(project.run("--energy-autosave", f"--energy-storage={repository}/mine"))
    assert "no branch's baseline, as git refuses to read the repository" in line
    # What needs no store is measured all the same.
    project.run(f"--energy-json={repository}/run.json").assert_outcomes(passed=2)


@pytest.mark.slow
@pytest.mark.parametrize("distribution", [(), ("-n1", "--dist=loadgroup"), ("-n1", "--dist=load")])
def test_a_test_is_the_same_under_every_distribution(
    project: Project, repository: Path, distribution: tuple[str, ...]
) -> None:
    assert project.run("--energy-autosave", *distribution).ret == 0
    git(repository, "commit", "--quiet", "--allow-empty", "--message=two")
    _, run = project.measure("--energy-baseline=main", "-n1", "--dist=loadgroup")
    assert [one.test for one in run.measurements] == ["test_energy.py::test_one", "test_energy.py::test_two"]
    assert {one.verdicts[0].kind for one in run.measurements}.isdisjoint({"no baseline"})
    assert run.root == ""


@pytest.mark.parametrize(
    "more",
    [(), ("test_energy.py",), pytest.param(("-n1", "--dist=loadgroup"), marks=pytest.mark.slow), (".",)],
)
def test_a_stored_test_that_is_gone_is_named(
    project: Project, repository: Path, more: tuple[str, ...]
) -> None:
    assert project.run("--energy-autosave").ret == 0
    project.tests(TEST.format(name="one") + TEST.format(name="second"))
    git(repository, "commit", "--quiet", "--all", "--message=renamed")
    [line] = said(project.run("--energy-baseline=main", *more), "main@")
    assert "holds test_energy.py::test_two, which this run does not have" in line
    command = "tokenpower rename test_energy.py::test_two test_energy.py::test_second"
    assert f"was it renamed to test_energy.py::test_second? Then {command}, and commit" in line
    top = Repository.discover(repository)
    assert top is not None
    write_rename(top, Rename("test_energy.py::test_second", "test_energy.py::test_two"))
    result, run = project.measure("--energy-baseline=main", *more)
    assert said(result, "main@") == []
    assert {one.verdicts[0].kind for one in run.measurements}.isdisjoint({"no baseline"})


def test_a_stored_test_that_is_gone_for_good_is_named(project: Project, repository: Path) -> None:
    assert project.run("--energy-autosave").ret == 0
    project.tests(TEST.format(name="one"))
    git(repository, "commit", "--quiet", "--all", "--message=deleted")
    [line] = said(project.run("--energy-baseline=main"), "main@")
    assert "holds test_energy.py::test_two, which this run does not have: if it was renamed, say so" in line


@pytest.mark.parametrize(
    "more", [("-k", "one"), ("test_energy.py::test_one",), ("--deselect=test_energy.py::test_x",), ("other",)]
)
def test_a_part_of_the_suite_says_nothing_of_the_rest(
    project: Project, repository: Path, more: tuple[str, ...]
) -> None:
    project.file("other/test_plain.py", "def test_plain(): ...\n")
    assert project.run("--energy-autosave").ret == 0
    project.tests(TEST.format(name="one"))
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message=deleted")
    assert said(project.run("--energy-baseline=main", *more), "main@") == []


def test_a_renamed_file_is_followed_and_not_missing(project: Project, repository: Path) -> None:
    assert project.run("--energy-autosave").ret == 0
    git(repository, "mv", "test_energy.py", "test_joules.py")
    git(repository, "commit", "--quiet", "--message=renamed")
    result, run = project.measure("--energy-baseline=main")
    assert {one.verdicts[0].kind for one in run.measurements}.isdisjoint({"no baseline"})
    assert said(result, "main@") == []
    git(repository, "mv", "test_joules.py", "test_watts.py")  # Not committed yet.
    assert said(project.run("--energy-baseline=main"), "main@") == []


def test_a_module_that_is_skipped_is_not_gone(project: Project, repository: Path) -> None:
    assert project.run("--energy-autosave").ret == 0
    project.tests("pytest.importorskip('nowhere_to_be_found')\n")
    project.file("test_plain.py", "def test_plain(energy): ...\n")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message=two")
    assert said(project.run("--energy-baseline=main", *ALONE), "main@") == []


@pytest.mark.parametrize("pushes", [1, 2, 3, 4])
def test_a_step_that_no_run_of_main_was_judged_for_wakes_the_gate(project: Project, pushes: int) -> None:
    """Main's own job only saves; the third of its merges or so an hour makes the test 10 % dearer."""
    project.file(".gitignore", "__pycache__\nrun.json\n")
    git(project.path, "init", "--quiet", "--initial-branch=main")

    def commit(level: float, message: str) -> str:
        # As many tokens at each level, as lengths are part of the key.
        project.tests(
            "@pytest.mark.power_budget(min_rounds=8, max_rounds=8)\n"
            f"def test_chat(energy):\n    energy(generate, {level})\n",
            "test_chat.py",
        )
        git(project.path, "add", "--all")
        git(project.path, "commit", "--quiet", "--allow-empty", f"--message={message}")
        return git(project.path, "rev-parse", "HEAD")

    steps = []
    for number in range(5):
        steps.append(commit(0.221 if number >= 5 - pushes else 0.2, f"merge {number}"))
        assert project.run("--energy-autosave").ret == 0
    git(project.path, "switch", "--quiet", "--create", "topic/ünï-code")
    commit(0.221, "no dearer than main")
    result, record = project.measure("--energy-baseline=main")
    [verdict] = record.measurements[0].verdicts
    assert (result.ret, verdict.kind) == (0, "passed")
    said = " ".join(verdict.notes)
    assert f"Compared with the newest {pushes} of 5 stored runs" in said
    assert "nobody has accepted the step of +10." in said
    command = (
        f"tokenpower accept test_chat.py::test_chat --up-to 12% --since {steps[5 - pushes][:10]} --reason ..."
    )
    assert f"An acceptance is due, or a mend: {command}, and commit the file that it writes." in said
    commit(0.245, "11 % dearer than main")
    result, record = project.measure("--energy-baseline=main")
    assert (result.ret, record.measurements[0].verdicts[0].kind) == (1, "regressed")
