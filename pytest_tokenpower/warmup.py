"""When a workload is warm: its time no longer falls, its clocks stand still, and its temperature hardly rises."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_tokenpower.record import RoundRecord

MOST_ROUNDS = 10
MOST_SECONDS = 30.0
"""Beyond these a measurement begins as it is: what drifts on is the business of the temperature adjustment."""

LARGEST_SPEEDUP = 0.05
"""A round that is faster than the one before by more than this was still compiling, or filling caches."""

LARGEST_CLOCK_CHANGE = 0.02

LARGEST_DRIFT_CELSIUS = 3.0
"""Over the rounds that will be measured at least, as the last two rounds foretell it: J/token rises by 0.2 % per °C."""


def quick_enough(seconds: Sequence[float]) -> bool:
    """Whether the last round (seconds of each so far) was no longer much faster than the one before."""
    return len(seconds) < 2 or seconds[-1] > (1.0 - LARGEST_SPEEDUP) * seconds[-2]


def steady(rounds: Sequence[RoundRecord], rounds_ahead: int) -> bool:
    """Whether clock and temperature of the last two rounds allow to measure so many more; what is unknown does."""
    if len(rounds) < 2:
        return True
    before, last = rounds[-2], rounds[-1]
    if before.sm_clock_mhz and last.sm_clock_mhz:
        change = abs(last.sm_clock_mhz / before.sm_clock_mhz - 1.0)
        if change > LARGEST_CLOCK_CHANGE:
            return False
    if before.temperature_celsius is None or last.temperature_celsius is None:
        return True
    between = (last.start_ns - before.start_ns) / 1e9 + (last.seconds - before.seconds) / 2
    drift = abs(last.temperature_celsius - before.temperature_celsius) * last.seconds * rounds_ahead
    return drift <= LARGEST_DRIFT_CELSIUS * between
