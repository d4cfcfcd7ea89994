"""The same work with 80 % of each prompt in vLLM's prefix cache and with none: in this process, and over HTTP.

Prompts are new in each round, as they are in a deployment: what is cached is the system prompt that they share.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pytest_tokenpower import Energy

MODEL = os.environ["BENCH_MODEL"]
BATCH, PROMPT, SHARED, NEW = 32, 1024, 816, 64
ENGINE: dict[str, Any] = {
    "dtype": "bfloat16",
    "max_model_len": 2048,
    "max_num_seqs": BATCH,
    "max_num_batched_tokens": 32768,
    "gpu_memory_utilization": 0.45,
    "enable_prefix_caching": True,
    "seed": 0,
    "compilation_config": {
        "mode": 0,
        "cudagraph_mode": "FULL_DECODE_ONLY",
        "cudagraph_capture_sizes": [BATCH],
    },
}
_random = random.Random(0)


def tokens(count: int) -> list[int]:
    """Draw new random token ids."""
    return [_random.randrange(100, 30_000) for _ in range(count)]


SYSTEM = tokens(SHARED)


def prompts(shared: bool) -> list[list[int]]:
    """Return a batch of prompts of equal length, after the system prompt or all new."""
    return [(SYSTEM + tokens(PROMPT - SHARED)) if shared else tokens(PROMPT) for _ in range(BATCH)]


@pytest.fixture(scope="module")
def offline() -> Any:
    """Start vLLM in this process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    return LLM(
        model=MODEL, skip_tokenizer_init=True, disable_log_stats=False, async_scheduling=False, **ENGINE
    )


@pytest.fixture(scope="module")
def server() -> Iterator[Callable[[bool], Any]]:
    """Start vLLM's server as people deploy it, and give what sends it a batch."""
    import httpx

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options: list[str] = []
    for name, value in {**ENGINE, "port": port, "host": "127.0.0.1", "model": MODEL}.items():
        text = json.dumps(value) if isinstance(value, dict) else str(value)
        options += [f"--{name.replace('_', '-')}", *([] if value is True else [text])]
    options += ["--skip-tokenizer-init", "--enable-prompt-tokens-details", "--disable-uvicorn-access-log"]
    environment = {
        name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"
    }
    running = subprocess.Popen(
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options], env=environment
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120.0) as client:
        for _ in range(240):
            if running.poll() is not None:
                pytest.fail("the server has ended")
            try:
                if client.get("/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        pool = ThreadPoolExecutor(BATCH)

        def ask(prompt: list[int]) -> Any:
            answer = client.post(
                "/v1/completions",
                json={
                    "model": MODEL,
                    "prompt": prompt,
                    "max_tokens": NEW,
                    "temperature": 0,
                    "ignore_eos": True,
                    "detokenize": False,
                },
            )
            answer.raise_for_status()
            return answer.json()

        yield lambda shared: list(pool.map(ask, prompts(shared)))
        pool.shutdown()
    running.terminate()
    running.wait(60)


@pytest.mark.parametrize("share", ["uncached", "cached"])
@pytest.mark.power_budget(min_rounds=8, max_rounds=8, prefix_cache=True)
def test_offline(energy: Energy, offline: Any, share: str) -> None:
    """LLM.generate, whose outputs tell the phases."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, detokenize=False)
    energy(
        lambda: offline.generate(
            [{"prompt_token_ids": ids} for ids in prompts(share == "cached")], sampling, use_tqdm=False
        )
    )


@pytest.mark.parametrize("share", ["uncached", "cached"])
@pytest.mark.power_budget(min_rounds=8, max_rounds=8, prefix_cache=True)
def test_over_http(energy: Energy, server: Callable[[bool], Any], share: str) -> None:
    """Completions over HTTP, whose usage tells what was cached."""
    energy(lambda: server(share == "cached"))
