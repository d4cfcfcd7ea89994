"""What becomes of a suite's claims: ratios and shapes with their intervals, and a word for each. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from msgspec.structs import replace

from pytest_tokenpower.analysis.figures import meter_errors, round_values
from pytest_tokenpower.core.records import NOT_MEASURED, ClaimRecord, MeasurementRecord
from pytest_tokenpower.core.settings import DEFAULT_ALPHA, fraction
from pytest_tokenpower.core.text import listed, percent, signed
from pytest_tokenpower.stats.change import Change
from pytest_tokenpower.stats.multiplicity import holm
from pytest_tokenpower.stats.ratio import log_ratio
from pytest_tokenpower.stats.runs import summarise_runs
from pytest_tokenpower.stats.types import RunSummary
from pytest_tokenpower.suites.grid import Suite
from pytest_tokenpower.suites.instances import SHARE, Instance, instances, terms_of
from pytest_tokenpower.suites.pareto import cell_of
from pytest_tokenpower.suites.schema import Claim

CONFIRMED, REFUTED, NOT_TOLD, NOT_TESTABLE = "confirmed", "refuted", "not told", "not testable here"

BOARD_SCATTER = 0.015
"""What boards of one model differ by (standard deviation: four H100s 1.6 %, eight H200s 1.5 %)."""

Runs = Mapping[str, Sequence[MeasurementRecord]]
"""The measurements of each cell by its name, one a run."""

_Changes = Callable[[int, int | None], Change]
"""The change from one of an instance's cells (the second) to another (the first); without the second, the first."""


@dataclass(frozen=True)
class Evidence:
    """A change, and how surely it is as a claim has it: one-sided p for it and against it."""

    what: str
    change: Change
    p_for: float
    p_against: float


def runs_of(suite: Suite, measurements: Sequence[MeasurementRecord]) -> dict[str, list[MeasurementRecord]]:
    """Return the good measurements of each cell, found by the name of their test.

    Those of ``@run2`` and on are its, too.
    """
    known = {cell.name for cell in suite.cells}
    found: dict[str, list[MeasurementRecord]] = {}
    for one in measurements:
        name = cell_of(one).rpartition("::")[2]
        if name in known and one.comparable and one.figures:
            found.setdefault(name, []).append(one)
    return found


def judge_claims(
    suite: Suite, runs: Runs, file: str, alpha: float = DEFAULT_ALPHA
) -> tuple[ClaimRecord, ...]:
    """Judge all claims of a suite by what was measured of it.

    Args:
        suite: whose claims.
        runs: the measurements of its cells.
        file: its name in the records.
        alpha: how often a suite may confirm or refute a claim wrongly, over all its claims (Holm), as in the gate.
    """
    scatter = fraction("run_scatter", suite.table.suite.run_scatter)
    judged = [_judge(each, runs, file, scatter) for each in instances(suite)]
    adjusted = iter(holm([record.p_value for record in judged if record.p_value is not None]))
    return tuple(
        record if record.p_value is None else _settled(record, float(next(adjusted)), alpha)
        for record in judged
    )


def _settled(record: ClaimRecord, p_value: float, alpha: float) -> ClaimRecord:
    """Hold back the word where it is not sure among all claims; a word that is held back needs no reason."""
    if p_value < alpha:
        return replace(record, p_value=p_value)
    return replace(record, p_value=p_value, word=NOT_TOLD, reason="")


def _judge(instance: Instance, runs: Runs, file: str, scatter: float) -> ClaimRecord:
    claim, cells = instance.claim, instance.cells
    record = ClaimRecord(
        suite=file,
        name=instance.label,
        says=instance.says,
        word=NOT_TESTABLE,
        figure=claim.figure,
        paper=claim.paper,
        severity=claim.severity,
        runs=tuple(len(runs.get(cell.name, ())) for cell in cells),
    )
    if missing := [cell.name for cell in cells if not runs.get(cell.name)]:
        return replace(record, reason=f"{NOT_MEASURED}{listed(missing, 2)}")
    measured = [runs[cell.name] for cell in cells]
    kinds = {one.provenance for each in measured for one in each}
    if len(kinds) > 1:
        return replace(record, reason=f"{' and '.join(sorted(kinds))} figures are not compared")
    try:
        summaries = [[_summary(one, claim.figure) for one in each] for each in measured]
    except _Unknown as error:
        return replace(record, reason=str(error))
    notes = []
    alone = f"One process each: what processes differ by is not in its rounds; {percent(scatter)} is allowed for it."
    boards = [
        {name for one in each for part in one.rounds for name in part.device_joules} for each in measured
    ]
    if any(not (a & b) for a, b in pairwise(boards)):
        scatter = math.hypot(scatter, BOARD_SCATTER)
        notes.append("Measured on different boards: what boards differ by is in the interval.")
    if max(record.runs) == 1:
        notes.append(alone)

    def change(of: int, to: int | None) -> Change:
        return log_ratio(summaries[of], () if to is None else summaries[to], scatter)

    evidence, shown = (
        _ratio_evidence(claim, change) if claim.shape is None else _shape_evidence(instance, change)
    )
    # All parts must hold for it; a single one, among so many, speaks against it.
    p_for = max(each.p_for for each in evidence)
    p_against = min(1.0, len(evidence) * min(each.p_against for each in evidence))
    low, high = (1 + each for each in shown.change_interval())
    word = CONFIRMED if p_for < p_against else REFUTED
    worst = min(evidence, key=lambda each: each.p_against)
    points: tuple[tuple[float, float], ...] = ()
    if claim.shape is not None:
        points = tuple(
            (float(cell.values[str(claim.along)]), math.exp(sum(s.location for s in each) / len(each)))
            for cell, each in zip(cells, summaries, strict=True)
        )
    return replace(
        record,
        word=word,
        reason=f"{worst.what}: {signed(worst.change.change)}" if word == REFUTED and worst.what else "",
        ratio=1 + shown.change,
        low=low,
        high=high,
        p_value=min(1.0, 2 * min(p_for, p_against)),
        points=points,
        notes=tuple(notes),
    )


