"""From windows and a timeline to rounds and figures: pure, for live runs, recordings and simulations alike."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pytest_tokenpower.analysis import ages, guards
from pytest_tokenpower.analysis.counter_check import sound_stretch
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
from pytest_tokenpower.analysis.phases import phase_records
from pytest_tokenpower.record import Figure, PhaseRecord, RoundRecord
from pytest_tokenpower.telemetry.timeline import CounterColumns, Timeline
from pytest_tokenpower.telemetry.values import Device
from pytest_tokenpower.tokens import TokenCount

LARGEST_FLAGGED_SHARE = 0.25
"""With more than this share of rounds dropped by guards, the rest is no fair sample (statistics of the project)."""


@dataclass(frozen=True)
class PhaseWindow:
    """A step of a round, or a stretch in one phase; ``estimated`` where the marks come from outside the engine.

    ``phase`` is prefill, decode or mixed; tokens are those of the step, None where only the phase is known.
    """

    phase: str
    start_ns: int
    end_ns: int
    estimated: bool = False
    prompt_tokens: int | None = None
    generated_tokens: int | None = None


@dataclass(frozen=True)
class RoundWindow:
    """One round as it was run: its window on the monotonic clock, the tokens of all its repeats, its phases.

    ``executions`` are the different token counts that its executions had: one, unless the work varies; empty where
    only their sum is known. Mixed steps are split by coefficients that the rounds of one ``pool`` have in common.
    """

    start_ns: int
    end_ns: int
    tokens: TokenCount
    repeats: int = 1
    phases: tuple[PhaseWindow, ...] = ()
    executions: frozenset[TokenCount] = frozenset()
    pool: str = ""


def track_of(timeline: Timeline, device: Device) -> EnergyTrack | None:
    """The best track of a device: ring (at the counter's scale), then counter, then polled power; None: no data."""
    power = timeline.power(device.id)
    tick_ns = device.counter_tick_ns
    counters = _counters(timeline, device)
    if power is not None and power.held and len(power.t_ns) > 2:
        track = ring_track(power)
        return scaled(track, fit_scale(track, sound_stretch(track, counters, tick_ns), tick_ns))
    if len(counters) > 1:
        return counter_track(counters, tick_ns)
    if power is not None and len(power.t_ns) > 1:
        # The board's own power reading is a 1 s average: an edge is blurred over that second.
        return polled_track(power, refresh_ns=1e9 / math.sqrt(12.0))
    return None


def _counters(timeline: Timeline, device: Device) -> CounterColumns:
    counters = timeline.counters(device.id)
    # What answers over a network is slow by nature, and says itself how old it may be.
    return counters if device.slow else counters.prompt(device.counter_tick_ns)


def round_records(
    timeline: Timeline, devices: Sequence[Device], rounds: Sequence[RoundWindow]
) -> tuple[RoundRecord, ...]:
    """Energy, conditions and reasons of each round, summed over the devices; a slow device leaves no phases."""
    if not rounds:
        return ()
    starts = np.array([one.start_ns for one in rounds], dtype=np.int64)
    ends = np.array([one.end_ns for one in rounds], dtype=np.int64)
    energies: dict[str, WindowEnergy] = {}
    tracks: list[EnergyTrack] = []
    reasons: list[list[str]] = [[] for _ in rounds]
    for device in devices:
        track = track_of(timeline, device)
        if track is None:
            for each in reasons:
                each.append(f"{device.id}: the meter {device.meter} gave no readings")
            continue
        track = ages.slow_track(track, device)
        if not device.slow:
            tracks.append(track)
        energy = window_energy(track, starts, ends)
        energies[device.id] = aged = ages.aged(track, device, energy, starts, ends)
        counters = _counters(timeline, device)
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
            power = timeline.power(device.id, one.start_ns - guards.AROUND_NS, one.end_ns + guards.AROUND_NS)
            found += guards.witness_reasons(device, track, power, counters, one.start_ns, one.end_ns)
    records = []
    phases = _phases(tracks if len(tracks) == len(devices) else (), rounds, reasons)
    for at, one in enumerate(rounds):
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
                phases=phases[at],
                device_joules={device_id: _finite(value) for device_id, value in joules.items()},
                peak_watts=_finite(sum(float(e.peak_watts[at]) for e in energies.values()))
                if energies
                else None,
                temperature_celsius=_over_devices(timeline, devices, "temperature_celsius", one),
                sm_clock_mhz=_over_devices(timeline, devices, "sm_clock_mhz", one),
                limited_shares=_limits(timeline, devices, one),
                # A meter that fails says so at every poll.
                reasons=tuple(dict.fromkeys(reasons[at])),
            )
        )
    return tuple(records)


