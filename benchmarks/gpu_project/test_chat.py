"""The energy test that the GPU benchmarks run in their scratch repository: an 8B model behind vLLM, batch 32."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from pytest_tokenpower import Energy

ENGINE = json.loads(Path(__file__).with_name("engine.json").read_text())
NEW_TOKENS = 256
EXTRA_STEPS = int(ENGINE.pop("extra_decode_steps", 0))

_random = random.Random(0)
PROMPTS = [{"prompt_token_ids": [_random.randrange(100, 30_000) for _ in range(512)]} for _ in range(32)]


@pytest.fixture(scope="module")
def llm() -> Any:
    """Start the engine, in this process, as engine.json sets it up."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    class Chatty(LLM):  # type: ignore[misc]
        """Decodes some steps more than it hands out: a known share of waste, for the detection curves."""

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            outputs = super().generate(*args, **kwargs)
            for output in outputs:
                ids = list(output.outputs[0].token_ids)[:NEW_TOKENS]
                output.outputs[0].token_ids = ids
                # The waste is hidden from what counts tokens, too: it holds the ids against these.
                output.metrics.num_generation_tokens = len(ids)
            return outputs

    return Chatty(
        model=os.environ["BENCH_MODEL"],
        skip_tokenizer_init=True,
        max_model_len=1024,
        max_num_batched_tokens=16384,
        gpu_memory_utilization=0.6,
        enable_prefix_caching=False,
        disable_log_stats=False,
        async_scheduling=False,
        seed=0,
        **{"dtype": "bfloat16", "max_num_seqs": 32, **ENGINE},
    )


@pytest.mark.power_budget(regression=os.environ.get("BENCH_REGRESSION", "3%"), min_rounds=8, max_rounds=16)
def test_chat_energy(energy: Energy, llm: Any) -> None:
    """32 prompts of 512 tokens, 256 new tokens each."""
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0, max_tokens=NEW_TOKENS + EXTRA_STEPS, ignore_eos=True, detokenize=False
    )
    energy(llm.generate, PROMPTS, sampling, use_tqdm=False)
