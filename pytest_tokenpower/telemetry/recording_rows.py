"""The rows of a recording, one struct a type: docs/recording-format.md describes them to people."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from pytest_tokenpower.telemetry.values import Fact, Scope

VERSION = 1

UNKNOWN_TICK_US = 100_000
"""The counter's update period of a device that no row describes: what NVML's counter does on the boards we know."""

# Later than the year 2200, and small enough that nanoseconds fit into 64 bits.
_Us = Annotated[int, Meta(ge=0, le=9_000_000_000_000_000)]
_Tokens = Annotated[int, Meta(ge=0)]
_Millijoules = Annotated[int, Meta(ge=0, le=9_000_000_000_000_000)] | Annotated[float, Meta(ge=0, le=9e15)]


class Head(msgspec.Struct):
    """What every row has; ``version`` is the first one's."""

    type: str
    version: object = None


class Row(msgspec.Struct, frozen=True, tag_field="type"):
    """A row of a known type; fields that we do not know are ignored."""


class PowerRow(Row, frozen=True, tag="power"):
    """A power sample: with ``held`` the mean since the sample before it."""

    device: str
    t_us: _Us
    mw: Annotated[int, Meta(ge=0, le=2**32 - 1)]


class CounterRow(Row, frozen=True, tag="counter"):
    """A reading of the energy counter, taken between two moments."""

    device: str
    t0_us: _Us
    t1_us: _Us
    mj: _Millijoules

    def __post_init__(self) -> None:
        if self.t1_us < self.t0_us:
            raise ValueError(f"t1_us ({self.t1_us}) is before t0_us ({self.t0_us})")


class WindowRow(Row, frozen=True, tag="window"):
    """A stretch of time whose energy is asked for."""

    name: str
    start_us: _Us
    end_us: _Us
    phase: str | None = None
    prompt_tokens: _Tokens | None = None
    generated_tokens: _Tokens | None = None
    responses: _Tokens = 1
    repeats: Annotated[int, Meta(ge=1)] = 1
    estimated: bool = False
    devices: tuple[str, ...] | None = None


class DeviceRow(Row, frozen=True, tag="device"):
    """What is known of a device; ``held`` False: its power rows are points, not means."""

    id: str
    scope: Scope = "gpu"
    name: str | None = None
    meter: str = "recording"
    provenance: str | None = None
    counter_tick_us: Annotated[int, Meta(ge=0, le=600_000_000)] = UNKNOWN_TICK_US
    held: bool = True
    key_facts: dict[str, Fact] = {}
    facts: dict[str, Fact] = {}


class ConditionsRow(Row, frozen=True, tag="conditions"):
    """The state of a device at one moment."""

    device: str
    t_us: _Us
    temperature_celsius: float | None = None
    sm_clock_mhz: float | None = None
    limited_ns: dict[str, int] = {}
    foreign_pids: tuple[int, ...] | None = None
    own_process: bool | None = None


class EventRow(Row, frozen=True, tag="event"):
    """What spoils a stretch of the timeline (``device`` None: for all devices)."""

    start_us: _Us
    end_us: _Us
    guard: str
    reason: str
    device: str | None = None


class ClockRow(Row, frozen=True, tag="clock"):
    """Both clocks at one moment."""

    realtime_us: _Us
    monotonic_ns: int


AnyRow = PowerRow | CounterRow | WindowRow | DeviceRow | ConditionsRow | EventRow | ClockRow

TYPES = frozenset({"power", "counter", "window", "device", "conditions", "event", "clock"})
"""The row types that we know; all others are skipped."""
