"""The timeline against plain lists: order, duplicates, blocks, ranges, events, memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_tokenpower.analysis.calibration import track_of
from pytest_tokenpower.analysis.tracks import window_energy
from pytest_tokenpower.meters import timeline as module
from pytest_tokenpower.meters.timeline import CounterColumns, Event, Timeline
from pytest_tokenpower.meters.types import Conditions, CounterReading, Device, PowerSamples, Reading

GPU = Device("GPU-1", "gpu", "A board", "nvml", "measured")


def power(t_ns: Sequence[int], milliwatts: Sequence[int] | None = None, held: bool = True) -> Reading:
    values = milliwatts if milliwatts is not None else [t % 1000 for t in t_ns]
    return Reading(
        "GPU-1", PowerSamples(np.array(t_ns, dtype=np.int64), np.array(values, dtype=np.int64), held)
    )


def counter(t_ns: int, microjoules: int = 0) -> Reading:
    return Reading("GPU-1", counters=[CounterReading(t_ns, t_ns + 1, microjoules)])


@pytest.fixture
def timeline() -> Timeline:
    timeline = Timeline()
    timeline.add_device(GPU)
    return timeline


def samples(
    timeline: Timeline, start_ns: int | None = None, end_ns: int | None = None
) -> list[tuple[int, int]]:
    found = timeline.power("GPU-1", start_ns, end_ns)
    return [] if found is None else list(zip(found.t_ns.tolist(), found.milliwatts.tolist(), strict=True))


def ahead(batches: Sequence[Sequence[int]]) -> list[int]:
    """Return the stamps that are newer than all before them."""
    kept: list[int] = []
    for t in (t for batch in batches for t in batch):
        if not kept or t > kept[-1]:
            kept.append(t)
    return kept


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 300), max_size=40), max_size=12), st.integers(1, 9))
def test_samples_are_kept_once_and_in_order(batches: list[list[int]], rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_ROWS", rows)
        timeline = Timeline()
        timeline.add_device(GPU)
        for batch in batches:
            timeline.append(power(batch))
        assert [t for t, _ in samples(timeline)] == ahead(batches)
        assert all(milliwatts == t % 1000 for t, milliwatts in samples(timeline))
        assert timeline.newest_ns("GPU-1") == max((t for batch in batches for t in batch), default=None)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=80),
    st.integers(1, 9),
    st.integers(-10, 2000),
    st.integers(0, 2000),
)
def test_a_range_has_all_that_a_window_needs(steps: list[int], rows: int, start: int, length: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_ROWS", rows)
        timeline = Timeline()
        timeline.add_device(GPU)
        stamps = np.cumsum(steps).tolist()
        timeline.append(power(stamps))
        found = [t for t, _ in samples(timeline, start, start + length)]
    # A run of the whole, with those inside and the neighbour on each side.
    at = stamps.index(found[0]) if found else 0
    assert stamps[at : at + len(found)] == found
    inside = [i for i, t in enumerate(stamps) if start <= t <= start + length]
    before = [i for i, t in enumerate(stamps) if t < start][-1:]
    after = [i for i, t in enumerate(stamps) if t > start + length][:1]
    assert {stamps[i] for i in (*before, *inside, *after)} <= set(found)


def test_real_blocks_join_without_a_seam(timeline: Timeline) -> None:
    count = 2 * 65536 + 7
    stamps = np.arange(count, dtype=np.int64) * 20
    for part in np.array_split(stamps, 1999):
        timeline.append(Reading("GPU-1", PowerSamples(part, part % 997)))
    found = timeline.power("GPU-1")
    assert found is not None
    assert np.array_equal(found.t_ns, stamps)
    assert np.array_equal(found.milliwatts, stamps % 997)
    edge = timeline.power("GPU-1", 65535 * 20, 65536 * 20)
    assert edge is not None
    assert {65534 * 20, 65535 * 20, 65536 * 20, 65537 * 20} <= set(edge.t_ns.tolist())


def test_a_sample_takes_twelve_bytes(timeline: Timeline) -> None:
    timeline.append(power([0]))
    batch = np.arange(1, 65536, dtype=np.int64)
    tracemalloc.start()
    try:
        for block in range(16):
            timeline.append(Reading("GPU-1", PowerSamples(batch + block * 65536, batch)))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A block more may have been begun.
    assert held <= 12 * 65536 * 17 + 20_000


def test_a_snapshot_stays_as_it_was(timeline: Timeline) -> None:
    timeline.append(power([1, 2]))
    timeline.append(counter(5, 7))
    before, counters = timeline.power("GPU-1"), timeline.counters("GPU-1")
    timeline.append(power([3, 4]))
    timeline.append(counter(6, 8))
    assert before is not None
    assert before.t_ns.tolist() == [1, 2]
    assert counters.microjoules.tolist() == [7]


@pytest.mark.parametrize("milliwatts", [-1, 1 << 32])
def test_a_power_that_no_column_holds_is_refused_and_never_wraps(timeline: Timeline, milliwatts: int) -> None:
    with pytest.raises(ValueError, match="GPU-1: a power of"):
        timeline.append(power([1], [milliwatts]))
    assert samples(timeline) == []


def test_without_samples_there_is_nothing(timeline: Timeline) -> None:
    assert timeline.power("GPU-1") is None
    assert timeline.newest_ns("GPU-1") is None
    assert len(timeline.counters("GPU-1")) == 0
    timeline.append(power([]))
    assert timeline.power("GPU-1") is None


def test_the_energy_is_known_as_far_as_the_ring_or_else_the_counter(timeline: Timeline) -> None:
    timeline.append(counter(50))
    assert timeline.newest_ns("GPU-1") == 50
    timeline.append(power([10]))
    assert timeline.newest_ns("GPU-1") == 10


def test_a_window_is_covered_up_to_where_a_counter_with_a_tick_is_known_and_no_further() -> None:
    timeline, tick_ns = Timeline(), 10**9
    scraped = replace(GPU, counter_tick_ns=tick_ns)
    timeline.add_device(scraped)
    timeline.append(
        Reading("GPU-1", counters=[CounterReading(at * tick_ns, at * tick_ns, at) for at in range(10)])
    )
    newest_ns, track = timeline.newest_ns("GPU-1"), track_of(timeline, scraped)
    assert newest_ns is not None
    assert track is not None
    start = np.array([2 * tick_ns] * 2)
    assert window_energy(track, start, np.array([newest_ns, newest_ns + 1])).covered.tolist() == [True, False]


def test_a_device_is_listed_once(timeline: Timeline) -> None:
    with pytest.raises(ValueError, match="two meters list the device GPU-1"):
        timeline.add_device(GPU)
    assert list(timeline.devices) == ["GPU-1"]


def test_events_of_a_device_and_of_all(timeline: Timeline) -> None:
    mine = Event(10, 20, "meter failed", "lost", "GPU-1")
    other = Event(10, 20, "meter failed", "lost", "GPU-2")
    everybody = Event(15, 30, "clock step", "set")
    for event in (mine, other, everybody):
        timeline.note(event)
    assert timeline.events("GPU-1", 0, 9) == ()
    assert timeline.events("GPU-1", 0, 10) == (mine,)
    assert timeline.events("GPU-1", 16, 17) == (mine, everybody)
    assert timeline.events("GPU-1", 20, 99) == (mine, everybody)
    assert timeline.events("GPU-1", 21, 99) == (everybody,)
    assert timeline.events("GPU-1", 31, 99) == ()
    assert timeline.all_events == (mine, other, everybody)


def test_conditions_in_order(timeline: Timeline) -> None:
    polls = [Conditions(t) for t in (1, 2, 3)]
    for conditions in polls:
        timeline.append(Reading("GPU-1", conditions=conditions))
    assert list(timeline.conditions("GPU-1")) == polls


def test_prompt_readings_are_those_whose_time_is_known() -> None:
    ms = 1_000_000
    columns = CounterColumns.of(
        [CounterReading(0, 3 * ms, 1), CounterReading(0, 60 * ms, 2), CounterReading(0, 160 * ms, 3)]
    )
    assert columns.prompt(0).microjoules.tolist() == [1]
    assert columns.prompt(100 * ms).microjoules.tolist() == [1, 2]
