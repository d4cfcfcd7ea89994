"""The scale of a track: the power ring held against the energy counter over the whole recording. Pure."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pytest_tokenpower.analysis.cross_checks import longest_consistent_run
from pytest_tokenpower.analysis.tracks import (
    GAP_PERIODS,
    LARGEST_DISAGREEMENT,
    EnergyTrack,
    ScaleFit,
    counter_track,
    polled_track,
    ring_track,
)
from pytest_tokenpower.meters.timeline import CounterColumns, Stretch, Timeline
from pytest_tokenpower.meters.types import Device


def track_of(timeline: Timeline | Stretch, device: Device) -> EnergyTrack | None:
    """Choose a device's best track: ring (at the counter's scale), then counter, then polled power; None: no data."""
    track = _track_of(timeline, device)
    return replace(track, clock_error_ns=device.clock_error_ns) if track and device.clock_error_ns else track


def _track_of(timeline: Timeline | Stretch, device: Device) -> EnergyTrack | None:
    power = timeline.power(device.id)
    tick_ns = device.counter_tick_ns
    counters = counters_of(timeline, device)
    if power is not None and power.held and len(power.t_ns) > 2:
        track = ring_track(power)
        return scaled(track, fit_scale(track, longest_consistent_run(track, counters, tick_ns), tick_ns))
    if len(counters) > 1:
        return counter_track(counters, tick_ns)
    if power is not None and len(power.t_ns) > 1:
        # The board's own power reading is a 1 s average: an edge is blurred over that second.
        return polled_track(power, refresh_ns=1e9 / math.sqrt(12.0))
    return None


def counters_of(timeline: Timeline | Stretch, device: Device) -> CounterColumns:
    """Counter readings to rely on: of a meter on this machine those that were prompt."""
    counters = timeline.counters(device.id)
    # What answers over a network is slow by nature, and says itself how old it may be.
    return counters if device.slow else counters.prompt(device.counter_tick_ns)


SCALE_PRIOR_SD = 0.002
"""The ring and the counter of a sound board agree within this; a short recording cannot say it better."""


def fit_scale(track: EnergyTrack, counters: CounterColumns, tick_ns: float) -> ScaleFit | None:
    """Least squares of the counter on the ring, over the readings that the ring covers; None below three.

    The counter holds the energy as of its last tick. The ticks are periodic, so their phase is one more unknown,
    found on a grid: it takes the scatter on an H100 from 30 ms of power to 5 ms. The result is drawn towards 1
    with SCALE_PRIOR_SD, so that a short recording does not make the figure worse than no scale at all.
    """
    inside = (counters.t0_ns - tick_ns >= track.t_ns[0]) & (counters.t1_ns <= track.t_ns[-1])
    if np.any(np.diff(track.t_ns) > GAP_PERIODS * track.period_ns):
        inside &= _longest_gapless(track, counters)
    index = np.flatnonzero(inside)
    if len(index) < 3:
        return None
    if len(index) > 400:
        index = index[np.linspace(0, len(index) - 1, 400).astype(np.intp)]
    read_joules = (counters.microjoules[index] - counters.microjoules[index[0]]) / 1e6
    phases = np.linspace(0.0, tick_ns, 50, endpoint=False) if tick_ns else np.zeros(1)
    relative = (counters.t0_ns[index] - track.t_ns[0]) + (counters.t1_ns - counters.t0_ns)[index] / 2
    knots = (track.t_ns - track.t_ns[0]).astype(np.float64)
    shifted = relative - phases[:, None]
    ticks = np.floor(shifted / tick_ns) * tick_ns + phases[:, None] if tick_ns else relative[None, :]
    rings = np.interp(ticks + track.lag_ns, knots, track.joules)
    spreads = rings - rings.mean(axis=1, keepdims=True)
    squares = (spreads**2).sum(axis=1)
    if np.any(squares <= 0):
        return None
    slopes = spreads @ read_joules / squares
    totals = ((read_joules - read_joules.mean() - slopes[:, None] * spreads) ** 2).sum(axis=1)
    best = int(np.argmin(totals))
    total, slope, ring = float(totals[best]), float(slopes[best]), rings[best]
    denominator = float(((ring - ring.mean()) ** 2).sum())
    residual = float(np.sqrt(total / max(len(index) - 2, 1)))
    # Below a handful of readings the phase fits anything: keep the tick's own scatter as the floor then.
    watts = float(track.joules[-1] / max((track.t_ns[-1] - track.t_ns[0]) / 1e9, 1e-9))
    floor = watts * tick_ns / 1e9 / np.sqrt(12.0) if len(index) < 10 else 0.0
    variance = max(max(residual, floor) ** 2 / denominator, _drift_variance(ring, read_joules, slope))
    weight = SCALE_PRIOR_SD**2 / (SCALE_PRIOR_SD**2 + variance)
    return ScaleFit(
        scale=1.0 + weight * (slope - 1.0),
        stderr=float(np.sqrt(weight * variance)),
        agreement=slope,
        residual_joules=residual,
        readings=len(index),
    )


def _drift_variance(ring: NDArray[np.float64], counted: NDArray[np.float64], slope: float) -> float:
    """Return the slope's variance where the ring's error adds up over time, which the scatter does not tell.

    It comes from how five stretches of the recording differ. Zero below ten readings.
    """
    if len(ring) < 10:
        return 0.0
    ends = np.linspace(0, len(ring) - 1, 6).astype(np.intp)
    off = np.diff(counted[ends]) - slope * np.diff(ring[ends])
    return float(off @ off) * 5 / 4 / float(ring[-1] - ring[0]) ** 2


def _longest_gapless(track: EnergyTrack, counters: CounterColumns) -> NDArray[np.bool_]:
    breaks = np.flatnonzero(np.diff(track.t_ns) > GAP_PERIODS * track.period_ns)
    starts = track.t_ns[np.concatenate([[0], breaks + 1])]
    ends = track.t_ns[np.concatenate([breaks, [len(track.t_ns) - 1]])]
    longest = int(np.argmax(ends - starts))
    result: NDArray[np.bool_] = (counters.t0_ns - track.period_ns * 5 >= starts[longest]) & (
        counters.t1_ns <= ends[longest]
    )
    return result


def scaled(track: EnergyTrack, fit: ScaleFit | None) -> EnergyTrack:
    """Return the track at the counter's scale; without a fit at its own, with the prior's uncertainty.

    Where the two disagree by more than LARGEST_DISAGREEMENT one of them is wrong: then nothing is scaled, and the
    guards say so.
    """
    if fit is None or abs(fit.agreement - 1.0) > LARGEST_DISAGREEMENT:
        return replace(track, scale=1.0, scale_stderr=SCALE_PRIOR_SD, fit=fit)
    return replace(track, scale=fit.scale, scale_stderr=fit.stderr, fit=fit)
