"""A time that passes only while somebody sleeps on it: boards on it mind no busy machine, and nobody waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from pytest_tokenpower.meters.clock import Clock

_REALTIME_AHEAD_NS = 1_795_000_000_123_456_789


@dataclass(eq=False)
class _Alarm:
    at_ns: int
    interval_ns: int
    action: Callable[[], object]


class VirtualTime:
    """Stands still but for :meth:`sleep`, which calls on its way whatever is due, in the order of time."""

    def __init__(self) -> None:
        self._now_ns = 1_000_000_000_777
        self._alarms: list[_Alarm] = []
        self._ringing = False
        self._lock = threading.RLock()

    @property
    def clock(self) -> Clock:
        """Both clocks of this time; realtime is never set."""
        return Clock(self.now_ns, lambda: self._now_ns + _REALTIME_AHEAD_NS, self.sleep, self.every)

    def now_ns(self) -> int:
        """Nanoseconds on the monotonic clock."""
        return self._now_ns

    def sleep(self, seconds: float) -> None:
        """Let time pass. Threads that sleep do so one after another."""
        with self._lock:
            until_ns = self._now_ns + round(seconds * 1e9)
            # What is called may sleep itself, as a driver that hangs does: then nothing else is called.
            while not self._ringing and (due := self._due(until_ns)) is not None:
                self._now_ns = max(self._now_ns, due.at_ns)
                due.at_ns = self._now_ns + due.interval_ns
                self._ringing = True
                try:
                    due.action()
                finally:
                    self._ringing = False
            self._now_ns = max(self._now_ns, until_ns)

    def _due(self, until_ns: int) -> _Alarm | None:
        alarm = min(self._alarms, key=lambda each: each.at_ns, default=None)
        return alarm if alarm is not None and alarm.at_ns <= until_ns else None

    def every(self, seconds: float, action: Callable[[], object]) -> Callable[[], None]:
        """Have ``action`` called as time passes; returns what ends it."""
        interval_ns = max(1, round(seconds * 1e9))
        alarm = _Alarm(self._now_ns + interval_ns, interval_ns, action)
        self._alarms.append(alarm)
        return lambda: self._alarms.remove(alarm)


VIRTUAL_TIME = VirtualTime()
"""This process has one: a workload sleeps on it, and boards whose scenario says ``"clock": "virtual"`` live on it."""
