"""A test that failed by any mechanism leaves nothing to compare with, and a late verdict is its one outcome."""

from __future__ import annotations

import importlib.util
import json
from xml.etree import ElementTree

import pytest

from pytest_tokenpower.core.records import RunRecord
from tests.support.projects import Project

FAILED = ("the test failed by itself",)


def needs(module: str, plugin: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"needs {plugin}")


def reasons(run: RunRecord) -> dict[str, tuple[str, ...]]:
    for one in run.measurements:
        assert one.comparable != bool(one.reasons)
        if one.reasons == FAILED:
            assert (one.figures, one.verdicts) == ({}, ())
    return {one.test.rpartition("::")[2]: one.reasons for one in run.measurements}


@pytest.mark.skipif(pytest.version_tuple < (9,), reason="subtests came with pytest 9")
def test_whatever_fails_a_test_leaves_nothing_comparable(project: Project) -> None:
    project.file(
        "conftest.py",
        """
import pytest

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call" and item.name == "test_reported_as_failed":
        report.outcome, report.longrepr = "failed", "too slow"
    return report
""",
    )
    project.tests(
        """
import unittest

pytestmark = pytest.mark.power_budget(min_rounds=2, max_rounds=2, joules=0.001)

class TestCase(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _energy(self, energy):
        self.energy = energy

    def test_case(self):
        self.energy(generate, 0.12)
        self.fail("wrong answer")

    def test_case_skipped(self):
        self.energy(generate, 0.12)
        self.skipTest("not here")

    @unittest.expectedFailure
    def test_case_expected(self):
        self.energy(generate, 0.12)
        self.fail("wrong answer")

def test_subtest(energy, subtests):
    energy(generate, 0.12)
    with subtests.test("answers"):
        assert "this" == "that"

def test_subtest_xfail(energy, subtests):
    energy(generate, 0.12)
    with subtests.test("answers"):
        pytest.xfail("known")

@pytest.mark.xfail(strict=True)
def test_xfail(energy):
    energy(generate, 0.12)
    raise ValueError("known")

def test_imperative_xfail(energy):
    energy(generate, 0.12)
    pytest.xfail("known")

def test_skipped(energy):
    energy(generate, 0.12)
    pytest.skip("not here")

def test_reported_as_failed(energy):
    energy(generate, 0.12)
"""
    )
    result, run = project.measure("-rA")
    assert reasons(run) == {
        "test_case": FAILED,
        "test_case_expected": FAILED,
        "test_subtest": FAILED,
        "test_subtest_xfail": FAILED,
        "test_xfail": FAILED,
        "test_imperative_xfail": FAILED,
        "test_reported_as_failed": FAILED,
    }
    assert result.parseoutcomes()["xfailed"] == 3


def test_a_teardown_that_fails_takes_the_figures_along(project: Project) -> None:
    project.tests(
        """
@pytest.fixture
def breaks(energy):
    yield
    raise RuntimeError("could not clear up")

@quick
def test_it(energy, breaks):
    energy(generate, 0.12)
"""
    )
    result, run = project.measure("--junit-xml=report.xml")
    result.assert_outcomes(passed=1, errors=1)
    assert reasons(run) == {"test_it": FAILED}
    assert 'name="energy.' not in (project.path / "report.xml").read_text()


@pytest.mark.parametrize(("late", "left"), [("xfail", {"test_it": FAILED}), ("skip", {})])
def test_a_teardown_that_does_not_pass_leaves_nothing_to_compare_with(
    project: Project, late: str, left: dict[str, tuple[str, ...]]
) -> None:
    project.tests(
        f"""
@pytest.fixture
def cleared():
    yield
    pytest.{late}("not here")

@quick
def test_it(energy, cleared):
    energy(generate, 0.12)
"""
    )
    _, run = project.measure()
    assert reasons(run) == left


FORKS = """
import os
import pickle
import warnings

import pytest
from _pytest.runner import runtestprotocol


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    if item.get_closest_marker("forked") is None:
        return None
    told, tell = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that other threads run
        child = os.fork()
    if not child:
        with os.fdopen(tell, "wb") as pipe:
            pickle.dump(runtestprotocol(item, log=False, nextitem=nextitem), pipe)
        os._exit(0)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        for report in pickle.load(pipe):
            item.ihook.pytest_runtest_logreport(report=report)
    os.wait()
    return True
"""


def test_a_test_in_a_fork_has_meters_of_its_own(project: Project) -> None:
    """The threads of a process that has measured before are not in its forks."""
    project.on_machine_time()
    project.ini("markers = forked")
    project.file("conftest.py", FORKS)
    project.tests(
        """
@quick
def test_before(energy):
    energy(generate, 0.12)

@quick
@pytest.mark.forked
def test_forked(energy):
    energy(generate, 0.12)

@quick
def test_after(energy):
    energy(generate, 0.12)
"""
    )
    result, run = project.measure()
    result.assert_outcomes(passed=3)
    assert reasons(run) == {"test_before": (), "test_forked": (), "test_after": ()}


