"""From windows and a timeline to rounds and figures: pure, for live runs, recordings and simulations alike."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pytest_tokenpower.analysis import ages, guards
from pytest_tokenpower.analysis.energy import (
    EnergyTrack,
    WindowEnergy,
    counter_track,
    fit_scale,
    polled_track,
    ring_track,
    scaled,
    window_energy,
)
from pytest_tokenpower.record import Figure, PhaseRecord, RoundRecord
from pytest_tokenpower.telemetry.timeline import Timeline
from pytest_tokenpower.telemetry.values import Device
from pytest_tokenpower.tokens import TokenCount

LARGEST_FLAGGED_SHARE = 0.25
"""With more than this share of rounds dropped by guards, the rest is no fair sample (statistics of the project)."""


@dataclass(frozen=True)
class PhaseWindow:
    """A stretch of a round in one phase; ``estimated`` where the marks come from outside the engine."""

    phase: str
    start_ns: int
    end_ns: int
    estimated: bool = False


@dataclass(frozen=True)
class RoundWindow:
    """One round as it was run: its window on the monotonic clock, the tokens of all its repeats, its phases.

    ``executions`` are the different token counts that its executions had: one, unless the work varies; empty where
    only their sum is known.
    """

    start_ns: int
    end_ns: int
    tokens: TokenCount
    repeats: int = 1
    phases: tuple[PhaseWindow, ...] = ()
    executions: frozenset[TokenCount] = frozenset()


def track_of(timeline: Timeline, device: Device) -> EnergyTrack | None:
    """The best track of a device: ring (at the counter's scale), then counter, then polled power; None: no data."""
    power = timeline.power(device.id)
    counters = timeline.counters(device.id)
    if power is not None and power.held and len(power.t_ns) > 2:
        track = ring_track(power)
        return scaled(track, fit_scale(track, counters, device.counter_tick_ns))
    if len(counters) > 1:
        return counter_track(counters, device.counter_tick_ns)
    if power is not None and len(power.t_ns) > 1:
        # The board's own power reading is a 1 s average: an edge is blurred over that second.
        return polled_track(power, refresh_ns=1e9 / math.sqrt(12.0))
    return None


def round_records(
    timeline: Timeline, devices: Sequence[Device], rounds: Sequence[RoundWindow]
) -> tuple[RoundRecord, ...]:
    """Energy, conditions and reasons of each round, summed over the devices; a slow device leaves no phases."""
    if not rounds:
        return ()
    spans = [(r.start_ns, r.end_ns) for r in rounds] + [
        (p.start_ns, p.end_ns) for r in rounds for p in r.phases
    ]
    starts = np.array([start for start, _ in spans], dtype=np.int64)
    ends = np.array([end for _, end in spans], dtype=np.int64)
    energies: dict[str, WindowEnergy] = {}
    reasons: list[list[str]] = [[] for _ in rounds]
    for device in devices:
        track = track_of(timeline, device)
        if track is None:
            for each in reasons:
                each.append(f"{device.id}: the meter {device.meter} gave no readings")
            continue
        track = ages.slow_track(track, device)
        energy = window_energy(track, starts, ends)
        energies[device.id] = aged = ages.aged(track, device, energy, starts, ends)
        counters = timeline.counters(device.id)
        conditions = timeline.conditions(device.id)
        for at, one in enumerate(rounds):
            found = reasons[at]
            found += guards.event_reasons(device, timeline.events(device.id, one.start_ns, one.end_ns))
            if device.slow:
                found += ages.age_reasons(device, aged, one.start_ns, one.end_ns, at)
            else:
                found += guards.length_reasons(device, track, one.start_ns, one.end_ns)
            found += guards.energy_reasons(device, track, energy, at)
            found += guards.condition_reasons(device, conditions, one.start_ns, one.end_ns)
            off = guards.counter_disagreement(
                track, counters, device.counter_tick_ns, one.start_ns, one.end_ns
            )
            if off is not None:
                found.append(f"{device.id}: energy counter and power ring disagree by {off:+.0%}")
    records = []
    slow = any(device.slow for device in devices)
    phase_at = len(rounds)
    for at, one in enumerate(rounds):
        columns = range(phase_at, phase_at + len(one.phases))
        phase_at += len(one.phases)
        joules = {device_id: float(energy.joules[at]) for device_id, energy in energies.items()}
        seconds = (one.end_ns - one.start_ns) / 1e9
        records.append(
            RoundRecord(
                start_ns=one.start_ns,
                seconds=seconds,
                joules=_finite(sum(joules.values())) if len(joules) == len(devices) else None,
                stderr_joules=_finite(math.sqrt(sum(float(e.stderr[at]) ** 2 for e in energies.values()))),
                prompt_tokens=one.tokens.prompt,
                generated_tokens=one.tokens.generated,
                responses=one.tokens.responses,
                repeats=one.repeats,
                phases=_phases(one, columns, energies) if not reasons[at] and not slow else {},
                device_joules={device_id: _finite(value) for device_id, value in joules.items()},
                peak_watts=_finite(sum(float(e.peak_watts[at]) for e in energies.values()))
                if energies
                else None,
                temperature_celsius=_over_devices(timeline, devices, "temperature_celsius", one),
                sm_clock_mhz=_over_devices(timeline, devices, "sm_clock_mhz", one),
                limited_shares=_limits(timeline, devices, one),
                reasons=tuple(reasons[at]),
            )
        )
    return tuple(records)


def _finite(value: float) -> float | None:
    # A void figure is absent and stands beside its reason; JSON has no NaN, and zero would be a lie.
    return value if math.isfinite(value) else None


def _phases(one: RoundWindow, columns: range, energies: Mapping[str, WindowEnergy]) -> dict[str, PhaseRecord]:
    sums: dict[str, list[float]] = {}
    estimated: set[str] = set()
    for phase, column in zip(one.phases, columns, strict=True):
        joules = sum(float(energy.joules[column]) for energy in energies.values())
        variance = sum(float(energy.stderr[column]) ** 2 for energy in energies.values())
        total = sums.setdefault(phase.phase, [0.0, 0.0, 0.0])
        total[0] += joules
        total[1] += variance
        total[2] += (phase.end_ns - phase.start_ns) / 1e9
        if phase.estimated:
            estimated.add(phase.phase)
    return {
        phase: PhaseRecord(joules, math.sqrt(variance), seconds, phase in estimated)
        for phase, (joules, variance, seconds) in sums.items()
        if math.isfinite(joules)
    }


def _over_devices(
    timeline: Timeline, devices: Sequence[Device], field: str, one: RoundWindow
) -> float | None:
    values = [
        guards.mean_condition(timeline.conditions(device.id), field, one.start_ns, one.end_ns)
        for device in devices
    ]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _limits(timeline: Timeline, devices: Sequence[Device], one: RoundWindow) -> dict[str, float]:
    shares: dict[str, float] = {}
    for device in devices:
        found = guards.limited_shares(timeline.conditions(device.id), one.start_ns, one.end_ns)
        for name, share in found.items():
            shares[name] = max(share, shares.get(name, 0.0))
    return {name: round(share, 6) for name, share in shares.items() if share > 0}


@dataclass(frozen=True)
class GoodRound:
    """A round that no guard dropped, with its energy in hand."""

    record: RoundRecord
    joules: float
    stderr_joules: float


def good(rounds: Sequence[RoundRecord]) -> tuple[GoodRound, ...]:
    """The rounds that no guard dropped."""
    return tuple(
        GoodRound(one, one.joules, one.stderr_joules)
        for one in rounds
        if not one.reasons and one.joules is not None and one.stderr_joules is not None
    )


def flagged_too_often(rounds: Sequence[RoundRecord], least: int) -> tuple[str, ...]:
    """Why the rounds as a whole are no measurement: too few good ones, or too many dropped; empty if they are."""
    kept = good(rounds)
    dropped = [one for one in rounds if one.reasons]
    causes = Counter(reason for one in dropped for reason in one.reasons).most_common(3)
    listed = tuple(f"{reason} ({count} of {len(rounds)} rounds)" for reason, count in causes)
    if not rounds:
        return ("no round was measured",)
    if len(dropped) > LARGEST_FLAGGED_SHARE * len(rounds):
        return listed
    if len(kept) < least:
        return (f"only {len(kept)} of at least {least} rounds could be measured", *listed)
    return ()


def log_joules_per_token(rounds: Sequence[RoundRecord]) -> list[float]:
    """ln(J / generated token) of each good round."""
    return [math.log(one.joules / one.record.generated_tokens) for one in good(rounds)]


def log_errors(rounds: Sequence[RoundRecord]) -> list[float]:
    """The meter's own standard error of each of them (relative, so of the logarithm)."""
    return [one.stderr_joules / one.joules for one in good(rounds)]


FIGURES: Mapping[str, str] = {
    "joules_per_token": "J / generated token",
    "joules_per_prompt_token": "J of prefill / prompt token",
    "prefill_joules_per_token": "J of prefill / generated token",
    "decode_joules_per_token": "J of decode / generated token",
    "joules_per_response": "J / response",
    "joules": "J / execution of the workload",
    "mean_watts": "W",
    "peak_watts": "W",
    "tokens_per_second": "generated tokens / s",
    "seconds": "s / execution of the workload",
}


_OF_ALL_JOULES = frozenset({"joules_per_token", "joules_per_response", "joules", "mean_watts"})
"""Figures whose relative error is at least that of the rounds' joules."""


def round_values(rounds: Sequence[RoundRecord]) -> dict[str, list[float]]:
    """Each figure of FIGURES in each good round; a figure that some round lacks is left out."""
    kept = good(rounds)
    values: dict[str, list[float]] = {name: [] for name in FIGURES}
    for each in kept:
        one, joules = each.record, each.joules
        values["joules_per_token"].append(joules / one.generated_tokens)
        values["joules_per_response"].append(joules / one.responses)
        values["joules"].append(joules / one.repeats)
        values["mean_watts"].append(joules / one.seconds)
        values["tokens_per_second"].append(one.generated_tokens / one.seconds)
        values["seconds"].append(one.seconds / one.repeats)
        if one.peak_watts is not None:
            values["peak_watts"].append(one.peak_watts)
        if (prefill := one.phases.get("prefill")) is not None:
            values["prefill_joules_per_token"].append(prefill.joules / one.generated_tokens)
            if one.prompt_tokens:
                values["joules_per_prompt_token"].append(prefill.joules / one.prompt_tokens)
        if (decode := one.phases.get("decode")) is not None:
            values["decode_joules_per_token"].append(decode.joules / one.generated_tokens)
    return {name: each for name, each in values.items() if each and len(each) == len(kept)}


def figures(rounds: Sequence[RoundRecord]) -> dict[str, Figure]:
    """Each figure over the good rounds: 20 % trimmed mean and its standard error, autocorrelation included.

    ``peak_watts`` is the highest of all rounds. The standard errors are of this run's rounds; the difference
    between runs comes on top and is the verdict's business.
    """
    from pytest_tokenpower.stats.runs import summarise_runs

    result = {}
    for name, values in round_values(rounds).items():
        if name == "peak_watts":
            result[name] = Figure(max(values), 0.0)
            continue
        if min(values) <= 0:
            continue
        [summary] = summarise_runs(
            [[math.log(value) for value in values]],
            meter_errors_per_run=[log_errors(rounds)] if name in _OF_ALL_JOULES else None,
        )
        value = math.exp(summary.location)
        result[name] = Figure(value, value * math.sqrt(summary.squared_error))
    return result
