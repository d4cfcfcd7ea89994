"""From a measurement, a baseline and a budget to verdicts, and the words that say them. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from pytest_tokenpower.measurement import (
    FIGURES,
    figures,
    good,
    log_errors,
    log_joules_per_token,
    round_values,
)
from pytest_tokenpower.record import MeasurementRecord, VerdictRecord
from pytest_tokenpower.stats.decision import below_noise_floor, decide, decide_budget
from pytest_tokenpower.stats.moderated import Estimate, compare_constant, compare_stored
from pytest_tokenpower.stats.prior import DEFAULT_PRIOR, Prior
from pytest_tokenpower.stats.runs import summarise_runs
from pytest_tokenpower.stats.temperature import Adjustment, adjust_temperature

SEVERITY = ("invalid", "regressed", "over budget", "inconclusive", "no baseline", "improved", "passed")
"""Verdicts, the gravest first: the one that a test is shown with."""

OTHER_ARM = "baseline arm"
"""What a verdict of ``energy.compare`` is against."""

FAILING = frozenset({"invalid", "regressed", "over budget"})


@dataclass(frozen=True)
class StoredRuns:
    """The comparable runs of a baseline, newest first, and what the baseline is called.

    ``why`` says why there are none, ``note`` what else the reader should know of them.
    """

    label: str
    runs: tuple[MeasurementRecord, ...]
    run_ids: tuple[str, ...] = ()
    why: str = ""
    note: str = ""


def judge_baseline(
    measurement: MeasurementRecord,
    stored: StoredRuns,
    threshold: float,
    prior: Prior = DEFAULT_PRIOR,
    *,
    family: int = 1,
    restarts: Sequence[MeasurementRecord] = (),
) -> VerdictRecord:
    """The verdict against stored runs, by the moderated t with runs as units, at a common die temperature.

    ``family`` is how many comparisons the whole run makes. A single test cannot wait for the others: it is decided
    with ``family`` times its own p, the first step of Holm's rule, so that no later result can take the decision
    back. What Holm's later steps add is settled when the run ends (:func:`settle`). ``restarts`` are further runs of
    the same code in fresh processes.
    """
    if not stored.runs:
        return VerdictRecord(
            kind="no baseline",
            message=f"nothing to compare with on {stored.label}: {stored.why}",
            against=stored.label,
            threshold=threshold,
        )
    raw, adjusted = _estimates((measurement, *restarts), stored.runs, prior)
    estimate = adjusted or raw
    kind = decide(
        estimate,
        threshold,
        p_adjusted=min(1.0, family * estimate.p_above()),
        p_improved=min(1.0, family * estimate.p_below()),
    )
    low, high = estimate.change_interval()
    return VerdictRecord(
        kind=kind,
        message=_comparison(kind, measurement, stored, threshold, estimate, raw),
        against=stored.label,
        change=estimate.change,
        change_low=low,
        change_high=high,
        raw_change=raw.change,
        p_value=estimate.p_above(),
        threshold=threshold,
        resolvable=estimate.resolvable(threshold),
        baseline_runs=stored.run_ids,
        provisional=estimate.provisional,
    )


def _estimates(
    new: Sequence[MeasurementRecord], runs: Sequence[MeasurementRecord], prior: Prior
) -> tuple[Estimate, Estimate | None]:
    """The comparison as read, and at a common temperature where both sides' temperatures allow it."""
    old = len(runs)
    values = [log_joules_per_token(one.rounds) for one in (*runs, *new)]
    errors = [log_errors(one.rounds) for one in (*runs, *new)]
    summaries = summarise_runs(values, meter_errors_per_run=errors, prior=prior)
    raw = compare_stored(summaries[:old], summaries[old:], prior)
    temperatures = [_temperatures(one) for one in (*runs, *new)]
    if any(each is None for each in temperatures):
        return raw, None
    reduced = adjust_temperature(values[:old], temperatures[:old], values[old:], temperatures[old:], prior)
    if not isinstance(reduced, Adjustment):
        return raw, None
    summaries = summarise_runs([*reduced.baseline, *reduced.new], meter_errors_per_run=errors, prior=prior)
    return raw, compare_stored(
        summaries[:old], summaries[old:], prior, extra_squared_error=reduced.squared_error
    )