@needs("pytest_check", "pytest-check")
def test_soft_assertions_fail_a_test_like_any_other(project: Project) -> None:
    project.tests(
        """
from pytest_check import check

@pytest.mark.power_budget(min_rounds=2, max_rounds=2, joules=0.001)
def test_it(energy):
    energy(generate, 0.12)
    check.equal(1, 2)
"""
    )
    result, run = project.measure("-p", "pytest_check.plugin")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*OVER BUDGET*")
    assert reasons(run) == {"test_it": FAILED}


def test_a_measurement_of_a_teardown_is_an_error(project: Project) -> None:
    project.tests(
        """
@pytest.fixture
def late(energy):
    yield
    energy(generate, 0.12)

@pytest.fixture
def late_and_silent(energy):
    yield
    try:
        with energy.measure() as window:
            window.tokens(prompt=0, generated=1)
    except Exception:
        pass

def block(energy):
    with energy.measure() as window:
        sleep(0.12)
        window.tokens(prompt=0, generated=1)

@pytest.fixture
def around(energy):
    with energy.measure() as window:
        yield window

def test_around(around):
    time.sleep(0.12)
    around.tokens(prompt=0, generated=1)

def test_late(energy, late):
    block(energy)

def test_silent(energy, late_and_silent):
    block(energy)
"""
    )
    result, run = project.measure()
    result.assert_outcomes(passed=2, errors=2, failed=1)
    assert "test_around: a window is still open at the test's end: end it in the test" in result.stdout.str()
    assert result.stdout.str().count("a measurement began when the test's body had ended") >= 2
    result.stdout.no_fnmatch_line("*fixture.py*")
    assert reasons(run) == {"test_around": FAILED, "test_late": FAILED, "test_silent": FAILED}


@pytest.mark.slow
def test_two_tests_of_one_id_are_refused_before_anything_runs(project: Project) -> None:
    project.tests("@quick\ndef test_it(energy):\n    open('ran', 'w').close()\n    energy(generate)\n")
    twice = ("test_energy.py", "test_energy.py", "--keep-duplicates")
    result = project.run(*twice)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: test_energy.py::test_it is in this run twice, *"])
    for options in ([*twice, "-n1"], ["--dist=each", "--tx=2*popen"]):
        result = project.run(*options)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        assert (
            "is in this run twice" in result.stdout.str()
            or "--dist=each has 2 workers" in result.stdout.str()
        )
    assert not (project.path / "ran").exists()
    project.run(*twice, "--energy-disable").assert_outcomes(passed=2)


@pytest.mark.slow
@pytest.mark.parametrize("dist", ["load", "loadgroup", "loadscope", "loadfile", "worksteal", "no"])
def test_ids_are_the_same_however_tests_are_shared_out(project: Project, dist: str) -> None:
    project.tests(
        "import unittest\n"
        "@pytest.mark.xdist_group('gpu 0')\n@quick\n@pytest.mark.parametrize('at', ['a@b', 'c'])\n"
        "def test_it(energy, at):\n    energy(generate)\n"
        "@pytest.mark.xdist_group('gpu 0')\n@quick\nclass TestCase(unittest.TestCase):\n"
        "    @pytest.fixture(autouse=True)\n    def _energy(self, energy):\n        self.energy = energy\n"
        "    def test_case(self):\n        self.energy(generate)\n"
    )
    _, run = project.measure("-n1", f"--dist={dist}")
    assert sorted(one.test for one in run.measurements) == [
        "test_energy.py::TestCase::test_case", "test_energy.py::test_it[a@b]", "test_energy.py::test_it[c]",
    ]  # fmt: skip


LATE = """
@quick
@pytest.mark.parametrize("name", ["certain", "late", "also late", "same"])
def test_it(energy, name):
    energy(generate, 0.12)

def test_other():
    pass
"""

