"""The demo's energy test on the simulated board: nothing is inferred, an engine's time is foretold and waited for."""

from __future__ import annotations

import pytest
from engine_settings import KV_CACHE_DTYPE

from pytest_tokenpower import Energy, EngineSpec, FixedShape
from pytest_tokenpower.meters.simulation.virtual_time import VIRTUAL_TIME


@pytest.mark.power_budget(regression="3%")
def test_chat_energy(energy: Energy) -> None:
    """32 chats of 2,048 tokens, 128 new tokens each."""
    engine = EngineSpec(
        "simulated",
        "llama-3.1-8b",
        isolated=False,
        stands_for="vllm",
        clock=VIRTUAL_TIME.clock,
        kv_cache_dtype=KV_CACHE_DTYPE,
    )
    energy.run(engine, FixedShape(batch=32, prompt_tokens=2048, new_tokens=128))
