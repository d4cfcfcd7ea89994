"""The fixed work of a calibration, on tensors of the CPU that stand in for a GPU's."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_tokenpower.runner.calibrate import torch_pieces
from pytest_tokenpower.stats.boards import MATMUL, MEMORY

torch = pytest.importorskip("torch")


def test_what_a_graph_reads_and_writes_lives_as_long_as_its_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Any]] = []

    def small(*size: int, **how: object) -> Any:
        tensor = torch.zeros(2, 2)
        made.append(weakref.ref(tensor))
        return tensor

    replayed: list[str] = []
    graph = SimpleNamespace(replay=lambda: replayed.append("graph"))
    for name in ("randn", "empty", "empty_like"):
        monkeypatch.setattr(torch, name, small)
    monkeypatch.setattr(torch, "Generator", lambda device: SimpleNamespace(manual_seed=lambda seed: None))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", nullcontext)
    pieces = torch_pieces()
    gc.collect()
    assert len(made) == 13
    assert all(each() is not None for each in made)
    pieces[MATMUL]()
    pieces[MEMORY]()
    assert replayed == ["graph"]
