"""From a comparison to a verdict: which part decides, at which level, and what could have been told.

A change fails where it is more than the limit and significant at the level of the whole build. The *total* decides
wherever its noise floor is below the limit. Where it is not and the work's is smaller (a test bound by its host),
*work* decides beside it, with nine tenths of the level, the total keeping one. Which of the two cases it is
follows from the standard errors alone, never from the changes, so that it costs nothing (of normal runs the two are
independent).

- Work fails alone where it is more than the limit and significant, unless the pace is shown to have fallen and the
  total is not above the limit: a faster but hungrier GPU is a trade, and inconclusive.
- A rise of the total that work does not bear out is the pace's. A slower host fails only against a pace scatter that
  is known from three occasions on this host; else it is inconclusive, and alternating the variants would tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.special import ndtr

from pytest_tokenpower.core.settings import MOST_ALPHA
from pytest_tokenpower.stats.change import POWER_80, Change
from pytest_tokenpower.stats.comparison import FEWEST_PACE_OCCASIONS, Comparison
from pytest_tokenpower.stats.multiplicity import holm, repeated_p

Kind = Literal["regressed", "improved", "passed", "doubtful", "inconclusive"]
Part = Literal["total", "work"]
Reason = Literal["", "trade", "pace", "slope"]

WORK_SHARE = 0.9
"""The share of the level that work gets where it decides beside the total."""

DOUBT = 0.05
"""A p of the build between its level and this is doubtful: restarts may settle it."""

INTERVAL = 1 - 2 * MOST_ALPHA
"""The level of the printed intervals."""


@dataclass(frozen=True)
class Policy:
    """What a verdict is decided by.

    ``limit`` is the rise that fails, as a fraction: 0 for a ceiling, negative for a saving that is demanded
    (it fails where the saving is surely smaller). ``alpha`` is how often a build of identical code
    may fail, over all its ``family`` ways of failing; ``beta`` how often a change as large as the limit may pass, over
    all looks. ``look`` of ``looks`` says how often the comparison may be restarted, and which time this is.
    """

    limit: float
    alpha: float = 0.01
    beta: float = 0.05
    family: int = 1
    look: int = 1
    looks: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.limit) and self.limit > -1):
            raise ValueError(f"a limit of {self.limit!r} is none")
        if not 0 < self.alpha <= MOST_ALPHA or not 0 < self.beta < 0.5:
            raise ValueError(f"alpha must be above 0 and at most {MOST_ALPHA}, beta above 0 and below 0.5")
        if self.family < 1 or not 1 <= self.look <= self.looks:
            raise ValueError(f"look {self.look} of {self.looks} in a family of {self.family} is none")

    @property
    def theta(self) -> float:
        """The limit as a log ratio."""
        return math.log1p(self.limit)

    @property
    def level(self) -> float:
        """The level that a single p of this look has to be below for the test to fail by itself."""
        return _level(self.alpha / self.family, self.look, self.looks)

    @property
    def passing_tail(self) -> float:
        """The one-sided tail that "passed" leaves at each look.

        The looks spend beta evenly (Pocock 1977, Biometrika 64:191): most identical code passes at the first.
        """
        return _pocock(self.beta, self.looks)


@dataclass(frozen=True)
class Decision:
    """A verdict and what stands behind it.

    ``part`` is what decides: the total, or work beside it. ``p_failing`` and ``p_improved`` are one-sided, of all ways
    of failing (saving) of this comparison together, at what they are worth when all looks are counted; 1 where a
    condition other than p forbids it. At the level that decides, ``smallest_failing`` is the smallest change that
    fails, ``resolvable`` the one that fails in 80 % of runs, both as fractions; ``below_noise`` says that the limit is
    finer than the noise. ``doubtful``: its p over the family, as if there were no other look, is below 5 %.
    ``reason`` tells what kept a significant change from a verdict: a trade, a pace
    whose scatter is not known, or slopes within runs that contradict the waiting watts.
    """

    kind: Kind
    part: Part
    p_failing: float
    p_improved: float
    passes: bool
    smallest_failing: float
    resolvable: float
    below_noise: bool
    doubtful: bool = False
    reason: Reason = ""

    def settled(self, p_failing: float, p_improved: float, alpha: float, *, last: bool = True) -> Kind:
        """Return the verdict at p-values adjusted for the family; ``last``: no restart is to come."""
        if p_failing < alpha:
            return "regressed"
        if p_improved < alpha:
            return "improved"
        if self.passes:
            return "passed"
        return "doubtful" if self.doubtful and not last else "inconclusive"


def decide(comparison: Comparison, policy: Policy) -> Decision:
    """Decide one comparison with the first step of Holm's rule, so that no later test can take the verdict back.

    "Doubtful" is one that may still be restarted; the last look is inconclusive instead, its p says how doubtful.
    """
    total, work, pace = comparison.total, comparison.work, comparison.pace
    theta = policy.theta
    floor = total.margin(policy.level)
    beside = (
        work is not None
        and pace is not None
        and floor > theta
        and work.margin(WORK_SHARE * policy.level) < floor
    )
    reason: Reason = ""
    if beside and comparison.slope is not None and comparison.slope.agrees is False:
        beside, reason = False, "slope"
    beside = beside and theta >= 0
    up, down = _ways(total, theta)
    # Of a pace whose scatter is not known, only what work bears out counts.
    by_work = work if pace is not None and comparison.pace_occasions < FEWEST_PACE_OCCASIONS else None
    if by_work is not None and by_work.delta <= theta:
        if _sequential(up, policy) * policy.family < DOUBT:
            reason = "pace"
        up = 1.0
    if by_work is not None and by_work.delta >= -theta:
        down = 1.0
    if not beside or work is None or pace is None:
        return _decided(total, "total", up, down, _upper(total, policy) < theta, policy, 1.0, reason)
    work_up, work_down = _ways(work, theta)
    faster, slower = _moved(pace, comparison)
    if faster and total.delta <= theta:
        if _sequential(work_up, policy) * policy.family < DOUBT:
            reason = "trade"
        work_up = 1.0
    if slower and total.delta >= -theta:
        work_down = 1.0
    up = min(up / (1 - WORK_SHARE), work_up / WORK_SHARE, 1.0)
    down = min(down / (1 - WORK_SHARE), work_down / WORK_SHARE, 1.0)
    # A total that is shown to be above the limit is no pass, though neither part is shown to be the cause.
    risen = total.interval(INTERVAL)[0] > theta
    passes = _upper(work, policy) < theta and not slower and not risen and reason != "pace"
    return _decided(work, "work", up, down, passes, policy, WORK_SHARE, reason)


def settle(kinds: Sequence[str], p_failing: Sequence[float], alpha: float) -> tuple[bool, ...]:
    """Tell which comparisons of a build Holm's rule turns from inconclusive into failures.

    It is over all its ways of failing: comparisons, variants and ceilings alike. What :func:`decide` has failed stays
    failed; the later steps of the rule, which need every p, can only add. Nothing else becomes another verdict.
    """
    adjusted = holm(list(p_failing))
    return tuple(kind == "inconclusive" and float(p) < alpha for kind, p in zip(kinds, adjusted, strict=True))


def shown(change: Change) -> bool:
    """Whether a cause may be named: its own interval excludes that nothing happened."""
    low, high = change.interval(INTERVAL)
    return low > 0 or high < 0


def _ways(change: Change, theta: float) -> tuple[float, float]:
    """Return the p-values of failing and of saving; 1 where the change is not beyond the limit."""
    up = change.p_above(min(theta, 0.0)) if change.delta > theta else 1.0
    down = change.p_below() if theta >= 0 and change.delta < -theta else 1.0
    return up, down


def _moved(pace: Change, comparison: Comparison) -> tuple[bool, bool]:
    """Whether the pace is shown to have fallen or risen, which needs its scatter to be known."""
    if comparison.pace_occasions < FEWEST_PACE_OCCASIONS:
        return False, False
    low, high = pace.interval(INTERVAL)
    return high < 0, low > 0


def _decided(
    change: Change,
    part: Part,
    up: float,
    down: float,
    passes: bool,
    policy: Policy,
    share: float,
    reason: Reason,
) -> Decision:
    failing, improved = _sequential(up, policy), _sequential(down, policy)
    floor = max(policy.theta, change.margin(share * policy.level))
    found = Decision(
        kind="inconclusive",
        part=part,
        p_failing=failing,
        p_improved=improved,
        passes=passes,
        smallest_failing=math.expm1(floor),
        resolvable=math.expm1(floor + POWER_80 * max(change.stderr, change.least)),
        below_noise=policy.theta > 0 and floor > policy.theta,
        doubtful=policy.family * up < DOUBT and policy.family * failing >= policy.alpha,
        reason=reason,
    )
    kind = found.settled(
        min(1.0, policy.family * failing),
        min(1.0, policy.family * improved),
        policy.alpha,
        last=policy.look == policy.looks,
    )
    return replace(found, kind=kind)


def _upper(change: Change, policy: Policy) -> float:
    return change.delta + change.margin(policy.passing_tail)


def _sequential(p: float, policy: Policy) -> float:
    return p if policy.looks == 1 or p >= 1 else repeated_p(p, policy.look, policy.looks)


@lru_cache(maxsize=512)
def _level(alpha: float, look: int, looks: int) -> float:
    """Return the p at which ``repeated_p`` is ``alpha``."""
    if looks == 1:
        return alpha
    from scipy.optimize import brentq

    found = brentq(lambda z: repeated_p(float(ndtr(-z)), look, looks) - alpha, 0.0, 30.0)
    return float(ndtr(-found))


@lru_cache(maxsize=32)
def _pocock(beta: float, looks: int) -> float:
    """Return the level that each of ``looks`` equally spaced looks may spend so that all of them err by ``beta``."""
    if looks == 1:
        return beta
    from scipy.optimize import brentq

    return float(ndtr(-brentq(lambda c: _crossing_constant(c, looks) - beta, 0.0, 8.0)))


def _crossing_constant(boundary: float, looks: int) -> float:
    """Return the chance that the standardised sum of 1 to ``looks`` N(0, 1) steps is ever above ``boundary``."""
    grid, step = np.linspace(-10 * math.sqrt(looks), boundary * math.sqrt(looks), 1201, retstep=True)
    density = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    crossed = float(ndtr(-boundary))
    kernel = np.exp(-((grid[:, None] - grid) ** 2) / 2) / math.sqrt(2 * math.pi)
    for look in range(2, looks + 1):
        weights = np.where(grid <= boundary * math.sqrt(look - 1), density * step, 0.0)
        crossed += float((weights * ndtr(grid - boundary * math.sqrt(look))).sum())
        density = kernel @ weights
    return crossed
