"""A meter on another machine: its timeline, handed out in pieces there and placed on this machine's clock here.

Two transports carry it: HTTP (``tokenpower serve-meter``) and the actors of a Ray cluster. Nothing is fetched while a
round runs, unless it lasts longer than POLL_S: whoever waits for the readings of a window asks for them.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import msgspec
import numpy as np

from pytest_tokenpower.errors import MeterError, MeterUnavailable
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.collector import OPEN_TIMEOUT_S, Collector
from pytest_tokenpower.meters.timeline import Event
from pytest_tokenpower.meters.types import Conditions, CounterReading, Device, PowerSamples, Reading

PROTOCOL = 1

POLL_S = 30.0

PINGS_AT_START, PINGS, MOST_PINGS = 16, 4, 64
"""At each poll so many, and up to MOST_PINGS where they do not find the clock within the error that was stated."""

MOST_DRIFT = 1e-4
"""Two machines' monotonic clocks run apart by at most this share: crystals differ by tens of ppm, and NTP slews by at
most 500 ppm for a short time."""

LEAST_CLOCK_ERROR_NS = 500_000

MOST_CLOCK_ERROR_NS = 20_000_000
"""Beyond a sample of the ring a window could not be placed at all."""

MOST_ROWS = 100_000
"""Of power samples in one piece: 1.2 MB."""

KEPT_S = 3600.0
"""For so long a feed keeps what nobody has fetched."""

BEFORE_NS = 5_000_000_000
"""Of readings from before a reader came: how a meter reads is told by them, as by a ring of a board that is here."""


class Cursor(msgspec.Struct, frozen=True):
    """Up to where a reader has a feed's rows: for each device the newest stamps, and how many events."""

    power_ns: dict[str, int] = {}
    counter_ns: dict[str, int] = {}
    condition_ns: dict[str, int] = {}
    event_ns: int = 0


class Power(msgspec.Struct, frozen=True):
    """Power samples as little-endian bytes: int64 nanoseconds and uint32 milliwatts."""

    t_ns: bytes
    milliwatts: bytes
    held: bool


class Piece(msgspec.Struct, frozen=True):
    """What came since a cursor, on the feed's monotonic clock; ``more``: there is more to be fetched at once."""

    feed: str
    cursor: Cursor
    power: dict[str, Power] = {}
    counters: dict[str, list[CounterReading]] = {}
    conditions: dict[str, list[Conditions]] = {}
    events: list[Event] = []
    more: bool = False


class Hello(msgspec.Struct, frozen=True):
    """A feed and its devices; ``feed`` is another one after a restart."""

    feed: str
    host: str
    devices: list[Device]
    cursor: Cursor
    protocol: int = PROTOCOL


class Transport(Protocol):
    """How a feed is reached. Everything raises MeterError with the node and what failed."""

    def hello(self) -> Hello:
        """Return the feed and its devices."""
        ...

    def now_ns(self) -> int:
        """Return the feed's monotonic clock, as fast as can be."""
        ...

    def piece(self, cursor: Cursor) -> Piece:
        """Return what came since a cursor."""
        ...

    def close(self) -> None:
        """Let go of the feed; never raises."""
        ...


