"""A day of eight boards in memory, and a million windows over it: the timeline's and the energy's cost in bulk.

    python benchmarks/timeline_scale.py [--hours 24] [--boards 8] [--windows 1000000]

Prints each figure beside its goal; the exit code is 1 where one is missed.
"""

from __future__ import annotations

import argparse
import gc
import resource
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pytest_tokenpower.analysis.calibration import track_of
from pytest_tokenpower.analysis.tracks import EnergyTrack, window_energy
from pytest_tokenpower.meters.timeline import Timeline
from pytest_tokenpower.meters.types import CounterReading, Device, PowerSamples, Reading

PERIOD_NS = 20_000_000
CHUNK_S = 60
MEMORY_GOAL_MB = 1000.0
SECONDS_GOAL = 2.0


def resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this benchmark reads /proc/self/status: run it on Linux")


def record(hours: float, boards: int) -> Timeline:
    """Power that wanders and steps, at 50 Hz, with a counter reading a second, appended as a collector does."""
    random = np.random.default_rng(7)
    timeline = Timeline()
    devices = [
        Device(f"GPU-{n}", "gpu", "board", "nvml", "simulated", counter_tick_ns=0) for n in range(boards)
    ]
    for device in devices:
        timeline.add_device(device)
    per_chunk = CHUNK_S * 1_000_000_000 // PERIOD_NS
    counted = dict.fromkeys((device.id for device in devices), 0)
    for chunk in range(int(hours * 3600 / CHUNK_S)):
        start_ns = chunk * CHUNK_S * 1_000_000_000
        t_ns = start_ns + PERIOD_NS * np.arange(1, per_chunk + 1)
        for device in devices:
            levels = random.integers(100_000, 700_000, per_chunk // 25).repeat(25)
            milliwatts = levels + random.integers(-5000, 5000, per_chunk)
            # Milliwatts over 20 ms are 20 microjoules each.
            microjoules = counted[device.id] + np.cumsum(milliwatts * (PERIOD_NS // 1_000_000))
            counted[device.id] = int(microjoules[-1])
            counters = [
                CounterReading(int(t), int(t), int(e))
                for t, e in zip(t_ns[49::50], microjoules[49::50], strict=True)
            ]
            timeline.append(Reading(device.id, PowerSamples(t_ns, milliwatts), counters))
    return timeline


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--boards", type=int, default=8)
    parser.add_argument("--windows", type=int, default=1_000_000)
    given = parser.parse_args()

    before = resident_mb()
    timeline = record(given.hours, given.boards)
    gc.collect()
    grown = resident_mb() - before

    random = np.random.default_rng(11)
    span_ns = int(given.hours * 3600e9)
    start = np.sort(random.integers(10**9, span_ns - 5 * 10**9, given.windows))
    end = start + random.integers(50_000_000, 3_000_000_000, given.windows)
    board_of = random.integers(0, given.boards, given.windows)
    shuffled = random.permutation(given.windows)

    tracking = spread = summed = one = disordered = 0.0
    for number, device in enumerate(timeline.devices.values()):
        begin = time.process_time()
        track = track_of(timeline, device)
        assert track is not None
        tracking += time.process_time() - begin
        mine = board_of == number
        # What a track works out at its first use is part of the cost.
        spread += seconds_of(track, start[mine], end[mine])
        again = seconds_of(track, start, end)
        summed += again
        if number == 0:
            one = again
            disordered = seconds_of(track, start[shuffled], end[shuffled])

    print(
        f"{given.hours:g} h of {given.boards} boards at 50 Hz, {given.windows:,} windows; seconds of one core"
    )
    print(f"memory of the timeline             {grown:8.0f} MB   goal {MEMORY_GOAL_MB:.0f} MB")
    print(f"memory at the peak of the analysis {peak_mb() - before:8.0f} MB")
    print(f"windows spread over the boards     {spread:8.2f} s    goal {SECONDS_GOAL:g} s")
    print(f"all windows on one board           {one:8.2f} s    goal {SECONDS_GOAL:g} s")
    print(f"the same, in no order              {disordered:8.2f} s    goal {SECONDS_GOAL:g} s")
    print(f"all windows on each board, summed  {summed:8.2f} s")
    print(f"tracks of all boards (once)        {tracking:8.2f} s")
    met = grown <= MEMORY_GOAL_MB and max(spread, one, disordered) <= SECONDS_GOAL
    print("met" if met else "NOT MET")
    return 0 if met else 1


def seconds_of(track: EnergyTrack, start: NDArray[np.int64], end: NDArray[np.int64]) -> float:
    begin = time.process_time()
    window_energy(track, start, end)
    return time.process_time() - begin


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
