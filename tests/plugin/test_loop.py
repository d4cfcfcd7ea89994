"""The loop: a change that makes a token cost more energy fails its build, and its fix passes again."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.projects import ALONE, Project
from tests.support.repositories import Git

WORKLOAD = """
import pytest
from pytest_tokenpower import TokenCount
from workloads import sleep


def chat():
    sleep({seconds})
    return TokenCount(prompt=0, generated={generated})


@pytest.mark.power_budget({budget})
def test_chat(energy):
    energy(chat)
"""


def workload(seconds: float = 0.05, generated: int = 1000, budget: str = "min_rounds=2, max_rounds=2") -> str:
    return WORKLOAD.format(seconds=seconds, generated=generated, budget=budget)


@pytest.fixture
def git(project: Project) -> Git:
    """Return the project as a repository on branch main, with its first commit."""
    git = Git(project.path)
    git("-c", "init.defaultBranch=main", "init", "--quiet")
    git.commit("start", test_energy=workload())
    return git


@pytest.fixture
def branch(project: Project, git: Git) -> Git:
    """Return a branch off main, where one run is stored."""
    assert project.run("--energy-autosave").ret == 0
    git("switch", "--quiet", "--create", "feature")
    git.commit("unchanged", feature="")
    return git


def stored(project: Project) -> list[Path]:
    return sorted((project.path / ".git/tokenpower/runs").glob("*.json"))


def text(result: pytest.RunResult) -> str:
    """Return what was written, with its lines joined: a message wraps where it will."""
    return " ".join(result.stdout.str().split())


def test_a_pull_request_that_costs_more_energy_fails_its_build(project: Project, git: Git) -> None:
    git.commit("six rounds", test_energy=workload(budget="max_rounds=6"))
    for number in range(3):
        git.commit(f"main {number}", feature=f"number = {number}")
        assert project.run("--energy-autosave").ret == 0

    git("switch", "--quiet", "--create", "feature")
    git.commit("unchanged", feature="number = 3")
    unchanged = project.run("--energy-baseline=main")
    assert unchanged.ret == 0
    unchanged.stdout.fnmatch_lines(["baseline main@???????", "test_chat *"])
    unchanged.stdout.no_fnmatch_line("*REGRESSED*")

    git.commit("slower", test_energy=workload(0.12, budget="max_rounds=6"))
    slower = project.run("--energy-baseline=main", "--junit-xml=report.xml")
    assert slower.ret == pytest.ExitCode.TESTS_FAILED
    slower.assert_outcomes(failed=1)
    slower.stdout.fnmatch_lines(
        [
            "REGRESSED +* (limit 3 %): test_chat takes * mJ/token; main@??????? took * (3 runs).",
            "*power 300 W (*), * tok/s (-*): slower, not hotter.",
            "test_chat *+*.? % * REGRESSED",
        ]
    )
    [failure] = ElementTree.parse(project.path / "report.xml").iter("failure")
    assert failure.get("message", "").startswith("Failed: REGRESSED +")
    properties = {
        each.get("name"): each.get("value")
        for each in ElementTree.parse(project.path / "report.xml").iter("property")
    }
    assert properties["energy.verdict"] == "regressed"
    assert properties["energy.provenance"] == "simulated"
    assert 0.5 < float(properties["energy.change"] or 0) < 2

    git.commit("fixed", test_energy=workload(0.05, budget="max_rounds=6"))
    assert project.run("--energy-baseline=main").ret == 0


def test_a_change_that_is_not_committed_yet_is_not_called_main_itself(project: Project, git: Git) -> None:
    git.commit("six rounds", test_energy=workload(budget="max_rounds=6"))
    for _ in range(3):
        assert project.run("--energy-autosave").ret == 0
    git("switch", "--quiet", "--create", "feature")
    project.file("test_energy.py", workload(0.12, budget="max_rounds=6"))
    assert project.run("--energy-baseline=main").stdout.str().count("main itself") == 0
    git("commit", "--quiet", "--all", "--message=slower")
    git("branch", "--force", "main")
    project.run("--energy-baseline=main").stdout.fnmatch_lines(
        ["*This is main itself: an acceptance is due*"]
    )


def test_a_ref_that_git_does_not_know_stops_the_run_before_any_test(project: Project, git: Git) -> None:
    git.commit("reporting", test_energy="def test_ran(): open('ran', 'w')\n")
    result = project.run("--energy-baseline=mian")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: baseline 'mian' is no git ref, *Similar: main.*"])
    assert not (project.path / "ran").exists()


def test_a_shallow_clone_stops_the_run_and_says_how_to_deepen_it(
    project: Project, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    git.commit("second")
    monkeypatch.chdir(git.clone(project.path.parent / "shallow", "--depth=1").path)
    result = project.run("--energy-baseline=main")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *shallow clone*fetch-depth: 0*git fetch --unshallow*"])


def test_a_shallow_clone_stops_what_the_ini_compares_only_where_there_are_energy_tests(
    project: Project, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked for on the command line is wanted in that run; the ini file speaks for every run."""
    project.ini("energy_baseline = main")
    git.commit("second", test_plain="def test_plain(): pass\n")
    monkeypatch.chdir(git.clone(project.path.parent / "shallow-ini", "--depth=1").path)
    project.run("test_plain.py").assert_outcomes(passed=1)
    project.run("-k", "plain").assert_outcomes(passed=1, deselected=1)
    assert project.run("test_plain.py", "--energy-baseline=main").ret == pytest.ExitCode.USAGE_ERROR
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: ini energy_baseline: *shallow clone*fetch-depth: 0*"])
    workers = project.run(*ALONE, "-n1")
    workers.assert_outcomes(passed=1, errors=1)
    workers.stdout.fnmatch_lines(["*shallow clone*fetch-depth: 0*"])


