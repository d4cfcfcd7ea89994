"""From what a test ran to its measurement, key and verdicts: the last stretch before the record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pytest_tokenpower.analysis import rounds as analysis
from pytest_tokenpower.analysis.calibration import track_of
from pytest_tokenpower.analysis.figures import figures
from pytest_tokenpower.analysis.other_scopes import Beside
from pytest_tokenpower.analysis.phases import phase_facts
from pytest_tokenpower.core.records import GateRecord, MeasurementRecord, RoundRecord, VerdictRecord
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.gate.acceptance import allowed_change, with_acceptance
from pytest_tokenpower.gate.verdict import judge_baseline, judge_ceilings
from pytest_tokenpower.runner.checks import declared_config
from pytest_tokenpower.store.baseline import stored_runs
from pytest_tokenpower.store.keys import make_key

if TYPE_CHECKING:
    from pytest_tokenpower.core.settings import Limits
    from pytest_tokenpower.core.windows import RoundWindow
    from pytest_tokenpower.engines.protocol import EngineIdentity
    from pytest_tokenpower.runner.compare import Comparison
    from pytest_tokenpower.runner.session import Session
    from pytest_tokenpower.runner.telemetry import TelemetrySession


@dataclass(frozen=True)
class Attempt:
    """What one try of a test ran under measurement: a plugin that reruns failing tests makes several."""

    windows: tuple[RoundWindow, ...]
    comparison: Comparison | None = None


@dataclass(frozen=True)
class MeasuredTest:
    """What a test ran under measurement, in all its tries that are judged together: one process, so one run.

    ``repeated`` tells rounds that the plugin ran from blocks that the test entered itself. ``identity``, ``declared``
    and ``workload`` are what is known of the engine, of its axes that the key holds, and of the work's fingerprint;
    ``notes`` are facts that its last result told.
    """

    test: str
    telemetry: TelemetrySession
    attempts: tuple[Attempt, ...]
    repeated: bool
    identity: EngineIdentity | None
    declared: Mapping[str, Fact]
    workload: str | None
    notes: Mapping[str, Fact] = field(default_factory=dict)

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


def finish(taken: MeasuredTest, budget: Limits, session: Session, *, failed: bool) -> MeasurementRecord:
    """The measurement with its verdicts; ``failed``: the test failed by itself, so there are none."""
    telemetry = taken.telemetry
    windows = taken.windows
    if taken.comparison is None:
        windows = tuple(window for each in taken.attempts for window in telemetry.resolved(each.windows))
    records = telemetry.assess(windows) if windows else ()
    least = 1 if telemetry.slow or not taken.repeated else min(budget.min_rounds, budget.max_rounds)
    reasons = ("the test failed by itself",) if failed else analysis.flagged_too_often(records, least)
    alone = bool(reasons) or taken.comparison is not None
    beside = Beside(records) if alone else telemetry.beside(windows, records)
    timeline = telemetry.collector.timeline
    tracks = [track_of(timeline, device) for device in telemetry.devices_in_use(taken.windows)]
    method = " + ".join(sorted({track.method for track in tracks if track is not None}))
    measured = MeasurementRecord(
        test=taken.test,
        key=_key(taken, method),
        facts={**_facts(taken, windows, records), **beside.facts},
        provenance=telemetry.provenance,
        scope=telemetry.scope,
        method=method,
        rounds=beside.rounds,
        comparable=not reasons,
        reasons=reasons,
        figures={} if reasons else {**figures(records), **beside.figures},
        gate=GateRecord(budget.regression or session.settings.regression, session.settings.baseline_runs),
    )
    if taken.comparison is not None:
        measured = _compared(taken.comparison, measured, failed=failed)
    elif not failed:
        verdicts = _verdicts(measured, budget, session)
        if any(verdict.kind == "no baseline" for verdict in verdicts):
            verdicts = _unlost(
                verdicts, taken, measured, (*session.settings.key_ignore, *budget.key_ignore), session
            )
        measured = replace(measured, verdicts=verdicts)
    return _pooled(measured, len(taken.attempts))


def _unlost(
    verdicts: Sequence[VerdictRecord],
    taken: MeasuredTest,
    measured: MeasurementRecord,
    ignore: Sequence[str],
    session: Session,
) -> tuple[VerdictRecord, ...]:
    """The verdicts, invalid where a try had a baseline that all tries together have not: their tokens differ.

    Otherwise a test that has regressed would pass by generating another number of tokens when it is run again.
    """
    if len({_counts(each.windows) for each in taken.attempts}) == 1:
        return tuple(verdicts)
    keys = [_key(dataclasses.replace(taken, attempts=(each,)), measured.method) for each in taken.attempts]
    lost = {
        baseline.label
        for baseline in session.baselines
        if any(baseline.find(measured.test, key, ignore).runs for key in keys)
    }
    return tuple(
        replace(
            each,
            kind="invalid",
            message=f"an attempt could be compared with {each.against}, and all attempts together cannot: they "
            "generated different numbers of tokens",
        )
        if each.kind == "no baseline" and each.against in lost
        else each
        for each in verdicts
    )


def _pooled(measured: MeasurementRecord, attempts: int) -> MeasurementRecord:
    """Say in each verdict over how many tries it is."""
    if attempts == 1:
        return measured
    earlier = "an earlier attempt" if attempts == 2 else f"{attempts - 1} earlier attempts"
    said = f"  Pooled with {earlier} of this run."
    verdicts = tuple(replace(each, message=f"{each.message}\n{said}") for each in measured.verdicts)
    return replace(measured, attempts=attempts, verdicts=verdicts)


def _compared(comparison: Comparison, both: MeasurementRecord, *, failed: bool) -> MeasurementRecord:
    """The candidate's rounds as the measurement, the baseline's beside them; never a stored baseline itself."""
    candidate = comparison.of_variant("candidate", both.rounds)
    return replace(
        both,
        rounds=candidate,
        variants={"baseline": comparison.of_variant("baseline", both.rounds)},
        comparable=False,
        figures=figures(candidate) if not failed and not both.reasons else {},
        verdicts=() if failed else (comparison.judge(both.rounds),),
    )


def _key(taken: MeasuredTest, method: str) -> dict[str, Fact]:
    identity, counts = taken.identity, _counts(taken.windows)
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
        tokens=next(iter(counts)) if len(counts) == 1 else None,
    )


def _made_up(identity: EngineIdentity) -> str | None:
    """What the weights are where they are not a model's own; which model's own they are is no matter of the key."""
    weights = identity.axes.get("weights")
    return str(weights) if weights in ("random", "dummy") else None


def _facts(
    taken: MeasuredTest, windows: Sequence[RoundWindow], records: Sequence[RoundRecord]
) -> dict[str, Fact]:
    telemetry, identity = taken.telemetry, taken.identity
    facts: dict[str, Fact] = {}
    if len(_counts(taken.windows)) > 1:
        facts["token_counts"] = "differ between executions"
    if taken.comparison is None and any(window.phases for window in windows):
        devices = telemetry.devices_in_use(windows)
        facts |= phase_facts(telemetry.collector.timeline, devices, windows, records)
    facts |= taken.notes
    shown = (*telemetry.devices_of_key(taken.windows), *telemetry.others)
    for device in {device.id: device for device in shown}.values():
        facts |= {f"{device.id}.{name}": value for name, value in device.facts.items()}
    if identity is not None:
        facts["engine_version"] = identity.version
        facts |= {f"engine.{name}": value for name, value in {**identity.facts, **identity.axes}.items()}
    return facts | {f"beside.{name}.absent": reason for name, reason in telemetry.notes.items()}


def _counts(windows: Sequence[RoundWindow]) -> frozenset[TokenCount]:
    """The token counts of single executions; where only a round's sum is known, it is shared out evenly."""
    counts: set[TokenCount] = set()
    for window in windows:
        tokens, repeats = window.tokens, window.repeats
        shared = TokenCount(
            tokens.prompt // repeats, tokens.generated // repeats, tokens.responses // repeats
        )
        counts |= window.executions or {shared}
    return frozenset(counts)


