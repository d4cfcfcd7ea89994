"""A change with its uncertainty: a log ratio and its standard error, known on so many degrees of freedom."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import ndtr, ndtri, stdtr, stdtrit

POWER_80 = 0.8416212335729143
"""The normal quantile of 80 %."""

MOST_DF = 1e6


@dataclass(frozen=True)
class Change:
    """ln(new / baseline), or a difference of shares, with Student's distribution about it.

    ``least`` is a standard error that is known to be no larger than the true one, however alike a few runs are: what
    the rounds alone make of it, on ``least_df`` degrees of freedom. A claim has to hold by both, which keeps the level
    of the one that is right (an intersection-union test; Berger 1982, Technometrics 24:295). ``most`` is one that is
    surely no smaller: however few the degrees of freedom, the truth is no farther away than it says.
    ``parts`` are those that ``stderr`` is made of, each with its degrees of freedom: a claim has to hold by each alone,
    too, as a part that is well known makes the pooled degrees of freedom too many for one that is not.
    """

    delta: float
    stderr: float
    df: float
    least: float = 0.0
    most: float = math.inf
    least_df: float = MOST_DF
    parts: tuple[tuple[float, float], ...] = ()

    @property
    def change(self) -> float:
        """The change as a fraction: 0.02 is 2 % more."""
        return math.expm1(self.delta)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the two-sided interval on the scale of ``delta``."""
        half = self.margin((1 - level) / 2)
        return self.delta - half, self.delta + half

    def change_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the two-sided interval of the change, as fractions."""
        low, high = self.interval(level)
        return math.expm1(low), math.expm1(high)

    def margin(self, tail: float) -> float:
        """How far from its estimate the truth is with probability ``tail`` at most, on either one side."""
        errors = ((self.stderr, self.df), *self.parts)
        own = max(_quantile(tail, df) * stderr for stderr, df in errors)
        if tail < 0.5:
            own = min(own, _quantile(tail, MOST_DF) * self.most)
        return max(own, _quantile(tail, self.least_df) * self.least)

    def p_above(self, reference: float = 0.0) -> float:
        """One-sided p of "at most ``reference``": small where the new code surely takes more."""
        return self._upper_tail(self.delta - reference)

    def p_below(self, reference: float = 0.0) -> float:
        """One-sided p of "at least ``reference``": small where the new code surely takes less."""
        return self._upper_tail(reference - self.delta)

    def _upper_tail(self, distance: float) -> float:
        if self.stderr == self.least == 0:
            return 0.5 if distance == 0 else float(distance < 0)
        errors = ((self.stderr, self.df), *self.parts)
        own = max((_tail(distance / stderr, df) for stderr, df in errors if stderr), default=0.0)
        if distance > 0:
            own = min(own, _tail(distance / self.most, MOST_DF))
        return max(own, _tail(distance / self.least, self.least_df) if self.least else 0.0)


def _quantile(tail: float, df: float) -> float:
    return float(stdtrit(df, 1 - tail)) if df < MOST_DF else -float(ndtri(tail))


def _tail(value: float, df: float) -> float:
    return float(stdtr(df, -value)) if df < MOST_DF else float(ndtr(-value))
