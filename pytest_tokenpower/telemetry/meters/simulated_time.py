"""The clocks of a simulation: time since the boards' start, and the realtime stamps that a board gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from pytest_tokenpower.telemetry.clock import Clock
from pytest_tokenpower.telemetry.meters.simulated_board import ArmedFault

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TOLERANCE_NS = 2_000_000
_ALL_TIME_NS = -(1 << 62)


class SimulatedTime:
    """Turns the two clocks, which can be replaced, into times since the start and stamps in realtime µs.

    A stamp of the past must come out the same at every call, so the offset between the clocks is kept; when the
    real one has moved by more than 2 ms, later samples get the new one. Faults of kind ``clock_step`` are added.
    """

    def __init__(self, monotonic_ns: Callable[[], int], realtime_ns: Callable[[], int]) -> None:
        self._monotonic_ns, self._realtime_ns = monotonic_ns, realtime_ns
        self._offset_ns = Clock(monotonic_ns, realtime_ns).offset_ns
        self._moves: tuple[tuple[int, int], ...] = ()
        self.start_ns = monotonic_ns()
        self.steps: tuple[ArmedFault, ...] = ()

    @property
    def phase_ns(self) -> int:
        """The start's realtime modulo 1 µs."""
        return (self.start_ns + self._offset_ns) % 1000

    def now_ns(self) -> int:
        """Nanoseconds since the boards' start."""
        return self._monotonic_ns() - self.start_ns

    def realtime_ns(self) -> int:
        """The realtime clock, with the steps of the scenario."""
        now_ns = self.now_ns()
        return self._realtime_ns() + sum(_step_ns(step) for step in self.steps if step.holds(now_ns))

    def follow(self) -> None:
        """Notices when the offset between the two clocks has moved."""
        known_ns = self._offset_ns + sum(move_ns for _, move_ns in self._moves)
        moved_ns = Clock(self._monotonic_ns, self._realtime_ns).offset_ns - known_ns
        if abs(moved_ns) > _TOLERANCE_NS:
            self._moves = (*self._moves, (self.now_ns(), round(moved_ns / 1000) * 1000))

    def stamps_us(self, t_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Realtime stamps of times since the start, int64[n]."""
        stamps = t_ns + (self.start_ns + self._offset_ns)
        for from_ns, move_ns in self._moves:
            stamps = stamps + np.where(t_ns >= from_ns, move_ns, 0)
        for step in self.steps:
            stamps = stamps + np.where((t_ns >= step.from_ns) & (t_ns < step.until_ns), _step_ns(step), 0)
        return stamps // 1000

    def stamp_us(self, t_ns: int) -> int:
        """The stamp of one time."""
        return int(self.stamps_us(np.array([t_ns], np.int64))[0])

    def before_stamp_ns(self, stamp_us: int) -> int:
        """A time since the start after which all samples with a stamp above ``stamp_us`` lie."""
        if self._moves or self.steps:
            return _ALL_TIME_NS
        return stamp_us * 1000 - self.start_ns - self._offset_ns


def _step_ns(step: ArmedFault) -> int:
    return round(step.fault.seconds * 1_000_000) * 1000
