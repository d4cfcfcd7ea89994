"""The SGLang adapter against a stand-in: contracts, what it takes from the engine, and what it refuses."""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_tokenpower.engines.protocol import Engine
from pytest_tokenpower.engines.sglang import SglangEngine
from pytest_tokenpower.engines.spec import EngineSpec
from pytest_tokenpower.errors import EngineError
from pytest_tokenpower.workloads.arrivals import Concurrency
from pytest_tokenpower.workloads.base import Batch
from tests.support.contract import (
    ClosingContract,
    EngineContract,
    Every,
    ServingContract,
    check_bookkeeping,
    ids,
    prompts,
)
from tests.support.standins.core import write_model

pytestmark = pytest.mark.usefixtures("standins")

BATCH = Batch(prompts(3, 24), 6)


class TestSglang(EngineContract, ServingContract):
    steps_exact = False
    device_ids = ("GPU-a",)

    @classmethod
    def make(cls, models: Path) -> Engine:
        return SglangEngine(write_model(models))

    def test_a_request_joins_while_others_decode(self, engine: Engine) -> None:
        """Not with SGLang: prompts are computed apart from the decodes, which wait."""
        batch = Batch(prompts(3, 24), 200)
        generation = self.serve(engine, batch, Every(0.02))
        check_bookkeeping(batch, generation)
        assert isinstance(engine, SglangEngine)
        truth = engine.engine.tokenizer_manager.core.scheduler.truth[-len(generation.steps) :]
        assert not any(prompt and decoded for prompt, decoded in truth)
        assert sum(step.generated_tokens == 0 < step.prompt_tokens for step in generation.steps) >= 2


class TestClosing(ClosingContract):
    @classmethod
    def make(cls, models: Path) -> Engine:
        return SglangEngine(write_model(models))


def test_shuts_sglang_down(model: Path) -> None:
    sglang = importlib.import_module("sglang")
    engine = SglangEngine(model)
    assert sglang.Engine.opened == 1
    engine.close()
    assert sglang.Engine.opened == 0
    assert engine.engine is None


def test_identity_is_what_sglang_resolved(model: Path) -> None:
    engine = SglangEngine(
        model, kv_cache_dtype="fp8_e5m2", quantization="fp8", tp_size=2, load_format="dummy"
    )
    engine.close()
    identity = engine.identity
    assert (identity.engine, identity.version) == ("sglang", "0.5.23")
    assert identity.axes == {
        "dtype": "bfloat16",
        "quantization": "fp8",
        "kv_cache_dtype": "fp8_e5m2",
        "tensor_parallel": 2,
        "pipeline_parallel": 1,
        "weights": "dummy",
    }
    assert identity.facts["attention_backend"] == "fa3"
    assert (identity.facts["cuda_graph_decode"], identity.facts["cuda_graph_prefill"]) == (
        "full",
        "breakable",
    )
    assert identity.facts["disable_radix_cache"] is True
    assert identity.facts["steps"] == "estimated from streamed chunks"


@pytest.mark.parametrize(
    ("options", "devices"),
    [
        ({"tp_size": 2, "base_gpu_id": 1}, ("GPU-b", "GPU-c")),
        ({"pp_size": 2, "gpu_id_step": 2}, ("GPU-a", "GPU-c")),
        ({"tp_size": 2, "dp_size": 2}, ("GPU-a", "GPU-b", "GPU-c", "GPU-d")),
        ({"tp_size": 2, "dp_size": 2, "enable_dp_attention": True}, ("GPU-a", "GPU-b")),
        ({"tp_size": 2, "dp_size": 2, "attn_dp_size": 2}, ("GPU-a", "GPU-b", "GPU-c", "GPU-d")),
        ({"tp_size": 8}, None),
        ({"tp_size": 2, "nnodes": 2}, None),
        ({"device": "cpu"}, ()),
        ({"device": "xpu"}, None),
    ],
)
def test_devices(model: Path, options: dict[str, Any], devices: tuple[str, ...] | None) -> None:
    engine = SglangEngine(model, **options)
    engine.close()
    assert engine.device_ids == devices


def test_a_request_that_joins_makes_a_mixed_step_where_sglang_is_told_to(model: Path) -> None:
    engine = SglangEngine(model, enable_mixed_chunk=True)
    batch = Batch(prompts(3, 24), 200)
    generation = engine.serve(batch, Every(0.01))
    engine.close()
    check_bookkeeping(batch, generation)
    assert any(step.prompt_tokens and step.generated_tokens for step in generation.steps)


