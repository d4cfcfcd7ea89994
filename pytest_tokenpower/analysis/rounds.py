"""From windows and a timeline to rounds and figures: pure, for live runs, recordings and simulations alike."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pytest_tokenpower.analysis import guards, slow_meters
from pytest_tokenpower.analysis.calibration import counters_of, track_of
from pytest_tokenpower.analysis.phases import StepPhases, phase_records, undivided_error
from pytest_tokenpower.analysis.tracks import EnergyTrack, WindowEnergy, window_energy
from pytest_tokenpower.core.denominators import PER, followed
from pytest_tokenpower.core.figures import PERCENTILES
from pytest_tokenpower.core.records import PhaseRecord, RoundRecord
from pytest_tokenpower.core.windows import Latency, RoundWindow
from pytest_tokenpower.meters.timeline import Stretch, Timeline
from pytest_tokenpower.meters.types import Conditions, Device

LARGEST_CACHE_SPREAD = 0.05
"""Between rounds: beyond it they are no repetitions of the same work."""

NO_DEVICE = "there are no readings of any device"

LARGEST_FLAGGED_SHARE = 0.25
"""With more than this share of rounds dropped by guards, the rest is no fair sample (statistics of the project)."""

REACH_NS = 180_000_000_000
"""Readings from this long before the first window on are evaluated with it. They hold the ring against the counter (to
about 0.03 % on an H100 at work), and keep the cost of an evaluation from growing with the session before it."""

REACH_RESOLUTIONS = 12
"""The same for a slow device, whose readings are far apart, in its resolutions."""


@dataclass(frozen=True)
class Evaluation:
    """Rounds with their energy, and how it was found.

    ``methods`` are those of the devices' tracks; ``split`` is how mixed steps were told apart, over all rounds.
    """

    records: tuple[RoundRecord, ...]
    methods: frozenset[str] = frozenset()
    split: StepPhases = field(default_factory=lambda: StepPhases({}))

    @property
    def method(self) -> str:
        """How the energy was found, in one line."""
        return " + ".join(sorted(self.methods))


def reach_ns(devices: Sequence[Device]) -> int:
    """Return how long before a window the readings begin that its evaluation looks at."""
    slowest_ns = max((device.resolution_s for device in devices if device.slow), default=0.0) * 1e9
    return max(REACH_NS, int(REACH_RESOLUTIONS * slowest_ns))


def readings_around(timeline: Timeline, devices: Sequence[Device], start_ns: int) -> Stretch:
    """Return the readings that an evaluation of windows from ``start_ns`` on looks at."""
    return timeline.since(start_ns - reach_ns(devices))


def round_records(
    timeline: Timeline, devices: Sequence[Device], rounds: Sequence[RoundWindow]
) -> tuple[RoundRecord, ...]:
    """Return the records of :func:`evaluate`."""
    return evaluate(timeline, devices, rounds).records


def evaluate(timeline: Timeline, devices: Sequence[Device], rounds: Sequence[RoundWindow]) -> Evaluation:
    """Evaluate the rounds of one measurement.

    Args:
        timeline: what the meters have read, in this session or a recording.
        devices: those whose energy is the rounds', added up.
        rounds: their windows; only what was read from REACH_NS before the first one on is looked at.

    Returns:
        Energy, conditions and reasons of each round; a slow device leaves no phases.
    """
    if not rounds:
        return Evaluation(())
    readings = readings_around(timeline, devices, min(one.start_ns for one in rounds))
    starts = np.array([one.start_ns for one in rounds], dtype=np.int64)
    ends = np.array([one.end_ns for one in rounds], dtype=np.int64)
    energies: dict[str, WindowEnergy] = {}
    tracks: list[EnergyTrack] = []
    methods: set[str] = set()
    conditions = {device.id: readings.conditions(device.id) for device in devices}
    # The sum over no device is no energy of 0 J.
    reasons: list[list[str]] = [[*one.reasons] if devices else [NO_DEVICE] for one in rounds]
    for device in devices:
        for each, one in zip(reasons, rounds, strict=True):
            each.extend(guards.event_reasons(device, readings.events(device.id, one.start_ns, one.end_ns)))
        track = track_of(readings, device)
        if track is None:
            for each in reasons:
                each.append(f"{device.id}: the meter {device.meter} gave no readings")
            continue
        methods.add(track.method)
        track = slow_meters.slow_track(track, device)
        if not device.slow:
            tracks.append(track)
        energy = window_energy(track, starts, ends)
        energies[device.id] = aged = slow_meters.aged(track, device, energy, starts, ends)
        counters = counters_of(readings, device)
        for at, one in enumerate(rounds):
            found = reasons[at]
            if device.slow:
                found += slow_meters.age_reasons(device, aged, one.start_ns, one.end_ns, at)
            else:
                found += guards.length_reasons(device, track, one.start_ns, one.end_ns)
            found += guards.energy_reasons(device, track, energy, at, one.end_ns - one.start_ns)
            found += guards.condition_reasons(device, conditions[device.id], one.start_ns, one.end_ns)
            power = readings.power(device.id, one.start_ns - guards.AROUND_NS, one.end_ns + guards.AROUND_NS)
            found += guards.cross_check_reasons(device, track, power, counters, one.start_ns, one.end_ns)
    records = []
    phases, split = _phases(tracks if len(tracks) == len(devices) else (), rounds, reasons)
    for at, one in enumerate(rounds):
        joules = {device_id: float(energy.joules[at]) for device_id, energy in energies.items()}
        known = bool(devices) and len(joules) == len(devices)
        seconds = (one.end_ns - one.start_ns) / 1e9
        records.append(
            RoundRecord(
                start_ns=one.start_ns,
                seconds=seconds,
                joules=_finite(sum(joules.values())) if known else None,
                stderr_joules=_finite(math.sqrt(sum(float(e.stderr[at]) ** 2 for e in energies.values())))
                if known
                else None,
                prompt_tokens=one.tokens.prompt,
                generated_tokens=one.tokens.generated,
                responses=one.tokens.responses,
                cached_prompt_tokens=one.tokens.cached_prompt,
                repeats=one.repeats,
                phases=phases[at],
                device_joules={device_id: _finite(value) for device_id, value in joules.items()},
                peak_watts=_finite(sum(float(e.peak_watts[at]) for e in energies.values()))
                if energies
                else None,
                temperature_celsius=_over_devices(conditions, "temperature_celsius", one),
                sm_clock_mhz=_over_devices(conditions, "sm_clock_mhz", one),
                memory_gib=_over_devices(conditions, "memory_gib", one),
                latency=percentiles(one.latencies),
                limited_shares=_limits(conditions, one),
                # A meter that fails says so at every poll.
                reasons=tuple(dict.fromkeys(reasons[at])),
            )
        )
    return Evaluation(tuple(records), frozenset(methods), split)


def percentiles(latencies: Sequence[Latency]) -> dict[str, float]:
    """Return the percentiles of a round's latencies by the names of their figures."""
    each = {
        "ttft": [one.first_token_s for one in latencies],
        "tpot": [one.per_token_s for one in latencies if one.per_token_s is not None],
    }
    return {
        f"{name}_p{at}_seconds": float(np.percentile(values, at))
        for name, values in each.items()
        for at in PERCENTILES
        if values
    }


