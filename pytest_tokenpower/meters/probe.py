"""A trial of meters, side by side: each is opened and collected from for some seconds, and everything is timed.

Nothing here raises: what goes wrong with a meter is part of what the trial found out about it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from pytest_tokenpower.errors import MeterUnavailable, TokenPowerError
from pytest_tokenpower.meters.clock import STEP_NS, Clock
from pytest_tokenpower.meters.collector import Collector
from pytest_tokenpower.meters.probe_nvml import BoardFacts, CallCost, CallLog, inspect_boards
from pytest_tokenpower.meters.timeline import Timeline
from pytest_tokenpower.meters.types import Device, Meter, Reading

OPEN_ALLOWANCE_S = 2.0
"""Meters that open later than this are collected from for less time, so that all end together."""

END_ALLOWANCE_S = 8.0
"""How long after the collecting time a meter is given up: the calls' own trial takes up to five seconds."""

LAST_POLL_S = 4.5
"""Meters that ask a BMC or a server cut a poll off after four seconds; what takes longer hangs."""

State = Literal["collected", "unavailable", "failed"]


@dataclass(frozen=True)
class Candidate:
    """A meter to be tried: ``make`` builds it, from ``library()`` where it speaks to one that can be listened to."""

    name: str
    make: Callable[[Any], Meter]
    library: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Poll:
    """One call of a meter's ``poll`` (monotonic), with what failed in it."""

    start_ns: int
    end_ns: int
    fault: str | None = None


