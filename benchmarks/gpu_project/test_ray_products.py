"""Work on every node of a Ray cluster at once, without an engine: matrix products, half as many on the second."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from pytest_tokenpower import Energy, TokenCount

PRODUCTS = int(os.environ.get("BENCH_PRODUCTS", "1500"))
"""Of 8192 x 8192 matrices in bfloat16: 1.4 ms each on an H100."""

FAKE = "BENCH_FAKE" in os.environ


class Multiplier:
    """An actor with a board of its own."""

    def __init__(self, products: int, fake: bool) -> None:
        self._products, self._fake = products, fake
        if not fake:
            import torch

            self._matrix, self._other = (
                torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2)
            )
            self._into = torch.empty_like(self._matrix)

    def work(self) -> int:
        """Multiply, and wait for the end."""
        if self._fake:
            time.sleep(self._products * 0.0005)
            return self._products
        import torch

        for _ in range(self._products):
            torch.mm(self._matrix, self._other, out=self._into)
        torch.cuda.synchronize()
        return self._products


@pytest.fixture
def multipliers() -> Any:
    """Start an actor on each node, and end them all."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not ray.is_initialized():
        ray.init(address="auto", log_to_driver=False)
    kind = ray.remote(Multiplier)
    actors = [
        kind.options(
            num_gpus=1,
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote(PRODUCTS >> at, FAKE)
        for at, node in enumerate(ray.nodes())
    ]
    ray.get([actor.work.remote() for actor in actors], timeout=120)
    yield actors
    for actor in actors:
        ray.kill(actor)


@pytest.mark.power_budget(min_rounds=8, max_rounds=10)
def test_products(energy: Energy, multipliers: Any) -> None:
    """A product counts as a token."""
    import ray

    def execute() -> TokenCount:
        return TokenCount(0, sum(ray.get([actor.work.remote() for actor in multipliers])))

    energy(execute)
