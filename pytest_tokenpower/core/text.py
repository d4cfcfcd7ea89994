"""Small pieces of text that several reports need."""

from __future__ import annotations


def plural(number: int, what: str) -> str:
    """The number with its noun: "1 run", "2 runs"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def signed(share: float) -> str:
    """A change for people: +6.1 %, and never -0.0 %."""
    return f"{round(100 * share, 1) + 0.0:+.1f} %"