def _verdicts(measured: MeasurementRecord, budget: Limits, session: Session) -> tuple[VerdictRecord, ...]:
    if measured.reasons:
        reasons = "; ".join(measured.reasons)
        return (VerdictRecord("invalid", f"the measurement is not to be trusted: {reasons}"),)
    settings = session.settings
    verdicts = list(judge_ceilings(measured, budget.ceilings))
    ignore = (*settings.key_ignore, *budget.key_ignore)
    limit = budget.regression or settings.regression
    for baseline in session.baselines:
        stored = stored_runs(baseline, measured, ignore)
        verdict = judge_baseline(
            measured,
            stored,
            allowed_change(limit, stored),
            session.prior(baseline, measured.test, measured.key),
            family=session.family,
            look=1 if settings.restarts else None,
        )
        verdicts.append(with_acceptance(verdict, stored, limit))
    if settings.rerun_baseline:
        # Its runs are judged by the child processes; what is measured here asked for the fixture in its body.
        against = ", ".join(settings.baselines)
        verdicts.append(
            VerdictRecord("no baseline", f"nothing to compare with on {against}: {_UNSEEN}", against)
        )
    return tuple(verdicts)


_UNSEEN = (
    "--energy-rerun-baseline did not see beforehand that this test measures: name `energy` as its argument, or give it "
    "a power_budget"
)
