"""From what a test ran to its measurement, key and verdicts: the last stretch before the record."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pytest_tokenpower.analysis import rounds as analysis
from pytest_tokenpower.analysis.figures import figures, nodes_of
from pytest_tokenpower.analysis.other_scopes import OtherScopes
from pytest_tokenpower.core.denominators import denominator, followed
from pytest_tokenpower.core.records import (
    UNLIKE_BOARDS,
    Figure,
    GateRecord,
    MeasurementRecord,
    PhaseSplit,
    RoundRecord,
    VerdictRecord,
)
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.engines.phase_marks import PHASES_ABSENT
from pytest_tokenpower.gate.evidence import board_of, waiting_of
from pytest_tokenpower.gate.verdict import Policy, judge, judge_ceilings
from pytest_tokenpower.meters.remote import unlike_boards
from pytest_tokenpower.runner.checks import declared_config
from pytest_tokenpower.store.keys import make_key

if TYPE_CHECKING:
    from pytest_tokenpower.core.settings import Limits
    from pytest_tokenpower.core.windows import RoundWindow
    from pytest_tokenpower.engines.protocol import EngineIdentity
    from pytest_tokenpower.runner.compare import Comparison
    from pytest_tokenpower.runner.session import Session
    from pytest_tokenpower.runner.telemetry import TelemetrySession
    from pytest_tokenpower.store.baseline import Baseline
    from pytest_tokenpower.workloads.quality import Score


@dataclass(frozen=True)
class Attempt:
    """What one attempt at a test ran under measurement: a plugin that reruns failing tests makes several."""

    windows: tuple[RoundWindow, ...]
    comparison: Comparison | None = None


@dataclass(frozen=True)
class MeasuredTest:
    """What a test ran under measurement, in all its attempts that are judged together: one process, so one run.

    ``repeated`` tells rounds that the plugin ran from blocks that the test entered itself. ``identity``, ``declared``
    and ``workload`` are what is known of the engine, of its axes that the key holds, and of the work's fingerprint;
    ``notes`` are facts that its last result told, ``score`` is that of its answers, and ``soaked`` the verdict of a
    soak before its rounds.
    """

    test: str
    telemetry: TelemetrySession
    attempts: tuple[Attempt, ...]
    repeated: bool
    identity: EngineIdentity | None
    declared: Mapping[str, Fact]
    workload: str | None
    notes: Mapping[str, Fact] = field(default_factory=dict)
    score: Score | None = None
    soaked: VerdictRecord | None = None

    @property
    def windows(self) -> tuple[RoundWindow, ...]:
        """All rounds, in the order in which they ran."""
        return tuple(window for each in self.attempts for window in each.windows)

    @property
    def comparison(self) -> Comparison | None:
        """All blocks of ``energy.compare``; None where the test did not call it."""
        pooled = None
        for each in self.attempts:
            if each.comparison is not None:
                pooled = each.comparison if pooled is None else each.comparison.after(pooled)
        return pooled


FAILED = "the test failed by itself"


def failed_by_itself(measured: MeasurementRecord) -> MeasurementRecord:
    """Return the record of a test that turned out to have failed when it had been measured: nothing to compare with."""
    return replace(measured, comparable=False, reasons=(FAILED,), figures={}, other_scopes=(), verdicts=())


def finish(
    taken: MeasuredTest, limits: Limits, session: Session, *, failed: bool = False, judged: bool = True
) -> MeasurementRecord:
    """Make the record of what a test measured.

    Args:
        taken: what ran under measurement.
        limits: what the test declares.
        session: what the run is compared with.
        failed: the test failed by itself, so there are no verdicts.
        judged: compare with what it is to be compared with; a look at the figures alone is not.
    """
    telemetry = taken.telemetry
    windows = taken.windows
    if taken.comparison is None:
        windows = tuple(window for each in taken.attempts for window in telemetry.resolved(each.windows))
    evaluation = telemetry.evaluate(windows)
    least = 1 if telemetry.slow or not taken.repeated else min(limits.min_rounds, limits.max_rounds)
    reasons = (FAILED,) if failed else analysis.flagged_too_often(evaluation.records, least)
    key = _key(taken, evaluation.method, limits.per)
    if not reasons and (unknown := analysis.unknown_figure(evaluation.records, denominator(key))):
        reasons = (unknown,)
    if not reasons and taken.comparison is None:
        reasons = analysis.unsteady_cache(evaluation.records)
    alone = bool(reasons) or taken.comparison is not None
    others = OtherScopes(evaluation.records) if alone else telemetry.other_scopes(windows, evaluation.records)
    policy = session.policy(limits)
    facts = _facts(taken)
    if limits.prefix_cache:
        facts["prefix_cache.asked_for"] = True
    measured = MeasurementRecord(
        test=taken.test,
        key=key,
        facts=facts,
        provenance=telemetry.provenance,
        scope=telemetry.scope,
        method=evaluation.method,
        rounds=others.rounds,
        comparable=not reasons,
        reasons=reasons,
        figures={} if reasons else _figures(taken, evaluation.records, facts),
        other_scopes=(*others.scopes, *telemetry.missing_scopes),
        phase_split=_phase_split(taken, evaluation),
        attempts=len(taken.attempts),
        gate=GateRecord(policy.regression_limit, session.settings.baseline_runs),
        host=platform.node(),
        started=None if session.recording is not None else round(time.time(), 3),
    )
    if taken.comparison is not None:
        return _compared(taken, taken.comparison, measured, limits, policy, failed=failed)
    if failed or not judged:
        return measured
    return replace(measured, verdicts=_verdicts(taken, measured, limits, policy, session))


def _figures(
    taken: MeasuredTest, rounds: Sequence[RoundRecord], facts: Mapping[str, Fact]
) -> dict[str, Figure]:
    score = taken.score
    return figures(rounds, nodes_of(facts)) | (
        {} if score is None else {"quality": Figure(score.value, score.stderr)}
    )


def _phase_split(taken: MeasuredTest, evaluation: analysis.Evaluation) -> PhaseSplit | None:
    if (absent := taken.notes.get(PHASES_ABSENT)) is not None:
        return PhaseSplit(reason=str(absent))
    split = evaluation.split
    if taken.comparison is not None or not (split.mixed_share or split.refusal or split.split):
        return None
    return PhaseSplit(
        mixed_share=round(split.mixed_share, 4),
        condition=None if split.split is None else round(split.split.condition, 2),
        reason=split.refusal or "",
    )


def judge_again(measured: MeasurementRecord, limits: Limits, session: Session) -> MeasurementRecord:
    """Judge what an earlier process has measured by this run's baselines, limits and settings."""
    look = 1 if session.settings.restarts else None
    policy = session.policy(limits)
    verdicts = (
        *judge_ceilings(measured, limits.ceilings, policy),
        *(judge(measured, baseline, policy, look=look) for baseline in session.baselines),
    )
    return replace(
        measured,
        verdicts=verdicts,
        gate=GateRecord(policy.regression_limit, session.settings.baseline_runs),
    )


