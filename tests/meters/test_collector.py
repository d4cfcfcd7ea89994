"""The collector's thread: waiting for readings, meters that hang, fail or stop, and a starved interpreter."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from pytest_tokenpower.analysis.rounds import round_records
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.windows import RoundWindow
from pytest_tokenpower.errors import MeterError, MeterUnavailable
from pytest_tokenpower.meters import collector as module
from pytest_tokenpower.meters.adapters.nvml.meter import NvmlMeter
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.collector import Collector, poll_once
from pytest_tokenpower.meters.simulation.library import SimulatedBoards
from pytest_tokenpower.meters.timeline import Timeline
from pytest_tokenpower.meters.types import Device, PowerSamples, Reading

GPU = Device("GPU-1", "gpu", "A board", "scripted", "measured")
PATIENCE_S = 120.0
"""What never happens is waited for as long as this; nothing here takes a tenth of it."""


class Scripted:
    """A meter that does in each poll what the test says."""

    name = "scripted"
    poll_interval_s = 0.01

    def __init__(self, poll: Callable[[int], Sequence[Reading]] | None = None) -> None:
        self.polls = 0
        self.closed = threading.Event()
        self._poll = poll or (lambda number: [power_now()])

    def open(self, clock: Clock) -> Sequence[Device]:
        return [GPU]

    def poll(self, clock: Clock) -> Sequence[Reading]:
        self.polls += 1
        return self._poll(self.polls)

    def close(self) -> None:
        self.closed.set()


def power_now() -> Reading:
    t_ns = np.array([time.monotonic_ns()], dtype=np.int64)
    return Reading(GPU.id, PowerSamples(t_ns, np.array([300_000], dtype=np.int64)))


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Return what a hanging poll waits for; opened at the end of each test."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def running(request: pytest.FixtureRequest) -> Callable[[Scripted], Collector]:
    def start(meter: Scripted) -> Collector:
        collector = Collector([meter])
        request.addfinalizer(collector.stop)
        collector.start()
        return collector

    return start


def reasons(collector: Collector) -> list[str]:
    return [event.reason for event in collector.timeline.all_events]


# --- flush


def test_flush_returns_when_the_readings_reach_far_enough(running: Callable[[Scripted], Collector]) -> None:
    collector = running(Scripted())
    for _ in range(5):
        until_ns = time.monotonic_ns() + 30_000_000
        collector.flush(until_ns, PATIENCE_S)
        newest_ns = collector.timeline.newest_ns(GPU.id)
        assert newest_ns is not None
        assert newest_ns >= until_ns
    assert reasons(collector) == []


def test_a_poll_that_began_before_the_call_does_not_count(
    running: Callable[[Scripted], Collector], gate: threading.Event
) -> None:
    inside = [threading.Event(), threading.Event()]
    later = threading.Event()

    def poll(number: int) -> Sequence[Reading]:
        if number == 2:
            inside[0].set()
            gate.wait(PATIENCE_S)
        if number == 3:
            inside[1].set()
            later.wait(PATIENCE_S)
        return [power_now()]

    collector = running(Scripted(poll))
    assert inside[0].wait(PATIENCE_S)
    # Long known, as far as the timeline goes.
    waiting = threading.Thread(target=collector.flush, args=(5, PATIENCE_S))
    waiting.start()
    waiting.join(0.15)
    assert waiting.is_alive()
    gate.set()
    assert inside[1].wait(PATIENCE_S)
    waiting.join(0.15)
    assert waiting.is_alive()
    later.set()
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()


def test_a_meter_that_hangs_is_noted_once_waited_for_and_then_given_up_at_once(
    running: Callable[[Scripted], Collector], gate: threading.Event
) -> None:
    def poll(number: int) -> Sequence[Reading]:
        if number >= 2 and not gate.is_set():
            gate.wait(PATIENCE_S)
        return [power_now()]

    collector = running(Scripted(poll))
    now_ns = time.monotonic_ns()
    collector.flush(now_ns, 0.2)
    [reason] = reasons(collector)
    assert reason.startswith("GPU-1: the meter scripted did not answer for ")
    [event] = collector.timeline.events(GPU.id, now_ns, now_ns)
    assert event.guard == "meter failed"

    began = time.monotonic()
    for _ in range(3):
        collector.flush(time.monotonic_ns(), PATIENCE_S)
    assert time.monotonic() - began < PATIENCE_S / 2
    assert len(reasons(collector)) == 4

    gate.set()
    until_ns = time.monotonic_ns()
    collector.flush(until_ns, PATIENCE_S)
    assert (collector.timeline.newest_ns(GPU.id) or 0) >= until_ns
    assert len(reasons(collector)) == 4


def test_a_meter_that_stops_is_noted_once_waited_for_and_then_given_up_at_once(
    running: Callable[[Scripted], Collector], gate: threading.Event
) -> None:
    collector = running(Scripted(lambda number: [power_now()] if number < 3 or gate.is_set() else []))
    while collector._pollers[0].poll_now(PATIENCE_S) and collector._pollers[0].meter.polls < 4:  # type: ignore[attr-defined]
        pass
    now_ns = time.monotonic_ns()
    collector.flush(now_ns, 0.2)
    [reason] = reasons(collector)
    assert reason.startswith("GPU-1: the meter scripted gave no newer reading for ")
    # The stretch without readings is spoilt from the last one on.
    [event] = collector.timeline.all_events
    assert event.start_ns == collector.timeline.newest_ns(GPU.id)
    assert event.end_ns >= now_ns

    began = time.monotonic()
    collector.flush(time.monotonic_ns(), PATIENCE_S)
    assert time.monotonic() - began < PATIENCE_S / 2
    assert len(reasons(collector)) == 2

    gate.set()
    until_ns = time.monotonic_ns()
    collector.flush(until_ns, PATIENCE_S)
    assert (collector.timeline.newest_ns(GPU.id) or 0) >= until_ns
    assert len(reasons(collector)) == 2


def test_only_the_devices_that_are_wanted_are_waited_for(
    running: Callable[[Scripted], Collector], gate: threading.Event
) -> None:
    def poll(number: int) -> Sequence[Reading]:
        if number > 1:
            gate.wait(PATIENCE_S)
        return []

    collector = running(Scripted(poll))
    began = time.monotonic()
    collector.flush(time.monotonic_ns(), PATIENCE_S, devices=())
    assert time.monotonic() - began < PATIENCE_S / 2
    assert reasons(collector) == []


# --- polls that fail


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MeterError("GPU-1: no answer"), "GPU-1: the meter scripted failed: GPU-1: no answer"),
        (ZeroDivisionError("oh"), "GPU-1: the meter scripted failed: ZeroDivisionError: oh"),
    ],
)
def test_a_poll_that_fails_is_noted_and_the_next_one_is_made(
    running: Callable[[Scripted], Collector], error: Exception, said: str
) -> None:
    def poll(number: int) -> Sequence[Reading]:
        if number == 2:
            raise error
        return [power_now()]

    collector = running(Scripted(poll))
    until_ns = time.monotonic_ns() + 50_000_000
    collector.flush(until_ns, PATIENCE_S)
    assert reasons(collector) == [said]
    [event] = collector.timeline.all_events
    assert (event.guard, event.device_id) == ("meter failed", "GPU-1")


def test_a_fault_spoils_from_the_beginning_of_the_poll_before() -> None:
    now = [100]
    clock = Clock(lambda: now[0], lambda: now[0])
    timeline = Timeline()
    timeline.add_device(GPU)

    def poll(number: int) -> Sequence[Reading]:
        # What a poll reads first may be as old as its beginning.
        now[0] += 10
        return [Reading(GPU.id, fault="GPU-1: lost")]

    meter = Scripted(poll)
    began_ns = poll_once(meter, [GPU], timeline, clock, 50)
    assert began_ns == 100
    now[0] = 200
    assert poll_once(meter, [GPU], timeline, clock, began_ns) == 200
    assert [(event.start_ns, event.end_ns) for event in timeline.all_events] == [(50, 110), (100, 210)]


@pytest.mark.parametrize("moment", ["before the poll", "in the poll"])
def test_realtime_that_is_set_spoils_what_was_read_around(moment: str) -> None:
    now, ahead = [10**9], [0]
    clock = Clock(lambda: now[0], lambda: now[0] + ahead[0])
    timeline = Timeline()
    timeline.add_device(GPU)

    def poll(number: int) -> Sequence[Reading]:
        if moment == "in the poll":
            ahead[0] = 20_000_000
        return []

    began_ns = poll_once(Scripted(), [GPU], timeline, clock, 0)
    now[0] += 10**9
    if moment == "before the poll":
        ahead[0] = 20_000_000
    poll_once(Scripted(poll), [GPU], timeline, clock, began_ns)
    [event] = timeline.all_events
    assert (event.start_ns, event.end_ns, event.device_id) == (began_ns, now[0], None)
    assert event.reason == "the realtime clock was set by +20.0 ms during the measurement (NTP)"


# --- opening and stopping


class Failing(Scripted):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def open(self, clock: Clock) -> Sequence[Device]:
        raise self._error


def test_why_a_meter_is_unavailable_reaches_the_caller_and_it_is_let_go_of() -> None:
    meter = Failing(MeterUnavailable("no such board"))
    with pytest.raises(MeterUnavailable, match=r"^no such board$"):
        Collector([meter]).start()
    assert meter.closed.wait(PATIENCE_S)


def test_what_no_meter_should_raise_becomes_an_error_that_names_it() -> None:
    with pytest.raises(MeterError, match=r"^the meter scripted could not be opened: KeyError: 'x'$"):
        Collector([Failing(KeyError("x"))]).start()


def test_two_meters_of_one_device_are_told_apart_by_nobody() -> None:
    collector = Collector([Scripted()])
    collector.start()
    with pytest.raises(ValueError, match="two meters list the device GPU-1"):
        collector.add(Scripted())
    collector.stop()


def test_a_meter_that_hangs_when_it_is_opened_is_given_up(
    monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    class Hanging(Scripted):
        def open(self, clock: Clock) -> Sequence[Device]:
            gate.wait(PATIENCE_S)
            return []

    monkeypatch.setattr(module, "OPEN_TIMEOUT_S", 0.1)
    with pytest.raises(MeterError, match="the meter scripted did not answer within 0 s"):
        Collector([Hanging()]).start()


def test_a_meter_that_says_that_it_opens_slowly_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Scripted):
        open_timeout_s = PATIENCE_S

        def open(self, clock: Clock) -> Sequence[Device]:
            time.sleep(0.2)
            return super().open(clock)

    monkeypatch.setattr(module, "OPEN_TIMEOUT_S", 0.01)
    collector = Collector([Slow()])
    assert collector.start()
    collector.stop()


def test_stopping_may_be_done_at_any_time_and_again(gate: threading.Event) -> None:
    meter = Scripted()
    collector = Collector([meter])
    collector.stop()
    collector.start()
    collector.stop()
    assert meter.closed.is_set()
    collector.stop()

    hanging = Scripted(lambda number: [power_now()] if number < 2 or gate.wait(PATIENCE_S) else [])
    collector = Collector([hanging])
    collector.start()
    collector.flush(time.monotonic_ns() + 10**9, 0.1)
    began = time.monotonic()
    collector.stop()
    assert time.monotonic() - began < PATIENCE_S / 2
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("tokenpower-"))


def test_an_error_in_closing_is_swallowed(running: Callable[[Scripted], Collector]) -> None:
    class Clumsy(Scripted):
        def close(self) -> None:
            super().close()
            raise RuntimeError("gone already")

    meter = Clumsy()
    running(meter).stop()
    assert meter.closed.is_set()


# --- a starved interpreter


def test_a_held_interpreter_lock_costs_the_round_that_it_lasted_and_no_other() -> None:
    collector = Collector([NvmlMeter(SimulatedBoards(), provenance="simulated")])
    devices = collector.start()

    def measured(work: Callable[[], object]) -> tuple[str, ...]:
        start_ns = time.monotonic_ns()
        work()
        end_ns = time.monotonic_ns()
        collector.flush(end_ns + 60_000_000, PATIENCE_S)
        window = RoundWindow(start_ns, end_ns, TokenCount(1, 1))
        [record] = round_records(collector.timeline, devices, [window])
        assert record.reasons or record.joules == pytest.approx(300 * (end_ns - start_ns) / 1e9, rel=0.02)
        return record.reasons

    try:
        assert measured(lambda: time.sleep(0.2)) == ()
        # PyDLL calls without letting go of the lock: the ring's 2.4 s run over meanwhile.
        starved = measured(lambda: ctypes.PyDLL(None).usleep(3_000_000))
        assert any("readings are missing inside the window" in reason for reason in starved)
        assert measured(lambda: time.sleep(0.2)) == ()
    finally:
        collector.stop()
