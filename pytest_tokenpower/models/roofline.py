"""How long inference takes at best on a board: a rough forecast, from bytes to be read and operations to be done."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_tokenpower.models.architecture import Architecture
from pytest_tokenpower.models.memory import kv_bytes, weight_bytes


@dataclass(frozen=True)
class Speed:
    """What a board sustains, and what the host adds to each step of an engine."""

    bytes_per_second: float = 2.4e12
    operations_per_second: float = 4.5e14
    step_seconds: float = 0.002


H100 = Speed()
"""About what an H100 SXM sustains of its 3.35 TB/s and 989 TFLOP/s."""

HOST_SECONDS = {"transformers": 0.025}
"""What a step takes at least where the host launches every kernel."""


@dataclass(frozen=True)
class Forecast:
    """Seconds of one execution of a batch: its prefill, and each of its ``steps`` of decoding."""

    prefill_seconds: float
    step_seconds: float
    steps: int

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.prefill_seconds + self.step_seconds * self.steps


def forecast(
    shape: Architecture,
    *,
    batch: int,
    prompt_tokens: int,
    new_tokens: int,
    dtype: str = "bf16",
    kv_dtype: str = "bf16",
    boards: int = 1,
    speed: Speed = H100,
) -> Forecast:
    """Foretell a batch of prompts of one length on ``boards`` that share the work evenly.

    Weights are read once a step, of a mixture those of the experts that some token is sent to; the cache is read for
    each sequence. FP8 is multiplied at twice the rate of 16 bits, other small weights at theirs.
    """
    rate = speed.operations_per_second * (2 if dtype == "fp8" else 1) * boards
    reads = speed.bytes_per_second * boards
    weights = weight_bytes(shape, dtype)
    active = 2 * shape.active_parameters
    tokens = batch * prompt_tokens
    sizes = shape.shape
    # Scores and weighted values, half of the square below the diagonal.
    attention = 2 * tokens * prompt_tokens * sizes.layers * sizes.heads * sizes.head_dim
    prefill = max((active * tokens + attention) / rate, _read(shape, weights, tokens) / reads)
    cached = batch * kv_bytes(shape, prompt_tokens + new_tokens // 2, kv_dtype)
    step = max(active * batch / rate, (_read(shape, weights, batch) + cached) / reads)
    return Forecast(prefill + speed.step_seconds, step + speed.step_seconds, new_tokens - 1)


def _read(shape: Architecture, weights: int, tokens: int) -> float:
    """Bytes of weights that so many tokens have read; tokens are sent to experts by chance."""
    experts = shape.shape.experts
    if experts is None:
        return float(weights)
    untouched = (1 - experts.per_token / experts.count) ** tokens
    routed = (shape.sizes["expert"] + shape.sizes["expert bias"]) / shape.parameters
    return weights * (1 - routed * untouched)
