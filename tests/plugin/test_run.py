"""energy.run, energy.declare and comparisons of isolated engines, through pytest on the simulated board."""

from __future__ import annotations

import pytest

from pytest_tokenpower.core.records import MeasurementRecord, RunRecord
from tests.support.projects import Project
from tests.support.verdicts import text as said

HEAD = """
from pytest_tokenpower.engines import Timeouts
from pytest_tokenpower.workloads.base import Batch
from pytest_tokenpower.engines.spec import EngineSpec
from pytest_tokenpower.workloads import FixedShape, Poisson, PromptSet

WORK = FixedShape(batch=8, prompt_tokens=48, new_tokens=8, vocab=500)


def stub(isolated=True, **options):
    return EngineSpec("tests.support.faulty:make", "tiny", isolated=isolated, **options)

"""


@pytest.fixture
def project(project: Project) -> Project:
    """Engines live on the machine's time, and take longer than the meter needs, however busy the machine is."""
    project.on_machine_time()
    return project


def the(run: RunRecord) -> MeasurementRecord:
    [measured] = run.measurements
    return measured


def text(result: pytest.RunResult) -> str:
    return " ".join(result.stdout.str().split())


def test_a_workload_on_an_isolated_engine_has_phases_and_a_key(project: Project) -> None:
    project.tests(
        HEAD
        + """
@pytest.mark.power_budget(min_rounds=4, max_rounds=4)
def test_it(energy):
    generation = energy.run(stub(budget=64, step_s=0.02), WORK)
    assert [len(ids) for ids in generation.token_ids] == [8] * 8
"""
    )
    result, run = project.measure()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["energy: tests.support.faulty:make engine of tiny: loaded in * s"])
    measured = the(run)
    assert measured.comparable
    key = measured.key
    assert (key["engine"], key["engine_version"], key["model"]) == ("stub", "1.0", "tiny")
    assert (key["prompt_tokens"], key["generated_tokens"], key["responses"]) == (384, 64, 8)
    assert not any(name.startswith("axis.") for name in key)
    assert len(str(key["workload"])) == 16
    assert measured.facts["engine.budget"] == 64
    assert measured.facts["engine.dtype"] == "float32"
    # Six of eight and more steps are mixed: they are split, and nothing is lost.
    assert measured.phase_split is not None
    assert 0.3 < (measured.phase_split.mixed_share or 0.0) < 0.9
    for one in measured.rounds:
        assert set(one.phases) == {"prefill", "decode", "between steps"}
        assert one.joules is not None
        assert sum(phase.joules for phase in one.phases.values()) == pytest.approx(one.joules, rel=0.1)
        assert not any(phase.estimated for phase in one.phases.values())
    for name in ("prefill_joules_per_token", "decode_joules_per_token", "joules_per_prompt_token"):
        assert measured.figures[name].value > 0


def test_declared_axes_enter_the_key_with_the_engines_own_values(project: Project) -> None:
    project.tests(
        HEAD
        + """
@quick
def test_it(energy):
    energy.declare(quantization="FP8", dtype="fp32", budget=64, weights="none")
    energy.run(stub(isolated=False, step_s=0.03, quantization="fp8"), WORK)
"""
    )
    result, run = project.measure()
    result.assert_outcomes(passed=1)
    axes = {name: value for name, value in the(run).key.items() if name.startswith("axis.")}
    assert axes == {
        "axis.quantization": "fp8",
        "axis.dtype": "float32",
        "axis.budget": 64,
        "axis.weights": "none",
    }


@pytest.mark.parametrize(("weights", "known"), [("random", "random"), ("dummy", "dummy"), ("0f3a81c2", None)])
def test_a_models_own_weights_are_not_compared_with_others(
    project: Project, weights: str, known: str | None
) -> None:
    """Random ones draw another power; which of a model's own they are is what a change may be about."""
    project.tests(
        HEAD
        + f"""
@quick
def test_it(energy):
    energy.run(stub(isolated=False, step_s=0.03, weights={weights!r}), WORK)
"""
    )
    result, run = project.measure()
    result.assert_outcomes(passed=1)
    assert the(run).key.get("weights") == known
    assert the(run).facts["engine.weights"] == weights


