"""Whether a model's weights fit the memory of its devices: found out, and refused, before anything is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pytest_tokenpower.errors import EngineError, UsageError
from pytest_tokenpower.meters.adapters.nvml.devices import GpuMemory, gpu_memories
from pytest_tokenpower.models.architecture import WEIGHT_BITS, Architecture, dtype_name
from pytest_tokenpower.models.checkpoint import model_name
from pytest_tokenpower.models.memory import GIB, parallel_sizes, weight_bytes
from pytest_tokenpower.models.registry import load_models

_CGROUP = Path("/sys/fs/cgroup/memory.max")

_MEMINFO = Path("/proc/meminfo")


def gpus() -> tuple[GpuMemory, ...]:
    """List the GPUs that CUDA_VISIBLE_DEVICES leaves; empty where there is none, or where it cannot be said."""
    return gpu_memories(os.environ.get("CUDA_VISIBLE_DEVICES"))


def system_memory() -> int:
    """Bytes of memory that processes may use: the machine's, or its control group's limit where that is less."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = _CGROUP.read_text().strip()
    except OSError:
        return memory
    return min(memory, int(limit)) if limit.isdigit() else memory


def swap_memory() -> int:
    """Bytes of swap; 0 where the kernel does not say."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return 0
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("SwapTotal:")]
    return sum(sizes)


_FLOATS = frozenset(("F64", "F32", "F16", "BF16"))

_LONGEST_HEADER = 100_000_000
"""Bytes; the limit that the safetensors library sets."""


@dataclass(frozen=True)
class StoredWeights:
    """The weights that an engine will load.

    ``dtype`` is what the configuration says of them. Where they are not ``quantized``, the engine converts their
    ``count`` to the dtype that it is asked for; otherwise it loads the ``size`` in bytes as it is.
    """

    count: int
    size: int
    dtype: str | None
    quantized: bool
    architecture: Architecture | None


def stored_weights(model: str) -> StoredWeights | None:
    """Size up the weights of a folder, or of a hub id that the registry knows; None where that cannot be said."""
    if Path(model).is_dir():
        return _of_folder(Path(model))
    known = next((each for each in load_models().values() if each.hub == model), None)
    if known is None:
        return None
    quantized = WEIGHT_BITS[known.dtype] < 16
    architecture = known.architecture
    return StoredWeights(
        architecture.parameters, weight_bytes(architecture, known.dtype), known.dtype, quantized, architecture
    )


def architecture_of(model: str) -> Architecture | None:
    """Return the architecture of a folder, from its config.json alone, or of a hub id that the registry knows."""
    if not Path(model).is_dir():
        return next((each.architecture for each in load_models().values() if each.hub == model), None)
    try:
        config = json.loads((Path(model) / "config.json").read_text())
        if not config["architectures"][0].endswith("ForCausalLM"):
            return None
        return _architecture(Path(model).name, config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def short_dtype(value: Any) -> str | None:
    """Return the short name of a dtype as engines take it (``torch.bfloat16``, too); None for auto and the unknown."""
    try:
        return None if value is None else dtype_name(str(value).removeprefix("torch."))
    except UsageError:
        return None


def _of_folder(folder: Path) -> StoredWeights | None:
    try:
        config = json.loads((folder / "config.json").read_text())
        # Other classes may leave a part of the checkpoint out, such as a vision tower.
        if not config["architectures"][0].endswith("ForCausalLM"):
            return None
        tied, layers = bool(config.get("tie_word_embeddings")), config.get("num_hidden_layers")
        quantized = bool(config.get("quantization_config"))
        count = size = 0
        for name, kind, elements, length in _tensors(folder):
            if (tied and name == "lm_head.weight") or _is_beyond(name, layers):
                continue
            quantized = quantized or kind not in _FLOATS
            count += elements
            size += length
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
    dtype = short_dtype(config.get("dtype") or config.get("torch_dtype"))
    return StoredWeights(count, size, dtype, quantized, _architecture(folder.name, config))


def _tensors(folder: Path) -> Iterator[tuple[str, str, int, int]]:
    """Name, dtype, elements and bytes of each tensor, from the headers of the safetensors files."""
    index = folder / "model.safetensors.index.json"
    files = {"model.safetensors"}
    if index.exists():
        files = set(json.loads(index.read_text())["weight_map"].values())
    for file in sorted(files):
        with (folder / file).open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > _LONGEST_HEADER:
                raise ValueError(f"{file}: no safetensors file")
            header = json.loads(stream.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                yield name, entry["dtype"], prod(entry["shape"]), end - start


def _is_beyond(name: str, layers: int | None) -> bool:
    """Tell whether a tensor is of a layer after the model's last: DeepSeek's, for speculative decoding only."""
    number = name.removeprefix("model.layers.").partition(".")[0]
    return layers is not None and number.isdigit() and int(number) >= layers


def _architecture(name: str, config: Mapping[str, Any]) -> Architecture | None:
    try:
        return Architecture(name, {field: value for field, value in config.items() if value is not None})
    except UsageError:
        return None


_SHRUNK_TO: Mapping[str, float] = {
    "fp8": 1,
    "fbgemm_fp8": 1,
    "ptpc_fp8": 1,
    "fp8_per_tensor": 1,
    "fp8_per_block": 1,
    "fp8_per_channel": 1,
    "mxfp8": 1,
    "experts_int8": 1,
    "int8_per_channel_weight_only": 1,
    "bitsandbytes": 0.5,
}
"""Bytes that vLLM's quantization on load leaves of a weight at best."""

