"""Energy of a model behind vLLM, with your own engine: the fixture that you have, one marker and one line.

MODEL=/path/to/model pytest examples/test_vllm_energy.py --energy-baseline=main
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from pytest_tokenpower import Energy

PROMPTS = [
    {"prompt_token_ids": [10 + (7 * row + column) % 900 for column in range(512)]} for row in range(32)
]


@pytest.fixture(scope="module")
def llm() -> Any:
    vllm = pytest.importorskip("vllm")
    if "MODEL" not in os.environ:
        pytest.skip("set MODEL to the path of a model")
    # Without log stats RequestOutput.metrics is empty, and prefill and decode cannot be told apart.
    return vllm.LLM(model=os.environ["MODEL"], enable_prefix_caching=False, disable_log_stats=False)


@pytest.mark.power_budget(joules_per_token=0.35, regression="3%")
def test_chat_energy(energy: Energy, llm: Any) -> None:
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=256, ignore_eos=True)
    energy(llm.generate, PROMPTS, sampling, use_tqdm=False)


@pytest.mark.power_budget(min_rounds=10)
def test_greedy_costs_no_more_than_sampling(energy: Energy, llm: Any) -> None:
    from vllm import SamplingParams

    def chat(temperature: float) -> Any:
        sampling = SamplingParams(temperature=temperature, seed=0, max_tokens=64, ignore_eos=True)
        return llm.generate(PROMPTS, sampling, use_tqdm=False)

    energy.compare(baseline=lambda: chat(0.8), candidate=lambda: chat(0.0), at_most="1%")
