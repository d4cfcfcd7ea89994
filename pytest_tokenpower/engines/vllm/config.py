"""What a vLLM engine says of itself: identity from its ``VllmConfig``, duck-typed over versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.engines.protocol import EngineIdentity
from pytest_tokenpower.models.checkpoint import model_name, weights_name, weights_note


def identity_from_config(config: Any, version: str) -> EngineIdentity:
    """Identity of the engine that runs under this ``VllmConfig``; what a version does not have is left out."""
    model = str(_get(config, "model_config.model"))
    dtype = _word(_get(config, "model_config.dtype"))
    load_format = _word(_get(config, "load_config.load_format"))
    kv_cache = _word(_get(config, "cache_config.cache_dtype"))
    revision = _get(config, "model_config.revision")
    axes: dict[str, Fact] = {
        "dtype": dtype,
        "quantization": _word(_get(config, "model_config.quantization")),
        "kv_cache_dtype": dtype if kv_cache == "auto" else kv_cache,
        "tensor_parallel": _get(config, "parallel_config.tensor_parallel_size", 1),
        "pipeline_parallel": _get(config, "parallel_config.pipeline_parallel_size", 1),
        "weights": "dummy" if load_format == "dummy" else weights_name(model, revision and str(revision)),
    }
    facts: dict[str, Fact] = {
        name: _word(value) for name, path in _FACTS.items() if (value := _get(config, path)) is not None
    }
    backend = attention_backend(config)
    if backend is not None:
        facts["attention"] = backend
    if load_format != "dummy" and (note := weights_note(model)) is not None:
        facts["weights_note"] = note
    return EngineIdentity("vllm", version, model_name(model), axes, facts)


_FACTS: Mapping[str, str] = {
    "enforce_eager": "model_config.enforce_eager",
    "max_model_len": "model_config.max_model_len",
    "max_num_seqs": "scheduler_config.max_num_seqs",
    "max_num_batched_tokens": "scheduler_config.max_num_batched_tokens",
    "async_scheduling": "scheduler_config.async_scheduling",
    "prefix_caching": "cache_config.enable_prefix_caching",
    "block_size": "cache_config.block_size",
    "compilation_mode": "compilation_config.mode",
    "cudagraph_mode": "compilation_config.cudagraph_mode",
    "data_parallel": "parallel_config.data_parallel_size",
    "expert_parallel": "parallel_config.enable_expert_parallel",
    "executor": "parallel_config.distributed_executor_backend",
    "device": "device_config.device_type",
    "load_format": "load_config.load_format",
    "speculative": "speculative_config.method",
}


def attention_backend(config: Any) -> str | None:
    """The backend that the layers run, where they are in this process; else the one asked for; else None."""
    layers = _get(config, "compilation_config.static_forward_context")
    for layer in layers.values() if isinstance(layers, Mapping) else ():
        try:
            return str(layer.get_attn_backend().get_name())
        except (AttributeError, NotImplementedError, TypeError):
            continue
    return None if (asked := _word(_get(config, "attention_config.backend"))) is None else str(asked)


def device_ids(config: Any) -> tuple[str, ...] | None:
    """NVML UUIDs of the GPUs that this engine's workers use; empty on a CPU, None where it cannot be known.

    Asks vLLM's platform, so that vLLM must be installed.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return ()
    if not current_platform.is_cuda():
        return None
    parallel = config.parallel_config
    count = parallel.tensor_parallel_size * parallel.pipeline_parallel_size * parallel.data_parallel_size
    if getattr(parallel, "nnodes", 1) > 1 or str(parallel.distributed_executor_backend) == "ray":
        return None  # placed by somebody else
    # vLLM asks NVML in the order of CUDA_VISIBLE_DEVICES, which creates no CUDA context here.
    return tuple(str(current_platform.get_device_uuid(index)) for index in range(count))


def _get(config: Any, path: str, default: Any = None) -> Any:
    for name in path.split("."):
        config = getattr(config, name, None)
        if config is None:
            return default
    return config


def _word(value: Any) -> Fact:
    """A configuration value as a plain fact: enumerations by name, torch dtypes without their module."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(getattr(value, "name", None), str):
        return str(value.name).lower()
    if isinstance(value, int):
        return value
    if isinstance(value, type):
        return value.__name__
    return str(value).removeprefix("torch.")