def test_a_run_of_the_branch_itself_is_no_baseline(project: Project, branch: Git) -> None:
    branch.commit("slow", test_energy=workload(0.1))
    assert project.run("--energy-baseline=main", "--energy-autosave").ret == 1
    assert project.run("--energy-baseline=main").ret == 1


def test_a_failing_run_is_stored_like_any_other(project: Project, branch: Git) -> None:
    branch.commit("slow", test_energy=workload(0.1))
    assert project.run("--energy-baseline=main", "--energy-autosave").ret == 1
    _, newest = stored(project)
    [measurement] = json.loads(newest.read_text())["measurements"]
    assert measurement["comparable"]
    assert [verdict["kind"] for verdict in measurement["verdicts"]] == ["regressed"]


def test_a_faster_workload_is_improved(project: Project, branch: Git) -> None:
    branch.commit("fast", test_energy=workload(0.02))
    result = project.run("--energy-baseline=main")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "test_chat * improved",
            "improved -* % (limit 3 %): test_chat takes *.* mJ/token; main@??????? took 1*.* (1 run).",
            "*faster, not cooler.",
            "*Provisional: fewer than three occasions of this test are stored, so that its own noise is not known.",
        ]
    )


def test_a_dirty_run_is_no_baseline(project: Project, git: Git) -> None:
    git.write("test_energy.py", workload() + "\n# not committed\n")
    assert project.run("--energy-autosave").ret == 0
    git.commit("committed", feature="")
    result = project.run("--energy-baseline=main")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["test_chat * no baseline"])
    assert "1 stored run on main@" in text(result)
    assert "all with uncommitted changes, which are no baseline" in text(result)


@pytest.mark.parametrize(
    ("file", "more", "difference"),
    [
        (
            workload(generated=500),
            [],
            "0 prefilled and 500 generated tokens here, 0 prefilled and 1000 generated tokens there",
        ),
        (
            workload(),
            ["--energy-source=simulated:board.json"],
            "is not comparable: GPU power limit: 450 W here, 700 W there",
        ),
    ],
    ids=["tokens", "board"],
)
def test_no_comparable_run_is_said_with_what_differs(
    project: Project, branch: Git, file: str, more: list[str], difference: str
) -> None:
    project.file("board.json", '{"boards": [{"power_limit_watts": 450}], "clock": "virtual"}')
    branch.commit("changed", test_energy=file + "\n")
    result = project.run("--energy-baseline=main", *more)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["test_chat * no baseline", "no baseline: test_chat: *"])
    assert difference in text(result)


