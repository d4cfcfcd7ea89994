"""Tests as people write them: a 1B model, small batches, short answers; the host sets the pace."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_tokenpower import Energy


def test_waiting_first(engine: Any, wait: Any, energy: Energy) -> None:
    """The engine is up and has run once."""
    wait(energy, 5)


@pytest.mark.power_budget(regression="1%", min_rounds=36, max_rounds=36)
def test_batch_4(work: Any, energy: Energy) -> None:
    """4 prompts of 64 tokens, 32 new tokens each."""
    energy(work(4, 64, 32))


@pytest.mark.power_budget(regression="1%", min_rounds=36, max_rounds=36)
def test_batch_32(work: Any, energy: Energy) -> None:
    """32 prompts of 64 tokens, 32 new tokens each."""
    energy(work(32, 64, 32))


def test_waiting_last(engine: Any, wait: Any, energy: Energy) -> None:
    """The board is as warm as the tests have made it."""
    wait(energy, 3)
