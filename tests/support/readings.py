"""What meters would read of a power curve whose integral is known exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from pytest_tokenpower.analysis.tracks import RING_LAG_NS, SMOOTHING_S, EnergyTrack, ring_track
from pytest_tokenpower.meters.simulation.power_curve import Energy, PowerCurve
from pytest_tokenpower.meters.timeline import CounterColumns
from pytest_tokenpower.meters.types import PowerSamples

MS = 1_000_000
SECOND = 1_000_000_000
LONGEST_SAMPLE_MS = 30
LONGEST_PIECE_MS = 500


def ring_samples(curve: PowerCurve, stamps_ns: NDArray[np.int64]) -> PowerSamples:
    """Return the ring of a board whose power is ``curve``: means since the sample before, smoothed and stamped late."""
    seconds = np.diff(stamps_ns) / SECOND
    joules = curve.energy().joules_at_each(stamps_ns - RING_LAG_NS)
    readings = [float(curve.joules(0, SECOND))]
    for mean, length in zip((np.diff(joules) / seconds).tolist(), seconds.tolist(), strict=True):
        left = math.exp(-length / SMOOTHING_S)
        readings.append(left * readings[-1] + (1 - left) * mean)
    return PowerSamples(stamps_ns, np.rint(np.array(readings) * 1e3).astype(np.int64))


def counter_readings(
    energy: Energy, reads_ns: NDArray[np.int64], tick_ns: int, phase_ns: int = 0, scale: float = 1.0
) -> CounterColumns:
    """Return a counter that shows the energy of its last tick; each read takes 3 ms."""
    shown_ns = (reads_ns - phase_ns) // tick_ns * tick_ns + phase_ns if tick_ns else reads_ns
    microjoules = np.rint(scale * energy.joules_at_each(shown_ns) * 1e6).astype(np.int64)
    return CounterColumns(reads_ns - 3 * MS // 2, reads_ns + 3 * MS // 2, microjoules)


@dataclass(frozen=True)
class Ring:
    """A curve, its ring, and the range in which windows may lie."""

    curve: PowerCurve
    track: EnergyTrack
    first_ns: int
    last_ns: int

    def joules(self, start_ns: int, end_ns: int) -> float:
        return self.curve.joules(start_ns, end_ns)


def ring_of(pieces: Sequence[tuple[int, float]], shape: str, sample_ms: Sequence[int]) -> Ring:
    """Return a ring over pieces of (milliseconds, watts); it begins a second before power first changes."""
    ends = list(accumulate(length for length, _ in pieces))
    points = [(0.0, pieces[0][1])]
    points += [((1000 + end) / 1e3, watts) for end, (_, watts) in zip([0, *ends[:-1]], pieces, strict=True)]
    curve = PowerCurve(points=tuple(points), shape="steps" if shape == "steps" else "lines")
    total_ns = (1000 + ends[-1] + 1000) * MS
    steps = np.resize(np.array(sample_ms, dtype=np.int64), total_ns // (min(sample_ms) * MS) + 1)
    stamps = np.concatenate([[0], np.cumsum(steps)]) * MS
    stamps = stamps[: int(np.searchsorted(stamps, total_ns)) + 1]
    track = ring_track(ring_samples(curve, stamps))
    return Ring(curve, track, 200 * MS, int(stamps[-1]) - 200 * MS)


@st.composite
def rings(draw: st.DrawFn, shapes: Sequence[str] = ("steps", "lines")) -> Ring:
    """Rings over power that changes its course at most once within four neighbouring samples.

    What happens inside one sample nobody can know: a spike between two edges has no bound.
    """
    pieces = draw(
        st.lists(
            st.tuples(st.integers(4 * LONGEST_SAMPLE_MS, LONGEST_PIECE_MS), st.integers(40, 1000).map(float)),
            min_size=1,
            max_size=8,
        )
    )
    sample_ms = draw(st.lists(st.integers(10, LONGEST_SAMPLE_MS), min_size=1, max_size=7))
    return ring_of(pieces, draw(st.sampled_from(shapes)), sample_ms)


@st.composite
def rings_with_edges(
    draw: st.DrawFn, edges: int, shapes: Sequence[str] = ("steps", "lines")
) -> tuple[Ring, list[int]]:
    """Return a ring and so many different moments inside it, in the order of time."""
    ring = draw(rings(shapes))
    moments = draw(
        st.lists(st.integers(ring.first_ns, ring.last_ns), min_size=edges, max_size=edges, unique=True)
    )
    return ring, sorted(moments)
