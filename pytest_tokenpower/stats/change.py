"""A change with its uncertainty: a log ratio that has to stand on more than one account of its error."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import ndtr, ndtri, stdtr, stdtrit

POWER_80 = 0.8416212335729143
"""The normal quantile of 80 %."""

MOST_DF = 1e6


@dataclass(frozen=True)
class StudentError:
    """A standard error and the degrees of freedom that it is known on.

    ``ceiling`` is a normal standard error that is surely large enough: however few the degrees of freedom, the truth is
    no farther away than it says.
    """

    stderr: float
    df: float
    ceiling: float = math.inf

    def margin(self, tail: float) -> float:
        """How far the truth is with probability ``tail`` at most, on one side."""
        own = float(stdtrit(min(self.df, MOST_DF), 1 - tail)) * self.stderr
        return min(own, -float(ndtri(tail)) * self.ceiling) if tail < 0.5 else own

    def upper_tail(self, distance: float) -> float:
        """Return the one-sided p of an estimate so far above what it is held against."""
        if self.stderr == 0:
            return 0.5 if distance == 0 else float(distance < 0)
        own = float(stdtr(min(self.df, MOST_DF), -distance / self.stderr))
        return min(own, float(ndtr(-distance / self.ceiling))) if distance > 0 else own


@dataclass(frozen=True)
class Change:
    """ln(new / baseline), or a difference of shares, with its uncertainty.

    ``errors`` are accounts of the same error from different evidence (what is believed beforehand together with the
    runs, and the runs alone). Whatever is claimed has to hold by each of them: p is the largest, an interval the
    widest. A test that rejects only where every one of them rejects keeps the level of the one that is right (an
    intersection-union test; Berger 1982, Technometrics 24:295).
    """

    delta: float
    errors: tuple[StudentError, ...]

    @property
    def change(self) -> float:
        """The change as a fraction: 0.02 is 2 % more."""
        return math.expm1(self.delta)

    @property
    def stderr(self) -> float:
        """The larger standard error, for display and for weighing one reading against another."""
        return max(error.stderr for error in self.errors)

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
        return max(error.margin(tail) for error in self.errors)

    def p_above(self, reference: float = 0.0) -> float:
        """One-sided p of "at most ``reference``": small where the new code surely takes more."""
        return max(error.upper_tail(self.delta - reference) for error in self.errors)

    def p_below(self, reference: float = 0.0) -> float:
        """One-sided p of "at least ``reference``": small where the new code surely takes less."""
        return max(error.upper_tail(reference - self.delta) for error in self.errors)
