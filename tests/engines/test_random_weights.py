"""Random checkpoints: the true shapes, kept or replaced, and nothing of anybody else's touched."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_tokenpower.errors import EngineError, UsageError
from pytest_tokenpower.models import ARCHITECTURES, architecture, write_random_model


@pytest.mark.parametrize(
    ("name", "parameters"),
    # As the model cards' safetensors counts say.
    [("llama-3.2-1b", 1_235_814_400), ("llama-3.1-8b", 8_030_261_248)],
)
def test_parameters_of_the_true_architectures(name: str, parameters: int) -> None:
    assert architecture(name).parameters == parameters
    assert architecture(name).bytes("bfloat16") == 2 * parameters


def test_an_unknown_architecture_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tiny, small, llama-3\.2-1b"):
        write_random_model(tmp_path / "m", "llama-9")


def test_an_unknown_dtype_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bfloat16, float16, float32"):
        write_random_model(tmp_path / "m", "tiny", dtype="fp8")


def test_too_small_a_disk_says_by_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 3_000_000_000))
    with pytest.raises(
        EngineError, match=r"llama-3.1-8b in bfloat16 takes 16.1 GB, its disk has 3.0 GB left"
    ):
        write_random_model(tmp_path / "m", "llama-3.1-8b")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="no checkpoint of ours"):
        write_random_model(tmp_path, "tiny")
    assert (tmp_path / "notes.txt").read_text() == "mine"


class TestWritten:
    @pytest.fixture(autouse=True)
    def _needs(self) -> None:
        pytest.importorskip("torch")
        pytest.importorskip("safetensors")

    def test_is_a_checkpoint_of_the_architecture(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file

        tiny = ARCHITECTURES["tiny"]
        path = write_random_model(tmp_path / "tiny", tiny, seed=3, dtype="float32")
        weights = load_file(path / "model.safetensors")
        assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == dict(tiny.tensors())
        for name, tensor in weights.items():
            if tensor.ndim == 1:
                assert bool((tensor == 1).all()), name
            else:
                assert float(tensor.mean()) == pytest.approx(0, abs=0.001), name
                assert float(tensor.std()) == pytest.approx(tiny.initializer_range, rel=0.05), name
        config = json.loads((path / "config.json").read_text())
        assert config["tokenpower_weights"] == "random normal, std 0.02, seed 3"
        assert [entry.name for entry in tmp_path.iterdir()] == ["tiny"]

    def test_the_same_specification_is_kept_another_replaced(self, tmp_path: Path) -> None:
        path = write_random_model(tmp_path / "tiny", "tiny")
        first = (path / "model.safetensors").stat()
        content = (path / "model.safetensors").read_bytes()
        assert write_random_model(path, "tiny") == path
        assert (path / "model.safetensors").stat() == first
        write_random_model(path, "tiny", seed=1)
        assert (path / "model.safetensors").read_bytes() != content
        write_random_model(path, "tiny", seed=0)
        assert (path / "model.safetensors").read_bytes() == content

    def test_an_interrupted_one_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import safetensors.torch

        def fail(*_: object, **__: object) -> None:
            raise OSError("disk gone")

        monkeypatch.setattr(safetensors.torch, "save_file", fail)
        with pytest.raises(OSError, match="disk gone"):
            write_random_model(tmp_path / "tiny", "tiny")
        assert list(tmp_path.iterdir()) == []

    def test_shards_are_indexed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from safetensors.torch import load_file

        from pytest_tokenpower.models import random_weights

        monkeypatch.setattr(random_weights, "_SHARD_BYTES", 150_000)
        tied = replace(ARCHITECTURES["tiny"], tie_word_embeddings=True)
        path = write_random_model(tmp_path / "tiny", tied)
        index = json.loads((path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == tied.bytes()
        files = sorted(set(index["weight_map"].values()))
        assert len(files) > 2
        stored = {name: file for file in files for name in load_file(path / file)}
        assert stored == index["weight_map"]
        assert stored.keys() == dict(tied.tensors()).keys()
