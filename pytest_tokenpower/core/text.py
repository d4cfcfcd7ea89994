"""Small pieces of text that several reports need."""

from __future__ import annotations


def plural(number: int, what: str) -> str:
    """The number with its noun: "1 run", "2 runs"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def signed(share: float) -> str:
    """A change for people: +6.1 %, and never -0.0 %."""
    return f"{round(100 * share, 1) + 0.0:+.1f} %"


def percent(share: float, digits: int = 3) -> str:
    """A share for people: 3 %, 0.35 %."""
    return f"{100 * share:.{digits}g} %"


def short_test_name(test: str) -> str:
    """What people call a test: the part of its id after the file and class."""
    return test.rpartition("::")[2]
