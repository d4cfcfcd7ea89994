"""What one evaluation of six rounds costs, by how long the session has been collecting from eight boards.

    python benchmarks/evaluation_scale.py [--boards 8]

Prints processor seconds for each length, and exits with 1 where two hours cost over 20 % more than three minutes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np

from pytest_tokenpower import TokenCount
from pytest_tokenpower.analysis.rounds import evaluate
from pytest_tokenpower.core.windows import RoundWindow
from pytest_tokenpower.meters import CounterReading, Device, PowerSamples, Reading
from pytest_tokenpower.meters.timeline import Timeline

PERIOD_NS = 20_000_000
HOURS = (0.05, 0.5, 2.0)
REPEATS = 7
MOST_GROWTH = 1.2


def session(hours: float, boards: int) -> tuple[Timeline, list[Device], list[RoundWindow]]:
    timeline, devices = Timeline(), []
    samples = int(hours * 3600 * 1e9 / PERIOD_NS)
    t_ns = np.arange(samples, dtype=np.int64) * PERIOD_NS
    noise = np.random.default_rng(0).standard_normal(samples)
    milliwatts = (300_000 + 30_000 * noise).astype(np.int64)
    microjoules = np.cumsum(milliwatts * (PERIOD_NS // 1_000_000))
    for number in range(boards):
        device = Device(f"GPU-{number}", "gpu", "board", "nvml", "simulated", counter_tick_ns=100_000_000)
        devices.append(device)
        timeline.add_device(device)
        counters = [
            CounterReading(int(t_ns[at]), int(t_ns[at]) + 1000, int(microjoules[at]))
            for at in range(0, samples, 50)
        ]
        timeline.append(Reading(device.id, PowerSamples(t_ns, milliwatts), counters))
    rounds = [
        RoundWindow(int(t_ns[-1500 + 200 * at]), int(t_ns[-1350 + 200 * at]), TokenCount(1, 100))
        for at in range(6)
    ]
    return timeline, devices, rounds


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boards", type=int, default=8)
    given = parser.parse_args()
    took: dict[float, float] = {}
    for hours in HOURS:
        timeline, devices, rounds = session(hours, given.boards)
        seconds = []
        for _ in range(REPEATS):
            began = time.process_time()
            evaluate(timeline, devices, rounds)
            seconds.append(time.process_time() - began)
        took[hours] = statistics.median(seconds)
        print(f"{hours:5g} h of {given.boards} boards: {1e3 * took[hours]:6.1f} ms for six rounds of 3 s")
    growth = took[HOURS[-1]] / took[HOURS[0]]
    met = growth <= MOST_GROWTH
    print(
        f"two hours against three minutes: x {growth:.2f} (at most {MOST_GROWTH}): {'met' if met else 'MISSED'}"
    )
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
