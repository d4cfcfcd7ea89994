"""The SGLang adapter on a real SGLang and a tiny model, on a CPU: the contract, the tokens of transformers, a crash."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_tokenpower.core.subprocesses import group_members
from pytest_tokenpower.engines.isolated.engine import IsolatedEngine
from pytest_tokenpower.engines.protocol import Engine
from pytest_tokenpower.engines.transformers import TransformersEngine
from pytest_tokenpower.errors import EngineError
from pytest_tokenpower.models import write_random_model
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

pytestmark = [
    pytest.mark.real_engine,
    pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="SGLang is not installed"),
    # What transformers warns of where torchvision's compiled part is not there.
    pytest.mark.filterwarnings("ignore"),
]

CPU = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "dtype": "float32",
    "max_total_tokens": 8192,
}
ENV = {"SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1"}
CONTEXT = 2048


def start(models: Path, **options: Any) -> IsolatedEngine:
    """SGLang ends its process's children when it closes, and the process when it fails: not pytest's."""
    model = write_random_model(models / "tiny-float32", "tiny", dtype="float32")
    return IsolatedEngine("sglang", model, env=ENV, **{**CPU, **options})


class TestSglangOnACpu(EngineContract, ServingContract):
    steps_exact = False

    @classmethod
    def make(cls, models: Path) -> Engine:
        return start(models)

    def test_identity_is_what_sglang_resolved(self, engine: Engine) -> None:
        identity = engine.identity
        assert identity.axes == {
            "dtype": "float32",
            "quantization": None,
            "kv_cache_dtype": "float32",
            "tensor_parallel": 1,
            "pipeline_parallel": 1,
            "weights": "random",
        }
        expected = {
            "attention_backend": "torch_native",
            "sampling_backend": "pytorch",
            "disable_radix_cache": True,
            "enable_mixed_chunk": False,
            "cuda_graph_decode": "disabled",
            "page_size": 1,
        }
        assert expected.items() <= identity.facts.items()

    def test_fp32_tokens_are_those_of_transformers(self, engine: Engine, models: Path) -> None:
        batch = Batch([prompt[: 30 + row] for row, prompt in enumerate(prompts(16, 64))], 64)
        other = TransformersEngine(models / "tiny-float32", device="cpu")
        expected = ids(other.generate(batch))
        other.close()
        assert ids(engine.generate(batch)) == expected
        assert len({token for each in expected for token in each}) > 30

    def test_a_request_joins_while_others_decode(self, engine: Engine) -> None:
        """SGLang runs prompts apart from the decodes, which wait, unless ``enable_mixed_chunk`` is given."""
        batch = Batch(prompts(3, 24), 200)
        generation = self.serve(engine, batch, Every(0.3))
        check_bookkeeping(batch, generation)
        assert sum(step.generated_tokens == 0 < step.prompt_tokens for step in generation.steps) >= 2
        assert any(step.generated_tokens >= 2 for step in generation.steps)

    def test_the_longest_that_it_takes_is_not_cut(self, engine: Engine) -> None:
        longest = [(7 * each) % 500 + 3 for each in range(CONTEXT)]
        for length, new in ((CONTEXT - 2 - 8, 8), (CONTEXT - 2 - 5, 1)):
            batch = Batch([longest[:length]], new)
            check_bookkeeping(batch, engine.generate(batch))
        with pytest.raises(EngineError, match="2039 tokens, with 8 new ones 2047: the model takes 2046"):
            engine.generate(Batch([longest[: CONTEXT - 9]], 8))
        with pytest.raises(EngineError, match=r"2042 tokens\) exceeds the maximum allowed length"):
            engine.generate(Batch([longest[: CONTEXT - 6]], 1))
        check_bookkeeping(self.batch, engine.generate(self.batch))


@pytest.fixture
def other(models: Path) -> Iterator[IsolatedEngine]:
    """Of another configuration: prompts are read from the cache, mixed with decodes, and in chunks."""
    engine = start(
        models,
        disable_radix_cache=False,
        enable_mixed_chunk=True,
        chunked_prefill_size=64,
        disable_overlap_schedule=True,
    )
    yield engine
    engine.close()


def test_mixed_steps_the_radix_cache_and_a_crash(other: IsolatedEngine) -> None:
    """One engine for three questions: it takes half a minute to start."""
    assert other.identity.facts["enable_mixed_chunk"] is True
    batch = Batch(prompts(3, 24), 100)
    generation = other.serve(batch, Every(0.1))
    check_bookkeeping(batch, generation)
    assert any(step.prompt_tokens and step.generated_tokens for step in generation.steps)

    again = other.generate(batch)
    assert again.tokens.cached_prompt == 3 * 23
    check_bookkeeping(batch, again)

    pid = other.pid
    [scheduler] = [each for each in group_members(pid) if "scheduler" in name_of(each)]
    threading.Timer(1.0, os.kill, (scheduler, signal.SIGKILL)).start()
    with pytest.raises(EngineError, match=r"(?s)sglang engine of tiny.*The end of its log"):
        other.generate(Batch([[7] * 24], 2000))
    assert group_members(pid) == ()
    with pytest.raises(EngineError, match="after its process ended"):
        other.generate(batch)


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ")


class TestClosing(ClosingContract):
    @classmethod
    def make(cls, models: Path) -> Engine:
        return start(models)
