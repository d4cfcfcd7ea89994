"""Says which engine stands behind a callable, for the key of code that calls its own engine. Imports no engine."""

from __future__ import annotations

import functools
import sys
from typing import Any

from pytest_tokenpower.engines.protocol import EngineIdentity
from pytest_tokenpower.engines.transformers import identity_from_model
from pytest_tokenpower.engines.vllm.config import identity_from_config


def describe_callable(fn: object) -> EngineIdentity | None:
    """The engine whose method ``fn`` is, read from its own configuration; None for anything else. Never raises.

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
