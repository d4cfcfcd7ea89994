"""The recording: a timeline and its windows as JSON Lines, to be analysed or replayed where there is no hardware."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Literal, cast

import msgspec
import numpy as np
from msgspec import Meta

from pytest_tokenpower.core.files import replacing
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.types import Fact, Scope
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.meters.clock import STEP_NS
from pytest_tokenpower.meters.timeline import Event, Timeline
from pytest_tokenpower.meters.types import Conditions, CounterReading, Device, PowerSamples, Reading

VERSION = 1

UNKNOWN_TICK_US = 100_000
"""The counter's update period of a device that no row describes: what NVML's counter does on the boards we know."""


# Later than the year 2200, and small enough that nanoseconds fit into 64 bits.
_Us = Annotated[int, Meta(ge=0, le=9_000_000_000_000_000)]

_Tokens = Annotated[int, Meta(ge=0)]

_Seconds = Annotated[float, Meta(ge=0)]

_Millijoules = Annotated[int, Meta(ge=0, le=9_000_000_000_000_000)] | Annotated[float, Meta(ge=0, le=9e15)]


class Head(msgspec.Struct):
    """What every row has; ``version`` and ``digest`` are the first one's, ``sha256`` the last one's.

    A recording whose first row announces a digest ends in a row of type ``end`` with that of all bytes before it.
    """

    type: str
    version: object = None
    digest: object = None
    sha256: object = None


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
    cached_prompt_tokens: _Tokens = 0
    latencies: tuple[tuple[_Seconds, _Seconds | None], ...] = ()
    reasons: tuple[str, ...] = ()
    executions: tuple[tuple[_Tokens, _Tokens, _Tokens, _Tokens], ...] = ()

    def __post_init__(self) -> None:
        if self.cached_prompt_tokens > (self.prompt_tokens or 0):
            raise ValueError(
                f"cached_prompt_tokens ({self.cached_prompt_tokens}) is above prompt_tokens ({self.prompt_tokens})"
            )
        whole = (
            self.prompt_tokens or 0,
            self.generated_tokens or 0,
            self.responses,
            self.cached_prompt_tokens,
        )
        for each in (whole, *self.executions):
            TokenCount(*each)


class DeviceRow(Row, frozen=True, tag="device"):
    """What is known of a device; ``held`` False: its power rows are points, not means."""

    id: str
    scope: Scope = "gpu"
    name: str | None = None
    meter: str = "recording"
    provenance: str | None = None
    counter_tick_us: Annotated[int, Meta(ge=0, le=600_000_000)] = UNKNOWN_TICK_US
    held: bool = True
    clock_error_us: Annotated[int, Meta(ge=0, le=600_000_000)] = 0
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
    memory_gib: float | None = None


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

WINDOW_FIELDS = tuple(name for name in WindowRow.__struct_fields__ if name not in ("start_us", "end_us"))

CONDITION_FIELDS = tuple(name for name in ConditionsRow.__struct_fields__ if name not in ("device", "t_us"))
"""The fields that a row and its value have in common."""

_END_NS = 9_000_000_000_000_000_000


@dataclass(frozen=True)
class RecordedWindow:
    """A window of a recording: a whole execution of a workload (``phase`` None), or one phase of it.

    The tokens are those of all ``repeats`` together; None: not recorded. ``devices`` are the ids of the devices
    whose energy is the window's (None: all). ``cached_prompt_tokens`` of the prompt's came from a prefix cache.
    ``latencies`` are of its requests, in seconds: to the first token, and for each further one (None: no such).
    ``reasons`` are what makes it invalid, whatever its meters say. ``executions`` are the different counts (prompt,
    generated, responses, cached prompt) that its repeats had; empty: not recorded.
    """

    name: str
    start_ns: int
    end_ns: int
    phase: str | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    responses: int = 1
    repeats: int = 1
    estimated: bool = False
    devices: tuple[str, ...] | None = None
    cached_prompt_tokens: int = 0
    latencies: tuple[tuple[float, float | None], ...] = ()
    reasons: tuple[str, ...] = ()
    executions: tuple[tuple[int, int, int, int], ...] = ()


@dataclass(frozen=True)
class Recording:
    """What a recording holds. Its clock is realtime: every ``_ns`` is nanoseconds since 1970, in whole microseconds.

    The devices' provenance is *replayed*; what they were when they were recorded is their key fact ``recorded_as``.
    """

    path: Path
    timeline: Timeline
    devices: tuple[Device, ...]
    windows: tuple[RecordedWindow, ...]


def read_recording(path: Path) -> Recording:
    """Read a recording (gzipped where its name ends in ``.gz``).

    Rows may come in any order, and those of unknown types are skipped. Raises UsageError that names the file, and
    the line where one is malformed.
    """
    parts = _Parts()
    try:
        with closing(open_recording(path, "rb", packed=path.suffix == ".gz")) as lines:
            for row in _rows(path, lines):
                parts.add(row)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{path}: this recording cannot be read: {reason}") from error
    timeline, devices = parts.timeline()
    return Recording(path, timeline, devices, tuple(parts.windows))


def open_recording(path: Path, mode: Literal["rb", "wb"], *, packed: bool) -> IO[bytes]:
    """Open the file itself, or read or write it through gzip."""
    return cast("IO[bytes]", gzip.open(path, mode)) if packed else path.open(mode)


def _rows(path: Path, lines: IO[bytes]) -> Iterator[AnyRow]:
    decode = msgspec.json.Decoder(AnyRow).decode
    head = msgspec.json.Decoder(Head).decode
    begun = announced = ended = False
    digest = hashlib.sha256()
    for number, line in enumerate(lines, 1):
        if begun and line.startswith(_END) and (announced or b'"sha256"' in line):
            if _decoded_head(head, line).sha256 != digest.hexdigest():
                raise UsageError(f"{path}, line {number}: {_CHANGED}")
            ended = True
            continue
        digest.update(line)
        if line.isspace():
            continue
        if ended:
            raise UsageError(f"{path}, line {number}: rows after the end")
        try:
            if begun:
                yield decode(line)
                continue
            first = head(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            if begun and _is_foreign(head, line):
                continue
            raise UsageError(f"{path}, line {number}: {_reason(error, begun)}") from None
        if first.type != "recording" or first.version != VERSION:
            what = f"version {first.version!r}" if first.type == "recording" else f"type {first.type!r}"
            raise UsageError(
                f'{path}, line {number}: a recording begins with {{"type": "recording", "version": {VERSION}}}, '
                f"and this is {what}"
            )
        begun, announced = True, first.digest is not None
    if not begun:
        raise UsageError(f"{path}: this recording is empty")
    if announced and not ended:
        raise UsageError(f"{path}: {_CHANGED}")


_END = b'{"type":"end"'

_CHANGED = (
    "the recording was cut short, or changed since it was written (a recording that is edited on purpose has neither "
    '"digest" in its first row nor a last row of type "end")'
)


def _decoded_head(head: Callable[[bytes], Head], line: bytes) -> Head:
    try:
        return head(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Head("")


def _is_foreign(head: Callable[[bytes], Head], line: bytes) -> bool:
    return _decoded_head(head, line).type not in {"", *TYPES}


def _reason(error: Exception, begun: bool) -> str:
    what = "malformed row" if isinstance(error, msgspec.ValidationError) else "not a line of JSON"
    return f"{what}: {error}" if begun else f"not a recording ({what}: {error})"


class _Parts:
    """The rows of a recording as they come in: numbers in flat arrays, so that a day of eight boards fits."""

    def __init__(self) -> None:
        self.windows: list[RecordedWindow] = []
        self._described: dict[str, DeviceRow] = {}
        # Per device: stamps and milliwatts; before, after and microjoules. A dict also keeps their order.
        self._power: dict[str, tuple[array[int], array[int]]] = {}
        self._counters: dict[str, tuple[array[int], array[int], array[int]]] = {}
        self._conditions: dict[str, list[Conditions]] = {}
        self._events: list[Event] = []
        self._clocks: list[ClockRow] = []

    def add(self, row: AnyRow) -> None:
        if isinstance(row, PowerRow):
            if row.device not in self._power:
                self._power[row.device] = array("q"), array("q")
            t, milliwatts = self._power[row.device]
            t.append(row.t_us)
            milliwatts.append(row.mw)
        elif isinstance(row, CounterRow):
            if row.device not in self._counters:
                self._counters[row.device] = array("q"), array("q"), array("q")
            for column, value in zip(
                self._counters[row.device], (row.t0_us, row.t1_us, round(row.mj * 1000)), strict=True
            ):
                column.append(value)
        elif isinstance(row, WindowRow):
            start_ns, end_ns = row.start_us * 1000, row.end_us * 1000
            rest = {name: getattr(row, name) for name in WINDOW_FIELDS}
            self.windows.append(RecordedWindow(start_ns=start_ns, end_ns=end_ns, **rest))
        elif isinstance(row, DeviceRow):
            self._described[row.id] = row
        elif isinstance(row, ConditionsRow):
            rest = {name: getattr(row, name) for name in CONDITION_FIELDS}
            self._conditions.setdefault(row.device, []).append(Conditions(t_ns=row.t_us * 1000, **rest))
        elif isinstance(row, EventRow):
            event = Event(row.start_us * 1000, row.end_us * 1000, row.guard, row.reason, row.device)
            self._events.append(event)
        elif isinstance(row, ClockRow):
            self._clocks.append(row)

    def timeline(self) -> tuple[Timeline, tuple[Device, ...]]:
        """Everything in the order of time, and the devices; the rows are let go of."""
        timeline = Timeline()
        # A device that only a window names has no readings: then that window has no energy, not a smaller one.
        named = [each for window in self.windows for each in window.devices or ()]
        ids = dict.fromkeys([*self._described, *self._power, *self._counters, *self._conditions, *named])
        devices = tuple(_device(self._described.get(each) or DeviceRow(id=each)) for each in ids)
        for event in (*self._events, *_clock_steps(self._clocks)):
            timeline.note(event)
        for device in devices:
            timeline.add_device(device)
            described = self._described.get(device.id)
            power = _power(self._power.pop(device.id, None), described is None or described.held)
            counters = _counters(self._counters.pop(device.id, None))
            timeline.append(Reading(device.id, power, counters))
            for each in sorted(self._conditions.get(device.id, ()), key=lambda condition: condition.t_ns):
                timeline.append(Reading(device.id, conditions=each))
            for event in _spoilt(device, power, counters):
                if not timeline.events(device.id, event.start_ns, event.end_ns):
                    timeline.note(event)
        return timeline, devices


def _device(row: DeviceRow) -> Device:
    recorded_as = {} if row.provenance is None else {"recorded_as": row.provenance}
    return Device(
        id=row.id,
        scope=row.scope,
        name=row.name or row.id,
        meter=row.meter,
        provenance="replayed",
        key_facts={**row.key_facts, **recorded_as},
        facts=row.facts,
        counter_tick_ns=row.counter_tick_us * 1000,
        clock_error_ns=row.clock_error_us * 1000,
    )


def _power(columns: tuple[array[int], array[int]] | None, held: bool) -> PowerSamples | None:
    if columns is None:
        return None
    # Of samples with one stamp (a ring that was drained twice) the first counts.
    t_us, first = np.unique(np.frombuffer(columns[0], dtype=np.int64), return_index=True)
    return PowerSamples(t_us * 1000, np.frombuffer(columns[1], dtype=np.int64)[first], held)


def _counters(columns: tuple[array[int], array[int], array[int]] | None) -> Sequence[CounterReading]:
    if columns is None:
        return ()
    return [
        CounterReading(t0 * 1000, t1 * 1000, value) for t0, t1, value in sorted(zip(*columns, strict=True))
    ]


def _clock_steps(clocks: Iterable[ClockRow]) -> Iterator[Event]:
    """Where realtime was set: between two rows of both clocks, as between two polls of a live collector."""
    ordered = sorted(clocks, key=lambda row: row.monotonic_ns)
    for before, after in itertools.pairwise(ordered):
        elapsed_ns = (after.realtime_us - before.realtime_us) * 1000
        step_ns = elapsed_ns - (after.monotonic_ns - before.monotonic_ns)
        if abs(step_ns) > STEP_NS:
            start_us, end_us = sorted((before.realtime_us, after.realtime_us))
            yield Event(
                start_us * 1000,
                end_us * 1000,
                "clock step",
                f"the realtime clock was set by {step_ns / 1e6:+.1f} ms during the recording (NTP)",
            )


def _spoilt(
    device: Device, power: PowerSamples | None, counters: Sequence[CounterReading]
) -> Iterator[Event]:
    """Return what a live meter would have noted itself: a counter that goes backwards, or a ring without a counter."""
    for before, after in itertools.pairwise(counters):
        if after.microjoules < before.microjoules:
            yield Event(
                before.t0_ns,
                after.t1_ns,
                "counter",
                f"{device.id}: the energy counter went backwards, from {before.microjoules / 1e6:.1f} J to "
                f"{after.microjoules / 1e6:.1f} J",
                device.id,
            )
    if power is not None and power.held and not counters and device.facts.get("energy_counter") is not False:
        yield Event(
            0,
            _END_NS,
            "counter",
            f"{device.id}: the recording has no energy counter to check the power ring against (a board without one "
            'says so: a device row with "facts": {"energy_counter": false})',
            device.id,
        )


_BLOCK_ROWS = 10_000


def write_recording(
    path: Path, timeline: Timeline, windows: Iterable[RecordedWindow], *, realtime_offset_ns: int
) -> None:
    """Write a timeline and its windows (gzipped where the name ends in ``.gz``); whole, or not at all.

    ``realtime_offset_ns`` is realtime less the timeline's clock. Times are rounded to microseconds. Raises UsageError
    where the file cannot be written.
    """
    digest = hashlib.sha256()
    try:
        with (
            replacing(path) as temporary,
            open_recording(temporary, "wb", packed=path.suffix == ".gz") as out,
        ):
            for rows in _encoded(timeline, windows, realtime_offset_ns):
                digest.update(rows)
                out.write(rows)
            out.write(_END + b',"sha256":"' + digest.hexdigest().encode() + b'"}\n')
    except OSError as error:
        raise UsageError(f"{path}: the recording cannot be written: {error.strerror or error}") from error


def _encoded(
    timeline: Timeline, windows: Iterable[RecordedWindow], realtime_offset_ns: int
) -> Iterator[bytes]:
    encode = msgspec.json.Encoder().encode

    def us(t_ns: int) -> int:
        return (t_ns + realtime_offset_ns + 500) // 1000

    yield b'{"type":"recording","version":%d,"digest":"sha256"}\n' % VERSION
    yield encode(ClockRow(us(0), 0)) + b"\n"
    for device in timeline.devices.values():
        yield encode(_device_row(timeline, device)) + b"\n"
    for device_id in timeline.devices:
        name = encode(device_id).decode()
        power = timeline.power(device_id)
        if power is not None:
            t_us = (power.t_ns + (realtime_offset_ns + 500)) // 1000
            # A day of eight boards is 35 million rows: text by hand is many times faster than a struct for each.
            for first in range(0, len(t_us), _BLOCK_ROWS):
                block = slice(first, first + _BLOCK_ROWS)
                pairs = zip(t_us[block].tolist(), power.milliwatts[block].tolist(), strict=True)
                yield "".join(
                    f'{{"type":"power","device":{name},"t_us":{t},"mw":{mw}}}\n' for t, mw in pairs
                ).encode()
        counters = timeline.counters(device_id)
        for t0, t1, value in zip(
            counters.t0_ns.tolist(), counters.t1_ns.tolist(), counters.microjoules.tolist(), strict=True
        ):
            whole, rest = divmod(value, 1000)
            yield encode(CounterRow(device_id, us(t0), us(t1), value / 1000 if rest else whole)) + b"\n"
        for each in timeline.conditions(device_id):
            fields = {name: getattr(each, name) for name in CONDITION_FIELDS}
            yield encode(ConditionsRow(device=device_id, t_us=us(each.t_ns), **fields)) + b"\n"
    for event in timeline.all_events:
        yield (
            encode(EventRow(us(event.start_ns), us(event.end_ns), event.guard, event.reason, event.device_id))
            + b"\n"
        )
    for window in windows:
        fields = {name: getattr(window, name) for name in WINDOW_FIELDS}
        yield encode(WindowRow(start_us=us(window.start_ns), end_us=us(window.end_ns), **fields)) + b"\n"


def _device_row(timeline: Timeline, device: Device) -> DeviceRow:
    power = timeline.power(device.id)
    return DeviceRow(
        id=device.id,
        scope=device.scope,
        name=device.name,
        meter=device.meter,
        provenance=device.provenance,
        counter_tick_us=device.counter_tick_ns // 1000,
        held=power is None or power.held,
        clock_error_us=-(-device.clock_error_ns // 1000),
        key_facts=dict(device.key_facts),
        facts=dict(device.facts),
    )
