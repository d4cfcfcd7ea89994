"""The columns of the terminal's table: what stands in each, in readable units, in which order, and what fits."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from pytest_tokenpower.core.denominators import PER, denominator, figure_per, unit_of
from pytest_tokenpower.core.figures import FIGURES
from pytest_tokenpower.core.records import MeasurementRecord
from pytest_tokenpower.core.settings import NO_FACTORS, Factors
from pytest_tokenpower.core.text import (
    EnergyUnit,
    digits,
    energy_unit,
    interval,
    names_told_apart,
    short_test_name,
    signed,
)
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.gate.messages import word
from pytest_tokenpower.gate.verdict import SEVERITY, against_baseline, gravest
from pytest_tokenpower.reporting.costs import Cost, cost_of

ESTIMATED = "~"
"""Stands before a phase's figure whose marks do not come from the engine itself."""

SORTS = ("run", "name", "joules_per_token", "change", "verdict")
GROUPS = ("none", "file", "func", "param")


class Layout(NamedTuple):
    """What ``--energy-columns``, ``--energy-sort`` and ``--energy-group-by`` ask for; no columns: those that fit.

    ``factors`` turn joules into the columns of cost and carbon.
    """

    columns: tuple[str, ...] = ()
    sort: str = "run"
    group_by: str = "none"
    factors: Factors = NO_FACTORS


@dataclass(frozen=True)
class _Column:
    heading: Callable[[EnergyUnit | None], str]
    cell: Callable[[MeasurementRecord, EnergyUnit | None], str]
    left: bool = False
    scale: str = ""
    """The figure whose value chooses the unit of a test's energy; those that are read together share one."""


def is_estimated(measured: MeasurementRecord) -> bool:
    """Tell whether phases of a test were marked from outside the engine."""
    return any(phase.estimated for one in measured.rounds for phase in one.phases.values())


def compared_figure(measured: MeasurementRecord) -> str:
    """Return the name of the figure that a test is compared by."""
    return figure_per(denominator(measured.key))


def _energy(figure: str, heading: str) -> _Column:
    scale = "joules_per_token" if figure.endswith("_token") else figure

    def cell(measured: MeasurementRecord, shared: EnergyUnit | None) -> str:
        if figure not in measured.figures:
            return ""
        unit = shared or _unit(measured, scale)
        # A phase whose marks are estimated is not shown as if the engine had told it.
        estimated = ESTIMATED if re.match("prefill|decode|between", figure) and is_estimated(measured) else ""
        number = digits(measured.figures[figure].value / unit.joules)
        return f"{estimated}{number}{'' if shared else f' {unit.name}'}"

    def headed(shared: EnergyUnit | None) -> str:
        return heading.replace("J", shared.name, 1) if shared else heading.replace("J/", "per ", 1)

    return _Column(headed, cell, scale=scale)


def _plain(figure: str, heading: str, form: str) -> _Column:
    return _Column(
        lambda _: heading,
        lambda measured, _: f"{measured.figures[figure].value:{form}}" if figure in measured.figures else "",
    )


def _latency(name: str) -> _Column:
    def cell(measured: MeasurementRecord, _: EnergyUnit | None) -> str:
        found = [measured.figures.get(f"{name}_p{at}_seconds") for at in (50, 99)]
        return "/".join(f"{1e3 * each.value:.3g}" for each in found if each)

    return _Column(lambda _: f"{name.upper()} ms", cell)


def _error(measured: MeasurementRecord, _: EnergyUnit | None) -> str:
    main = measured.figures.get(compared_figure(measured))
    return f"{196 * main.stderr / main.value:.1f} %" if main else ""


def _change(measured: MeasurementRecord, _: EnergyUnit | None) -> str:
    compared = against_baseline(measured.verdicts)
    return signed(compared.change) if compared and compared.change is not None else ""


def _interval(measured: MeasurementRecord, _: EnergyUnit | None) -> str:
    compared = against_baseline(measured.verdicts)
    if compared is None or compared.change_low is None or compared.change_high is None:
        return ""
    return interval(compared.change_low, compared.change_high)


