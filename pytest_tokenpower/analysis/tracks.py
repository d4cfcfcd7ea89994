"""Energy of any window after the fact: tracks of cumulative energy, and what a window takes out of them.

Every meter ends in the same thing, cumulative energy at known moments: NVML's ring is power held over
(t[i-1], t[i]], polled power is joined by straight lines, a counter is cumulative by itself. A window is the
difference of that function at its edges; its uncertainty comes from the two edges and from the scale.

Between two moments power is not taken as flat. Windows begin and end where the work does, so power steps at
their edges, and a flat interpolation leaks energy out of every window that is hotter than its surroundings
(10 % of an 82 ms prefill on an H100). Two things bring it back, and change nothing where power is steady. With a and c
the power of the neighbouring samples, b of the edge's own and f the edge's place in it, a step at the edge means
b = f·a + (1-f)·c, and the energy before the edge is f·d·(b + (1-f)·(a-c)). And the ring follows a step of the load only
gradually, as a first-order lag: see SMOOTHING_S. Figures before and after: docs/results/window-accuracy.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pytest_tokenpower.meters.timeline import CounterColumns
from pytest_tokenpower.meters.types import PowerSamples

LARGEST_DISAGREEMENT = 0.05
"""Counter against ring: beyond this one of the two is wrong, and there is no telling which."""


@dataclass(frozen=True)
class ScaleFit:
    """The ring against the counter: counter = scale · ring; ``residual_joules`` is the scatter around it.

    ``agreement`` is the ratio without the prior, for the guard and for people.
    """

    scale: float
    stderr: float
    agreement: float
    residual_joules: float
    readings: int


Method = Literal["power ring", "energy counter", "power polling"]

EDGE_SHARE = 0.1
"""Standard error of one edge as a share of (sample length x power step there): 2 ms of the step for 20 ms samples.
Measured: prefill windows of 82 and 228 ms on an H100 repeat to 2.6 and 1.1 %, their true scatter included."""

RING_LAG_NS = 3_000_000
"""A ring sample's stamp is late by about this much, after the smoothing below has been undone."""

SMOOTHING_S = 0.011
"""Time constant of the board's own smoothing (H100: the steps of 450 prefills, folded, fit 10 to 13 ms). Undoing it
takes the bias of an 82 ms window from -3.7 % to -0.1 %, at the same spread. On a board whose samples were
exact means it would cost 1.5 % there, well within the stated error."""

SHORTEST_SAMPLE_S = 0.01
"""Samples that are stamped nearer to each other are late stamps, not short samples: sharpening them adds noise, and
their distance is no period."""

SAMPLE_SHARE = 0.4
"""How far a ring sample is off the true mean of its time, as a share of the scatter of the samples around it: it is
a glimpse of a power that changes faster. Measured: on an H100 under vLLM the ring wanders from the counter by 1 to 2 J
in a second of 550 W (samples scatter by 30 W), in plain PyTorch by 2 to 3 J."""

TIMESTAMP_NS = 1_000_000
"""Standard error of a ring sample's stamp."""

BLOCK = 1 << 15
"""Windows are worked on in blocks whose intermediate columns fit into a processor's cache."""

GAP_PERIODS = 3.0
"""A distance between samples above this many periods is a gap."""

TICKS_FOR_POWER = 5.0
"""Between two reads of a counter there must be more ticks than this for their difference to be a power."""


@dataclass(frozen=True)
class EnergyTrack:
    """Cumulative energy of one device: ``joules`` float64[n] at ``t_ns`` int64[n], linear in between.

    ``period_ns`` is the usual distance of the knots; ``edge_jitter_ns`` the standard error of a knot's time,
    ``lag_ns`` how late the knots are stamped. ``read_watts`` float64[n-1] is power as the board reported it, where that
    is not the same: peaks are read off it, as what is sharpened overshoots. ``clock_error_ns`` is how far all knots may
    be off the windows' clock, all alike: the track of another machine's meter.
    """

    method: Method
    t_ns: NDArray[np.int64]
    joules: NDArray[np.float64]
    period_ns: float
    edge_jitter_ns: float
    lag_ns: int = 0
    scale: float = 1.0
    scale_stderr: float = 0.0
    fit: ScaleFit | None = None
    read_watts: NDArray[np.float64] | None = None
    clock_error_ns: int = 0

    @cached_property
    def watts(self) -> NDArray[np.float64]:
        """Power between the knots (float64[n-1]), at the scale."""
        watts: NDArray[np.float64] = np.diff(self.joules)
        watts /= np.diff(self.t_ns)
        watts *= self.scale * 1e9
        return watts

    @cached_property
    def wander(self) -> NDArray[np.float64]:
        """The squared differences of neighbouring powers, summed up from the start (float64[n-1])."""
        squares: NDArray[np.float64] = np.zeros_like(self.watts)
        np.subtract(self.watts[1:], self.watts[:-1], out=squares[1:])
        squares *= squares
        return np.cumsum(squares, out=squares)

    @cached_property
    def gaps(self) -> NDArray[np.intp]:
        """The intervals in which samples are missing."""
        return np.flatnonzero(np.diff(self.t_ns) > GAP_PERIODS * self.period_ns)


