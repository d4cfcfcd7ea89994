"""Series of samples as Prometheus' HTTP API gives them: parsing, naming, and how often they come."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

Labels = tuple[tuple[str, str], ...]
"""The labels of one series, sorted by name."""

Rows = Sequence[tuple[int, float]]
"""Samples of one series in the order of time: (realtime milliseconds, value)."""

UNKNOWN_STEP_S = 15.0
"""Taken for the scrape interval where there are too few samples to see it."""

_IDENTITY = (
    "UUID",
    "gpu_uuid",
    "GPU_I_ID",
    "outlet",
    "outlet_id",
    "pdu",
    "rack",
    "instance",
    "Hostname",
    "job",
)


def matrix(result: Sequence[Mapping[str, Any]]) -> dict[Labels, Rows]:
    """The series of an answer of type ``matrix``; samples that are no finite number are absent."""
    series: dict[Labels, Rows] = {}
    for one in result:
        labels = tuple(sorted(one["metric"].items()))
        rows = [(round(float(t_s) * 1000), float(value)) for t_s, value in one["values"]]
        series[labels] = [row for row in rows if math.isfinite(row[1])]
    return series


def identity(labels: Labels) -> str:
    """A name for a series that stays the same over runs: its most telling labels, else all."""
    named = dict(labels)
    if "UUID" in named:
        return named["UUID"] + (f"/{named['GPU_I_ID']}" if named.get("GPU_I_ID") else "")
    told = [named[label] for label in _IDENTITY if label in named]
    rest = [value for label, value in labels if label not in _IDENTITY and label != "__name__"]
    return "/".join(told + rest) or named.get("__name__", "series")


def interval_s(rows: Rows, *, scraped: bool) -> float:
    """Seconds between two scrapes; of an expression as its values change, since its times are our own."""
    seen_s = step_s(rows) if scraped else refresh_s(rows)
    return min(max(seen_s or UNKNOWN_STEP_S, 1.0), 60.0)


def refresh_s(rows: Rows) -> float | None:
    """Seconds between two changes of the value; None for fewer than two."""
    return step_s([row for last, row in pairwise(rows) if row[1] != last[1]])


def step_s(rows: Rows) -> float | None:
    """Seconds between two samples; None for fewer than two."""
    if len(rows) < 2:
        return None
    return float(np.median(np.diff([t_ms for t_ms, _ in rows]))) / 1000
