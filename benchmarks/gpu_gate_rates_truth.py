"""What the injected waste truly costs, from what identical code takes and from the boards' fixed work. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from gpu_gate_rates_data import Measured, phase_sums

NEW_TOKENS: Mapping[str, int] = {"test_batch_4": 32, "test_batch_32": 32, "test_chat": 64}
GEMMS_IN_PIECE = 40
SLEEP_S = 1.06e-3
"""What a sleep of 1 ms takes."""


@dataclass(frozen=True)
class Truth:
    """The change as a share of J/token, in its two parts; ``exact`` where it is the share of like steps."""

    work: float
    pace: float
    exact: bool

    @property
    def total(self) -> float:
        """Both parts."""
        return self.work + self.pace


def truth(measured: Measured, test: str, waste: Mapping[str, float]) -> Truth:
    """Of extra decode steps exactly; of sleep and of GEMMs as if all of it came on top (sleep) or beside (GEMMs)."""
    runs = measured.of(test)
    new = NEW_TOKENS[test]
    joules = sum(float(each.joules.sum()) for each in runs)
    decode = [phase_sums(each, "decode") for each in runs]
    decode_joules = sum(each[0] for each in decode)
    decode_waiting = sum(each[1] * run.waiting_watts for each, run in zip(decode, runs, strict=True))
    steps = waste.get("steps", 0.0) / (new - 1)
    work = steps * (decode_joules - decode_waiting) / joules
    pace = steps * decode_waiting / joules
    per_batch = float(np.mean([each.per_token.mean() * _batch(test) * new for each in runs]))
    waiting = float(np.mean([each.waiting_watts for each in runs]))
    pace += waste.get("sleep_ms", 0.0) * SLEEP_S * new * waiting / per_batch
    if waste.get("gemms"):
        pieces = [each for each in measured.calibrations if each.piece == "gemms"]
        one = float(np.mean([each.joules * (1 - waiting / each.watts) for each in pieces])) / GEMMS_IN_PIECE
        work += waste["gemms"] * new * one / per_batch
    return Truth(work, pace, exact=set(waste) <= {"steps"})


def _batch(test: str) -> int:
    return 4 if test == "test_batch_4" else 32
