"""What services that follow benchmarks over time take in: Bencher, github-action-benchmark."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from pytest_tokenpower.core.figures import FIGURES
from pytest_tokenpower.reporting.costs import cost_of, explained
from pytest_tokenpower.reporting.report import Report, Reported

MEASURES = (
    "joules_per_token", "joules_per_prompt_token", "joules_per_total_token", "joules_per_response",
    "prefill_joules_per_token", "decode_joules_per_token", "mean_watts", "tokens_per_second",
    "ttft_p50_seconds", "ttft_p99_seconds", "tpot_p50_seconds", "tpot_p99_seconds",
)  # fmt: skip
"""The figures that are followed: a service draws a line for each."""

MOST_BENCHER_NAME = 1024


def series_names(report: Report) -> Iterator[tuple[str, Reported]]:
    """Each measurement that is fit to be followed, under a name that says where its number is from.

    An invalid one is left out, and one that was not measured is named so: it starts a line of its own. Where several
    runs hold a test, the run's id makes the names differ.
    """
    for each in report:
        measured = each.measured
        if measured.reasons or each.figure is None:
            continue
        name = each.test if measured.provenance == "measured" else f"{each.test} ({measured.provenance})"
        yield (name if len(report.runs) == 1 else f"{name} @{each.run.id[:8]}"), each


def bencher(report: Report) -> str:
    """Bencher Metric Format; ``lower_value`` and ``upper_value`` are the 95 % interval of the run's own rounds."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, each in series_names(report):
        measures = {
            figure_name.replace("_", "-"): {
                "value": figure.value,
                "lower_value": figure.value - 1.96 * figure.stderr,
                "upper_value": figure.value + 1.96 * figure.stderr,
            }
            for figure_name in MEASURES
            if (figure := each.measured.figures.get(figure_name)) is not None
        }
        cost = cost_of(each.measured, report.factors)
        if cost is not None and cost.money is not None:
            measures[f"{report.factors.currency.lower()}-per-million-tokens"] = {"value": cost.money}
        if cost is not None and cost.grams is not None:
            measures["gco2e-per-million-tokens"] = {"value": cost.grams}
        found[name[:MOST_BENCHER_NAME]] = measures
    return _json(found)


def smaller_is_better(report: Report) -> str:
    """Return the figures compared, as github-action-benchmark reads ``tool: customSmallerIsBetter``."""
    found = []
    for name, each in series_names(report):
        measured = each.measured
        figure = each.figure
        assert figure is not None
        cost = cost_of(measured, report.factors)
        extra = [
            f"{measured.provenance}: {measured.method}, {measured.scope} energy",
            f"verdict: {each.kind}",
        ]
        extra += [
            f"{other}: {measured.figures[other].value:.4g} {FIGURES[other]}"
            for other in MEASURES
            if other in measured.figures and measured.figures[other] is not figure
        ]
        if cost is not None and cost.money is not None:
            extra.append(f"{report.factors.currency} per million tokens: {cost.money:.4g}")
        if cost is not None and cost.grams is not None:
            extra.append(f"gCO2e per million tokens: {cost.grams:.4g}")
        if cost is not None:
            extra += explained(report.factors, [measured.scope])
        found.append(
            {
                "name": name,
                "unit": each.unit,
                "value": figure.value,
                "range": f"± {1.96 * figure.stderr:.3g}",
                "extra": "\n".join(extra),
            }
        )
    return _json(found)


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
