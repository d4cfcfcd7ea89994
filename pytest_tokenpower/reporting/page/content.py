"""What the page shows, as plain JSON values: numbers for the drawings, sentences for everything else. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from pytest_tokenpower import __version__
from pytest_tokenpower.analysis.power_curves import DrawnCurve, PowerCurves, coarser
from pytest_tokenpower.analysis.rounds import joules_per_unit
from pytest_tokenpower.core.denominators import denominator, unit_of
from pytest_tokenpower.core.figures import FIGURES
from pytest_tokenpower.core.records import MeasurementRecord, RoundRecord, RunRecord, VerdictRecord
from pytest_tokenpower.core.text import per_token, plural, short_test_name, with_interval
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.gate.history import History, Series
from pytest_tokenpower.gate.messages import message, word
from pytest_tokenpower.gate.verdict import FAILING, against_baseline
from pytest_tokenpower.reporting.costs import cost_of, explained
from pytest_tokenpower.reporting.report import Report, Reported, parts_of_change
from pytest_tokenpower.reporting.suites import (
    claim_names,
    claims_news,
    found,
    soak_rows,
    soak_words,
    trade_offs,
)
from pytest_tokenpower.reporting.terminal import division
from pytest_tokenpower.stats.changepoints import ChangePoint
from pytest_tokenpower.store.access import when
from pytest_tokenpower.suites.soak import SoakBegun, Stretch, course, summarise

STEPS_OF_A_PAGE = 60_000
"""Steps of power in all curves together: a page of 200 tests has 300 for each and stays under 3 MB."""

MOST_STEPS, LEAST_STEPS = 6000, 200

SPANS_OF_A_PAGE, MOST_SPANS, LEAST_SPANS = 20_000, 1000, 60


def content(report: Report) -> dict[str, Any]:
    """Everything on the page. Times are seconds, power is watts, energy joules; shares are fractions."""
    entries = list(report)
    curves = sum(len(each.curves.devices) for each in entries if each.curves is not None)
    steps = _share(STEPS_OF_A_PAGE, curves, LEAST_STEPS, MOST_STEPS)
    spans = _share(SPANS_OF_A_PAGE, curves, LEAST_SPANS, MOST_SPANS)
    scopes = tuple(dict.fromkeys(each.measured.scope for each in entries))
    return {
        "version": __version__,
        "provenances": report.provenances,
        "runs": [_run(run) for run in report.runs],
        "currency": report.factors.currency if report.factors.priced else "",
        "carbon": report.factors.carbon is not None,
        "factors": explained(report.factors, scopes),
        "units": dict(FIGURES),
        "no_history": report.no_history,
        "claims_news": claims_news(report.claims),
        "claims": [
            [name, claim.says, found(claim), claim.paper, claim.word, claim.reason]
            for run in report.runs
            for name, claim in zip(claim_names(run.claims), run.claims, strict=True)
        ],
        "trade_offs": [row for run in report.runs for row in trade_offs(run.measurements)],
        "tests": [
            _test(each, report, report.runs.index(each.run), steps=steps, spans=spans) for each in entries
        ],
    }


def soak_content(begun: SoakBegun, stretches: Sequence[Stretch], limit: float | None) -> dict[str, Any]:
    """Everything on the page of a soak: what it came to in words, and its course over the hours."""
    found, drawn = summarise(stretches), course(stretches)
    said = soak_words(found, limit)
    columns = {
        "joules": drawn.joules_per_unit,
        "watts": drawn.watts,
        "celsius": drawn.celsius,
        "mhz": drawn.sm_clock_mhz,
        "gib": drawn.memory_gib,
    }
    return {
        **content(Report(())),
        "provenances": begun.provenance.split("+") if begun.provenance else [],
        "soak": {
            "test": begun.test,
            "about": [
                ["test", begun.test],
                ["began", begun.created[:16].replace("T", " ") + " UTC"],
                ["source of energy", begun.source],
                ["lasted", f"{found.hours:.3g} h in {plural(len(stretches), 'part')}"],
                *([["commit or work", begun.fingerprint[:12]]] if begun.fingerprint else []),
            ],
            "said": said,
            "unit": found.unit,
            "hours": [_digits(hour) for hour in drawn.hours],
            **{name: [_digits(value) for value in values] for name, values in columns.items()},
            "limited": {
                name: [_digits(100 * share) for share in shares] for name, shares in drawn.limited.items()
            },
            "steps": [_digits(hour) for hour, _ in found.steps],
            "drift": None if found.drift is None else found.drift.change.change,
            "head": soak_rows(found)[0],
            "rows": soak_rows(found)[1],
        },
    }


def _share(total: int, of: int, least: int, most: int) -> int:
    return max(least, min(most, total // max(of, 1)))


def _run(run: RunRecord) -> dict[str, Any]:
    return {
        "id": run.id,
        "created": run.created,
        "name": run.name,
        "commit": run.commit,
        "branch": run.branch,
        "dirty": run.dirty,
        "host": _facts(run.host),
        "versions": dict(run.versions),
        "command": " ".join(["pytest", *run.command]),
    }


def _facts(facts: Mapping[str, Fact]) -> dict[str, str]:
    return {name: str(value) for name, value in facts.items()}


def _test(each: Reported, report: Report, run: int, *, steps: int, spans: int) -> dict[str, Any]:
    measured = each.measured
    compared = against_baseline(measured.verdicts)
    cost, per = cost_of(measured, report.factors), denominator(measured.key)
    return {
        "run": run,
        "id": measured.test,
        "name": short_test_name(measured.test),
        "kind": each.kind,
        "word": word(each.kind),
        "failing": each.failing,
        "provenance": measured.provenance,
        "scope": measured.scope,
        "method": measured.method,
        "reasons": measured.reasons,
        "unit": each.unit,
        "main": None if each.figure is None else [each.figure.value, 1.96 * each.figure.stderr],
        "figures": {name: [figure.value, 1.96 * figure.stderr] for name, figure in measured.figures.items()},
        "estimated": any(phase.estimated for one in measured.rounds for phase in one.phases.values()),
        "change": None if compared is None else _interval(compared),
        "cost": None if cost is None else [cost.kwh, cost.money, cost.grams],
        "verdicts": [_verdict(verdict, measured) for verdict in measured.verdicts],
        "rounds": _rounds(measured.rounds, per),
        "more_rounds": [
            {"name": f"{name} variant", **_rounds(rounds, per)} for name, rounds in measured.variants.items()
        ]
        + [
            {"name": f"restart {number}, in a fresh process", **_rounds(rounds, per)}
            for number, rounds in enumerate(measured.restarts, 1)
        ],
        "attempts": measured.attempts,
        "also": list(_also(measured)),
        "key": _facts(measured.key),
        "facts": _facts(measured.facts),
        "power": None if each.curves is None else _power(coarser(each.curves, steps, spans), measured),
        "history": None
        if each.series is None or each.history is None
        else _history(each, each.history, each.series),
    }


def _interval(verdict: VerdictRecord) -> list[float | None] | None:
    if verdict.change is None:
        return None
    return [verdict.change, verdict.change_low, verdict.change_high]


def _verdict(verdict: VerdictRecord, measured: MeasurementRecord) -> dict[str, Any]:
    """Return a verdict in words, and its intervals as rows of a drawing: value, low, high, limit."""
    failing = verdict.kind in FAILING
    budget = verdict.against in FIGURES
    rows: list[dict[str, Any]] = []
    if (total := _interval(verdict)) is not None:
        rows.append(
            {
                "name": verdict.against if budget else "total",
                "interval": total,
                # Of a ceiling the change is that from the ceiling itself.
                "limit": 0.0 if budget else verdict.threshold,
            }
        )
        rows += [
            # Work alone can fail a test, too; pace cannot.
            {"name": name, "interval": list(part), "limit": verdict.threshold if name == "work" else None}
            for name, part in parts_of_change(verdict).items()
        ]
    return {
        "kind": verdict.kind,
        "word": word(verdict.kind),
        "failing": failing,
        "against": verdict.against,
        "budget": budget,
        "rows": rows,
        "message": message(verdict, measured.test, failing=failing),
        "baseline_runs": verdict.baseline_runs,
        "accepted": verdict.accepted,
    }


def _rounds(rounds: Sequence[RoundRecord], per: str) -> dict[str, Any]:
    """Columns over the rounds; ``at`` is when each began, in seconds from the first."""
    first = min((one.start_ns for one in rounds), default=0)
    reasons = list(dict.fromkeys(reason for one in rounds for reason in one.reasons))
    return {
        "at": [_digits((one.start_ns - first) / 1e9) for one in rounds],
        "seconds": [_digits(one.seconds) for one in rounds],
        "joules": [_digits(one.joules) for one in rounds],
        "per_unit": [_digits(joules_per_unit(one, per)) for one in rounds],
        "tokens": [[one.prompt_tokens, one.generated_tokens] for one in rounds],
        "celsius": [_digits(one.temperature_celsius) for one in rounds],
        "mhz": [_digits(one.sm_clock_mhz) for one in rounds],
        "reasons": reasons,
        "dropped": [[reasons.index(reason) for reason in one.reasons] for one in rounds],
    }


def _digits(value: float | None) -> float | None:
    """Six digits: more than anybody reads, and half the bytes."""
    return None if value is None else float(f"{value:.6g}")


def _also(measured: MeasurementRecord) -> Iterator[list[str]]:
    """Return what else was measured or known of it, as a heading and a sentence."""
    for scope in measured.other_scopes:
        figure, name = scope.compared(measured.key)
        said = f"not measured: {scope.reason}" if figure is None else per_token(figure.value, unit_of(name))
        if figure is not None and scope.provenance != "measured":
            said += f" ({scope.provenance}, not measured)"
        if scope.span_seconds is not None and scope.share_in_rounds is not None:
            said += f", over {scope.span_seconds:.0f} s, {scope.share_in_rounds:.0%} of it in rounds"
        yield [f"{scope.scope} energy", said]
    if (split := measured.phase_split) is not None:
        parts = []
        if split.mixed_share is not None:
            parts.append(f"{split.mixed_share:.2%} of the steps' energy was in mixed steps")
        parts.append(division(measured, split))
        yield ["prefill and decode", "; ".join(parts)]


def _power(curves: PowerCurves, measured: MeasurementRecord) -> dict[str, Any]:
    every = [*measured.rounds, *(one for rounds in measured.variants.values() for one in rounds)]
    offsets_us = [(one.start_ns - curves.start_ns) // 1000 for one in every]
    return {
        "devices": [_curve(curve) for curve in curves.devices],
        "spans": [_milliseconds(span.start_us, span.end_us, span.phase) for span in curves.spans],
        "shortest_ms": curves.shortest_us / 1000,
        "estimated": curves.estimated,
        "rounds": [
            _milliseconds(start_us, start_us + round(one.seconds * 1e6), bool(one.reasons))
            for one, start_us in zip(every, offsets_us, strict=True)
        ],
    }


def _milliseconds(start_us: int, end_us: int, *more: object) -> list[object]:
    return [start_us // 1000, math.ceil(end_us / 1000), *more]


def _curve(curve: DrawnCurve) -> dict[str, Any]:
    """Return a curve with its times as differences in milliseconds; a step that is one reading has no extremes."""
    ends = [end // 1000 for end in curve.end_us]
    bucketed = curve.bucketed
    found: dict[str, Any] = {
        "device": curve.device,
        "method": curve.method,
        "readings": curve.readings,
        "ends_ms": ends[:1] + [after - before for before, after in pairwise(ends)],
        "mean": [None if watts is None else round(watts) for watts in curve.mean],
    }
    if bucketed:
        found["low"] = [None if watts is None else math.floor(watts) for watts in curve.low]
        found["high"] = [None if watts is None else math.ceil(watts) for watts in curve.high]
    return found


def _history(each: Reported, history: History, series: Series) -> dict[str, Any]:
    """Return the stored runs as columns, oldest first, and this run after them where it is not one of them."""
    baseline = {run for verdict in each.measured.verdicts for run in verdict.baseline_runs}
    figure = each.figure
    stored = any(point.run_id == each.run.id for point in series.points)
    points = [
        [
            (point.commit or "")[:7],
            when(point.entry.created),
            *(_digits(value) for value in (point.value, *point.interval(), level)),
            point.verdict,
            "this run" if point.run_id == each.run.id else "baseline" if point.run_id in baseline else "",
        ]
        for point, level in zip(series.points, series.levels(), strict=True)
    ]
    if figure is not None and not stored:
        half = 1.96 * figure.stderr
        points.append(
            [
                (each.run.commit or "")[:7],
                each.run.created[:16].replace("T", " "),
                *(_digits(value) for value in (figure.value, figure.value - half, figure.value + half)),
                None,
                each.kind,
                "this run, not stored",
            ]
        )
    return {
        "line": history.line,
        "points": points,
        "steps": [_step(history, series, change) for change in series.changes],
    }


def _step(history: History, series: Series, change: ChangePoint) -> list[object]:
    """Where a step is, and a sentence on it."""
    commits = history.suspects(series, change)
    where = f"commits {commits[0][:7]} to {commits[-1][:7]}" if len(commits) > 1 else "".join(commits)[:7]
    return [
        change.index,
        with_interval(change.change, *change.change_interval()) + (f" by {where}" if where else ""),
    ]
