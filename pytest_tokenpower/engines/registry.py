"""Engines by name: where each adapter is, imported when it is asked for, and those that others add."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from pytest_tokenpower.errors import EngineError, UsageError

if TYPE_CHECKING:
    from pytest_tokenpower.engines.protocol import Engine

Source = Callable[[], Mapping[str, str]]

_sources: list[Source] = []


def register_source(source: Source) -> Callable[[], None]:
    """Have :func:`plugin_engines` ask ``source``, the last one that was named here; returns what takes it back."""
    _sources.append(source)
    return lambda: _sources.remove(source)


def plugin_engines() -> Mapping[str, str]:
    """``module:name`` of each engine that is not ours, by name; raises UsageError where what was added is wrong."""
    return _sources[-1]() if _sources else {}


Factory = Callable[..., "Engine"]
"""``factory(model, **options)``: an engine with its model loaded; raises EngineError or UsageError."""

ENGINES: Mapping[str, str] = {
    "vllm": "pytest_tokenpower.engines.vllm.offline:VllmEngine",
    "transformers": "pytest_tokenpower.engines.transformers:TransformersEngine",
    "vllm-async": "pytest_tokenpower.engines.vllm.async_engine:VllmAsyncEngine",
    "openai": "pytest_tokenpower.engines.openai.engine:OpenAIEngine",
    "vllm-server": "pytest_tokenpower.engines.vllm.server:VllmServer",
    "sglang": "pytest_tokenpower.engines.sglang:SglangEngine",
    "tensorrt-llm": "pytest_tokenpower.engines.tensorrt_llm:TensorrtLlmEngine",
    "deepspeed-mii": "pytest_tokenpower.engines.deepspeed_mii:MiiEngine",
    "simulated": "pytest_tokenpower.engines.simulated:SimulatedEngine",
}
"""The adapters of this package, as ``module:name`` of their factory."""

SERVERS = frozenset({"openai", "vllm-server"})
"""Adapters whose engine is another process anyway, which they speak to over HTTP: one more around them adds nothing.
Their factories take ``timeouts`` and ``env`` themselves."""

PACKAGES: Mapping[str, str] = {
    **dict.fromkeys(("vllm", "vllm-async", "vllm-server"), "vllm"),
    "transformers": "transformers",
    "sglang": "sglang",
    "tensorrt-llm": "tensorrt_llm",
    "deepspeed-mii": "mii",
}
"""The package that an adapter needs in its own process."""

WHOLE_BATCHES = frozenset({"transformers", "tensorrt-llm", "deepspeed-mii"})
"""Adapters whose requests cannot come one after the other (no ``serve`` method)."""

_VLLM = {
    "dtype": "dtype",
    "quantization": "quantization",
    "kv_cache_dtype": "kv_cache_dtype",
    "tensor_parallel": "tensor_parallel_size",
    "pipeline_parallel": "pipeline_parallel_size",
}

OPTION_OF: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(("vllm", "vllm-async", "vllm-server"), _VLLM),
    "transformers": {"dtype": "dtype"},
    "sglang": {**_VLLM, "tensor_parallel": "tp_size", "pipeline_parallel": "pp_size"},
    "tensorrt-llm": {name: _VLLM[name] for name in ("dtype", "tensor_parallel", "pipeline_parallel")},
    "deepspeed-mii": {"tensor_parallel": "tensor_parallel"},
    "openai": {},
}
"""The option of an adapter that sets an axis of its identity; one's own engine takes it by the axis's name."""


def is_reference(text: object) -> bool:
    """Tell whether it reads ``module:name``."""
    return isinstance(text, str) and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text) is not None


def reference(engine: str) -> str:
    """``module:name`` of an engine's factory: of one of ENGINES, of one that a plugin adds, or as it is given.

    Imports nothing. Raises UsageError for anything else, and where a plugin adds what it may not.
    """
    known = {**ENGINES, **plugin_engines()}
    if engine in known:
        return known[engine]
    if is_reference(engine):
        return engine
    raise UsageError(
        f"engine {engine!r}: use one of {', '.join(known)}, or your own as 'module:name' of what is called with the "
        "model and the options"
    )


def factory(engine: str, called: str | None = None) -> Factory:
    """Import the factory of an engine; raises UsageError for an unknown one, EngineError if it does not import.

    ``called`` is the engine's name where ``engine`` is what that stands for.
    """
    module, _, name = reference(engine).partition(":")
    try:
        return cast(Factory, getattr(importlib.import_module(module), name))
    except (ImportError, AttributeError) as error:
        which = f"{called!r}, {module}:{name}," if called not in (None, engine) else repr(engine)
        raise EngineError(f"engine {which} cannot be imported: {error}") from error


def start(engine: str, model: str, options: Mapping[str, Any], *, called: str | None = None) -> Engine:
    """Start an engine with its model loaded; ``called`` as for :func:`factory`.

    Raises UsageError for an option that its factory does not take and for a factory that gives no engine, EngineError
    where it does not load. What else the factory raises goes through.
    """
    # Every pytest run imports this module.
    from pytest_tokenpower.engines.protocol import Engine

    make, called = factory(engine, called), called or engine
    _check_options(make, model, options, called)
    made: object = make(model, **options)
    if not isinstance(made, Engine):
        raise UsageError(
            f"engine {called!r}: its factory gives a {type(made).__name__}, and an engine has identity, device_ids, "
            "generate(batch) and close()"
        )
    return made


def _check_options(make: Factory, model: str, options: Mapping[str, Any], called: str) -> None:
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # it has none to look at
        return
    try:
        signature.bind(model, **options)
    except TypeError as error:
        known = [each.name for each in signature.parameters.values()][1:]
        raise UsageError(
            f"engine {called!r}: {error}; its options are {', '.join(known) or 'none'}"
        ) from None
