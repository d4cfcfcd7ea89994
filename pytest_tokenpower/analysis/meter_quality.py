"""How good a meter is, from a trial's timeline: distances of its readings, the ring against the counter, a verdict."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pytest_tokenpower.analysis import guards
from pytest_tokenpower.analysis.calibration import SCALE_PRIOR_SD, fit_scale, track_of
from pytest_tokenpower.analysis.tracks import (
    GAP_PERIODS,
    LARGEST_DISAGREEMENT,
    EnergyTrack,
    Method,
    polled_track,
    ring_track,
    window_energy,
)
from pytest_tokenpower.meters.probe import ClockWatch, ProbeResult
from pytest_tokenpower.meters.probe_nvml import BoardFacts, CallCost
from pytest_tokenpower.meters.timeline import CounterColumns, Timeline
from pytest_tokenpower.meters.types import Device, PowerSamples

AUTO = ("nvml", "amd", "intel", "jetson", "rapl")


@dataclass(frozen=True)
class PollCosts:
    """How the collector's polls of one meter went, in nanoseconds; ``percentile99_ns`` of a few is their maximum."""

    count: int
    failed: int
    median_ns: float
    percentile99_ns: float
    longest_ns: int


@dataclass(frozen=True)
class DeviceReport:
    """One device: who it is, what the trial showed of it, and what its board says where that is NVML's."""

    device: Device
    quality: Quality
    board: BoardFacts | None = None


