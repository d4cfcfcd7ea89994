"""pytest-tokenpower: a pytest plugin that fails the build when each LLM token costs more energy."""

from pytest_tokenpower.tokens import TokenCount

__all__ = ["TokenCount", "__version__"]
__version__ = "0.1.0"
