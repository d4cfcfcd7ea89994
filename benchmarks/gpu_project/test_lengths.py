"""The energy tests of benchmarks/gpu_lengths.py, whose process holds the engine: the module ``served``."""

from __future__ import annotations

import os

import pytest
import served  # type: ignore[import-not-found]

from pytest_tokenpower import Energy

pytestmark = pytest.mark.power_budget(
    regression=os.environ["BENCH_REGRESSION"],
    min_rounds=int(os.environ["BENCH_ROUNDS"]),
    max_rounds=int(os.environ["BENCH_ROUNDS"]),
)


def test_chat(energy: Energy) -> None:
    """Answers that end by themselves."""
    energy(served.answer)


def test_fixed(energy: Energy) -> None:
    """Answers of one length."""
    energy(served.answer_fixed)
