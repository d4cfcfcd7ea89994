"""Prefill and decode of one execution, read off what the workload returned."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.core.windows import DECODE, MIXED, PREFILL, Latency, PhaseWindow
from pytest_tokenpower.engines.protocol import Generation, Step
from pytest_tokenpower.engines.vllm.requests import (
    has_metrics,
    lack_of_times,
    latencies_from_request_metrics,
    steps_from_request_metrics,
    stretches_from_request_metrics,
)

PHASES_ABSENT = "phases.absent"
"""The note that says why an execution has no phases."""


def tells_more(result: object) -> bool:
    """Tell whether a result that is counted can still say what phases or latencies its execution had."""
    return isinstance(result, Generation) or has_metrics(result)


def phases_of(result: object) -> tuple[PhaseWindow, ...]:
    """Read an execution's phases off its result: from our engines' steps, else vLLM's request metrics, else none.

    Request metrics tell the phases exactly where all prefills came before the first decode step, else as estimates.
    """
    if isinstance(result, Generation):
        return phases_of_steps(result.steps, estimated=not result.steps_exact)
    marks = steps_from_request_metrics(result)
    if marks is None:
        return ()
    if marks.mixed:
        return phases_of_steps(stretches_from_request_metrics(result), estimated=True)
    prefill = PhaseWindow("prefill", *marks.prefill)
    return (
        (prefill, PhaseWindow("decode", *marks.decode))
        if marks.decode_end_ns > marks.prefill_end_ns
        else (prefill,)
    )


def joined(executions: Sequence[Sequence[PhaseWindow]]) -> tuple[PhaseWindow, ...]:
    """Return the phases of a round of several executions; none where they would not add up.

    One execution without phases makes the others' sums short. Where two ran at a time, each one's phases have the
    energy of both.
    """
    if not all(executions):
        return ()
    spans = sorted((min(p.start_ns for p in each), max(p.end_ns for p in each)) for each in executions)
    if any(after[0] < before[1] for before, after in pairwise(spans)):
        return ()
    return tuple(phase for each in executions for phase in each)


def latencies_of(results: Sequence[object]) -> tuple[Latency, ...]:
    """Read the latencies of a round's requests off its results; empty where one of them does not tell its own."""
    each = [
        tuple(one.latencies) if isinstance(one, Generation) else latencies_from_request_metrics(one)
        for one in results
    ]
    return tuple(latency for one in each for latency in one) if all(each) else ()


def unsound(results: Sequence[object]) -> tuple[str, ...]:
    """Ask the engine, now that the round of these results has closed, what else it did in it."""
    last = results[-1]
    reason = last.unsound() if isinstance(last, Generation) and last.unsound is not None else ""
    return (reason,) if reason else ()


def notes_of(result: object) -> dict[str, Fact]:
    """Facts for the record: why vLLM's outputs tell no phases."""
    if not lack_of_times(result):
        return {}
    return {
        PHASES_ABSENT: "vLLM's outputs have no times, which vllm.LLM(..., disable_log_stats=False) gives them; or use "
        "energy.run(EngineSpec('vllm', ...), workload)"
    }


def phases_of_steps(steps: Sequence[Step], *, estimated: bool = False) -> tuple[PhaseWindow, ...]:
    """Each step as a window of its own with its tokens; a step with prompt and generated tokens is ``mixed``.

    Steps that computed nothing new (a preempted prompt once more) count as prefill, which they repeat.
    """
    return tuple(
        PhaseWindow(
            _kind(step), step.start_ns, step.end_ns, estimated, step.prompt_tokens, step.generated_tokens
        )
        for step in steps
    )


def _kind(step: Step) -> str:
    if not step.generated_tokens:
        return PREFILL
    return MIXED if step.prompt_tokens else DECODE
