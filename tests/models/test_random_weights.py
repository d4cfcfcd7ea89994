"""Random checkpoints: the true shapes, kept or replaced, and nothing of anybody else's touched."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_tokenpower.errors import EngineError, UsageError
from pytest_tokenpower.models import Architecture, load_models, write_random_model
from pytest_tokenpower.models.architecture import FAMILIES
from pytest_tokenpower.models.registry import architecture


def test_an_unknown_architecture_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"llama-3\.2-1b, .*, tiny, small"):
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
        pytest.importorskip("transformers")

    def test_is_a_checkpoint_of_the_architecture(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file

        tiny = architecture("tiny")
        path = write_random_model(tmp_path / "tiny", tiny, seed=3, dtype="float32")
        weights = load_file(path / "model.safetensors")
        assert weights["model.layers.1.mlp.down_proj.weight"].shape == (128, 352)
        assert weights["model.layers.0.self_attn.k_proj.weight"].shape == (64, 128)
        assert len(weights) == 3 + 2 * 9
        assert sum(tensor.numel() for tensor in weights.values()) == tiny.parameters
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
        content = (path / "model.safetensors").read_bytes()
        # Not its whole stat(): reading it may change when it was last read.
        first = (path / "model.safetensors").stat()
        assert write_random_model(path, "tiny") == path
        kept = (path / "model.safetensors").stat()
        assert (kept.st_ino, kept.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
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

    def test_weights_hang_on_the_seed_and_their_name_alone(self, tmp_path: Path) -> None:
        """Not on which tensors came before: another layer, or another order, leaves them as they are."""
        from safetensors.torch import load_file

        tiny = architecture("tiny")
        longer = Architecture("longer", {**tiny.config, "num_hidden_layers": 3})
        short, long, other = (
            load_file(write_random_model(tmp_path / f"{at}", shape, seed=seed) / "model.safetensors")
            for at, (shape, seed) in enumerate([(tiny, 0), (longer, 0), (tiny, 1)])
        )
        assert all(bool((long[name] == tensor).all()) for name, tensor in short.items())
        matrices = [name for name, tensor in short.items() if tensor.ndim > 1]
        assert not any(bool((other[name] == short[name]).all()) for name in matrices)
        assert len({float(short[name].float().sum()) for name in matrices}) == len(matrices)

    @pytest.mark.slow
    def test_a_script_without_a_main_guard_writes_one(self, tmp_path: Path) -> None:
        """Where a GPU is free of this process, another one writes, which must not run the caller's script again."""
        script = tmp_path / "script.py"
        script.write_text(
            "import torch\n"
            "torch.cuda.is_available = lambda: True\n"  # here alone: the writer finds none, and takes the CPU
            "from pytest_tokenpower.models import write_random_model\n"
            "print('once', write_random_model('tiny', 'tiny').name)\n"
        )
        done = subprocess.run(
            [sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (done.stdout, done.returncode) == ("once tiny\n", 0), done.stderr
        here = write_random_model(tmp_path / "here", "tiny")
        assert (tmp_path / "tiny/model.safetensors").read_bytes() == (here / "model.safetensors").read_bytes()

    @pytest.mark.slow
    def test_an_error_of_the_writing_process_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        unknown = Architecture("unknown", {**architecture("tiny").config, "hidden_act": "no such function"})
        with pytest.raises(
            EngineError, match=r"(?s)^unknown: random weights could not .* makes no model of .* 'llama'"
        ):
            write_random_model(tmp_path / "m", unknown)
        assert list(tmp_path.iterdir()) == []

    def test_an_architecture_that_transformers_does_not_know(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import transformers

        def unknown(_: object) -> None:
            raise ValueError("does not recognize this architecture")

        monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unknown)
        with pytest.raises(
            EngineError,
            match=r"tiny: transformers \S+ makes no model of its configuration \(model_type 'llama'\)",
        ):
            write_random_model(tmp_path / "m", "tiny")
        assert list(tmp_path.iterdir()) == []

    def test_a_count_that_transformers_does_not_share(self, tmp_path: Path) -> None:
        """Qwen's MLPs have no biases, whatever the configuration says."""
        odd = Architecture("odd", {**architecture("tiny").config, "model_type": "qwen3", "mlp_bias": True})
        with pytest.raises(
            EngineError, match=rf"odd: transformers .* and the architecture has {odd.parameters}:"
        ):
            write_random_model(tmp_path / "m", odd)

    def test_shards_are_indexed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from safetensors.torch import load_file

        from pytest_tokenpower.models import random_weights

        monkeypatch.setattr(random_weights, "_SHARD_BYTES", 150_000)
        tied = Architecture("tied", {**architecture("tiny").config, "tie_word_embeddings": True})
        path = write_random_model(tmp_path / "tiny", tied)
        index = json.loads((path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == tied.bytes()
        files = sorted(set(index["weight_map"].values()))
        assert len(files) > 2
        stored = {name: file for file in files for name in load_file(path / file)}
        assert stored == index["weight_map"]
        assert "model.embed_tokens.weight" in stored
        assert "lm_head.weight" not in stored


SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    # What only some families have.
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "max_window_layers": 2,
    "moe_intermediate_size": 32,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}


def small(name: str) -> Architecture:
    """Return the model of that name, of the same kind and with small sizes."""
    config = dict(architecture(name).config)
    config |= {field: value for field, value in SMALL.items() if field in config or field == "pad_token_id"}
    if config["model_type"].startswith("deepseek"):
        config |= {"num_key_value_heads": 4, "n_group": 1, "topk_group": 1}
    scaling = config.get("rope_scaling", {})
    if "long_factor" in scaling:
        half = int(16 * config.get("partial_rotary_factor", 1)) // 2
        factors = {key: scaling[key][:half] for key in ("long_factor", "short_factor")}
        config["rope_scaling"] = scaling | factors
    return Architecture(f"small {name}", config)


REPRESENTATIVES = (
    "llama-3.2-1b",  # tied
    "llama-3.1-8b",
    "qwen2.5-7b",
    "qwen3-8b",
    "qwen3-30b-a3b",
    "mistral-7b-v0.1",
    "mixtral-8x7b",
    "falcon-7b",
    "falcon-180b",
    "gemma-2-2b",
    "gemma-3-4b",
    "phi-4-mini",
    "gpt-oss-20b",
    "deepseek-v2-lite",
    "deepseek-v3",
)


def test_every_family_is_represented() -> None:
    models = load_models()
    assert {models[name].architecture.shape.family for name in REPRESENTATIVES} == FAMILIES.keys()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_transformers_loads_every_weight_of_a_family_and_misses_none(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("safetensors")
    torch = pytest.importorskip("torch")
    shape = small(name)
    path = write_random_model(tmp_path / "model", shape, dtype="float32")
    model, said = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert type(model).__name__ == FAMILIES[shape.shape.family]
    assert {what: names for what, names in said.items() if names} == {}
    # DeepSeek V3's selection bias is a buffer there.
    buffers = sum(each.numel() for key, each in model.named_buffers() if "correction_bias" in key)
    assert sum(each.numel() for each in model.parameters()) + buffers == shape.parameters
    windows = [window is not None for window in shape.shape.windows]
    kinds = getattr(model.config, "layer_types", None)
    assert kinds is None or [kind == "sliding_attention" for kind in kinds] == windows
    with torch.no_grad():
        assert bool(torch.isfinite(model(torch.tensor([[1, 5, 7, 9]])).logits).all())
