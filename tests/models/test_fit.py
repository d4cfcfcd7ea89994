"""A model that surely does not fit is refused before it is loaded, by how much; whatever is unsure is let through."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_tokenpower.errors import EngineError
from pytest_tokenpower.meters.adapters.nvml.devices import GpuMemory
from pytest_tokenpower.models import fit
from pytest_tokenpower.models.fit import refuse_transformers, refuse_vllm

GIB = 1 << 30
H100 = tuple(GpuMemory(index, "NVIDIA H100 80GB HBM3", int(79.2 * GIB)) for index in range(8))

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
WIDTH = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "U8": 1}
BF16: Tensors = {"model.layers.0.a.weight": ("BF16", (GIB, 50)), "lm_head.weight": ("BF16", (GIB, 5))}
"""110 GiB: their headers only, no data."""


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    """Write a model folder whose safetensors files hold headers alone."""

    def write(tensors: Tensors = BF16, *, shards: int = 1, **config: Any) -> str:
        folder = tmp_path / "big-model"
        folder.mkdir()
        said = {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "num_hidden_layers": 1} | config
        (folder / "config.json").write_text(json.dumps(said))
        places = {name: f"part-{at % shards}.safetensors" for at, name in enumerate(tensors)}
        for file in set(places.values()):
            header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
            end = 0
            for name, (dtype, shape) in tensors.items():
                if places[name] == file:
                    size = shape[0] * shape[1] * WIDTH[dtype]
                    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
                    end += size
            text = json.dumps(header).encode()
            name = file if shards > 1 else "model.safetensors"
            (folder / name).write_bytes(len(text).to_bytes(8, "little") + text)
        if shards > 1:
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        return str(folder)

    return write


@pytest.mark.parametrize("shards", [1, 2])
def test_vllm_is_told_by_how_much(written: Callable[..., str], shards: int) -> None:
    with pytest.raises(EngineError) as raised:
        refuse_vllm(written(shards=shards), {}, H100[:1])
    assert str(raised.value) == (
        "big-model needs 110.0 GiB for its weights in bf16 alone, and GPU 0 (NVIDIA H100 80GB HBM3) has 79.2 GiB: "
        '30.8 GiB too little; use tensor_parallel_size=2, quantization="fp8", or a smaller model'
    )


def test_transformers_is_told_of_its_device(written: Callable[..., str]) -> None:
    with pytest.raises(
        EngineError, match=r"GPU 1 \(.*30\.8 GiB too little; use vLLM with tensor_parallel_size=2, or"
    ):
        refuse_transformers(written(), None, "cuda:1", H100[:2])


def test_several_gpus_count_together(written: Callable[..., str]) -> None:
    model = written()
    refuse_vllm(model, {"tensor_parallel_size": 2}, H100)
    refuse_vllm(model, {"pipeline_parallel_size": 2}, H100)
    with pytest.raises(
        EngineError, match=r"220\.0 GiB for its weights in fp32 alone, and GPUs 0, 1 \(.*158\.4 GiB tog"
    ):
        refuse_vllm(model, {"tensor_parallel_size": 2, "dtype": "float32"}, H100)


def test_gpus_that_the_architecture_divides_by_are_named() -> None:
    # A hub id of the registry, before anything of it is downloaded; 12 heads, 4 for keys and values.
    with pytest.raises(EngineError, match=r"tiiuae/Falcon3-7B-Base needs 13\.9 GiB .*_size=4, or"):
        refuse_vllm("tiiuae/Falcon3-7B-Base", {}, [GpuMemory(0, "small", 5 * GIB)])


def test_a_hub_id_in_its_own_dtype() -> None:
    with pytest.raises(
        EngineError, match=r"openai/gpt-oss-120b needs 60\.8 GiB for its weights as stored alone"
    ):
        refuse_vllm("openai/gpt-oss-120b", {"dtype": "bfloat16"}, [GpuMemory(0, "small", 40 * GIB)])


@pytest.mark.parametrize(
    "options",
    [
        {"quantization": "fp8"},  # 55 GiB at best
        {"quantization": "bitsandbytes"},
        {"quantization": "some_new_method"},
        {"hf_overrides": {"num_hidden_layers": 1}},
        {"cpu_offload_gb": 40},
        {"load_format": "gguf"},
        {"distributed_executor_backend": "ray"},
        {"data_parallel_size": 2},
        {"tensor_parallel_size": 16},  # more than there are: vLLM says so itself
    ],
)
def test_what_may_shrink_or_move_the_weights_is_respected(
    written: Callable[..., str], options: dict[str, Any]
) -> None:
    refuse_vllm(written(), options, H100)


def test_even_quantized_it_can_be_too_large(written: Callable[..., str]) -> None:
    with pytest.raises(
        EngineError, match=r"55\.0 GiB for its weights with quantization='fp8' alone.*15\.0 GiB too l"
    ):
        refuse_vllm(written(), {"quantization": "fp8"}, [GpuMemory(0, "small", 40 * GIB)])


def test_what_is_converted_on_load_is_counted_in_the_new_dtype(written: Callable[..., str]) -> None:
    model = written({"model.layers.0.a.weight": ("F32", (GIB, 30))}, dtype="float32")
    refuse_vllm(model, {"dtype": "auto"}, H100)  # 120 GiB stored, 60 loaded
    refuse_transformers(model, "bfloat16", "cuda", H100)
    with pytest.raises(EngineError, match=r"120\.0 GiB for its weights in fp32"):
        refuse_transformers(model, None, "cuda", H100)


def test_a_quantized_checkpoint_is_loaded_as_it_is(written: Callable[..., str]) -> None:
    tensors = {"model.layers.0.a.weight": ("F8_E4M3", (GIB, 70))}
    model = written(tensors, quantization_config={"quant_method": "fp8"})
    refuse_vllm(model, {"dtype": "bfloat16", "quantization": "fp8"}, H100)
    with pytest.raises(
        EngineError, match=r"70\.0 GiB for its weights as stored alone.*use tensor_parallel_size=2, or"
    ):
        refuse_vllm(model, {}, [GpuMemory(0, "s", 60 * GIB)])


def test_what_is_stored_and_not_loaded_does_not_count(written: Callable[..., str]) -> None:
    spare = {"model.layers.0.a.weight": ("BF16", (GIB, 30)), "model.layers.1.a.weight": ("BF16", (GIB, 30))}
    tied = {"lm_head.weight": ("BF16", (GIB, 30))}
    refuse_vllm(written({**spare, **tied}, tie_word_embeddings=True), {}, H100)


@pytest.mark.parametrize(
    "config",
    [{"architectures": ["Gemma3ForConditionalGeneration"]}, {"architectures": []}, {"architectures": 3}],
)
def test_a_class_that_may_leave_parts_out_is_let_through(
    written: Callable[..., str], config: dict[str, Any]
) -> None:
    refuse_vllm(written(**config), {}, H100)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"\xff" * 9, b"\x02\0\0\0\0\0\0\0[]"])
def test_a_broken_folder_is_the_engines_to_refuse(
    written: Callable[..., str], file: str, content: bytes | None
) -> None:
    model = written()
    if content is None:
        (Path(model) / file).unlink()
    else:
        (Path(model) / file).write_bytes(content)
    refuse_vllm(model, {}, H100)
    refuse_transformers(model, None, "cuda", H100)


def test_unknown_models_and_devices_are_let_through(written: Callable[..., str]) -> None:
    refuse_vllm("nobody/nothing", {}, H100)
    refuse_vllm(written(), {}, ())
    refuse_transformers("nobody/nothing", None, "cuda", H100)
    refuse_transformers("meta-llama/Llama-3.1-405B", None, "mps", H100)
    refuse_transformers("meta-llama/Llama-3.1-405B", None, "cuda:7", H100[:2])


def test_a_machine_without_gpu_has_its_memory_and_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "system_memory", lambda: 16 * GIB)
    monkeypatch.setattr(fit, "swap_memory", lambda: 4 * GIB)
    refuse_transformers("meta-llama/Llama-3.1-8B", None, "cpu")
    with pytest.raises(
        EngineError, match=r"29\.9 GiB .* in fp32 alone, and this machine has 20\.0 GiB of memory and swap"
    ):
        refuse_transformers("meta-llama/Llama-3.1-8B", "float32", "cpu")


class TestTheAdapters:
    """The hub cannot be reached for these: the refusal comes before a download."""

    MODEL = "meta-llama/Llama-3.1-405B"

    @pytest.fixture(autouse=True)
    def _offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def test_transformers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("transformers")
        from pytest_tokenpower.engines.transformers import TransformersEngine

        monkeypatch.setattr(fit, "system_memory", lambda: 64 * GIB)
        monkeypatch.setattr(fit, "swap_memory", lambda: 0)
        with pytest.raises(EngineError, match=r"756\.0 GiB .* in bf16 alone, and this machine has 64\.0 GiB"):
            TransformersEngine(self.MODEL, device="cpu")

    def test_vllm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("vllm")
        from pytest_tokenpower.engines.vllm.offline import VllmEngine

        monkeypatch.setattr(fit, "_vllm_gpus", lambda: H100)
        with pytest.raises(EngineError, match=r"756\.0 GiB .* GPUs 0, 1 \(.*\) have 158\.4 GiB together"):
            VllmEngine(self.MODEL, tensor_parallel_size=2)
