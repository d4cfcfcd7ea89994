"""Arrivals of a workload's requests: all at once, a fixed number at a time, or by chance."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import accumulate

from pytest_tokenpower.errors import UsageError


class Arrivals:
    """Requests are submitted in the order of the batch: request i at ``seconds(count)[i]`` after the start or later,
    and only while fewer than ``limit`` (None: any number) are unfinished.
    """

    @property
    def limit(self) -> int | None:
        """Largest number of unfinished requests; None: any."""
        return None

    def seconds(self, count: int) -> tuple[float, ...]:
        """Return the earliest time of each of so many requests, never falling, the first at 0."""
        return (0.0,) * count


@dataclass(frozen=True)
class AllAtOnce(Arrivals):
    """Every request at the start: offline batch inference."""


@dataclass(frozen=True)
class Concurrency(Arrivals):
    """``requests`` at a time: the next is submitted when one has finished, as a load test with so many users does."""

    requests: int

    def __post_init__(self) -> None:
        if isinstance(self.requests, bool) or not isinstance(self.requests, int) or self.requests < 1:
            raise UsageError(f"Concurrency(requests={self.requests!r}): must be an integer of at least 1")

    @property
    def limit(self) -> int:
        """Largest number of unfinished requests; None: any."""
        return self.requests


@dataclass(frozen=True)
class Poisson(Arrivals):
    """Arrivals by chance, so many ``per_second`` on average, the same in every round: drawn from ``seed``."""

    per_second: float
    seed: int = 0

    def __post_init__(self) -> None:
        number = isinstance(self.per_second, int | float) and not isinstance(self.per_second, bool)
        if not number or not 0 < self.per_second < math.inf:
            raise UsageError(f"Poisson(per_second={self.per_second!r}): must be a positive number")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise UsageError(f"Poisson(seed={self.seed!r}): must be an integer")

    def seconds(self, count: int) -> tuple[float, ...]:
        """Draw times at exponential distances with mean 1/per_second; Python keeps this sequence for all time."""
        draw = random.Random(self.seed).random
        waits = (-math.log1p(-draw()) / self.per_second for _ in range(count - 1))
        return tuple(accumulate(waits, initial=0.0))[:count]