def status(measured: MeasurementRecord) -> str:
    """Return a test's gravest verdict, or where it has none "failed" or "measured"."""
    verdict = gravest(measured.verdicts)
    return verdict.kind if verdict else "failed" if measured.reasons else "measured"


def _of_figure(name: str) -> _Column:
    if name in map(figure_per, PER):
        return _energy(name, unit_of(name))
    if FIGURES[name].startswith("J "):
        return _energy(name, name.replace("joules", "J", 1))
    return _plain(name, name, ".4g")


def _priced(heading: str, factors: Factors, amount: Callable[[Cost], float | None]) -> _Column:
    def cell(measured: MeasurementRecord, _: EnergyUnit | None) -> str:
        cost = cost_of(measured, factors)
        found = None if cost is None else amount(cost)
        return "" if found is None else f"{found:.3g}"

    return _Column(lambda _: heading, cell)


def _costs(factors: Factors) -> Mapping[str, _Column]:
    return {
        "cost": _priced(f"{factors.currency}/Mtok", factors, lambda cost: cost.money),
        "carbon": _priced("gCO2e/Mtok", factors, lambda cost: cost.grams),
    }


_DEFAULT: Mapping[str, _Column] = {
    "test": _Column(lambda _: "test", lambda measured, _: short_test_name(measured.test), left=True),
    "joules_per_token": _energy("joules_per_token", "J/token"),
    "error": _Column(lambda _: "±95 %", _error),
    "prefill": _energy("prefill_joules_per_token", "prefill"),
    "decode": _energy("decode_joules_per_token", "decode"),
    "watts": _plain("mean_watts", "W", ".0f"),
    "tokens_per_second": _plain("tokens_per_second", "tok/s", ".4g"),
    "ttft": _latency("ttft"),
    "tpot": _latency("tpot"),
    "quality": _plain("quality", "quality", ".3g"),
    "change": _Column(lambda _: "change", _change),
    "interval": _Column(lambda _: "95 % interval", _interval),
    **_costs(NO_FACTORS),
    "verdict": _Column(lambda _: "verdict", lambda measured, _: word(status(measured)), left=True),
}
_SPARED = (
    "tokens_per_second", "watts", "error", "ttft", "tpot", "prefill", "decode", "carbon", "cost", "interval"
)  # fmt: skip
"""The columns that go where the terminal is too narrow for all, in this order."""

COLUMNS: Mapping[str, _Column] = {**{name: _of_figure(name) for name in FIGURES}, **_DEFAULT}
"""Each column that ``--energy-columns`` can name: the table's own and every figure."""


def layout(columns: str, sort: str, group_by: str) -> Layout:
    """Read the three options.

    Args:
        columns: Names of COLUMNS with commas between them; empty for those that fit.
        sort: One of SORTS.
        group_by: One of GROUPS; ``param`` is a test's parameters as its id has them.

    Raises:
        UsageError: A value is none of these; the message lists the valid ones.
    """
    names = tuple(name.strip().replace("-", "_") for name in columns.split(",") if name.strip())
    if unknown := [name for name in names if name not in COLUMNS]:
        raise UsageError(f"--energy-columns: no column {unknown[0]}: valid are {', '.join(sorted(COLUMNS))}")
    if sort not in SORTS:
        raise UsageError(f"--energy-sort={sort}: must be one of {', '.join(SORTS)}")
    if group_by not in GROUPS:
        raise UsageError(f"--energy-group-by={group_by}: must be one of {', '.join(GROUPS)}")
    return Layout(names, sort, group_by)


