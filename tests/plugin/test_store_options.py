"""Storing runs: where they go, what stops a run before it measures, and what is lost by nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.projects import Project

TEST = "@quick\ndef test_it(energy):\n    open('ran', 'w').close()\n    energy(generate)\n"


def text(result: pytest.RunResult) -> str:
    return " ".join(result.stdout.str().split())


def stored(path: Path) -> list[Path]:
    return sorted((path / "runs").glob("*.json"))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            ["--energy-autosave", "--energy-storage=file/store"],
            "the store cannot be written (Not a directory)",
        ),
        (["--energy-save=a/b"], "'a/b' is no name for a saved run"),
        (["--energy-save=run.json"], "'run.json' is no name for a saved run: it would be taken for a file"),
        (["--energy-json=nowhere/run.json"], "/nowhere does not exist"),
        (["--energy-json=."], "is a folder; give a file"),
        (["--energy-baseline="], "--energy-baseline is empty, as a variable that is not set leaves it"),
        (["--energy-baseline= "], "--energy-baseline is empty"),
        (["--energy-source="], "--energy-source is empty"),
        (["--energy-save="], "--energy-save is empty"),
        (["--energy-json="], "--energy-json is empty"),
        (["--energy-record="], "--energy-record is empty"),
        (["--energy-storage="], "--energy-storage is empty"),
        (["--energy-report=page.html", "--energy-report="], "--energy-report is empty"),
        (["--energy-baseline=./nowhere"], "/nowhere does not exist; give a store or a run file"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_cannot_be_stored_or_found_stops_the_run_before_it_measures(
    project: Project, options: list[str], complaint: str
) -> None:
    project.file("file", "a file where a folder should be")
    project.tests(TEST)
    result = project.run(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert complaint in result.stderr.str()
    assert not (project.path / "ran").exists()


def test_files_that_are_no_runs_are_named_counted_and_left_out(project: Project) -> None:
    project.tests(TEST)
    for _ in range(2):
        assert project.run("--energy-save=before", "--energy-storage=store").ret == 0
    corrupt, sound = stored(project.path / "store")
    corrupt.write_bytes(corrupt.read_bytes()[:100])
    (corrupt.parent / "notes.txt").write_text("not ours")

    # What two rounds take on a busy machine is not the matter here.
    result = project.run("--energy-baseline=before", "--energy-storage=store", "-o", "energy_regression=60%")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "passed * (limit 60 %): test_it *(1 run).",
            "2 stored files skipped:",
            f"  {corrupt}: not readable as JSON (*",
            f"  {corrupt.parent}/notes.txt: its name is not one of a stored run",
        ]
    )
    assert sound.exists()


def test_many_files_that_are_no_runs_are_counted_and_the_first_are_named(project: Project) -> None:
    project.tests(TEST)
    assert project.run("--energy-save=before", "--energy-storage=store").ret == 0
    for number in range(15):
        (project.path / f"store/runs/other{number:02}").touch()
    result = project.run("--energy-baseline=before", "--energy-storage=store")
    result.stdout.fnmatch_lines(["15 stored files skipped:", "*other09*", "  and 5 more"])
    result.stdout.no_fnmatch_line("*other10*")


def test_the_problems_of_a_baseline_elsewhere_are_named_too(project: Project) -> None:
    project.tests(TEST)
    for _ in range(2):
        assert project.run("--energy-autosave", "--energy-storage=other").ret == 0
    corrupt, _ = stored(project.path / "other")
    corrupt.write_text("{}")
    result = project.run("--energy-baseline=./other")
    result.stdout.fnmatch_lines(["1 stored file skipped:", f"  {corrupt}: not a run of pytest-tokenpower"])


def test_the_record_is_written_when_tests_fail(project: Project) -> None:
    project.tests(
        "@quick\n@pytest.mark.power_budget(joules=0.001)\ndef test_it(energy):\n    energy(generate)\n\n"
        "def test_other():\n    raise ValueError\n"
    )
    result, run = project.measure("--energy-save=failing")
    result.assert_outcomes(failed=2)
    assert [measured.verdicts[0].kind for measured in run.measurements] == ["over budget"]
    [file] = stored(project.path / ".tokenpower")
    assert json.loads(file.read_text()) == json.loads((project.path / "run.json").read_text())


def test_a_record_without_measurements_replaces_that_of_the_run_before(project: Project) -> None:
    project.tests(TEST)
    _, run = project.measure()
    assert len(run.measurements) == 1
    project.tests("def test_it():\n    pass\n")
    _, run = project.measure("--energy-autosave")
    assert run.measurements == ()
    # An empty run is no use in the store.
    assert stored(project.path / ".tokenpower") == []


def test_the_storage_option_is_relative_to_where_pytest_runs_and_the_ini_to_the_ini(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.tests(TEST)
    project.ini("energy_storage = store")
    (project.path / "below").mkdir()
    monkeypatch.chdir(project.path / "below")
    assert project.run("..", "--energy-autosave").ret == 0
    assert len(stored(project.path / "store")) == 1
    assert project.run("..", "--energy-autosave", "--energy-storage=store").ret == 0
    assert len(stored(project.path / "below/store")) == 1


def test_a_run_that_can_no_longer_be_stored_says_so_and_keeps_everything_else(project: Project) -> None:
    project.tests(
        TEST + "\n\ndef test_that_fills_the_disk():\n    import shutil\n    shutil.rmtree('store')\n"
        "    open('store', 'w').close()\n"
    )
    result, run = project.measure("--energy-autosave", "--energy-storage=store")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["test_it * measured", "this run is NOT stored: *the store cannot be written*"]
    )
    assert len(run.measurements) == 1


def test_a_failing_test_keeps_its_exit_code_when_the_run_cannot_be_stored(project: Project) -> None:
    project.tests(
        TEST + "\n\ndef test_that_fills_the_disk():\n    import shutil\n    shutil.rmtree('store')\n"
        "    open('store', 'w').close()\n    raise ValueError\n"
    )
    assert project.run("--energy-autosave", "--energy-storage=store").ret == pytest.ExitCode.TESTS_FAILED
