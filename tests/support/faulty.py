"""Stub engines that take their time and fail on demand, by a factory that another process can import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.engines.protocol import EngineIdentity, Generation
from pytest_tokenpower.errors import EngineError
from pytest_tokenpower.workloads.base import Batch
from tests.support.stub import StubEngine


class FaultyEngine(StubEngine):
    """A stub whose steps take ``step_s`` each; ``fault`` strikes in batch number ``at``.

    crash, hang, raise, refuse (an EngineError), short (fewer token ids), miscount (wrong counts), ask (``unsound``).
    ``child`` names a file for the number of a process that it starts.
    """

    def __init__(
        self,
        model: str,
        *,
        budget: int = 64,
        step_s: float = 0.01,
        fault: str = "",
        at: int = 1,
        quantization: str | None = None,
        weights: str | None = None,
        devices: Sequence[str] = (),
        child: str | None = None,
    ) -> None:
        if fault == "load":
            print("weights are being read")
            raise RuntimeError("the weights do not fit")
        if fault == "load crash":
            print("weights are being read", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == "load hang":
            print("waiting for a port", flush=True)
            time.sleep(600)
        super().__init__(budget)
        self.device_ids = tuple(devices)
        self._model, self._step_s, self._fault, self._at = model, step_s, fault, at
        self._axes = {"quantization": quantization} | ({"weights": weights} if weights else {})
        self._batches = 0
        update = self.scheduler.update_from_output

        def slowly(*args: Any) -> Any:
            # Before the mark of a step's end, so that it is the step that takes so long, not what is between steps.
            time.sleep(self._step_s)
            return update(*args)

        vars(self.scheduler)["update_from_output"] = slowly
        if child is not None:
            other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            Path(child).write_text(f"{os.getpid()} {other.pid}")

    @property
    def identity(self) -> EngineIdentity:
        found = super().identity
        return replace(
            found,
            model=Path(self._model).name,
            axes={**found.axes, **self._axes},
            facts={"budget": self.scheduler.budget},
        )

    def generate(self, batch: Batch) -> Generation:
        self._batches += 1
        if self._fault and self._batches == self._at:
            print(f"batch {self._batches} of {self._model}", flush=True)
            if self._fault == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            if self._fault == "hang":
                time.sleep(600)
            if self._fault == "raise":
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            if self._fault == "refuse":
                raise EngineError("stub: the batch failed")
        generation = super().generate(batch)
        if self._fault == "short" and self._batches == self._at:
            return replace(generation, token_ids=[ids[:-1] for ids in generation.token_ids])
        if self._fault == "miscount" and self._batches == self._at:
            return replace(generation, tokens=TokenCount(1, generation.tokens.generated, 3))
        if self._fault == "ask":
            return replace(generation, unsound=str)
        return generation


def make(model: str, **options: Any) -> FaultyEngine:
    return FaultyEngine(model, **options)


class ServingEngine(FaultyEngine):
    """Takes requests as they come; keeps when it was asked to."""

    def serve(self, batch: Batch, arrivals: Any) -> Generation:
        self.asked = arrivals.seconds(len(batch.prompts)), arrivals.limit
        time.sleep(self.asked[0][-1])
        return self.generate(batch)

    def encode(self, text: str) -> list[int]:
        return [3 + len(word) for word in text.split()]