def table(
    measurements: Sequence[MeasurementRecord], layout: Layout, width: int
) -> list[tuple[str, str | None]]:
    """Lay out the table's lines, each with the verdict that colours it.

    Args:
        measurements: The tests, in the order of the run.
        layout: What was asked for. Columns that were named are all shown, at any width.
        width: Columns of the terminal.
    """
    ordered = _ordered(measurements, layout)
    names = layout.columns or _default_columns(ordered)
    columns = {**COLUMNS, **_costs(layout.factors)}
    text = _aligned(ordered, names, columns)
    spared = [] if layout.columns else list(_SPARED)
    while spared and max(map(len, text)) > width:
        names = tuple(name for name in names if name != spared[0])
        del spared[0]
        text = _aligned(ordered, names, columns)
    lines = list(zip(text, [None, None, *map(status, ordered)], strict=True))
    if layout.group_by == "none":
        return lines
    head, rows = lines[:2], iter(lines[2:])
    grouped: list[tuple[str, str | None]] = head
    for group, members in groupby(ordered, key=lambda measured: _group(measured, layout.group_by)):
        grouped += [(f"{group}:", None), *(next(rows) for _ in members)]
    return grouped


def _default_columns(measurements: Sequence[MeasurementRecord]) -> tuple[str, ...]:
    """Return the table's own columns; tests that are compared by another figure than J/token show that one, too."""
    compared = dict.fromkeys(["joules_per_token", *sorted(map(compared_figure, measurements))])
    return ("test", *compared, *(name for name in _DEFAULT if name not in ("test", *compared)))


def _aligned(
    ordered: Sequence[MeasurementRecord], names: Sequence[str], columns: Mapping[str, _Column]
) -> list[str]:
    from tabulate import tabulate

    units = {name: _shared_unit(ordered, columns[name].scale) for name in names}
    cells = {name: [columns[name].cell(measured, units[name]) for measured in ordered] for name in names}
    if "test" in cells:
        cells["test"] = names_told_apart([measured.test for measured in ordered])
    compared = {"test", *map(compared_figure, ordered)}
    used = [name for name in names if name in compared or any(cells[name])]
    # As a row of their own, headings are not padded, and more columns fit.
    headings = [columns[name].heading(units[name]) for name in used]
    lines = tabulate(
        [headings, *zip(*(cells[name] for name in used), strict=True)],
        tablefmt="plain",
        disable_numparse=True,
        colalign=["left" if columns[name].left else "right" for name in used],
    ).splitlines()
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _unit(measured: MeasurementRecord, scale: str) -> EnergyUnit:
    figure = measured.figures.get(scale)
    return energy_unit(figure.value if figure else 1.0)


def _shared_unit(measurements: Sequence[MeasurementRecord], scale: str) -> EnergyUnit | None:
    """Return the unit of a column; None where tests differ so much that each cell says its own, as messages do."""
    units = {_unit(measured, scale) for measured in measurements if scale in measured.figures}
    return units.pop() if len(units) == 1 else None if units else energy_unit(1.0)


def _ordered(measurements: Sequence[MeasurementRecord], layout: Layout) -> list[MeasurementRecord]:
    def key(measured: MeasurementRecord) -> tuple[float, str]:
        verdict, compared = gravest(measured.verdicts), against_baseline(measured.verdicts)
        figure = measured.figures.get(compared_figure(measured))
        return {
            "run": (0.0, ""),
            "name": (0.0, measured.test),
            # What is dearest, what rose most and what is gravest comes first; what has no figure last.
            "joules_per_token": (-figure.value if figure else float("inf"), ""),
            "change": (-compared.change if compared and compared.change is not None else float("inf"), ""),
            "verdict": (SEVERITY.index(verdict.kind) if verdict else float("inf"), ""),
        }[layout.sort]

    ordered = sorted(measurements, key=key)
    if layout.group_by != "none":
        first: dict[str, int] = {}
        for measured in ordered:
            first.setdefault(_group(measured, layout.group_by), len(first))
        ordered.sort(key=lambda measured: first[_group(measured, layout.group_by)])
    return ordered


def _group(measured: MeasurementRecord, by: str) -> str:
    file, _, name = measured.test.partition("::")
    function, _, parameters = name.partition("[")
    if by == "file":
        return file
    if by == "func":
        return function
    return parameters.removesuffix("]") or "no parameter"
