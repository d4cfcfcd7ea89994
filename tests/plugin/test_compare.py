"""energy.compare: two variants of one test in ABBA blocks, through pytest on the simulated board."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_tokenpower.core.records import OTHER_VARIANT
from pytest_tokenpower.engines.spec import EngineSpec, SpecWorkload
from pytest_tokenpower.runner.compare import names_of
from pytest_tokenpower.workloads.base import Batch
from tests.support.projects import Project

TEST = """
def sleeper(seconds):
    def work():
        sleep(seconds)
        return TokenCount(prompt=0, generated=1000)
    return work

@pytest.mark.power_budget(min_rounds=4, max_rounds=4)
def test_variants(energy):
    energy.compare(baseline=sleeper(0.06), candidate=sleeper({candidate}){bound})
"""


NAMED = """
def bf16(seconds=0.06):
    sleep(seconds)
    return TokenCount(prompt=0, generated=1000)

def fp8():
    return bf16(0.04)

@pytest.mark.power_budget(min_rounds=4, max_rounds=4)
def test_variants(energy):
    energy.compare(CALL)
"""


def test_answers_of_unlike_lengths_are_told(project: Project) -> None:
    project.tests(
        """
def answer(tokens):
    sleep(0.06)
    return TokenCount(prompt=100, generated=tokens)

@pytest.mark.power_budget(min_rounds=4, max_rounds=4)
def test_variants(energy):
    energy.compare(baseline=lambda: answer(100), candidate=lambda: answer(60), names=("a", "b"))
"""
    )
    result, _ = project.measure()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*Not at equal lengths: an execution of a has 100 prefilled and 100 generated tokens, of b 100 prefilled "
            "and 60 generated*"
        ]
    )


@pytest.mark.parametrize(
    ("candidate", "bound", "failed", "expected"),
    [
        (0.04, ", at_least='20%'", False, "passed"),
        (
            0.04,
            ", at_least='50%'",
            True,
            "OVER BUDGET -3* test_variants: the candidate saves 3*must save at least 50 %*",
        ),
        (
            0.08,
            "",
            True,
            "REGRESSED +* (limit 3 %): test_variants: *costs *more*may cost at most 3 % more*",
        ),
    ],
)
def test_the_verdict_on_two_variants(
    project: Project, candidate: float, bound: str, failed: bool, expected: str
) -> None:
    project.tests(TEST.format(candidate=candidate, bound=bound))
    result = project.run("--energy-json=run.json")
    result.assert_outcomes(passed=not failed, failed=failed)
    result.stdout.fnmatch_lines([f"*{expected}*"])
    measured = json.loads((project.path / "run.json").read_text())["measurements"][0]
    assert len(measured["rounds"]) == len(measured["variants"]["baseline"]) == 4
    assert not measured["comparable"]
    seconds = [
        sum(one["seconds"] / one.get("repeats", 1) for one in rounds) / len(rounds)
        for rounds in (measured["variants"]["baseline"], measured["rounds"])
    ]
    assert seconds[0] == pytest.approx(0.06, rel=0.1)
    assert seconds[1] == pytest.approx(candidate, rel=0.1)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("baseline=bf16, candidate=fp8, at_least='90%'", "fp8 saves * % ± *.* against bf16 (*"),
        ("baseline=bf16, candidate=fp8, at_least='90%', names=('old', 'new')", "new saves * against old (*"),
        ("baseline=bf16, candidate=bf16, at_least='90%'", "the candidate *% ± *.* (95 % interval*"),
    ],
)
def test_the_verdict_calls_the_variants_by_their_names(project: Project, call: str, expected: str) -> None:
    project.tests(NAMED.replace("CALL", call))
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"OVER BUDGET * test_variants: {expected}; it must save at least 90 %."])


FAULTY = """
from pytest_tokenpower.engines.spec import EngineSpec
from pytest_tokenpower.workloads import FixedShape

