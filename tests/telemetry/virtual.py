"""Simulated boards measured on virtual time: the real meter, clock and timeline, without threads or waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from pytest_tokenpower.measurement import RoundWindow, round_records
from pytest_tokenpower.record import RoundRecord
from pytest_tokenpower.telemetry.clock import Clock
from pytest_tokenpower.telemetry.collector import poll_once
from pytest_tokenpower.telemetry.meters.nvml import NvmlMeter
from pytest_tokenpower.telemetry.meters.simulated import SimulatedBoards
from pytest_tokenpower.telemetry.meters.simulated_curve import PowerCurve
from pytest_tokenpower.telemetry.meters.simulated_scenario import Board, Fault, Scenario
from pytest_tokenpower.telemetry.timeline import Timeline
from pytest_tokenpower.telemetry.values import Device
from pytest_tokenpower.tokens import TokenCount

SECOND = 1_000_000_000
REALTIME_AHEAD = 1_795_000_000_123_456_789


def work(*pieces: tuple[float, float], shape: str = "steps") -> PowerCurve:
    """Power over and over: (seconds, watts) each."""
    ends = list(accumulate(seconds for seconds, _ in pieces))
    starts = [0.0, *ends[:-1]]
    points = tuple((start, watts) for start, (_, watts) in zip(starts, pieces, strict=True))
    if shape == "lines":
        return PowerCurve(points=(*points, (ends[-1], pieces[0][1])), shape="lines", repeat_s=ends[-1])
    return PowerCurve(points=points, repeat_s=ends[-1])


# Like an inference loop: prefill, decode, a pause; no two pieces alike.
WORK = work((0.23, 640), (0.81, 420), (0.12, 130), (0.31, 610), (1.17, 455), (0.09, 180))


class Measured:
    """A run of the collector's poll over simulated boards, and what it gave."""

    def __init__(
        self,
        *faults: Fault,
        boards: Sequence[Board] = (Board(power=WORK),),
        seed: int = 0,
        meter: Callable[[SimulatedBoards], NvmlMeter] = lambda boards: NvmlMeter(
            boards, provenance="simulated"
        ),
    ) -> None:
        self.now_ns = 5_000_000_777
        self.boards = SimulatedBoards(
            Scenario(boards=tuple(boards), faults=faults, seed=seed),
            monotonic_ns=lambda: self.now_ns,
            realtime_ns=lambda: self.now_ns + REALTIME_AHEAD,
            sleep=self.advance,
        )
        self.clock = Clock(lambda: self.now_ns, self.boards.realtime_ns)
        self.meter = meter(self.boards)
        self.timeline = Timeline()
        self.devices: Sequence[Device] = ()
        self.began_ns = self.boards.start_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += round(seconds * SECOND)

    def open(self) -> None:
        """What the collector does first; raises as the meter does."""
        self.devices = self.meter.open(self.clock)
        for device in self.devices:
            self.timeline.add_device(device)
        self.since_ns = self.clock.monotonic_ns()
        self.poll()

    def poll(self) -> None:
        self.since_ns = poll_once(self.meter, self.devices, self.timeline, self.clock, self.since_ns)

    def run_until(self, second: float) -> None:
        """Polls at the meter's own interval until that second of the boards' time."""
        while self.now_ns < self.began_ns + second * SECOND:
            self.advance(self.meter.poll_interval_s)
            self.poll()

    def window(self, start_s: float, seconds: float) -> RoundWindow:
        start_ns = self.began_ns + round(start_s * SECOND)
        return RoundWindow(start_ns, start_ns + round(seconds * SECOND), TokenCount(100, 100))

    def records(self, windows: Sequence[RoundWindow]) -> tuple[RoundRecord, ...]:
        return round_records(self.timeline, self.devices, windows)

    def truth(self, window: RoundWindow) -> float:
        return sum(
            self.boards.joules(index, window.start_ns, window.end_ns)
            for index in range(len(self.boards.scenario.boards))
        )


def measure(
    *faults: Fault, until_s: float = 20.0, boards: Sequence[Board] = (Board(power=WORK),), seed: int = 0
) -> Measured:
    """A whole run, from open to the last poll."""
    measured = Measured(*faults, boards=boards, seed=seed)
    measured.open()
    measured.run_until(until_s + measured.meter.poll_interval_s)
    return measured