@dataclass(frozen=True)
class WindowEnergy:
    """Energy of windows, as columns of one length: joules and standard error, mean and peak power in watts.

    ``covered`` is False where the track does not reach over the whole window, ``gap`` True where samples are
    missing inside it; both make the figure void, not small. The peak is NaN where the track cannot tell it.
    """

    joules: NDArray[np.float64]
    stderr: NDArray[np.float64]
    peak_watts: NDArray[np.float64]
    covered: NDArray[np.bool_]
    gap: NDArray[np.bool_]


def ring_track(power: PowerSamples) -> EnergyTrack:
    """Return the track of NVML's power ring: each sample stands for the time since the sample before it.

    A first-order lag over a sample of length d leaves the share a = exp(-d/SMOOTHING_S) of the reading before it in
    the reading: (reading - a·before) / (1 - a) is the power that made it.
    """
    seconds = np.diff(power.t_ns) / 1e9
    readings = power.milliwatts / 1e3
    left = np.exp(np.maximum(seconds, SHORTEST_SAMPLE_S) / -SMOOTHING_S)
    # The first interval's energy is needed, and what was before its first reading is not known: nothing is undone.
    left[:1] = 0.0
    watts = (readings[1:] - left * readings[:-1]) / (1.0 - left)
    joules = np.concatenate([[0.0], np.cumsum(watts * seconds)])
    track = _track("power ring", power.t_ns, joules, TIMESTAMP_NS)
    period_ns = _ring_period_ns(power.t_ns, seconds) or track.period_ns
    return replace(track, lag_ns=RING_LAG_NS, read_watts=readings[1:], period_ns=period_ns)