def _temperatures(measurement: MeasurementRecord) -> list[float] | None:
    known = [each.record.temperature_celsius for each in good(measurement.rounds)]
    return [value for value in known if value is not None] if None not in known else None


def _comparison(
    kind: str,
    measurement: MeasurementRecord,
    stored: StoredRuns,
    threshold: float,
    estimate: Estimate,
    raw: Estimate,
) -> str:
    here = figures(measurement.rounds)
    there = [figures(run.rounds) for run in stored.runs]
    changes = {
        name: math.log(here[name].value) - sum(math.log(each[name].value) for each in there) / len(there)
        for name in here
        if all(name in each for each in there)
    }
    base = here["joules_per_token"].value / math.exp(changes["joules_per_token"])
    low, high = estimate.change_interval()
    runs = f"{len(stored.runs)} run{'s' if len(stored.runs) != 1 else ''}"
    side = "above" if estimate.change >= 0 else "below"
    # The figures are as read; the change that is judged is at one die temperature, and may be another one.
    as_read = f", at the same die temperature ({signed(raw.change)} as read)"
    lines = [
        f"{here['joules_per_token'].value:.4g} J/token is {100 * abs(estimate.change):.1f} % {side} {stored.label} "
        f"({base:.4g}, {runs}){as_read if abs(raw.change - estimate.change) >= 5e-4 else ''}; "
        f"limit {_percent(threshold)}."
    ]
    lines.append(f"  95 % interval {signed(low)} to {signed(high)}, one-sided p {_p(estimate, kind)}.")
    lines.append("  " + _anatomy(changes, here))
    if capped := _throttling(measurement, stored.runs):
        lines.append(f"  {capped}")
    if kind == "inconclusive":
        lines.append(
            f"  Not decided: this comparison can tell changes from {_percent(estimate.resolvable(threshold), 2)} on; "
            "more stored runs of the baseline or more rounds would tell smaller ones."
        )
    elif below_noise_floor(estimate, threshold):
        lines.append(
            f"  The limit is below the noise: changes under {_percent(math.expm1(estimate.smallest_failing()), 2)} "
            "cannot be told."
        )
    if stored.note:
        lines.append(f"  {stored.note}")
    if estimate.provisional:
        lines.append(f"  Provisional: only {runs} stored.")
    return "\n".join(lines)


def _p(estimate: Estimate, kind: str) -> str:
    p = estimate.p_below() if kind == "improved" else estimate.p_above()
    return f"= {p:.2g}" if p >= 1e-4 else "< 0.0001"


def _percent(share: float, digits: int = 3) -> str:
    return f"{100 * share:.{digits}g} %"


def signed(share: float) -> str:
    """A change for people: +6.1 %, and never -0.0 %."""
    return f"{round(100 * share, 1) + 0.0:+.1f} %"


def _anatomy(changes: Mapping[str, float], here: Mapping[str, object]) -> str:
    """Prefill or decode, power or speed: where the change comes from."""

    def part(name: str) -> str:
        return signed(math.expm1(changes[name]))

    phases = [
        f"{label} {part(name)}"
        for label, name in (("decode", "decode_joules_per_token"), ("prefill", "prefill_joules_per_token"))
        if name in changes
    ]
    current = {name: getattr(figure, "value", math.nan) for name, figure in here.items()}
    engine = (
        f"power {current['mean_watts']:.0f} W ({part('mean_watts')}), "
        f"{current['tokens_per_second']:.4g} tok/s ({part('tokens_per_second')}): "
        f"{_power_or_speed(changes['mean_watts'], changes['tokens_per_second'])}"
    )
    return ", ".join(phases) + ("; " if phases else "") + engine + "."


NOTABLE_SHARE = 0.1
"""A share of time under the power limit that differs by more than this between the sides is a finding, not noise."""


def _throttling(measurement: MeasurementRecord, runs: Sequence[MeasurementRecord]) -> str:
    """Where the new runs spent another share of their time under the board's power limit; empty where they did not."""
    here, there = (_capped_share(each) for each in ((measurement,), runs))
    if here is None or there is None or abs(here - there) <= NOTABLE_SHARE:
        return ""
    return (
        f"At its power limit for {100 * here:.0f} % of the time, the baseline for {100 * there:.0f} %: a board that is "
        "capped spends time instead of power."
    )