def test_tokens_that_come_together_are_of_passes_apart(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SglangEngine(model)
    core = engine.engine.tokenizer_manager.core
    step = core.step

    def two() -> dict[str, list[int]]:
        new = step()
        for rid, tokens in (step() if core.busy else {}).items():
            new.setdefault(rid, []).extend(tokens)
        return dict(new)

    batch = Batch(prompts(3, 24), 9)
    monkeypatch.setattr(core, "step", two)
    generation = engine.serve(batch, Concurrency(1))
    engine.close()
    check_bookkeeping(batch, generation)
    assert max(each.generated_tokens for each in generation.steps) == 1


def test_a_backend_without_graphs_is_not_said_to_have_them(model: Path) -> None:
    engine = SglangEngine(model, attention_backend="torch_native")
    engine.close()
    assert engine.identity.facts["cuda_graph_decode"] == "disabled"
    assert "disable_cuda_graph" not in engine.identity.facts


@pytest.mark.parametrize(("options", "longest"), [({}, 2046), ({"max_total_tokens": 100}, 98)])
def test_what_its_scheduler_would_cut_is_refused(model: Path, options: dict[str, Any], longest: int) -> None:
    engine = SglangEngine(model, **options)
    whole, cut = ([[5] * (longest - 10 + more)] for more in (0, 1))
    check_bookkeeping(Batch(whole, 10), engine.generate(Batch(whole, 10)))
    with pytest.raises(EngineError, match=rf"new ones {longest + 1}: the model takes {longest}"):
        engine.generate(Batch(cut, 10))
    with pytest.raises(
        EngineError, match=rf"Input length \({longest - 4} tokens\) exceeds the maximum allowed"
    ):
        engine.generate(Batch([[5] * (longest - 4)], 1))
    engine.close()


def test_deltas_make_the_same_responses(model: Path) -> None:
    whole, deltas = SglangEngine(model), SglangEngine(model, incremental_streaming_output=True)
    expected, found = whole.generate(BATCH), deltas.generate(BATCH)
    whole.close()
    deltas.close()
    check_bookkeeping(BATCH, found)
    assert ids(found) == ids(expected)


def test_prompts_from_the_radix_cache_are_counted_apart(model: Path) -> None:
    engine = SglangEngine(model, disable_radix_cache=False)
    check_bookkeeping(BATCH, engine.generate(BATCH))
    again = engine.generate(BATCH)
    engine.close()
    assert again.tokens.cached_prompt > 0
    check_bookkeeping(BATCH, again)


def test_a_batch_that_fails_leaves_nothing_behind(model: Path) -> None:
    engine = SglangEngine(model)
    core = engine.engine.tokenizer_manager.core
    core.fail_at = 3
    with pytest.raises(EngineError, match=r"ended a request after 3 tokens: .*out of memory"):
        engine.generate(BATCH)
    core.fail_at = None
    assert not core.busy
    check_bookkeeping(BATCH, engine.generate(BATCH))
    engine.close()


def test_an_interrupt_leaves_nothing_behind(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SglangEngine(model)
    core = engine.engine.tokenizer_manager.core

    def interrupted() -> dict[str, list[int]]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(core, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(BATCH)
    assert not core.busy
    check_bookkeeping(BATCH, engine.generate(BATCH))
    engine.close()
    # The interrupted task tells of itself as it is collected, with a traceback that parses code: in the midst of
    # another parse, of an import in a later test, CPython 3.11 fails with "recursion depth mismatch".
    gc.collect()


def test_what_sglang_refuses_names_the_model(model: Path) -> None:
    with pytest.raises(EngineError, match=r"tiny: SGLang cannot load it: .*max_model_len"):
        SglangEngine(model, max_model_len=1024)
    with pytest.raises(EngineError, match="no such model folder"):
        SglangEngine(model / "none")


def test_a_missing_package_names_the_extra(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sglang", None)
    with pytest.raises(EngineError, match=r"pip install 'pytest-tokenpower\[sglang\]'"):
        SglangEngine(model)


def test_in_a_process_of_its_own(model: Path) -> None:
    with EngineSpec("sglang", model, stream_interval=1).start() as engine:
        generation = engine.generate(BATCH)
        check_bookkeeping(BATCH, generation)
        assert not generation.steps_exact
        assert engine.identity.engine == "sglang"
