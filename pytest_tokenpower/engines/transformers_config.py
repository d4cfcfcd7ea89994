"""What a transformers model says of itself, duck-typed; imports nothing."""

from __future__ import annotations

from typing import Any

from pytest_tokenpower.engines.checkpoint import model_name, weights_name, weights_note
from pytest_tokenpower.engines.protocol import EngineIdentity, Fact


def identity_from_model(model: Any, version: str, **facts: Fact) -> EngineIdentity:
    """Identity of a ``PreTrainedModel`` from its own configuration and parameters; ``facts`` are added.

    The key-value cache is taken to be of the model's dtype, which is what transformers' own caches are.
    """
    config = model.config
    name = str(getattr(config, "name_or_path", "") or type(model).__name__)
    dtype = str(model.dtype).removeprefix("torch.")
    axes: dict[str, Fact] = {
        "dtype": dtype,
        "quantization": _quantization(config),
        "kv_cache_dtype": dtype,
        "tensor_parallel": int(getattr(model, "_tp_size", None) or 1),
        "pipeline_parallel": 1,
        "weights": weights_name(name, getattr(config, "_commit_hash", None)),
    }
    found: dict[str, Fact] = {
        "architecture": next(iter(getattr(config, "architectures", None) or []), type(model).__name__),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "attention": getattr(config, "_attn_implementation", None),
        "device": str(model.device).partition(":")[0],
        "weights_note": weights_note(name),
    }
    known = {name: value for name, value in {**found, **facts}.items() if value is not None}
    return EngineIdentity("transformers", version, model_name(name), axes, known)


def _quantization(config: Any) -> str | None:
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return None
    if isinstance(quantization, dict):
        method = quantization.get("quant_method")
    else:
        method = getattr(quantization, "quant_method", None)
    return str(getattr(method, "value", method) or type(quantization).__name__)
