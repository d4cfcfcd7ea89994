"""A test that the GPU sets the pace of: an 8B model in bf16, batch 32."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_tokenpower import Energy


def test_waiting_first(engine: Any, wait: Any, energy: Energy) -> None:
    """The engine is up and has run once."""
    wait(energy, 5)


@pytest.mark.power_budget(regression="1%", min_rounds=10, max_rounds=10)
def test_chat(work: Any, energy: Energy) -> None:
    """32 prompts of 256 tokens, 64 new tokens each."""
    energy(work(32, 256, 64))


def test_waiting_last(engine: Any, wait: Any, energy: Energy) -> None:
    """The board is as warm as the test has made it."""
    wait(energy, 3)
