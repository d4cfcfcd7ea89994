"""Memory that a model needs: weights by dtype, key-value cache by token, and the fewest GPUs that hold them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.models.architecture import WEIGHT_BITS, Architecture, dtype_name

GIB = 1 << 30

RESERVE = 0.1
"""Share of a GPU's memory that is kept for activations, graphs and the CUDA context; vLLM's own default is near."""

CONTEXT_TOKENS = 8192
"""Tokens of key-value cache that have to fit beside the weights."""


_QUANTIZED: Mapping[str, str] = {
    **dict.fromkeys(
        ("fp8", "fp8_per_tensor", "fp8_per_block", "fp8_per_channel", "fbgemm_fp8", "ptpc_fp8"), "fp8"
    ),
    **dict.fromkeys(("modelopt", "mxfp8", "w8a8_fp8"), "fp8"),
    **dict.fromkeys(("int8", "experts_int8", "w8a8_int8", "torchao", "bitsandbytes"), "int8"),
    **dict.fromkeys(("int4", "nf4", "awq", "awq_marlin", "gptq", "gptq_marlin"), "int4"),
    "mxfp4": "mxfp4",
}


def weights_of(quantization: str | None, dtype: str | None, *, experts: bool) -> str:
    """Return the dtype in which an engine's settings hold the weights, roughly.

    Raises UsageError for a setting that is not known.
    """
    if quantization in (None, "none"):
        return "bf16" if dtype in (None, "auto") else dtype_name(str(dtype))
    if quantization not in _QUANTIZED:
        raise UsageError(
            f"quantization {quantization!r} is not known: use one of none, {', '.join(_QUANTIZED)}"
        )
    held = _QUANTIZED[quantization]
    return held if held != "mxfp4" or experts else "int4"


def cache_of(kv_cache_dtype: str | None) -> str:
    """Return the same for the key-value cache, such as ``fp8`` of ``fp8_e4m3``."""
    name = re.sub(r"^fp8_(e4m3|e5m2|inc|ds_mla)$", "fp8", kv_cache_dtype or "auto")
    return "bf16" if name == "auto" else _cache_dtype(name)


def weight_bytes(architecture: Architecture, dtype: str = "bf16") -> int:
    """Bytes of the weights in ``dtype``.

    Quantization (fp8, int8, int4) is of the layers' matrices, mxfp4 of the experts alone as in gpt-oss; all else
    stays in bf16. Raises UsageError for an unknown dtype, and for mxfp4 where there are no experts.
    """
    dtype = dtype_name(dtype)
    bits = WEIGHT_BITS[dtype]
    if bits >= 16:
        return int(architecture.parameters * bits) // 8
    small = architecture.sizes["expert"] + (0 if dtype == "mxfp4" else architecture.sizes["matrix"])
    if not small:
        raise UsageError(f"{architecture.name} has no experts: mxfp4 is for the experts of a mixture")
    return int(small * bits / 8) + 2 * (architecture.parameters - small)


def kv_bytes_per_token(architecture: Architecture, dtype: str = "bf16") -> int:
    """Bytes that one more token adds to the key-value cache, in layers without a sliding window and with one alike.

    Keys and values of each key-value head (arXiv 2305.13245); with latent attention the compressed vector and the
    rotary key, as vLLM keeps them (transformers keeps expanded keys and values).
    """
    return len(architecture.shape.windows) * _layer_bytes(architecture, dtype)


def kv_bytes(architecture: Architecture, tokens: int, dtype: str = "bf16") -> int:
    """Bytes of the key-value cache of one sequence of ``tokens``; a layer with a window keeps no more than that."""
    kept = sum(min(tokens, window or tokens) for window in architecture.shape.windows)
    return kept * _layer_bytes(architecture, dtype)


def _layer_bytes(architecture: Architecture, dtype: str) -> int:
    bits = WEIGHT_BITS[_cache_dtype(dtype)]
    shape = architecture.shape
    values = shape.latent.cached if shape.latent is not None else 2 * shape.kv_heads * shape.head_dim
    return int(values * bits) // 8


def _cache_dtype(dtype: str) -> str:
    name = dtype_name(dtype)
    if WEIGHT_BITS[name] not in (8, 16, 32):
        raise UsageError(f"a key-value cache in {dtype}: use one of fp32, bf16, fp16, fp8, int8")
    return name


def parallel_sizes(architecture: Architecture) -> list[int]:
    """Numbers of GPUs that tensor parallelism can spread the model over, smallest first.

    The heads and the MLP's width must divide; key-value heads divide too, or are repeated where there are fewer of
    them than GPUs (as in vLLM and Megatron).
    """
    shape = architecture.shape
    widths = [shape.width if shape.experts is None else shape.experts.width]
    return [
        size
        for size in range(1, shape.heads + 1)
        if shape.heads % size == 0
        and (shape.latent is not None or shape.kv_heads % size == 0 or size % shape.kv_heads == 0)
        and all(width % size == 0 for width in widths)
    ]


def needed_bytes(architecture: Architecture, gpus: int, dtype: str, other: int = 0) -> int:
    """Bytes of weights and cache on each of ``gpus``; ``other`` are weights outside of the decoder, in bf16."""
    weights = weight_bytes(architecture, dtype) + 2 * other
    shape = architecture.shape
    # A latent cache is whole on every GPU; a key-value head is on one or, where there are fewer heads, on several.
    share = 1 if shape.latent is not None else max(1 / gpus, 1 / shape.kv_heads)
    return -(-weights // gpus) + int(kv_bytes(architecture, CONTEXT_TOKENS) * share)


def minimum_gpus(architecture: Architecture, memory: int, dtype: str, other: int = 0) -> int | None:
    """Find the fewest GPUs of ``memory`` bytes that hold weights and cache under tensor parallelism.

    RESERVE of each is kept free. None where no size that the architecture divides by is enough.
    """
    room = memory * (1 - RESERVE)
    sizes = parallel_sizes(architecture)
    return next((size for size in sizes if needed_bytes(architecture, size, dtype, other) <= room), None)
