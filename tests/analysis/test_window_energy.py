"""Energy of windows against the exact integral of the power that the readings were made of."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_tokenpower.analysis.tracks import (
    RING_LAG_NS,
    EnergyTrack,
    WindowEnergy,
    counter_track,
    polled_track,
    ring_track,
    window_energy,
)
from pytest_tokenpower.meters.simulation.power_curve import PowerCurve
from pytest_tokenpower.meters.timeline import CounterColumns
from pytest_tokenpower.meters.types import PowerSamples
from tests.support.readings import (
    MS,
    SECOND,
    Ring,
    counter_readings,
    ring_of,
    ring_samples,
    rings,
    rings_with_edges,
)

quickly = settings(deadline=None, max_examples=60)

LARGEST_ERRORS = 3.6
"""In standard errors: an edge is off by at most a quarter of sample length x power step, 2.5 of its own."""

LARGEST_TICKING_ERRORS = math.sqrt(2 * (2.5**2 + 3))
"""A counter's edge is also off by up to half a tick, the square root of 3 of its own; 3.97 was found."""


def energy(track: EnergyTrack, *windows: tuple[int, int]) -> WindowEnergy:
    return window_energy(
        track,
        np.array([start for start, _ in windows], dtype=np.int64),
        np.array([end for _, end in windows], dtype=np.int64),
    )


def rounding(start_ns: int, end_ns: int) -> float:
    """Return the ring counts milliwatts, and sharpening it doubles that at most."""
    return 2e-3 * ((end_ns - start_ns) / SECOND + 0.1)


@quickly
@given(rings_with_edges(2))
def test_a_window_is_as_near_to_the_exact_integral_as_it_says(case: tuple[Ring, list[int]]) -> None:
    ring, (start, end) = case
    found = energy(ring.track, (start, end))
    off = abs(found.joules[0] - ring.joules(start, end))
    assert off <= LARGEST_ERRORS * found.stderr[0] + rounding(start, end)


@quickly
@given(rings(), st.data())
def test_a_window_whose_edges_fall_on_samples_is_exact(ring: Ring, data: st.DataObject) -> None:
    inner = [int(t) for t in ring.track.t_ns - RING_LAG_NS if ring.first_ns <= t <= ring.last_ns]
    start, end = sorted(data.draw(st.lists(st.sampled_from(inner), min_size=2, max_size=2, unique=True)))
    found = energy(ring.track, (start, end))
    assert found.joules[0] == pytest.approx(ring.joules(start, end), abs=rounding(start, end))


@quickly
@given(
    st.integers(1, 1000),
    st.lists(st.integers(5, 45), min_size=1, max_size=9),
    st.tuples(st.integers(200 * MS, 1800 * MS), st.integers(200 * MS, 1800 * MS)).filter(
        lambda w: w[0] < w[1]
    ),
)
def test_steady_power_is_exact_wherever_the_edges_fall(
    watts: int, sample_ms: list[int], window: tuple[int, int]
) -> None:
    stamps = np.concatenate([[0], np.cumsum(np.resize(np.array(sample_ms), 400))]).astype(np.int64) * MS
    track = ring_track(ring_samples(PowerCurve.constant(float(watts)), stamps))
    found = energy(track, window)
    exact = watts * (window[1] - window[0]) / SECOND
    assert found.joules[0] == pytest.approx(exact, rel=1e-9)
    # A tenth of the sample at each edge, and nothing for what lies between them.
    edges = np.searchsorted(stamps, np.array(window) + RING_LAG_NS)
    lengths = (stamps[edges] - stamps[edges - 1]) / SECOND
    assert found.stderr[0] == pytest.approx(0.1 * watts * math.hypot(*lengths), rel=1e-6)
    assert found.peak_watts[0] == pytest.approx(watts)


@quickly
@given(
    st.integers(40, 1000),
    st.integers(40, 1000),
    st.integers(100, 700),
    st.integers(0, 40),
    st.lists(st.integers(10, 30), min_size=1, max_size=7),
)
def test_a_window_that_begins_and_ends_where_power_steps_is_exact(
    idle: int, busy: int, length_ms: int, late_ms: int, sample_ms: list[int]
) -> None:
    ring = ring_of([(200 + late_ms, idle), (length_ms, busy), (500, idle)], "steps", sample_ms)
    start = (1200 + late_ms) * MS
    end = start + length_ms * MS
    found = energy(ring.track, (start, end))
    assert found.joules[0] == pytest.approx(busy * length_ms / 1e3, abs=rounding(start, end))


@quickly
@given(rings_with_edges(3))
def test_adjacent_windows_add_up(case: tuple[Ring, list[int]]) -> None:
    ring, (start, middle, end) = case
    first, second, both = energy(ring.track, (start, middle), (middle, end), (start, end)).joules
    assert first + second == pytest.approx(both, rel=1e-9, abs=1e-6)


