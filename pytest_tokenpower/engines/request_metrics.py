"""Phases from vLLM's own request metrics, for code that calls ``llm.generate`` itself; imports nothing of vLLM."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PhaseWindows:
    """When a batch was prefilled and when it was decoded, in nanoseconds of the monotonic clock.

    The prefill runs from the first request's scheduling to the last one's first token, the decode from there to
    the last token. With ``mixed`` some request decoded while another was still prefilled, so that energy of the
    prefill window is not the prefill's alone.
    """

    prefill_start_ns: int
    prefill_end_ns: int
    decode_end_ns: int
    mixed: bool

    @property
    def prefill(self) -> tuple[int, int]:
        """Start and end of the prefill window."""
        return self.prefill_start_ns, self.prefill_end_ns

    @property
    def decode(self) -> tuple[int, int]:
        """Start and end of the decode window; empty where one token was generated."""
        return self.prefill_end_ns, self.decode_end_ns


def steps_from_request_metrics(outputs: object) -> PhaseWindows | None:
    """The phases of what ``LLM.generate`` returned, or None where any request lacks its times.

    Read are ``metrics.scheduled_ts``, ``first_token_ts`` and ``last_token_ts`` (``time.monotonic()`` seconds of the
    engine's process; one clock for the processes of a Linux host). vLLM leaves ``metrics`` None unless
    ``disable_log_stats=False``. A request that had more than one token before the last first token makes it mixed.
    """
    times = _times(outputs)
    if not times:
        return None
    start = min(scheduled for scheduled, _, _, _ in times)
    boundary = max(first for _, first, _, _ in times)
    end = max(last for _, _, last, _ in times)
    # Requests of one prefill step share one timestamp, and the engine's next step ends later. A first token before
    # the boundary means a later prefill step, in which that request decoded, unless it was finished by then.
    mixed = any(first < boundary and generated > 1 for _, first, _, generated in times)
    return PhaseWindows(round(start * 1e9), round(boundary * 1e9), round(end * 1e9), mixed)


def _times(outputs: object) -> list[tuple[float, float, float, int]]:
    if not isinstance(outputs, Iterable) or isinstance(outputs, str | bytes):
        outputs = (outputs,)
    times = []
    for output in outputs:
        metrics: Any = getattr(output, "metrics", None)
        scheduled = _seconds(metrics, "scheduled_ts")
        first = _seconds(metrics, "first_token_ts")
        last = _seconds(metrics, "last_token_ts")
        if scheduled is None or first is None or last is None or not scheduled <= first <= last:
            return []
        generated = sum(len(completion.token_ids) for completion in getattr(output, "outputs", ()))
        times.append((scheduled, first, last, generated))
    return times


def _seconds(metrics: Any, name: str) -> float | None:
    """A time of the metrics; vLLM leaves it 0 where it was not taken."""
    value = getattr(metrics, name, None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value > 0 else None
