"""Tests that ask for the fixture in their body, ``request.getfixturevalue("energy")``, are judged like any other."""

from __future__ import annotations

from tests.support.projects import Project

TESTS = """
@pytest.mark.power_budget(joules_per_token=1e-9, min_rounds=2, max_rounds=2)
def test_dear(request):
    request.getfixturevalue("energy")(generate)

def test_nothing(request):
    request.getfixturevalue("energy")

@quick
def test_broken(request):
    request.getfixturevalue("energy")(generate)
    raise OSError("later")

def test_plain():
    raise OSError("plain")
"""


def test_they_are_measured_and_fail(project: Project) -> None:
    project.tests(TESTS)
    result, run = project.measure()
    result.assert_outcomes(failed=4)
    assert [(one.test.partition("::")[2], one.comparable) for one in run.measurements] == [
        ("test_dear", True),
        ("test_broken", False),
    ]
    result.stdout.fnmatch_lines(
        [
            "OVER BUDGET * test_dear: *",
            "*test_nothing asks for the energy fixture and measures nothing*",
            "E*OSError: later",
            "E*OSError: plain",
        ]
    )


def test_a_meter_that_is_required_and_missing_fails_them(project: Project) -> None:
    project.tests(TESTS)
    project.ini("energy_require_hardware = true")
    result = project.run("-k", "dear or nothing", "--energy-source=nvml")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["energy_require_hardware is set, and *"] * 2)
