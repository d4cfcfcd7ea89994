"""Measurements and stored runs at given levels, as the gate sees them."""

from __future__ import annotations

import math

from pytest_tokenpower.core.records import MeasurementRecord, RoundRecord
from pytest_tokenpower.store.baseline import ComparableRuns


def measured(test: str, joules_per_token: float, spread: float = 0.001, **more: object) -> MeasurementRecord:
    rounds = tuple(
        RoundRecord(
            start_ns=at, seconds=1.0, joules=joules_per_token * 1000 * math.exp(spread * ((-1) ** at)),
            stderr_joules=0.01, prompt_tokens=0, generated_tokens=1000,
        )
        for at in range(8)
    )  # fmt: skip
    return MeasurementRecord(
        test=test, key={}, provenance="simulated", scope="gpu", method="power ring", rounds=rounds, comparable=True,
        **more,  # type: ignore[arg-type]
    )  # fmt: skip


def stored(*levels: float) -> ComparableRuns:
    return ComparableRuns("main", tuple(measured("t", level) for level in levels), tuple(map(str, levels)))
