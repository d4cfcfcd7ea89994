"""The transformers adapter on a tiny model: the contract, and the same tokens from every kind of cache."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_tokenpower.engines.identify import describe_callable
from pytest_tokenpower.engines.protocol import Engine
from pytest_tokenpower.engines.transformers import TransformersEngine
from pytest_tokenpower.errors import EngineError, UsageError
from pytest_tokenpower.models import write_random_model
from pytest_tokenpower.workloads.base import Batch
from tests.support.contract import ClosingContract, EngineContract, check_bookkeeping, prompts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.real_engine


def tiny(models: Path, dtype: str = "float32") -> Path:
    return write_random_model(models / f"tiny-{dtype}", "tiny", dtype=dtype)


class TestDynamicCache(EngineContract):
    @classmethod
    def make(cls, models: Path) -> Engine:
        return TransformersEngine(tiny(models), device="cpu", threads=1)


class TestClosing(ClosingContract):
    @classmethod
    def make(cls, models: Path) -> Engine:
        return TransformersEngine(tiny(models), device="cpu", threads=1)


class TestStaticCache(EngineContract):
    @classmethod
    def make(cls, models: Path) -> Engine:
        return TransformersEngine(tiny(models), device="cpu", cache="static", threads=1)


class TestNoCache(EngineContract):
    @classmethod
    def make(cls, models: Path) -> Engine:
        return TransformersEngine(tiny(models), device="cpu", cache="none", threads=1)


def tokens(models: Path, batch: Batch, **options: Any) -> list[list[int]]:
    engine = TransformersEngine(tiny(models), device="cpu", threads=1, **options)
    generation = engine.generate(batch)
    # A static cache is used again in the second round.
    again = engine.generate(batch)
    engine.close()
    check_bookkeeping(batch, generation)
    assert again.token_ids == generation.token_ids
    return [list(ids) for ids in generation.token_ids]


EQUAL = Batch(prompts(4, 30), 40)
RAGGED = Batch([prompt[: 6 + 8 * row] for row, prompt in enumerate(prompts(4, 30))], 40)


@pytest.fixture(scope="module")
def reference(models: Path) -> list[list[int]]:
    """Greedy tokens of the ragged prompts from ``generate()`` of transformers itself, one prompt at a time."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny(models), dtype=torch.float32)
    model.generation_config.eos_token_id = None
    found = []
    for prompt in RAGGED.prompts:
        ids = torch.tensor([list(prompt)])
        mask = torch.ones_like(ids)
        made = model.generate(ids, attention_mask=mask, max_new_tokens=RAGGED.new_tokens, do_sample=False)
        found.append(made[0, len(prompt) :].tolist())
    return found


@pytest.mark.parametrize("cache", ["dynamic", "static", "none"])
def test_padded_prompts_give_what_generate_gives_each_alone(
    models: Path, reference: list[list[int]], cache: str
) -> None:
    assert tokens(models, RAGGED, cache=cache) == reference
    assert len({token for ids in reference for token in ids}) > 10


def test_caches_and_attentions_agree_in_fp32(models: Path) -> None:
    expected = tokens(models, EQUAL)
    assert tokens(models, EQUAL, cache="static") == expected
    assert tokens(models, EQUAL, cache="none") == expected
    assert tokens(models, EQUAL, attn_implementation="eager") == expected


def test_runs_through_end_of_sequence(models: Path) -> None:
    engine = TransformersEngine(tiny(models), device="cpu", threads=1)
    generation = engine.generate(EQUAL)
    first = generation.token_ids[0][0]
    engine.model.config.eos_token_id = first
    engine.model.generation_config.eos_token_id = first
    assert engine.generate(EQUAL).token_ids == generation.token_ids
    engine.close()


def test_identity_is_read_from_the_model(models: Path) -> None:
    engine = TransformersEngine(tiny(models), dtype="bfloat16", device="cpu", cache="none", threads=1)
    identity = engine.identity
    engine.close()
    assert identity.engine == "transformers"
    assert identity.version == transformers.__version__
    assert identity.axes == {
        "dtype": "bfloat16",  # what runs, not what the checkpoint holds
        "quantization": None,
        "kv_cache_dtype": None,
        "tensor_parallel": 1,
        "pipeline_parallel": 1,
        "weights": "random",
    }
    assert identity.facts == {
        "architecture": "LlamaForCausalLM",
        "parameters": 500_352,
        "attention": "sdpa",
        "device": "cpu",
        "weights_note": "random normal, std 0.02, seed 0",
        "cache": "none",
        "compile": False,
        "torch": str(torch.__version__),
        "threads": 1,
    }


def test_the_users_own_model_is_described(models: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny(models))
    identity = describe_callable(model.generate)
    assert identity is not None
    assert (identity.engine, identity.model, identity.axes["dtype"]) == ("transformers", "tiny", "float32")
    assert describe_callable(model) == identity


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_threads_are_given_back(models: Path) -> None:
    engine = TransformersEngine(tiny(models), device="cpu", threads=1)
    assert torch.get_num_threads() == 1
    engine.close()
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_threads_are_given_back_after_a_failed_load(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineError, match="transformers cannot load it"):
        TransformersEngine(tmp_path, threads=1)
    assert torch.get_num_threads() == 2


def test_a_failure_of_torch_is_an_engine_error(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TransformersEngine(tiny(models), device="cpu", threads=1)

    def fail(**_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "_decode", fail)
    with pytest.raises(EngineError, match="the batch failed: OutOfMemoryError: CUDA out of memory"):
        engine.generate(EQUAL)
    engine.close()


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such model folder"):
        TransformersEngine(tmp_path / "absent")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"cache": "paged"}, r"cache='paged'\): use one of dynamic, static, none"),
        ({"compile": True}, "compiled decoding needs 'static'"),
    ],
)
def test_options_that_do_not_exist(models: Path, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        TransformersEngine(tiny(models), **options)


def test_a_missing_package_names_the_extra(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EngineError, match=r"pip install 'pytest-tokenpower\[transformers\]'"):
        TransformersEngine(models / "tiny-float32")


def test_log_likelihoods_are_those_of_the_models_own_loss(models: Path) -> None:
    engine = TransformersEngine(tiny(models), device="cpu", threads=1)
    ids = [5, 17, 3, 42, 8]
    logs = engine.log_likelihoods(ids)
    with torch.no_grad():
        loss = engine.model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss
    engine.close()
    assert len(logs) == 4
    assert sum(logs) / 4 == pytest.approx(-float(loss), rel=1e-5)
