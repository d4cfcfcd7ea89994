"""The command run in this process, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Command = Callable[..., "Ended"]


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str
