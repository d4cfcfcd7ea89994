"""Every guard with a defect planted for it; and none of them speaks of sound readings."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import overload

import numpy as np
import pytest

from pytest_tokenpower.analysis import guards
from pytest_tokenpower.analysis.cross_checks import counter_disagreement
from pytest_tokenpower.analysis.tracks import (
    EnergyTrack,
    WindowEnergy,
    counter_track,
    ring_track,
    window_energy,
)
from pytest_tokenpower.meters.simulation.power_curve import PowerCurve
from pytest_tokenpower.meters.timeline import CounterColumns, Event
from pytest_tokenpower.meters.types import Conditions, Device
from tests.support.readings import MS, SECOND, counter_readings, ring_of, ring_samples

GPU = Device("GPU-1", "gpu", "A board", "nvml", "measured", key_facts={"power_limit_watts": 700})
STAMPS = np.arange(0, 10 * SECOND, 20 * MS, dtype=np.int64)
STEADY = ring_track(ring_samples(PowerCurve.constant(300.0), STAMPS))
WINDOW = (2 * SECOND, 3 * SECOND)


def energy(track: EnergyTrack, start_ns: int, end_ns: int) -> WindowEnergy:
    return window_energy(track, np.array([start_ns], dtype=np.int64), np.array([end_ns], dtype=np.int64))


def reasons(track: EnergyTrack, start_ns: int, end_ns: int, device: Device = GPU) -> list[str]:
    return guards.energy_reasons(device, track, energy(track, start_ns, end_ns), 0, end_ns - start_ns)


def test_sound_readings_have_nothing_against_them() -> None:
    assert reasons(STEADY, *WINDOW) == []
    assert guards.length_reasons(GPU, STEADY, *WINDOW) == []
    assert guards.event_reasons(GPU, []) == []
    counters = counter_readings(PowerCurve.constant(300.0).energy(), np.arange(10) * SECOND, 100 * MS)
    assert counter_disagreement(STEADY, counters, 100 * MS, *WINDOW) is None
    polls = [
        Conditions(t, limited_ns={"thermal": 5, "power": t}, foreign_pids=())
        for t in range(0, 10 * SECOND, SECOND)
    ]
    assert guards.condition_reasons(GPU, polls, *WINDOW) == []


@pytest.mark.parametrize("window", [(-SECOND, SECOND), (9 * SECOND, 11 * SECOND), (20 * SECOND, 21 * SECOND)])
def test_a_window_beyond_the_readings(window: tuple[int, int]) -> None:
    assert reasons(STEADY, *window) == [
        "GPU-1: no readings over the whole window (the meter stopped or started late)"
    ]


def test_a_gap_in_the_ring() -> None:
    stamps = np.concatenate([STAMPS[:120], STAMPS[140:]])
    track = ring_track(ring_samples(PowerCurve.constant(300.0), stamps))
    assert reasons(track, *WINDOW) == [
        "GPU-1: readings are missing inside the window (more than 3 periods of 20 ms)"
    ]
    assert reasons(track, 5 * SECOND, 6 * SECOND) == []


def test_a_gap_makes_no_window_too_short_however_vague_it_leaves_it() -> None:
    """Nearly all readings are missing: a longer round would help nothing."""
    stamps = STAMPS[(STAMPS < 1900 * MS) | (STAMPS > 2950 * MS)]
    curve = PowerCurve(points=((0.0, 50.0), (2.5, 700.0), (9.0, 50.0)), shape="steps")
    track = ring_track(ring_samples(curve, stamps))
    found = energy(track, *WINDOW)
    assert found.stderr[0] > 0.1 * found.joules[0]
    assert reasons(track, *WINDOW) == [
        "GPU-1: readings are missing inside the window (more than 3 periods of 20 ms)"
    ]


def test_a_meter_that_reads_nothing() -> None:
    dead = counter_track(CounterColumns(STAMPS, STAMPS, np.full(len(STAMPS), 123, dtype=np.int64)))
    assert reasons(dead, *WINDOW) == ["GPU-1: the energy counter read 0 J, which no working device draws"]


def test_a_window_that_is_too_short_for_its_method() -> None:
    step = ring_of([(200, 50.0), (500, 700.0), (500, 50.0)], "steps", [20]).track
    [reason] = reasons(step, 1180 * MS, 1215 * MS)
    assert re.fullmatch(
        r"GPU-1: the window is too short for the power ring \(±1\d%\): make a round longer than 0\.2 s",
        reason,
    )
    # Standing still at an edge does not show in the samples: 2 ms of the power at each edge, also where it is steady.
    [reason] = reasons(STEADY, 2 * SECOND, 2 * SECOND + 27 * MS)
    assert "too short for the power ring (±10%)" in reason
    assert reasons(STEADY, 2 * SECOND, 2 * SECOND + 29 * MS) == []
    ticking = counter_track(
        counter_readings(PowerCurve.constant(300.0).energy(), STAMPS, 100 * MS), tick_ns=100 * MS
    )
    [reason] = reasons(ticking, 2 * SECOND, 2 * SECOND + 300 * MS)
    assert "too short for the energy counter" in reason
    # Read every 20 ms it leaps at every fifth: that is not five times the power.
    assert reasons(ticking, 2 * SECOND, 4 * SECOND) == []
    assert math.isnan(energy(ticking, 2 * SECOND, 4 * SECOND).peak_watts[0])


def test_the_shortest_window_is_long_enough_whatever_the_power_does_at_its_edges() -> None:
    for late_ms in range(0, 20, 3):
        step = ring_of([(200 + late_ms, 0.0), (200, 700.0), (500, 0.0)], "steps", [20]).track
        assert guards.shortest_window_ns(step) == 200 * MS
        start = (1200 + late_ms) * MS
        found = energy(step, start, start + 200 * MS)
        assert 0.01 < found.stderr[0] / found.joules[0] < 0.03
    counter = counter_readings(PowerCurve.constant(300.0).energy(), STAMPS, 0)
    assert guards.shortest_window_ns(counter_track(counter)) == 100 * MS
    assert guards.shortest_window_ns(counter_track(counter, 100 * MS)) == pytest.approx(1443 * MS, rel=1e-3)


def test_a_window_inside_one_sample() -> None:
    # Whatever error is estimated: a spike would hide in the sample's mean.
    assert guards.length_reasons(GPU, STEADY, 2 * SECOND, 2 * SECOND + 19 * MS) == [
        "GPU-1: a window of 19 ms is shorter than the power ring can tell apart (20 ms): make a round longer than 0.2 s"
    ]


def test_more_power_than_the_board_may_draw() -> None:
    frozen = ring_track(ring_samples(PowerCurve.constant(1500.0), STAMPS))
    assert reasons(frozen, *WINDOW) == ["GPU-1: reads 1500 W, above twice its enforced limit of 700 W"]
    assert reasons(frozen, *WINDOW, device=replace(GPU, key_facts={})) == []


def test_events_are_told_in_their_own_words_with_the_device() -> None:
    events = [
        Event(0, 1, "meter failed", "GPU-1: nvmlDeviceGetSamples failed: GPU is lost", "GPU-1"),
        Event(0, 1, "clock step", "the realtime clock was set by +20.0 ms"),
    ]
    assert guards.event_reasons(GPU, events) == [
        "GPU-1: nvmlDeviceGetSamples failed: GPU is lost",
        "GPU-1: the realtime clock was set by +20.0 ms",
    ]


@pytest.mark.parametrize("scale", [0.5, 0.9, 1.1, 2.0])
def test_a_counter_that_contradicts_the_ring(scale: float) -> None:
    counters = counter_readings(
        PowerCurve.constant(300.0).energy(), np.arange(10) * SECOND, 100 * MS, scale=scale
    )
    window = (4 * SECOND, 5 * SECOND)
    assert counter_disagreement(STEADY, counters, 100 * MS, *window) == pytest.approx(scale - 1, abs=0.04)


@pytest.mark.parametrize("phase_ms", range(0, 100, 10))
def test_the_ticks_of_a_counter_are_no_contradiction(phase_ms: int) -> None:
    counters = counter_readings(
        PowerCurve.constant(300.0).energy(), np.arange(10) * SECOND, 100 * MS, phase_ns=phase_ms * MS
    )
    for start_ms in range(1000, 8000, 250):
        window = (start_ms * MS, (start_ms + 100) * MS)
        assert counter_disagreement(STEADY, counters, 100 * MS, *window) is None


def test_another_process_on_the_board() -> None:
    def at(second: int, *pids: int) -> Conditions:
        return Conditions(second * SECOND, foreign_pids=pids)

    said = "GPU-1: another process used the GPU (pid 7, 9): stop it, or measure on a GPU of its own"
    # Seen inside the window, or at the polls around it.
    for polls in ([at(1), at(2, 7, 9), at(4)], [at(1, 9), at(4, 7)]):
        assert guards.condition_reasons(GPU, polls, 2 * SECOND, 3 * SECOND) == [said]
    assert guards.condition_reasons(GPU, [at(0, 7), at(1), at(4), at(5, 9)], 2 * SECOND, 3 * SECOND) == []
    assert (
        guards.condition_reasons(GPU, [Conditions(SECOND), Conditions(4 * SECOND)], 2 * SECOND, 3 * SECOND)
        == []
    )


@pytest.mark.parametrize("limit", ["thermal", "sw_thermal", "hw_thermal", "power_brake"])
def test_heat_drops_a_window_and_a_power_cap_does_not(limit: str) -> None:
    def polls(name: str) -> list[Conditions]:
        # A tenth of the time from second 2 on.
        return [Conditions(s * SECOND, limited_ns={name: max(0, s - 2) * SECOND // 10}) for s in range(6)]

    assert guards.condition_reasons(GPU, polls(limit), 3 * SECOND, 4 * SECOND) == [
        f"GPU-1: slowed down by heat or by the power supply: {limit.replace('_', ' ')} 10% of the time"
    ]
    assert guards.condition_reasons(GPU, polls(limit), 0, 2 * SECOND) == []
    assert guards.condition_reasons(GPU, polls("power"), 3 * SECOND, 4 * SECOND) == []
    assert guards.limited_shares(polls("power"), 3 * SECOND, 4 * SECOND) == pytest.approx({"power": 0.1})


def test_what_is_not_read_has_no_share_and_no_mean() -> None:
    polls = [Conditions(0), Conditions(SECOND)]
    assert guards.limited_shares(polls, 0, SECOND) == {}
    assert guards.mean_condition(polls, "temperature_celsius", 0, SECOND) is None


def test_a_mean_condition_follows_lines_between_the_polls() -> None:
    polls = [
        Conditions(s * SECOND, temperature_celsius=celsius)
        for s, celsius in ((0, 50.0), (1, 60.0), (3, 60.0))
    ]
    assert guards.mean_condition(polls, "temperature_celsius", 0, SECOND) == pytest.approx(55)
    assert guards.mean_condition(polls, "temperature_celsius", 0, 2 * SECOND) == pytest.approx(57.5)
    # Beyond the polls the nearest one holds.
    assert guards.mean_condition(polls, "temperature_celsius", 4 * SECOND, 5 * SECOND) == pytest.approx(60)


class Day(Sequence[Conditions]):
    """A day of polls that counts how many of them are looked at."""

    def __init__(self) -> None:
        self.looked = 0
        self.polls = [
            Conditions(
                t * SECOND,
                temperature_celsius=40 + t % 7,
                limited_ns={"power": t * SECOND // 4},
                foreign_pids=(7,) if t == 50_000 else (),
            )
            for t in range(86_400)
        ]

    def __len__(self) -> int:
        return len(self.polls)

    @overload
    def __getitem__(self, at: int) -> Conditions: ...

    @overload
    def __getitem__(self, at: slice) -> list[Conditions]: ...

    def __getitem__(self, at: int | slice) -> Conditions | list[Conditions]:
        found = self.polls[at]
        self.looked += len(found) if isinstance(found, list) else 1
        return found


@pytest.mark.parametrize("start_s", [0, 12_345, 49_999, 86_395])
def test_a_window_of_a_long_day_looks_at_the_polls_around_it_alone(start_s: int) -> None:
    day = Day()
    start_ns, end_ns = start_s * SECOND + 5, (start_s + 2) * SECOND
    near = day.polls[max(0, start_s - 8) : start_s + 11]
    for polls in (day, near):
        assert guards.limited_shares(polls, start_ns, end_ns) == {"power": pytest.approx(0.25)}
    assert guards.mean_condition(day, "temperature_celsius", start_ns, end_ns) == guards.mean_condition(
        near, "temperature_celsius", start_ns, end_ns
    )
    assert bool(guards.condition_reasons(GPU, day, start_ns, end_ns)) is (start_s == 49_999)
    assert day.looked < 500


def test_a_short_window_below_zero_is_too_short_and_a_long_one_a_fault() -> None:
    below = WindowEnergy(
        joules=np.array([-0.2]),
        stderr=np.array([1.5]),
        peak_watts=np.array([0.0]),
        covered=np.array([True]),
        gap=np.array([False]),
    )
    assert guards.energy_reasons(GPU, STEADY, below, 0, 31 * MS) == [
        "GPU-1: the window is too short for the power ring (-0.2 ± 1.5 J): make a round longer than 0.2 s"
    ]
    assert guards.energy_reasons(GPU, STEADY, below, 0, SECOND) == [
        "GPU-1: the power ring read -0.2 J, which no working device draws"
    ]