def _finite(value: float) -> float | None:
    # A void figure is absent and stands beside its reason; JSON has no NaN, and zero would be a lie.
    return value if math.isfinite(value) else None


def _phases(
    tracks: Sequence[EnergyTrack], rounds: Sequence[RoundWindow], reasons: Sequence[Sequence[str]]
) -> tuple[list[dict[str, PhaseRecord]], StepPhases]:
    """Return the phases of each good round, told by all devices or none, and how the last pool's were found."""
    phases: list[dict[str, PhaseRecord]] = [{} for _ in rounds]
    how = StepPhases({})
    for pool in dict.fromkeys(one.pool for one in rounds):
        members = [at for at, one in enumerate(rounds) if one.pool == pool and not reasons[at]]
        found, how = phase_records(tracks, [rounds[at].phases for at in members])
        for at, each in zip(members, found, strict=True):
            phases[at] = each
    return phases, how


def _over_devices(
    conditions: Mapping[str, Sequence[Conditions]], field: str, one: RoundWindow
) -> float | None:
    values = [guards.mean_condition(each, field, one.start_ns, one.end_ns) for each in conditions.values()]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _limits(conditions: Mapping[str, Sequence[Conditions]], one: RoundWindow) -> dict[str, float]:
    shares: dict[str, float] = {}
    for each in conditions.values():
        found = guards.limited_shares(each, one.start_ns, one.end_ns)
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
    """Return the rounds that no guard dropped."""
    return tuple(
        GoodRound(one, one.joules, one.stderr_joules)
        for one in rounds
        if not one.reasons and one.joules is not None and one.stderr_joules is not None
    )


