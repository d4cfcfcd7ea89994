"""Projects whose tests measure what a script says: a meter of constant power, and as many tokens as make a level."""

from __future__ import annotations

from tests.support.projects import Project

SUPPLY = "--energy-source=supply"

METER = """
from pytest_tokenpower.meters.types import CounterReading, Device, Reading


class Supply:
    name = "supply"
    poll_interval_s = 0.002

    def open(self, clock):
        self.start_ns = clock.monotonic_ns()
        return [Device("supply", "gpu", "Supply of 300 W", self.name, "measured")]

    def poll(self, clock):
        now_ns = clock.monotonic_ns()
        return [Reading("supply", counters=[CounterReading(now_ns, now_ns, (now_ns - self.start_ns) * 300 // 1000)])]

    def close(self):
        pass


def pytest_tokenpower_meters(source):
    return [Supply()] if source == "supply" else None
"""

AT_LEVEL = """
import time


def at_level(energy, level, rounds=4):
    for _ in range(rounds):
        with energy.measure() as window:
            began = time.monotonic()
            time.sleep(0.05)
            # As many tokens as make the meter's 300 W come out at that level, however long the sleep was.
            window.tokens(prompt=0, generated=round((time.monotonic() - began) * 300e4 / level))
"""


def supply(project: Project) -> None:
    """Give a project the meter, which ``SUPPLY`` chooses, and ``at_level`` in a module of that name."""
    project.file("conftest.py", METER)
    project.file("at_level.py", AT_LEVEL)
