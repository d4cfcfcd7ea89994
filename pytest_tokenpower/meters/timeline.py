"""The timeline: every sample of a run in growing columns, and the events that spoil a stretch of it."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_tokenpower.meters.types import Conditions, CounterReading, Device, PowerSamples, Reading

_BLOCK_ROWS = 1 << 16


FAILED, LOST = "meter failed", "meter lost"
"""The guards of a meter that could not be read, for now or for good."""


@dataclass(frozen=True)
class Event:
    """Something that spoils the readings of a device (None: of all) between two moments."""

    start_ns: int
    end_ns: int
    guard: str
    reason: str
    device_id: str | None = None


class _Columns:
    """Append-only columns in fixed blocks: appending never moves what is there, and nothing is kept twice."""

    def __init__(self, dtype: list[tuple[str, str]]) -> None:
        self._dtype = np.dtype(dtype)
        self._full: list[NDArray[np.void]] = []
        self._tail: NDArray[np.void] = np.empty(_BLOCK_ROWS, self._dtype)
        self._used = 0

    def append(self, **columns: NDArray[Any] | Sequence[Any]) -> None:
        total = len(next(iter(columns.values())))
        done = 0
        while done < total:
            if self._used == _BLOCK_ROWS:
                self._full.append(self._tail)
                self._tail = np.empty(_BLOCK_ROWS, self._dtype)
                self._used = 0
            take = min(total - done, _BLOCK_ROWS - self._used)
            for name, values in columns.items():
                self._tail[name][self._used : self._used + take] = values[done : done + take]
            self._used += take
            done += take

    def forget(self, before_ns: int) -> None:
        """Drop the full blocks that end before a moment; the newest rows stay."""
        keep = 0 if self._used else 1
        while len(self._full) > keep and self._full[0]["t_ns"][-1] < before_ns:
            del self._full[0]

    def __len__(self) -> int:
        return len(self._full) * _BLOCK_ROWS + self._used

    def last(self, name: str) -> Any:
        return self._tail[name][self._used - 1] if self._used else self._full[-1][name][-1]

    def column(self, name: str, start_ns: int | None = None, end_ns: int | None = None) -> NDArray[Any]:
        """One column; with a range only the blocks that it touches, one row beyond on each side included."""
        blocks = [*self._full, self._tail[: self._used]] if self._used else list(self._full)
        if start_ns is not None or end_ns is not None:
            firsts = np.array([block["t_ns"][0] for block in blocks], dtype=np.int64)
            low = 0 if start_ns is None else max(0, int(np.searchsorted(firsts, start_ns, "left")) - 2)
            high = len(blocks) if end_ns is None else int(np.searchsorted(firsts, end_ns, "right")) + 1
            blocks = blocks[low:high]
        parts = [block[name] for block in blocks]
        return np.concatenate(parts) if parts else np.empty(0, self._dtype[name])


_POWER = [("t_ns", "i8"), ("milliwatts", "u4")]
_MOST_MILLIWATTS = np.iinfo(np.uint32).max
_COUNTER = [("t_ns", "i8"), ("t1_ns", "i8"), ("microjoules", "i8")]


class Timeline:
    """All samples of a run. Collectors append from their threads; readers take snapshots at any time.

    Twelve bytes a power sample: 24 hours of eight GPUs at 50 Hz are 415 MB.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._devices: dict[str, Device] = {}
        self._power: dict[str, _Columns] = {}
        self._held: dict[str, bool] = {}
        self._counters: dict[str, _Columns] = {}
        self._conditions: dict[str, list[Conditions]] = {}
        self._events: list[Event] = []

    @property
    def devices(self) -> Mapping[str, Device]:
        """The devices by id, in the order in which their meters listed them."""
        return dict(self._devices)

    def add_device(self, device: Device) -> None:
        """Announce a device before its first reading; raises ValueError for an id that is taken."""
        with self._lock:
            if (known := self._devices.get(device.id)) is not None:
                nodes = [str(node) for each in (known, device) if (node := each.facts.get("node"))]
                at = f" (of {' and '.join(nodes)}, which must not see each other's boards)" if nodes else ""
                raise ValueError(f"two meters list the device {device.id}{at}")
            self._devices[device.id] = device
            self._power[device.id] = _Columns(_POWER)
            self._counters[device.id] = _Columns(_COUNTER)
            self._conditions[device.id] = []

    def append(self, reading: Reading) -> None:
        """Add what one poll gave. Power samples that are not newer than those before them are left out."""
        with self._lock:
            power, columns = reading.power, self._power[reading.device_id]
            if power is not None and len(power.t_ns):
                if power.milliwatts.min() < 0 or power.milliwatts.max() > _MOST_MILLIWATTS:
                    raise ValueError(f"{reading.device_id}: a power of {power.milliwatts.min() / 1e3:g} W")
                self._held[reading.device_id] = power.held
                last = columns.last("t_ns") if len(columns) else np.iinfo(np.int64).min
                newest = np.maximum.accumulate(np.concatenate([[last], power.t_ns]))
                newer = power.t_ns > newest[:-1]
                columns.append(t_ns=power.t_ns[newer], milliwatts=power.milliwatts[newer])
            if reading.counters:
                self._counters[reading.device_id].append(
                    t_ns=[counter.t0_ns for counter in reading.counters],
                    t1_ns=[counter.t1_ns for counter in reading.counters],
                    microjoules=[counter.microjoules for counter in reading.counters],
                )
            if reading.conditions is not None:
                self._conditions[reading.device_id].append(reading.conditions)

    def note(self, event: Event) -> None:
        """Remember that a stretch of the timeline is spoilt."""
        with self._lock:
            self._events.append(event)

    def forget(self, before_ns: int) -> None:
        """Let go of what is older, in whole blocks: of a service that runs for months."""
        with self._lock:
            for columns in (*self._power.values(), *self._counters.values()):
                columns.forget(before_ns)
            for conditions in self._conditions.values():
                del conditions[: bisect_left(conditions, before_ns, key=lambda one: one.t_ns)]
            self._events = [event for event in self._events if event.end_ns >= before_ns]

    @property
    def all_events(self) -> Sequence[Event]:
        """Everything that was noted, for a recording."""
        with self._lock:
            return tuple(self._events)

    def since(self, start_ns: int) -> Stretch:
        """Return what was read from a moment on, now and as it grows: what came before costs nothing to evaluate."""
        return Stretch(self, start_ns)

    def power(
        self, device_id: str, start_ns: int | None = None, end_ns: int | None = None
    ) -> PowerSamples | None:
        """Power samples of a device, at least those that a window between the two moments needs."""
        with self._lock:
            columns = self._power[device_id]
            if not len(columns):
                return None
            return PowerSamples(
                t_ns=columns.column("t_ns", start_ns, end_ns),
                milliwatts=columns.column("milliwatts", start_ns, end_ns),
                held=self._held[device_id],
            )

    def counters(self, device_id: str, start_ns: int | None = None) -> CounterColumns:
        """Counter readings of a device, at least those from a moment on."""
        with self._lock:
            columns = self._counters[device_id]
            return CounterColumns(
                columns.column("t_ns", start_ns),
                columns.column("t1_ns", start_ns),
                columns.column("microjoules", start_ns),
            )

    def conditions(self, device_id: str, start_ns: int | None = None) -> Sequence[Conditions]:
        """Return the conditions of a device at each poll, from a moment on."""
        with self._lock:
            conditions = self._conditions[device_id]
            first = 0 if start_ns is None else bisect_left(conditions, start_ns, key=lambda c: c.t_ns)
            return tuple(conditions[first:])

    def events(self, device_id: str, start_ns: int, end_ns: int) -> Sequence[Event]:
        """Return what spoils a device's readings between two moments."""
        with self._lock:
            return tuple(
                event
                for event in self._events
                if event.device_id in (None, device_id)
                and event.start_ns <= end_ns
                and event.end_ns >= start_ns
            )

    def newest_ns(self, device_id: str) -> int | None:
        """Up to when the energy of a device is known; None before its first sample."""
        with self._lock:
            if len(self._power[device_id]):
                return int(self._power[device_id].last("t_ns"))
            if len(self._counters[device_id]):
                # What was read is taken for that of half a tick before.
                tick_ns = self._devices[device_id].counter_tick_ns
                return int(self._counters[device_id].last("t_ns")) - tick_ns // 2
            return None


