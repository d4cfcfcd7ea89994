"""Projects whose tests measure what a script says: a meter of constant power on virtual time, and as many tokens
as make a level.
"""

from __future__ import annotations

from tests.support.projects import Project

SUPPLY = "--energy-source=supply"

METER = """
from pytest_tokenpower.meters.simulation.virtual_time import VIRTUAL_TIME
from pytest_tokenpower.meters.types import CounterReading, Device, Reading


class Supply:
    name = "supply"
    poll_interval_s = 0.01
    clock = VIRTUAL_TIME.clock

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
from pytest_tokenpower.meters.simulation.virtual_time import VIRTUAL_TIME


def at_level(energy, level, rounds=4):
    for number in range(rounds):
        # Tokens that vary are no part of the key.
        seconds = 0.05 + 0.001 * (number % 2)
        with energy.measure() as window:
            VIRTUAL_TIME.sleep(seconds)
            # As many as make the meter's 300 W come out at that level.
            window.tokens(prompt=0, generated=round(seconds * 300e4 / level))
"""


def supply(project: Project) -> None:
    """Give a project the meter, which ``SUPPLY`` chooses, and ``at_level`` in a module of that name."""
    project.file("conftest.py", METER)
    project.file("at_level.py", AT_LEVEL)