def _verdicts(
    taken: MeasuredTest, measured: MeasurementRecord, limits: Limits, policy: Policy, session: Session
) -> tuple[VerdictRecord, ...]:
    # Of its own stretches, whatever became of the rounds after it.
    soaked = () if taken.soaked is None else (taken.soaked,)
    if measured.reasons:
        reasons = "; ".join(measured.reasons)
        return (*soaked, VerdictRecord("invalid", reason=f"the measurement is not to be trusted: {reasons}"))
    look = 1 if session.settings.restarts else None
    pooled = _pooled(len(taken.attempts))
    judged = []
    for baseline in session.baselines:
        found = judge(measured, baseline, policy, look=look)
        if found.kind == "no baseline" and _had_baseline(taken, measured, limits, policy, baseline):
            found = VerdictRecord("invalid", baseline.label, reason=LOST.format(label=baseline.label))
        judged.append(found)
    if session.settings.rerun_baseline:
        # Its runs are judged by the child processes; what is measured here asked for the fixture in its body.
        judged.append(VerdictRecord("no baseline", ", ".join(session.settings.baselines), reason=UNSEEN))
    verdicts = (*judge_ceilings(measured, limits.ceilings, policy), *judged)
    return (*soaked, *(replace(each, notes=(*each.notes, *pooled)) for each in verdicts))


UNSEEN = (
    "--energy-rerun-baseline did not see beforehand that this test measures: name `energy` as its argument, or give it "
    "a power_budget"
)

LOST = (
    "an attempt could be compared with {label}, and all attempts together cannot: they generated different numbers of "
    "tokens"
)


def _had_baseline(
    taken: MeasuredTest, measured: MeasurementRecord, limits: Limits, policy: Policy, baseline: Baseline
) -> bool:
    """Tell whether an attempt alone can be compared, where all attempts together cannot, as their tokens differ.

    Otherwise a test that has regressed would pass by generating another number of tokens when it is run again.
    """
    if len({_counts(each.windows) for each in taken.attempts}) == 1:
        return False
    at = 0
    for each in taken.attempts:
        rounds = measured.rounds[at : at + len(taken.telemetry.resolved(each.windows))]
        at += len(rounds)
        if not analysis.good(rounds):
            continue
        key = _key(dataclasses.replace(taken, attempts=(each,)), measured.method, limits.per)
        if judge(replace(measured, key=key, rounds=rounds), baseline, policy).kind != "no baseline":
            return True
    return False


