"""The protocol of engine adapters: load, generate a batch with step marks, say what it is, close."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.core.windows import Latency
from pytest_tokenpower.workloads.arrivals import Arrivals
from pytest_tokenpower.workloads.base import Batch


@runtime_checkable
class Serving(Protocol):
    """An engine that can take requests while others run has this beside the Engine protocol."""

    def serve(self, batch: Batch, arrivals: Arrivals) -> Generation:
        """Run as ``generate``, with prompts that arrive one after another.

        Args:
            batch: the prompts.
            arrivals: when each of them arrives.
        """
        ...


@dataclass(frozen=True)
class Step:
    """One forward pass of an engine on the monotonic clock (``time.monotonic_ns``).

    ``prompt_tokens`` were prefilled in it, ``generated_tokens`` came out of decoding sequences. A step with
    both is *mixed* (chunked prefill under continuous batching). The step that finishes a prompt also samples
    its first token; that token belongs to the prefill and is not counted in ``generated_tokens``.
    """

    start_ns: int
    end_ns: int
    prompt_tokens: int
    generated_tokens: int


@dataclass(frozen=True)
class Generation:
    """Outcome of one batch: token ids of each response, and the steps that made them (each empty: unknown).

    ``tokens`` are the engine's own counts, also where it gives no ids. ``steps_exact`` is False where the marks are
    estimates from outside the engine. ``latencies`` are those of the responses, as the engine or its client saw them.
    ``unsound``, asked when the round has closed, says what else the engine did meanwhile; "" is nothing.
    """

    token_ids: Sequence[Sequence[int]]
    tokens: TokenCount
    steps: Sequence[Step] = ()
    steps_exact: bool = True
    latencies: Sequence[Latency] = ()
    unsound: Callable[[], str] | None = None


@dataclass(frozen=True)
class EngineIdentity:
    """An engine in its own words, read from its own configuration, never from the test's word.

    ``axes`` are what sweeps vary: dtype, quantization, kv_cache_dtype, tensor_parallel, pipeline_parallel,
    weights (a path's fingerprint or "random"). ``facts`` is everything else worth recording.
    """

    engine: str
    version: str
    model: str
    axes: Mapping[str, Fact] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)


@runtime_checkable
class Engine(Protocol):
    """An engine with its model loaded.

    One that may run on another machine than the tests also has ``remote_host``: that machine's host, None for this one.
    """

    @property
    def identity(self) -> EngineIdentity:
        """Identity of what runs here."""
        ...

    @property
    def device_ids(self) -> Sequence[str] | None:
        """UUIDs of the GPUs in use; empty for a CPU; None when it cannot be known."""
        ...

    def generate(self, batch: Batch) -> Generation:
        """Run the batch to its end and wait for the device; raises EngineError."""
        ...

    def close(self) -> None:
        """Free the device's memory and end every child process; safe to call twice."""
        ...


@dataclass(frozen=True)
class Timeouts:
    """Time that an engine in a process of its own may take, in seconds: to load its model, for a batch, and to end."""

    start_s: float = 1800.0
    batch_s: float = 600.0
    close_s: float = 60.0