@dataclass(frozen=True)
class MeterReport:
    """One meter: its grade, and the verdict in words (the reason and the remedy where there is none)."""

    name: str
    grade: Grade
    verdict: str
    devices: tuple[DeviceReport, ...] = ()
    polls: PollCosts | None = None
    cpu_share: float | None = None
    calls: tuple[CallCost, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All that the doctor found; ``auto`` is the source that ``auto`` takes, None where it takes none."""

    seconds: float
    meters: tuple[MeterReport, ...]
    clock: ClockWatch
    only: str | None = None
    auto: str | None = None


def report_of(
    trials: Sequence[ProbeResult], clock: ClockWatch, seconds: float, only: str | None = None
) -> Report:
    """Judge the trials: a pure function of them."""
    meters = tuple(judge(trial) for trial in trials)
    auto = None
    for name in AUTO if only is None else ():
        meter = next((each for each in meters if each.name == name), None)
        if meter is not None and meter.grade != "absent":
            # auto passes over what is not there, and takes what is, also where it fails.
            auto = name
            break
    return Report(seconds, meters, clock, only, auto)


def judge(trial: ProbeResult) -> MeterReport:
    """Return the verdict on one meter: the worst of its devices', since their energy is added."""
    if trial.state == "unavailable":
        return MeterReport(trial.name, "absent", f"not available: {_without_name(trial)}")
    boards = {board.device_id: board for board in trial.boards}
    devices = tuple(_device_report(trial, device, boards.get(device.id)) for device in trial.devices)
    failed = [poll for poll in trial.polls if poll.fault is not None]
    remarks = list(trial.remarks)
    remarks += [f"{call.call} failed when repeated: {call.error}" for call in trial.calls if call.error]
    grade: Grade
    if trial.state == "failed":
        grade, verdict = "unusable", f"not usable: {_without_name(trial)}"
    elif failed:
        grade = "unusable"
        verdict = f"not usable: {len(failed)} of {len(trial.polls)} polls failed: {failed[0].fault}"
    elif not devices:
        grade, verdict = "unusable", "not usable: it lists no device"
    else:
        # A module's joules are added to nothing: what is wrong with it is said of it alone.
        added = [each for each in devices if each.device.scope != "module"]
        grade = worst([each.quality.grade for each in added])
        having = [each for each in added if each.quality.grade == grade]
        verdict = having[0].quality.verdict
        if len(having) < len(added):
            verdict += f" ({having[0].device.id}, the worst of {len(added)} devices)"
    if trial.name in ("rapl", "hwmon", "ipmi") and devices and user_id() == 0:
        remarks.append("read as root: another user may be refused")
    return MeterReport(
        name=trial.name,
        grade=grade,
        verdict=verdict,
        devices=devices,
        polls=_poll_costs(trial),
        cpu_share=trial.cpu_share,
        calls=trial.calls,
        remarks=tuple(remarks),
    )


def _device_report(trial: ProbeResult, device: Device, board: BoardFacts | None) -> DeviceReport:
    assert trial.timeline is not None
    try:
        quality = qualify(
            device,
            trial.timeline,
            track_of(trial.timeline, device),
            trial.start_ns,
            trial.end_ns,
            idle=board is not None and board.idle,
        )
    except Exception as error:
        # Readings that the analysis cannot digest are the meter's fault, and no reason to tell nothing else.
        words = f"not usable: its readings make no sense to the analysis ({type(error).__name__}: {error})"
        quality = Quality(device.id, None, "unusable", words)
    return DeviceReport(device, quality, board)


def _poll_costs(trial: ProbeResult) -> PollCosts | None:
    if not trial.polls:
        return None
    costs = [poll.end_ns - poll.start_ns for poll in trial.polls]
    return PollCosts(
        count=len(costs),
        failed=sum(poll.fault is not None for poll in trial.polls),
        median_ns=float(np.median(costs)),
        percentile99_ns=float(np.percentile(costs, 99)),
        longest_ns=max(costs),
    )


def _without_name(trial: ProbeResult) -> str:
    """Return the reason without the meter's name before it, which stands in front of the line already."""
    reason = trial.reason or "no reason is known"
    before, colon, rest = reason.partition(": ")
    known = {trial.name, f"cpu {trial.name}"}
    return rest if colon and before.lower() in known else reason


Grade = Literal["good", "usable", "unusable", "absent"]
"""From the best to the worst: "usable" has a limit that the verdict names, "absent" is no such meter here."""

GOOD_WINDOW_NS = 1_000_000_000
"""A meter that resolves a second serves tests as they come; a slower one needs rounds made for it."""

SLOW_RING_NS = 200_000_000
"""Rings give a sample every 20 ms (100 ms on the slowest boards known); at deep idle one a second."""

LARGEST_ROUGH_DISAGREEMENT = 0.25
"""Counter against polled power, which lags by a second: this finds a counter that sticks, not one that is off."""

STEADY_READINGS = 20

DIFFERENT_STEPS = 12


@dataclass(frozen=True)
class Intervals:
    """Distances of readings in nanoseconds: ``count`` readings, so one distance fewer."""

    count: int
    median_ns: float
    shortest_ns: int
    longest_ns: int


@dataclass(frozen=True)
class Agreement:
    """Energy counter over integrated power, and its standard error, from ``readings`` of the counter."""

    ratio: float
    stderr: float
    readings: int
    ring: bool

    @property
    def limit(self) -> float:
        """The largest departure from 1 that is let pass."""
        return LARGEST_DISAGREEMENT if self.ring else LARGEST_ROUGH_DISAGREEMENT

    @property
    def sound(self) -> bool:
        """Whether the two agree, as far as the readings can tell."""
        return abs(self.ratio - 1) - 2 * self.stderr <= self.limit

    @property
    def shown(self) -> bool:
        """Whether the readings are enough to tell."""
        return 2 * self.stderr <= self.limit


@dataclass(frozen=True)
class Quality:
    """What a trial showed of one device.

    ``power`` are the distances of power samples, ``counter`` those of counter readings; ``power_changes`` and
    ``counter_changes`` only those where the value changed: no refresh can be seen that is faster than the
    polling. ``power_step_watts`` and ``counter_step_joules`` are the largest steps that explain every value.
    ``gaps`` counts distances of more than three periods. ``joules`` and ``stderr_joules`` are of ``seconds``.
    """

    device_id: str
    method: Method | None
    grade: Grade
    verdict: str
    remarks: tuple[str, ...] = ()
    power: Intervals | None = None
    power_changes: Intervals | None = None
    power_step_watts: float | None = None
    counter: Intervals | None = None
    counter_changes: Intervals | None = None
    counter_step_joules: float | None = None
    gaps: int = 0
    seconds: float | None = None
    joules: float | None = None
    stderr_joules: float | None = None
    agreement: Agreement | None = None
    shortest_window_ns: float | None = None
    ring_slowed: bool = False
    foreign_pids: tuple[int, ...] = ()
    limited: Mapping[str, float] = field(default_factory=dict)


def qualify(
    device: Device,
    timeline: Timeline,
    track: EnergyTrack | None,
    start_ns: int,
    end_ns: int,
    *,
    idle: bool = False,
) -> Quality:
    """Judge one device; ``track`` is what windows would be measured by, ``idle`` whether it had nothing to do."""
    power = timeline.power(device.id)
    counters = timeline.counters(device.id)
    conditions = timeline.conditions(device.id)
    declared_ms = device.facts.get("resolution_ms")
    declared_ns = 1e6 * declared_ms if isinstance(declared_ms, (int, float)) else 0.0
    if track is None:
        return _unseen(device, power, counters, declared_ns, end_ns - start_ns)
    seconds, joules, stderr, peak_watts = _energy(track)
    samples = _intervals(power.t_ns) if power is not None else None
    agreement = _agreement(device, power, counters)
    distances = np.diff(track.t_ns)
    slow = distances[distances > SLOW_RING_NS]
    # A ring that slows down still holds quick samples of before: what counts is the time, not the number.
    slowed = track.method == "power ring" and bool(2 * slow.sum() > distances.sum())
    gaps = 0 if slowed else int(np.sum(distances > GAP_PERIODS * track.period_ns))
    period_ns = float(np.median(slow)) if slowed else track.period_ns
    shortest_ns = max(guards.shortest_window_ns(replace(track, period_ns=period_ns)), declared_ns)
    faults, limits, remarks = [], [], []

    power_limit = device.key_facts.get("power_limit_watts")
    if agreement is not None and not agreement.sound:
        against = "power ring" if agreement.ring else "polled power"
        faults.append(
            f"energy counter and {against} disagree: {agreement.ratio:.3f} ± {max(agreement.stderr, 0.001):.3f};"
            " one of the two is wrong"
        )
    elif not joules > 0:
        faults.append(f"the {track.method} read {joules:.3g} J in {seconds:.0f} s: no working device does")
    elif isinstance(power_limit, (int, float)) and power_limit > 0 and peak_watts > 2 * power_limit:
        faults.append(f"reads {peak_watts:.0f} W, above twice its enforced limit of {power_limit:.0f} W")
    if slowed:
        why = ", as boards do at deep idle: run again under load" if idle else ", and the board is not idle"
        limits.append(f"the ring gives one sample per {span(period_ns)}{why}")
    elif shortest_ns > GOOD_WINDOW_NS:
        limits.append("")
    if gaps:
        why = ": at idle the ring may slow down, run again under load" if idle else ""
        limits.append(
            f"readings missing {gaps} time{'s' if gaps > 1 else ''}, {span(float(distances.max()))} at most{why}"
        )
    if agreement is not None and agreement.sound and not agreement.shown:
        remarks.append(
            f"too few counter readings to hold the power against ({agreement.readings}): longer with --seconds"
        )
    elif agreement is None and power is not None and device.facts.get("energy_counter"):
        remarks.append("the power could not be held against the counter: longer with --seconds")
    if power is not None and len(power.t_ns) >= STEADY_READINGS and not np.ptp(power.milliwatts):
        remarks.append(
            f"power read {power.milliwatts[0] / 1000:g} W at all {len(power.t_ns)} samples: steady, or frozen"
        )
    for fact, text in (("not_measured", "not measured"), ("not_counted", "not counted")):
        if device.facts.get(fact):
            remarks.append(f"{text}: {device.facts[fact]}")

    grade: Grade = "unusable" if faults else "usable" if limits else "good"
    named = "; ".join(limit for limit in limits if limit)
    if faults:
        verdict = f"not usable: {'; '.join(faults)}"
    elif limits:
        verdict = f"usable for windows longer than {_seconds(shortest_ns)}" + (f": {named}" if named else "")
    else:
        verdict = f"good: windows from {_seconds(shortest_ns)}"
    return Quality(
        device_id=device.id,
        method=track.method,
        grade=grade,
        verdict=verdict,
        remarks=tuple(remarks),
        power=samples,
        power_changes=_changes(power.t_ns, power.milliwatts) if power is not None else None,
        power_step_watts=_step(power.milliwatts, 1e-3) if power is not None else None,
        counter=_intervals(counters.t0_ns),
        counter_changes=_changes(counters.t0_ns, counters.microjoules),
        counter_step_joules=_step(counters.microjoules, 1e-6),
        gaps=gaps,
        seconds=seconds,
        joules=joules,
        stderr_joules=stderr,
        agreement=agreement,
        shortest_window_ns=shortest_ns,
        ring_slowed=slowed,
        foreign_pids=tuple(sorted({pid for c in conditions for pid in c.foreign_pids or ()})),
        limited={
            name: share
            for name, share in guards.limited_shares(conditions, start_ns, end_ns).items()
            if share > 0
        },
    )


def _unseen(
    device: Device, power: PowerSamples | None, counters: CounterColumns, declared_ns: float, trial_ns: int
) -> Quality:
    """Return a device that gave too few readings for a track."""
    count = max(len(counters), 0 if power is None else len(power.t_ns))
    seen = f"{'no reading' if not count else '1 reading' if count == 1 else f'{count} readings'} in {span(trial_ns)}"
    if declared_ns < trial_ns:
        return Quality(device.id, None, "unusable", f"not usable: {seen}")
    wanted = math.ceil(2 * declared_ns / 1e9)
    return Quality(
        device.id,
        None,
        "usable",
        f"usable for windows longer than {_seconds(declared_ns)}, as it says itself: {seen}",
        (f"too slow to be tried in {span(trial_ns)}: --seconds {wanted}",),
        shortest_window_ns=declared_ns,
    )


def _energy(track: EnergyTrack) -> tuple[float, float, float, float]:
    """Seconds, joules, standard error and peak watts over all that the track covers."""
    edges = np.array([track.t_ns[0], track.t_ns[-1]]) - track.lag_ns
    # A counter that sticks scales its ring to nothing; the agreement tells.
    with np.errstate(invalid="ignore", divide="ignore"):
        energy = window_energy(track, edges[:1], edges[1:])
    seconds = float(edges[1] - edges[0]) / 1e9
    return seconds, float(energy.joules[0]), float(energy.stderr[0]), float(energy.peak_watts[0])


def _agreement(device: Device, power: PowerSamples | None, counters: CounterColumns) -> Agreement | None:
    if power is None or len(power.t_ns) < 3 or len(counters) < 3:
        return None
    track = ring_track(power) if power.held else polled_track(power)
    fit = fit_scale(track, counters, device.counter_tick_ns)
    if fit is None:
        return None
    # The fit is drawn towards 1; a check wants the error of the ratio by itself.
    variance, prior = fit.stderr**2, SCALE_PRIOR_SD**2
    alone = math.sqrt(variance * prior / (prior - variance)) if variance < prior else math.inf
    return Agreement(fit.agreement, alone, fit.readings, power.held)


def _intervals(t_ns: NDArray[np.int64]) -> Intervals | None:
    if len(t_ns) < 2:
        return None
    distances = np.diff(t_ns)
    return Intervals(len(t_ns), float(np.median(distances)), int(distances.min()), int(distances.max()))


def _changes(t_ns: NDArray[np.int64], values: NDArray[np.int64]) -> Intervals | None:
    # The first reading is what was found, not a change.
    changed = np.flatnonzero(np.diff(values)) + 1
    return _intervals(t_ns[changed])


def _step(values: NDArray[np.int64], unit: float) -> float | None:
    steps = np.unique(np.abs(np.diff(np.asarray(values, dtype=np.int64))))
    # A few steps have a common divisor by chance, such as the second's energy of a steady load.
    return float(np.gcd.reduce(steps)) * unit if len(steps) >= DIFFERENT_STEPS else None


def span(nanoseconds: float) -> str:
    """Return a time for people: 7.6 µs, 45 ms, 100 ms, 1.4 s, 120 s."""
    for unit, length in (("µs", 1e3), ("ms", 1e6)):
        if nanoseconds < 999.5 * length:
            return f"{_short(nanoseconds / length)} {unit}"
    return f"{_short(nanoseconds / 1e9)} s"


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 9.95 else f"{number:.1f}"


def _seconds(nanoseconds: float) -> str:
    """Return the length of a window: 0.2 s, 1.4 s, 14 s."""
    seconds = nanoseconds / 1e9
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def worst(grades: Sequence[Grade]) -> Grade:
    """Return the worst of several grades; "absent" where there are none."""
    order: tuple[Grade, ...] = ("absent", "unusable", "usable", "good")
    return min(grades, key=order.index, default="absent")


def user_id() -> int | None:
    """Return the number of the user that this runs as; None on Windows, which has no such numbers."""
    return os.geteuid() if sys.platform != "win32" else None
