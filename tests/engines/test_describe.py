"""Which engine stands behind a callable: read from the object, and never an error."""

from __future__ import annotations

import functools
import json
import sys
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_tokenpower.engines.identify import describe_callable
from pytest_tokenpower.engines.protocol import EngineIdentity
from tests.support.stub import StubEngine


class Mode(IntEnum):
    VLLM_COMPILE = 3


class FakeDtype:
    def __str__(self) -> str:
        return "torch.bfloat16"


def vllm_config(**model: Any) -> SimpleNamespace:
    settings = {"model": "org/name", "dtype": FakeDtype(), "quantization": "fp8", "enforce_eager": False}
    return SimpleNamespace(
        model_config=SimpleNamespace(**{**settings, **model}),
        cache_config=SimpleNamespace(cache_dtype="auto", enable_prefix_caching=False),
        parallel_config=SimpleNamespace(tensor_parallel_size=2, pipeline_parallel_size=1),
        scheduler_config=SimpleNamespace(
            max_num_seqs=16, max_num_batched_tokens=2048, async_scheduling=False
        ),
        load_config=SimpleNamespace(load_format="auto"),
        compilation_config=SimpleNamespace(mode=Mode.VLLM_COMPILE),
    )


def fake_class(module: str) -> type:
    class LLM:
        def generate(self, *_: object) -> None: ...

    LLM.__module__ = module
    return LLM


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0.26.0"))
    llm = fake_class("vllm.entrypoints.llm")()
    llm.llm_engine = SimpleNamespace(vllm_config=vllm_config())
    return llm


def test_a_method_of_vllm(llm: Any) -> None:
    identity = describe_callable(llm.generate)
    assert identity == EngineIdentity(
        engine="vllm",
        version="0.26.0",
        model="org/name",
        axes={
            "dtype": "bfloat16",
            "quantization": "fp8",
            "kv_cache_dtype": "bfloat16",
            "tensor_parallel": 2,
            "pipeline_parallel": 1,
            "weights": "hub",
        },
        facts={
            "enforce_eager": False,
            "max_num_seqs": 16,
            "max_num_batched_tokens": 2048,
            "async_scheduling": False,
            "prefix_caching": False,
            "compilation_mode": "vllm_compile",
            "load_format": "auto",
        },
    )


def test_a_partial_of_it(llm: Any) -> None:
    once = functools.partial(llm.generate, ["text"])
    assert describe_callable(functools.partial(once, 1)) == describe_callable(llm.generate)


def test_the_weights_of_a_folder(llm: Any, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"one")
    llm.llm_engine.vllm_config = vllm_config(model=str(folder))

    def weights() -> object:
        identity = describe_callable(llm.generate)
        assert identity is not None
        assert identity.model == "mine"
        return identity.axes["weights"]

    before = weights()
    assert before == weights()
    (folder / "model.safetensors").write_bytes(b"two")
    assert weights() != before
    (folder / "config.json").write_text(json.dumps({"tokenpower_weights": "random normal"}))
    assert weights() == "random"
    llm.llm_engine.vllm_config.load_config.load_format = "dummy"
    assert weights() == "dummy"


def test_an_engine_of_ours() -> None:
    engine = StubEngine()
    assert describe_callable(engine.generate) == engine.identity


class Hostile:
    def __getattr__(self, name: str) -> object:
        raise RuntimeError(name)

    def __call__(self) -> None: ...


@pytest.mark.parametrize(
    "fn",
    [print, len, "text".upper, lambda: None, None, 3, object(), Hostile(), StubEngine, [].append],
    ids=range(10),
)
def test_anything_else_has_no_identity(fn: object) -> None:
    assert describe_callable(fn) is None


def test_a_configuration_that_we_cannot_read_is_no_error(llm: Any) -> None:
    llm.llm_engine = None
    assert describe_callable(llm.generate) is None
