"""What is drawn of a test: readings as they are, honest buckets, phases that stay where they were."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.analysis.power_curves import (
    DrawnCurve,
    PhaseSpan,
    PowerCurves,
    coarser,
    power_curves,
    recorded_curves,
)
from pytest_tokenpower.analysis.replay import rounds_of
from pytest_tokenpower.analysis.rounds import round_records
from pytest_tokenpower.core.records import MeasurementRecord
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.windows import DECODE, PREFILL, PhaseWindow, RoundWindow
from pytest_tokenpower.meters.recording import RecordedWindow, Recording
from pytest_tokenpower.meters.timeline import Timeline
from pytest_tokenpower.meters.types import CounterReading, Device, PowerSamples, Reading

SECOND = 1_000_000_000
MS = 1_000_000
BOARD = Device("GPU-0", "gpu", "H100", "nvml", "measured", counter_tick_ns=100 * MS)


def timeline(*readings: Reading, device: Device = BOARD) -> Timeline:
    found = Timeline()
    found.add_device(device)
    for reading in readings:
        found.append(reading)
    return found


def ring(milliwatts: list[int], period_ns: int = 20 * MS) -> Timeline:
    t_ns = np.arange(1, len(milliwatts) + 1, dtype=np.int64) * period_ns
    return timeline(Reading("GPU-0", PowerSamples(t_ns, np.array(milliwatts, dtype=np.int64))))


def window(start_ns: int, end_ns: int, *phases: PhaseWindow) -> RoundWindow:
    return RoundWindow(start_ns, end_ns, TokenCount(10, 100, 1), phases=phases)


def test_a_ring_is_drawn_as_the_board_reported_it() -> None:
    found = power_curves(ring([300_000] * 50 + [500_000] * 50), (BOARD,), (window(SECOND // 2, 2 * SECOND),))
    assert found is not None
    [curve] = found.devices
    assert (curve.method, curve.bucketed) == ("power ring", False)
    assert set(curve.mean) == {300.0, 500.0}
    assert curve.low == curve.mean == curve.high
    changed = curve.mean.index(500.0)
    # Samples are stamped 3 ms late; the curve begins half a second before the round.
    assert curve.end_us[changed] == 1_020_000 - 3_000


def test_missing_readings_are_a_gap_and_no_power() -> None:
    t_ns = np.concatenate([np.arange(1, 50), np.arange(100, 150)]).astype(np.int64) * 20 * MS
    found = power_curves(
        timeline(Reading("GPU-0", PowerSamples(t_ns, np.full(len(t_ns), 400_000)))),
        (BOARD,),
        (window(SECOND // 2, 2 * SECOND),),
    )
    assert found is not None
    [curve] = found.devices
    assert curve.mean.count(None) == 1


def test_a_counter_is_drawn_no_finer_than_it_ticks() -> None:
    counters = [CounterReading(at * 50 * MS, at * 50 * MS, at // 2 * 30_000_000) for at in range(200)]
    found = power_curves(
        timeline(Reading("GPU-0", counters=counters)), (BOARD,), (window(2 * SECOND, 6 * SECOND),)
    )
    assert found is not None
    [curve] = found.devices
    assert curve.method == "energy counter"
    # 30 J in 100 ms: a reading each 50 ms would show 0 and 600 W in turn.
    assert curve.mean == pytest.approx([300.0] * len(curve.mean))


def test_nothing_is_drawn_without_rounds_or_readings() -> None:
    assert power_curves(ring([300_000] * 50), (BOARD,), ()) is None
    assert power_curves(timeline(), (BOARD,), (window(0, SECOND),)) is None


watts = st.lists(st.one_of(st.none(), st.floats(0, 1000)), min_size=2, max_size=400)


@given(watts, st.integers(1, 60))
def test_a_bucket_shows_the_extremes_and_the_mean_of_its_readings(
    values: list[float | None], most: int
) -> None:
    ends = tuple(20_000 * (at + 1) for at in range(len(values)))
    whole = DrawnCurve("GPU-0", "power ring", len(values), ends, *[tuple(values)] * 3)
    [found] = coarser(PowerCurves(0, (whole,)), most, 10).devices
    assert len(found.end_us) <= max(most, 1)
    assert found.end_us[-1] == ends[-1]
    known = [value for value in values if value is not None]
    lows, highs = ([each for each in side if each is not None] for side in (found.low, found.high))
    if not known:
        assert not lows
        assert not highs
        return
    assert (min(lows), max(highs)) == pytest.approx((min(known), max(known)), abs=0.051)
    for low, mean, high in zip(found.low, found.mean, found.high, strict=True):
        assert (low is None) == (mean is None) == (high is None)
        if low is not None and mean is not None and high is not None:
            assert low - 0.11 <= mean <= high + 0.11
    if len(known) == len(values):
        lengths = np.diff([0, *found.end_us])
        mean = float(np.dot(lengths, np.array(found.mean, dtype=float))) / ends[-1]
        assert mean == pytest.approx(math.fsum(known) / len(known), abs=0.06)


lengths = st.lists(
    st.tuples(st.integers(1, 50_000), st.sampled_from([PREFILL, DECODE])), min_size=1, max_size=200
)


@given(lengths, st.integers(1, 30))
def test_spans_are_joined_until_they_are_few_and_keep_their_extent(
    pieces: list[tuple[int, str]], most: int
) -> None:
    at, spans = 0, []
    for length, phase in pieces:
        spans.append(PhaseSpan(phase, at, at + length))
        at += length
    curve = DrawnCurve("GPU-0", "power ring", 1, (at,), (1.0,), (1.0,), (1.0,))
    found = coarser(PowerCurves(0, (curve,), tuple(spans)), 10, most)
    assert len(found.spans) <= most
    assert (found.spans[0].start_us, found.spans[-1].end_us) == (0, at)
    assert all(a.end_us <= b.start_us and a.phase != b.phase for a, b in pairwise(found.spans))


def recorded(windows: list[RoundWindow]) -> Recording:
    found = ring([300_000] * 500)
    return Recording(
        Path("x"),
        found,
        (BOARD,),
        tuple(
            RecordedWindow("t", one.start_ns, one.end_ns, None, 10, 100, devices=("GPU-0",))
            for one in windows
        ),
    )


def test_curves_of_a_recording_are_on_the_clock_of_the_stored_rounds() -> None:
    windows = [window(2 * SECOND, 3 * SECOND), window(4 * SECOND, 6 * SECOND)]
    recording = recorded(windows)
    stored = MeasurementRecord(
        "t", {}, "measured", "gpu", "power ring",
        tuple(
            msgspec.structs.replace(one, start_ns=one.start_ns + 7 * SECOND)
            for one in round_records(recording.timeline, (BOARD,), rounds_of(recording, "t"))
        ),
        comparable=True,
    )  # fmt: skip
    found = recorded_curves(recording, stored)
    assert found is not None
    assert found.start_ns == stored.rounds[0].start_ns - SECOND // 2


@pytest.mark.parametrize("late_us", [10, 100_000])
def test_a_recording_of_other_rounds_is_not_drawn(late_us: int) -> None:
    recording = recorded([window(2 * SECOND, 3 * SECOND), window(4 * SECOND, 6 * SECOND)])
    rounds = round_records(recording.timeline, (BOARD,), rounds_of(recording, "t"))
    other = msgspec.structs.replace(rounds[1], start_ns=rounds[1].start_ns + late_us * 1000)
    stored = MeasurementRecord("t", {}, "measured", "gpu", "power ring", (rounds[0], other), comparable=True)
    assert recorded_curves(recording, stored) is None
    assert recorded_curves(recording, msgspec.structs.replace(stored, test="u")) is None
