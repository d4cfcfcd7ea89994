"""OpenMetrics text: gauges of the figures, to be scraped or pushed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime

from pytest_tokenpower.core.figures import FIGURES
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.reporting.costs import cost_of, explained
from pytest_tokenpower.reporting.report import Report, Reported

PREFIX = "tokenpower_"

_KEY_LABELS = ("engine", "engine_version", "model", "gpu.name", "gpu.count")

_COSTS = {
    "kwh_per_million_tokens": "kWh for a million generated tokens, the configured PUE included",
    "cost_per_million_tokens": "Money for a million generated tokens, in the currency of the label",
    "gco2e_per_million_tokens": "Grams of CO2 equivalent for a million generated tokens",
}

_OTHERS = {
    "failing": "1 where the test fails by its verdict, else 0",
    "run_info": "Run, commit and verdict that the other samples of the same time are of",
}


def openmetrics(report: Report) -> str:
    """Return a gauge for each figure and its standard error, at the run's time.

    Their labels stay the same from run to run, so that a dashboard draws a line; what tells runs apart is in the labels
    of ``tokenpower_run_info``. The figures of an invalid measurement are left out.
    """
    families: dict[str, dict[str, dict[float, float]]] = {}
    for each in report:
        labels, stamp = _labels(each), _seconds(each.run.created)
        of_run = {"commit": (each.run.commit or "")[:12], "run": each.run.id, "verdict": each.kind}
        values = {_text(labels, name): value for name, value in _values(each)}
        values[_text({**labels, **of_run}, "run_info")] = 1
        if not each.measured.reasons and (cost := cost_of(each.measured, report.factors)) is not None:
            for name, amount in zip(_COSTS, (cost.kwh, cost.money, cost.grams), strict=True):
                more = {"currency": report.factors.currency} if name.startswith("cost") else {}
                if amount is not None:
                    values[_text({**labels, **more}, name)] = amount
        for (name, text), value in values.items():
            families.setdefault(name, {}).setdefault(text, {})[stamp] = value
    lines = []
    for name, series in families.items():
        kind = "info" if name.endswith("_info") else "gauge"
        lines += [
            f"# TYPE {PREFIX}{name.removesuffix('_info')} {kind}",
            f"# HELP {PREFIX}{name.removesuffix('_info')} {_escaped(_help(name, report))}",
        ]
        lines += [
            f"{PREFIX}{name}{text} {value!r} {stamp:.3f}"
            for text, values_at in series.items()
            for stamp, value in sorted(values_at.items())
        ]
    return "\n".join([*lines, "# EOF"]) + "\n"


def _values(each: Reported) -> Iterator[tuple[str, float]]:
    yield "failing", float(each.failing)
    if not each.measured.reasons:
        for name, figure in each.measured.figures.items():
            yield name, figure.value
            yield f"{name}_stderr", figure.stderr


def _help(name: str, report: Report) -> str:
    if name.endswith("_stderr"):
        return f"Standard error of {name.removesuffix('_stderr')}"
    if name in _COSTS:
        scopes = [each.measured.scope for each in report]
        return f"{_COSTS[name]}. {' '.join(explained(report.factors, scopes))}"
    return _OTHERS.get(name) or FIGURES.get(name, "")


def _labels(each: Reported) -> dict[str, Fact]:
    measured = each.measured
    labels: dict[str, Fact] = {"test": each.test, "provenance": measured.provenance, "scope": measured.scope}
    return {**labels, **{name: measured.key[name] for name in _KEY_LABELS if name in measured.key}}


def _text(labels: Mapping[str, Fact], name: str) -> tuple[str, str]:
    said = ",".join(
        f'{re.sub("[^a-zA-Z0-9_]", "_", label)}="{_escaped(str(text))}"' for label, text in labels.items()
    )
    return name, f"{{{said}}}"


def _escaped(text: str) -> str:
    plain = text.encode("utf-8", "backslashreplace").decode()
    return plain.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _seconds(created: str) -> float:
    # Python 3.10 does not read the Z.
    return datetime.fromisoformat(created.replace("Z", "+00:00")).timestamp()
