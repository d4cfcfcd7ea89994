"""Sums over the windows of benchmarks/gpu_phases.py, for its page: means, joules by where they went, conditions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]


def rounds(parts: Row, part: str, label: str | None = None) -> list[Row]:
    """Return the good rounds of a part, of one work or of all."""
    found: list[Row] = parts.get(part, {}).get("rounds", [])
    return [one for one in found if not one["reasons"] and label in (None, one["label"])]


def by_label(found: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rounds of each work, in the order in which the works began."""
    works: dict[str, list[Row]] = {}
    for one in found:
        works.setdefault(one["label"], []).append(one)
    return works


def executions(one: Row) -> int:
    return int(one["work"].get("repeats", 1))


def each(found: Sequence[Row], value: Callable[[Row], float]) -> tuple[float, float]:
    """Mean over windows and its standard error (nan for a single one)."""
    return over([value(one) for one in found])


def over(values: Sequence[float]) -> tuple[float, float]:
    mean = float(np.mean(values))
    return mean, float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def joules(one: Row) -> float:
    """Of one execution, the idling after it included."""
    return float(one["joules"]) / executions(one)


def account(one: Row, name: str) -> float:
    """Joules of one execution in a phase's steps, in the gaps after them ("prefill gaps"), or "outside"."""
    if name == "outside":
        total = one["outside"][0] + one["pauses"][0]
    elif name.endswith(" gaps"):
        total = one["gaps"].get(name.removesuffix(" gaps"), [0.0])[0]
    else:
        total = one["phases"].get(name, [0.0])[0]
    return float(total) / executions(one)


def with_gaps(one: Row, name: str) -> float:
    """Joules of a phase's steps and of the host's work after each; that after mixed steps goes as their energy does."""
    own = account(one, name) + account(one, f"{name} gaps")
    steps = one.get("each_step")
    if not steps:
        return own
    pure = {
        "prefill": sum(step[3] for step in steps if not step[1]),
        "decode": sum(step[3] for step in steps if not step[0]),
    }
    parts = {
        phase: max(account(one, phase) - joules / executions(one), 0.0) for phase, joules in pure.items()
    }
    both = sum(parts.values())
    return own + account(one, "mixed gaps") * (parts[name] / both if both else 0.5)


def conditions(found: Sequence[Row]) -> str:
    """Cells: W, MHz, °C, share under the power limit, s per execution, ms of prefill per execution."""

    def mean(value: Callable[[Row], float | None], digits: str) -> str:
        known = [got for one in found if (got := value(one)) is not None]
        return format(sum(known) / len(known), digits) if known else ""

    def prefill_ms(one: Row) -> float | None:
        steps = one["steps"]
        if "prefill" not in steps or "mixed" in steps:
            return None
        return 1e3 * float(steps["prefill"][1]) / executions(one)

    cells = [
        mean(lambda one: one["joules"] / one["seconds"], ".0f"),
        mean(lambda one: one["mhz"], ".0f"),
        mean(lambda one: one["celsius"], ".1f"),
        mean(lambda one: 100 * one["limited"].get("power", math.nan), ".0f") + " %",
        mean(lambda one: one["seconds"] / executions(one), ".3f"),
        mean(prefill_ms, ".1f"),
    ]
    return " | ".join(cells)


CONDITIONS = "W | SM MHz | °C | at the power limit | s / execution | prefill, ms"
