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
STOP_REMAINDER = ENGINE.pop("stop_remainder", None)
"""Natural ends: an answer stops at a token whose id leaves this remainder by STOP_EVERY; None: all 256 tokens."""

STOP_EVERY = 128
GEMMS = int(ENGINE.pop("gemms", 0))
"""Matrix products beside each step's own work: a known waste that is independent of how long answers are."""

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

    made = Chatty(
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
    if GEMMS:
        _waste(made.llm_engine)
    return made


def _waste(engine: Any) -> None:
    import torch

    rows, into = (torch.zeros(32, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    plain = engine.step

    def step(*args: Any, **kwargs: Any) -> Any:
        for _ in range(GEMMS):
            torch.mm(rows, matrix, out=into)
        return plain(*args, **kwargs)

    engine.step = step


@pytest.mark.power_budget(regression=os.environ.get("BENCH_REGRESSION", "3%"), min_rounds=8, max_rounds=16)
def test_chat_energy(energy: Energy, llm: Any) -> None:
    """32 prompts of 512 tokens, 256 new tokens each."""
    from vllm import SamplingParams

    if STOP_REMAINDER is None:
        sampling: Any = SamplingParams(
            temperature=0, max_tokens=NEW_TOKENS + EXTRA_STEPS, ignore_eos=True, detokenize=False
        )
    else:
        # Random weights never end an answer by themselves. Sampled by a seed, an engine that computes the same
        # answers the same, and one that computes a little differently answers at other lengths, as it does for users.
        stops = list(range(100 + STOP_REMAINDER, 30_000, STOP_EVERY)) + list(
            range(30_000 + STOP_REMAINDER, 128_000, STOP_EVERY)
        )
        sampling = [
            SamplingParams(
                temperature=1.0,
                seed=row,
                max_tokens=NEW_TOKENS,
                ignore_eos=True,
                stop_token_ids=stops,
                detokenize=False,
            )
            for row in range(len(PROMPTS))
        ]
    energy(llm.generate, PROMPTS, sampling, use_tqdm=False)
