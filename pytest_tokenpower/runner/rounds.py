"""Warm-up, rounds, repeats inside a round, and stopping on precision."""

from __future__ import annotations

import math
import sys
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pytest_tokenpower.analysis.rounds import good, log_errors, log_joules_per_token
from pytest_tokenpower.core.progress import warmup_progress
from pytest_tokenpower.core.records import RoundRecord
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.windows import PhaseWindow, RoundWindow
from pytest_tokenpower.engines.phase_marks import joined, latencies_of, unsound
from pytest_tokenpower.errors import UsageError

if TYPE_CHECKING:
    from pytest_tokenpower.meters.clock import Clock

R = TypeVar("R")

MOST_ROUNDS = 10

MOST_SECONDS = 30.0
"""Beyond these a measurement begins as it is: what drifts on is the business of the temperature adjustment."""

LARGEST_SPEEDUP = 0.05
"""A round that is faster than the one before by more than this was still compiling, or filling caches."""

LARGEST_CLOCK_CHANGE = 0.02

LARGEST_DRIFT_CELSIUS = 3.0
"""Over the rounds that will be measured at least, as the last two rounds foretell it: J/token rises by 0.2 % per °C."""


def quick_enough(seconds: Sequence[float]) -> bool:
    """Whether the last round (seconds of each so far) was no longer much faster than the one before."""
    return len(seconds) < 2 or seconds[-1] > (1.0 - LARGEST_SPEEDUP) * seconds[-2]


def steady(rounds: Sequence[RoundRecord], rounds_ahead: int) -> bool:
    """Whether clock and temperature of the last two rounds allow to measure so many more; what is unknown does."""
    if len(rounds) < 2:
        return True
    before, last = rounds[-2], rounds[-1]
    if before.sm_clock_mhz and last.sm_clock_mhz:
        change = abs(last.sm_clock_mhz / before.sm_clock_mhz - 1.0)
        if change > LARGEST_CLOCK_CHANGE:
            return False
    if before.temperature_celsius is None or last.temperature_celsius is None:
        return True
    between = (last.start_ns - before.start_ns) / 1e9 + (last.seconds - before.seconds) / 2
    drift = abs(last.temperature_celsius - before.temperature_celsius) * last.seconds * rounds_ahead
    return drift <= LARGEST_DRIFT_CELSIUS * between


MOST_REPEATS = 10_000

LOOK_NS = 5_000_000_000
"""How often a round of many executions looks whether its meters still read."""


@dataclass(frozen=True)
class RoundPlan:
    """How many rounds: ``min_rounds`` always, then more while precision asks for them and time allows.

    Before them ``warmup_rounds``, then more until the last two are alike. ``per`` is the denominator of what has to be
    precise; None: it follows from the counts.
    """

    warmup_rounds: int
    min_rounds: int
    max_rounds: int
    max_seconds: float
    per: str | None = None


class RoundEvaluator(Protocol):
    """What the orchestrator needs of the telemetry."""

    @property
    def clock(self) -> Clock:
        """The clock that windows are on."""
        ...

    def shortest_window_ns(self) -> float:
        """How long a round must be for the meter to resolve it."""
        ...

    def assess(self, windows: Sequence[RoundWindow]) -> tuple[RoundRecord, ...]:
        """Wait until the readings reach beyond the last window, and give each round its energy and reasons."""
        ...

    def failed_for_good(self, start_ns: int) -> bool:
        """Whether a meter that is needed for what runs since then has failed, and will not read again."""
        ...


@dataclass(frozen=True)
class Executed:
    """The executions of one round: what they returned, and the window on the monotonic clock around all of them."""

    results: Sequence[object]
    start_ns: int
    end_ns: int


Measuring = Generator[tuple[Callable[[], Any], int], Executed, R]
"""A measurement under way: it asks for so many executions of a workload in one window, and gives what came of them."""


def rounds(
    execute: Callable[[], Any],
    count: Callable[[object], TokenCount],
    phases: Callable[[object], Sequence[PhaseWindow]],
    plan: RoundPlan,
    bench: RoundEvaluator,
) -> Measuring[tuple[object, tuple[RoundWindow, ...]]]:
    """Warm up, measure rounds, and return the last result with the windows of the measured rounds.

    A workload shorter than the meter resolves is repeated inside each round. Results are counted after the window has
    closed (see :func:`executed` for what runs inside it).
    """
    __tracebackhide__ = True
    warmup: list[RoundWindow] = []
    tell = warmup_progress()
    clock = bench.clock
    began = clock.seconds()
    # Without a warm-up the first round still has to tell how long one is; it is no measurement then.
    while len(warmup) < max(plan.warmup_rounds, 1) or not (
        len(warmup) >= MOST_ROUNDS or clock.seconds() - began > MOST_SECONDS or _warm(warmup, plan, bench)
    ):
        tell(len(warmup), clock.seconds())
        ran = yield execute, 1
        warmup.append(counted_round(ran, count, phases))
        if bench.failed_for_good(ran.start_ns):
            break
    repeats = repeats_for(min(_seconds(warmup)), bench)
    windows: list[RoundWindow] = []
    began = clock.seconds()
    while True:
        ran = yield execute, repeats
        windows.append(counted_round(ran, count, phases))
        if bench.failed_for_good(ran.start_ns):
            break
        if len(windows) < plan.min_rounds:
            continue
        records = bench.assess(windows)
        kept = len(good(records))
        if kept == 0 or len(windows) >= plan.max_rounds:
            break
        if clock.seconds() - began > plan.max_seconds and kept >= min(plan.min_rounds, 2):
            break
        if kept >= plan.min_rounds and _precise(records, plan):
            break
    return ran.results[-1], tuple(windows)