class Feed:
    """The side where the meters are: a running collector, handed out in pieces.

    ``ours`` says whether processes there are the run's: the workers of a Ray cluster are, what runs beside a service
    is not known to be. Raises MeterUnavailable for meters on a clock that nobody elsewhere can know.
    """

    def __init__(self, collector: Collector, devices: Sequence[Device], *, ours: bool = False) -> None:
        if collector.clock.every is not None:
            collector.stop()
            raise MeterUnavailable(
                "boards that are simulated on a virtual clock cannot be handed out: no other process lives on it "
                '(leave "clock": "virtual" out of the scenario)'
            )
        self._collector = collector
        self._devices = list(devices)
        self._ours = ours
        self._name = secrets.token_hex(8)
        self._forgotten_s = time.monotonic()

    def hello(self) -> Hello:
        """Return who this is, and a cursor for what was read just now and comes from now on."""
        now_ns = time.monotonic_ns()
        since = {device.id: max(now_ns - BEFORE_NS, 0) for device in self._devices}
        now = dict.fromkeys(since, now_ns)
        return Hello(
            self._name, socket.gethostname(), self._devices, Cursor(since, since, now, event_ns=now_ns)
        )

    def now_ns(self) -> int:
        """Return this machine's monotonic clock."""
        return time.monotonic_ns()

    def piece(self, cursor: Cursor) -> Piece:
        """Read the meters once, and return what came since ``cursor``; a device that it lacks begins with all."""
        self._collector.flush(0)
        self._forget()
        timeline = self._collector.timeline
        power: dict[str, Power] = {}
        counters: dict[str, list[CounterReading]] = {}
        conditions: dict[str, list[Conditions]] = {}
        ends = (dict(cursor.power_ns), dict(cursor.counter_ns), dict(cursor.condition_ns))
        more = False
        room = MOST_ROWS
        for device in self._devices:
            after = cursor.power_ns.get(device.id, 0)
            samples = timeline.power(device.id, start_ns=after)
            if samples is not None:
                new = np.flatnonzero(samples.t_ns > after)
                more |= len(new) > room
                new = new[:room]
                room -= len(new)
                if len(new):
                    ends[0][device.id] = int(samples.t_ns[new[-1]])
                    power[device.id] = Power(
                        samples.t_ns[new].astype("<i8").tobytes(),
                        samples.milliwatts[new].astype("<u4").tobytes(),
                        samples.held,
                    )
            read = timeline.counters(device.id, start_ns=cursor.counter_ns.get(device.id, 0))
            rows = [
                CounterReading(int(t0), int(t1), int(value))
                for t0, t1, value in zip(read.t0_ns, read.t1_ns, read.microjoules, strict=True)
                if t0 > cursor.counter_ns.get(device.id, 0)
            ]
            if rows:
                counters[device.id], ends[1][device.id] = rows, rows[-1].t0_ns
            seen = [
                each if self._ours else replace(each, foreign_pids=None, own_process=None)
                for each in timeline.conditions(device.id, start_ns=cursor.condition_ns.get(device.id, 0) + 1)
            ]
            if seen:
                conditions[device.id], ends[2][device.id] = seen, seen[-1].t_ns
        events = [event for event in timeline.all_events if event.end_ns > cursor.event_ns]
        newest = max([cursor.event_ns, *(event.end_ns for event in events)])
        return Piece(self._name, Cursor(*ends, event_ns=newest), power, counters, conditions, events, more)

    def _forget(self) -> None:
        # A service runs for months.
        if time.monotonic() - self._forgotten_s > KEPT_S / 4:
            self._forgotten_s = time.monotonic()
            self._collector.timeline.forget(time.monotonic_ns() - int(KEPT_S * 1e9))

    def close(self) -> None:
        """End the collector."""
        self._collector.stop()


def unlike_boards(devices: Sequence[Device]) -> str:
    """Return by node in what the boards of several nodes differ (model, driver, limits); "" where they do not."""
    boards = [each for each in devices if each.scope == "gpu" and "node" in each.facts]
    known = [{"name": each.name, **each.key_facts, "driver": each.facts.get("driver")} for each in boards]
    # The name and the whole driver say these.
    names = [name for each in known for name in each if name not in ("model", "driver_major")]
    differing = [name for name in dict.fromkeys(names) if len({each.get(name) for each in known}) > 1]
    nodes: dict[str, Counter[str]] = {}
    for board, facts in zip(boards, known, strict=True):
        words = [
            str(facts.get(name))
            if name == "name"
            else f"{name.replace('_', ' ')} {facts.get(name) or 'unknown'}"
            for name in differing
        ]
        nodes.setdefault(str(board.facts["node"]), Counter())[", ".join(words)] += 1
    if not differing or len(nodes) < 2:
        return ""
    return "; ".join(
        f"{node} has {', '.join(f'{count}x {words}' for words, count in each.items())}"
        for node, each in sorted(nodes.items())
    )


def other_version(name: str, protocol: int) -> MeterUnavailable:
    """Return the error of a feed that speaks another version of the protocol."""
    return MeterUnavailable(
        f"{name}: it speaks version {protocol} of the protocol, and this side version {PROTOCOL}: install the same "
        "pytest-tokenpower on both"
    )