class _Unknown(Exception):
    """A figure that a cell does not have."""


def _share(measured: MeasurementRecord, scope: str) -> RunSummary:
    own = measured.figures["joules_per_token"]
    for other in measured.other_scopes:
        if other.scope == scope and (whole := other.joules_per_token) is not None:
            error = (own.stderr / own.value) ** 2 + (whole.stderr / whole.value) ** 2
            return RunSummary(math.log(own.value / whole.value), error, len(measured.rounds))
    raise _Unknown(f"no energy of the {scope} was measured along with {measured.test.rpartition('::')[2]}")


def _summary(measured: MeasurementRecord, figure: str) -> RunSummary:
    if figure.startswith(SHARE):
        return _share(measured, figure.removeprefix(SHARE))
    if figure == "quality" and (score := measured.figures.get("quality")) is not None and score.value > 0:
        return RunSummary(math.log(score.value), (score.stderr / score.value) ** 2, len(measured.rounds))
    values = round_values(measured.rounds)
    terms = terms_of(figure)
    for name in terms:
        if name not in values or min(values[name]) <= 0:
            raise _Unknown(f"{measured.test.rpartition('::')[2]} has no {name}")
    logs = [math.log(value) for value in values[terms[0]]]
    if len(terms) > 1:
        logs = [log - math.log(value) for log, value in zip(logs, values[terms[1]], strict=True)]
    errors = meter_errors(measured.rounds, figure)
    meter = [errors] if errors else None
    [summary] = summarise_runs([logs], meter_errors_per_run=meter)
    return summary


def _ratio_evidence(claim: Claim, change: _Changes) -> tuple[list[Evidence], Change]:
    found = change(0, None if claim.to is None else 1)
    evidence = []
    if claim.at_most is not None:
        limit = math.log(claim.at_most)
        evidence.append(Evidence("", found, found.p_below(limit), found.p_above(limit)))
    if claim.at_least is not None:
        limit = math.log(claim.at_least)
        evidence.append(Evidence("", found, found.p_above(limit), found.p_below(limit)))
    return evidence, found


def _shape_evidence(instance: Instance, change: _Changes) -> tuple[list[Evidence], Change]:
    claim, cells = instance.claim, instance.cells
    values = [int(cell.values[str(claim.along)]) for cell in cells]
    turn = len(cells) - 1 if claim.until is None else values.index(claim.until)
    evidence = _trend(claim, str(claim.shape), values, range(turn + 1), change)
    if claim.then is not None:
        evidence += _trend(claim, claim.then, values, range(turn, len(cells)), change)
    return evidence, change(turn, 0)


def _trend(
    claim: Claim, kind: str, values: Sequence[int], places: Sequence[int], change: _Changes
) -> list[Evidence]:
    def between(before: int, after: int) -> str:
        return f"{claim.along} {values[before]} to {values[after]}"

    if kind == "flat":
        limit = math.log1p(fraction("within", claim.flat_within))
        found = []
        for place in places[1:]:
            one = change(place, places[0])
            outside = min(one.p_above(limit), one.p_below(-limit))
            what = between(places[0], place)
            found.append(
                Evidence(what, one, max(one.p_below(limit), one.p_above(-limit)), min(1.0, 2 * outside))
            )
        return found
    steps = [(between(before, after), change(after, before)) for before, after in pairwise(places)]
    falls = kind == "falls"
    return [
        Evidence(
            what, one, one.p_below() if falls else one.p_above(), one.p_above() if falls else one.p_below()
        )
        for what, one in steps
    ]