def run(measuring: Measuring[R], bench: Callable[[], RoundEvaluator]) -> R:
    """Execute what a measurement asks for; what a workload raises is raised where it was asked for, too.

    ``bench`` gives the telemetry of the moment: a measurement may narrow it down to the boards of its engine.
    """
    __tracebackhide__ = True
    execute, repeats = next(measuring)
    while True:
        try:
            ran = executed(execute, repeats, bench())
        except StopIteration:
            measuring.close()  # thrown into a generator it would come out as a RuntimeError
            raise
        except BaseException as error:
            measuring.throw(error)
            raise
        try:
            execute, repeats = measuring.send(ran)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


async def run_async(measuring: Measuring[R], bench: Callable[[], RoundEvaluator]) -> R:
    """As :func:`run`, for workloads that are awaited, on whatever event loop awaits this."""
    __tracebackhide__ = True
    execute, repeats = next(measuring)
    while True:
        try:
            ran = await executed_async(execute, repeats, bench())
        except BaseException as error:
            measuring.throw(error)
            raise
        try:
            execute, repeats = measuring.send(ran)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


def _warm(warmup: Sequence[RoundWindow], plan: RoundPlan, bench: RoundEvaluator) -> bool:
    """Whether the last two rounds of the warm-up are alike; a single one cannot tell, nor can one round drift."""
    if len(warmup) < 2:
        return True
    if not quick_enough(_seconds(warmup)):
        return False
    return plan.max_rounds == 1 or steady(bench.assess(warmup[-2:]), plan.min_rounds)


def _seconds(windows: Sequence[RoundWindow]) -> list[float]:
    return [(window.end_ns - window.start_ns) / 1e9 for window in windows]


def _precise(records: Sequence[RoundRecord], plan: RoundPlan) -> bool:
    from pytest_tokenpower.stats.stopping import enough

    values, errors = log_joules_per_token(records, plan.per), log_errors(records, plan.per)
    meter = sum(error**2 for error in errors) / len(errors) ** 2
    return enough(values, meter, fewest=plan.min_rounds, most=plan.max_rounds)


def repeats_for(seconds: float, bench: RoundEvaluator) -> int:
    """Return how often a workload of so many seconds is repeated in a round that the meter can resolve."""
    if seconds == 0 and bench.clock.every is not None:
        raise UsageError(
            'the boards are simulated on a virtual clock ("clock": "virtual" in the scenario), and the workload let no '
            "time pass on it: leave that out of the scenario"
        )
    return repeats_in(bench.shortest_window_ns() / 1e9, seconds)


def repeats_in(stretch_s: float, seconds: float) -> int:
    """Return how many executions of so many seconds fill a stretch."""
    return max(1, min(MOST_REPEATS, math.ceil(stretch_s / max(seconds, 1e-6))))


def watched(start_ns: int, bench: RoundEvaluator) -> Callable[[], bool]:
    """Whether to go on with a round that began then: looked at rarely, and never in a round of a few seconds."""
    look_ns = start_ns + LOOK_NS
    now_ns = bench.clock.monotonic_ns

    def going_on() -> bool:
        nonlocal look_ns
        if now_ns() < look_ns:
            return True
        look_ns = now_ns() + LOOK_NS
        return not bench.failed_for_good(start_ns)

    return going_on


def executed(execute: Callable[[], object], repeats: int, bench: RoundEvaluator) -> Executed:
    """Run ``repeats`` executions in one window, fewer where a meter fails for good meanwhile.

    One alone has nothing of ours beside it; between several the clock is read, to tell when to look at the meter.
    """
    __tracebackhide__ = True
    wait, now_ns = device_wait(), bench.clock.monotonic_ns
    start_ns = now_ns()
    results: list[object] = [execute()]
    going_on = watched(start_ns, bench)
    while len(results) < repeats and going_on():
        results.append(execute())
    if wait is not None:
        wait()
    return Executed(results, start_ns, now_ns())


async def executed_async(
    execute: Callable[[], Awaitable[object]], repeats: int, bench: RoundEvaluator
) -> Executed:
    """As :func:`executed`, awaited."""
    __tracebackhide__ = True
    wait, now_ns = device_wait(), bench.clock.monotonic_ns
    start_ns = now_ns()
    results: list[object] = [await execute()]
    going_on = watched(start_ns, bench)
    while len(results) < repeats and going_on():
        results.append(await execute())
    if wait is not None:
        wait()
    return Executed(results, start_ns, now_ns())


def counted_round(
    executed: Executed,
    count: Callable[[object], TokenCount],
    phases: Callable[[object], Sequence[PhaseWindow]],
) -> RoundWindow:
    """Count the executions of a round whose window has closed."""
    tokens = [count(result) for result in executed.results]
    return RoundWindow(
        start_ns=executed.start_ns,
        end_ns=executed.end_ns,
        tokens=sum(tokens[1:], tokens[0]),
        repeats=len(executed.results),
        executions=frozenset(tokens),
        phases=joined([phases(result) for result in executed.results]),
        latencies=latencies_of(executed.results),
        reasons=unsound(executed.results),
    )


def device_wait() -> Callable[[], object] | None:
    """Return what waits for the GPU's queued work, if this process has one under way; never creates a CUDA context."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return None
    wait: Callable[[], object] = torch.cuda.synchronize
    return wait