def work(**options):
    engine = EngineSpec("tests.support.faulty:FaultyEngine", "tiny", isolated=False, **options)
    return engine.workload(FixedShape(1, 4, 2, vocab=500))

def test_batch(energy):
    energy.compare(baseline=work(), candidate=work(quantization="fp8", fault="refuse", at=2))

def test_load(energy):
    energy.compare(baseline=work(fualt="load"), candidate=work(), names=("old", "new"))

def test_count(energy):
    energy.compare(baseline=lambda: None, candidate=work())
"""


def test_an_engine_that_fails_is_told_with_its_variant(project: Project) -> None:
    project.on_machine_time()
    project.tests(FAULTY)
    result = project.run("--energy-json=run.json")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(
        [
            "energy.compare, the candidate (at=2, fault=refuse, quantization=fp8): stub: the batch failed",
            "energy.compare, the baseline (old): engine *unexpected keyword argument 'fualt'*",
            "energy.compare, the baseline: *test_count: *",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    measurements = json.loads((project.path / "run.json").read_text())["measurements"]
    assert not any(measured["comparable"] or measured.get("figures") for measured in measurements)


def test_engines_are_called_by_what_differs() -> None:
    def work(*model: str, **options: Any) -> SpecWorkload:
        return SpecWorkload(EngineSpec("vllm", *model, **options), Batch([[1]], 1))

    plain = work("models/llama", dtype="bfloat16", max_num_seqs=32)
    assert names_of(plain, work("models/llama", dtype="bfloat16", max_num_seqs=32)) is None
    assert names_of(plain, work("models/llama", dtype="bfloat16", max_num_seqs=32, quantization="fp8")) == (
        "quantization=default",
        "quantization=fp8",
    )
    assert names_of(plain, work("models/llama-fp8/", dtype="float16")) == ("llama", "llama-fp8")
    assert names_of(plain, lambda: None) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("names=('one',)", "*names=*must be two names, the baseline's and the candidate's*"),
        ("at_least='a lot'", "*test_variants*at_least='a lot'*must be a share*"),
        ("restarts=2", "*restarts=2*needs engines in processes of their own*"),
    ],
)
def test_mistakes_name_the_test_and_the_remedy(project: Project, call: str, message: str) -> None:
    project.tests(TEST.format(candidate=0.06, bound=f", {call}"))
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([message])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_each_variant_is_counted_as_what_ran_it(project: Project) -> None:
    project.tests(
        """
from functools import partial

def model(input_ids, new):
    sleep(0.2)
    return [[*row, *range(20, 20 + new)] for row in input_ids]

@pytest.mark.power_budget(min_rounds=4, max_rounds=4)
def test_variants(energy):
    energy.compare(
        baseline=partial(model, [[1, 2]], 10), candidate=partial(model, [[3, 4, 5]], 20), at_least="40%"
    )
"""
    )
    result, run = project.measure()
    result.assert_outcomes(passed=1)
    assert run.measurements[0].verdicts[0].change == pytest.approx(-0.5, abs=0.02)


def test_the_candidate_is_held_to_the_budget_too(project: Project) -> None:
    project.tests("""
@pytest.mark.power_budget(min_rounds=4, max_rounds=4, quality=0.8, joules_per_token=0.01, mean_watts=1000)
def test_variants(energy):
    energy.compare(baseline=lambda: generate(0.2), candidate=lambda: generate(0.2, generated=4000), at_least="20%")
    energy.quality(0.5)
""")
    result, run = project.measure()
    result.assert_outcomes(failed=1)
    [measured] = run.measurements
    assert {verdict.against: verdict.kind for verdict in measured.verdicts} == {
        OTHER_VARIANT: "passed",
        "joules_per_token": "over budget",
        "mean_watts": "passed",
        "quality": "below floor",
    }
    # A score has no p-value: it is held against its floor as it is.
    assert {verdict.family for verdict in measured.verdicts if verdict.p_value is not None} == {3}
