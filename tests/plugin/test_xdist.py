"""Under pytest-xdist: workers measure, the controller stores, shows and refuses."""

from __future__ import annotations

import re

import pytest

from pytest_tokenpower.core.records import decode_run
from tests.support.projects import ALONE, Project

TESTS = """
@quick
@pytest.mark.parametrize("number", range(3))
def test_it(energy, number):
    energy(generate, {seconds})
"""


def test_results_of_all_workers_are_stored_and_shown_once_and_a_regression_fails(project: Project) -> None:
    project.tests(TESTS.format(seconds=0.02))
    assert project.run("--energy-autosave", "--energy-storage=before").ret == 0
    [before] = (project.path / "before/runs").glob("*.json")
    corrupt = before.with_name(f"20000101T000000.000000Z{before.name[23:]}")
    corrupt.write_text("corrupt")
    project.tests(TESTS.format(seconds="0.06 if number == 1 else 0.02"))
    result, run = project.measure(
        *ALONE,
        "-n2",
        "--energy-autosave",
        "--energy-storage=store",
        "--energy-baseline=./before",
        "--junit-xml=report.xml",
    )
    result.assert_outcomes(passed=2, failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    [file] = (project.path / "store/runs").glob("*.json")
    assert run == decode_run(file.read_bytes(), source="store")
    assert sorted(measured.test for measured in run.measurements) == [
        f"test_energy.py::test_it[{number}]" for number in range(3)
    ]
    result.stdout.fnmatch_lines(
        [
            "REGRESSED +* (limit 3 %): test_it[[]1[]] takes * *J/token; ./before *(1 run).",
            "test_it[[]1[]] * REGRESSED",
        ]
    )
    rows = re.findall(r"^(test_it\[\d\]) +[\d.]+ ", result.stdout.str(), re.MULTILINE)
    assert sorted(rows) == [f"test_it[{number}]" for number in range(3)]
    assert sum("SIMULATED, not measured" in line for line in result.outlines) == 1
    # A file is read on the worker that needs it, and named in the one summary.
    result.stdout.fnmatch_lines(["1 stored file skipped:", f"  {corrupt}: not readable as JSON *"])
    report = (project.path / "report.xml").read_text()
    assert report.count('name="energy.joules_per_token"') == 3
    assert report.count('"energy.verdict" value="regressed"') == 1


def test_mistakes_stop_the_run_before_any_worker_starts(project: Project) -> None:
    project.tests(TESTS.format(seconds=0.02))
    for options in (["--energy-baseline=./nowhere"], ["--energy-source=nonsense"]):
        result = project.run("-n2", *options)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["ERROR: *"])
        result.stdout.no_fnmatch_line("*workers*")


def test_a_malformed_marker_is_a_clean_error(project: Project) -> None:
    project.tests("@pytest.mark.power_budget(watts=3)\ndef test_it(energy):\n    pass\n")
    result = project.run(*ALONE, "-n1")
    assert result.ret != 0
    assert "power_budget has no argument 'watts'" in result.stdout.str()
    assert "INTERNALERROR" not in result.stdout.str()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [["-n2"], ["--tx=2*popen", "--dist=load"]], ids=" ".join)
def test_workers_results_are_shown_though_nothing_of_ours_was_asked_for(
    project: Project, workers: list[str]
) -> None:
    # A source of one's own would be asked for.
    project.on_machine_time()
    project.tests(TESTS.format(seconds=0.3))
    result = project.run(*ALONE, *workers)
    result.assert_outcomes(passed=3)
    assert len(re.findall(r"^test_it\[\d\] +[\d.]+ .* measured", result.stdout.str(), re.MULTILINE)) == 3