def _finite(value: float) -> float | None:
    # A void figure is absent and stands beside its reason; JSON has no NaN, and zero would be a lie.
    return value if math.isfinite(value) else None


def _phases(
    tracks: Sequence[EnergyTrack], rounds: Sequence[RoundWindow], reasons: Sequence[Sequence[str]]
) -> list[dict[str, PhaseRecord]]:
    """The phases of each good round, pool by pool; a phase is told by all devices or by none."""
    phases: list[dict[str, PhaseRecord]] = [{} for _ in rounds]
    for pool in dict.fromkeys(one.pool for one in rounds):
        members = [at for at, one in enumerate(rounds) if one.pool == pool and not reasons[at]]
        found, _ = phase_records(tracks, [rounds[at].phases for at in members])
        for at, each in zip(members, found, strict=True):
            phases[at] = each
    return phases


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
    # A share of zero was read; a limit that was not read is absent.
    return {name: round(share, 6) for name, share in shares.items()}


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
    causes = Counter(reason for one in dropped for reason in dict.fromkeys(one.reasons)).most_common(3)
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
    "prefill_watts": "W of prefill",
    "decode_watts": "W of decode",
    "prefill_tokens_per_second": "prompt tokens / s of prefill",
    "decode_tokens_per_second": "generated tokens / s of decode",
    "between_steps_joules_per_token": "J between steps / generated token",
    "joule_seconds_per_response": "J / response x s / execution (energy-delay product)",
    "power_imbalance": "the GPU that drew most, above their mean",
    "seconds": "s / execution of the workload",
}


_OF_ALL_JOULES = frozenset({"joules_per_token", "joules_per_response", "joules", "mean_watts"})
"""Figures whose relative error is at least that of the rounds' joules."""


_BOARD = re.compile(r"(GPU-)?[0-9a-f]{8}-", re.IGNORECASE)
"""A GPU's id is its UUID (NVML's with GPU- before it); other devices are called by their meter."""


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
        values["joule_seconds_per_response"].append(joules / one.responses * one.seconds / one.repeats)
        boards = [value for name, value in one.device_joules.items() if _BOARD.match(name) and value]
        if len(boards) > 1:
            values["power_imbalance"].append(max(boards) / (sum(boards) / len(boards)) - 1)
        if (prefill := one.phases.get("prefill")) is not None:
            values["prefill_joules_per_token"].append(prefill.joules / one.generated_tokens)
            values["prefill_watts"].append(prefill.joules / prefill.seconds)
            if one.prompt_tokens:
                values["joules_per_prompt_token"].append(prefill.joules / one.prompt_tokens)
                values["prefill_tokens_per_second"].append(one.prompt_tokens / prefill.seconds)
        if (decode := one.phases.get("decode")) is not None:
            values["decode_joules_per_token"].append(decode.joules / one.generated_tokens)
            values["decode_watts"].append(decode.joules / decode.seconds)
            # The first token of each response comes out of its prefill.
            decoded = one.generated_tokens - one.responses
            if decoded > 0:
                values["decode_tokens_per_second"].append(decoded / decode.seconds)
        if (between := one.phases.get("between steps")) is not None:
            values["between_steps_joules_per_token"].append(between.joules / one.generated_tokens)
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
