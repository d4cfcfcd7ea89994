"""Phases against ground truths, and energy.compare on identical and on slightly costlier work: one engine, one process.

The costlier variant decodes some steps more than it hands out, a known share of waste.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from pytest_tokenpower import Energy

NEW_TOKENS = 256
BATCH = 32
PROMPT_TOKENS = 512
_random = random.Random(0)
PROMPTS = [
    {"prompt_token_ids": [_random.randrange(100, 30_000) for _ in range(PROMPT_TOKENS)]} for _ in range(BATCH)
]


@pytest.fixture(scope="module")
def llm() -> Any:
    """Start an 8B model behind vLLM, in this process, CUDA graphs for decode."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    return LLM(
        model=os.environ["BENCH_MODEL"],
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=1024,
        max_num_seqs=BATCH,
        max_num_batched_tokens=BATCH * PROMPT_TOKENS,
        gpu_memory_utilization=0.6,
        enable_prefix_caching=False,
        disable_log_stats=False,
        async_scheduling=False,
        compilation_config={
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": [BATCH],
        },
        seed=0,
    )


def chat(llm: Any, new_tokens: int, extra: int = 0) -> Any:
    """One batch; ``extra`` decode steps are run and thrown away."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=new_tokens + extra, ignore_eos=True, detokenize=False)
    outputs = llm.generate(PROMPTS, sampling, use_tqdm=False)
    for output in outputs:
        output.outputs[0].token_ids = list(output.outputs[0].token_ids)[:new_tokens]
    return outputs


@pytest.mark.power_budget(min_rounds=10, max_rounds=10)
def test_whole(energy: Energy, llm: Any) -> None:
    """Prefill and decode told apart within one run."""
    energy(chat, llm, NEW_TOKENS)


@pytest.mark.power_budget(min_rounds=4, max_rounds=4)
def test_prefill_alone(energy: Energy, llm: Any) -> None:
    """Ground truth of the prefill: the same prompts back to back, one token each."""
    energy(lambda: [chat(llm, 1) for _ in range(10)])


@pytest.mark.power_budget(min_rounds=10, max_rounds=10)
def test_half_as_long(energy: Energy, llm: Any) -> None:
    """With test_whole, ground truth of the decode: what 128 more tokens cost."""
    energy(chat, llm, NEW_TOKENS // 2)


@pytest.mark.parametrize("extra", [0, 3, 7])
@pytest.mark.power_budget(min_rounds=10, max_rounds=10, regression="0.5%")
def test_compare(energy: Energy, llm: Any, extra: int) -> None:
    """Five ABBA blocks of the same work, the candidate with ``extra`` decode steps of waste."""
    energy.compare(baseline=lambda: chat(llm, NEW_TOKENS), candidate=lambda: chat(llm, NEW_TOKENS, extra))
