"""The vLLM adapter on real vLLM and a tiny model: the contract, step labels, and the tokens of transformers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pytest_tokenpower.engines.identify import describe_callable
from pytest_tokenpower.engines.protocol import Engine
from pytest_tokenpower.engines.transformers import TransformersEngine
from pytest_tokenpower.engines.vllm.offline import VllmEngine
from pytest_tokenpower.engines.vllm.requests import steps_from_request_metrics
from pytest_tokenpower.errors import EngineError
from pytest_tokenpower.models import write_random_model
from pytest_tokenpower.workloads.arrivals import Concurrency
from pytest_tokenpower.workloads.base import Batch
from tests.support.contract import (
    ClosingContract,
    EngineContract,
    ServingContract,
    check_bookkeeping,
    ids,
    prompts,
)

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its dependencies' own
    vllm = pytest.importorskip("vllm")

# What vLLM warns of is not ours, and its worker threads leave it unraised.
pytestmark = [pytest.mark.real_engine, pytest.mark.filterwarnings("ignore")]

SMALL = {"max_model_len": 512, "max_num_seqs": 16, "enforce_eager": True, "dtype": "float32"}


@pytest.fixture(scope="module", autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("VLLM_RPC_BASE_PATH", str(tmp_path_factory.mktemp("rpc")))
        yield


def tiny(models: Path) -> Path:
    return write_random_model(models / "tiny-float32", "tiny", dtype="float32")


def on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


class TestVllm(EngineContract, ServingContract):
    @classmethod
    def make(cls, models: Path) -> Engine:
        return VllmEngine(tiny(models), max_num_batched_tokens=512, **SMALL)

    def test_devices(self, engine: Engine) -> None:
        if on_cpu():
            assert engine.device_ids == ()
        else:
            assert engine.device_ids is not None
            assert [device[:4] for device in engine.device_ids] == ["GPU-"]

    def test_a_large_budget_gives_one_prefill_step(self, engine: Engine) -> None:
        steps = engine.generate(Batch(prompts(8, 48), 16)).steps
        assert [(step.prompt_tokens, step.generated_tokens) for step in steps] == [(384, 0), *[(0, 8)] * 15]

    def test_the_users_own_llm_is_described(self, engine: Engine) -> None:
        assert isinstance(engine, VllmEngine)
        assert describe_callable(engine.llm.generate) == engine.identity
        assert engine.identity.axes["dtype"] == "float32"
        assert engine.identity.axes["weights"] == "random"
        expected = {"enforce_eager": True, "max_num_batched_tokens": 512, "async_scheduling": False}
        assert expected.items() <= engine.identity.facts.items()
        assert engine.identity.facts["attention"]

    def test_request_metrics_agree_with_the_steps(self, engine: Engine) -> None:
        assert isinstance(engine, VllmEngine)
        batch = Batch(prompts(8, 48), 16)
        taken: list[Any] = []
        generate = engine.llm.generate

        def generate_and_keep(*args: Any, **options: Any) -> Any:
            taken.extend(generate(*args, **options))
            return taken

        engine.llm.generate = generate_and_keep
        try:
            steps = engine.generate(batch).steps
        finally:
            del engine.llm.generate
        windows = steps_from_request_metrics(taken)
        assert windows is not None
        assert not windows.mixed
        assert steps[0].start_ns <= windows.prefill_start_ns <= steps[0].end_ns
        assert steps[0].end_ns <= windows.prefill_end_ns <= steps[1].start_ns
        assert steps[-1].end_ns <= windows.decode_end_ns

    def test_fp32_tokens_are_those_of_transformers(self, engine: Engine, models: Path) -> None:
        batch = Batch([prompt[: 30 + row] for row, prompt in enumerate(prompts(16, 64))], 64)
        other = TransformersEngine(tiny(models), device="cpu")
        expected = [list(ids) for ids in other.generate(batch).token_ids]
        other.close()
        assert [list(ids) for ids in engine.generate(batch).token_ids] == expected
        assert len({token for ids in expected for token in ids}) > 30

    @pytest.mark.parametrize("serving", [False, True])
    def test_works_on_after_a_failed_step(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch, serving: bool
    ) -> None:
        assert isinstance(engine, VllmEngine)
        expected = ids(engine.generate(self.served))
        executor = engine.llm.llm_engine.engine_core.engine_core.model_executor
        execute, calls = executor.execute_model, iter(range(1000))

        def fail_third(*args: Any, **options: Any) -> Any:
            if next(calls) == 2:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return execute(*args, **options)

        run = partial(engine.serve, arrivals=Concurrency(4)) if serving else engine.generate
        with monkeypatch.context() as patch:
            patch.setattr(executor, "execute_model", fail_third)
            with pytest.raises(EngineError, match="vLLM, tiny: the batch failed: RuntimeError: CUDA error"):
                run(self.served)
        assert not engine.llm.llm_engine.has_unfinished_requests()
        assert ids(engine.generate(self.served)) == expected
        assert ids(engine.serve(self.served, Concurrency(2))) == expected

    def test_a_second_one_beside_it_is_refused(self, engine: Engine, models: Path) -> None:
        with pytest.raises(EngineError, match="a vLLM engine of tiny is open in this process"):
            VllmEngine(tiny(models))
        check_bookkeeping(self.batch, engine.generate(self.batch))


class TestVllmClosing(ClosingContract):
    @classmethod
    def make(cls, models: Path) -> Engine:
        return VllmEngine(tiny(models), max_num_batched_tokens=512, **SMALL)


def test_a_small_budget_mixes_prefill_and_decode(models: Path) -> None:
    engine = VllmEngine(tiny(models), max_num_batched_tokens=64, **SMALL)
    batch = Batch(prompts(8, 48), 16)
    generation = engine.generate(batch)
    engine.close()
    check_bookkeeping(batch, generation)
    kinds = [(step.prompt_tokens > 0, step.generated_tokens > 0) for step in generation.steps]
    assert kinds == [(True, False)] + [(True, True)] * 6 + [(False, True)] * (len(kinds) - 7)
    assert generation.steps_exact


def test_an_fp8_cache_against_one_in_bf16(models: Path) -> None:
    """Half the memory for a token, and the same work in the same steps."""
    if not on_cpu():
        pytest.skip("the memory of its cache is set for CPUs")
    model = write_random_model(models / "tiny-bfloat16", "tiny")
    batch = Batch(prompts(8, 48), 16)
    steps, sizes = [], []
    for name in ("bfloat16", "fp8"):
        try:
            engine = VllmEngine(
                model, kv_cache_dtype=name, max_num_batched_tokens=512, **{**SMALL, "dtype": "bfloat16"}
            )
        except EngineError as error:
            if name != "fp8" or "FP8 KV cache on CPU requires" not in str(error):
                raise
            pytest.skip("this CPU has no instructions for an FP8 cache")
        generation = engine.generate(batch)
        cache = engine.llm.llm_engine.vllm_config.cache_config
        sizes.append(cache.num_gpu_blocks * cache.block_size)
        assert str(engine.identity.axes["kv_cache_dtype"]).startswith(name)
        engine.close()
        check_bookkeeping(batch, generation)
        steps.append([(step.prompt_tokens, step.generated_tokens) for step in generation.steps])
    assert steps[0] == steps[1]
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.05)


def test_preempted_requests_are_counted_once_and_not_exact(models: Path) -> None:
    # Room for the prompts and a little more: some request must give its blocks up and be computed again.
    engine = VllmEngine(tiny(models), max_num_batched_tokens=512, num_gpu_blocks_override=8, **SMALL)
    block = int(engine.identity.facts["block_size"] or 0)
    batch = Batch([prompt[: block - 8] for prompt in prompts(7, 500)], 24)
    generation = engine.generate(batch)
    engine.close()
    check_bookkeeping(batch, generation)
    assert not generation.steps_exact


def test_a_prompt_from_the_prefix_cache_is_counted_apart(models: Path) -> None:
    engine = VllmEngine(tiny(models), max_num_batched_tokens=512, enable_prefix_caching=True, **SMALL)
    batch = Batch([prompts(1, 400)[0]], 4)
    first, again = engine.generate(batch), engine.generate(batch)
    engine.close()
    assert not first.tokens.cached_prompt
    assert again.tokens.cached_prompt >= 256
    check_bookkeeping(batch, again)


def test_a_model_that_vllm_cannot_load(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineError, match="vLLM cannot load it"):
        VllmEngine(tmp_path)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such model folder"):
        VllmEngine(tmp_path / "absent")


def test_the_callers_environment_is_left_alone(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    VllmEngine(tiny(models), max_num_batched_tokens=512, **SMALL).close()
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"


def test_vllm_that_has_kept_another_mode(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import envs

    monkeypatch.setattr(envs, "VLLM_ENABLE_V1_MULTIPROCESSING", True, raising=False)
    with pytest.raises(EngineError, match="VLLM_ENABLE_V1_MULTIPROCESSING=0 before the first import"):
        VllmEngine(tiny(models))
