"""JUnit properties of an energy test: scalars only, with units in their names."""

from __future__ import annotations

from pytest_tokenpower.core.records import MeasurementRecord, ScopeFigure
from pytest_tokenpower.gate.verdict import against_baseline, gravest


def scope_label(scope: ScopeFigure, measured: MeasurementRecord) -> str:
    """Return the name of another scope: a modelled joule along with a measured one says so in it."""
    other = scope.provenance not in measured.provenance.split("+")
    return f"{scope.scope}_{scope.provenance}" if other else scope.scope


def properties(measured: MeasurementRecord) -> list[tuple[str, object]]:
    """``energy.joules_per_token`` and the like, each with its standard error, and the verdict."""
    rows: list[tuple[str, object]] = [
        ("energy.provenance", measured.provenance),
        ("energy.scope", measured.scope),
        ("energy.method", measured.method),
        ("energy.rounds", sum(not one.reasons for one in measured.rounds)),
    ]
    for name, figure in measured.figures.items():
        rows += [(f"energy.{name}", figure.value), (f"energy.{name}_stderr", figure.stderr)]
    for scope in measured.other_scopes:
        joules, figure_name = scope.compared(measured.key)
        if joules is not None:
            name = f"energy.{scope_label(scope, measured)}_{figure_name}"
            rows += [(name, joules.value), (f"{name}_stderr", joules.stderr)]
    verdict = gravest(measured.verdicts)
    if verdict is not None:
        rows.append(("energy.verdict", verdict.kind))
    compared = against_baseline(measured.verdicts)
    if compared is not None and compared.change is not None:
        rows.append(("energy.change", compared.change))
    return rows
