"""What is drawn of a test: the power of each device over its rounds, and the phases. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from pytest_tokenpower.analysis.calibration import track_of
from pytest_tokenpower.analysis.replay import rounds_of
from pytest_tokenpower.analysis.rounds import readings_around
from pytest_tokenpower.analysis.tracks import TICKS_FOR_POWER, EnergyTrack
from pytest_tokenpower.core.records import MeasurementRecord
from pytest_tokenpower.core.windows import RoundWindow
from pytest_tokenpower.meters.recording import Recording
from pytest_tokenpower.meters.timeline import Timeline
from pytest_tokenpower.meters.types import Device

MOST_STEPS = 6000
"""Two minutes of a ring of 20 ms samples: so much of a test is kept as it was read."""

MOST_SPANS = 2000

AROUND_NS = 500_000_000
"""How much is drawn before the first round and after the last one."""

SHORTEST_SPAN_US = 1000

SAME_US = 3
"""A recording rounds its times to microseconds."""


class DrawnCurve(msgspec.Struct, frozen=True):
    """The power of one device as steps that follow one another.

    Step i ends ``end_us[i]`` after the curves' start; ``mean``, ``low`` and ``high`` are watts (None where readings
    are missing). Where there are fewer steps than ``readings``, a step is a bucket with the extremes of its readings.
    """

    device: str
    method: str
    readings: int
    end_us: tuple[int, ...]
    mean: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]

    @property
    def bucketed(self) -> bool:
        """Whether several readings were put into one step."""
        return self.readings > len(self.end_us)


class PhaseSpan(msgspec.Struct, frozen=True, array_like=True):
    """A stretch in one phase, in microseconds from the curves' start."""

    phase: str
    start_us: int
    end_us: int


class PowerCurves(msgspec.Struct, frozen=True):
    """The curves of a test's devices and the phases under them, from ``start_ns`` of the rounds' clock on.

    What is shorter than ``shortest_us`` is drawn with the phase before it; ``estimated`` phases were marked from
    outside the engine.
    """

    start_ns: int
    devices: tuple[DrawnCurve, ...]
    spans: tuple[PhaseSpan, ...] = ()
    shortest_us: int = SHORTEST_SPAN_US
    estimated: bool = False


