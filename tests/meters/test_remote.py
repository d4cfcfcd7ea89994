"""A meter on another machine: clocks aligned within what is stated, nothing lost or doubled, faults with the node."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_tokenpower.analysis.rounds import evaluate
from pytest_tokenpower.analysis.tracks import ring_track, window_energy
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.core.windows import RoundWindow
from pytest_tokenpower.errors import MeterError, MeterUnavailable
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.collector import Collector
from pytest_tokenpower.meters.remote import (
    LEAST_CLOCK_ERROR_NS,
    MOST_DRIFT,
    Alignment,
    Cursor,
    Feed,
    Hello,
    Piece,
    RemoteMeter,
    unlike_boards,
)
from pytest_tokenpower.meters.timeline import FAILED, Event, Timeline
from pytest_tokenpower.meters.types import Conditions, CounterReading, Device, PowerSamples, Reading

GPU = Device("GPU-1", "gpu", "Board", "fake", "simulated", counter_tick_ns=100_000_000)
CPU = Device("package-0", "cpu", "Processor", "fake", "measured")


@dataclass
class Scripted:
    """A meter that gives what it is told to."""

    devices: Sequence[Device] = (GPU, CPU)
    name: str = "scripted"
    poll_interval_s: float = 3600.0
    queue: list[Reading] = field(default_factory=list)

    def open(self, clock: Clock) -> Sequence[Device]:
        return self.devices

    def poll(self, clock: Clock) -> Sequence[Reading]:
        given, self.queue = self.queue, []
        return given

    def close(self) -> None:
        pass


@contextmanager
def feed_of(meter: Scripted, *, ours: bool = False) -> Iterator[Feed]:
    collector = Collector([meter])
    feed = Feed(collector, collector.start(), ours=ours)
    try:
        yield feed
    finally:
        feed.close()


def power(start_ns: int, count: int) -> PowerSamples:
    return PowerSamples(start_ns + np.arange(count) * 20_000_000, np.full(count, 300_000))


def test_every_row_is_handed_out_once_in_pieces_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_tokenpower.meters.remote.MOST_ROWS", 7)
    meter = Scripted()
    with feed_of(meter) as feed:
        cursor = feed.hello().cursor
        start = cursor.event_ns + 1
        meter.queue = [
            Reading(
                "GPU-1", power(start, 20), [CounterReading(start, start + 5, 9)], Conditions(start, 40.0)
            ),
            Reading("package-0", power(start, 3)),
        ]
        stamps: dict[str, list[int]] = {"GPU-1": [], "package-0": []}
        counters = 0
        more, pieces = True, 0
        while more:
            piece = feed.piece(cursor)
            assert sum(len(each.t_ns) // 8 for each in piece.power.values()) <= 7
            for device, each in piece.power.items():
                stamps[device] += np.frombuffer(each.t_ns, "<i8").tolist()
            counters += sum(map(len, piece.counters.values()))
            cursor, more, pieces = piece.cursor, piece.more, pieces + 1
        assert stamps == {
            name: power(start, n).t_ns.tolist() for name, n in (("GPU-1", 20), ("package-0", 3))
        }
        assert counters == 1
        assert pieces == 4
        assert feed.piece(cursor).power == {}


def test_what_was_read_just_before_comes_along_so_that_it_is_known_at_once_how_a_meter_reads() -> None:
    meter = Scripted()
    now_ns = Clock().monotonic_ns()
    meter.queue = [
        Reading("GPU-1", power(now_ns - 60 * 10**9, 5)),
        Reading("GPU-1", power(now_ns - 2 * 10**9, 50), conditions=Conditions(now_ns - 10**9, 40.0)),
    ]
    with feed_of(meter) as feed:
        remote = RemoteMeter("ray:node-b", Direct(feed))
        remote.open(Clock())
        read = remote.poll(Clock())
        [one] = [each.power for each in read if each.power is not None]
        assert len(one.t_ns) == 50
        assert all(each.conditions is None for each in read)


def test_processes_beside_a_service_are_not_said_to_be_foreign() -> None:
    for ours, expected in ((False, (None, None)), (True, ((7,), True))):
        meter = Scripted()
        with feed_of(meter, ours=ours) as feed:
            cursor = feed.hello().cursor
            meter.queue = [
                Reading(
                    "GPU-1", conditions=Conditions(cursor.event_ns + 5, foreign_pids=(7,), own_process=True)
                )
            ]
            [seen] = feed.piece(cursor).conditions["GPU-1"]
            assert (seen.foreign_pids, seen.own_process) == expected


@given(
    offset_ns=st.integers(-(10**15), 10**15),
    delays_ns=st.lists(st.tuples(st.integers(0, 10**8), st.integers(0, 10**8)), min_size=1, max_size=12),
    drift=st.floats(-MOST_DRIFT, MOST_DRIFT),
)
@example(offset_ns=0, delays_ns=[(1, 0), (0, 0)], drift=-MOST_DRIFT)
def test_the_clocks_are_aligned_within_the_stated_error_whatever_the_network_does(
    offset_ns: int, delays_ns: list[tuple[int, int]], drift: float
) -> None:
    now = 10**9

    def theirs() -> float:
        return offset_ns + now + drift * now

    ways = iter(delays_ns * 2)

    def ask() -> int:
        nonlocal now
        there, back = next(ways)
        now += there
        stamp = round(theirs())
        now += back
        return stamp

    alignment = Alignment(ask, lambda: now)
    for _ in delays_ns:
        assert alignment.ping(1)
        assert (
            abs(alignment.offset_ns - (theirs() - now)) <= alignment.error_ns() + 1
        )  # what the stamp of this moment is rounded by
        now += 10**9


@dataclass
class Direct:
    """A transport without a network, whose feed's clock is ``ahead_ns`` of ours; faults on demand."""

    feed: Feed
    ahead_ns: int = 0
    fault: str = ""
    restarted: bool = False
    protocol: int = 1

    def hello(self) -> Hello:
        found = self.feed.hello()
        return Hello(found.feed, "node-b", found.devices, found.cursor, self.protocol)

    def now_ns(self) -> int:
        return self.feed.now_ns() + self.ahead_ns

    def piece(self, cursor: Cursor) -> Piece:
        if self.fault:
            raise MeterError(self.fault)
        found = self.feed.piece(cursor)
        return Piece("another", found.cursor) if self.restarted else found

    def close(self) -> None:
        pass