@quickly
@given(rings_with_edges(6), st.data())
def test_windows_do_not_depend_on_those_beside_them(
    case: tuple[Ring, list[int]], data: st.DataObject
) -> None:
    ring, (a, b, c, d, e, f) = case
    # Nested, overlapping and apart, in any order.
    windows = data.draw(st.permutations([(a, f), (b, e), (c, d), (a, d), (b, f), (a, b), (e, f)]))
    together = energy(ring.track, *windows)
    for at, window in enumerate(windows):
        alone = energy(ring.track, window)
        for column in ("joules", "stderr", "peak_watts", "covered", "gap"):
            assert getattr(together, column)[at] == getattr(alone, column)[0]


@quickly
@given(rings_with_edges(2))
def test_the_peak_is_the_highest_sample_that_the_window_touches(case: tuple[Ring, list[int]]) -> None:
    ring, (start, end) = case
    track = ring.track
    # As the board reported it: what is sharpened overshoots, and may show more than the board can draw.
    watts = ring_samples(ring.curve, track.t_ns).milliwatts[1:] / 1e3
    touched = (track.t_ns[1:] >= start + track.lag_ns) & (track.t_ns[:-1] < end + track.lag_ns)
    assert energy(track, (start, end)).peak_watts[0] == pytest.approx(watts[touched].max())


@quickly
@given(rings(), st.integers(-5 * SECOND, 10 * SECOND), st.integers(-5 * SECOND, 10 * SECOND))
def test_beyond_the_readings_a_window_is_void_and_never_zero(ring: Ring, start: int, end: int) -> None:
    track = ring.track
    found = energy(track, (start, end))
    inside = track.t_ns[0] <= start + track.lag_ns and end + track.lag_ns <= track.t_ns[-1] and start < end
    assert bool(found.covered[0]) is bool(inside)
    assert math.isfinite(found.joules[0]) is bool(inside)


@pytest.mark.parametrize("samples", [0, 1])
def test_without_two_readings_there_is_nothing(samples: int) -> None:
    empty = PowerSamples(
        np.arange(samples, dtype=np.int64), np.full(samples, 300_000, dtype=np.int64), held=False
    )
    found = energy(polled_track(empty), (0, SECOND))
    assert math.isnan(found.joules[0])
    assert not found.covered[0]


@quickly
@given(st.integers(61, 2000), st.data())
def test_a_gap_spoils_the_windows_that_it_touches_and_no_others(gap_ms: int, data: st.DataObject) -> None:
    before = np.arange(0, 2000, 20)
    stamps = np.concatenate([before, before + 1980 + gap_ms]).astype(np.int64) * MS
    track = ring_track(ring_samples(PowerCurve.constant(300.0), stamps))
    gap = (1980 * MS - RING_LAG_NS, (1980 + gap_ms) * MS - RING_LAG_NS)
    moments = st.integers(100 * MS, int(stamps[-1]) - 100 * MS)
    start, end = sorted(data.draw(st.tuples(moments, moments).filter(lambda w: w[0] != w[1])))
    touches = start <= gap[1] and end > gap[0]
    found = energy(track, (start, end))
    # An edge on the very last sample before the gap, or first after it, may count either way.
    if min(abs(edge - limit) for edge in (start, end) for limit in gap) > 1:
        assert bool(found.gap[0]) is touches


@quickly
@example(
    50,
    36,
    [10, 10, 473, 643, 99, 158, 43, 10, 10, 10, 10, 10, 149, 300, 10, 10, 10, 10, 10, 16],
    (1300, 3712),
)
@example(
    100,
    65,
    [160, 85, 67, 258, 21, 83, 1000, 116, 490, 84, 450, 253, 998, 157, 55, 55, 11, 43, 258, 46],
    (2518, 3530),
)
@given(
    st.integers(50, 700),
    st.integers(0, 99),
    st.lists(st.integers(10, 1100), min_size=20, max_size=20).filter(lambda polls: sum(polls) > 2000),
    st.tuples(st.integers(1300, 5000), st.integers(1300, 5000)).filter(lambda w: w[0] < w[1]),
)
def test_a_counter_that_ticks_is_as_near_as_it_says(
    watts: int, phase_ms: int, polls_ms: list[int], window_ms: tuple[int, int]
) -> None:
    # Read every 10 to 1100 ms, from 0 to beyond 6 s.
    reads = np.cumsum([0, *polls_ms * 4]).astype(np.int64) * MS
    counters = counter_readings(
        PowerCurve.constant(float(watts)).energy(), reads, 100 * MS, phase_ns=phase_ms * MS
    )
    start, end = window_ms[0] * MS, window_ms[1] * MS
    found = energy(counter_track(counters, 100 * MS), (start, end))
    assert found.covered[0]
    off = abs(found.joules[0] - watts * (end - start) / SECOND)
    assert off <= LARGEST_TICKING_ERRORS * found.stderr[0] + 1e-5


