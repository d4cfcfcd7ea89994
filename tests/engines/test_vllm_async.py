"""AsyncLLM with its engine core in another process, on real vLLM: the contract, step marks, and what ends early."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest

from pytest_tokenpower.engines.protocol import Engine
from pytest_tokenpower.engines.vllm.async_engine import VllmAsyncEngine
from pytest_tokenpower.engines.vllm.processes import processes_of, running
from pytest_tokenpower.errors import EngineError
from pytest_tokenpower.models import write_random_model
from pytest_tokenpower.workloads.arrivals import Concurrency
from pytest_tokenpower.workloads.base import Batch
from tests.support.contract import EngineContract, Every, ServingContract, check_bookkeeping, ids, prompts

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its dependencies' own
    vllm = pytest.importorskip("vllm")

# What vLLM warns of is not ours, and its threads leave it unraised.
pytestmark = [pytest.mark.real_engine, pytest.mark.filterwarnings("ignore")]


def make(models: Path, **options: Any) -> VllmAsyncEngine:
    """On a CPU the memory is what another test run leaves of it."""
    model = write_random_model(models / "tiny-float32", "tiny", dtype="float32")
    small = {"max_model_len": 512, "max_num_seqs": 16, "enforce_eager": True, "gpu_memory_utilization": 0.3}
    return VllmAsyncEngine(model, dtype="float32", max_num_batched_tokens=128, **small, **options)


def labels(engine: Engine, batch: Batch) -> list[tuple[int, int]]:
    return [(step.prompt_tokens, step.generated_tokens) for step in engine.generate(batch).steps]


class TestVllmAsync(EngineContract, ServingContract):
    steps_exact = False

    @classmethod
    def make(cls, models: Path) -> Engine:
        return make(models)

    def test_devices(self, engine: Engine) -> None:
        from vllm.platforms import current_platform

        found = engine.device_ids
        assert found is not None
        assert [device[:4] for device in found] == ([] if current_platform.is_cpu() else ["GPU-"])

    def test_a_batch_is_admitted_as_one(self, engine: Engine) -> None:
        # Without a pause the first prompt would run alone, by chance.
        for _ in range(5):
            assert labels(engine, Batch(prompts(4, 30), 4)) == [(120, 0), *[(0, 4)] * 3]

    def test_a_small_budget_mixes_prefill_and_decode(self, engine: Engine) -> None:
        kinds = [
            (prompt > 0, generated > 0) for prompt, generated in labels(engine, Batch(prompts(8, 90), 16))
        ]
        assert kinds == [(True, False)] + [(True, True)] * 5 + [(False, True)] * (len(kinds) - 6)

    def test_idle_time_is_in_no_step(self, engine: Engine) -> None:
        assert isinstance(engine, VllmAsyncEngine)
        generation = engine.serve(Batch(prompts(2, 20), 2), Every(0.4))
        starts = [step.start_ns for step in generation.steps if step.prompt_tokens]
        assert len(starts) == 2
        assert starts[1] - starts[0] >= 0.35e9
        gaps = sum(
            after.start_ns - before.end_ns
            for before, after in zip(generation.steps, generation.steps[1:], strict=False)
        )
        assert gaps > 0

    def test_identity_says_how_its_steps_are_marked(self, engine: Engine) -> None:
        facts = engine.identity.facts
        assert engine.identity.engine == "vllm-async"
        assert (facts["engine_process"], facts["step_clock"]) == ("own", "engine core")
        assert facts["max_num_batched_tokens"] == 128
        assert "async_scheduling" in facts

    def test_works_on_after_a_failed_request(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        assert isinstance(engine, VllmAsyncEngine)
        expected = ids(engine.generate(self.served))
        add, calls = engine.llm.add_request, iter(range(100))

        async def fail_third(*args: Any, **options: Any) -> Any:
            if next(calls) % 3 == 2:
                raise RuntimeError("no room for it")
            return await add(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(engine.llm, "add_request", fail_third)
            with pytest.raises(EngineError, match="vLLM, tiny: the batch failed: RuntimeError: no room"):
                engine.generate(self.served)
            with pytest.raises(EngineError, match="vLLM, tiny: the batch failed: RuntimeError: no room"):
                engine.serve(self.served, Concurrency(3))
        assert engine.llm.output_processor.get_num_unfinished_requests() == 0
        assert ids(engine.generate(self.served)) == expected
        check_bookkeeping(self.served, engine.serve(self.served, Concurrency(2)))

    def test_then_its_core_dies_and_it_is_closed(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The last of this class: what the engine is afterwards is what it tests.
        assert isinstance(engine, VllmAsyncEngine)
        processes = processes_of(engine.llm.engine_core)
        assert all(map(running, processes))
        record, calls = engine._recorder.record, iter(range(1000))

        def kill_at_third(*args: Any) -> None:
            record(*args)
            if next(calls) == 2:
                os.kill(processes[0].pid, signal.SIGKILL)

        monkeypatch.setattr(engine._recorder, "record", kill_at_third)
        with pytest.raises(EngineError, match="vLLM, tiny: the batch failed: "):
            engine.generate(Batch(prompts(4, 24), 400))
        with pytest.raises(EngineError, match="vLLM, tiny: the batch failed: "):
            engine.generate(self.batch)
        engine.close()
        engine.close()
        assert not any(map(running, processes))
        with pytest.raises(EngineError, match="after close"):
            engine.generate(self.batch)
        assert engine.identity.engine == "vllm-async"


def test_close_ends_every_process(models: Path) -> None:
    engine = make(models, async_scheduling=True)
    processes = processes_of(engine.llm.engine_core)
    assert labels(engine, Batch(prompts(4, 30), 6)) == [(120, 0), *[(0, 4)] * 5]
    assert processes
    assert all(map(running, processes))
    engine.close()
    assert not any(map(running, processes))


def test_a_model_that_vllm_cannot_load(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineError, match="vLLM cannot load it"):
        VllmAsyncEngine(tmp_path)