NOT_ONE = (
    "no round was measured: what was to be measured was cut short each time, by an error that the test caught or a "
    "timeout of its own"
)


def flagged_too_often(rounds: Sequence[RoundRecord], least: int) -> tuple[str, ...]:
    """Why the rounds as a whole are no measurement: too few good ones, or too many dropped; empty if they are."""
    kept = good(rounds)
    dropped = [one for one in rounds if one.reasons]
    causes = Counter(reason for one in dropped for reason in dict.fromkeys(one.reasons)).most_common(3)
    listed = tuple(f"{reason} ({count} of {len(rounds)} rounds)" for reason, count in causes)
    if not rounds:
        return (NOT_ONE,)
    if len(dropped) > LARGEST_FLAGGED_SHARE * len(rounds):
        return listed
    if len(kept) < least:
        return (f"only {len(kept)} of at least {least} rounds could be measured", *listed)
    return ()


@dataclass(frozen=True)
class Gated:
    """The part of a good round that its test is compared by, and how many units its joules are divided by."""

    joules: float
    stderr_joules: float
    seconds: float
    units: int


def gated(rounds: Sequence[RoundRecord], per: str | None = None) -> list[Gated]:
    """Return the part of each good round that is compared; empty where a round lacks it.

    Args:
        rounds: of one measurement.
        per: a denominator of core.denominators.PER; None: the one that follows from the counts. Joules per prompt
            token are the prefill's, where tokens were generated as well.
    """
    kept = good(rounds)
    per = per or denominator_of(rounds)
    found = []
    for one in kept:
        part: GoodRound | PhaseRecord | None = one
        if per == "prompt_token" and one.record.generated_tokens:
            part = one.record.phases.get("prefill")
        units = units_per(per, one.record)
        if part is None or units <= 0 or part.joules <= 0:
            return []
        if isinstance(part, PhaseRecord):
            error = math.hypot(part.stderr_joules, undivided_error(part.undivided_joules))
            found.append(Gated(part.joules, error, part.seconds, units))
        else:
            found.append(Gated(part.joules, part.stderr_joules, one.record.seconds, units))
    return found


def denominator_of(rounds: Sequence[RoundRecord]) -> str:
    """Return the denominator that follows from the counts of all rounds together."""
    return followed(
        generated=sum(one.generated_tokens for one in rounds),
        prefilled=sum(prefilled_tokens(one) for one in rounds),
    )


def prefilled_tokens(one: RoundRecord) -> int:
    """Return the prompt tokens that were computed: what came from a prefix cache was not."""
    return one.prompt_tokens - one.cached_prompt_tokens


