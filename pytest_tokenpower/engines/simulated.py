"""No engine: what one would take by a forecast, waited for. For trying suites on the simulated board."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.core.windows import Latency
from pytest_tokenpower.engines._adapter import require_batch
from pytest_tokenpower.engines.protocol import EngineIdentity, Generation, Step
from pytest_tokenpower.errors import EngineError, UsageError
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.models.fit import architecture_of
from pytest_tokenpower.models.memory import cache_of, weights_of
from pytest_tokenpower.models.registry import load_models
from pytest_tokenpower.models.roofline import H100, HOST_SECONDS, Forecast, forecast
from pytest_tokenpower.workloads.arrivals import Arrivals
from pytest_tokenpower.workloads.base import Batch


class SimulatedEngine:
    """Stands for the engine that ``stands_for`` names, with a model of the registry or a folder, on an H100.

    A batch takes what ``models.roofline`` foretells for it, on the boards' ``clock``; no token of it is anybody's.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        dtype: str = "bfloat16",
        quantization: str | None = None,
        kv_cache_dtype: str = "auto",
        tensor_parallel: int = 1,
        pipeline_parallel: int = 1,
        stands_for: str = "vllm",
        clock: Clock | None = None,
    ) -> None:
        name = os.fspath(model)
        known = load_models().get(name)
        shape = known.architecture if known is not None else architecture_of(name)
        if shape is None:
            raise EngineError(
                f"{name}: its speed cannot be foretold: neither a model of the registry (`tokenpower models`) nor a "
                "folder with the config.json of a decoder of a known family"
            )
        self._shape = shape
        self._clock = clock or Clock()
        try:
            self._weights = weights_of(quantization, dtype, experts=shape.shape.experts is not None)
            self._cache = cache_of(kv_cache_dtype)
        except UsageError as error:
            raise EngineError(f"{name}: its speed cannot be foretold: {error}") from None
        self._boards = tensor_parallel * pipeline_parallel
        self._host = replace(H100, step_seconds=HOST_SECONDS.get(stands_for, H100.step_seconds))
        axes: dict[str, Fact] = {
            "dtype": dtype,
            "quantization": None if quantization == "none" else quantization,
            "kv_cache_dtype": dtype if kv_cache_dtype == "auto" else kv_cache_dtype,
            "tensor_parallel": tensor_parallel,
            "pipeline_parallel": pipeline_parallel,
            "weights": "none",
        }
        self._forecasts: dict[tuple[int, int, int], Forecast] = {}
        self._identity = EngineIdentity("simulated", "1", Path(name).name, axes, {"stands_for": stands_for})

    @property
    def identity(self) -> EngineIdentity:
        """Identity with the settings that it was given."""
        return self._identity

    @property
    def device_ids(self) -> Sequence[str]:
        """No GPU is in use."""
        return ()

    def generate(self, batch: Batch) -> Generation:
        """Wait for as long as the batch would take, with the marks of one prefill and each step of decoding."""
        require_batch(batch)
        took = self._foretold(batch, len(batch.prompts))
        each = Latency(took.prefill_seconds, took.step_seconds if took.steps else None)
        return self._after(batch, took, 0.0, [each] * len(batch.prompts))

    def serve(self, batch: Batch, arrivals: Arrivals) -> Generation:
        """Prefill prompts one after another as they arrive, and decode with as many as are usually under way."""
        require_batch(batch)
        count = len(batch.prompts)
        due, alone = arrivals.seconds(count), self._foretold(batch, 1)
        under_way = count * alone.seconds / max(due[-1], alone.seconds)
        took = self._foretold(batch, max(1, min(round(under_way), arrivals.limit or count)))
        latencies, ready = [], 0.0
        for at in due:
            ready = max(ready, at) + alone.prefill_seconds
            latencies.append(Latency(ready - at, took.step_seconds if took.steps else None))
        return self._after(batch, took, ready - took.prefill_seconds, latencies)

    def close(self) -> None:
        """Nothing is held."""

    def _foretold(self, batch: Batch, under_way: int) -> Forecast:
        asked = under_way, max(map(len, batch.prompts)), batch.new_tokens
        if asked not in self._forecasts:
            self._forecasts[asked] = forecast(
                self._shape,
                batch=asked[0],
                prompt_tokens=asked[1],
                new_tokens=asked[2],
                dtype=self._weights,
                kv_dtype=self._cache,
                boards=self._boards,
                speed=self._host,
            )
        return self._forecasts[asked]

    def _after(
        self, batch: Batch, took: Forecast, arrived_s: float, latencies: Sequence[Latency]
    ) -> Generation:
        count = len(batch.prompts)
        at = self._clock.monotonic_ns()
        self._clock.sleep(arrived_s + took.seconds)
        # Stretched to what the clock says: the system may wake late.
        stretch = (self._clock.monotonic_ns() - at) / (arrived_s + took.seconds)
        at += round(arrived_s * stretch)
        prefill = Step(at, at + round(took.prefill_seconds * stretch), batch.tokens.prompt, 0)
        steps = _Steps(prefill, round(took.step_seconds * stretch), count, took.steps)
        return Generation([[1] * batch.new_tokens] * count, batch.tokens, steps, latencies=latencies)


class _Steps(Sequence[Step]):
    """A prefill and the equal steps after it, made when somebody looks: a day's soak has some ten million of them."""

    def __init__(self, prefill: Step, step_ns: int, generated: int, steps: int) -> None:
        self._prefill, self._step_ns, self._generated = prefill, step_ns, generated
        self._places = range(steps + 1)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, at: int) -> Step: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Step]: ...
    def __getitem__(self, at: int | slice) -> Step | Sequence[Step]:
        if isinstance(at, slice):
            return [self[place] for place in self._places[at]]
        place = self._places[at]
        if not place:
            return self._prefill
        start_ns = self._prefill.end_ns + (place - 1) * self._step_ns
        return Step(start_ns, start_ns + self._step_ns, 0, self._generated)
