"""Work without a pause for as long as a soak lasts, stretch after stretch, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable

from pytest_tokenpower.analysis.rounds import REACH_NS
from pytest_tokenpower.core.records import RoundRecord
from pytest_tokenpower.core.tokens import count_tokens
from pytest_tokenpower.engines.execution import Execution
from pytest_tokenpower.engines.phase_marks import phases_of
from pytest_tokenpower.errors import MeterError
from pytest_tokenpower.runner.rounds import counted_round, executed, repeats_in
from pytest_tokenpower.runner.telemetry import TelemetrySession


def soak(
    work: Execution,
    bench: TelemetrySession,
    seconds: float,
    stretch_s: float,
    keep: Callable[[float, RoundRecord], object],
) -> None:
    """Run ``work`` for ``seconds``, and hand each stretch over with the time at which it began; raises as engines do.

    Raises MeterError, after the stretch is handed over, where a meter will not read again.
    The first execution warms up and tells how long one takes. Readings older than an evaluation looks at are let go.
    """
    clock = bench.clock
    first = counted_round(executed(work, 1, bench), count_tokens, phases_of)
    repeats = repeats_in(stretch_s, (first.end_ns - first.start_ns) / 1e9)
    began_ns = clock.monotonic_ns()
    while (at_s := (clock.monotonic_ns() - began_ns) / 1e9) < seconds:
        window = counted_round(executed(work, repeats, bench), count_tokens, lambda result: ())
        [record] = bench.assess([window])
        keep(at_s, record)
        if bench.failed_for_good(window.start_ns):
            raise MeterError(f"the meter has failed for good after {at_s:.0f} s: {'; '.join(record.reasons)}")
        bench.collector.timeline.forget(window.start_ns - REACH_NS)