def test_stamps_are_placed_on_this_machines_clock_and_devices_carry_the_node() -> None:
    meter = Scripted()
    with feed_of(meter) as feed:
        ahead = 123_456_789_000
        remote = RemoteMeter("ray:node-b", Direct(feed, ahead))
        gpu, cpu = remote.open(Clock())
        assert (gpu.id, cpu.id) == ("GPU-1", "node-b/package-0")
        assert gpu.facts["node"] == "node-b"
        assert gpu.clock_error_ns >= LEAST_CLOCK_ERROR_NS
        at = Clock().monotonic_ns() + 10**9
        meter.queue = [Reading("GPU-1", power(at + ahead, 3), [CounterReading(at + ahead, at + ahead, 7)])]
        [one] = [each for each in remote.poll(Clock()) if each.power is not None]
        assert one.device_id == "GPU-1"
        assert one.power is not None
        assert abs(int(one.power.t_ns[0]) - at) <= gpu.clock_error_ns
        assert abs(one.counters[0].t0_ns - at) <= gpu.clock_error_ns


def test_a_feed_of_a_feed_keeps_the_node_and_adds_the_errors_of_both_clocks() -> None:
    there = replace(GPU, facts={"node": "node-c"}, clock_error_ns=3_000_000)
    with feed_of(Scripted(devices=(there,))) as feed:
        [gpu] = RemoteMeter("remote:node-b", Direct(feed)).open(Clock())
    assert gpu.facts["node"] == "node-c"
    assert gpu.clock_error_ns >= 3_000_000 + LEAST_CLOCK_ERROR_NS