def units_per(per: str, one: RoundRecord) -> int:
    """How many units of a denominator a round has."""
    return {
        "token": one.generated_tokens,
        "prompt_token": prefilled_tokens(one),
        "total_token": one.prompt_tokens + one.generated_tokens,
        "response": one.responses,
    }[per]


def joules_per_unit(one: RoundRecord, per: str) -> float | None:
    """Return what a round's part of the figure with this denominator is, dropped or not; None where it is not known."""
    part: RoundRecord | PhaseRecord | None = one
    if per == "prompt_token" and one.generated_tokens:
        part = one.phases.get("prefill")
    units = units_per(per, one)
    return None if part is None or part.joules is None or units <= 0 else part.joules / units


def cached_share(one: RoundRecord) -> float:
    """Return the share of a round's prompt tokens that came from a prefix cache."""
    return one.cached_prompt_tokens / one.prompt_tokens if one.prompt_tokens else 0.0


def unsteady_cache(rounds: Sequence[RoundRecord]) -> tuple[str, ...]:
    """Why good rounds did different work, one having found more of its prompts in a prefix cache than another."""
    shares = [cached_share(one.record) for one in good(rounds)]
    if not shares or max(shares) - min(shares) <= LARGEST_CACHE_SPREAD:
        return ()
    return (
        f"the prefix cache held {100 * min(shares):.0f} to {100 * max(shares):.0f} % of the prompt tokens from round "
        "to round: more warm-up rounds (energy_warmup_rounds) fill it, new prompts or no cache leave it out",
    )


def unknown_figure(rounds: Sequence[RoundRecord], per: str) -> str:
    """Say why there is no figure to compare by; empty where there is one, and where no round is good."""
    kept = [one.record for one in good(rounds)]
    if not kept or gated(rounds, per):
        return ""
    lacking = any(units_per(per, one) <= 0 for one in kept)
    whole = f"per={per!r} compares by joules per {PER[per]}, which are not known: "
    if not lacking:
        return (
            f"{whole}tokens were generated too, and the energy of the prefill is not told apart (energy.run(engine, "
            "workload) does that): per='total_token' or 'response' need no phases"
        )
    if all(units_per(per, one) <= 0 for one in kept) and per == "token":
        return f"{whole}no tokens were generated: per='prompt_token' or 'response' fit such work"
    if per == "token":
        return "some executions generated no tokens, and others did: joules per token are not known"
    if per == "prompt_token" and all(one.prompt_tokens for one in kept):
        return f"{whole}all prompt tokens came from a prefix cache, and none was prefilled"
    return f"{whole}some executions have none"


def lacking(done: Sequence[RoundRecord], figure: str, *, steps: bool) -> str:
    """Say why work has no such figure, whatever measures it; empty where it is the meter that did not give it.

    ``steps``: the engine has told its steps, so that another run may tell its phases apart.
    """
    per = figure.removeprefix("joules_per_")
    if per in PER and (without := [one for one in done if units_per(per, one) <= 0]):
        unit = {"token": "generated token", "prompt_token": "prefilled prompt token"}.get(per, PER[per])
        return f"its counts hold no {unit}" + ("" if len(without) == len(done) else " in some rounds")
    if per == "prompt_token" and done and not steps and not any(one.phases for one in done):
        return "tokens are generated too, and nothing tells the energy of the prefill apart"
    if figure.endswith("_seconds") and done and not any(one.latency for one in done):
        return "its results do not say when their tokens came"
    return ""


def log_joules_per_token(rounds: Sequence[RoundRecord], per: str | None = None) -> list[float]:
    """ln(joules / unit) of what is compared, of each good round; arguments as for :func:`gated`."""
    return [math.log(one.joules / one.units) for one in gated(rounds, per)]


def log_errors(rounds: Sequence[RoundRecord], per: str | None = None) -> list[float]:
    """Return the meter's own standard error of each of them (relative, so of the logarithm)."""
    return [one.stderr_joules / one.joules for one in gated(rounds, per)]
