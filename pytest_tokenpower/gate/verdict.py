"""From a measurement, a baseline and a budget to verdicts. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import msgspec

from pytest_tokenpower.analysis.figures import figures, meter_errors, round_values
from pytest_tokenpower.analysis.rounds import good, lacking
from pytest_tokenpower.core.denominators import denominator, figure_per
from pytest_tokenpower.core.records import OTHER_VARIANT, ChangeRecord, MeasurementRecord, VerdictRecord
from pytest_tokenpower.core.settings import CEILINGS, DEFAULT_ALPHA, LATENCIES
from pytest_tokenpower.gate import remarks
from pytest_tokenpower.gate.acceptance import acceptance_notes, allowed_change, made_use, next_step
from pytest_tokenpower.gate.equal_lengths import EqualLengths, at_equal_lengths
from pytest_tokenpower.gate.evidence import Boards, calibrations_of, runs_of, waiting_of
from pytest_tokenpower.gate.operating_point import compare_conditions
from pytest_tokenpower.gate.priors import Priors
from pytest_tokenpower.stats import rule
from pytest_tokenpower.stats.change import Change
from pytest_tokenpower.stats.comparison import (
    Blocks,
    Run,
    compare,
    compare_blocks,
    compare_ceiling,
    compare_figures,
)
from pytest_tokenpower.stats.lengths import TOLERANCE
from pytest_tokenpower.stats.levels import split_levels
from pytest_tokenpower.stats.pace import Waiting
from pytest_tokenpower.stats.scatter import DEFAULT_NOISE, Noise
from pytest_tokenpower.store.baseline import Baseline, ComparableRuns
from pytest_tokenpower.store.explain import accept_command
from pytest_tokenpower.store.keys import ignoring

SEVERITY = (
    "invalid", "regressed", "over budget", "below floor", "doubtful", "inconclusive", "no baseline", "improved",
    "passed",
)  # fmt: skip
"""Verdicts, the gravest first: the one that a test is shown with. Doubtful is none that a run ends with."""

LOOKS = 3
"""How often a comparison is looked at where it may be restarted: the run itself, then after each of two restarts."""

FAILING = frozenset({"invalid", "regressed", "over budget", "below floor"})

PARTS = ("decode_joules_per_token", "prefill_joules_per_token")
"""Where a change of joules per token is looked for."""

SETTLED = "Settled with all comparisons of this run (Holm)."


@dataclass(frozen=True)
class Policy:
    """What a test is judged by.

    Attributes:
        regression_limit: the rise that fails it, as a fraction.
        key_ignore: patterns of key fields in which the baseline may differ.
        family: in how many ways the whole run can fail.
        alpha: how often a run of identical code may fail, over all of them.
        priors: what is known of the noise of the baseline's other tests.
        boards: what calibrations tell of the boards.
        length_tolerance: how far token counts may lie apart, as a share, where the key's do not agree.
        left_out: ids of runs that are no baseline: those that are judged themselves.
    """

    regression_limit: float
    key_ignore: tuple[str, ...] = ()
    family: int = 1
    alpha: float = DEFAULT_ALPHA
    priors: Priors = field(default_factory=Priors)
    boards: Boards = field(default_factory=Boards)
    length_tolerance: float = TOLERANCE
    left_out: frozenset[str] = frozenset()

    def of_rule(self, limit: float, look: int | None = None) -> rule.Policy:
        """Return the same for the statistics; ``look`` None: there is only one."""
        looks = {} if look is None else {"look": look, "looks": LOOKS}
        return rule.Policy(limit, alpha=self.alpha, family=max(self.family, 1), **looks)


def judge(
    measurement: MeasurementRecord,
    baseline: Baseline | ComparableRuns,
    policy: Policy,
    *,
    restarts: Sequence[MeasurementRecord] = (),
    look: int | None = None,
    noise: Noise = DEFAULT_NOISE,
) -> VerdictRecord:
    """Judge a measurement by its total, work and pace, with runs, occasions and boards as units: the gate's only door.

    A single test cannot wait for the others: it is decided with ``policy.family`` times its own p, the first step of
    Holm's rule, so that no later result can take the decision back. What Holm's later steps add is settled when the
    run ends (:func:`settle`).

    Args:
        measurement: what is judged.
        baseline: stored runs, of which the comparable ones are found here; or runs that were found already.
        policy: what it is judged by.
        restarts: further runs of the same code in fresh processes; those on other boards are left out.
        look: which of LOOKS looks this is, where a comparison may be restarted: its p is then what it is worth when
            all looks are counted (O'Brien & Fleming's levels), and before the last one "doubtful" takes the place of
            an "inconclusive" that restarts may settle. None: there is only this one.
        noise: what is believed of the scatter where runs are given; a baseline's other tests tell it.
    """
    if isinstance(baseline, Baseline):
        stored = baseline.find(measurement.test, measurement.key, policy.key_ignore, policy.left_out)
        noise = policy.priors.of(baseline, measurement, policy.boards)
    else:
        stored = baseline
    if not stored.runs:
        return VerdictRecord(
            "no baseline", against=stored.label, reason=stored.why, threshold=policy.regression_limit
        )
    limit = allowed_change(policy.regression_limit, stored)
    old = _Stored.of(stored)
    fresh = (measurement, *restarts)
    every = runs_of([*old.records, *fresh])
    lengths = EqualLengths.unchanged(every[: len(old.records)])
    if not any(
        "generated_tokens" not in ignoring({"generated_tokens": 1}, [each]) for each in policy.key_ignore
    ):
        lengths = at_equal_lengths(lengths.runs, old.records, measurement, policy.length_tolerance)
    if not any(old.levels[at] == old.levels[-1] for at in lengths.kept):
        return VerdictRecord(
            "no baseline",
            against=stored.label,
            reason=f"not comparable: {lengths.refusal}",
            threshold=policy.regression_limit,
        )
    # Lengths first: a change of them would look like a step of the level.
    side = _Sides.of(old.only(lengths.kept), lengths.runs, fresh, every[len(old.records) :], noise)
    found = compare(
        side.level,
        side.new,
        noise,
        earlier=side.before,
        waiting=waiting_of(side.records, policy.boards),
        calibrations=calibrations_of(side.records, policy.boards),
        extra_squared_error=lengths.squared_error,
    )
    decision = rule.decide(found, policy.of_rule(limit, look))
    drift = compare_conditions(side.new_records, side.level_records, found.temperature.refused)
    kind: str = "invalid" if drift.invalid else decision.kind
    if kind == "inconclusive" and look is not None and look < LOOKS and not decision.reason:
        kind = "doubtful"
    here, there = averages(side.new_records), averages(side.level_records)
    low, high = found.total.change_interval()
    figure = figure_per(denominator(measurement.key))
    return VerdictRecord(
        kind=kind,
        against=stored.label,
        reason=drift.invalid,
        figure=figure,
        value=here[figure],
        baseline_value=there[figure],
        change=found.total.change,
        change_low=low,
        change_high=high,
        raw_change=found.raw.change,
        work=None if found.work is None else _record(found.work),
        pace=None if found.pace is None else ChangeRecord(found.pace.delta, *found.pace.interval()),
        decided_by=decision.part,
        family=policy.family,
        # Holm's rule over the run turns no comparison into a failure that its own conditions make worthless.
        p_value=None if drift.invalid else decision.p_failing,
        threshold=limit,
        resolvable=decision.resolvable,
        noise_floor=decision.smallest_failing,
        baseline_runs=tuple(reversed(side.run_ids)),
        runs=len(side.new),
        provisional=not found.known,
        changes={
            name: here[name] / there[name] - 1
            for name in (*PARTS, "mean_watts", "tokens_per_second")
            if name in here and name in there
        },
        means={name: here[name] for name in ("mean_watts", "tokens_per_second") if name in here},
        shown=_shown(side, noise),
        undecided=remarks.undecided(kind, found, decision, policy.family),
        accepted=made_use(found.total.change, policy.regression_limit, stored),
        next_step=next_step(stored, stored.test or measurement.test, found.total.change, high),
        notes=(
            *lengths.notes,
            *(side.step(stored, measurement.test) if side.cut else ()),
            *drift.lines,
            *remarks.of_comparison(found, side.left_out, side.started, policy.boards.stale),
            *([stored.note] if stored.note else []),
            *acceptance_notes(kind, found.total.change, policy.regression_limit, stored),
        ),
    )


@dataclass(frozen=True)
class _Stored:
    """Stored measurements, oldest first, each with the number of its accepted level (the last is the present one).

    ``run_ids`` are "" for runs of earlier levels, and for runs that have none.
    """

    records: tuple[MeasurementRecord, ...]
    levels: tuple[int, ...]
    run_ids: tuple[str, ...]

    @classmethod
    def of(cls, stored: ComparableRuns) -> _Stored:
        accepted = [
            *reversed([tuple(reversed(each)) for each in stored.earlier]),
            tuple(reversed(stored.runs)),
        ]
        levels = tuple(number for number, level in enumerate(accepted) for _ in level)
        ids = tuple(reversed(stored.run_ids)) or ("",) * len(stored.runs)
        return cls(
            tuple(one for level in accepted for one in level),
            levels,
            ("",) * (len(levels) - len(stored.runs)) + ids,
        )

    def only(self, kept: Sequence[int]) -> _Stored:
        """Return the same with the runs at these places."""
        return _Stored(
            *(tuple(column[at] for at in kept) for column in (self.records, self.levels, self.run_ids))  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class _Sides:
    """The runs of both sides, oldest first, cut into levels: the present one, and those before it.

    ``run_ids`` are those of the present level; ``cut`` stored runs of the accepted level lie before a step.
    """

    level: tuple[Run, ...]
    before: tuple[tuple[Run, ...], ...]
    new: tuple[Run, ...]
    records: tuple[MeasurementRecord, ...]
    level_records: tuple[MeasurementRecord, ...]
    new_records: tuple[MeasurementRecord, ...]
    left_out: int
    run_ids: tuple[str, ...]
    cut: int

    @classmethod
    def of(
        cls,
        stored: _Stored,
        runs: Sequence[Run],
        new: Sequence[MeasurementRecord],
        fresh: Sequence[Run],
        noise: Noise,
    ) -> _Sides:
        starts = [at for at in range(1, len(runs)) if stored.levels[at] != stored.levels[at - 1]]
        levels = split_levels(runs, starts=starts, noise=noise)
        present = levels[-1]
        first = len(runs) - len(present)
        kept = [at for at, run in enumerate(fresh) if run.board == fresh[0].board]
        return cls(
            present,
            levels[:-1],
            tuple(fresh[at] for at in kept),
            (*stored.records, *new),
            stored.records[first:],
            tuple(new[at] for at in kept),
            len(new) - len(kept),
            tuple(each for each in stored.run_ids[first:] if each),
            stored.levels[:first].count(stored.levels[-1]),
        )

    def step(self, stored: ComparableRuns, test: str) -> tuple[str, ...]:
        """Return what is to be said of the step that ends the level before."""
        before, now = (
            fmean(fmean(map(math.log, run.joules_per_token)) for run in level)
            for level in (self.before[-1], self.level)
        )
        change = math.expm1(now - before)
        commits = dict(zip(stored.run_ids, stored.commits, strict=False))
        since = commits.get(next(iter(self.run_ids), ""))
        command = accept_command(stored.test or test, change, since) if since else ""
        return remarks.of_step(self.cut, len(self.level), change, command)

    @property
    def started(self) -> tuple[float, ...]:
        """When the runs of the level began, as far as that is known."""
        return tuple(one.started for one in self.level_records if one.started is not None)


def _record(change: Change) -> ChangeRecord:
    return ChangeRecord(change.change, *change.change_interval())


def _shown(side: _Sides, noise: Noise) -> tuple[str, ...]:
    """Return the figures whose change is shown by their own interval: only those may be named as a cause."""
    values = [round_values(one.rounds) for one in (*side.level_records, *side.new_records)]
    names = (*PARTS, "mean_watts", "tokens_per_second")
    return tuple(
        name
        for name in names
        if all(name in each and min(each[name]) > 0 for each in values)
        and rule.shown(
            compare_figures(
                side.level, side.new, [[math.log(value) for value in each[name]] for each in values], noise
            )
        )
    )


def averages(runs: Sequence[MeasurementRecord]) -> dict[str, float]:
    """Return the geometric mean of each figure that every run has."""
    each = [figures(run.rounds) for run in runs]
    return {
        name: math.exp(sum(math.log(one[name].value) for one in each) / len(each))
        for name in each[0]
        if all(name in one for one in each)
    }


def judge_ceilings(
    measurement: MeasurementRecord, ceilings: Mapping[str, float], policy: Policy
) -> tuple[VerdictRecord, ...]:
    """Return the verdict on each absolute limit, by the same rule against a constant.

    ``quality`` is limited from below. ``peak_watts`` is a maximum, not a mean: the highest reading of the good rounds
    is held against the limit.
    """
    values = round_values(measurement.rounds)
    verdicts = []
    for name, ceiling in ceilings.items():
        if name == "quality":
            verdicts.append(_judge_quality(measurement, ceiling))
            continue
        if name not in values:
            verdicts.append(_unknown(measurement, name, ceiling, values))
            continue
        if name == "peak_watts":
            peak = max(values[name])
            kind = "over budget" if peak > ceiling else "passed"
            verdicts.append(
                VerdictRecord(kind, name, value=peak, change=peak / ceiling - 1, threshold=ceiling)
            )
            continue
        new = Run(tuple(values[name]), meter_errors=tuple(meter_errors(measurement.rounds, name)))
        found = compare_ceiling([new], ceiling)
        decision = rule.decide(found, policy.of_rule(0.0))
        low, high = found.total.change_interval()
        verdicts.append(
            VerdictRecord(
                _OF_CEILING.get(decision.kind, decision.kind),
                name,
                value=ceiling * (1 + found.total.change),
                change=found.total.change,
                change_low=low,
                change_high=high,
                p_value=decision.p_failing,
                family=policy.family,
                threshold=ceiling,
            )
        )
    return tuple(verdicts)


def _unknown(
    measurement: MeasurementRecord, name: str, ceiling: float, known: Mapping[str, Sequence[float]]
) -> VerdictRecord:
    """Return the verdict on a limit whose figure is not there: it fails where no run of this work can ever have it."""
    done = [one.record for one in good(measurement.rounds)]
    split = measurement.phase_split
    why = lacking(done, name, steps=split is not None and split.mixed_share is not None)
    if not why:
        return VerdictRecord(
            "inconclusive", name, reason=f"{name} is not known from this measurement", threshold=ceiling
        )
    asked = {figure: limit for limit, figure in LATENCIES.items()}
    others = [asked.get(figure, figure) for figure in (*CEILINGS, *asked) if figure in known]
    return VerdictRecord(
        "invalid",
        name,
        reason=f"power_budget({asked.get(name, name)}=...) limits a figure that this test never has: {why}. It has "
        f"{', '.join(others)}",
        threshold=ceiling,
    )


def _judge_quality(measurement: MeasurementRecord, floor: float) -> VerdictRecord:
    """Hold a score against its floor as it is: given questions are no sample, and greedy answers do not scatter."""
    score = measurement.figures.get("quality")
    if score is None:
        return VerdictRecord(
            "inconclusive",
            "quality",
            reason=str(
                measurement.facts.get("quality.absent", "no quality was given: call energy.quality(score)")
            ),
            threshold=floor,
        )
    kind = "below floor" if score.value < floor else "passed"
    return VerdictRecord(kind, "quality", value=score.value, change=score.value / floor - 1, threshold=floor)


_OF_CEILING = {"regressed": "over budget", "improved": "passed"}
"""What the rule says of a constant, in the words of a budget."""


def judge_variants(
    restarts: Sequence[Blocks],
    policy: Policy,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    names: tuple[str, str] | None = None,
    waiting: Waiting | None = None,
) -> VerdictRecord:
    """Judge a candidate that must save ``at_least`` or cost ``at_most`` so much (fractions).

    at_least: over budget where the saving is surely smaller, passed where it is surely as large, inconclusive in
    between. at_most: regressed, passed, improved or inconclusive as against a stored baseline.

    Args:
        restarts: the ABBA blocks of each restart.
        policy: of which family the comparison is one, and at which level it is decided.
        at_least: the saving that is asked for.
        at_most: the cost that is allowed; 0 where neither is given.
        names: what the message calls the baseline and the candidate.
        waiting: the waiting watts of the board.
    """
    found = compare_blocks(restarts, waiting=waiting)
    limit = -at_least if at_least is not None else (at_most or 0.0)
    decision = rule.decide(found, policy.of_rule(limit))
    low, high = found.total.change_interval()
    held = remarks.of_reason(found, decision)
    return VerdictRecord(
        kind="over budget" if at_least is not None and decision.kind == "regressed" else decision.kind,
        against=OTHER_VARIANT,
        change=found.total.change,
        change_low=low,
        change_high=high,
        work=None if found.work is None else _record(found.work),
        pace=None if found.pace is None else ChangeRecord(found.pace.delta, *found.pace.interval()),
        decided_by=decision.part,
        p_value=decision.p_failing,
        family=policy.family,
        threshold=limit,
        resolvable=decision.resolvable,
        noise_floor=decision.smallest_failing,
        runs=found.new_runs,
        blocks=sum(len(each.joules_per_token) for each in restarts),
        names=names,
        undecided=""
        if held or limit < 0
        else remarks.undecided(decision.kind, found, decision, policy.family, remarks.of_restarts(found)),
        notes=(*remarks.of_waiting(found), *held),
    )


def settle(
    measurements: Sequence[MeasurementRecord], alpha: float = DEFAULT_ALPHA
) -> dict[tuple[str, str], VerdictRecord]:
    """Return the verdicts that Holm's rule over the whole run turns from undecided into failures.

    By test and what it was held against: stored runs, the other variant or a ceiling. The first step of the rule was
    taken when each test ended (:func:`judge`); the later ones, which need every p, can only add failures.
    """
    members = [
        (measured.test, verdict, verdict.p_value)
        for measured in measurements
        for verdict in measured.verdicts
        if verdict.p_value is not None
    ]
    late = rule.settle([verdict.kind for _, verdict, _ in members], [p for _, _, p in members], alpha)
    settled = {}
    for (test, verdict, _), fails in zip(members, late, strict=True):
        if fails:
            ceiling = not verdict.baseline_runs and (
                verdict.against != OTHER_VARIANT or (verdict.threshold or 0.0) < 0
            )
            settled[test, verdict.against] = msgspec.structs.replace(
                verdict,
                kind="over budget" if ceiling else "regressed",
                undecided="",
                notes=(*verdict.notes, SETTLED),
            )
    return settled


def gravest(verdicts: Sequence[VerdictRecord]) -> VerdictRecord | None:
    """Return the verdict that a test is shown with; None where nothing was asked."""
    return min(verdicts, key=lambda verdict: SEVERITY.index(verdict.kind), default=None)


def against_baseline(verdicts: Sequence[VerdictRecord]) -> VerdictRecord | None:
    """Return the gravest verdict that compares with stored runs or with the other variant.

    None where there is no such one.
    """
    return gravest(
        [verdict for verdict in verdicts if verdict.baseline_runs or verdict.against == OTHER_VARIANT]
    )
