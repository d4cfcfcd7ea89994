"""Writes a recording: docs/recording-format.md describes the format."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.telemetry.recording import (
    CONDITION_FIELDS,
    WINDOW_FIELDS,
    RecordedWindow,
    open_recording,
)
from pytest_tokenpower.telemetry.recording_rows import (
    VERSION,
    ClockRow,
    ConditionsRow,
    CounterRow,
    DeviceRow,
    EventRow,
    WindowRow,
)
from pytest_tokenpower.telemetry.timeline import Timeline
from pytest_tokenpower.telemetry.values import Device

_BLOCK_ROWS = 10_000


def write_recording(
    path: Path, timeline: Timeline, windows: Iterable[RecordedWindow], *, realtime_offset_ns: int
) -> None:
    """Write a timeline and its windows (gzipped where the name ends in ``.gz``); whole, or not at all.

    ``realtime_offset_ns`` is realtime less the timeline's clock. Times are rounded to microseconds. Raises UsageError
    where the file cannot be written.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with open_recording(temporary, "wb") as out:
            for rows in _encoded(timeline, windows, realtime_offset_ns):
                out.write(rows)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"{path}: the recording cannot be written: {error.strerror or error}") from error


def _encoded(
    timeline: Timeline, windows: Iterable[RecordedWindow], realtime_offset_ns: int
) -> Iterator[bytes]:
    encode = msgspec.json.Encoder().encode

    def us(t_ns: int) -> int:
        return (t_ns + realtime_offset_ns + 500) // 1000

    yield b'{"type":"recording","version":%d}\n' % VERSION
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
        key_facts=dict(device.key_facts),
        facts=dict(device.facts),
    )
