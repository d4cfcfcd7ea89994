"""OpenMetrics text: gauges of the figures, to be scraped or pushed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

from pytest_tokenpower.core.figures import FIGURES
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.reporting.costs import cost_of
from pytest_tokenpower.reporting.report import Report, Reported

PREFIX = "tokenpower_"

_KEY_LABELS = ("engine", "engine_version", "model", "gpu.name", "gpu.count")

_COSTS = {
    "kwh_per_million_tokens": "kWh for a million generated tokens, the configured PUE included",
    "cost_per_million_tokens": "Money for a million generated tokens, in the currency of the label",
    "gco2e_per_million_tokens": "Grams of CO2 equivalent for a million generated tokens",
}


def openmetrics(report: Report) -> str:
    """Return a gauge for each figure and its standard error, labelled by test, board and provenance.

    At the run's time.
    """
    families: dict[str, list[str]] = {}
    for each in report:
        labels = _labels(each)
        stamp = _seconds(each.run.created)
        values: dict[str, float] = {}
        for name, figure in each.measured.figures.items():
            values |= {name: figure.value, f"{name}_stderr": figure.stderr}
        for name, value in values.items():
            families.setdefault(name, []).append(_sample(name, labels, value, stamp))
        if (cost := cost_of(each.measured, report.factors)) is not None:
            for name, amount in zip(_COSTS, (cost.kwh, cost.money, cost.grams), strict=True):
                if amount is not None:
                    more = {"currency": report.factors.currency} if name.startswith("cost") else {}
                    families.setdefault(name, []).append(_sample(name, {**labels, **more}, amount, stamp))
    lines = []
    for name, samples in families.items():
        help_text = _COSTS.get(name) or FIGURES.get(name.removesuffix("_stderr"), "")
        if name.endswith("_stderr"):
            help_text = f"Standard error of {name.removesuffix('_stderr')}"
        lines += [f"# TYPE {PREFIX}{name} gauge", f"# HELP {PREFIX}{name} {_escaped(help_text)}", *samples]
    return "\n".join([*lines, "# EOF"]) + "\n"


def _labels(each: Reported) -> dict[str, Fact]:
    measured = each.measured
    labels: dict[str, Fact] = {
        "test": each.test,
        "provenance": measured.provenance,
        "scope": measured.scope,
        "verdict": each.kind,
        "commit": (each.run.commit or "")[:12],
        "run": each.run.id,
    }
    return {**labels, **{name: measured.key[name] for name in _KEY_LABELS if name in measured.key}}


def _sample(name: str, labels: Mapping[str, Fact], value: float, stamp: float) -> str:
    said = ",".join(
        f'{re.sub("[^a-zA-Z0-9_]", "_", label)}="{_escaped(str(text))}"' for label, text in labels.items()
    )
    return f"{PREFIX}{name}{{{said}}} {value!r} {stamp:.3f}"


def _escaped(text: str) -> str:
    plain = text.encode("utf-8", "backslashreplace").decode()
    return plain.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _seconds(created: str) -> float:
    # Python 3.10 does not read the Z.
    return datetime.fromisoformat(created.replace("Z", "+00:00")).timestamp()
