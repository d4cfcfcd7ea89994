"""pytest-tokenpower: a pytest plugin that fails the build when each LLM token costs more energy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_tokenpower.tokens import TokenCount

if TYPE_CHECKING:
    from pytest_tokenpower.fixture import Energy

__all__ = ["Energy", "TokenCount", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # For annotations in tests: importing it up front would cost every pytest run numpy and scipy.
    if name == "Energy":
        from pytest_tokenpower.fixture import Energy

        return Energy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
