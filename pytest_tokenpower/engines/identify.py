"""Identity of vLLM and of transformers from their own configuration, and of the engine behind a callable.

Imports no engine. What a version of one does not have is left out.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any

from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.engines._adapter import as_fact, identity_of
from pytest_tokenpower.engines.protocol import EngineIdentity


def describe_callable(fn: object) -> EngineIdentity | None:
    """Identify the engine whose method ``fn`` is, by its own configuration; None for anything else. Never raises.

    Known are methods of ``vllm.LLM``, ``AsyncLLM`` and ``LLMEngine``, of a transformers model or pipeline, and of
    any object with an ``identity`` of ours; also under ``functools.partial``.
    """
    try:
        while isinstance(fn, functools.partial):
            fn = fn.func
        return _describe(getattr(fn, "__self__", fn))
    except (
        Exception
    ):  # the configuration of an engine that we do not know: no identity is better than no test
        return None


def _describe(owner: Any) -> EngineIdentity | None:
    if owner is None or isinstance(owner, type):
        return None
    identity = getattr(owner, "identity", None)
    if isinstance(identity, EngineIdentity):
        return identity
    modules = {base.__module__.partition(".")[0] for base in type(owner).__mro__}
    if "vllm" in modules:
        engine = getattr(owner, "llm_engine", owner)
        return identity_from_config(engine.vllm_config, _version("vllm"))
    if "transformers" in modules:
        model = owner if hasattr(owner, "config") and hasattr(owner, "parameters") else owner.model
        return identity_from_model(model, _version("transformers"))
    return None


def _version(package: str) -> str:
    # An instance of its class exists, so that the package is imported.
    return str(sys.modules[package].__version__)


def identity_from_model(model: Any, version: str, **facts: Fact) -> EngineIdentity:
    """Identity of a ``PreTrainedModel`` from its own configuration and parameters; ``facts`` are added.

    The key-value cache is taken to be of the model's dtype, which is what transformers' own caches are.
    """
    config = model.config
    name = str(getattr(config, "name_or_path", "") or type(model).__name__)
    dtype = str(model.dtype).removeprefix("torch.")
    found = {
        "architecture": next(iter(getattr(config, "architectures", None) or []), type(model).__name__),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "attention": getattr(config, "_attn_implementation", None),
        "device": str(model.device).partition(":")[0],
    }
    return identity_of(
        "transformers",
        version,
        name,
        dtype=dtype,
        quantization=_quantization(config),
        kv_cache_dtype=dtype,
        tensor_parallel=int(getattr(model, "_tp_size", None) or 1),
        revision=getattr(config, "_commit_hash", None),
        facts={**found, **facts},
    )


def _quantization(config: Any) -> str | None:
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return None
    if isinstance(quantization, dict):
        method = quantization.get("quant_method")
    else:
        method = getattr(quantization, "quant_method", None)
    return str(getattr(method, "value", method) or type(quantization).__name__)


def identity_from_config(config: Any, version: str) -> EngineIdentity:
    """Identity of the engine that runs under this ``VllmConfig``; what a version does not have is left out."""
    revision = _get(config, "model_config.revision")
    return identity_of(
        "vllm",
        version,
        str(_get(config, "model_config.model")),
        dtype=as_fact(_get(config, "model_config.dtype")),
        quantization=as_fact(_get(config, "model_config.quantization")),
        kv_cache_dtype=as_fact(_get(config, "cache_config.cache_dtype")),
        tensor_parallel=_get(config, "parallel_config.tensor_parallel_size", 1),
        pipeline_parallel=_get(config, "parallel_config.pipeline_parallel_size", 1),
        revision=revision and str(revision),
        dummy=as_fact(_get(config, "load_config.load_format")) == "dummy",
        facts={
            **{name: _get(config, path) for name, path in _VLLM_FACTS.items()},
            "attention": attention_backend(config),
        },
    )


_VLLM_FACTS: Mapping[str, str] = {
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
    """Name the backend that the layers run, where they are in this process; else the one asked for; else None."""
    layers = _get(config, "compilation_config.static_forward_context")
    for layer in layers.values() if isinstance(layers, Mapping) else ():
        try:
            return str(layer.get_attn_backend().get_name())
        except (AttributeError, NotImplementedError, TypeError):
            continue
    return None if (asked := as_fact(_get(config, "attention_config.backend"))) is None else str(asked)


def _get(config: Any, path: str, default: Any = None) -> Any:
    for name in path.split("."):
        config = getattr(config, name, None)
        if config is None:
            return default
    return config
