"""JSON as pytest-benchmark saves it: its statistics are of seconds, the energy is in ``extra_info``."""

from __future__ import annotations

import statistics
from typing import Any

import msgspec

from pytest_tokenpower import __version__
from pytest_tokenpower.analysis.rounds import good
from pytest_tokenpower.core.text import short_test_name
from pytest_tokenpower.reporting.costs import cost_of, explained
from pytest_tokenpower.reporting.report import Report, Reported


def benchmarks(report: Report) -> str:
    """One benchmark a test with good rounds; ``pytest-benchmark compare FILE`` shows their seconds per execution.

    Joules are never in its ``stats``: they would be shown as seconds.
    """
    first = report.runs[0] if report.runs else None
    found = [_benchmark(each, report) for each in report if good(each.measured.rounds)]
    saved = {
        "machine_info": dict(first.host) if first else {},
        "commit_info": {
            "id": first.commit if first else None,
            "branch": first.branch if first else None,
            "dirty": bool(first and first.dirty),
        },
        "benchmarks": found,
        "datetime": first.created if first else None,
        "version": f"pytest-tokenpower {__version__}",
    }
    return msgspec.json.format(msgspec.json.encode(saved), indent=2).decode() + "\n"


def _benchmark(each: Reported, report: Report) -> dict[str, Any]:
    measured = each.measured
    kept = [one.record for one in good(measured.rounds)]
    parameters = {
        name.removeprefix("param."): value
        for name, value in measured.facts.items()
        if name.startswith("param.")
    }
    name = short_test_name(measured.test)
    inside = name[name.index("[") + 1 : -1] if name.endswith("]") and "[" in name else None
    energy: dict[str, Any] = {
        "provenance": measured.provenance,
        "scope": measured.scope,
        "method": measured.method,
        "verdict": each.kind,
    }
    for figure_name, figure in measured.figures.items():
        energy |= {figure_name: figure.value, f"{figure_name}_stderr": figure.stderr}
    if (cost := cost_of(measured, report.factors)) is not None:
        energy |= {"currency": report.factors.currency, "cost_per_million_tokens": cost.money}
        energy["gco2e_per_million_tokens"] = cost.grams
        energy["cost_factors"] = " ".join(explained(report.factors, [measured.scope]))
    return {
        "group": None,
        "name": name,
        "fullname": measured.test,
        "params": parameters or None,
        "param": inside,
        "extra_info": {f"energy.{key}": value for key, value in energy.items()},
        "options": {"timer": "monotonic_ns", "warmup": True},
        "stats": _seconds([one.seconds / one.repeats for one in kept], kept[0].repeats),
    }


def _seconds(values: list[float], iterations: int) -> dict[str, Any]:
    """Return the statistics of a benchmark's rounds, by pytest-benchmark's names."""
    ordered = sorted(values)
    mean, spread = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
    q1, median, q3 = statistics.quantiles(values, n=4) if len(values) > 1 else (mean, mean, mean)
    far = 1.5 * (q3 - q1)
    inside = [value for value in ordered if q1 - far <= value <= q3 + far]
    outside = len(values) - len(inside)
    beyond = sum(abs(value - mean) > spread for value in values)
    return {
        "min": ordered[0], "max": ordered[-1], "mean": mean, "stddev": spread, "rounds": len(values), "median": median,
        "iqr": q3 - q1, "q1": q1, "q3": q3, "iqr_outliers": outside, "stddev_outliers": beyond,
        "outliers": f"{beyond};{outside}", "ld15iqr": inside[0], "hd15iqr": inside[-1], "ops": 1 / mean,
        "total": sum(values), "data": values, "iterations": iterations,
    }  # fmt: skip
