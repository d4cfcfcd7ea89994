"""The counter against the ring where the thread that reads it has to wait for Python's lock."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_tokenpower.analysis.cross_checks import counter_disagreement
from pytest_tokenpower.analysis.tracks import EnergyTrack, ring_track
from pytest_tokenpower.meters.timeline import CounterColumns
from pytest_tokenpower.meters.types import PowerSamples

MS = 1_000_000
TICK_NS = 100 * MS
SECONDS = 24


def board(seed: int, factor: float, late_ms: float) -> tuple[EnergyTrack, CounterColumns]:
    """Return a board that prefills at 600 W and decodes at 350, its ring, and its counter as read once a second.

    The counter's ticks have a phase of their own. Each reading is bracketed by two looks at the clock, which a thread
    that waits for the lock takes ``late_ms`` too late on average (the second), or somewhat too early (the first).
    """
    random = np.random.default_rng(seed)
    t_ns = np.arange(0, SECONDS * 1000, 20, dtype=np.int64) * MS
    watts = np.where((t_ns // MS) % 250 < 60, 600.0, 350.0) + random.normal(0, 10, len(t_ns))
    joules = np.concatenate([[0.0], np.cumsum(watts[1:] * 0.02)])
    phase_ns = random.uniform(0, TICK_NS)
    read_ns = np.arange(1, SECONDS - 1) * 1e9 + np.cumsum(random.uniform(2e6, 9e6, SECONDS - 2))
    ticked_ns = np.floor((read_ns - phase_ns) / TICK_NS) * TICK_NS + phase_ns
    microjoules = 1e6 * factor * np.interp(ticked_ns, t_ns, joules)
    early = np.minimum(random.exponential(2 * MS, len(read_ns)), 20 * MS)
    late = np.minimum(random.exponential(late_ms * MS, len(read_ns)), 75 * MS)
    counters = CounterColumns(
        (read_ns - early).astype(np.int64),
        (read_ns + 3 * MS + late).astype(np.int64),
        microjoules.astype(np.int64),
    )
    return ring_track(PowerSamples(t_ns, np.round(1000 * watts).astype(np.int64))), counters.prompt(TICK_NS)


def disagreements(track: EnergyTrack, counters: CounterColumns, seconds: float) -> list[float | None]:
    starts = np.arange(3.0, SECONDS - 4.0 - seconds, 0.7)
    return [
        counter_disagreement(track, counters, TICK_NS, int(at * 1e9), int((at + seconds) * 1e9))
        for at in starts
    ]


@pytest.mark.parametrize("late_ms", [0.1, 20.0, 40.0, 75.0])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_late_looks_at_the_clock_are_no_disagreement(late_ms: float, seed: int) -> None:
    assert set(disagreements(*board(seed, 1.0, late_ms), 0.25)) == {None}


@pytest.mark.parametrize("late_ms", [0.1, 20.0, 40.0])
@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_counter_that_is_off_is_seen_all_the_same(late_ms: float, factor: float) -> None:
    for seed in range(20):
        found = disagreements(*board(seed, factor, late_ms), 10.0)
        assert all(each is not None and (each > 0) == (factor > 1) for each in found), seed
