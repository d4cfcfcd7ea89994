"""A meter that will not read again ends the rounds at once, whichever it is and whoever says so."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from pytest_tokenpower.analysis.guards import failed_for_good
from pytest_tokenpower.core.records import RoundRecord
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.windows import RoundWindow
from pytest_tokenpower.meters.simulation.virtual_time import VirtualTime
from pytest_tokenpower.meters.timeline import FAILED, LOST, Event
from pytest_tokenpower.runner.rounds import RoundPlan, rounds, run
from tests.support.projects import Project

S = 1_000_000_000


def polls(guard: str, first_s: int, last_s: int) -> list[Event]:
    """Failures of polls that are a second apart: each spoils what was read since the poll before."""
    return [Event((at - 1) * S, at * S, guard, "it failed", "GPU-1") for at in range(first_s, last_s + 1)]


@pytest.mark.parametrize(
    ("events", "now_s", "over"),
    [
        ([], 100, False),
        (polls(FAILED, 90, 100), 100, False),
        (polls(FAILED, 60, 100), 101, True),
        (polls(LOST, 100, 100), 101, True),
        (polls(LOST, 40, 41), 100, False),  # it reads again
        ([*polls(FAILED, 40, 60), *polls(FAILED, 90, 100)], 100, False),  # it read in between
        (polls(FAILED, 101, 101) * 40, 101, False),  # one failure, noted again and again
        ([Event(60 * S, 100 * S, FAILED, "it hangs", "GPU-1")], 100, True),
        ([Event(0, 100 * S, "clock step", "NTP")], 100, False),
    ],
)
def test_what_has_failed_for_good(events: Sequence[Event], now_s: int, over: bool) -> None:
    assert failed_for_good(events, now_s * S) is over


class Bench:
    """Rounds of one second an execution; the meter is lost at a moment."""

    def __init__(self, shortest_s: float, lost_s: float) -> None:
        self.time = VirtualTime()
        self.clock = self.time.clock
        self.shortest_s, self.lost_s = shortest_s, lost_s
        self.began_ns = self.time.now_ns()

    def shortest_window_ns(self) -> float:
        return self.shortest_s * 1e9

    def failed_for_good(self, start_ns: int) -> bool:
        return (self.time.now_ns() - self.began_ns) / 1e9 >= self.lost_s

    def assess(self, windows: Sequence[RoundWindow]) -> tuple[RoundRecord, ...]:
        return tuple(
            RoundRecord(one.start_ns, (one.end_ns - one.start_ns) / 1e9, 300.0, 1.0, 1, 1) for one in windows
        )

    def execute(self) -> TokenCount:
        self.time.sleep(1.0)
        return TokenCount(1, 1)


@pytest.mark.parametrize(
    ("shortest_s", "lost_s", "windows", "seconds"),
    [
        (0.1, 1e9, 6, 8),
        (0.1, 0.0, 1, 2),  # lost before it began: one round, to say why
        (0.1, 4.5, 3, 5),
        (60.0, 1e9, 6, 362),
        (60.0, 31.0, 1, 32),  # looked at within a round, every five seconds
    ],
)
def test_rounds_end_when_the_meter_is_lost(
    shortest_s: float, lost_s: float, windows: int, seconds: float
) -> None:
    bench = Bench(shortest_s, lost_s)
    _, measured = run(
        rounds(bench.execute, lambda _: TokenCount(1, 1), lambda _: (), RoundPlan(2, 6, 30, 120), bench),
        lambda: bench,
    )
    assert len(measured) == windows
    assert (bench.time.now_ns() - bench.began_ns) / 1e9 == pytest.approx(seconds, abs=5)


def test_a_lost_board_ends_the_test_with_its_reason(project: Project) -> None:
    project.file("board.json", json.dumps({"faults": [{"kind": "lost", "from_s": 1.0}], "clock": "virtual"}))
    project.tests(
        """
calls = []

def work():
    sleep(0.6)
    calls.append(1)
    return TokenCount(0, 1000)

@pytest.mark.power_budget(min_rounds=30, max_rounds=30)
def test_it(energy):
    try:
        energy(work)
    finally:
        assert len(calls) < 15
"""
    )
    result = project.run("--energy-source=simulated:board.json")
    result.assert_outcomes(failed=1)
    said = " ".join(result.stdout.str().split())
    assert "INVALID" in said
    assert "failed: GPU is lost" in said
