"""What a test's joules are divided by: asked for or by its counts; in key, verdict, table and message."""

from __future__ import annotations

import pytest

from pytest_tokenpower.core.text import readable
from tests.support.projects import Project

PROJECT = """
import pathlib

def work(prompt=0, generated=0, responses=8, cached=0):
    sleep(float(pathlib.Path("seconds").read_text()))
    return TokenCount(prompt, generated, responses, cached)

ASKED = pytest.mark.power_budget(min_rounds=4, max_rounds=4, {marker})

@ASKED
def test_it(energy):
    energy(work, {counts})
"""


@pytest.mark.parametrize(
    ("counts", "marker", "per", "unit"),
    [
        ("prompt=4096", "", "prompt_token", "J/prompt token"),
        ("prompt=4096, cached=4096", "", "response", "J/response"),
        ("responses=32", "", "response", "J/response"),
        ("prompt=64, generated=640", "per='response'", "response", "J/response"),
        ("prompt=64, generated=640", "per='total_token'", "total_token", "J/token of prompt and answer"),
        ("prompt=64, generated=640", "", "token", "J/token"),
    ],
)
def test_the_denominator_gates_and_is_named(
    project: Project, counts: str, marker: str, per: str, unit: str
) -> None:
    project.tests(PROJECT.format(counts=counts, marker=marker))
    (project.path / "seconds").write_text("0.15")
    for name in ("a", "b", "c"):
        project.run(f"--energy-save={name}").assert_outcomes(passed=1)
    (project.path / "seconds").write_text("0.3")
    result, run = project.measure("--energy-baseline=name:a")
    (measured,) = run.measurements
    assert measured.key.get("denominator", "token") == per
    (verdict,) = measured.verdicts
    assert verdict.figure == f"joules_per_{per}"
    assert verdict.value == pytest.approx(measured.figures[verdict.figure].value, rel=0.01)
    assert verdict.value == pytest.approx(2 * (verdict.baseline_value or 0), rel=0.15)
    [value, _], shown = readable(unit, verdict.value or 0.0, verdict.baseline_value or 0.0)
    assert f"{value} {shown}; " in " ".join(result.stdout.str().split())
    assert f" {unit.replace('J/', '')[:5]}" in result.stdout.str()


@pytest.mark.parametrize(
    ("budget", "outcome"),
    [
        ("joules_per_prompt_token=0.001", "OVER BUDGET"),
        ("joules_per_response=0.5", "OVER BUDGET"),
        ("joules_per_total_token=0.001", "OVER BUDGET"),
        ("joules_per_prompt_token=10, joules_per_response=1000", ""),
        (
            "joules_per_token=10",
            "INVALID: test_it: power_budget(joules_per_token=...) limits a figure that this test never has: its counts "
            "hold no generated token. It has joules_per_prompt_token, joules_per_total_token, joules_per_response, "
            "joules, mean_watts, peak_watts",
        ),
        (
            "ttft_ms=10",
            "INVALID: test_it: power_budget(ttft_ms=...) limits a figure that this test never has: its results do not "
            "say when their tokens came.",
        ),
    ],
)
def test_a_budget_of_work_that_generates_nothing(project: Project, budget: str, outcome: str) -> None:
    project.tests(PROJECT.format(counts="prompt=4096", marker=budget))
    (project.path / "seconds").write_text("0.15")
    result = project.run()
    failing = outcome != ""
    result.assert_outcomes(passed=not failing, failed=failing)
    assert outcome in " ".join(result.stdout.str().split())
    result.stdout.fnmatch_lines(["*J/prompt token*", "*Compared per prompt token.*"])


def test_a_budget_per_prompt_token_beside_generated_ones_needs_phases(project: Project) -> None:
    project.tests(PROJECT.format(counts="prompt=64, generated=640", marker="joules_per_prompt_token=10"))
    (project.path / "seconds").write_text("0.15")
    result = project.run()
    result.assert_outcomes(failed=1)
    assert (
        "limits a figure that this test never has: tokens are generated too, and nothing tells the energy of the "
        "prefill apart. It has joules_per_token, joules_per_total_token,"
    ) in " ".join(result.stdout.str().split())


def test_another_denominator_is_another_key(project: Project) -> None:
    project.tests(PROJECT.format(counts="prompt=64, generated=640", marker=""))
    (project.path / "seconds").write_text("0.15")
    project.run("--energy-save=a").assert_outcomes(passed=1)
    project.tests(PROJECT.format(counts="prompt=64, generated=640", marker="per='response'"))
    result = project.run("--energy-baseline=name:a")
    assert "joules are per: response here, token there" in " ".join(result.stdout.str().split())


def test_the_prefill_gates_only_where_it_is_told_apart(project: Project) -> None:
    project.tests(PROJECT.format(counts="prompt=64, generated=640", marker="per='prompt_token'"))
    (project.path / "seconds").write_text("0.15")
    result = project.run()
    result.assert_outcomes(failed=1)
    assert (
        "per='prompt_token' compares by joules per prompt token, which are not known: tokens were generated"
        in (" ".join(result.stdout.str().split()))
    )


@pytest.mark.parametrize(
    ("counts", "marker", "said"),
    [("prompt=4096", "", " more J/prompt token "), ("generated=64", "per='response',", " more J/response ")],
)
def test_two_variants_are_compared_by_it(project: Project, counts: str, marker: str, said: str) -> None:
    project.tests(
        f"""
def variant(seconds):
    def work():
        sleep(seconds)
        return TokenCount(**dict(dict(prompt=0, generated=0, responses=4), {counts}))
    return work

@pytest.mark.power_budget(min_rounds=4, max_rounds=4, {marker})
def test_variants(energy):
    energy.compare(baseline=variant(0.06), candidate=variant(0.12), at_most="5%")
"""
    )
    result = project.run()
    result.assert_outcomes(failed=1)
    assert said in " ".join(result.stdout.str().split())