def test_a_missing_baseline_fails_where_the_ini_says_so(project: Project, git: Git) -> None:
    project.ini("energy_missing_baseline = fail")
    git.commit("second")
    result = project.run("--energy-baseline=main")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["NO BASELINE: test_chat: nothing to compare with on main@???????: *"])


def test_nothing_stored_for_the_first_commit_is_no_baseline(project: Project, git: Git) -> None:
    result = project.run("--energy-baseline=main")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["no baseline: test_chat: *HEAD is the first commit of main*"])


def test_a_run_saved_under_a_name_is_a_baseline(project: Project) -> None:
    project.file("test_energy.py", workload())
    assert project.run("--energy-save=before").ret == 0
    assert project.run("--energy-baseline=before").ret == 0
    project.file("test_energy.py", workload(0.1))
    result = project.run("--energy-baseline=before")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["REGRESSED +* (limit 3 %): test_chat takes * mJ/token; before took * (1 run)."]
    )


@pytest.mark.parametrize("path", ["other", "./run.json"])
def test_a_path_is_a_baseline(project: Project, path: str) -> None:
    project.file("test_energy.py", workload())
    assert project.run("--energy-autosave", "--energy-storage=other", "--energy-json=run.json").ret == 0
    project.file("test_energy.py", workload(0.1))
    result = project.run(f"--energy-baseline={path}")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [f"REGRESSED +* (limit 3 %): test_chat takes * mJ/token; {path} took * (1 run)."]
    )


def test_a_name_that_was_never_saved_lists_those_that_were(project: Project) -> None:
    project.file("test_energy.py", workload())
    assert project.run("--energy-save=before").ret == 0
    result = project.run("--energy-baseline=after")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *'after'*Saved runs in *: before.*"])


def test_the_limit_is_the_tests_own_or_that_of_the_ini(project: Project) -> None:
    project.file("test_energy.py", workload())
    assert project.run("--energy-save=before").ret == 0
    project.file("test_energy.py", workload(0.1, budget="min_rounds=2, max_rounds=2, regression='300%'"))
    assert project.run("--energy-baseline=before").ret == 0
    project.file("test_energy.py", workload(0.1))
    project.ini("energy_regression = 300%")
    assert project.run("--energy-baseline=before").ret == 0


def test_a_field_that_the_change_is_meant_to_change_can_be_left_out(project: Project) -> None:
    project.file("test_energy.py", workload())
    assert project.run("--energy-save=before").ret == 0
    ignoring = "min_rounds=2, max_rounds=2, key_ignore='generated_tokens'"
    project.file("test_energy.py", workload(generated=500, budget=ignoring))
    assert project.run("--energy-baseline=before").ret == 1
    project.file("test_energy.py", workload(generated=500))
    project.ini("energy_key_ignore = generated_tokens, gpu.*")
    assert project.run("--energy-baseline=before").ret == 1


@pytest.mark.parametrize(
    ("ini", "complaint"),
    [
        ("energy_regression = 3", "ini energy_regression=3: is 300%: write '3%' for 3 percent"),
        ("energy_missing_baseline = no", "ini energy_missing_baseline=no: must be warn or fail"),
        ("energy_require_hardware = maybe", "ini energy_require_hardware=maybe: must be true or false"),
        ("energy_baseline_runs = 0", "ini energy_baseline_runs=0: must be an integer of at least 1"),
        ("energy_key_ignore = provenance", "'provenance' cannot be left out of the comparison"),
    ],
)
def test_a_malformed_ini_value_stops_the_run_and_is_named(project: Project, ini: str, complaint: str) -> None:
    project.file("test_energy.py", workload())
    project.ini(ini)
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *{complaint}*"])
