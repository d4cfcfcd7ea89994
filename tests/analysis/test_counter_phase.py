"""The phase of the counter's ticks: wherever readings lie about them, a sound counter is not held against its ring."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_tokenpower.analysis.cross_checks import counter_disagreement
from pytest_tokenpower.analysis.tracks import EnergyTrack
from pytest_tokenpower.meters.timeline import CounterColumns

TICK_NS = 100_000_000
WATTS = 300.0
T_NS = np.arange(126_211, 40_000_000_000, 20_000_000, dtype=np.int64)
TRACK = EnergyTrack("power ring", T_NS, np.asarray(T_NS, np.float64) * WATTS / 1e9, 20_000_000.0, 0.0)

# Polls lie anywhere in a tick; some at its very moment, or a hair beside it, as a clock that is waited for has them.
offsets = st.one_of(
    st.integers(0, TICK_NS - 1),
    st.sampled_from([0, 1, 777, 900_000, 1_500_000, TICK_NS - 1, TICK_NS - 1_100_000]),
)


def counted(at_ns: np.ndarray[tuple[int], np.dtype[np.int64]], factor: float = 1.0) -> CounterColumns:
    joules = WATTS * (at_ns // TICK_NS * TICK_NS) / 1e9
    return CounterColumns(at_ns, at_ns, np.round(factor * joules * 1e6).astype(np.int64))


@settings(max_examples=400)
@given(
    before=st.lists(offsets, min_size=4, max_size=12),
    after=st.lists(offsets, min_size=4, max_size=12),
    start=offsets,
    seconds=st.floats(0.02, 3.0),
)
def test_readings_of_a_sound_counter_are_never_held_against_the_ring(
    before: list[int], after: list[int], start: int, seconds: float
) -> None:
    start_ns = 15_000_000_000 + start
    end_ns = start_ns + round(seconds * 1e9)
    polls = [14_000_000_000 - 1_100_000_000 * at + each for at, each in enumerate(before)]
    polls += [end_ns // TICK_NS * TICK_NS + 1_100_000_000 * (at + 1) + each for at, each in enumerate(after)]
    at_ns = np.array(sorted({*polls, start_ns}), dtype=np.int64)
    assert counter_disagreement(TRACK, counted(at_ns), TICK_NS, start_ns, end_ns) is None


def test_readings_just_after_a_tick_find_its_phase() -> None:
    # As a simulated board on virtual time is polled, now and then 777 ns after its ticks.
    at_ns = np.array(
        [
            *(4_824_371_187, 6_200_000_777, 7_662_701_977, 8_200_000_777, 8_801_586_682, 10_200_000_777),
            *(11_666_210_277, 12_200_000_777, 14_339_422_767, 16_200_000_777, 17_101_487_917, 18_200_000_777),
            *(19_598_922_487, 20_200_000_777, 22_060_909_107),
        ],
        dtype=np.int64,
    )
    assert counter_disagreement(TRACK, counted(at_ns), TICK_NS, 20_091_319_811, 20_583_717_135) is None


def test_a_tick_while_a_reading_was_taken_is_before_or_after_it() -> None:
    # As seen on a busy machine: readings take 0.05 ms, and a phase within one of them fitted better by a float's error.
    ms = np.array([-762.34, 244.16, 858.74, 884.41, 905.46, 926.28, 947.32])
    start_ns = 15_511_136_479
    t0_ns = start_ns + np.round(ms * 1e6).astype(np.int64)
    counters = CounterColumns(
        t0_ns, t0_ns + 50_000, np.array([0, 300, 480, 480, 480, 480, 510], np.int64) * 1_000_000
    )
    t_ns = np.arange(5_395_734, 40_000_000_000, 20_000_000, dtype=np.int64)
    ring = EnergyTrack("power ring", t_ns, np.asarray(t_ns, np.float64) * 300.15 / 1e9, 20_000_000.0, 0.0)
    assert counter_disagreement(ring, counters, TICK_NS, start_ns, start_ns + 283_400_000, 0.01) is None


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_counter_that_is_off_is_still_seen(factor: float) -> None:
    at_ns = np.arange(5_000_000_000, 30_000_000_000, 1_037_000_000, dtype=np.int64)
    off = counter_disagreement(TRACK, counted(at_ns, factor), TICK_NS, 10_000_000_000, 20_000_000_000)
    assert off == pytest.approx(factor - 1, abs=0.02)
