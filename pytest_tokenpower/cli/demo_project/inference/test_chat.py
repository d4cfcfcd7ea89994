"""The demo's energy test: real inference of a small Llama with random weights, in a plain pytest test."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from engine_settings import CACHE

from pytest_tokenpower import Energy
from pytest_tokenpower.engines.transformers import TransformersEngine
from pytest_tokenpower.workloads.base import Batch

_random = random.Random(0)
PROMPTS = [[_random.randrange(10, 500) for _ in range(128)]]


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    """Return the engine under test, loaded once."""
    # One thread: on a busy machine the threads of one matrix product wait for each other more than they work.
    engine = TransformersEngine(os.environ["DEMO_MODEL"], cache=CACHE, threads=1)
    yield engine
    engine.close()


# CPU time on a shared machine scatters by 10 % and more; a GPU under NVML resolves 1 to 3 %.
@pytest.mark.power_budget(regression="50%", min_rounds=5, max_rounds=5)
def test_chat_energy(energy: Energy, engine: TransformersEngine) -> None:
    """A prompt of 128 tokens, 12 new ones: without a cache each of them costs as much as the prompt."""
    energy(engine.generate, Batch(prompts=PROMPTS, new_tokens=12))
