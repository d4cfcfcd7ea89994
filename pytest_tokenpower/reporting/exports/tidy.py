"""CSV for data frames: one row a test, one column a variable."""

from __future__ import annotations

import csv
from io import StringIO

from pytest_tokenpower.analysis.rounds import good
from pytest_tokenpower.core.figures import FIGURES
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.gate.verdict import against_baseline
from pytest_tokenpower.reporting.costs import cost_of, explained
from pytest_tokenpower.reporting.report import Report, Reported, parts_of_change

_FIRST = ("run", "created", "commit", "branch", "dirty", "test", "provenance", "scope", "method")

_PARAMETERS = ("param.", "axis.", "engine.")
"""Prefixes of what a test or its engine was set to."""


def csv_table(report: Report) -> str:
    """One row a test; what is not known of it is an empty cell, never 0.

    After what identifies the row come the test's parameters (``param.``), declared axes (``axis.``) and engine options
    (``engine.``), the other fields of its key, then figures with their standard errors, and the comparison.
    """
    rows = [_row(each, report) for each in report]
    names = dict.fromkeys(name for row in rows for name in row)
    fixed = [name for name in _FIRST if name in names]
    varied = sorted(name for name in names if name.startswith(_PARAMETERS))
    rest = [name for name in names if name not in fixed and name not in varied]
    out = StringIO()
    writer = csv.DictWriter(out, [*fixed, *varied, *rest], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _row(each: Reported, report: Report) -> dict[str, Fact]:
    run, measured = each.run, each.measured
    row: dict[str, Fact] = {
        "run": run.id,
        "created": run.created,
        "commit": run.commit,
        "branch": run.branch,
        "dirty": run.dirty,
        "test": each.test,
        "provenance": measured.provenance,
        "scope": measured.scope,
        "method": measured.method,
    }
    row |= {name: value for name, value in measured.facts.items() if name.startswith(_PARAMETERS)}
    row |= {name: value for name, value in measured.key.items() if name not in row}
    row |= {
        "comparable": measured.comparable,
        "rounds": len(measured.rounds),
        "rounds_dropped": len(measured.rounds) - len(good(measured.rounds)),
    }
    for name in FIGURES:
        if (figure := measured.figures.get(name)) is not None:
            row |= {name: figure.value, f"{name}_stderr": figure.stderr}
    for scope in measured.other_scopes:
        figure, name = scope.compared(measured.key)
        if figure is not None:
            row[f"{scope.scope}_{scope.provenance}_{name}"] = figure.value
    row["verdict"] = each.kind
    if (compared := against_baseline(measured.verdicts)) is not None:
        row |= {
            "baseline": compared.against,
            "compared_figure": compared.figure,
            "baseline_value": compared.baseline_value,
            "change": compared.change,
            "change_low": compared.change_low,
            "change_high": compared.change_high,
            "limit": compared.threshold,
        }
        for name, (change, low, high) in parts_of_change(compared).items():
            row |= {name: change, f"{name}_low": low, f"{name}_high": high}
    if (cost := cost_of(measured, report.factors)) is not None:
        row |= {
            "kwh_per_million_tokens": cost.kwh,
            "cost_per_million_tokens": cost.money,
            "currency": report.factors.currency if cost.money is not None else None,
            "gco2e_per_million_tokens": cost.grams,
            "cost_factors": " ".join(explained(report.factors, [measured.scope])),
        }
    return {name: value for name, value in row.items() if value is not None}