@dataclass(frozen=True)
class ProbeResult:
    """What was found out about one meter.

    ``state`` is "unavailable" where there is no such meter here, "failed" where it broke or hung; ``reason`` then
    says why. ``cpu_share`` is the CPU time of its collecting thread per second, in cores. ``start_ns`` and
    ``end_ns`` enclose the collecting. ``boards`` and ``calls`` are known for NVML only.
    """

    name: str
    state: State
    reason: str | None = None
    devices: tuple[Device, ...] = ()
    timeline: Timeline | None = None
    polls: tuple[Poll, ...] = ()
    start_ns: int = 0
    end_ns: int = 0
    cpu_share: float | None = None
    boards: tuple[BoardFacts, ...] = ()
    calls: tuple[CallCost, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass
class WatchedMeter:
    """A meter that does as the one inside it does, and remembers how long each call took and what failed.

    The times are those of the clock that the meter is handed; ``cpu_ns`` is the CPU time of the calling thread.
    """

    meter: Meter
    cpu_ns: Callable[[], int] = time.thread_time_ns
    polls: list[Poll] = field(default_factory=list)
    pending: tuple[str, float] | None = None
    name: str = field(init=False)
    poll_interval_s: float = field(init=False)
    _cpu_marks: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name, self.poll_interval_s = self.meter.name, self.meter.poll_interval_s
        self.clock: Clock | None = getattr(self.meter, "clock", None)

    def open(self, clock: Clock) -> Sequence[Device]:
        """Open the meter inside; raises what it raises."""
        self.pending = ("open", time.monotonic())
        try:
            return self.meter.open(clock)
        finally:
            self.pending = None
            # A meter may settle this when it has seen its devices.
            self.poll_interval_s = self.meter.poll_interval_s

    def poll(self, clock: Clock) -> Sequence[Reading]:
        """Poll the meter inside; raises what it raises."""
        start_ns = clock.monotonic_ns()
        self.pending = ("poll", time.monotonic())
        fault: str | None = None
        try:
            readings = self.meter.poll(clock)
            fault = next((reading.fault for reading in readings if reading.fault is not None), None)
            return readings
        except Exception as error:
            fault = _words(self.name, error)
            raise
        finally:
            self.pending = None
            end_ns = clock.monotonic_ns()
            self.polls.append(Poll(start_ns, end_ns, fault))
            self._cpu_marks = [*self._cpu_marks[:1], (end_ns, self.cpu_ns())]

    def close(self) -> None:
        """Close the meter inside."""
        self.pending = ("close", time.monotonic())
        try:
            self.meter.close()
        finally:
            self.pending = None

    @property
    def cpu_share(self) -> float | None:
        """CPU seconds per second from the first poll to the last, what the collector does between them included."""
        marks = self._cpu_marks
        if len(marks) < 2 or marks[1][0] <= marks[0][0]:
            return None
        return (marks[1][1] - marks[0][1]) / (marks[1][0] - marks[0][0])


@dataclass(frozen=True)
class ClockWatch:
    """Realtime against monotonic over a trial: (monotonic, offset) pairs in nanoseconds, in the order of time."""

    pairs: tuple[tuple[int, int], ...]

    @property
    def moved_ns(self) -> int:
        """How far the offset went from the first pair to the last."""
        return self.pairs[-1][1] - self.pairs[0][1] if self.pairs else 0

    @property
    def largest_jump_ns(self) -> int:
        """The largest move between two pairs, whichever way."""
        offsets = [offset for _, offset in self.pairs]
        return max((abs(b - a) for a, b in pairwise(offsets)), default=0)

    @property
    def stable(self) -> bool:
        """Whether no move was large enough to be taken for a step."""
        return self.largest_jump_ns <= STEP_NS


class _Worker(threading.Thread):
    """Tries one meter. A daemon, since the meter may hang for ever; ``trial`` is None until it is through."""

    def __init__(self, subject: Candidate, seconds: float) -> None:
        super().__init__(name=f"tokenpower-trial-{subject.name}", daemon=True)
        self.subject = subject
        self.trial: ProbeResult | None = None
        self._seconds = seconds
        self._started_s = time.monotonic()
        self._stage = "import"
        self._log: CallLog | None = None
        self._watched: WatchedMeter | None = None
        self._collector: Collector | None = None

    def run(self) -> None:
        name = self.subject.name
        try:
            self.trial = self._examine()
        except MeterUnavailable as error:
            self.trial = ProbeResult(name, "unavailable", str(error))
        except BaseException as error:
            # Also what no meter should raise, such as a SystemExit of a library: it is this meter's failure.
            self.trial = ProbeResult(name, "failed", _words(name, error))

    def _examine(self) -> ProbeResult:
        subject = self.subject
        library = subject.library() if subject.library is not None else None
        self._log = None if library is None else CallLog(library)
        self._watched = watched = WatchedMeter(subject.make(self._log))
        self._collector = collector = Collector([watched])
        self._stage = "open"
        devices = tuple(collector.start())
        self._stage = "collect"
        if self._log is not None:
            # What the meter calls from now on is what measuring costs.
            self._log.calls.clear()
        clock = collector.clock
        start_ns = clock.monotonic_ns()
        until_s = min(time.monotonic(), self._started_s + OPEN_ALLOWANCE_S) + self._seconds
        clock.sleep(max(until_s - time.monotonic(), 0.5))
        end_ns = clock.monotonic_ns()
        # The last arguments of each call: it will be called again and again.
        calls = dict(self._log.calls) if self._log is not None else {}
        collector.stop()
        give_up_s = time.monotonic() + LAST_POLL_S
        while watched.pending is not None and time.monotonic() < give_up_s:
            time.sleep(0.05)
        trial = self._collected(devices, start_ns, end_ns)
        if library is None or watched.pending is not None:
            return trial
        self._stage = "trial of the calls"
        self._log = CallLog(library)
        boards, costs, remarks = inspect_boards(
            self._log,
            [device.id for device in devices],
            calls,
            now_ns=clock.monotonic_ns,
            sleep=clock.sleep,
        )
        return replace(trial, boards=boards, calls=costs, remarks=remarks)

    def _collected(self, devices: Sequence[Device], start_ns: int, end_ns: int) -> ProbeResult:
        assert self._watched is not None
        assert self._collector is not None
        hang = self._hang()
        return ProbeResult(
            name=self.subject.name,
            state="collected" if hang is None else "failed",
            reason=hang,
            devices=tuple(devices),
            timeline=self._collector.timeline,
            polls=tuple(self._watched.polls),
            start_ns=start_ns,
            end_ns=end_ns,
            cpu_share=self._watched.cpu_share,
        )

    def _hang(self) -> str | None:
        """Which call of the meter has not returned, and for how long; None where none is under way."""
        pending = self._watched.pending if self._watched is not None else None
        inside = self._log.pending if self._log is not None else None
        if pending is None:
            return None if inside is None else f"{self.subject.name}: {inside} does not return"
        what = f"{inside} (in {pending[0]})" if inside else pending[0]
        return f"{self.subject.name}: {what} has not returned for {time.monotonic() - pending[1]:.0f} s"

    def result(self) -> ProbeResult:
        """Return the trial, or what is known of it while it hangs."""
        if self.trial is not None:
            return self.trial
        waited = time.monotonic() - self._started_s
        reason = self._hang() or f"{self.subject.name}: no answer within {waited:.0f} s (at: {self._stage})"
        if self._collector is not None and self._watched is not None and self._watched.polls:
            polls = self._watched.polls
            devices = tuple(self._collector.timeline.devices.values())
            trial = self._collected(devices, polls[0].start_ns, polls[-1].end_ns)
            return replace(trial, state="failed", reason=reason)
        return ProbeResult(self.subject.name, "failed", reason)


def try_meters(
    subjects: Sequence[Candidate], seconds: float, allowance_s: float = END_ALLOWANCE_S
) -> tuple[tuple[ProbeResult, ...], ClockWatch]:
    """Try all meters at once for ``seconds``; one that hangs is given up ``allowance_s`` after that.

    Trials come in the order of the subjects. Never raises.
    """
    workers = [_Worker(subject, seconds) for subject in subjects]
    deadline = time.monotonic() + seconds + allowance_s
    clock = Clock()
    pairs = [(time.monotonic_ns(), clock.offset_ns)]
    for worker in workers:
        worker.start()
    for worker in workers:
        while worker.is_alive() and time.monotonic() < deadline:
            worker.join(0.2)
            clock.tick()
            pairs.append((time.monotonic_ns(), clock.offset_ns))
    return tuple(worker.result() for worker in workers), ClockWatch(tuple(pairs))


def _words(name: str, error: BaseException) -> str:
    """Return an error for people: ours speak for themselves, others are named with their class."""
    if isinstance(error, TokenPowerError):
        return str(error)
    return f"{name}: {type(error).__name__}: {error}"
