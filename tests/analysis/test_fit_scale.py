"""The scale of the ring against the counter, planted and found again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pytest_tokenpower.analysis.calibration import SCALE_PRIOR_SD, fit_scale, scaled
from pytest_tokenpower.analysis.tracks import (
    LARGEST_DISAGREEMENT,
    EnergyTrack,
    ScaleFit,
    ring_track,
    window_energy,
)
from pytest_tokenpower.meters.simulation.power_curve import PowerCurve
from pytest_tokenpower.meters.timeline import CounterColumns
from pytest_tokenpower.meters.types import PowerSamples
from tests.support.readings import MS, SECOND, counter_readings, ring_samples

TICK = 100 * MS
SECONDS = 60


def recording(
    scale: float, phase_ms: int, seed: int, *, gap_s: tuple[int, int] | None = None, noise: float = 0.0
) -> tuple[EnergyTrack, CounterColumns]:
    """Return a minute of power that changes a few times a second, with a counter that is read once a second."""
    random = np.random.default_rng(seed)
    changes = np.arange(0, SECONDS * 1000, 250) / 1e3
    curve = PowerCurve(points=tuple((float(second), float(random.integers(80, 700))) for second in changes))
    stamps = np.arange(0, SECONDS * SECOND, 20 * MS, dtype=np.int64)
    power = ring_samples(curve, stamps)
    if noise:
        spoilt = power.milliwatts * (1 + noise * random.standard_normal(len(stamps)))
        power = replace(power, milliwatts=np.rint(spoilt).astype(np.int64))
    if gap_s is not None:
        keep = (stamps < gap_s[0] * SECOND) | (stamps > gap_s[1] * SECOND)
        power = PowerSamples(power.t_ns[keep], power.milliwatts[keep])
    late_ms = random.integers(0, 40, SECONDS - 2)
    reads: NDArray[np.int64] = (np.arange(1, SECONDS - 1) * 1000 + late_ms).astype(np.int64) * MS
    return ring_track(power), counter_readings(curve.energy(), reads, TICK, phase_ms * MS, scale)


def fitted(track: EnergyTrack, counters: CounterColumns) -> ScaleFit:
    fit = fit_scale(track, counters, TICK)
    assert fit is not None
    return fit


@settings(deadline=None, max_examples=15)
@given(
    st.floats(0.96, 1.04),
    # The phase is searched in steps of 2 ms: a read within one of a tick would be taken for the tick before.
    st.integers(0, 49).map(lambda step: 2 * step),
    st.integers(0, 1000),
    st.sampled_from([None, (20, 21), (5, 9), (50, 58)]),
)
def test_a_planted_scale_is_found_within_its_standard_error(
    scale: float, phase_ms: int, seed: int, gap_s: tuple[int, int] | None
) -> None:
    fit = fitted(*recording(scale, phase_ms, seed, gap_s=gap_s))
    assert abs(fit.agreement - scale) <= 4 * fit.stderr + 1e-4
    # It is drawn towards 1, as far as a recording of this length is less sure than the prior.
    assert (
        abs(fit.scale - scale) <= 4 * fit.stderr + (fit.stderr / SCALE_PRIOR_SD) ** 2 * abs(scale - 1) + 1e-4
    )
    assert fit.stderr < 0.001
    assert fit.readings >= 10


def test_the_standard_error_allows_for_a_ring_whose_error_adds_up() -> None:
    # Each sample of the ring is 2 % off by itself, so its sum walks away from the counter.
    fits = [fitted(*recording(1.0, 30, seed, noise=0.02)) for seed in range(30)]
    standardised = [(fit.agreement - 1.0) / fit.stderr for fit in fits]
    assert 0.4 < np.median(np.abs(standardised)) < 1.5


def test_a_gap_in_which_power_changed_does_not_spoil_the_scale() -> None:
    # The ring holds the power from before the gap all through it, which is wrong by kilojoules here.
    whole, with_gap = (fitted(*recording(1.01, 30, 7, gap_s=gap)) for gap in (None, (25, 40)))
    assert with_gap.agreement == pytest.approx(whole.agreement, abs=1e-3)
    assert with_gap.readings < whole.readings


def test_a_scaled_window_has_the_counters_energy() -> None:
    track, counters = recording(1.02, 30, 3)
    start, end = np.array([10 * SECOND], dtype=np.int64), np.array([50 * SECOND], dtype=np.int64)
    plain = window_energy(scaled(track, None), start, end)
    found = window_energy(scaled(track, fitted(track, counters)), start, end)
    assert found.joules[0] / plain.joules[0] == pytest.approx(1.02, abs=5e-4)
    # Without a counter the scale is as sure as a sound board is.
    assert 1 <= plain.stderr[0] / (SCALE_PRIOR_SD * plain.joules[0]) < 1.2
    assert found.stderr[0] < plain.stderr[0]


@pytest.mark.parametrize("readings", [0, 1, 2])
def test_below_three_readings_there_is_no_scale(readings: int) -> None:
    track, counters = recording(1.0, 0, 0)
    few = CounterColumns(
        counters.t0_ns[:readings], counters.t1_ns[:readings], counters.microjoules[:readings]
    )
    assert fit_scale(track, few, TICK) is None


def test_a_short_recording_stays_near_one() -> None:
    track, counters = recording(1.03, 50, 1)
    few = CounterColumns(counters.t0_ns[:4], counters.t1_ns[:4], counters.microjoules[:4])
    fit = fitted(track, few)
    assert abs(fit.scale - 1) < 0.005
    assert fit.stderr > 0.0015


@pytest.mark.parametrize("scale", [0.5, 1.06, 2.0])
def test_a_counter_that_contradicts_the_ring_scales_nothing(scale: float) -> None:
    track, counters = recording(scale, 0, 2)
    result = scaled(track, fitted(track, counters))
    assert result.scale == 1.0
    assert result.fit is not None
    assert abs(result.fit.agreement - 1) > LARGEST_DISAGREEMENT


@pytest.mark.parametrize("seed", range(5))
def test_the_scale_is_the_same_to_the_bit_on_any_clock(seed: int) -> None:
    track, counters = recording(1.01, 33, seed)
    shift_ns = 1_795_000_000_123_456_789
    moved = replace(track, t_ns=track.t_ns + shift_ns)
    assert fitted(track, counters) == fitted(
        moved, CounterColumns(counters.t0_ns + shift_ns, counters.t1_ns + shift_ns, counters.microjoules)
    )
