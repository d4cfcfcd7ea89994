"""Prefill and decode of one execution, read off what the workload returned."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_tokenpower.engines.protocol import Generation, Step
from pytest_tokenpower.engines.request_metrics import steps_from_request_metrics
from pytest_tokenpower.measurement import PhaseWindow


def phases_of(result: object) -> tuple[PhaseWindow, ...]:
    """The phases of an execution: from our engines' steps, else from vLLM's request metrics, else none.

    Request metrics tell the phases only of a batch whose prefills all came before its first decode step.
    """
    if isinstance(result, Generation):
        return phases_of_steps(result.steps, estimated=not result.steps_exact)
    marks = steps_from_request_metrics(result)
    if marks is None or marks.mixed:
        return ()
    prefill = PhaseWindow("prefill", *marks.prefill)
    return (
        (prefill, PhaseWindow("decode", *marks.decode))
        if marks.decode_end_ns > marks.prefill_end_ns
        else (prefill,)
    )


def phases_of_steps(steps: Sequence[Step], *, estimated: bool = False) -> tuple[PhaseWindow, ...]:
    """Neighbouring steps of one phase as one window; none where a step is mixed.

    The time between two steps (scheduling, sampling on the host) belongs to the step that follows it.
    """
    windows: list[PhaseWindow] = []
    for step in steps:
        if step.prompt_tokens and step.generated_tokens:
            return ()
        phase = "prefill" if step.prompt_tokens else "decode"
        if windows and windows[-1].phase == phase:
            windows[-1] = PhaseWindow(phase, windows[-1].start_ns, step.end_ns, estimated)
        else:
            start_ns = windows[-1].end_ns if windows else step.start_ns
            windows.append(PhaseWindow(phase, start_ns, step.end_ns, estimated))
    return tuple(windows)
