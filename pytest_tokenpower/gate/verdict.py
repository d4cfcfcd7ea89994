"""From a measurement, a baseline and a budget to verdicts. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from pytest_tokenpower.analysis.figures import figures, meter_errors, round_values
from pytest_tokenpower.analysis.rounds import log_errors, log_joules_per_token
from pytest_tokenpower.core.denominators import denominator, figure_per
from pytest_tokenpower.core.records import OTHER_VARIANT, MeasurementRecord, VerdictRecord
from pytest_tokenpower.core.text import percent, signed
from pytest_tokenpower.gate.acceptance import acceptance_notes, allowed_change, made_use, next_step
from pytest_tokenpower.gate.operating_point import Drift, compare_conditions, gpu_temperatures
from pytest_tokenpower.gate.priors import Priors
from pytest_tokenpower.stats.decision import decide, decide_budget, holm, repeated_p
from pytest_tokenpower.stats.moderated import (
    OCCASION_SHARE,
    Estimate,
    compare_constant,
    compare_interleaved,
    compare_stored,
)
from pytest_tokenpower.stats.prior import DEFAULT_PRIOR, Prior
from pytest_tokenpower.stats.runs import summarise_blocks, summarise_runs
from pytest_tokenpower.stats.temperature import Adjustment, adjust_temperature
from pytest_tokenpower.store.baseline import Baseline, ComparableRuns, stored_runs

SEVERITY = (
    "invalid", "regressed", "over budget", "doubtful", "inconclusive", "no baseline", "improved", "passed",
)  # fmt: skip
"""Verdicts, the gravest first: the one that a test is shown with. Doubtful is none that a run ends with."""

LOOKS = 3
"""How often a comparison is looked at where it may be restarted: the run itself, then after each of two restarts."""

FAILING = frozenset({"invalid", "regressed", "over budget"})

PARTS = ("decode_joules_per_token", "prefill_joules_per_token")
"""Where a change of joules per token is looked for."""

SETTLED = "Settled with all comparisons of this run (Holm)."


@dataclass(frozen=True)
class Policy:
    """What a test is judged by.

    Attributes:
        regression_limit: the rise that fails it, as a fraction.
        key_ignore: patterns of key fields in which the baseline may differ.
        family: how many comparisons the whole run makes.
        priors: what is known of the noise of the baseline's other tests.
        left_out: ids of runs that are no baseline: those that are judged themselves.
    """

    regression_limit: float
    key_ignore: tuple[str, ...] = ()
    family: int = 1
    priors: Priors = field(default_factory=Priors)
    left_out: frozenset[str] = frozenset()


def judge(
    measurement: MeasurementRecord,
    baseline: Baseline | ComparableRuns,
    policy: Policy,
    *,
    restarts: Sequence[MeasurementRecord] = (),
    look: int | None = None,
    prior: Prior = DEFAULT_PRIOR,
) -> VerdictRecord:
    """Judge a measurement by the moderated t with runs as units, at a common GPU temperature: the gate's only door.

    A single test cannot wait for the others: it is decided with ``policy.family`` times its own p, the first step of
    Holm's rule, so that no later result can take the decision back. What Holm's later steps add is settled when the
    run ends (:func:`settle`).

    Args:
        measurement: what is judged.
        baseline: stored runs, of which the comparable ones are found here; or runs that were found already.
        policy: what it is judged by.
        restarts: further runs of the same code in fresh processes.
        look: which of LOOKS looks this is, where a comparison may be restarted: its p is then what it is worth when
            all looks are counted (O'Brien & Fleming's levels), and before the last one "doubtful" takes the place of
            "inconclusive". None: there is only this one.
        prior: what is believed of the noise where runs are given; a baseline's other tests tell it.
    """
    if isinstance(baseline, Baseline):
        stored = stored_runs(baseline, measurement, policy.key_ignore, policy.left_out)
        prior = policy.priors.of(baseline, measurement)
    else:
        stored = baseline
    if not stored.runs:
        return VerdictRecord(
            "no baseline", against=stored.label, reason=stored.why, threshold=policy.regression_limit
        )
    threshold = allowed_change(policy.regression_limit, stored)
    new = (measurement, *restarts)
    # Restarts share the occasion of the run that they follow; of two sides on one occasion it cancels.
    raw, adjusted, refusal = _estimates(new, stored.runs, prior, 0.0 if look is None else OCCASION_SHARE)
    drift = compare_conditions(new, stored.runs, refusal)
    estimate = adjusted or raw
    p = estimate.p_above() if look is None else repeated_p(estimate.p_above(), look, LOOKS)

    def decided(at: Estimate, p: float) -> str:
        return decide(
            at,
            threshold,
            p_adjusted=min(1.0, policy.family * p),
            p_improved=min(1.0, policy.family * at.p_below()),
        )

    kind = decided(estimate, p)
    cooler = replace(estimate, delta=estimate.delta - drift.leakage)
    trusted = not drift.invalid and decided(cooler, cooler.p_above()) == decided(estimate, estimate.p_above())
    if not trusted:
        kind = "invalid" if drift.invalid else "inconclusive"
    elif kind == "inconclusive" and look is not None and look < LOOKS:
        kind = "doubtful"
    low, high = estimate.change_interval()
    here, there = averages(new), averages(stored.runs)
    figure = figure_per(denominator(measurement.key))
    return VerdictRecord(
        kind=kind,
        against=stored.label,
        reason=drift.invalid,
        figure=figure,
        value=here[figure],
        baseline_value=there[figure],
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
        runs=len(new),
        provisional=estimate.provisional,
        changes={
            name: here[name] / there[name] - 1
            for name in (*PARTS, "mean_watts", "tokens_per_second")
            if name in here and name in there
        },
        means={name: here[name] for name in ("mean_watts", "tokens_per_second") if name in here},
        undecided=_undecided(kind, estimate, threshold, drift, trusted=trusted),
        accepted=made_use(estimate.change, policy.regression_limit, stored),
        next_step=next_step(stored.test or measurement.test, estimate.change, high),
        notes=(
            *drift.lines,
            *([stored.note] if stored.note else []),
            *acceptance_notes(kind, estimate.change, policy.regression_limit, stored),
        ),
    )


def _undecided(kind: str, estimate: Estimate, threshold: float, drift: Drift, *, trusted: bool) -> str:
    """What would decide an inconclusive verdict."""
    if kind != "inconclusive":
        return ""
    if not trusted:
        return (
            f"the difference of the GPU temperatures may be worth {signed(math.expm1(drift.leakage))}, which would "
            "make it another verdict: bring the board to the baseline's temperature (warm-up rounds)"
        )
    return (
        f"this comparison can tell changes from {percent(estimate.resolvable(threshold), 2)} on; more stored runs of "
        "the baseline or more rounds would tell smaller ones"
    )


def averages(runs: Sequence[MeasurementRecord]) -> dict[str, float]:
    """The geometric mean of each figure that every run has."""
    each = [figures(run.rounds) for run in runs]
    return {
        name: math.exp(sum(math.log(one[name].value) for one in each) / len(each))
        for name in each[0]
        if all(name in one for one in each)
    }


def _estimates(
    new: Sequence[MeasurementRecord],
    runs: Sequence[MeasurementRecord],
    prior: Prior,
    occasion_share: float,
) -> tuple[Estimate, Estimate | None, str]:
    """The comparison as read, and at a common temperature where both sides' temperatures allow it; or why not."""
    old = len(runs)
    values = [log_joules_per_token(one.rounds, denominator(one.key)) for one in (*runs, *new)]
    errors = [log_errors(one.rounds, denominator(one.key)) for one in (*runs, *new)]
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
        if name not in values:
            verdicts.append(
                VerdictRecord(
                    "inconclusive",
                    name,
                    reason=f"{name} is not known from this measurement",
                    threshold=ceiling,
                )
            )
            continue
        if name == "peak_watts":
            peak = max(values[name])
            kind = "over budget" if peak > ceiling else "passed"
            verdicts.append(
                VerdictRecord(kind, name, value=peak, change=peak / ceiling - 1, threshold=ceiling)
            )
            continue
        [summary] = summarise_runs(
            [[math.log(value) for value in values[name]]],
            meter_errors_per_run=[errors] if (errors := meter_errors(measurement.rounds, name)) else None,
            prior=prior,
        )
        estimate = compare_constant([summary], ceiling, prior)
        low, high = estimate.change_interval()
        verdicts.append(
            VerdictRecord(
                decide_budget(estimate),
                name,
                value=ceiling * (1 + estimate.change),
                change=estimate.change,
                change_low=low,
                change_high=high,
                p_value=estimate.p_above(),
                threshold=ceiling,
            )
        )
    return tuple(verdicts)


