"""--energy-report: files at the end of a run, also under xdist, and what GitHub is told."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from tests.support.projects import ALONE, Project

TWO = """
@pytest.mark.parametrize("batch", [1, 8])
@quick
def test_chat(energy, batch):
    energy(generate, seconds=0.1)

@pytest.mark.power_budget(min_rounds=2, max_rounds=2, joules_per_token=0.001)
def test_dear(energy):
    energy(generate, seconds=0.1)
"""


def carried(path: Path) -> dict[str, object]:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL
    )
    assert found is not None
    data: dict[str, object] = json.loads(found[1])
    return data


@pytest.fixture
def two(project: Project) -> Project:
    project.tests(TWO)
    return project


@pytest.mark.parametrize(
    "workers", [(), pytest.param(("-n2",), marks=pytest.mark.slow)], ids=["alone", "xdist"]
)
def test_a_page_holds_each_test_with_its_power(two: Project, workers: tuple[str, ...]) -> None:
    arguments = ("--energy-report=out.html", "--energy-report=out.csv", *workers)
    result = two.pytester.runpytest_subprocess(*ALONE, *arguments) if workers else two.run(*arguments)
    result.stdout.fnmatch_lines(["Report written to *out.html", "Report written to *out.csv"])
    data = carried(two.path / "out.html")
    tests = {test["name"]: test for test in data["tests"]}  # type: ignore[attr-defined]
    assert set(tests) == {"test_chat[1]", "test_chat[8]", "test_dear"}
    for test in tests.values():
        [device] = test["power"]["devices"]
        # A simulated board at work draws 300 W.
        assert 300 in device["mean"]
        assert len(test["power"]["rounds"]) == 2
        assert test["provenance"] == "simulated"
    assert tests["test_dear"]["kind"] == "over budget"
    rows = list(csv.DictReader((two.path / "out.csv").read_text().splitlines()))
    assert {row["param.batch"] for row in rows} == {"1", "8", ""}


@pytest.mark.parametrize(
    "workers", [(), pytest.param(("-n2",), marks=pytest.mark.slow)], ids=["alone", "xdist"]
)
def test_on_github_a_summary_tells_the_step_and_annotates_once(
    two: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: tuple[str, ...]
) -> None:
    step = tmp_path / "step"
    step.write_text("before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    if workers:
        result = two.pytester.runpytest_subprocess(*ALONE, "--energy-report=out.md", *workers)
    else:
        result = two.run("--energy-report=out.md")
    assert step.read_text() == "before\n" + (two.path / "out.md").read_text()
    [line] = [line for line in result.outlines if line.startswith("::")]
    assert line.startswith("::error title=Energy per token%3A 1 OVER BUDGET%2C 2 simulated::OVER BUDGET ")


def test_elsewhere_a_summary_is_a_file_alone(
    two: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step"))
    result = two.run("--energy-report=out.md")
    assert "| `test_dear` |" in (two.path / "out.md").read_text()
    assert not (tmp_path / "step").exists()
    assert not [line for line in result.outlines if line.startswith("::")]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("out.pdf", "--energy-report=out.pdf: a file's suffix says what it is (.html, .md, .csv, .om)"),
        ("trace:", "--energy-report=trace:: names no file"),
        ("nowhere/out.html", "must be a file in a folder that exists"),
    ],
)
def test_a_report_that_cannot_be_is_refused_before_any_test_runs(two: Project, given: str, said: str) -> None:
    result = two.run(f"--energy-report={given}")
    assert result.ret == 4
    assert said in result.stderr.str()


def test_a_format_may_be_named_before_the_path(two: Project) -> None:
    two.run("--energy-report=comment:out.txt", "--energy-report=bencher:out.json")
    assert (two.path / "out.txt").read_text().startswith("<!-- pytest-tokenpower -->\n")
    assert len(json.loads((two.path / "out.json").read_text())) == 3


def test_factors_of_the_ini_file_are_in_the_report(two: Project) -> None:
    two.ini("energy_price = 0.3", "energy_currency = EUR", "carbon_intensity = DEU", "energy_pue = 1.2")
    two.run("--energy-report=out.md")
    text = (two.path / "out.md").read_text()
    for said in (
        "`EUR`/Mtok",
        "gCO2e/Mtok",
        "Price: 0.3 EUR/kWh",
        "gCO2e/kWh, Germany 2023, yearly average",
        "PUE: 1.2",
        "Missing from it, as only gpu energy was measured: CPUs",
    ):
        assert said in text, said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("energy_price = 0.3", "energy_price is given without energy_currency"),
        ("energy_currency = EUR", "energy_currency is given without energy_price"),
        ("energy_pue = 0.9", "energy_pue=0.9: must be a number of at least 1"),
        (
            "carbon_intensity = Germany",
            "carbon_intensity=Germany: must be a number of gCO2e per kWh, or one of",
        ),
        ("carbon_intensity = nan", "carbon_intensity=nan: must be"),
    ],
)
def test_a_factor_that_is_none_is_refused(two: Project, line: str, said: str) -> None:
    two.ini(line)
    result = two.run()
    assert result.ret == 4
    assert said in result.stderr.str()


def test_an_option_given_twice_is_stored_as_it_was_given(two: Project) -> None:
    _, run = two.measure("--energy-report=out.md", "--energy-report=out.csv")
    assert run.command[1:] == ("--energy-report=out.md", "--energy-report=out.csv")
