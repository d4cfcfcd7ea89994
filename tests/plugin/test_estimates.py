"""A provider's model without a meter: measured tokens and time, estimated energy that never meets a measured one."""

from __future__ import annotations

import pytest

from tests.support.projects import Project

# EcoLogits 0.11's own shape: kWh as a range, or errors.
ECOLOGITS = """
from types import SimpleNamespace as N

def llm_impacts(provider, model_name, output_token_count, request_latency, electricity_mix_zone=None):
    if model_name != "known":
        return N(energy=None, errors=[N(message=f"Could not find model `{model_name}`")])
    mean = output_token_count * 1e-6 / 3.6
    return N(energy=N(value=N(min=0.9 * mean, max=1.1 * mean)), errors=None)
"""

TEST = """
@quick
def test_chat(energy):
    energy(generate, generated=1000, responses=2)
"""


@pytest.fixture
def api(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    project.file("site/ecologits/__init__.py", "")
    project.file("site/ecologits/tracers/__init__.py", "")
    project.file("site/ecologits/tracers/utils.py", ECOLOGITS)
    project.file("site/ecologits-0.11.3.dist-info/METADATA", "Name: ecologits\nVersion: 0.11.3\n")
    monkeypatch.syspath_prepend(str(project.path / "site"))
    project.on_machine_time()
    project.tests(TEST)
    return project


def test_energy_is_estimated_from_measured_tokens_and_time(api: Project) -> None:
    result, run = api.measure("--energy-source=ecologits:acme/known", "--energy-report=page.html")
    result.assert_outcomes(passed=1)
    [one] = run.measurements
    assert (one.provenance, one.scope, one.method) == ("estimated", "node", "EcoLogits 0.11.3")
    assert one.figures["joules_per_token"].value == pytest.approx(1.0)
    assert one.figures["tokens_per_second"].value > 0
    assert {each.repeats for each in one.rounds} == {1}
    assert one.facts["ecologits.range_share"] == 0.1
    result.stdout.fnmatch_lines(["ESTIMATED, not measured: *acme/known (estimated by EcoLogits 0.11.3)*"])


def test_an_estimate_and_another_figure_are_never_compared(api: Project) -> None:
    api.run("--energy-save=simulated").assert_outcomes(passed=1)
    result, run = api.measure("--energy-source=ecologits:acme/known", "--energy-baseline=simulated")
    result.assert_outcomes(passed=1)
    assert [verdict.kind for verdict in run.measurements[0].verdicts] == ["no baseline"]


def test_latencies_are_measured_and_judged(api: Project) -> None:
    api.tests("""
from pytest_tokenpower import EngineSpec, FixedShape

@pytest.mark.power_budget(min_rounds=2, max_rounds=2, ttft_ms=1)
def test_late(energy):
    engine = EngineSpec("simulated", "llama-3.1-8b", isolated=False)
    energy.run(engine, FixedShape(batch=8, prompt_tokens=2048, new_tokens=4))
""")
    result, run = api.measure("--energy-source=ecologits:acme/known")
    result.assert_outcomes(failed=1)
    [late] = run.measurements
    assert [(one.against, one.kind) for one in late.verdicts] == [("ttft_p90_seconds", "over budget")]


def test_another_scope_is_not_estimated(api: Project) -> None:
    result = api.run("--energy-source=ecologits:acme/known", "--energy-scope=gpu", "-rs")
    result.assert_outcomes(skipped=1)
    assert "--energy-scope=gpu: no meter of this run measures it, only node" in result.stdout.str()
    api.run("--energy-source=ecologits:acme/known", "--energy-scope=node").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("ecologits", "give PROVIDER/MODEL, such as ecologits:openai/gpt-4o-mini"),
        ("ecologits:acme/other", "EcoLogits has no estimate: Could not find model `other`"),
    ],
)
def test_a_model_that_is_not_known_is_a_mistake(api: Project, source: str, words: str) -> None:
    result = api.run(f"--energy-source={source}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert words in result.stderr.str()


def test_without_the_package_the_test_is_skipped_and_says_how_to_get_it(project: Project) -> None:
    project.on_machine_time()
    project.tests(TEST)
    result = project.run("--energy-source=ecologits:acme/known", "-rs")
    result.assert_outcomes(skipped=1)
    assert "pip install 'pytest-tokenpower[ecologits]'" in result.stdout.str()
