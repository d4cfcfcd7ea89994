"""Slow meters (a BMC, a scraped exporter): what a window is worth whose readings may be as old as their resolution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pytest_tokenpower.analysis import guards
from pytest_tokenpower.analysis.energy import EnergyTrack, WindowEnergy
from pytest_tokenpower.telemetry.values import Device

AGES = 60
"""So many ages from zero to the resolution are tried at a window's edges."""

MARGIN = 1.1
"""A measurement is made this much longer than the resolution, since its executions differ in length."""

COUNTER_EDGES = 25.0
"""A window of this many standard errors of a counter's edge is known to 6 %."""


def slow_track(track: EnergyTrack, device: Device) -> EnergyTrack:
    """The track of a slow device as windows use it; a quick device's stays as it is.

    A point of power says nothing finer than the resolution, so an edge has the age of its readings for its
    uncertainty (:func:`aged`), and readings that are missing for less than half of the resolution are no gap.
    """
    if not device.slow or track.method == "energy counter":
        return track
    return replace(track, period_ns=max(track.period_ns, device.resolution_s * 1e9 / 6), edge_jitter_ns=0.0)


def aged(
    track: EnergyTrack,
    device: Device,
    energy: WindowEnergy,
    start_ns: NDArray[np.int64],
    end_ns: NDArray[np.int64],
) -> WindowEnergy:
    """The windows' energy with what the age of a slow device's readings does to it in the standard error.

    Were every reading ``a`` seconds old, a window would hold the energy from a after its start to a after its end.
    What lies beyond its end is not known and taken at the window's mean power, so that the error is
    E(start, start + a) - a · mean power; its root mean square over all ages up to the resolution is added. Steady
    power makes it small, a rise from idle within the resolution of the start makes it large. A counter's readings
    have their tick for it.
    """
    if not device.slow or track.method == "energy counter" or len(track.t_ns) < 2:
        return energy
    ages_s = np.linspace(0.0, device.resolution_s, AGES + 1)[1:]
    origin = track.t_ns[0]
    knots_s = (track.t_ns - origin) / 1e9
    starts_s = (np.asarray(start_ns, dtype=np.int64) - origin) / 1e9
    seconds = (np.asarray(end_ns, dtype=np.int64) - np.asarray(start_ns, dtype=np.int64)) / 1e9
    # Not beyond the window: what follows it is not the workload's.
    until_s = starts_s[:, None] + np.minimum(ages_s[None, :], seconds[:, None])
    joules = track.scale * np.interp(until_s, knots_s, track.joules)
    joules -= track.scale * np.interp(starts_s, knots_s, track.joules)[:, None]
    errors = joules - (until_s - starts_s[:, None]) * (energy.joules / seconds)[:, None]
    return replace(energy, stderr=np.sqrt(energy.stderr**2 + np.mean(errors**2, axis=1)))


def age_reasons(device: Device, energy: WindowEnergy, start_ns: int, end_ns: int, at: int) -> list[str]:
    """Why window ``at`` is too short for a slow device, and how long it should be; empty for a quick one."""
    if not device.slow or not energy.covered[at]:
        return []
    seconds = (end_ns - start_ns) / 1e9
    if seconds < device.resolution_s:
        return [
            f"{device.id}: the window of {seconds:.3g} s is too short for the meter {device.meter}: it resolves "
            f"{device.resolution_s:.0f} s"
        ]
    joules, stderr = float(energy.joules[at]), float(energy.stderr[at])
    share = stderr / joules if joules > 0 else 0.0
    if share <= guards.LARGEST_RELATIVE_ERROR:
        return []
    longer = seconds * share / guards.LARGEST_RELATIVE_ERROR
    return [
        f"{device.id}: readings of the meter {device.meter} may be {device.resolution_s:.0f} s old, which leaves the "
        f"window uncertain by ±{share:.0%}: warm up for longer, or measure for {longer:.0f} s"
    ]


def shortest_window_ns(track: EnergyTrack, device: Device) -> float:
    """How long a window must be for a device's meter to resolve it, quick or slow."""
    if not device.slow:
        return guards.shortest_window_ns(track)
    by_tick = COUNTER_EDGES * track.edge_jitter_ns if track.method == "energy counter" else 0.0
    return max(MARGIN * device.resolution_s * 1e9, by_tick)