def judge_variants(
    restarts: Sequence[Sequence[float]],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    names: tuple[str, str] | None = None,
    prior: Prior = DEFAULT_PRIOR,
) -> VerdictRecord:
    """Judge a candidate that must save ``at_least`` or cost ``at_most`` so much (fractions).

    at_least: over budget where the saving is surely smaller, passed where it is surely as large, inconclusive in
    between. at_most: regressed, passed, improved or inconclusive as against a stored baseline.

    Args:
        restarts: per restart the differences of its ABBA blocks, ln J/token of the candidate less the baseline's.
        at_least: the saving that is asked for.
        at_most: the cost that is allowed; 0 where neither is given.
        names: what the message calls the baseline and the candidate.
        prior: what is believed of the noise.
    """
    estimate = estimate_difference(restarts, prior)
    low, high = estimate.change_interval()
    if at_least is not None:
        bound = math.log1p(-at_least)
        if estimate.p_above(bound) < 0.05 and estimate.delta > bound:
            kind = "over budget"
        else:
            kind = "passed" if estimate.upper() < bound else "inconclusive"
        threshold = -at_least
    else:
        threshold = 0.0 if at_most is None else at_most
        kind = decide(estimate, threshold)
    return VerdictRecord(
        kind=kind,
        against=OTHER_VARIANT,
        change=estimate.change,
        change_low=low,
        change_high=high,
        p_value=estimate.p_below() if estimate.change < 0 else estimate.p_above(),
        threshold=threshold,
        resolvable=estimate.resolvable(abs(threshold)),
        runs=estimate.new_runs,
        blocks=sum(map(len, restarts)),
        names=names,
    )


def estimate_difference(restarts: Sequence[Sequence[float]], prior: Prior = DEFAULT_PRIOR) -> Estimate:
    """Estimate the difference of two variants over all restarts, by the moderated t with restarts as units."""
    summaries = summarise_blocks(restarts, prior)
    return compare_interleaved(
        [summary.location for summary in summaries], [summary.squared_error for summary in summaries], prior
    )


def settle(
    measurements: Sequence[MeasurementRecord], alpha: float = 0.05
) -> dict[tuple[str, str], VerdictRecord]:
    """The comparisons that Holm's rule over the whole run turns from undecided into regressed.

    By test and baseline. The first step of the rule was taken when each test ended (:func:`judge`); the
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
            settled[test, verdict.against] = msgspec.structs.replace(
                verdict, kind="regressed", undecided="", notes=(*verdict.notes, SETTLED)
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
