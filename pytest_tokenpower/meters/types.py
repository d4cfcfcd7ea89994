"""The vocabulary of telemetry: devices, what one poll of a meter gave, and the protocol of a meter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from pytest_tokenpower.core.types import Fact, Provenance, Scope

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pytest_tokenpower.meters.clock import Clock

Samples = Sequence[tuple[int, float]]
"""Of one scraped series, in the order of time: (realtime milliseconds, value)."""

SLOW_S = 2.0
"""A meter that is read each second resolves this; one that resolves less is a BMC, or is scraped."""


@dataclass(frozen=True)
class Device:
    """One thing that draws power, as one meter sees it.

    ``id`` is unique in a timeline and stable over runs (NVML's UUID for a GPU). ``key_facts`` decide whether
    two measurements are comparable (board, memory, enforced power limit, driver major, MIG);
    ``facts`` are recorded beside them and shown when a comparison surprises. ``counter_tick_ns`` is the
    counter's own update period (100 ms on an H100); 0 for a counter that is exact at the moment of reading.
    ``latency_s`` is how late a reading may arrive: a window's energy is waited for that much longer.
    The fact ``resolution_ms`` is the shortest window that the device resolves, however often it is read.
    ``clock_error_ns`` is how far the stamps of a meter on another machine may be off this machine's clock.
    """

    id: str
    scope: Scope
    name: str
    meter: str
    provenance: Provenance
    key_facts: Mapping[str, Fact] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)
    counter_tick_ns: int = 0
    latency_s: float = 0.0
    clock_error_ns: int = 0

    @property
    def resolution_s(self) -> float:
        """The shortest window that the device resolves, as its meter declares it; 0 where it says nothing."""
        declared_ms = self.facts.get("resolution_ms")
        return declared_ms / 1e3 if isinstance(declared_ms, (int, float)) else 0.0

    @property
    def gpu_id(self) -> str | None:
        """The GPU whose use makes the device's energy ours: a GPU's own id, or that of the one on a module."""
        if self.scope == "gpu":
            return self.id
        named = self.facts.get("gpu") if self.scope == "module" else None
        return named if isinstance(named, str) else None

    @property
    def slow(self) -> bool:
        """Whether it is measured over a whole measurement only: no round, and no phase, is long enough for it."""
        return self.resolution_s > SLOW_S


@dataclass(frozen=True)
class PowerSamples:
    """Power readings of one device, in the order of time.

    ``t_ns`` int64[n] on the monotonic clock; ``milliwatts`` int64[n]. With ``held=True`` a sample is the mean over
    (t[i-1], t[i]] (NVML's ring); otherwise it is a point that is joined to the next by a straight line.
    """

    t_ns: NDArray[np.int64]
    milliwatts: NDArray[np.int64]
    held: bool = True

    @classmethod
    def point(cls, t0_ns: int, t1_ns: int, milliwatts: float) -> PowerSamples:
        """Return one point.

        Args:
            t0_ns: the moment before it was read.
            t1_ns: the moment after it was read.
            milliwatts: what was read.
        """
        import numpy as np

        t_ns = np.array([(t0_ns + t1_ns) // 2], dtype=np.int64)
        return cls(t_ns, np.array([round(milliwatts)], dtype=np.int64), held=False)


@dataclass(frozen=True)
class CounterReading:
    """One reading of a cumulative energy counter: the value was taken between t0 and t1 (monotonic).

    Microjoules hold the finest counters whole: RAPL's are of 61 µJ, AMD's of 15.3 µJ, NVML's of 1 mJ.
    """

    t0_ns: int
    t1_ns: int
    microjoules: int


@dataclass(frozen=True)
class Conditions:
    """The state of a device at one moment; what a meter does not offer is None, never zero.

    ``limited_ns`` are cumulative nanoseconds under each limit (``power``, ``thermal``, ``board``, ``sw_thermal``,
    ``hw_thermal``, ``power_brake``: NVML fields 74, 75, 77, 269, 270, 271). ``foreign_pids`` are compute
    processes outside our process tree; ``own_process`` says whether one of ours was there. ``memory_gib`` is what is
    in use of the device's memory, whoever's it is.
    """

    t_ns: int
    temperature_celsius: float | None = None
    sm_clock_mhz: float | None = None
    limited_ns: Mapping[str, int] = field(default_factory=dict)
    foreign_pids: tuple[int, ...] | None = None
    own_process: bool | None = None
    memory_gib: float | None = None


@dataclass(frozen=True)
class Reading:
    """What one poll gave for one device. ``fault`` says what could not be read; the rest is still good.

    ``lost``: with this fault, nothing of the device will be good again.
    """

    device_id: str
    power: PowerSamples | None = None
    counters: Sequence[CounterReading] = ()
    conditions: Conditions | None = None
    fault: str | None = None
    lost: bool = False


class Meter(Protocol):
    """Reads hardware through one interface. Called by the collector's thread for this meter, and by no other.

    Any failure is raised as :class:`~pytest_tokenpower.errors.MeterError` with a reason that names the device
    and the call; the collector records it and goes on polling.

    A meter that does not live on this machine's clocks has the :class:`Clock` of its own as ``clock``; windows are
    then on that one. One that may take long to open says how long as ``open_timeout_s``.
    """

    name: str
    poll_interval_s: float

    def open(self, clock: Clock) -> Sequence[Device]:
        """Connect and list the devices; raises MeterUnavailable with the reason and the remedy."""
        ...

    def poll(self, clock: Clock) -> Sequence[Reading]:
        """Everything new since the last poll; raises MeterError."""
        ...

    def close(self) -> None:
        """Let go of the interface; never raises."""
        ...
