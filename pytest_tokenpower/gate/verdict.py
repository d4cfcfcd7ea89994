"""From a measurement, a baseline and a budget to verdicts. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from pytest_tokenpower.analysis.figures import FIGURES, round_values
from pytest_tokenpower.analysis.rounds import log_errors, log_joules_per_token
from pytest_tokenpower.core.records import MeasurementRecord, VerdictRecord
from pytest_tokenpower.gate.messages import SETTLED, UNDECIDED, comparison
from pytest_tokenpower.gate.operating_point import compare_conditions, gpu_temperatures
from pytest_tokenpower.stats.decision import decide, decide_budget, holm, repeated_p
from pytest_tokenpower.stats.moderated import OCCASION_SHARE, Estimate, compare_constant, compare_stored
from pytest_tokenpower.stats.prior import DEFAULT_PRIOR, Prior
from pytest_tokenpower.stats.runs import summarise_runs
from pytest_tokenpower.stats.temperature import Adjustment, adjust_temperature
from pytest_tokenpower.store.baseline import ComparableRuns

SEVERITY = (
    "invalid", "regressed", "over budget", "doubtful", "inconclusive", "no baseline", "improved", "passed",
)  # fmt: skip


"""Verdicts, the gravest first: the one that a test is shown with. Doubtful is none that a run ends with."""


LOOKS = 3


"""How often a comparison is looked at where it may be restarted: the run itself, then after each of two restarts."""


OTHER_VARIANT = "baseline arm"


"""What a verdict of ``energy.compare`` is against."""


FAILING = frozenset({"invalid", "regressed", "over budget"})


def judge_baseline(
    measurement: MeasurementRecord,
    stored: ComparableRuns,
    threshold: float,
    prior: Prior = DEFAULT_PRIOR,
    *,
    family: int = 1,
    restarts: Sequence[MeasurementRecord] = (),
    look: int | None = None,
) -> VerdictRecord:
    """The verdict against stored runs, by the moderated t with runs as units, at a common GPU temperature.

    ``family`` is how many comparisons the whole run makes. A single test cannot wait for the others: it is decided
    with ``family`` times its own p, the first step of Holm's rule, so that no later result can take the decision
    back. What Holm's later steps add is settled when the run ends (:func:`settle`). ``restarts`` are further runs of
    the same code in fresh processes.

    ``look`` says which of LOOKS looks this is, where a comparison may be restarted: its p is then what it is worth
    when all looks are counted (O'Brien & Fleming's levels), and before the last one "doubtful" takes the place of
    "inconclusive". None: there is only this one.
    """
    if not stored.runs:
        return VerdictRecord(
            kind="no baseline",
            message=f"nothing to compare with on {stored.label}: {stored.why}",
            against=stored.label,
            threshold=threshold,
        )
    new = (measurement, *restarts)
    # Restarts share the occasion of the run that they follow; of two sides on one occasion it cancels.
    raw, adjusted, refusal = _estimates(new, stored.runs, prior, 0.0 if look is None else OCCASION_SHARE)
    drift = compare_conditions(new, stored.runs, refusal)
    estimate = adjusted or raw
    p = estimate.p_above() if look is None else repeated_p(estimate.p_above(), look, LOOKS)

    def decided(at: Estimate, p: float) -> str:
        return decide(
            at, threshold, p_adjusted=min(1.0, family * p), p_improved=min(1.0, family * at.p_below())
        )

    kind = decided(estimate, p)
    cooler = replace(estimate, delta=estimate.delta - drift.leakage)
    trusted = not drift.invalid and decided(cooler, cooler.p_above()) == decided(estimate, estimate.p_above())
    if not trusted:
        kind = "invalid" if drift.invalid else "inconclusive"
    elif kind == "inconclusive" and look is not None and look < LOOKS:
        kind = "doubtful"
    low, high = estimate.change_interval()
    return VerdictRecord(
        kind=kind,
        message=comparison(kind, new, stored, threshold, estimate, raw, drift, trusted=trusted),
        against=stored.label,
        change=estimate.change,
        change_low=low,
        change_high=high,
        raw_change=raw.change,
        # Holm's rule over the run turns no comparison into a failure that its own conditions make worthless.
        p_value=p if trusted else None,
        threshold=threshold,
        resolvable=estimate.resolvable(threshold),
        noise_floor=math.expm1(estimate.smallest_failing()),
        baseline_runs=stored.run_ids,
        provisional=estimate.provisional,
    )


def _estimates(
    new: Sequence[MeasurementRecord],
    runs: Sequence[MeasurementRecord],
    prior: Prior,
    occasion_share: float,
) -> tuple[Estimate, Estimate | None, str]:
    """The comparison as read, and at a common temperature where both sides' temperatures allow it; or why not."""
    old = len(runs)
    values = [log_joules_per_token(one.rounds) for one in (*runs, *new)]
    errors = [log_errors(one.rounds) for one in (*runs, *new)]
    summaries = summarise_runs(values, meter_errors_per_run=errors, prior=prior)
    raw = compare_stored(summaries[:old], summaries[old:], prior, occasion_share=occasion_share)
    temperatures = [gpu_temperatures(one) for one in (*runs, *new)]
    if any(each is None for each in temperatures):
        return raw, None, ""
    reduced = adjust_temperature(values[:old], temperatures[:old], values[old:], temperatures[old:], prior)
    if not isinstance(reduced, Adjustment):
        return raw, None, reduced.reason
    summaries = summarise_runs([*reduced.baseline, *reduced.new], meter_errors_per_run=errors, prior=prior)
    adjusted = compare_stored(
        summaries[:old],
        summaries[old:],
        prior,
        extra_squared_error=reduced.squared_error,
        occasion_share=occasion_share,
    )
    return raw, adjusted, ""


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
            said = [line for line in verdict.message.splitlines() if not line.startswith(UNDECIDED)]
            settled[test, verdict.against] = msgspec.structs.replace(
                verdict, kind="regressed", message="\n".join([*said, SETTLED])
            )
    return settled


def gravest(verdicts: Sequence[VerdictRecord]) -> VerdictRecord | None:
    """The verdict that a test is shown with; None where nothing was asked."""
    return min(verdicts, key=lambda verdict: SEVERITY.index(verdict.kind), default=None)


def against_baseline(verdicts: Sequence[VerdictRecord]) -> VerdictRecord | None:
    """The gravest verdict that compares with stored runs or with the other arm; None where there is no such one."""
    return gravest(
        [verdict for verdict in verdicts if verdict.baseline_runs or verdict.against == OTHER_VARIANT]
    )