def power_curves(
    timeline: Timeline, devices: Sequence[Device], windows: Sequence[RoundWindow]
) -> PowerCurves | None:
    """Cut what is drawn of a test out of the timeline; None where there is no round or no reading.

    Args:
        timeline: what the meters have read.
        devices: those whose energy is the rounds'.
        windows: the rounds, on the timeline's clock.
    """
    if not windows:
        return None
    start_ns = min(one.start_ns for one in windows) - AROUND_NS
    end_ns = max(one.end_ns for one in windows) + AROUND_NS
    readings = readings_around(timeline, devices, start_ns)
    curves = []
    for device in devices:
        track = track_of(readings, device)
        curve = None if track is None else _curve(device.id, track, start_ns, end_ns)
        if curve is not None:
            curves.append(curve)
    if not curves:
        return None
    phases = [phase for one in windows for phase in one.phases]
    spans = sorted(
        (
            PhaseSpan(phase.phase, (phase.start_ns - start_ns) // 1000, (phase.end_ns - start_ns) // 1000)
            for phase in phases
        ),
        key=lambda span: span.start_us,
    )
    shortest_us, joined = _joined(spans, MOST_SPANS, SHORTEST_SPAN_US)
    return PowerCurves(start_ns, tuple(curves), joined, shortest_us, any(phase.estimated for phase in phases))


def coarser(curves: PowerCurves, most_steps: int, most_spans: int) -> PowerCurves:
    """Return the same with fewer steps and spans, for a page that holds many tests."""
    shortest_us, spans = _joined(curves.spans, most_spans, curves.shortest_us)
    return msgspec.structs.replace(
        curves,
        devices=tuple(_bucketed(curve, most_steps) for curve in curves.devices),
        spans=spans,
        shortest_us=shortest_us,
    )


def _curve(device: str, track: EnergyTrack, start_ns: int, end_ns: int) -> DrawnCurve | None:
    """Return the part of a track between two moments, as it was read."""
    t_ns, joules, read = track.t_ns - track.lag_ns, track.joules * track.scale, track.read_watts
    missing = np.zeros(max(len(t_ns) - 1, 0), dtype=np.bool_)
    missing[track.gaps] = True
    if track.method == "energy counter":
        # Read nearly as often as it ticks, a counter stands still and then leaps: no power can be told so finely.
        tick_ns = track.edge_jitter_ns * math.sqrt(12.0)
        stride = max(1, math.ceil(TICKS_FOR_POWER * tick_ns / track.period_ns))
        t_ns, joules, read = t_ns[::stride], joules[::stride], None
        missing = np.zeros(max(len(t_ns) - 1, 0), dtype=np.bool_)
    if len(t_ns) < 2:
        return None
    watts = np.diff(joules) / np.maximum(np.diff(t_ns), 1) * 1e9 if read is None else read
    first = int(np.searchsorted(t_ns, start_ns, "right"))
    last = int(np.searchsorted(t_ns, end_ns, "right"))
    steps = slice(max(first - 1, 0), last)
    if not len(watts[steps]):
        return None
    ends = (t_ns[1:][steps] - start_ns) // 1000
    values = [
        None if gap else round(float(value), 1)
        for value, gap in zip(watts[steps], missing[steps], strict=True)
    ]
    whole = tuple(values)
    curve = DrawnCurve(device, track.method, len(whole), tuple(ends.tolist()), whole, whole, whole)
    return _bucketed(curve, MOST_STEPS)


def _bucketed(curve: DrawnCurve, most: int) -> DrawnCurve:
    """At most ``most`` steps of like length: the extremes and the mean over time of those that end in each."""
    if len(curve.end_us) <= most:
        return curve
    ends = np.array(curve.end_us, dtype=np.int64)
    lengths = np.diff(ends, prepend=2 * ends[0] - ends[1]).astype(np.float64)
    bucket = (ends - ends[0]) * most // (ends[-1] - ends[0] + 1)
    starts = np.flatnonzero(np.diff(bucket, prepend=-1))
    mean, low, high = (_floats(values) for values in (curve.mean, curve.low, curve.high))
    known = ~np.isnan(mean)
    seconds = np.add.reduceat(np.where(known, lengths, 0.0), starts)
    joules = np.add.reduceat(np.where(known, lengths * np.nan_to_num(mean), 0.0), starts)
    means = np.divide(joules, seconds, out=np.full(len(starts), np.nan), where=seconds > 0)
    return msgspec.structs.replace(
        curve,
        end_us=tuple(ends[np.append(starts[1:], len(ends)) - 1].tolist()),
        mean=_values(means),
        low=_values(np.fmin.reduceat(low, starts)),
        high=_values(np.fmax.reduceat(high, starts)),
    )


def _floats(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([math.nan if value is None else value for value in values])


def _values(watts: NDArray[np.float64]) -> tuple[float | None, ...]:
    return tuple(None if math.isnan(value) else round(value, 1) for value in watts.tolist())


def _joined(spans: Sequence[PhaseSpan], most: int, shortest_us: int) -> tuple[int, tuple[PhaseSpan, ...]]:
    """Return the spans without those shorter than a length that leaves at most ``most`` of them; and that length."""
    found = tuple(_absorbed(spans, shortest_us))
    while len(found) > most:
        shortest_us *= 2
        found = tuple(_absorbed(found, shortest_us))
    return shortest_us, found


def _absorbed(spans: Sequence[PhaseSpan], shortest_us: int) -> Iterator[PhaseSpan]:
    held: PhaseSpan | None = None
    for span in spans:
        near = held is not None and span.start_us - held.end_us < shortest_us
        short = span.end_us - span.start_us < shortest_us
        if held is not None and near and (short or span.phase == held.phase):
            held = PhaseSpan(held.phase, held.start_us, max(held.end_us, span.end_us))
            continue
        if held is not None:
            yield held
        held = span
    if held is not None:
        yield held


def recorded_curves(recording: Recording, measured: MeasurementRecord) -> PowerCurves | None:
    """Return the curves of a stored measurement out of the recording of its run, on the clock of its rounds.

    None where the recording has no rounds of the test, or those of another run: their starts and lengths differ.
    """
    if not any(window.name == measured.test for window in recording.windows):
        return None
    windows = rounds_of(recording, measured.test)
    rounds = sorted(
        [*measured.rounds, *(one for rounds in measured.variants.values() for one in rounds)],
        key=lambda one: one.start_ns,
    )
    if len(rounds) != len(windows) or not rounds:
        return None
    shift_ns = rounds[0].start_ns - windows[0].start_ns
    for one, window in zip(rounds, windows, strict=True):
        off_us = abs(one.start_ns - window.start_ns - shift_ns) / 1e3
        if max(off_us, abs(one.seconds * 1e6 - (window.end_ns - window.start_ns) / 1e3)) > SAME_US:
            return None
    named = {name for window in windows for name in window.devices or ()}
    devices = [device for device in recording.devices if not named or device.id in named]
    found = power_curves(recording.timeline, devices, windows)
    return None if found is None else msgspec.structs.replace(found, start_ns=found.start_ns + shift_ns)
