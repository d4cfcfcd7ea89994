"""When a warm-up ends: by time, clock and temperature, and never without an end."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.core import progress
from pytest_tokenpower.core.records import RoundRecord
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.windows import RoundWindow
from pytest_tokenpower.meters.simulation.virtual_time import VirtualTime
from pytest_tokenpower.runner import compare as interleave
from pytest_tokenpower.runner import rounds as warmup
from pytest_tokenpower.runner.rounds import RoundPlan, rounds, run


def record(
    start_s: float, seconds: float, celsius: float | None = None, mhz: float | None = None
) -> RoundRecord:
    return RoundRecord(
        start_ns=round(start_s * 1e9),
        seconds=seconds,
        joules=1.0,
        stderr_joules=0.001,
        prompt_tokens=1,
        generated_tokens=1,
        temperature_celsius=celsius,
        sm_clock_mhz=mhz,
    )


@pytest.mark.parametrize(
    ("rounds", "warm"),
    [
        ([record(0, 2, 40)], True),
        ([record(0, 2), record(2, 2)], True),
        ([record(0, 2, 40, 1980), record(2, 2, 40.2, 1980)], True),  # 0.1 °C/s over 12 s: 1.2 °C
        ([record(0, 2, 40), record(2, 2, 41)], False),  # 0.5 °C/s over 12 s: 6 °C
        ([record(0, 2, 45), record(2, 2, 44)], False),
        ([record(0, 0.1, 40), record(0.1, 0.1, 40.2)], True),  # 2 °C/s, but 0.6 s to measure
        ([record(0, 2, 50, 1200), record(2, 2, 50, 1980)], False),
        ([record(0, 2, 50, None), record(2, 2, 50, 1980)], True),
    ],
)
def test_steadiness_looks_as_far_ahead_as_will_be_measured(rounds: Sequence[RoundRecord], warm: bool) -> None:
    assert warmup.steady(rounds, 6) is warm


class RoundEvaluator:
    """Rounds under a clock of their own; ``celsius`` gives the temperature of each."""

    def __init__(self, seconds: Iterator[float], celsius: Iterator[float]) -> None:
        self.time = VirtualTime()
        self.clock = self.time.clock
        self.seconds, self.celsius = seconds, celsius
        self.executed = 0
        self.temperature: dict[int, float] = {}

    def execute(self) -> TokenCount:
        self.temperature[self.time.now_ns()] = next(self.celsius)
        self.time.sleep(next(self.seconds))
        self.executed += 1
        return TokenCount(1, 1)

    def shortest_window_ns(self) -> float:
        return 0.0

    def assess(self, windows: Sequence[RoundWindow]) -> tuple[RoundRecord, ...]:
        return tuple(
            record(one.start_ns / 1e9, (one.end_ns - one.start_ns) / 1e9, self.temperature[one.start_ns])
            for one in windows
        )

    def failed_for_good(self, start_ns: int) -> bool:
        return False


def warmup_rounds(seconds: list[float], celsius: list[float], least: int = 2) -> int:
    """How many rounds are run before six measured ones; the lists' last values go on for ever."""

    def forever(values: list[float]) -> Iterator[float]:
        yield from values
        while True:
            yield values[-1]

    bench = RoundEvaluator(forever(seconds), forever(celsius))
    _, windows = run(
        rounds(bench.execute, lambda _: TokenCount(1, 1), lambda _: (), RoundPlan(least, 6, 6, 120), bench),
        lambda: bench,
    )
    assert len(windows) == 6
    return bench.executed - 6


@pytest.mark.parametrize(
    ("seconds", "celsius", "least", "expected"),
    [
        ([1.0], [50.0], 2, 2),
        ([9.0, 1.0], [50.0], 2, 3),  # the first compiled
        ([9.0, 3.0, 1.0], [50.0], 2, 4),
        ([1.0, 0.9], [50.0], 2, 3),  # a tenth faster is still compiling
        ([1.0, 0.97], [50.0], 2, 2),
        ([1.0], [40.0, 42.0, 43.0, 43.2], 2, 4),
        ([1.0], [40.0, 45.0], 1, 1),  # a minimum of one compares nothing
        ([9.0, 1.0], [40.0, 45.0], 0, 1),
        ([1.0], [50.0], 5, 5),
        ([1.0], [40.0 + each for each in range(40)], 2, 10),  # drifts for ever
        ([20.0], [40.0 + 5 * each for each in range(40)], 2, 2),  # too long to go on
    ],
)
def test_a_warm_up_goes_on_until_it_is_steady(
    seconds: list[float], celsius: list[float], least: int, expected: int
) -> None:
    assert warmup_rounds(seconds, celsius, least) == expected


def test_variants_are_warm_when_none_gets_faster() -> None:
    """The baseline compiles in its first two rounds, the candidate does not."""
    time, ran = VirtualTime(), {"baseline": 0, "candidate": 0}
    seconds: dict[str, list[float]] = {"baseline": [9.0, 4.0, 1.0], "candidate": [1.0]}

    def execute(variant: str) -> TokenCount:
        time.sleep(seconds[variant][min(ran[variant], len(seconds[variant]) - 1)])
        ran[variant] += 1
        return TokenCount(1, 1)

    class Flat:
        clock = time.clock

        def shortest_window_ns(self) -> float:
            return 0.0

        def assess(self, windows: Sequence[RoundWindow]) -> tuple[RoundRecord, ...]:
            return tuple(record(one.start_ns / 1e9, 1.0) for one in windows)

        def failed_for_good(self, start_ns: int) -> bool:
            return False

    measuring = interleave.blocks_of(
        {"baseline": lambda: execute("baseline"), "candidate": lambda: execute("candidate")},
        lambda *_: TokenCount(1, 1),
        lambda _: (),
        interleave.BlockPlan(2, 2, 2, 120),
        bench=Flat(),
        order=random.Random(0),
    )
    blocks = run(measuring, Flat)
    assert len(blocks) == 2
    assert ran == {"baseline": 4 + 4, "candidate": 4 + 4}


def test_a_long_warm_up_says_how_far_it_is() -> None:
    said: list[str] = []
    hide = progress.show_on(said.append)
    try:
        assert warmup_rounds([4.0], [40.0, 45.0, 50.0, 50.0]) == 4
        assert said == ["warming up until steady ... 2 rounds, 8 s"]
        assert warmup_rounds([1.0], [50.0]) == 2
    finally:
        hide()
    assert len(said) == 1


@given(
    st.lists(st.floats(0.01, 5.0), min_size=1, max_size=20),
    st.lists(st.floats(20, 90), min_size=1, max_size=20),
)
def test_a_warm_up_ends(seconds: list[float], celsius: list[float]) -> None:
    found = warmup_rounds(seconds, celsius)
    assert 2 <= found <= warmup.MOST_ROUNDS
