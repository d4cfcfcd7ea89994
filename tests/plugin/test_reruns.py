"""Plugins that rerun failing tests: the rounds of all tries are judged together, so that nothing is rolled again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pytest_tokenpower.core.records import RunRecord
from tests.support.levels import SUPPLY, supply
from tests.support.projects import Project
from tests.support.verdicts import text

TEST = """
from at_level import at_level

LEVELS = {levels}
tries = []


@pytest.mark.power_budget(key_ignore="generated_tokens")
def test_it(energy):
    level = LEVELS[len(tries)]
    tries.append(level)
    at_level(energy, level or 1)
    assert level
"""


def rerun(
    project: Project, levels: Sequence[float], *arguments: str, reruns: int = 3
) -> tuple[pytest.RunResult, RunRecord]:
    """Return a run against a stored one at level 1, its tries at ``levels``.

    0 stands for a failure of the test itself.
    """
    supply(project)
    project.tests(TEST.format(levels=[1]))
    for _ in range(3):
        assert project.run(SUPPLY, "--energy-save=before").ret == 0
    project.tests(TEST.format(levels=list(levels)))
    return project.measure(SUPPLY, "--energy-baseline=before", f"--reruns={reruns}", *arguments)


def test_a_regression_fails_after_all_reruns(project: Project) -> None:
    """Its tries are judged together: a rule that begins anew with each finds less than there is."""
    result, run = rerun(project, [1.05, 1.04, 1.05, 1.04], "--energy-autosave")
    assert result.parseoutcomes() == {"failed": 1, "rerun": 3}
    result.stdout.fnmatch_lines(
        [
            "REGRESSED +* % (limit * %): test_it takes * *J/token; before took *",
            "*Pooled with 3 earlier attempts of this run.",
        ]
    )
    [measured] = run.measurements
    assert measured.attempts == 4
    assert len(measured.rounds) == 16
    assert sum(line.startswith("test_it ") for line in result.outlines) == 1


def test_the_rounds_of_a_false_alarm_pool_with_the_next_try(project: Project) -> None:
    result, run = rerun(project, [1.05, 0.98])
    assert result.parseoutcomes() == {"passed": 1, "rerun": 1}
    [measured] = run.measurements
    [verdict] = measured.verdicts
    assert (measured.attempts, len(measured.rounds)) == (2, 8)
    assert verdict.change == pytest.approx(0.015, abs=0.005)
    assert "Pooled with an earlier attempt of this run." in text(verdict)


def test_a_try_that_failed_by_itself_is_not_judged(project: Project) -> None:
    result, run = rerun(project, [0, 1.0])
    assert result.parseoutcomes() == {"passed": 1, "rerun": 1}
    [measured] = run.measurements
    assert (measured.attempts, len(measured.rounds)) == (1, 4)


def test_under_xdist_too(project: Project) -> None:
    result, run = rerun(project, [1.05, 1.05], "-n1", reruns=1)
    assert [(one.attempts, one.verdicts[0].kind) for one in run.measurements] == [(2, "regressed")]
    assert result.parseoutcomes() == {"failed": 1, "rerun": 1}


COMPARE = """
tries = []

def sleeper(seconds):
    def work():
        sleep(seconds)
        return TokenCount(prompt=0, generated=1000)
    return work

@pytest.mark.power_budget(min_rounds=4, max_rounds=4)
def test_variants(energy):
    tries.append(1)
    energy.compare(baseline=sleeper(0.05), candidate=sleeper(0.08 if len(tries) == 1 else 0.045))
"""


def test_blocks_of_a_comparison_pool(project: Project) -> None:
    project.tests(COMPARE)
    result, run = project.measure("--reruns=1")
    [measured] = run.measurements
    assert measured.attempts == 2
    assert len(measured.rounds) == len(measured.variants["baseline"]) == 8
    result.stdout.fnmatch_lines(
        ["*4 ABBA blocks in 1 restart*", "*Pooled with an earlier attempt of this run."]
    )


@pytest.mark.parametrize(("fewer", "kind"), [(1, "regressed"), (300, "invalid")])
def test_a_regression_is_not_lost_with_another_number_of_tokens(
    project: Project, fewer: int, kind: str
) -> None:
    """A token more or less is compared at equal lengths; beyond the tolerance all tries together say nothing."""
    supply(project)
    body = """
tries = []

def test_it(energy):
    with energy.measure() as window:
        sleep({seconds})
        window.tokens(prompt=0, generated=1000 - {fewer} * len(tries))
    tries.append(1)
"""
    project.tests(body.format(seconds=0.05, fewer=fewer))
    for _ in range(3):
        assert project.run(SUPPLY, "--energy-save=before").ret == 0
    project.tests(body.format(seconds=0.2, fewer=fewer))
    result, run = project.measure(SUPPLY, "--energy-baseline=before", "--reruns=1")
    assert result.parseoutcomes() == {"failed": 1, "rerun": 1}
    assert [one.verdicts[0].kind for one in run.measurements] == [kind]
    if kind == "invalid":
        assert "they generated different numbers of tokens" in run.measurements[0].verdicts[0].reason


RETRIES = """

import pytest


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call" and call.excinfo is not None and not report.skipped:
        # As pytest-retry does: torn down and run again on the spot, its second report made without this hook.
        whole = item.getparent(pytest.Session)
        item.ihook.pytest_runtest_teardown(item=item, nextitem=pytest.Class.from_parent(whole, name="another"))
        item._initrequest()
        item.ihook.pytest_runtest_setup(item=item)
        again = pytest.CallInfo.from_call(lambda: item.ihook.pytest_runtest_call(item=item), when="call")
        second = pytest.TestReport.from_item_and_call(item, again)
        report.outcome, report.longrepr = second.outcome, second.longrepr
    return report
"""


@pytest.mark.parametrize(
    ("levels", "outcome", "attempts"),
    [
        ([1.05, 1.05], "failed", 2),
        ([1.05, 0.96], "passed", 2),
        ([0, 1.0], "passed", 1),
        ([0, 1.05, 1.05], "failed", 2),
    ],
)
def test_a_try_that_another_plugin_makes_while_it_reports_is_judged_too(
    project: Project, levels: Sequence[float], outcome: str, attempts: int
) -> None:
    supply(project)
    project.tests(TEST.format(levels=[1]))
    for _ in range(3):
        assert project.run(SUPPLY, "--energy-save=before").ret == 0
    project.tests(TEST.format(levels=list(levels)))
    with (project.path / "conftest.py").open("a") as conftest:
        conftest.write(RETRIES)
    result, run = project.measure(SUPPLY, "--energy-baseline=before", "-p", "no:rerunfailures")
    assert result.parseoutcomes() == {outcome: 1}
    assert [one.attempts for one in run.measurements] == [attempts]
    if outcome == "failed":
        result.stdout.fnmatch_lines(["REGRESSED +5.0 %*"])
