"""Chrome's trace events: power as counters, rounds and phases as slices. Perfetto opens it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from pytest_tokenpower.core.text import short_test_name
from pytest_tokenpower.gate.messages import word
from pytest_tokenpower.reporting.report import Report, Reported

_ROUNDS, _PHASES = 1, 2
"""Threads of a test's process in the trace."""


def trace(report: Report) -> str:
    """Return the trace: tests are processes, with rounds and phases as threads, boards as counters.

    Power is drawn where a test's readings are at hand; the mean of a round is in its slice. Times are those of the
    run's own clock.
    """
    events = [event for process, each in enumerate(report, 1) for event in _events(process, each)]
    return msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms"}).decode() + "\n"


def _events(process: int, each: Reported) -> Iterator[dict[str, Any]]:
    measured = each.measured
    honest = (
        "" if measured.provenance in ("measured", each.kind) else f" ({measured.provenance}, not measured)"
    )
    yield _meta(process, "process_name", 0, f"{short_test_name(measured.test)}: {word(each.kind)}{honest}")
    yield _meta(process, "thread_name", _ROUNDS, "rounds")
    for number, one in enumerate(measured.rounds, 1):
        yield {
            "ph": "X", "pid": process, "tid": _ROUNDS, "cat": "round",
            "name": f"round {number}" + (" (dropped)" if one.reasons else ""),
            "ts": one.start_ns / 1e3, "dur": one.seconds * 1e6,
            "args": {
                "joules": one.joules,
                "mean_watts": None if one.joules is None or not one.seconds else one.joules / one.seconds,
                "generated_tokens": one.generated_tokens,
                "dropped_for": list(one.reasons),
            },
        }  # fmt: skip
    if each.curves is None:
        return
    start_us = each.curves.start_ns / 1e3
    yield _meta(process, "thread_name", _PHASES, "phases" + (", estimated" if each.curves.estimated else ""))
    for span in each.curves.spans:
        yield {
            "ph": "X", "pid": process, "tid": _PHASES, "cat": "phase", "name": span.phase,
            "ts": start_us + span.start_us, "dur": span.end_us - span.start_us,
        }  # fmt: skip
    for curve in each.curves.devices:
        # A counter holds from its event on, a step up to its end: the value is set where the step before it ended.
        begun = [2 * curve.end_us[0] - curve.end_us[1] if len(curve.end_us) > 1 else 0, *curve.end_us[:-1]]
        for at, watts in zip(begun, curve.mean, strict=True):
            if watts is not None:
                yield _watts(process, f"W of {curve.device}", start_us + at, watts)


def _watts(process: int, name: str, at_us: float, watts: float) -> dict[str, Any]:
    return {"ph": "C", "pid": process, "name": name, "ts": at_us, "args": {"watts": watts}}


def _meta(process: int, kind: str, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": process, "tid": thread, "name": kind, "args": {"name": name}}
