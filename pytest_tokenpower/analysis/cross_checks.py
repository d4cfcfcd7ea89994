"""The energy counter as a witness: a ring against its counter, a counter against the averaged power, frozen ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pytest_tokenpower.analysis.tracks import GAP_PERIODS, LARGEST_DISAGREEMENT, EnergyTrack
from pytest_tokenpower.meters.timeline import CounterColumns
from pytest_tokenpower.meters.types import PowerSamples

STILL_DISAGREEMENT = 0.01
"""The same for a ring whose value does not move: on an H100 no more than 5 samples in a row are alike (of 9,000)."""

STILL_SAMPLES = 25

CONTEXT_NS = 15_000_000_000
"""The phase of the counter's ticks is found from the readings within this of a window; it drifts over minutes."""

APART_NS = 500_000_000
"""Readings nearer to each other than this say little: the counter's own tick is 100 ms."""

SLACK_NS = 5_000_000
"""How far the time of a tick is known (H100: the counter follows the ring within 5 ms of power)."""

RESOLUTION_JOULES = 1e-3
"""How finely a counter counts: phases whose contradictions differ by less are alike."""

POWER_SPAN_NS = 3_000_000_000

AVERAGED_S = 1.0
"""What the power that boards offer for polling is averaged over, at most (nvmlDeviceGetPowerUsage)."""


def counter_disagreement(
    track: EnergyTrack,
    counters: CounterColumns,
    tick_ns: float,
    start_ns: int,
    end_ns: int,
    limit: float = LARGEST_DISAGREEMENT,
) -> float | None:
    """Return by what share a counter is off its ring around a window, at the least; None if that is within ``limit``.

    The counter shows the energy as of its last tick. With the phase of the ticks found from the readings around, each
    stretch between two readings that the window touches is held against the ring by itself, and all of them together:
    a ring that stands still for a second of a long window is seen as well.
    """
    if track.method != "power ring" or len(counters) < 2:
        return None
    first = max(int(np.searchsorted(counters.t1_ns, start_ns, "right")) - 1, 0)
    last = min(int(np.searchsorted(counters.t0_ns, end_ns, "left")), len(counters) - 1)
    chosen = _apart(counters.t0_ns, first, last)
    inside = (counters.t0_ns[chosen] - tick_ns >= track.t_ns[0]) & (counters.t1_ns[chosen] <= track.t_ns[-1])
    chosen = chosen[inside]
    if len(chosen) < 2:
        return None
    t0_ns, t1_ns = counters.t0_ns[chosen], counters.t1_ns[chosen]
    counted = (counters.microjoules[chosen] - counters.microjoules[chosen[0]]) / 1e6
    near = slice(
        max(int(np.searchsorted(track.t_ns, t0_ns[0] - tick_ns - SLACK_NS)) - 1, 0),
        int(np.searchsorted(track.t_ns, t1_ns[-1] + SLACK_NS)) + 2,
    )
    t_ns, origin = track.t_ns[near], int(track.t_ns[near][0])
    knots, joules = (t_ns - origin).astype(np.float64), track.joules[near] * track.scale
    gaps = t_ns[:-1][np.diff(t_ns) > GAP_PERIODS * track.period_ns]
    # What the ring has missed, it cannot be held against.
    whole = np.searchsorted(gaps, t0_ns[:-1] - tick_ns) == np.searchsorted(gaps, t1_ns[1:])
    if not whole.any():
        return None

    def ring(at_ns: NDArray[np.float64], phase_ns: NDArray[np.float64] | float) -> NDArray[np.float64]:
        ticks = np.floor((at_ns - phase_ns) / tick_ns) * tick_ns + phase_ns if tick_ns else at_ns + phase_ns
        read: NDArray[np.float64] = np.interp(ticks, knots, joules)
        return read

    began, ended = (t0_ns - origin).astype(np.float64), (t1_ns - origin).astype(np.float64)
    phases = _phases(began, ended, tick_ns)
    growth = np.diff(counted)
    # The value was read anywhere between the two moments, far apart where the thread had to wait for Python's lock:
    # every phase that contradicts them least may be the true one.
    least, most = _growths(ring(began, phases[:, None]), ring(ended, phases[:, None]))
    misses = np.maximum(np.maximum(least - growth, growth - most), 0.0)[:, whole].sum(axis=1)
    likely = misses <= misses.min() + RESOLUTION_JOULES * len(growth)
    low, high = (ring(edge, phases[likely, None]) for edge in (began - SLACK_NS, ended + SLACK_NS))
    at = np.searchsorted(chosen, [first, last])
    begin, end = max(int(at[0]), 0), min(int(at[1]), len(chosen) - 1)
    pairs = [(i, i + 1) for i in range(begin, end) if whole[i]]
    if whole[begin:end].all() and end - begin > 1:
        pairs.append((begin, end))
    middle = (began + ended) / 2
    expected = ring(middle, phases[likely, None])
    worst: float | None = None
    for i, j in pairs:
        grown, ringed = float(counted[j] - counted[i]), expected[:, j] - expected[:, i]
        missing, surplus = low[:, j] - high[:, i] - grown, grown - (high[:, j] - low[:, i])
        excess = np.maximum(missing, surplus)
        seconds = float(middle[j] - middle[i]) / 1e9
        # A stretch shorter than a second is judged by the joules that a second may be off.
        beyond = excess - limit * ringed * max(1.0, 1.0 / seconds)
        best = int(np.argmin(beyond))
        if ringed[best] > 0 and beyond[best] > 0:
            off = float(max(surplus[best], 0.0) - max(missing[best], 0.0)) / float(ringed[best])
            worst = off if worst is None or abs(off) > abs(worst) else worst
    return worst


