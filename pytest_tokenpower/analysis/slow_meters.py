"""Slow meters (a BMC, a scraped exporter): what a window is worth whose readings may be as old as their resolution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pytest_tokenpower.analysis import guards
from pytest_tokenpower.analysis.tracks import EnergyTrack, WindowEnergy
from pytest_tokenpower.meters.types import Device

NEEDED = 2.0
"""A window must be this many resolutions long: what was read in the first of them may be of before the window."""

MARGIN = 1.05
"""A measurement is planned this much longer than needed, since its executions differ in length."""

BLOCKS = 4
"""The readings in use are cut into so many, whose scatter tells how steady they are."""

OLD_BLOCKS = 12
"""The readings that may be old are cut into so many, to be held against those in use."""

COUNTER_EDGES = 25.0
"""A window of this many standard errors of a counter's edge is known to 6 %."""


def slow_track(track: EnergyTrack, device: Device) -> EnergyTrack:
    """Return the track of a slow device as windows use it; a quick device's stays as it is.

    A point of power says nothing finer than the resolution: its edges are :func:`aged`'s business, and readings that
    are missing for less than half of the resolution are no gap.
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
    """Return the windows' energy from a slow device's points of power, which may be as old as its resolution R.

    What is read from R after the start on is of the window for certain: its mean power, over the whole window, is
    the energy. That takes the work for the same throughout. Where the readings up to R lie above or below that mean,
    they are old or the work is uneven: the larger of the two sums is as much as the energy can be off, so a third of
    its square (anything from nothing to all of it) goes into the variance, beside the scatter of the mean power.
    Likewise the last R may have gone on as the newest readings say; a change that none of them tells is not seen.
    A counter is left as it is: its tick says how old it is.
    """
    if not device.slow or track.method == "energy counter" or len(track.t_ns) < 2:
        return energy
    knots_s = (track.t_ns - track.t_ns[0]) / 1e9
    start_s = (np.asarray(start_ns, dtype=np.int64) - track.t_ns[0]) / 1e9
    end_s = (np.asarray(end_ns, dtype=np.int64) - track.t_ns[0]) / 1e9
    seconds = end_s - start_s
    # A window that is too short is told by age_reasons; half of it keeps the figures finite.
    from_s = start_s + np.minimum(device.resolution_s, seconds / 2)

    def block_watts(
        first_s: NDArray[np.float64], last_s: NDArray[np.float64], count: int
    ) -> NDArray[np.float64]:
        edges_s = np.linspace(first_s, last_s, count + 1, axis=-1)
        blocks = np.diff(track.scale * np.interp(edges_s, knots_s, track.joules), axis=-1)
        return np.asarray(blocks / np.diff(edges_s, axis=-1))

    watts = block_watts(from_s, end_s, BLOCKS)
    joules = watts.mean(axis=-1) * seconds
    scatter = watts.std(axis=-1, ddof=1) / np.sqrt(BLOCKS) * seconds
    off = block_watts(start_s, from_s, OLD_BLOCKS) - watts.mean(axis=-1, keepdims=True)
    above, below = np.maximum(off, 0).mean(axis=-1), np.maximum(-off, 0).mean(axis=-1)
    old_s = from_s - start_s
    doubt = np.maximum(above, below) * old_s
    newest = block_watts(end_s - old_s / OLD_BLOCKS, end_s, 1)[..., 0]
    untold = (newest - watts.mean(axis=-1)) * old_s
    variance = energy.stderr**2 + scatter**2 + (doubt**2 + untold**2) / 3
    return replace(energy, joules=np.where(energy.covered, joules, np.nan), stderr=np.sqrt(variance))


def age_reasons(device: Device, energy: WindowEnergy, start_ns: int, end_ns: int, at: int) -> list[str]:
    """Why window ``at`` is too short for a slow device, and how long it should be; empty for a quick one."""
    if not device.slow or not energy.covered[at]:
        return []
    seconds = (end_ns - start_ns) / 1e9
    if seconds < NEEDED * device.resolution_s:
        return [
            f"{device.id}: the window of {seconds:.3g} s is too short for the meter {device.meter}, whose readings may "
            f"be {device.resolution_s:.3g} s old: it takes {NEEDED * device.resolution_s:.3g} s"
        ]
    joules, stderr = float(energy.joules[at]), float(energy.stderr[at])
    share = stderr / joules if joules > 0 else 0.0
    if share <= guards.LARGEST_RELATIVE_ERROR:
        return []
    longer = seconds * share / guards.LARGEST_RELATIVE_ERROR
    return [
        f"{device.id}: the readings of the meter {device.meter} are not steady over the window (±{share:.0%}): warm up "
        f"for {device.resolution_s:.3g} s, or measure even work for {longer:.0f} s"
    ]


def shortest_window_ns(track: EnergyTrack, device: Device) -> float:
    """How long a window must be for a device's meter to resolve it, quick or slow."""
    if not device.slow:
        return guards.shortest_window_ns(track)
    by_tick = COUNTER_EDGES * track.edge_jitter_ns if track.method == "energy counter" else 0.0
    return max(MARGIN * NEEDED * device.resolution_s * 1e9, by_tick)