@quickly
@given(rings(), st.lists(st.integers(5, 400), min_size=3, max_size=30), st.data())
def test_a_counter_that_is_exact_when_read_is_exact_between_two_reads(
    ring: Ring, polls_ms: list[int], data: st.DataObject
) -> None:
    reads = np.cumsum([10, *polls_ms]).astype(np.int64) * MS
    counters = counter_readings(ring.curve.energy(), reads, 0)
    start, end = sorted(
        data.draw(st.lists(st.sampled_from(reads.tolist()), min_size=2, max_size=2, unique=True))
    )
    found = energy(counter_track(counters), (start, end))
    assert found.joules[0] == pytest.approx(ring.joules(start, end), abs=1e-5)


@quickly
@given(rings_with_edges(2, ("lines",)), st.integers(2, 20))
def test_polled_power_is_joined_by_lines(case: tuple[Ring, list[int]], every_ms: int) -> None:
    ring, (start, end) = case
    # The curve bends at whole milliseconds; polled at every one of them the trapezoids are exact.
    polls = np.arange(0, ring.last_ns + 300 * MS, MS)
    curve = ring.curve.energy()
    watts = (curve.joules_at_each(polls + 1000) - curve.joules_at_each(polls)) * 1e6
    track = polled_track(PowerSamples(polls, np.rint(watts * 1e3).astype(np.int64), held=False))
    edges = (start // MS * MS, end // MS * MS + every_ms * MS)
    found = energy(track, edges)
    assert found.joules[0] == pytest.approx(ring.joules(*edges), rel=1e-4)


SINCE_1970 = 1_795_000_000_123_456_789


@quickly
@given(
    st.sampled_from(["power ring", "energy counter", "exact counter", "power polling"]),
    rings_with_edges(2),
    st.integers(1, 40),
)
def test_a_window_is_the_same_to_the_bit_on_any_clock(
    method: str, case: tuple[Ring, list[int]], every_ms: int
) -> None:
    # A recording counts nanoseconds since 1970, which a float does not hold to the nanosecond.
    ring, window = case
    reads = np.arange(10, ring.last_ns // MS, every_ms, dtype=np.int64) * MS + 1_234_567

    def measured(shift_ns: int) -> WindowEnergy:
        if method == "power ring":
            samples = ring_samples(ring.curve, ring.track.t_ns)
            track = ring_track(PowerSamples(samples.t_ns + shift_ns, samples.milliwatts))
        elif method == "power polling":
            watts = np.rint(ring.curve.energy().joules_at_each(reads)).astype(np.int64)
            track = polled_track(PowerSamples(reads + shift_ns, watts, held=False), 1e6)
        else:
            tick_ns = 100 * MS if method == "energy counter" else 0
            counters = counter_readings(ring.curve.energy(), reads, tick_ns)
            track = counter_track(
                CounterColumns(counters.t0_ns + shift_ns, counters.t1_ns + shift_ns, counters.microjoules),
                tick_ns,
            )
        return energy(track, (window[0] + shift_ns, window[1] + shift_ns))

    near, far = measured(0), measured(SINCE_1970)
    for column in ("joules", "stderr", "peak_watts", "covered", "gap"):
        assert np.array_equal(getattr(near, column), getattr(far, column), equal_nan=True), column


@pytest.mark.parametrize("every", [2, 3, 10, 40])
@pytest.mark.parametrize("apart_ns", [1, 190_000, 3 * MS])
def test_samples_that_come_nearly_twice_leave_the_period_as_it_is(every: int, apart_ns: int) -> None:
    stamps = np.arange(0, 10 * SECOND, 20 * MS, dtype=np.int64)
    doubled = np.sort(np.concatenate([stamps, stamps[::every] + apart_ns]))
    track = ring_track(ring_samples(PowerCurve.constant(300.0), doubled))
    assert track.period_ns == pytest.approx(20 * MS, rel=0.2)
    found = energy(track, (2 * SECOND, 3 * SECOND))
    assert not found.gap[0]
    assert found.joules[0] == pytest.approx(300, rel=1e-6)


def test_an_idle_hour_is_not_the_period_of_a_ring() -> None:
    # At deep idle a ring gives one sample a second.
    idle = np.arange(0, 3600, dtype=np.int64) * SECOND
    busy = 3600 * SECOND + np.arange(500, dtype=np.int64) * 20 * MS
    track = ring_track(ring_samples(PowerCurve.constant(300.0), np.concatenate([idle, busy])))
    assert track.period_ns == 20 * MS