_USUAL: Mapping[str, tuple[Any, ...]] = {
    "hf_overrides": (None, {}),
    "cpu_offload_gb": (None, 0),
    "offload_backend": (None, "auto"),
    "offload_group_size": (None, 0),
    "quantization_config": (None,),
    "load_format": (None, "auto", "safetensors", "dummy"),
    "distributed_executor_backend": (None, "mp", "uni"),
    "data_parallel_size": (None, 1),
    "nnodes": (None, 1),
}
"""Options of vLLM that can make another model, or other and more devices of it, and the values that do not."""


def refuse_vllm(model: str, options: Mapping[str, Any], devices: Sequence[GpuMemory] | None = None) -> None:
    """Raise EngineError where ``vllm.LLM(model, **options)`` surely finds no room on its GPUs.

    ``devices`` are those that CUDA sees (default: NVML's word, where vLLM runs on CUDA).
    """
    if any(options.get(name) not in usual for name, usual in _USUAL.items()):
        return
    sizes = [options.get(f"{kind}_parallel_size") or 1 for kind in ("tensor", "pipeline")]
    if not all(isinstance(size, int) for size in sizes):
        return  # vLLM will say so
    count = prod(sizes)
    used = (_vllm_gpus() if devices is None else devices)[:count]
    weights = stored_weights(model) if len(used) == count else None
    if weights is None:
        return
    method = options.get("quantization")
    if method is not None and not weights.quantized:
        if method not in _SHRUNK_TO:
            return
        size, what = int(weights.count * _SHRUNK_TO[method]), f" with quantization={method!r}"
    else:
        # vLLM's "auto" loads float32 in 16 bits.
        auto = "bf16" if weights.dtype in (None, "fp32") else weights.dtype
        size, what = _loaded(weights, short_dtype(options.get("dtype")) or auto)
    memory = min(gpu.total for gpu in used)
    ways = [f"tensor_parallel_size={_spread(weights, size, memory)}"]
    if method is None and not weights.quantized and size <= 2 * memory * count:
        ways.append('quantization="fp8"')
    _refuse(model, size, what, used, ways)


def _vllm_gpus() -> Sequence[GpuMemory]:
    from vllm.platforms import current_platform

    return gpus() if current_platform.is_cuda() else ()


def refuse_transformers(
    model: str, dtype: Any, device: str, devices: Sequence[GpuMemory] | None = None
) -> None:
    """Raise EngineError where transformers surely finds no room on ``device`` (``cuda``, ``cuda:1``, ``cpu``)."""
    kind, _, index = device.partition(":")
    weights = stored_weights(model)
    if weights is None:
        return
    size, what = _loaded(weights, short_dtype(dtype) or weights.dtype)
    if kind == "cpu":
        _refuse(model, size, what, [GpuMemory(-1, "", system_memory() + swap_memory())], [])
    elif kind == "cuda":
        at = int(index or 0)
        used = (gpus() if devices is None else devices)[at : at + 1]
        ways = [f"vLLM with tensor_parallel_size={_spread(weights, size, gpu.total)}" for gpu in used]
        _refuse(model, size, what, used, ways)


def _loaded(weights: StoredWeights, dtype: str | None) -> tuple[int, str]:
    """Bytes of the weights once they are loaded in ``dtype`` (None: as stored), and how to say it."""
    if weights.quantized or dtype is None:
        return weights.size, " as stored"
    return int(weights.count * WEIGHT_BITS[dtype] / 8), f" in {dtype}"


def _spread(weights: StoredWeights, size: int, memory: int) -> int:
    """Find the fewest GPUs that have the memory and that the architecture, where it is known, divides by."""
    least = -(-size // memory)
    if weights.architecture is None:
        return least
    return next((count for count in parallel_sizes(weights.architecture) if count >= least), least)


def _refuse(model: str, size: int, what: str, used: Sequence[GpuMemory], ways: list[str]) -> None:
    memory = sum(gpu.total for gpu in used)
    if not used or size <= memory:
        return
    if len(used) > 1:
        numbers = ", ".join(str(gpu.index) for gpu in used)
        where = f"GPUs {numbers} ({used[0].name}) have {_gib(memory)} together"
    elif used[0].name:
        where = f"GPU {used[0].index} ({used[0].name}) has {_gib(memory)}"
    else:
        where = f"this machine has {_gib(memory)} of memory and swap"
    advice = ", ".join([*ways, "or a smaller model"]) if ways else "a smaller model"
    raise EngineError(
        f"{model_name(model)} needs {_gib(size)} for its weights{what} alone, and {where}: "
        f"{_gib(size - memory)} too little; use {advice}"
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
