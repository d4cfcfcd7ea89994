"""pytest-tokenpower: a pytest plugin that fails the build when each LLM token costs more energy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_tokenpower._version import __version__

if TYPE_CHECKING:
    from pytest_tokenpower.core.tokens import TokenCount
    from pytest_tokenpower.runner.fixture import Energy

__all__ = ["Energy", "TokenCount", "__version__"]

_HOMES = {"Energy": "pytest_tokenpower.runner.fixture", "TokenCount": "pytest_tokenpower.core.tokens"}


def __getattr__(name: str) -> object:
    # Every pytest run imports this package; what is public is imported by the tests that use it.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
