"""The two clocks of a measurement: windows are monotonic, NVML's timestamps are realtime."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STEP_NS = 5_000_000
"""A jump of realtime against monotonic larger than this between two polls is a step (NTP), not a slew."""


@dataclass(frozen=True)
class ClockStep:
    """Realtime was set between two polls: timestamps of samples in between cannot be placed."""

    start_ns: int
    end_ns: int
    step_ns: int


@dataclass
class Clock:
    """Maps realtime stamps to the monotonic clock; ``tick`` re-reads the offset and finds steps.

    All can be replaced, so that simulated hardware runs on a simulated time. ``every(seconds, action)`` has an action
    called as such a time passes and returns what ends it; None: time passes by itself, and a thread has to look on.
    """

    monotonic_ns: Callable[[], int] = time.monotonic_ns
    realtime_ns: Callable[[], int] = time.time_ns
    sleep: Callable[[float], object] = time.sleep
    every: Callable[[float, Callable[[], object]], Callable[[], None]] | None = None
    offset_ns: int = field(init=False)
    _last_tick_ns: int = field(init=False)

    def __post_init__(self) -> None:
        self._last_tick_ns, self.offset_ns = self._pair()

    def _pair(self) -> tuple[int, int]:
        # Of three readings the one with the shortest bracket: a preemption between the two calls is not a step.
        best: tuple[int, int, int] | None = None
        for _ in range(3):
            before = self.monotonic_ns()
            realtime = self.realtime_ns()
            after = self.monotonic_ns()
            if best is None or after - before < best[0]:
                middle = (before + after) // 2
                best = (after - before, middle, realtime - middle)
        assert best is not None
        return best[1], best[2]

    def seconds(self) -> float:
        """Return the monotonic clock's reading."""
        return self.monotonic_ns() / 1e9

    def tick(self) -> ClockStep | None:
        """Read both clocks anew; returns the step since the last tick, if there was one."""
        now_ns, offset_ns = self._pair()
        step_ns = offset_ns - self.offset_ns
        start_ns = self._last_tick_ns
        self._last_tick_ns, self.offset_ns = now_ns, offset_ns
        return ClockStep(start_ns, now_ns, step_ns) if abs(step_ns) > STEP_NS else None

    def from_realtime_us(self, t_us: NDArray[np.int64]) -> NDArray[np.int64]:
        """Realtime microseconds (int64[n]) to monotonic nanoseconds."""
        return t_us * 1000 - self.offset_ns
