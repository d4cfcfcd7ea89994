"""The DeepSpeed-MII adapter against a stand-in: contracts, exact steps, and what it refuses."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_tokenpower.engines.deepspeed_mii import MiiEngine
from pytest_tokenpower.engines.protocol import Engine
from pytest_tokenpower.errors import EngineError, UsageError
from pytest_tokenpower.workloads.base import Batch
from tests.support.contract import ClosingContract, EngineContract, check_bookkeeping, prompts
from tests.support.standins.core import write_model
from tests.support.stub import labels

pytestmark = pytest.mark.usefixtures("standins")

BATCH = Batch(prompts(3, 24), 6)


class TestMii(EngineContract):
    device_ids = ("GPU-a",)

    @classmethod
    def make(cls, models: Path) -> Engine:
        return MiiEngine(write_model(models))


class TestClosing(ClosingContract):
    @classmethod
    def make(cls, models: Path) -> Engine:
        return MiiEngine(write_model(models))


def test_closing_destroys_the_pipeline(model: Path) -> None:
    engine = MiiEngine(model)
    pipeline = engine.pipeline
    engine.close()
    with pytest.raises(RuntimeError, match="has been destroyed"):
        pipeline(["5 6"])
    assert engine.pipeline is None


@pytest.mark.parametrize("budget", [768, 40])
def test_each_pass_is_a_step(model: Path, budget: int) -> None:
    state = {"state_manager": {"max_ragged_batch_size": budget}}
    engine = MiiEngine(model, inference_engine_config=state)
    for _ in range(2):
        engine.pipeline.core.scheduler.truth.clear()
        generation = engine.generate(BATCH)
        check_bookkeeping(BATCH, generation)
        assert generation.steps_exact
        assert list(labels(generation)) == engine.pipeline.core.scheduler.truth
    engine.close()


def test_identity_is_read_from_its_configuration(model: Path) -> None:
    engine = MiiEngine(model, quantization_mode="wf6af16", max_length=512)
    engine.close()
    assert (engine.identity.engine, engine.identity.version) == ("deepspeed-mii", "0.3.3")
    assert {**engine.identity.axes, "weights": None} == {
        "dtype": "bfloat16",
        "quantization": "wf6af16",
        "kv_cache_dtype": "bfloat16",
        "tensor_parallel": 1,
        "pipeline_parallel": 1,
        "weights": None,
    }
    assert engine.identity.facts == {
        "max_length": 512,
        "max_ragged_batch_size": 768,
        "max_ragged_sequence_count": 512,
    }


def test_identity_says_which_deepspeed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(__version__="0.19.8"))
    engine = MiiEngine(model)
    engine.close()
    assert engine.identity.facts["deepspeed"] == "0.19.8"


def test_engines_stand_side_by_side(model: Path) -> None:
    engines = [MiiEngine(model) for _ in range(2)]
    for engine in engines:
        check_bookkeeping(BATCH, engine.generate(BATCH))
    for engine in engines:
        engine.close()


@pytest.mark.parametrize(
    "options", [{"zmq_port_number": 25555}, {"model_config": {"zmq_port_number": 25555}}]
)
def test_a_port_that_is_given(model: Path, options: dict[str, Any]) -> None:
    engine = MiiEngine(model, **options)
    assert engine.pipeline.model_config.zmq_port_number == 25555
    with pytest.raises(EngineError, match=r"Address already in use .*25555"):
        MiiEngine(model, zmq_port_number=25555)
    engine.close()


def test_no_launch_is_left_in_the_environment(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    MiiEngine(model).close()
    assert dict(os.environ) == before


def test_closing_empties_the_cache_of_buffers(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = {"a buffer": "its views"}
    allocator = SimpleNamespace(Allocator=SimpleNamespace(cache=cache))
    monkeypatch.setitem(sys.modules, "deepspeed.inference.v2.allocator", allocator)
    MiiEngine(model).close()
    assert not cache


def test_a_cache_that_was_too_small_is_refused(model: Path) -> None:
    engine = MiiEngine(model)
    engine.pipeline.forget_after = 2
    with pytest.raises(
        EngineError,
        match=r"prompt 0 was 24 tokens and 6 were asked for, and it counted 26 and 4: .*KV cache is full",
    ):
        engine.generate(BATCH)
    engine.close()


def test_a_batch_that_fails_closes_the_engine(model: Path) -> None:
    engine = MiiEngine(model)
    engine.pipeline.core.fail_at = 3
    with pytest.raises(EngineError, match=r"the engine is closed, .*: RuntimeError: CUDA out of memory"):
        engine.generate(BATCH)
    assert engine.pipeline is None
    with pytest.raises(EngineError, match="after close"):
        engine.generate(BATCH)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"tensor_parallel": 2}, r"MiiEngine\(tensor_parallel=2\): .*deepspeed launcher"),
        ({"tokenizer": "folder"}, r"MiiEngine\(tokenizer=\.\.\.\): .*PromptSet"),
    ],
)
def test_options_that_cannot_be(model: Path, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        MiiEngine(model, **options)


def test_the_launcher_of_several_ranks_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError, match="tensor_parallel=4"):
        MiiEngine(model)


def test_what_it_refuses_names_the_model(model: Path) -> None:
    with pytest.raises(EngineError, match=r"tiny: DeepSpeed-MII cannot load it: .*max_model_len"):
        MiiEngine(model, max_model_len=1024)


def test_a_model_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"its config\.json cannot be read"):
        MiiEngine(tmp_path)


def test_a_missing_package_names_the_extra(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mii", None)
    with pytest.raises(EngineError, match=r"pip install 'pytest-tokenpower\[deepspeed-mii\]'"):
        MiiEngine(model)