def _phases(began: NDArray[np.float64], ended: NDArray[np.float64], tick_ns: float) -> NDArray[np.float64]:
    """Return phases of the ticks to try: evenly, and one for each way in which the readings may lie about the ticks.

    Two readings that lie a millisecond apart on either side of a tick are explained by no phase of an even grid.
    """
    if not tick_ns:
        return np.zeros(1)
    evenly = np.linspace(0.0, tick_ns, 40, endpoint=False)
    edges = np.unique(np.concatenate([began, ended]) % tick_ns)
    between = (edges + np.append(edges[1:], edges[0] + tick_ns)) / 2 % tick_ns
    # A tick while a value was read is one just before or after: taken for either, it would contradict nothing.
    during = ((between[:, None] - began) % tick_ns < ended - began).any(axis=1)
    return np.concatenate([evenly, between[~during]])


def _growths(
    low: NDArray[np.float64], high: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the least and the most that may have come between neighbouring columns, of which only bounds are known."""
    return low[:, 1:] - high[:, :-1], high[:, 1:] - low[:, :-1]


def _apart(t_ns: NDArray[np.int64], first: int, last: int) -> NDArray[np.intp]:
    """Return the indices of readings around first..last, none nearer to another than APART_NS but for ``last``."""
    low = int(np.searchsorted(t_ns, t_ns[first] - CONTEXT_NS))
    high = int(np.searchsorted(t_ns, t_ns[last] + CONTEXT_NS, "right"))
    chosen = [first]
    for i in range(first - 1, low - 1, -1):
        if t_ns[chosen[0]] - t_ns[i] >= APART_NS:
            chosen.insert(0, i)
    for i in range(first + 1, last):
        if t_ns[i] - t_ns[chosen[-1]] >= APART_NS and t_ns[last] - t_ns[i] >= APART_NS:
            chosen.append(i)
    if last > first:
        chosen.append(last)
    for i in range(last + 1, high):
        if t_ns[i] - t_ns[chosen[-1]] >= APART_NS:
            chosen.append(i)
    return np.array(chosen, dtype=np.intp)


def longest_consistent_run(track: EnergyTrack, counters: CounterColumns, tick_ns: float) -> CounterColumns:
    """Return the longest run of counter readings that do not contradict the ring: what a scale can be fitted on.

    A counter that started anew or stood still for a while would spoil the scale of the whole recording. Where no
    three readings agree with the ring all are returned: that disagreement is to be seen.
    """
    if len(counters) < 3:
        return counters
    origin = int(track.t_ns[0])
    knots = (track.t_ns - origin).astype(np.float64)
    low = np.interp((counters.t0_ns - origin) - tick_ns, knots, track.joules)
    high = np.interp((counters.t1_ns - origin).astype(np.float64), knots, track.joules)
    growth = np.diff(counters.microjoules) / 1e6
    slack = LARGEST_DISAGREEMENT * np.maximum(high[1:] - high[:-1], 0.0)
    sound = (growth >= low[1:] - high[:-1] - slack) & (growth <= high[1:] - low[:-1] + slack)
    ends = np.flatnonzero(np.concatenate([~sound, [True]]))
    starts = np.concatenate([[0], ends[:-1] + 1])
    longest = int(np.argmax(ends - starts))
    begin, end = int(starts[longest]), int(ends[longest])
    if end - begin < 2:
        return counters
    # The end of what went wrong may hide in the tick of the stretch beside it.
    if end - begin >= 4:
        begin, end = begin + (begin > 0), end - (end < len(sound))
    run = slice(begin, end + 1)
    return CounterColumns(counters.t0_ns[run], counters.t1_ns[run], counters.microjoules[run])


def power_disagreement(
    power: PowerSamples, counters: CounterColumns, tick_ns: float, start_ns: int, end_ns: int
) -> float | None:
    """Counter over polled power, less one, around a window of a board without a ring; None if they agree.

    The power is an average over a second before: what it varies by may be missed for that long at either end.
    """
    if power.held or len(counters) < 2 or len(power.t_ns) < 2:
        return None
    margin = max(0, POWER_SPAN_NS - (end_ns - start_ns)) // 2
    low_ns = max(start_ns - margin, int(power.t_ns[0]), int(counters.t0_ns[0]))
    high_ns = min(end_ns + margin, int(power.t_ns[-1]), int(counters.t0_ns[-1]))
    if high_ns <= low_ns:
        return None
    polled_ns, counted_ns = power.t_ns - low_ns, counters.t0_ns - low_ns
    inside = (power.t_ns > low_ns) & (power.t_ns < high_ns)
    near = (power.t_ns > low_ns - AVERAGED_S * 1e9) & (power.t_ns < high_ns + AVERAGED_S * 1e9)
    edges = np.array([0, high_ns - low_ns])
    grid = np.concatenate([edges[:1], polled_ns[inside], edges[1:]])
    watts = np.interp(grid, polled_ns, power.milliwatts / 1e3)
    polled = float(((watts[1:] + watts[:-1]) / 2) @ np.diff(grid)) / 1e9
    counted = float(np.diff(np.interp(edges, counted_ns, counters.microjoules))[0]) / 1e6
    varied = float(np.ptp(power.milliwatts[near])) / 1e3
    allowed = LARGEST_DISAGREEMENT * polled + AVERAGED_S * varied + tick_ns / 1e9 * float(watts.max())
    return counted / polled - 1 if abs(counted - polled) > allowed else None


def longest_still_ns(
    t_ns: NDArray[np.int64], values: NDArray[np.int64], start_ns: int, end_ns: int
) -> tuple[int, int]:
    """For how long a value did not move, at most, of all times that touch a window; and at how many readings."""
    first = max(int(np.searchsorted(t_ns, start_ns, "right")) - 1, 0)
    last = int(np.searchsorted(t_ns, end_ns, "left")) + 1
    # A value that stood still may have begun to well before the window.
    while first > 0 and values[first - 1] == values[first]:
        first -= 1
    while last < len(values) and values[last] == values[last - 1]:
        last += 1
    part, times = values[first:last], t_ns[first:last]
    if not len(part):
        return 0, 0
    begins = np.concatenate([[0], np.flatnonzero(np.diff(part)) + 1])
    ends = np.concatenate([begins[1:], [len(part)]]) - 1
    longest = int(np.argmax(times[ends] - times[begins]))
    return int(times[ends[longest]] - times[begins[longest]]), int(ends[longest] - begins[longest] + 1)
