"""What the joules of a test are divided by where it is compared: it says so itself, or it follows from its counts."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_tokenpower.core.types import Fact

PER: Mapping[str, str] = {
    "token": "token",
    "prompt_token": "prompt token",
    "total_token": "token of prompt and answer",
    "response": "response",
}
"""The denominators that a test can be compared by, each as people read it. "token" is a generated one."""


def followed(*, generated: int, prefilled: int) -> str:
    """Return the denominator that follows from what a test has done: work that generates nothing has another one."""
    return "token" if generated else "prompt_token" if prefilled else "response"


def denominator(key: Mapping[str, Fact]) -> str:
    """Return the denominator that a measurement with this key is compared by; only an unusual one is in the key."""
    named = str(key.get("denominator") or "token")
    return named if named in PER else "token"


def figure_per(per: str) -> str:
    """Return the name of the figure with this denominator."""
    return f"joules_per_{per}"


def unit_of(figure: str) -> str:
    """Return the unit of a figure with a denominator, as ``J/prompt token``."""
    return f"J/{PER[figure.removeprefix('joules_per_')]}"
