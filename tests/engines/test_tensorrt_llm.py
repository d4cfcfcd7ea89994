"""The TensorRT-LLM adapter against a stand-in, and the steps that its request metrics give."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.engines.protocol import Engine, Step
from pytest_tokenpower.engines.tensorrt_llm import RequestTimes, TensorrtLlmEngine, steps_between_first_tokens
from pytest_tokenpower.errors import EngineError
from pytest_tokenpower.workloads.base import Batch
from tests.support.contract import ClosingContract, EngineContract, check_bookkeeping, prompts
from tests.support.standins.core import write_model

pytestmark = pytest.mark.usefixtures("standins")

BATCH = Batch(prompts(3, 24), 6)


class TestSequential(EngineContract):
    device_ids = ("GPU-a",)

    @classmethod
    def make(cls, models: Path) -> Engine:
        return TensorrtLlmEngine(write_model(models), disable_overlap_scheduler=True)


class TestOverlapped(EngineContract):
    device_ids = ("GPU-a",)
    steps_exact = False

    @classmethod
    def make(cls, models: Path) -> Engine:
        return TensorrtLlmEngine(write_model(models))


class TestClosing(ClosingContract):
    @classmethod
    def make(cls, models: Path) -> Engine:
        return TensorrtLlmEngine(write_model(models))


def test_closing_shuts_it_down(model: Path) -> None:
    engine = TensorrtLlmEngine(model)
    llm = engine.llm
    engine.close()
    with pytest.raises(RuntimeError, match="shutting down"):
        llm.generate_async({"prompt_token_ids": [5]})
    assert engine.llm is None


def test_one_prefill_and_one_decode_span(model: Path) -> None:
    engine = TensorrtLlmEngine(model, disable_overlap_scheduler=True)
    generation = engine.generate(BATCH)
    engine.close()
    assert [(each.prompt_tokens, each.generated_tokens) for each in generation.steps] == [(72, 0), (0, 15)]


@pytest.mark.parametrize(("options", "exact"), [({}, True), ({"enable_chunked_prefill": True}, False)])
def test_a_batch_over_the_token_budget_mixes(model: Path, options: dict[str, Any], exact: bool) -> None:
    engine = TensorrtLlmEngine(model, disable_overlap_scheduler=True, max_num_tokens=48, **options)
    batch = Batch(prompts(4, 24), 6)
    generation = engine.generate(batch)
    scheduler = engine.llm.core.scheduler
    engine.close()
    check_bookkeeping(batch, generation)
    # The second and third prompts were under way together with tokens of the first.
    mixed = [each for each in generation.steps if each.prompt_tokens and each.generated_tokens]
    assert sum(each.generated_tokens for each in mixed) == sum(
        decoded for prompt, decoded in scheduler.truth if prompt
    )
    assert generation.steps_exact is exact


def test_speculated_tokens_give_no_steps(model: Path) -> None:
    engine = TensorrtLlmEngine(model, disable_overlap_scheduler=True)
    engine.llm.speculated = 2
    generation = engine.generate(BATCH)
    engine.close()
    assert not generation.steps
    assert generation.tokens == BATCH.tokens


def test_identity_is_read_from_its_arguments(model: Path) -> None:
    from tensorrt_llm.llmapi import KvCacheConfig  # the stand-in's

    cache = KvCacheConfig(enable_block_reuse=False, dtype="fp8")
    engine = TensorrtLlmEngine(model, kv_cache_config=cache, tensor_parallel_size=2, pipeline_parallel_size=2)
    engine.close()
    assert (engine.identity.engine, engine.identity.version) == ("tensorrt-llm", "1.2.1")
    assert {**engine.identity.axes, "weights": None} == {
        "dtype": "bfloat16",
        "quantization": None,
        "kv_cache_dtype": "fp8",
        "tensor_parallel": 2,
        "pipeline_parallel": 2,
        "weights": None,
    }
    assert engine.identity.facts["block_reuse"] is False
    assert engine.identity.facts["cuda_graphs"] is True
    assert engine.identity.facts["steps"] == "spans between first tokens, estimated"
    assert engine.device_ids == ("GPU-a", "GPU-b", "GPU-c", "GPU-d")


def test_a_quantized_checkpoint_says_so(models: Path) -> None:
    stored = write_model(models / "fp8", quantization_config={"quant_method": "fp8"})
    engine = TensorrtLlmEngine(stored, dtype="float16")
    engine.close()
    assert engine.identity.axes["quantization"] == "fp8"
    assert engine.identity.axes["dtype"] == engine.identity.axes["kv_cache_dtype"] == "float16"


@pytest.mark.parametrize("options", [{"orchestrator_type": "ray"}, {"tensor_parallel_size": 8}])
def test_devices_that_cannot_be_known(model: Path, options: dict[str, Any]) -> None:
    engine = TensorrtLlmEngine(model, **options)
    engine.close()
    assert engine.device_ids is None


def test_reused_blocks_are_refused(model: Path) -> None:
    from tensorrt_llm.llmapi import KvCacheConfig

    engine = TensorrtLlmEngine(model, kv_cache_config=KvCacheConfig())
    check_bookkeeping(BATCH, engine.generate(BATCH))
    with pytest.raises(EngineError, match="1 blocks of prompt 0 came from the KV cache"):
        engine.generate(BATCH)
    engine.close()


def test_a_batch_that_fails_leaves_nothing_behind(model: Path) -> None:
    engine = TensorrtLlmEngine(model)
    core = engine.llm.core
    core.fail_at = 3
    with pytest.raises(EngineError, match=r"the batch failed: RuntimeError: CUDA out of memory"):
        engine.generate(BATCH)
    core.fail_at = None
    assert not core.busy
    check_bookkeeping(BATCH, engine.generate(BATCH))
    engine.llm.args.max_num_tokens = 20
    with pytest.raises(
        EngineError, match=r"the batch failed: ValueError: .*should not exceed max_num_tokens"
    ):
        engine.generate(BATCH)
    assert not core.busy
    engine.close()


def test_what_it_refuses_names_the_model(model: Path) -> None:
    with pytest.raises(
        EngineError, match=r"tiny: TensorRT-LLM cannot load it: .*invalid argument: max_model_len"
    ):
        TensorrtLlmEngine(model, max_model_len=1024)


def test_a_missing_package_names_the_extra(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_llm", None)
    with pytest.raises(EngineError, match=r"pip install 'pytest-tokenpower\[tensorrt-llm\]'"):
        TensorrtLlmEngine(model)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    new_tokens=st.integers(1, 12),
    starts=st.lists(st.integers(0, 9), min_size=6, max_size=6),
)
def test_spans_hold_what_their_iterations_did(lengths: list[int], new_tokens: int, starts: list[int]) -> None:
    """Against iterations played through one by one: iteration i runs from 1000 i to 1000 (i + 1)."""
    firsts = starts[: len(lengths)]
    requests = [
        RequestTimes(
            length,
            new_tokens,
            1000 * first + 1,
            1000 * (first + 1) + 2 + index,
            1000 * (first + new_tokens) + 2 + index,
            first,
            first + new_tokens - 1,
        )
        for index, (length, first) in enumerate(zip(lengths, firsts, strict=True))
    ]
    steps = steps_between_first_tokens(requests)
    assert sum(each.prompt_tokens for each in steps) == sum(lengths)
    assert sum(each.generated_tokens for each in steps) == len(lengths) * (new_tokens - 1)
    for before, after in pairwise(steps):
        assert before.end_ns == after.start_ns
    for step in steps:
        # Marks come just after their iteration's end.
        iterations = range(step.start_ns // 1000, step.end_ns // 1000)
        assert step.prompt_tokens == sum(
            length for length, first in zip(lengths, firsts, strict=True) if first in iterations
        )
        assert step.generated_tokens == sum(
            first < iteration < first + new_tokens for first in firsts for iteration in iterations
        )


WHOLE = RequestTimes(24, 6, 1_000, 2_000, 7_000, 4, 9)


def test_a_request_alone_is_a_prefill_and_a_decode() -> None:
    assert steps_between_first_tokens([WHOLE]) == (Step(1_000, 2_000, 24, 0), Step(2_000, 7_000, 0, 5))
    assert steps_between_first_tokens([replace(WHOLE, generated_tokens=1, last_iteration=4)]) == (
        Step(1_000, 2_000, 24, 0),
    )


@pytest.mark.parametrize(
    "change",
    [
        {"last_iteration": 8},  # tokens were speculated
        {"last_iteration": 11},  # paused, or its first token was marked while it waited
        {"first_token_ns": 900},
        {"last_token_ns": 1_500},
        {"scheduled_ns": 2_000},
    ],
)
def test_times_that_do_not_fit_give_no_steps(change: dict[str, int]) -> None:
    assert steps_between_first_tokens([WHOLE, replace(WHOLE, **change)]) == ()