def _pooled(attempts: int) -> tuple[str, ...]:
    """Say over how many attempts a verdict is."""
    if attempts == 1:
        return ()
    earlier = "an earlier attempt" if attempts == 2 else f"{attempts - 1} earlier attempts"
    return (f"Pooled with {earlier} of this run.",)


def _compared(
    taken: MeasuredTest,
    comparison: Comparison,
    both: MeasurementRecord,
    limits: Limits,
    policy: Policy,
    *,
    failed: bool,
) -> MeasurementRecord:
    """Return the candidate's rounds as the measurement, the baseline's beside them; never a stored baseline itself."""
    candidate = comparison.of_variant("candidate", both.rounds)
    waiting = waiting_of([both], policy.boards).get(board_of(both))
    verdict = comparison.judge(both.rounds, denominator(both.key), policy, waiting)
    measured = replace(
        both,
        rounds=candidate,
        variants={"baseline": comparison.of_variant("baseline", both.rounds)},
        comparable=False,
        figures=_figures(taken, candidate, both.facts) if not failed and not both.reasons else {},
    )
    if failed:
        return measured
    ceilings = () if both.reasons else judge_ceilings(measured, limits.ceilings, policy)
    pooled = _pooled(both.attempts)
    return replace(
        measured, verdicts=tuple(replace(each, notes=(*each.notes, *pooled)) for each in (verdict, *ceilings))
    )


def _key(taken: MeasuredTest, method: str, per: str | None) -> dict[str, Fact]:
    identity, counts = taken.identity, _counts(taken.windows)
    tokens = [window.tokens for window in taken.windows]
    return make_key(
        devices=taken.telemetry.devices_of_key(taken.windows),
        provenance=taken.telemetry.provenance,
        scope=taken.telemetry.scope,
        method=method,
        engine=identity.engine if identity else None,
        engine_version=identity.version if identity else None,
        model=identity.model if identity else None,
        weights=_made_up(identity) if identity else None,
        axes=declared_config(taken.declared, identity) if identity else None,
        workload=taken.workload,
        denominator=per
        or followed(
            generated=sum(one.generated for one in tokens),
            prefilled=sum(one.prompt - one.cached_prompt for one in tokens),
        ),
        tokens=counts,
        cached_share=sum(one.cached_prompt for one in tokens) / max(sum(one.prompt for one in tokens), 1),
    )


def _made_up(identity: EngineIdentity) -> str | None:
    """Return what the weights are where they are not a model's own.

    Which model's own they are is no matter of the key.
    """
    weights = identity.axes.get("weights")
    return str(weights) if weights in ("random", "dummy") else None


def _facts(taken: MeasuredTest) -> dict[str, Fact]:
    telemetry, identity = taken.telemetry, taken.identity
    facts: dict[str, Fact] = {}
    if len(_counts(taken.windows)) > 1:
        facts["token_counts"] = "differ between executions"
    facts |= {name: value for name, value in taken.notes.items() if name != PHASES_ABSENT}
    if taken.score is not None:
        facts["quality.score"] = taken.score.name
    shown = (*telemetry.devices_of_key(taken.windows), *telemetry.others)
    for device in {device.id: device for device in shown}.values():
        facts |= {f"{device.id}.{name}": value for name, value in device.facts.items()}
    if unlike := unlike_boards(telemetry.devices_in_use(taken.windows)):
        facts[UNLIKE_BOARDS] = unlike
    if identity is not None:
        facts["engine_version"] = identity.version
        facts |= {f"engine.{name}": value for name, value in {**identity.facts, **identity.axes}.items()}
    return facts


def _counts(windows: Sequence[RoundWindow]) -> frozenset[TokenCount]:
    """Return the token counts of single executions; where only a round's sum is known, it is shared out evenly."""
    counts: set[TokenCount] = set()
    for window in windows:
        tokens, repeats = window.tokens, window.repeats
        shared = TokenCount(
            tokens.prompt // repeats, tokens.generated // repeats, tokens.responses // repeats
        )
        # What a prefix cache held is compared as a share.
        counts |= {dataclasses.replace(each, cached_prompt=0) for each in window.executions} or {shared}
    return frozenset(counts)
