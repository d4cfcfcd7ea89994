"""Guards: each check of a measurement's health, with its own reason. A round that one trips is measured again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pytest_tokenpower.analysis.energy import GAP_PERIODS, LARGEST_DISAGREEMENT, EnergyTrack, WindowEnergy
from pytest_tokenpower.telemetry.timeline import CounterColumns, Event
from pytest_tokenpower.telemetry.values import Conditions, Device

LARGEST_RELATIVE_ERROR = 0.10
"""Above this standard error a window is too short for the method that measured it."""

LARGEST_THERMAL_SHARE = 0.01
"""Thermal or brake slowdown for more than this share of a window makes it invalid; a power cap is information."""

DISAGREEMENT_SPAN_NS = 3_000_000_000

HEAT_LIMITS = ("thermal", "sw_thermal", "hw_thermal", "power_brake")


def energy_reasons(device: Device, track: EnergyTrack, energy: WindowEnergy, at: int) -> list[str]:
    """What is wrong with the energy of window ``at`` by itself."""
    if not energy.covered[at]:
        return [f"{device.id}: no readings over the whole window (the meter stopped or started late)"]
    reasons = []
    if energy.gap[at]:
        reasons.append(
            f"{device.id}: readings are missing inside the window "
            f"(more than {GAP_PERIODS:.0f} periods of {track.period_ns / 1e6:.0f} ms)"
        )
    joules, stderr = float(energy.joules[at]), float(energy.stderr[at])
    if joules <= 0:
        reasons.append(f"{device.id}: the {track.method} read {joules:.3g} J, which no working device draws")
    elif stderr > LARGEST_RELATIVE_ERROR * joules:
        reasons.append(
            f"{device.id}: the window is too short for the {track.method} (±{stderr / joules:.0%}): "
            f"make a round longer than {shortest_window_ns(track) / 1e9:.2g} s"
        )
    limit = device.key_facts.get("power_limit_watts")
    if isinstance(limit, (int, float)) and limit > 0 and energy.peak_watts[at] > 2 * limit:
        reasons.append(
            f"{device.id}: reads {energy.peak_watts[at]:.0f} W, above twice its enforced limit of {limit:.0f} W"
        )
    return reasons


def shortest_window_ns(track: EnergyTrack) -> float:
    """How long a window must be for an error of about 2 to 3 % at worst: the meter's own, not the workload's."""
    jitter = 0.0 if track.method == "power ring" else track.edge_jitter_ns
    return max(5.0 * track.period_ns, 50.0 * jitter)


def length_reasons(device: Device, track: EnergyTrack, start_ns: int, end_ns: int) -> list[str]:
    """What no error estimate sees: inside one period of the readings nothing is known but their mean."""
    if end_ns - start_ns >= track.period_ns:
        return []
    return [
        f"{device.id}: a window of {(end_ns - start_ns) / 1e6:.2g} ms is shorter than the {track.method} can tell "
        f"apart ({track.period_ns / 1e6:.0f} ms): make a round longer than {shortest_window_ns(track) / 1e9:.2g} s"
    ]


def event_reasons(device: Device, events: Sequence[Event]) -> list[str]:
    """What the collector noted over the window: failed calls, clock steps."""
    return [event.reason if event.device_id else f"{device.id}: {event.reason}" for event in events]


def counter_disagreement(
    track: EnergyTrack, counters: CounterColumns, tick_ns: float, start_ns: int, end_ns: int
) -> float | None:
    """Counter over ring, less one, around a window, where it is beyond what ticks explain; None if they agree.

    It looks at the counter readings just outside the window, at least three seconds apart where there are any.
    """
    if track.method != "power ring" or len(counters) < 2:
        return None
    margin = max(0, DISAGREEMENT_SPAN_NS - (end_ns - start_ns)) // 2
    first = int(np.searchsorted(counters.t1_ns, start_ns - margin, "right")) - 1
    last = int(np.searchsorted(counters.t0_ns, end_ns + margin, "left"))
    first, last = max(first, 0), min(last, len(counters) - 1)
    span_ns = int(counters.t0_ns[last] - counters.t0_ns[first])
    if span_ns <= 0:
        return None
    knots = (track.t_ns - track.t_ns[0]).astype(np.float64)
    edges = np.array([counters.t0_ns[first], counters.t0_ns[last]]) - track.t_ns[0]
    if edges[0] < 0 or edges[1] > knots[-1]:
        return None
    ring = float(np.diff(np.interp(edges, knots, track.joules))[0])
    counted = (int(counters.microjoules[last]) - int(counters.microjoules[first])) / 1e6
    if ring <= 0:
        return None
    # Each reading lies up to one tick behind, whose power may be the highest around.
    around = slice(
        max(int(np.searchsorted(track.t_ns, counters.t0_ns[first])) - 5, 0),
        int(np.searchsorted(track.t_ns, counters.t0_ns[last])) + 5,
    )
    powers = np.diff(track.joules[around]) / (np.diff(track.t_ns[around]) / 1e9)
    tick_joules = float(powers.max(initial=0.0)) * tick_ns / 1e9
    excess = abs(counted - ring) - tick_joules
    return counted / ring - 1 if excess > LARGEST_DISAGREEMENT * ring else None


def condition_reasons(
    device: Device, conditions: Sequence[Conditions], start_ns: int, end_ns: int
) -> list[str]:
    """Foreign processes and heat over a window, from the polls around it."""
    reasons = []
    foreign = sorted({pid for c in _around(conditions, start_ns, end_ns) for pid in c.foreign_pids or ()})
    if foreign:
        reasons.append(
            f"{device.id}: another process used the GPU (pid {', '.join(map(str, foreign))}): stop it, or measure on a "
            "GPU of its own"
        )
    shares = limited_shares(conditions, start_ns, end_ns)
    hot = {
        name: share for name, share in shares.items() if name in HEAT_LIMITS and share > LARGEST_THERMAL_SHARE
    }
    if hot:
        listed = ", ".join(
            f"{name.replace('_', ' ')} {share:.0%} of the time" for name, share in sorted(hot.items())
        )
        reasons.append(f"{device.id}: slowed down by heat or by the power supply: {listed}")
    return reasons


def limited_shares(conditions: Sequence[Conditions], start_ns: int, end_ns: int) -> dict[str, float]:
    """The share of a window's time under each limit, from the cumulative counters between the polls around it.

    Counters are read once a second: a limit that was hit between two polls is spread evenly over them.
    """
    names = sorted({name for c in conditions for name in c.limited_ns})
    if not names or len(conditions) < 2 or end_ns <= start_ns:
        return {}
    shares = {}
    for name in names:
        known = [(c.t_ns, c.limited_ns[name]) for c in conditions if name in c.limited_ns]
        t = np.array([at for at, _ in known], dtype=np.float64)
        total = np.array([value for _, value in known], dtype=np.float64)
        at_edges = np.interp([start_ns, end_ns], t, total)
        shares[name] = float((at_edges[1] - at_edges[0]) / (end_ns - start_ns))
    return shares


def mean_condition(conditions: Sequence[Conditions], field: str, start_ns: int, end_ns: int) -> float | None:
    """The mean of ``temperature_celsius`` or ``sm_clock_mhz`` over a window: joined by lines between the polls."""
    known = [(c.t_ns, value) for c in conditions if (value := getattr(c, field)) is not None]
    if not known:
        return None
    t: NDArray[np.float64] = np.array([at for at, _ in known], dtype=np.float64)
    values = np.array([value for _, value in known], dtype=np.float64)
    inside = t[(t > start_ns) & (t < end_ns)]
    grid = np.concatenate([[start_ns], inside, [end_ns]])
    read = np.interp(grid, t, values)
    widths = np.diff(grid)
    return float(((read[1:] + read[:-1]) / 2) @ widths / widths.sum())


def _around(conditions: Sequence[Conditions], start_ns: int, end_ns: int) -> Sequence[Conditions]:
    """The conditions inside a window and the one poll on each side of it."""
    before = [c for c in conditions if c.t_ns < start_ns][-1:]
    inside = [c for c in conditions if start_ns <= c.t_ns <= end_ns]
    after = [c for c in conditions if c.t_ns > end_ns][:1]
    return [*before, *inside, *after]
