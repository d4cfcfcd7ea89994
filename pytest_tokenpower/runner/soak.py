"""Work without a pause for as long as a soak lasts, stretch after stretch, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pytest_tokenpower.analysis.other_scopes import whole
from pytest_tokenpower.analysis.rounds import reach_ns
from pytest_tokenpower.core.records import RoundRecord, VerdictRecord
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.windows import RoundWindow
from pytest_tokenpower.errors import MeterError
from pytest_tokenpower.runner.rounds import counted_round, executed, repeats_in
from pytest_tokenpower.runner.telemetry import TelemetrySession


@dataclass(frozen=True)
class Soak:
    """What a test is soaked by before its rounds.

    ``seconds`` are still to go, in stretches of ``stretch_s``; ``keep`` is handed each with the time at which it began,
    and ``ended`` says in the end what came of it, with a verdict where there is a limit.
    """

    seconds: float
    stretch_s: float
    keep: Callable[[float, RoundRecord], object]
    ended: Callable[[], tuple[str, VerdictRecord | None]]


def soak(
    execute: Callable[[], object],
    count: Callable[[object], TokenCount],
    asked: Soak,
    bench: TelemetrySession,
    *,
    forget: bool,
) -> None:
    """Run a workload as long as is asked for; raises whatever it raises.

    Raises MeterError, after the stretch is handed over, where a meter will not read again. The first execution warms up
    and tells how long one takes. With ``forget`` readings older than an evaluation of it looks at are let go.
    """
    __tracebackhide__ = True
    clock = bench.clock
    first = _executions(execute, count, 1, bench)
    each_s = (first.end_ns - first.start_ns) / 1e9
    began_ns = clock.monotonic_ns()
    while (at_s := (clock.monotonic_ns() - began_ns) / 1e9) < asked.seconds:
        window = _executions(execute, count, repeats_in(asked.stretch_s, each_s), bench)
        # Results are held until they are counted: a stretch of very short work is counted in parts.
        while (left_s := asked.stretch_s - (window.end_ns - window.start_ns) / 1e9) > max(each_s, 1e-3):
            window = whole([window, _executions(execute, count, repeats_in(left_s, each_s), bench)])
            if bench.failed_for_good(window.start_ns):
                break
        [record] = bench.assess([window])
        asked.keep(at_s, record)
        if bench.failed_for_good(window.start_ns):
            raise MeterError(f"the meter has failed for good after {at_s:.0f} s: {'; '.join(record.reasons)}")
        if forget:
            bench.collector.timeline.forget(window.start_ns - reach_ns((*bench.devices, *bench.others)))


def _executions(
    execute: Callable[[], object],
    count: Callable[[object], TokenCount],
    repeats: int,
    bench: TelemetrySession,
) -> RoundWindow:
    __tracebackhide__ = True
    return counted_round(executed(execute, repeats, bench), count, lambda result: ())
