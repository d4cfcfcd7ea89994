"""Fixed pieces of GPU work in plain PyTorch, and waiting before and right after the hottest of them.

A "token" is a matrix product, a batch of 40 GEMMs, a copy, or a window of waiting.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from pytest_tokenpower import Energy
from pytest_tokenpower.runner.calibrate import torch_pieces
from pytest_tokenpower.stats.boards import MATMUL, MEMORY

FAKE = os.environ["BENCH_MODELS"] == "fake"
WINDOWS = 4


@pytest.fixture(scope="session")
def operands(turn: None) -> dict[str, Any]:
    """Random matrices on the GPU, and the memory-bound GEMMs captured in a graph."""
    if FAKE:
        return {}
    import torch

    source = torch.randn(1 << 29, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    pieces = torch_pieces()
    torch.cuda.synchronize()
    return {
        "matmul": pieces[MATMUL],
        "gemms": pieces[MEMORY],
        "copy": lambda: target.copy_(source),
    }


def fixed(
    energy: Energy, piece: Callable[[], Any] | None, windows: int = WINDOWS, seconds: float = 1.0
) -> None:
    """About half a second unmeasured, then windows of equally many pieces of about ``seconds`` each."""
    if piece is None:
        for _ in range(windows):
            with energy.measure() as window:
                time.sleep(0.1)
                window.tokens(prompt=1, generated=1)
        return
    import torch

    def run(times: int) -> float:
        began = time.monotonic()
        for _ in range(times):
            piece()
        torch.cuda.synchronize()
        return time.monotonic() - began

    run(20)
    run(max(1, round(0.4 * 20 / run(20))))
    times = max(1, round(seconds * 40 / run(40)))
    for _ in range(windows):
        with energy.measure() as window:
            run(times)
            window.tokens(prompt=times, generated=times)


def test_waiting_first(operands: dict[str, Any], wait: Any, energy: Energy) -> None:
    """Context up, clocks held, nothing run for a while."""
    wait(energy, WINDOWS, 1.0)


def test_matmul(operands: dict[str, Any], energy: Energy) -> None:
    """8192 x 8192 x 8192 in bf16: at the power limit."""
    fixed(energy, operands.get("matmul"))


def test_waiting_hot(operands: dict[str, Any], wait: Any, energy: Energy) -> None:
    """Right after the matrix products."""
    wait(energy, 8, 0.5)


def test_gemms(operands: dict[str, Any], energy: Energy) -> None:
    """40 GEMMs of 32 rows by 8192 x 8192 in a CUDA graph: memory bound."""
    fixed(energy, operands.get("gemms"))


def test_copy(operands: dict[str, Any], energy: Energy) -> None:
    """1 GiB from device to device."""
    fixed(energy, operands.get("copy"), 3, 0.7)