def test_what_is_declared_wrongly_is_an_error(project: Project) -> None:
    project.tests(
        HEAD
        + """
def engine():
    return stub(isolated=False, step_s=0.0)

def test_other(energy):
    energy.declare(quantization="fp8")
    energy.run(engine(), WORK)

def test_unknown(energy):
    energy.declare(sparsity=2)
    energy.run(engine(), WORK)

@quick
def test_late(energy):
    energy.run(engine(), WORK)
    energy.declare(dtype="bfloat16")

def test_callable(energy):
    energy.declare(dtype="float32")
    energy(generate)

def test_block(energy):
    energy.declare(dtype="float32")
    with energy.measure() as window:
        window.count(generate())
"""
    )
    result, run = project.measure()
    result.assert_outcomes(failed=5)
    assert not any(measured.comparable for measured in run.measurements)
    said = text(result)
    for line in (
        "energy.declare(quantization='fp8'): the stub engine runs with quantization=None: correct the test",
        "energy.declare(sparsity=2): the stub engine reports no such axis; it reports dtype, kv_cache_dtype, "
        "pipeline_parallel, quantization, tensor_parallel, weights and budget",
        "energy.declare(dtype='bfloat16'): the stub engine runs with dtype='float32'",
        "energy.declare(dtype='float32'): nothing is known of the engine behind this workload",
    ):
        assert line in said
    result.stdout.no_fnmatch_line("*pytest_tokenpower/*.py:*")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("fault='crash', at=3", "ended (signal SIGKILL) during a batch. The end of its log"),
        (
            "fault='hang', at=3, timeouts=Timeouts(batch_s=0.5)",
            "a batch took more than 0.5 s, so it was ended",
        ),
        ("fault='raise', at=3", "failed in a batch: RuntimeError: CUDA error: an illegal memory access"),
        ("fault='load'", "could not be loaded: RuntimeError: the weights do not fit"),
        (
            "fault='short', at=3",
            "was asked for 384 prompt and 64 generated tokens in 8 responses, and reports 384 prompt and 64 generated "
            "tokens in 8 responses, with 56 token ids in 8 responses",
        ),
        (
            "fault='miscount', at=3, isolated=False",
            "was asked for 384 prompt and 64 generated tokens in 8 responses, and reports 1 prompt and 64 generated "
            "tokens in 3 responses",
        ),
    ],
)
def test_an_engine_that_fails_fails_the_test_and_leaves_nothing_comparable(
    project: Project, options: str, complaint: str
) -> None:
    project.tests(HEAD + f"def test_it(energy):\n    energy.run(stub(step_s=0.001, {options}), WORK)\n")
    result, run = project.measure()
    result.assert_outcomes(failed=1)
    assert complaint in text(result)
    assert not any(measured.comparable for measured in run.measurements)
    result.stdout.no_fnmatch_line("*pytest_tokenpower/fixture.py*")


def test_what_cannot_be_run_says_so(project: Project) -> None:
    project.tests(
        HEAD
        + """
def test_engine(energy):
    energy.run(object(), WORK)

def test_workload(energy):
    energy.run(stub(isolated=False), [[1, 2, 3]])

def test_arrivals(energy):
    energy.run(stub(isolated=False), FixedShape(2, 8, 4, vocab=500, arrivals=Poisson(10.0)))

def test_vocabulary(energy):
    energy.run(stub(isolated=False), FixedShape(2, 8, 4))

@quick
def test_twice(energy):
    engine = stub(isolated=False, step_s=0.03).load()
    energy.run(engine, WORK)
    energy.run(engine, WORK)
"""
    )
    result, _ = project.measure()
    result.assert_outcomes(failed=5)
    for line in (
        "the engine is object: give an adapter of pytest_tokenpower.engines",
        "the workload is list: give FixedShape, PromptSet or GivenBatch",
        "the stub engine takes whole batches, and Poisson(per_second=10.0, seed=0) needs one that takes requests",
        "holds token ids outside 0 to 511",
        "energy.run() is a measurement of its own: use it once, and alone",
    ):
        assert line in text(result)


def test_a_batch_is_a_workload_and_its_ids_are_in_the_key(project: Project) -> None:
    project.tests(
        HEAD
        + """
@quick
@pytest.mark.parametrize("last", [5, 5, 6])
def test_it(energy, last):
    energy.run(stub(isolated=False, step_s=0.06), Batch([[3, 4], [4, last]], 4))
"""
    )
    result, run = project.measure()
    result.assert_outcomes(passed=3)
    one, same, other = (measured.key["workload"] for measured in run.measurements)
    assert one == same != other


def test_two_isolated_engines_against_each_other_with_restarts(project: Project) -> None:
    project.tests(
        HEAD
        + """
@pytest.mark.power_budget(min_rounds=4, max_rounds=4)
def test_it(energy):
    energy.declare(budget=512)
    energy.compare(
        baseline=stub(budget=64, step_s=0.01).workload(WORK),
        candidate=stub(budget=512, step_s=0.01).workload(WORK),
        at_least="20%",
        restarts=2,
    )
"""
    )
    result, run = project.measure()
    result.assert_outcomes(passed=1)
    measured = the(run)
    assert "4 ABBA blocks in 2 restarts" in said(measured.verdicts[0])
    assert measured.facts["engine.budget"] == measured.key["axis.budget"] == 512
    # Each arm's mixed steps are split by its own coefficients; the candidate has none.
    assert all(set(one.phases) >= {"prefill", "decode"} for one in measured.rounds)


def test_disabled_runs_once(project: Project) -> None:
    project.tests(
        HEAD
        + """
def test_it(energy):
    energy.declare(dtype="whatever")
    assert energy.run(stub(fault="crash", at=2, step_s=0.0), WORK).tokens.responses == 8

def test_compare(energy):
    energy.compare(baseline=stub(step_s=0.0).workload(WORK), candidate=generate, at_least="20%")
"""
    )
    project.run("--energy-disable").assert_outcomes(passed=2)


def test_boards_that_the_engine_does_not_use_are_not_measured(project: Project) -> None:
    project.tests(
        HEAD
        + """
@quick
def test_it(energy):
    ids = [device.id for device in energy._telemetry.devices][:2]
    energy.run(stub(isolated=False, step_s=0.03, devices=ids), WORK)
"""
    )
    boards = ", ".join(f'{{"uuid": "GPU-5100000{at}-0000-0000-0000-000000000000"}}' for at in range(3))
    project.file("boards.json", f'{{"boards": [{boards}]}}')
    result, run = project.measure("--energy-source=simulated:boards.json")
    result.assert_outcomes(passed=1)
    measured = the(run)
    assert measured.key["gpu.count"] == 2
    assert all(len(one.device_joules) == 2 for one in measured.rounds)
