"""The loop: a change that makes a token cost more energy fails its build, and its fix passes again."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from baselines.helpers import Git
from conftest import Project

WORKLOAD = """
import time

import pytest
from pytest_tokenpower import TokenCount


def chat():
    time.sleep({seconds})
    return TokenCount(prompt=0, generated=1000)


@pytest.mark.power_budget(max_rounds=6)
def test_chat(energy):
    energy(chat)
"""


@pytest.fixture
def git(project: Project) -> Git:
    """The project as a repository on branch main, with its first commit."""
    git = Git(project.path)
    git("-c", "init.defaultBranch=main", "init", "--quiet")
    git.commit("start", test_energy=WORKLOAD.format(seconds=0.05))
    return git


def test_a_pull_request_that_costs_more_energy_fails_its_build(project: Project, git: Git) -> None:
    for number in range(3):
        git.commit(f"{number}")
        assert project.run("--energy-autosave").ret == 0

    git("switch", "--quiet", "--create", "feature")
    git.commit("unchanged", feature="")
    unchanged = project.run("--energy-baseline=main")
    assert unchanged.ret == 0
    unchanged.stdout.fnmatch_lines(["baseline main@???????", "test_chat *"])
    unchanged.stdout.no_fnmatch_line("*REGRESSED*")

    git.commit("slower", test_energy=WORKLOAD.format(seconds=0.06))
    slower = project.run("--energy-baseline=main", "--junit-xml=report.xml")
    assert slower.ret == pytest.ExitCode.TESTS_FAILED
    slower.assert_outcomes(failed=1)
    slower.stdout.fnmatch_lines(
        [
            "REGRESSED: test_chat: 0.0* J/token is * % above main@??????? (0.01*, 3 runs); limit 3 %.",
            "*power 300 W (*), * tok/s (-1*): slower, not hotter.",
            "test_chat *+[12]?.? % * REGRESSED",
        ]
    )
    [failure] = ElementTree.parse(project.path / "report.xml").iter("failure")
    assert failure.get("message", "").startswith("Failed: REGRESSED: test_chat: ")

    git.commit("fixed", test_energy=WORKLOAD.format(seconds=0.05))
    assert project.run("--energy-baseline=main").ret == 0
