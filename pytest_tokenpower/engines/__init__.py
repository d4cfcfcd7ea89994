"""Inference engines behind one protocol: what adapters of one's own implement, and how a test names an engine.

Each adapter's own module is imported only when its engine is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_tokenpower.core.windows import Latency
    from pytest_tokenpower.engines.protocol import (
        Engine,
        EngineIdentity,
        Generation,
        Serving,
        Step,
        Timeouts,
    )
    from pytest_tokenpower.engines.spec import EngineSpec

__all__ = ["Engine", "EngineIdentity", "EngineSpec", "Generation", "Latency", "Serving", "Step", "Timeouts"]


def __getattr__(name: str) -> object:
    # Every pytest run imports this package for the registry; the names are imported by who uses them.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = {"EngineSpec": "engines.spec", "Latency": "core.windows"}.get(name, "engines.protocol")
    return getattr(import_module(f"pytest_tokenpower.{home}"), name)
