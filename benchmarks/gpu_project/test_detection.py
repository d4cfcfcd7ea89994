"""The energy tests of the error-rate benchmark: what they run, and with how much waste, is said when their turn comes.

Everything is imported before that, so that the next process is ready while this one measures.
"""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pytest_tokenpower import Energy, TokenCount

MODEL = os.environ["BENCH_MODEL"]
if MODEL != "fake":
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import torch
    import vllm

NEW_TOKENS, PROMPT_TOKENS, BATCH = 200, 32, 32
PROMPTS = [
    {"prompt_token_ids": [100 + (7919 * (row * PROMPT_TOKENS + at)) % 30_000 for at in range(PROMPT_TOKENS)]}
    for row in range(BATCH)
]
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def turn() -> dict[str, Any]:
    """Wait until the benchmark says what this process is to do, which it does when the one before has ended."""
    parent = os.getppid()
    while not (HERE / "turn.json").exists():
        if os.getppid() != parent:
            pytest.exit("the benchmark has ended", returncode=1)
        time.sleep(0.02)
    said: dict[str, Any] = json.loads((HERE / "turn.json").read_text())
    return said


@pytest.fixture(scope="module")
def generate(turn: dict[str, Any]) -> Any:
    """One batch on a fresh engine, in this process: 8B, bf16, random weights, CUDA graphs for decode."""
    if MODEL == "fake":
        return _fake
    began = time.monotonic()
    llm = vllm.LLM(
        model=MODEL,
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=512,
        max_num_seqs=BATCH,
        max_num_batched_tokens=BATCH * PROMPT_TOKENS,
        gpu_memory_utilization=0.5,
        enable_prefix_caching=False,
        disable_log_stats=False,
        compilation_config={
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": [BATCH],
        },
        seed=0,
        **turn.get("engine", {}),
    )
    llm.apply_model(_randomise)
    (HERE / "started.json").write_text(json.dumps(time.monotonic() - began))
    return partial(_generate, llm)


def _randomise(model: Any) -> None:
    """Fill in normal weights, the same in each process: vLLM's own dummy weights are near zero and draw less power."""
    generator = torch.Generator(next(model.parameters()).device)
    generator.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0.0, 0.02, generator=generator)
        else:
            parameter.data.fill_(1.0)


def _generate(llm: Any, extra: int = 0) -> Any:
    """``extra`` decode steps are run and thrown away: a known share of waste."""
    sampling = vllm.SamplingParams(
        temperature=0, max_tokens=NEW_TOKENS + extra, ignore_eos=True, detokenize=False
    )
    outputs = llm.generate(PROMPTS, sampling, use_tqdm=False)
    for output in outputs:
        output.outputs[0].token_ids = list(output.outputs[0].token_ids)[:NEW_TOKENS]
    return outputs


def _fake(extra: int = 0) -> TokenCount:
    time.sleep(0.0005 * (NEW_TOKENS + extra))
    return TokenCount(BATCH * PROMPT_TOKENS, BATCH * NEW_TOKENS, BATCH)


@pytest.fixture
def extra(turn: dict[str, Any], place: int) -> int:
    """How many steps the run at this place wastes."""
    runs: list[int] = turn["runs"]
    if place >= len(runs):
        pytest.skip("not in this turn")
    return runs[place]


@pytest.fixture
def compared(turn: dict[str, Any]) -> int:
    """How many steps the candidate wastes."""
    if turn.get("compare") is None:
        pytest.skip("not in this turn")
    found: int = turn["compare"]
    return found


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.power_budget(regression="1%", min_rounds=8, max_rounds=8)
def test_run(extra: int, generate: Any, energy: Energy) -> None:
    """32 prompts of 32 tokens, 200 new tokens each."""
    energy(generate, extra)


@pytest.mark.power_budget(regression="0.5%", min_rounds=6, max_rounds=6)
def test_compare(compared: int, generate: Any, energy: Energy) -> None:
    """Three ABBA blocks, the candidate with so many steps of waste."""
    energy.compare(baseline=generate, candidate=partial(generate, compared))
