"""Simulated boards measured on virtual time: the real meter, clock and timeline, without threads or waiting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from pytest_tokenpower.analysis.rounds import round_records
from pytest_tokenpower.core.records import RoundRecord
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.windows import RoundWindow
from pytest_tokenpower.meters.adapters.nvml.meter import NvmlMeter
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.collector import poll_once
from pytest_tokenpower.meters.simulation.library import SimulatedBoards
from pytest_tokenpower.meters.simulation.power_curve import PowerCurve
from pytest_tokenpower.meters.simulation.scenario import Board, Fault, Scenario
from pytest_tokenpower.meters.timeline import Timeline
from pytest_tokenpower.meters.types import Device

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
        time = Clock(lambda: self.now_ns, lambda: self.now_ns + REALTIME_AHEAD, self.advance)
        self.boards = SimulatedBoards(Scenario(boards=tuple(boards), faults=faults, seed=seed), clock=time)
        self.clock = self.boards.clock
        self.meter = meter(self.boards)
        self.timeline = Timeline()
        self.devices: Sequence[Device] = ()
        self.began_ns = self.boards.start_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += round(seconds * SECOND)

    def open(self) -> None:
        """Do what the collector does first; raises as the meter does."""
        self.devices = self.meter.open(self.clock)
        for device in self.devices:
            self.timeline.add_device(device)
        self.since_ns = self.clock.monotonic_ns()
        self.poll()

    def poll(self) -> None:
        self.since_ns = poll_once(self.meter, self.devices, self.timeline, self.clock, self.since_ns)

    def run_until(self, second: float) -> None:
        """Poll at the meter's own interval until that second of the boards' time."""
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
    *faults: Fault, seconds: float = 12.0, boards: Sequence[Board] = (Board(power=WORK),), seed: int = 0
) -> Measured:
    """Return a whole run: open, and polls until the last window has its readings."""
    measured = Measured(*faults, boards=boards, seed=seed)
    measured.open()
    measured.run_until(seconds + 1)
    return measured


def rounds_of(measured: Measured, seconds: float = 12.0) -> list[RoundWindow]:
    """Return rounds of one to two seconds, close after each other, at all phases of the polls and of the work."""
    windows = []
    at, number = 0.9, 0
    while at + (length := (1.2, 1.7, 1.05, 1.9, 0.6)[number % 5]) < seconds - 0.2:
        windows.append(measured.window(at, length))
        at, number = at + length + 0.013 + 0.05 * (number % 3), number + 1
    return windows


@dataclass(frozen=True)
class ReplayedGate:
    """What is wrong with a run, in words: empty if every round is right, or invalid with a reason."""

    wrong: tuple[str, ...]
    records: tuple[RoundRecord, ...]

    @property
    def flagged(self) -> int:
        return sum(bool(record.reasons) for record in self.records)

    @property
    def reasons(self) -> set[str]:
        return {reason for record in self.records for reason in record.reasons}


def judge(
    measured: Measured,
    windows: Sequence[RoundWindow] | None = None,
    *,
    spoilt_s: tuple[float, float] = (-math.inf, math.inf),
    share: float = 0.005,
) -> ReplayedGate:
    """Hold each round to the exact energy.

    A round with reasons is invalid, which is right between the two moments of ``spoilt_s`` and nowhere else; each
    reason must begin with the device. A round without any must be within four of its own standard errors and a
    ``share`` (the scale).
    """
    windows = rounds_of(measured) if windows is None else windows
    records = measured.records(windows)
    ids = tuple(device.id for device in measured.devices)
    wrong = []
    for window, record in zip(windows, records, strict=True):
        start_s, end_s = ((t - measured.began_ns) / SECOND for t in (window.start_ns, window.end_ns))
        where, truth = f"round {start_s:.2f} to {end_s:.2f} s", measured.truth(window)
        wrong += [f"{where}: {each!r} names no device" for each in record.reasons if not each.startswith(ids)]
        if record.reasons:
            if end_s < spoilt_s[0] or start_s > spoilt_s[1]:
                wrong.append(f"{where}: nothing was wrong there, and it has {record.reasons}")
        elif record.joules is None or record.stderr_joules is None:
            wrong.append(f"{where}: no figure and no reason")
        elif abs(record.joules - truth) > 4 * record.stderr_joules + share * truth:
            off = f"{record.joules / truth - 1:+.1%}"
            wrong.append(
                f"{where}: {record.joules:.1f} ± {record.stderr_joules:.1f} J, truly {truth:.1f} ({off})"
            )
    return ReplayedGate(tuple(wrong), records)
