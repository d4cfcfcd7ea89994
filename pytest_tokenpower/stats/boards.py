"""Boards of one model: how much they differ, and what a piece of fixed work foretells of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

MATMUL, MEMORY = "matmul", "memory"
FORETELLING = (MATMUL, MEMORY)
"""The pieces of fixed work whose mean foretells a board's J/token best: over four H100s 1.6 % of spread become 0.2 %
(docs/results/h100-boards.md). Taken as read at their usual temperatures: reduced to one temperature the matmul at the
power limit loses its worth."""


@dataclass(frozen=True)
class Calibration:
    """A board's fixed work: ``log_joules`` is the mean ln(J per piece), ``stderr`` its standard error."""

    log_joules: float
    stderr: float


def calibration(joules: Mapping[str, tuple[float, float]]) -> Calibration:
    """Take a board's calibration from its fixed work.

    Args:
        joules: Joules per piece and their standard error, of the matmul at the power limit and of the GEMMs that
            memory bounds. Other pieces are passed over.

    Raises:
        ValueError: One of the two is missing or not positive.
    """
    missing = [name for name in FORETELLING if name not in joules or not joules[name][0] > 0]
    if missing:
        raise ValueError(f"a calibration needs the joules of {' and '.join(missing)}")
    values = [joules[name] for name in FORETELLING]
    return Calibration(
        log_joules=sum(math.log(value) for value, _ in values) / len(values),
        stderr=math.sqrt(sum((error / value) ** 2 for value, error in values)) / len(values),
    )
