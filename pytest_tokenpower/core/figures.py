"""The figures of a measurement by name, each with its unit."""

from __future__ import annotations

from collections.abc import Mapping

PERCENTILES = (50, 90, 99)
"""Of the latencies of a round's requests."""

FIGURES: Mapping[str, str] = {
    "joules_per_token": "J / generated token",
    "joules_per_prompt_token": "J of prefill / prefilled prompt token",
    "joules_per_total_token": "J / token of prompt (cached ones included) and answer",
    "prefill_joules_per_token": "J of prefill / generated token",
    "decode_joules_per_token": "J of decode / generated token",
    "joules_per_response": "J / response",
    "joules": "J / execution of the workload",
    "prefill_joules": "J of prefill / execution of the workload",
    "decode_joules": "J of decode / execution of the workload",
    "mean_watts": "W",
    "peak_watts": "W",
    "tokens_per_second": "generated tokens / s",
    "prefill_watts": "W of prefill",
    "decode_watts": "W of decode",
    "prefill_tokens_per_second": "prompt tokens / s of prefill",
    "decode_tokens_per_second": "generated tokens / s of decode",
    "between_steps_joules_per_token": "J between steps / generated token",
    "joule_seconds_per_response": "J / response x s / execution (energy-delay product)",
    "power_imbalance": "the GPU that drew most, above their mean",
    "node_imbalance": "the node whose GPUs drew most, above the nodes' mean",
    "seconds": "s / execution of the workload",
    **{f"ttft_p{each}_seconds": f"s to the first token, {each} of 100 requests" for each in PERCENTILES},
    **{f"tpot_p{each}_seconds": f"s / further token, {each} of 100 requests" for each in PERCENTILES},
    "quality": "score of the answers",
}

MORE_IS_BETTER = frozenset(
    {"tokens_per_second", "prefill_tokens_per_second", "decode_tokens_per_second", "quality"}
)
"""Of all other figures less is better."""