def _capped_share(runs: Sequence[MeasurementRecord]) -> float | None:
    shares = [one.record.limited_shares.get("power") for run in runs for one in good(run.rounds)]
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None


def _power_or_speed(power: float, speed: float) -> str:
    """With ln J/token = ln W - ln tok/s: which of the two carries the change."""
    total = power - speed
    if abs(total) < 0.005:
        return "no change"
    share = power / total
    hotter, slower = ("hotter", "slower") if total > 0 else ("cooler", "faster")
    if share > 0.75:
        return f"{hotter}, not {slower}"
    if share < 0.25:
        return f"{slower}, not {hotter}"
    return f"{hotter} and {slower}"


def judge_ceilings(
    measurement: MeasurementRecord, ceilings: Mapping[str, float], prior: Prior = DEFAULT_PRIOR
) -> tuple[VerdictRecord, ...]:
    """The verdict on each absolute limit, by the same rule against a constant.

    ``peak_watts`` is a maximum, not a mean: the highest reading of the good rounds is held against the limit.
    """
    values = round_values(measurement.rounds)
    verdicts = []
    for name, ceiling in ceilings.items():
        unit = FIGURES[name]
        if name not in values:
            verdicts.append(
                VerdictRecord("inconclusive", f"{name} is not known from this measurement", against=name)
            )
            continue
        if name == "peak_watts":
            peak = max(values[name])
            kind = "over budget" if peak > ceiling else "passed"
            message = (
                f"peak power {peak:.0f} W {'exceeds' if peak > ceiling else 'stays within'} {ceiling:g} W."
            )
            verdicts.append(VerdictRecord(kind, message, against=name, threshold=ceiling))
            continue
        [summary] = summarise_runs(
            [[math.log(value) for value in values[name]]],
            meter_errors_per_run=[log_errors(measurement.rounds)],
            prior=prior,
        )
        estimate = compare_constant([summary], ceiling, prior)
        kind = decide_budget(estimate)
        low, high = (ceiling * (1 + share) for share in estimate.change_interval())
        relation = {
            "over budget": "exceeds",
            "passed": "stays within",
            "inconclusive": "cannot be told from",
        }[kind]
        message = (
            f"{name} {ceiling * (1 + estimate.change):.4g} {unit} {relation} the budget of {ceiling:g} "
            f"(95 % interval {low:.4g} to {high:.4g})."
        )
        verdicts.append(
            VerdictRecord(
                kind,
                message,
                against=name,
                change=estimate.change,
                change_low=low / ceiling - 1,
                change_high=high / ceiling - 1,
                p_value=estimate.p_above(),
                threshold=ceiling,
            )
        )
    return tuple(verdicts)


def settle(
    measurements: Sequence[MeasurementRecord], alpha: float = 0.05
) -> dict[tuple[str, str], VerdictRecord]:
    """The comparisons that Holm's rule over the whole run turns from undecided into regressed.

    By test and baseline. The first step of the rule was taken when each test ended (:func:`judge_baseline`); the
    later ones, which need every p, can only add failures.
    """
    from pytest_tokenpower.stats.decision import holm

    members = [
        (measured.test, verdict, verdict.p_value)
        for measured in measurements
        for verdict in measured.verdicts
        if verdict.baseline_runs and verdict.p_value is not None
    ]
    adjusted: Sequence[float] = [float(p) for p in holm([p for _, _, p in members])]
    settled = {}
    for (test, verdict, _), p in zip(members, adjusted, strict=True):
        risen = (verdict.change or 0.0) > (verdict.threshold or 0.0)
        if verdict.kind == "inconclusive" and risen and p < alpha:
            settled[test, verdict.against] = msgspec.structs.replace(verdict, kind="regressed")
    return settled


def gravest(verdicts: Sequence[VerdictRecord]) -> VerdictRecord | None:
    """The verdict that a test is shown with; None where nothing was asked."""
    return min(verdicts, key=lambda verdict: SEVERITY.index(verdict.kind), default=None)


def against_baseline(verdicts: Sequence[VerdictRecord]) -> VerdictRecord | None:
    """The gravest verdict that compares with stored runs or with the other arm; None where there is no such one."""
    return gravest([verdict for verdict in verdicts if verdict.baseline_runs or verdict.against == OTHER_ARM])
