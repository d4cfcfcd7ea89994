"""Guards: each check of a measurement's health, with its own reason. A round that one trips is measured again."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pytest_tokenpower.analysis.cross_checks import (
    STILL_DISAGREEMENT,
    STILL_SAMPLES,
    counter_disagreement,
    longest_still_ns,
    power_disagreement,
)
from pytest_tokenpower.analysis.tracks import GAP_PERIODS, LARGEST_DISAGREEMENT, EnergyTrack, WindowEnergy
from pytest_tokenpower.meters.timeline import FAILED, LOST, CounterColumns, Event
from pytest_tokenpower.meters.types import Conditions, Device, PowerSamples

LARGEST_RELATIVE_ERROR = 0.10
"""Above this standard error a window is too short for the method that measured it. A ring's windows below 28 ms are,
also at steady power: single ones of 33 ms spread by 6 to 10 % on an H100."""

LARGEST_THERMAL_SHARE = 0.01
"""Thermal or brake slowdown for more than this share of a window makes it invalid; a power cap is information."""

LASTING_NS = 30_000_000_000
"""A meter that has failed at each poll for so long is not waited for any longer."""

STALE_NS = 5_000_000_000
"""A condition that was read longer ago than this says nothing about a window."""

AROUND_NS = 5_000_000_000
"""How far around a window the power samples are looked at: whether they move, and what the counter says."""

HEAT_LIMITS = ("thermal", "sw_thermal", "hw_thermal", "power_brake")


def energy_reasons(
    device: Device, track: EnergyTrack, energy: WindowEnergy, at: int, window_ns: int
) -> list[str]:
    """Return what is wrong with the energy of window ``at``, which is ``window_ns`` long, by itself."""
    if not energy.covered[at]:
        return [f"{device.id}: no readings over the whole window (the meter stopped or started late)"]
    reasons = []
    if energy.gap[at]:
        reasons.append(
            f"{device.id}: readings are missing inside the window "
            f"(more than {GAP_PERIODS:.0f} periods of {track.period_ns / 1e6:.0f} ms)"
        )
    joules, stderr = float(energy.joules[at]), float(energy.stderr[at])
    long_enough = window_ns >= shortest_window_ns(track)
    if joules <= 0 and long_enough:
        reasons.append(f"{device.id}: the {track.method} read {joules:.3g} J, which no working device draws")
    elif (joules <= 0 or stderr > LARGEST_RELATIVE_ERROR * joules) and not (long_enough and energy.gap[at]):
        # Right after a fall of the power, a few milliseconds may come out below zero: within the error, not a fault.
        error = f"±{stderr / joules:.0%}" if joules > 0 else f"{joules:.2g} ± {stderr:.2g} J"
        reasons.append(
            f"{device.id}: the window is too short for the {track.method} ({error}): "
            f"make a round longer than {shortest_window_ns(track) / 1e9:.2g} s"
        )
    limit = device.key_facts.get("power_limit_watts")
    if isinstance(limit, (int, float)) and limit > 0 and energy.peak_watts[at] > 2 * limit:
        reasons.append(
            f"{device.id}: reads {energy.peak_watts[at]:.0f} W, above twice its enforced limit of {limit:.0f} W"
        )
    return reasons


def shortest_window_ns(track: EnergyTrack) -> float:
    """How long a window must be for an error of 2 to 3 % at worst: the meter's own, not the workload's.

    Ring windows of 5 periods spread by 3 to 4 % on an H100, those of 12 by 1.2 to 1.5 %.
    """
    if track.method == "power ring":
        return 10.0 * track.period_ns
    return max(5.0 * track.period_ns, 50.0 * track.edge_jitter_ns)


def length_reasons(device: Device, track: EnergyTrack, start_ns: int, end_ns: int) -> list[str]:
    """Return what no error estimate sees: inside one period of the readings nothing is known but their mean."""
    if end_ns - start_ns >= track.period_ns:
        return []
    return [
        f"{device.id}: a window of {(end_ns - start_ns) / 1e6:.2g} ms is shorter than the {track.method} can tell "
        f"apart ({track.period_ns / 1e6:.0f} ms): make a round longer than {shortest_window_ns(track) / 1e9:.2g} s"
    ]


def failed_for_good(events: Sequence[Event], now_ns: int) -> bool:
    """Whether a device will not be read again, as its meter says or since each of its polls has failed for long."""
    failed = [event for event in events if event.guard in (FAILED, LOST)]
    failed.sort(key=lambda event: event.end_ns, reverse=True)
    if not failed or failed[0].end_ns < now_ns - STALE_NS:
        return False
    first_ns = failed[0].end_ns
    for event in failed:
        # Each failure reaches back to the poll before, so that those in a row leave no time between them.
        if event.end_ns < first_ns:
            break
        first_ns = min(first_ns, event.start_ns)
    return failed[0].guard == LOST or now_ns - first_ns >= LASTING_NS


def event_reasons(device: Device, events: Sequence[Event]) -> list[str]:
    """Return what the collector noted over the window: failed calls, clock steps."""
    # A meter that hangs is noted at each attempt to wait for it.
    reasons = [event.reason if event.device_id else f"{device.id}: {event.reason}" for event in events]
    return list(dict.fromkeys(reasons))


def cross_check_reasons(
    device: Device,
    track: EnergyTrack,
    power: PowerSamples | None,
    counters: CounterColumns,
    start_ns: int,
    end_ns: int,
) -> list[str]:
    """Return what a device's readings say against each other over a window, and which of them do not move.

    ``power`` are the samples around the window at least.
    """
    reasons = []
    tick_ns = device.counter_tick_ns
    frozen_ms = device.facts.get("frozen_after_ms")
    still_ns, still = (
        (0, 0) if power is None else longest_still_ns(power.t_ns, power.milliwatts, start_ns, end_ns)
    )
    if track.method == "power ring":
        limit = STILL_DISAGREEMENT if still >= STILL_SAMPLES else LARGEST_DISAGREEMENT
        off = counter_disagreement(track, counters, tick_ns, start_ns, end_ns, limit)
        if off is not None:
            reasons.append(f"{device.id}: energy counter and power ring disagree by {off:+.0%}")
    if isinstance(frozen_ms, (int, float)) and still_ns >= frozen_ms * 1e6:
        reasons.append(
            f"{device.id}: the power reading is frozen: it did not move by a milliwatt for {still_ns / 1e9:.1f} s"
        )
    if track.method == "energy counter":
        still_ns, _ = longest_still_ns(counters.t0_ns, counters.microjoules, start_ns, end_ns)
        if still_ns > GAP_PERIODS * max(tick_ns, track.period_ns):
            reasons.append(f"{device.id}: the energy counter stood still for {still_ns / 1e9:.1f} s")
        off = None if power is None else power_disagreement(power, counters, tick_ns, start_ns, end_ns)
        if off is not None:
            reasons.append(f"{device.id}: energy counter and power reading disagree by {off:+.0%}")
    return reasons


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
    """Return the share of a window's time under each limit, from the cumulative counters between the polls around it.

    Counters are read once a second: a limit that was hit between two polls is spread evenly over them.
    """
    near = _near(conditions, start_ns, end_ns)
    shares = {}
    for name in sorted({name for c in near for name in c.limited_ns}):
        known = [(c.t_ns, c.limited_ns[name]) for c in near if name in c.limited_ns]
        t, total = [at for at, _ in known], [value for _, value in known]
        begin_ns, stop_ns = max(start_ns, t[0]), min(end_ns, t[-1])
        # A counter that goes backwards has been reset: what it held is not known.
        if stop_ns <= begin_ns or any(later < earlier for earlier, later in pairwise(total)):
            continue
        at_edges = np.interp([begin_ns, stop_ns], t, total)
        # The board books a limit late, in lumps: over a short window that can come out as more than all of it.
        shares[name] = min(1.0, float(at_edges[1] - at_edges[0]) / (stop_ns - begin_ns))
    return shares


def mean_condition(conditions: Sequence[Conditions], field: str, start_ns: int, end_ns: int) -> float | None:
    """Return the mean of a field of the conditions over a window: joined by lines between the polls.

    None where it was not read for long: what a condition was is not made up.
    """
    near = _near(conditions, start_ns, end_ns)
    known = [(c.t_ns, value) for c in near if (value := getattr(c, field)) is not None]
    if not known:
        return None
    t: NDArray[np.float64] = np.array([at for at, _ in known], dtype=np.float64)
    if max(np.diff(t, prepend=start_ns - STALE_NS, append=end_ns + STALE_NS)) > 2 * STALE_NS:
        return None
    values = np.array([value for _, value in known], dtype=np.float64)
    if end_ns == start_ns:
        # A clock may be too coarse to tell the ends of a short window apart.
        return float(np.interp(start_ns, t, values))
    inside = t[(t > start_ns) & (t < end_ns)]
    grid = np.concatenate([[start_ns], inside, [end_ns]])
    read = np.interp(grid, t, values)
    widths = np.diff(grid)
    return float(((read[1:] + read[:-1]) / 2) @ widths / widths.sum())


def _near(conditions: Sequence[Conditions], start_ns: int, end_ns: int) -> Sequence[Conditions]:
    # In the order of time: a day has 86,400 of them, and every window asks.
    first = bisect_left(conditions, start_ns - STALE_NS, key=_moment)
    return conditions[first : bisect_right(conditions, end_ns + STALE_NS, first, key=_moment)]


def _moment(condition: Conditions) -> int:
    return condition.t_ns


def _around(conditions: Sequence[Conditions], start_ns: int, end_ns: int) -> Sequence[Conditions]:
    """Return the conditions inside a window and the one poll on each side of it."""
    near = _near(conditions, start_ns, end_ns)
    before = [c for c in near if c.t_ns < start_ns][-1:]
    inside = [c for c in near if start_ns <= c.t_ns <= end_ns]
    after = [c for c in near if c.t_ns > end_ns][:1]
    return [*before, *inside, *after]
