"""pytest-tokenpower: a pytest plugin that fails the build when each LLM token costs more energy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_tokenpower.core.tokens import TokenCount
    from pytest_tokenpower.engines import EngineSpec, Timeouts
    from pytest_tokenpower.runner.fixture import Energy
    from pytest_tokenpower.runner.result import Result
    from pytest_tokenpower.runner.script import measure
    from pytest_tokenpower.workloads import (
        AllAtOnce,
        Batch,
        Concurrency,
        FixedShape,
        GivenBatch,
        Poisson,
        PromptSet,
    )

__all__ = [
    "AllAtOnce",
    "Batch",
    "Concurrency",
    "Energy",
    "EngineSpec",
    "FixedShape",
    "GivenBatch",
    "Poisson",
    "PromptSet",
    "Result",
    "Timeouts",
    "TokenCount",
    "__version__",
    "measure",
]
__version__ = "0.1.0"

_HOMES = {
    "Energy": "runner.fixture",
    "Result": "runner.result",
    "measure": "runner.script",
    "TokenCount": "core.tokens",
    **dict.fromkeys(("EngineSpec", "Timeouts"), "engines"),
    **dict.fromkeys(
        ("AllAtOnce", "Batch", "Concurrency", "FixedShape", "GivenBatch", "Poisson", "PromptSet"), "workloads"
    ),
}


def __getattr__(name: str) -> object:
    # Every pytest run imports this package; what is public is imported by the tests that use it.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