def _ring_period_ns(t_ns: NDArray[np.int64], seconds: NDArray[np.float64]) -> float:
    """Return the usual distance of a ring's samples while the board works; 0 where there are too few of them."""
    apart = np.concatenate([[True], seconds >= SHORTEST_SAMPLE_S])
    distances = np.diff(t_ns[apart])
    distances = distances[:: 1 + len(distances) // 50_000]
    if not len(distances):
        return 0.0
    # At deep idle a ring gives one sample a second, for as long as a model takes to load: that is not its period.
    return float(np.median(distances[distances <= 10 * np.percentile(distances, 1)]))


def polled_track(power: PowerSamples, refresh_ns: float = 0.0) -> EnergyTrack:
    """Return the track of point readings of power, by the trapezoid rule; ``refresh_ns`` is the board's own period."""
    seconds = np.diff(power.t_ns) / 1e9
    watts = power.milliwatts / 1e3
    middles = (watts[1:] + watts[:-1]) / 2
    return _track(
        "power polling", power.t_ns, np.concatenate([[0.0], np.cumsum(middles * seconds)]), refresh_ns
    )


def counter_track(counters: CounterColumns, tick_ns: float = 0.0) -> EnergyTrack:
    """Return the track of a cumulative counter that moves every ``tick_ns`` (0: exact at the moment of reading).

    A reading is the energy at the last tick, which lies anywhere in one tick before it.
    """
    middle_ns = counters.t0_ns + (counters.t1_ns - counters.t0_ns) // 2 - int(tick_ns / 2)
    joules = (counters.microjoules - counters.microjoules[0]) / 1e6
    return _track("energy counter", middle_ns, joules, tick_ns / np.sqrt(12.0))


def _track(
    method: Method, t_ns: NDArray[np.int64], joules: NDArray[np.float64], edge_jitter_ns: float
) -> EnergyTrack:
    # Of a day's samples some tens of thousands tell the period as well.
    distances = np.diff(t_ns)
    period_ns = float(np.median(distances[:: 1 + len(distances) // 50_000])) if len(t_ns) > 1 else np.inf
    return EnergyTrack(method, t_ns, joules, period_ns, float(edge_jitter_ns))


def window_energy(track: EnergyTrack, start_ns: NDArray[np.int64], end_ns: NDArray[np.int64]) -> WindowEnergy:
    """Energy of windows (int64[m] start and end on the track's clock), in any order and overlap."""
    start, end = np.asarray(start_ns, dtype=np.int64), np.asarray(end_ns, dtype=np.int64)
    if len(track.t_ns) < 2:
        void = np.full(len(start), np.nan)
        no = np.zeros(len(start), dtype=np.bool_)
        return WindowEnergy(void, void, void, no, no)
    if np.any(start[1:] < start[:-1]):
        # In the order of time, neighbouring windows read neighbouring samples: that is several times faster.
        order = np.argsort(start, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        ordered = window_energy(track, start[order], end[order])
        return WindowEnergy(*(getattr(ordered, column.name)[place] for column in fields(WindowEnergy)))
    t = track.t_ns
    parts = [
        _differences(track, start[at : at + BLOCK], end[at : at + BLOCK])
        for at in range(0, max(len(start), 1), BLOCK)
    ]
    joules, variance, first, last = (np.concatenate(column) for column in zip(*parts, strict=True))
    if error_ns := track.clock_error_ns:
        # Both edges are off alike: what that does to a window is the difference of the windows to its sides.
        sides = [_differences(track, start + by, end + by)[0] for by in (-error_ns, error_ns)]
        variance += ((sides[1] - sides[0]) / 2) ** 2
    covered = (start + track.lag_ns >= t[0]) & (end + track.lag_ns <= t[-1]) & (end > start)
    gap = np.zeros(len(start), dtype=np.bool_)
    # Nothing is lost in the gaps of a counter; only an edge inside one is vague, and its variance says so.
    if track.method != "energy counter":
        gap = np.searchsorted(track.gaps, last, "right") > np.searchsorted(track.gaps, first, "left")
    # Read nearly as often as it ticks, a counter stands still and then leaps: that is no power of anything.
    known = covered & (track.period_ns > TICKS_FOR_POWER * _tick_ns(track))
    read = track.watts if track.read_watts is None else track.read_watts
    peak = np.where(known, _range_maximum(read, first, last), np.nan)
    return WindowEnergy(np.where(covered, joules, np.nan), np.sqrt(variance), peak, covered, gap)


def _differences(
    track: EnergyTrack, start: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp], NDArray[np.intp]]:
    """Joules of windows, their variance, and the intervals that their edges fall in."""
    first, start_joules, start_variance = _edge(track, start)
    last, end_joules, end_variance = _edge(track, end)
    joules = end_joules - start_joules
    variance = start_variance + end_variance + (joules * track.scale_stderr / track.scale) ** 2
    if track.method == "power ring":
        # The steps at the edges have their own share; half the mean square of two samples' difference is a variance.
        inner = np.minimum(first + 2, last)
        jumps = track.wander[np.maximum(last - 2, inner)] - track.wander[inner]
        variance += (SAMPLE_SHARE * track.period_ns / 1e9) ** 2 * jumps / 2
    return joules, variance, first, last


def _edge(
    track: EnergyTrack, at_ns: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Return the interval that an edge falls in, the cumulative joules there, and their variance."""
    t, watts = track.t_ns, track.watts
    at = at_ns + track.lag_ns
    index = np.clip(np.searchsorted(t, at, "left") - 1, 0, len(t) - 2)
    length = (t[index + 1] - t[index]) / 1e9
    share = np.clip((at - t[index]) / 1e9 / length, 0.0, 1.0)
    before = watts[np.maximum(index - 1, 0)]
    here = watts[index]
    after = watts[np.minimum(index + 1, len(watts) - 1)]
    joules = track.scale * track.joules[index] + share * length * here
    if track.method != "power polling":
        joules += share * (1.0 - share) * length * (before - after)
    step = np.maximum(np.maximum(before, here), after) - np.minimum(np.minimum(before, here), after)
    # A counter's ticks and a board's refresh are cut anew at each edge, whatever the power does.
    jittered = _power_around(track, at) if track.method == "energy counter" else here
    if track.method == "power ring":
        # The ring's stamps are late or early alike at both edges, so only a step makes them matter.
        jittered = step
        # Between two executions the GPU may stand still for a few ms, which 20 ms samples do not show: back-to-back
        # windows on an H100 scattered as if all power had stepped at their edges.
        step = np.maximum(step, here)
    variance = (EDGE_SHARE * length * step) ** 2 + (track.edge_jitter_ns / 1e9 * jittered) ** 2
    return index, joules, variance


def _power_around(track: EnergyTrack, at_ns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean watts over many ticks of a counter around edges: between two reads it may have stood still."""
    reach_ns = max(TICKS_FOR_POWER * _tick_ns(track), track.period_ns)
    # Nanoseconds since 1970 are beyond what a float holds to the nanosecond: those since the first knot are not.
    knots = (track.t_ns - track.t_ns[0]).astype(np.float64)
    middle = (at_ns - track.t_ns[0]).astype(np.float64)
    ends = np.clip([middle - reach_ns, middle + reach_ns], 0.0, knots[-1])
    joules = np.interp(ends, knots, track.joules)
    power: NDArray[np.float64] = (
        track.scale * (joules[1] - joules[0]) * 1e9 / np.maximum(ends[1] - ends[0], 1.0)
    )
    return power


def _tick_ns(track: EnergyTrack) -> float:
    return track.edge_jitter_ns * math.sqrt(12.0) if track.method == "energy counter" else 0.0


def _range_maximum(
    values: NDArray[np.float64], first: NDArray[np.intp], last: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Maximum of values[first..last] for each pair, by doubling (a sparse table, built only as far as needed)."""
    length = np.maximum(last - first + 1, 1)
    level = np.frexp(length.astype(np.float64))[1] - 1
    result = np.empty(len(length))
    table, step = values, 1
    for depth in range(int(level.max(initial=0)) + 1):
        if depth:
            table = np.maximum(table[:-step], table[step:])
            step *= 2
        here = np.flatnonzero(level == depth)
        result[here] = np.maximum(table[first[here]], table[last[here] - step + 1])
    return result