# What the gate says of these tests, at once and of all together, and a plugin that hears of their outcomes.
SCRIPTED = """
import json

import pytest
from msgspec.structs import replace
from pytest_tokenpower.core.records import VerdictRecord
from pytest_tokenpower.gate import verdict
from pytest_tokenpower.runner import outcome

KINDS = {"certain": "regressed", "late": "inconclusive", "also late": "inconclusive", "same": "passed"}
heard = []

def judge(measurement, baseline, policy, *args, **more):
    kind = KINDS[measurement.test.partition("[")[2][:-1]]
    change = 0.0 if kind == "passed" else 0.1
    return VerdictRecord(
        kind, baseline.label, value=1 + change, baseline_value=1.0, change=change, change_low=change - 0.1,
        change_high=change + 0.1, p_value=0.009, threshold=0.03, baseline_runs=("a",), undecided="more runs",
    )

def settle(measurements, alpha):
    return {
        (one.test, each.against): replace(each, kind="regressed", notes=("Settled.",))
        for one in measurements for each in one.verdicts if each.kind == "inconclusive"
    }

@pytest.fixture(autouse=True, scope="session")
def scripted(monkeypatch_session):
    monkeypatch_session.setattr(outcome, "judge", judge)

@pytest.fixture(scope="session")
def monkeypatch_session():
    with pytest.MonkeyPatch.context() as patch:
        yield patch

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdict, "settle", settle)
        return (yield)

def pytest_runtest_logreport(report):
    if report.when == "call":
        heard.append((report.nodeid.partition("@")[0], report.outcome))

def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        with open("heard.json", "w") as file:
            json.dump(heard, file)
"""


def late(project: Project, *options: str) -> pytest.RunResult:
    """Return a run at whose end all comparisons together fail tests that had ended as passed."""
    project.tests("@quick\ndef test_it(energy):\n    energy(generate)\n")
    assert project.run("--energy-save=before").ret == 0
    project.tests(LATE)
    project.file("conftest.py", SCRIPTED)
    result = project.run("--energy-baseline=before", "--junit-xml=report.xml", *options)
    (project.path / "conftest.py").unlink()
    return result


def outcomes(project: Project) -> dict[str, list[str]]:
    """Return what JUnit says of each test in the end, and what another plugin has heard, which must be as many."""
    cases: dict[str, list[str]] = {}
    parsed = list(ElementTree.parse(project.path / "report.xml").iter("testcase"))
    for case in parsed:
        verdicts = [
            each.get("value", "") for each in case.iter("property") if each.get("name") == "energy.verdict"
        ]
        said = "failed" if case.find("failure") is not None else "passed"
        cases[str(case.get("name"))] = [said, *verdicts]
    heard = json.loads((project.path / "heard.json").read_text())
    assert len(heard) == len(parsed)
    final = [(test.rpartition("::")[2], outcome) for test, outcome in heard if outcome != "rerun"]
    assert sorted(final) == sorted((name, said[0]) for name, said in cases.items())
    return cases


HTML = ["-p", "pytest_metadata.plugin", "-p", "pytest_html.plugin", "--html=report.html"]

EXPECTED = {
    "test_it[certain]": ["failed", "regressed"],
    "test_it[late]": ["failed", "regressed"],
    "test_it[also late]": ["failed", "regressed"],
    "test_it[same]": ["passed", "passed"],
    "test_other": ["passed"],
}


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["-v"],
        ["-n1"],
        ["-n1", "--dist=loadgroup"],
        ["--reruns=1"],
        pytest.param(HTML, marks=needs("pytest_html", "pytest-html")),
        ["-p", "no:terminal"],
    ],
    ids=" ".join,
)
def test_a_test_that_is_settled_late_has_one_outcome(project: Project, options: list[str]) -> None:
    result = late(project, *options)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    if "no:terminal" not in options:
        counted = result.parseoutcomes()
        counted.pop("rerun", None)
        assert counted == {"failed": 3, "passed": 2}
        assert result.stdout.str().count("  Settled.") == 2
    assert outcomes(project) == EXPECTED
    if options == HTML:
        page = (project.path / "report.html").read_text()
        assert page.count("3 Failed,") == page.count("2 Passed,") == 1


def test_the_next_run_begins_with_what_was_settled_late(project: Project) -> None:
    project.file("pytest.ini", (project.path / "pytest.ini").read_text().replace("-p no:cacheprovider", ""))
    cache = project.path / ".pytest_cache/v/cache"
    assert late(project, "--stepwise", "-k", "late or same").parseoutcomes()["failed"] == 2
    assert json.loads((cache / "stepwise").read_text())["last_failed"] == "test_energy.py::test_it[late]"
    assert late(project, "--cache-clear").parseoutcomes() == {"failed": 3, "passed": 2}
    assert set(json.loads((cache / "lastfailed").read_text())) == {
        f"test_energy.py::test_it[{name}]" for name in ("certain", "late", "also late")
    }
    # What waits is told also where the run ends early: as it stands, for not all comparisons are there.
    result = late(project, "-x", "-k", "late or same or other")
    assert result.parseoutcomes() == {"failed": 2, "passed": 2, "deselected": 1}
    assert late(project, "-x", "-k", "certain or also").parseoutcomes() == {"failed": 1, "deselected": 3}
