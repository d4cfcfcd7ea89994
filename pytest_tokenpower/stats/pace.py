"""Pace: joules = active joules + waiting watts x seconds, so that a slower host is told from more work.

A board that waits for its host still draws power. A test that is bound by its host therefore scatters with the
host's speed, although the work of the GPU is the same. Reduced to one pace, J - P (s - s_ref), only the work is left.
P is measured on the board itself while it waits; slopes within runs only check it, as rounds lengthen for other
reasons too (lower clocks at the power limit).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_tokenpower.stats.types import FloatArray

WATTS_PER_CELSIUS = 0.006
"""Relative rise of the waiting watts per °C of GPU temperature: 115 to 124 W at 36 to 38 °C, 120 to 134 W at 43 to 48
°C on eight H100s."""

LEAST_RELATIVE_ERROR = 0.025
"""Slopes within runs of host-bound tests on four H100s lie 0 to 2.3 % above the watts that those boards drew waiting at
the same temperature; windows of waiting repeat within 1 % after temperature."""

ASSUMED_SHARE, ASSUMED_SHARE_SD = 0.18, 0.06
"""Waiting watts as a share of the power limit where nobody has measured them: 125 of 700 W on H100s."""

_MOST_SIGMAS = 3.0
_SLOPE_STRAYS = 0.15


@dataclass(frozen=True)
class Waiting:
    """The watts that a board draws while it waits, with their standard error, at ``celsius`` (None: at any).

    ``assumed`` tells a guess from the power limit from a measurement on the board.
    """

    watts: float
    stderr: float
    celsius: float | None = None
    assumed: bool = False

    def at(self, celsius: float | None) -> float:
        """Return the watts at a GPU temperature in °C; as measured where one of the temperatures is not known."""
        if celsius is None or self.celsius is None:
            return self.watts
        return self.watts * math.exp(WATTS_PER_CELSIUS * (celsius - self.celsius))


@dataclass(frozen=True)
class SlopeCheck:
    """Joules per second within runs, pooled, and whether they bear out the waiting watts.

    None of ``agrees`` says that the rounds' seconds hardly vary, so that there is nothing to check by.
    """

    watts: float
    stderr: float
    agrees: bool | None


def measured_waiting(watts: Sequence[float], celsius: Sequence[float] | None = None) -> Waiting:
    """Take the waiting watts from windows in which the board waited: context up, clocks held, nothing running.

    Args:
        watts: The mean power of each window.
        celsius: The mean GPU temperature of each window.

    Returns:
        Their mean; its standard error is never below 2.5 %.

    Raises:
        ValueError: There is no window, or one without a positive power.
    """
    values = np.asarray(watts, dtype=np.float64)
    if not values.size or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError("waiting watts need at least one window, each with a positive power")
    mean = float(values.mean())
    scatter = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    where = None if celsius is None or not len(celsius) else float(np.mean(celsius))
    return Waiting(mean, max(scatter, LEAST_RELATIVE_ERROR * mean), where)


def assumed_waiting(power_limit_watts: float) -> Waiting:
    """Guess the waiting watts of a board that was never measured from its power limit; the error says how vague."""
    return Waiting(ASSUMED_SHARE * power_limit_watts, ASSUMED_SHARE_SD * power_limit_watts, assumed=True)


def at_pace(
    joules_per_token: FloatArray, seconds_per_token: FloatArray, watts: float, reference_seconds: float
) -> FloatArray | None:
    """J/token at a common number of seconds per token; None where waiting alone would take more than was drawn."""
    active = joules_per_token - watts * seconds_per_token
    if (active <= 0).any():
        return None
    return np.asarray(active + watts * reference_seconds)


def slope_check(
    joules_per_token: Sequence[FloatArray], seconds_per_token: Sequence[FloatArray], waiting: Waiting
) -> SlopeCheck:
    """Hold the waiting watts against the slope of joules on seconds within runs.

    The slope is pooled within runs (ANCOVA; Cochran 1957, Biometrics 13:261), never from differences between runs. It
    may stray by 15 % for reasons of its own; seconds that vary by less than 2 % within runs check nothing.
    """
    x = np.concatenate([seconds - seconds.mean() for seconds in seconds_per_token])
    y = np.concatenate([joules - joules.mean() for joules in joules_per_token])
    mean = float(np.mean([seconds.mean() for seconds in seconds_per_token]))
    sxx = float((x * x).sum())
    df = len(x) - len(seconds_per_token) - 1
    if df < 3 or sxx <= 0:
        return SlopeCheck(0.0, math.inf, None)
    slope = float((x * y).sum()) / sxx
    stderr = math.sqrt(float(((y - slope * x) ** 2).sum()) / df / sxx)
    if math.sqrt(sxx / len(x)) < 0.02 * mean:
        return SlopeCheck(slope, stderr, None)
    error = math.hypot(stderr, waiting.stderr, _SLOPE_STRAYS * waiting.watts)
    return SlopeCheck(slope, stderr, abs(slope - waiting.watts) <= _MOST_SIGMAS * error)