class Alignment:
    """The offset of a feed's clock, ``offset_ns`` = feed less ours, known to ``error_ns`` at a moment.

    An answer was stamped somewhere between asking and hearing: half of that time bounds the error (as in NTP, RFC
    5905). What was known before grows vague by MOST_DRIFT, and the better of the two is kept.
    """

    def __init__(self, ask: Callable[[], int], monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._ask = ask
        self._monotonic_ns = monotonic_ns
        self.offset_ns = 0
        self._error_ns = float("inf")
        self._at_ns = monotonic_ns()

    def error_ns(self) -> float:
        """Return the bound of the error now."""
        return self._error_ns + MOST_DRIFT * (self._monotonic_ns() - self._at_ns)

    def ping(self, times: int) -> bool:
        """Ask so often and keep the best; False where the clock has jumped beyond what drift explains."""
        steady = True
        for _ in range(times):
            before = self._monotonic_ns()
            theirs = self._ask()
            after = self._monotonic_ns()
            # Stamps are whole nanoseconds, which adds one to what their difference may be off.
            error = (0.5 + MOST_DRIFT) * (after - before) + 1
            offset = theirs - (before + after) // 2
            known = self.error_ns()
            jumped = abs(offset - self.offset_ns) > error + known
            if jumped or error < known:
                self.offset_ns, self._error_ns, self._at_ns = offset, error, after
            steady = steady and not jumped
        return steady


class RemoteMeter:
    """A feed as a meter of this run. Its devices carry the node's name, and the error of its clock."""

    poll_interval_s = POLL_S

    def __init__(self, name: str, transport: Transport, open_timeout_s: float = OPEN_TIMEOUT_S) -> None:
        self.name = name
        self.open_timeout_s = open_timeout_s
        self._transport = transport
        self._alignment = Alignment(transport.now_ns)
        self._feed = ""
        self._cursor = Cursor()
        self._ids: dict[str, str] = {}
        self._clock_error_ns = LEAST_CLOCK_ERROR_NS

    def open(self, clock: Clock) -> Sequence[Device]:
        """Reach the feed, align the clocks and list its devices; raises MeterError, MeterUnavailable."""
        hello = self._transport.hello()
        if hello.protocol != PROTOCOL:
            raise other_version(self.name, hello.protocol)
        if not hello.devices:
            raise MeterUnavailable(f"{self.name}: it measures no device")
        self._alignment.ping(PINGS_AT_START)
        # Later pings may fall on a busier network.
        self._clock_error_ns = max(LEAST_CLOCK_ERROR_NS, round(3 * self._alignment.error_ns()))
        if self._clock_error_ns > MOST_CLOCK_ERROR_NS:
            raise MeterUnavailable(
                f"{self.name}: its clock can be aligned to ±{self._clock_error_ns / 1e6:.0f} ms only, and windows need "
                f"±{MOST_CLOCK_ERROR_NS / 1e6:.0f} ms: the network between is too slow"
            )
        self._feed, self._cursor = hello.feed, hello.cursor
        # A board has its own id everywhere; "cpu" is one on each node.
        self._ids = {
            each.id: each.id if each.gpu_id == each.id else f"{hello.host}/{each.id}"
            for each in hello.devices
        }
        return [
            replace(
                each,
                id=self._ids[each.id],
                # What a feed has from another one is placed less surely than by either.
                facts={"node": hello.host, **each.facts},
                clock_error_ns=self._clock_error_ns + each.clock_error_ns,
                latency_s=each.latency_s + 1.0,
            )
            for each in hello.devices
        ]

    def poll(self, clock: Clock) -> Sequence[Reading]:
        """Fetch what came since the last time; raises MeterError with the node."""
        steady, pings = self._alignment.ping(PINGS), PINGS
        while self._alignment.error_ns() > self._clock_error_ns and pings < MOST_PINGS:
            steady, pings = self._alignment.ping(1) and steady, pings + 1
        readings: list[Reading] = []
        more = True
        while more:
            piece = self._transport.piece(self._cursor)
            if piece.feed != self._feed:
                self._feed, self._cursor = piece.feed, piece.cursor
                raise MeterError(f"{self.name}: it was restarted, and what it read in between is lost")
            more = piece.more and piece.cursor != self._cursor
            self._cursor = piece.cursor
            try:
                readings += self._readings(piece)
            except (ValueError, OverflowError) as error:
                raise MeterError(f"{self.name}: it sent what are no readings: {error}") from error
        if not steady:
            readings += self._faults("its clock jumped against this machine's: a suspended or migrated node")
        elif self._alignment.error_ns() > self._clock_error_ns:
            readings += self._faults(
                f"its clock is known to ±{self._alignment.error_ns() / 1e6:.1f} ms only, at first it was "
                f"±{self._clock_error_ns / 1e6:.1f} ms: the network is too slow just now"
            )
        return readings

    def _faults(self, what: str) -> list[Reading]:
        return [Reading(device, fault=f"{self.name}: {what}") for device in self._ids.values()]

    def _readings(self, piece: Piece) -> list[Reading]:
        by = self._alignment.offset_ns
        found: list[Reading] = []
        for theirs, device in self._ids.items():
            power = piece.power.get(theirs)
            found.append(
                Reading(
                    device,
                    None
                    if power is None
                    else PowerSamples(
                        np.frombuffer(power.t_ns, "<i8").astype(np.int64) - by,
                        np.frombuffer(power.milliwatts, "<u4").astype(np.int64),
                        power.held,
                    ),
                    [
                        CounterReading(each.t0_ns - by, each.t1_ns - by, each.microjoules)
                        for each in piece.counters.get(theirs, ())
                    ],
                )
            )
            found += [
                Reading(device, conditions=replace(each, t_ns=each.t_ns - by))
                for each in piece.conditions.get(theirs, ())
            ]
        found += [
            Reading(device, fault=f"{self.name}: {event.reason}")
            for event in piece.events
            for device in self._of(event)
        ]
        return found

    def _of(self, event: Event) -> Sequence[str]:
        if event.device_id is None:
            return tuple(self._ids.values())
        return [self._ids[event.device_id]] if event.device_id in self._ids else ()

    def close(self) -> None:
        """Let go of the feed."""
        self._transport.close()