@dataclass(frozen=True)
class Stretch:
    """The part of a timeline from a moment on; reads like the whole."""

    timeline: Timeline
    start_ns: int

    def power(
        self, device_id: str, start_ns: int | None = None, end_ns: int | None = None
    ) -> PowerSamples | None:
        """Power samples of a device, at least those that a window between the two moments needs."""
        start_ns = self.start_ns if start_ns is None else max(start_ns, self.start_ns)
        found = self.timeline.power(device_id, start_ns, end_ns)
        if found is None:
            return None
        # The timeline gives whole blocks.
        first = max(int(np.searchsorted(found.t_ns, start_ns)) - 1, 0)
        return PowerSamples(found.t_ns[first:], found.milliwatts[first:], held=found.held)

    def counters(self, device_id: str) -> CounterColumns:
        """Counter readings of a device."""
        return self.timeline.counters(device_id, self.start_ns).since(self.start_ns)

    def conditions(self, device_id: str) -> Sequence[Conditions]:
        """Return the conditions of a device at each poll."""
        return self.timeline.conditions(device_id, self.start_ns)

    def events(self, device_id: str, start_ns: int, end_ns: int) -> Sequence[Event]:
        """Return what spoils a device's readings between two moments."""
        return self.timeline.events(device_id, start_ns, end_ns)


@dataclass(frozen=True)
class CounterColumns:
    """Counter readings as columns: the value was taken between ``t0_ns`` and ``t1_ns`` (int64[n] each)."""

    t0_ns: NDArray[np.int64]
    t1_ns: NDArray[np.int64]
    microjoules: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.t0_ns)

    def since(self, start_ns: int) -> CounterColumns:
        """Only readings that began at a moment or after it."""
        first = int(np.searchsorted(self.t0_ns, start_ns))
        return CounterColumns(self.t0_ns[first:], self.t1_ns[first:], self.microjoules[first:])

    def prompt(self, tick_ns: float) -> CounterColumns:
        """Only readings of calls that came back within a tick (or 50 ms): of others the time is not known."""
        kept = self.t1_ns - self.t0_ns <= max(tick_ns, 5e7)
        return CounterColumns(self.t0_ns[kept], self.t1_ns[kept], self.microjoules[kept])

    @classmethod
    def of(cls, readings: Sequence[CounterReading]) -> CounterColumns:
        """From single readings, for tests and small recordings."""
        return cls(
            np.array([reading.t0_ns for reading in readings], dtype=np.int64),
            np.array([reading.t1_ns for reading in readings], dtype=np.int64),
            np.array([reading.microjoules for reading in readings], dtype=np.int64),
        )
