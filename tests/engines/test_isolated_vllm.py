"""A real vLLM in a process of its own: its steps under a small budget, as phases of a test's measurement."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from pytest_tokenpower.models import write_random_model
from tests.support.projects import Project

pytestmark = [
    pytest.mark.real_engine,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

TEST = """
from pytest_tokenpower.engines.spec import EngineSpec
from pytest_tokenpower.workloads import FixedShape

OPTIONS = dict(max_model_len=512, max_num_seqs=16, enforce_eager=True, max_num_batched_tokens=64)


@pytest.mark.power_budget(min_rounds=4, max_rounds=4)
def test_it(energy):
    energy.declare(dtype="fp32", max_num_batched_tokens=64)
    with EngineSpec("vllm", {model!r}, dtype="float32", env={env!r}, **OPTIONS).start() as engine:
        pid = engine.pid
        generation = energy.run(engine, FixedShape(8, 48, 64, vocab=500))
        with pytest.raises(Exception, match="prompt 0 holds token ids outside 0 to 511"):
            engine.generate(FixedShape(1, 4, 4).to_batch())
    assert generation.steps_exact
    kinds = [(step.prompt_tokens > 0, step.generated_tokens > 0) for step in generation.steps]
    assert kinds[0] == (True, False)
    assert kinds.count((True, True)) == 6
    import os
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)
"""


def test_mixed_steps_of_a_real_vllm_become_phases(project: Project, models: Path, tmp_path: Path) -> None:
    model = write_random_model(models / "tiny-float32", "tiny", dtype="float32")
    env = {
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_RPC_BASE_PATH": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }
    project.tests(TEST.replace("{model!r}", repr(str(model))).replace("{env!r}", repr(env)))
    result, run = project.measure()
    result.assert_outcomes(passed=1)
    [measured] = run.measurements
    assert measured.comparable
    assert (measured.key["engine"], measured.key["model"]) == ("vllm", "tiny")
    assert (measured.key["axis.dtype"], measured.key["axis.max_num_batched_tokens"]) == ("float32", 64)
    split = measured.phase_split
    assert split is not None
    assert 0 < (split.mixed_share or 0.0) < 0.9
    if split.reason:
        # On a busy machine the steps' times say too little of their tokens.
        assert "standard error" in split.reason
        return
    for one in measured.rounds:
        assert one.joules is not None
        assert set(one.phases) == {"prefill", "decode", "between steps"}
        # What is left of a round lies before its first step and after its last.
        assert 0.8 < sum(phase.joules for phase in one.phases.values()) / one.joules <= 1.001
