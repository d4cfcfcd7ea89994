"""Energy of a small Llama through transformers, on whatever this machine has: a few lines with the engine's own loop.

pytest examples/test_transformers_energy.py --energy-source=model
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_tokenpower import Energy
from pytest_tokenpower.engines import Engine, EngineSpec
from pytest_tokenpower.models import write_random_model
from pytest_tokenpower.workloads import Batch

PROMPTS = [[2 + (7 * row + column) % 500 for column in range(32)] for row in range(2)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model = write_random_model(tmp_path_factory.mktemp("model"), "tiny", dtype="float32")
    with EngineSpec("transformers", model, isolated=False, threads=1).start() as engine:
        yield engine


@pytest.mark.power_budget(regression="10%", min_rounds=3, max_rounds=6)
def test_chat_energy(energy: Energy, engine: Engine) -> None:
    generation = energy(engine.generate, Batch(prompts=PROMPTS, new_tokens=16))
    assert len(generation.token_ids) == len(PROMPTS)
