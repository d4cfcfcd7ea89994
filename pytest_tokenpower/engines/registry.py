"""Engines by name: where each adapter is, imported when it is asked for."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import cast

from pytest_tokenpower.engines.protocol import Engine
from pytest_tokenpower.errors import EngineError, UsageError

Factory = Callable[..., Engine]
"""``factory(model, **options)``: an engine with its model loaded; raises EngineError or UsageError."""

ENGINES: Mapping[str, str] = {
    "vllm": "pytest_tokenpower.engines.vllm:VllmEngine",
    "transformers": "pytest_tokenpower.engines.transformers:TransformersEngine",
}
"""The adapters of this package, as ``module:name`` of their factory."""


def reference(engine: str) -> str:
    """``module:name`` of an engine's factory: of one of ENGINES, or as it is given. Imports nothing.

    Raises UsageError for anything else.
    """
    if engine in ENGINES:
        return ENGINES[engine]
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", engine):
        return engine
    raise UsageError(
        f"engine {engine!r}: use one of {', '.join(ENGINES)}, or your own as 'module:name' of what is called with the "
        "model and the options"
    )


def factory(engine: str) -> Factory:
    """The factory of an engine, imported; raises UsageError for an unknown one, EngineError if it does not import."""
    module, _, name = reference(engine).partition(":")
    try:
        return cast(Factory, getattr(importlib.import_module(module), name))
    except (ImportError, AttributeError) as error:
        raise EngineError(f"engine {engine!r} cannot be imported: {error}") from error