def test_what_goes_wrong_on_a_node_names_it() -> None:
    meter = Scripted()
    with feed_of(meter) as feed:
        transport = Direct(feed)
        remote = RemoteMeter("ray:node-b", transport)
        remote.open(Clock())
        feed._collector.timeline.note(Event(1, Clock().monotonic_ns() + 10**12, "clock step", "NTP", None))
        faults = {each.fault for each in remote.poll(Clock()) if each.fault}
        assert faults == {"ray:node-b: NTP"}
        transport.ahead_ns = 5 * 10**9
        faults = {each.fault for each in remote.poll(Clock()) if each.fault}
        assert any("its clock jumped" in str(each) for each in faults)
        transport.fault = "node node-b: its telemetry actor died"
        with pytest.raises(MeterError, match="node node-b: its telemetry actor died"):
            remote.poll(Clock())
        transport.fault, transport.restarted = "", True
        with pytest.raises(MeterError, match="ray:node-b: it was restarted"):
            remote.poll(Clock())


def test_a_round_that_has_no_readings_says_why() -> None:
    timeline = Timeline()
    timeline.add_device(GPU)
    timeline.note(Event(0, 2 * 10**9, FAILED, "GPU-1: the meter ray:node-b failed: its actor died", "GPU-1"))
    window = RoundWindow(10**9, 2 * 10**9, TokenCount(1, 1))
    [record] = evaluate(timeline, [GPU], [window]).records
    assert record.reasons == (
        "GPU-1: the meter ray:node-b failed: its actor died",
        "GPU-1: the meter fake gave no readings",
    )


def test_another_version_or_no_device_is_refused_with_the_remedy() -> None:
    with feed_of(Scripted()) as feed, pytest.raises(MeterUnavailable, match="the same pytest-tokenpower"):
        RemoteMeter("remote:b", Direct(feed, protocol=2)).open(Clock())
    with feed_of(Scripted(devices=())) as feed, pytest.raises(MeterUnavailable, match="no device"):
        RemoteMeter("remote:b", Direct(feed)).open(Clock())


def test_the_error_of_the_clock_is_in_the_windows_uncertainty() -> None:
    # 100 W until the tenth second, then 500 W: an edge at the step that is 1 ms off is 0.4 J off.
    t_ns = np.arange(1000) * 20_000_000
    track = ring_track(PowerSamples(t_ns, np.where(t_ns <= 10 * 10**9, 100_000, 500_000)))
    off = replace(track, clock_error_ns=1_000_000)
    starts, ends = np.array([10 * 10**9, 12 * 10**9]), np.array([11 * 10**9, 13 * 10**9])
    plain, shifted = window_energy(track, starts, ends), window_energy(off, starts, ends)
    assert shifted.joules == pytest.approx(plain.joules)
    added = np.sqrt(shifted.stderr**2 - plain.stderr**2)
    assert added[0] == pytest.approx(0.4, rel=0.5)
    assert added[1] == pytest.approx(0.0, abs=0.02)
    assert math.isfinite(shifted.stderr[0])


def test_a_timeline_of_months_forgets_what_is_old() -> None:
    meter = Scripted()
    collector = Collector([meter])
    collector.start()
    try:
        timeline = collector.timeline
        many = 200_000
        timeline.append(Reading("GPU-1", PowerSamples(np.arange(1, many + 1), np.ones(many, dtype=np.int64))))
        timeline.forget(150_000)
        kept = timeline.power("GPU-1")
        assert kept is not None
        assert kept.t_ns[0] <= 150_000
        assert kept.t_ns[0] > 100_000
        assert kept.t_ns[-1] == many
        assert timeline.newest_ns("GPU-1") == many
    finally:
        collector.stop()


def test_unlike_boards_of_nodes_are_named_by_what_differs() -> None:
    def board(node: str, name: str = "H100", driver: str = "580.1", watts: int = 700) -> Device:
        facts: dict[str, Fact] = {"node": node, "driver": driver}
        key: dict[str, Fact] = {"model": name, "driver_major": driver[:3], "power_limit_watts": watts}
        return Device(f"{node}-{name}", "gpu", name, "nvml", "measured", key, facts)

    assert unlike_boards([]) == unlike_boards([board("a"), board("a"), board("b")]) == ""
    assert unlike_boards([board("a"), board("a", "H200")]) == ""
    assert (
        unlike_boards([board("b", driver="600.2"), board("a"), board("a")])
        == "a has 2x driver 580.1; b has 1x driver 600.2"
    )
    assert (
        unlike_boards([board("a"), board("b", "H200"), board("b", watts=400)])
        == "a has 1x H100, power limit watts 700; b has 1x H200, power limit watts 700, 1x H100, power limit watts 400"
    )
