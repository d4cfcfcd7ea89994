"""Inference engines behind one protocol: what adapters of one's own implement, and how a test names an engine.

Each adapter's own module is imported only when its engine is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pytest_tokenpower.core.windows import Latency
from pytest_tokenpower.engines.protocol import Engine, EngineIdentity, Generation, Serving, Step, Timeouts

if TYPE_CHECKING:
    from pytest_tokenpower.engines.spec import EngineSpec

__all__ = ["Engine", "EngineIdentity", "EngineSpec", "Generation", "Latency", "Serving", "Step", "Timeouts"]


def __getattr__(name: str) -> object:
    # Every pytest run imports this package for the registry; what starts engines is imported by tests that use it.
    if name == "EngineSpec":
        return import_module("pytest_tokenpower.engines.spec").EngineSpec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
