"""Steps of vLLM's scheduler: marked around its calls in one process, from its logger and clock in another."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_tokenpower.engines.protocol import Step
from pytest_tokenpower.errors import EngineError


class StepRecorder:
    """Wraps ``schedule`` and ``update_from_output`` of an in-process vLLM scheduler.

    A step starts when its batch is scheduled and ends when the sampled tokens are there. On the measured path only
    a clock reading and a list append are added to each call; token counts are worked out in :meth:`take`.
    """

    def __init__(self, scheduler: Any) -> None:
        for name in ("schedule", "update_from_output"):
            if not callable(getattr(scheduler, name, None)):
                raise EngineError(
                    f"this vLLM's {type(scheduler).__name__} has no {name}(): pytest-tokenpower knows the schedulers "
                    "of vLLM 0.19 to 0.32"
                )
        self._scheduler = scheduler
        self._scheduled: list[tuple[int, Any]] = []
        self._finished: list[tuple[int, Any, Any]] = []
        self._wrap(scheduler.schedule, scheduler.update_from_output)

    def _wrap(self, schedule: Callable[..., Any], update: Callable[..., Any]) -> None:
        scheduled, finished, clock = self._scheduled.append, self._finished.append, time.monotonic_ns

        def marked_schedule(*args: Any, **kwargs: Any) -> Any:
            start = clock()
            output = schedule(*args, **kwargs)
            scheduled((start, output))
            return output

        def marked_update(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            end = clock()
            outputs = update(scheduler_output, *args, **kwargs)
            finished((end, scheduler_output, outputs))
            return outputs

        self._scheduler.schedule = marked_schedule
        self._scheduler.update_from_output = marked_update

    def unwrap(self) -> None:
        """Give the scheduler its own methods back."""
        for name in ("schedule", "update_from_output"):
            vars(self._scheduler).pop(name, None)
        self.clear()

    def clear(self) -> None:
        """Forget what was recorded."""
        self._scheduled.clear()
        self._finished.clear()

    def take(self) -> tuple[tuple[Step, ...], bool]:
        """Return the steps since the last call, in order, and whether their marks and labels are exact.

        They are not where steps ran into one another (pipeline parallelism, asynchronous scheduling: each is then
        counted from the end of the one before), or where preempted requests were computed again, which is neither
        prompt nor generated tokens.
        """
        starts = {id(output): start for start, output in self._scheduled}
        steps: list[Step] = []
        prefilled: dict[str, int] = {}
        exact = True
        last_end = 0
        for end, scheduled, outputs in self._finished:
            if not scheduled.num_scheduled_tokens:
                continue
            start = starts[id(scheduled)]
            if start < last_end:
                start, exact = last_end, False
            context = context_positions(scheduled)
            prompt = 0
            for request, (first, end_position) in context.items():
                done = prefilled.get(request, first)
                prompt += max(end_position - done, 0)
                prefilled[request] = max(end_position, done)
            decoded = sum(n for request, n in generated_tokens(outputs).items() if request not in context)
            exact = exact and not recomputed(scheduled)
            steps.append(Step(start, end, prompt_tokens=prompt, generated_tokens=decoded))
            last_end = end
        self.clear()
        return tuple(steps), exact


def context_positions(scheduled: Any) -> dict[str, tuple[int, int]]:
    """First and end position that this step computes of each request that is prefilled in it.

    Such requests are new, or known and without any output token yet: the rule of
    ``vllm.v1.utils.compute_iteration_details``, of which only the sums come out. The positions tell a prompt that
    is computed for the first time from one that is computed again after a preemption.
    """
    counts, cached = scheduled.num_scheduled_tokens, scheduled.scheduled_cached_reqs
    starts = {new.req_id: new.num_computed_tokens for new in scheduled.scheduled_new_reqs}
    for request, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
        if cached.is_context_phase(request):
            starts[request] = computed
    return {request: (start, start + counts[request]) for request, start in starts.items()}


def generated_tokens(outputs: Any) -> dict[str, int]:
    """Tokens that came out of one step, by request, from what ``update_from_output`` returned."""
    counts: dict[str, int] = {}
    for core_outputs in outputs.values():
        for output in core_outputs.outputs:
            counts[output.request_id] = counts.get(output.request_id, 0) + len(output.new_token_ids)
    return counts


def recomputed(scheduled: Any) -> bool:
    """Tell whether a preempted request, its cache thrown away, is computed again in this step."""
    resumed: Sequence[str] | set[str] | None = getattr(
        scheduled.scheduled_cached_reqs, "resumed_req_ids", None
    )
    if resumed is not None:
        return bool(resumed)
    return any(getattr(scheduled.scheduled_cached_reqs, "resumed_from_preemption", ()))


@dataclass(frozen=True)
class Iteration:
    """Counts of one iteration of the engine core, and the time when its tokens were there (monotonic clock)."""

    end_ns: int
    prompt_tokens: int
    generated_tokens: int


class IterationRecorder:
    """Collects the iterations of an ``AsyncLLM``; for one engine core.

    ``logger`` is a factory for its ``stat_loggers``. The time of an iteration is the one that the engine core gave to
    its outputs (``EngineCoreOutputs.timestamp``, the monotonic clock, which processes of a host share) where
    :meth:`watch` could see to that; otherwise the time at which they came to this process. ``clock`` says whose it is.
    """

    def __init__(self) -> None:
        self._iterations: list[Iteration] = []
        self._core_ns: int | None = None
        self.clock = "front end"

    def logger(self, _config: Any, _engine_index: int = 0) -> Any:
        """Make a ``vllm.v1.metrics.loggers.StatLoggerBase`` that records here."""
        from vllm.v1.metrics.loggers import StatLoggerBase

        recorder = self

        class Logger(StatLoggerBase):  # type: ignore[misc]
            def __init__(self) -> None:
                pass

            def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
                recorder.record(scheduler_stats, iteration_stats)

            def log_engine_initialized(self) -> None:
                pass

        return Logger()

    def watch(self, client: Any) -> None:
        """Take the time of each iteration from what this ``EngineCoreClient`` receives, where that has one."""
        from vllm.v1.engine import EngineCoreOutputs

        receive: Callable[[], Awaitable[Any]] | None = getattr(client, "get_output_async", None)
        if receive is None or "timestamp" not in getattr(EngineCoreOutputs, "__struct_fields__", ()):
            return
        self.clock = "engine core"

        async def marked() -> Any:
            outputs = await receive()
            self._core_ns = int(outputs.timestamp * 1e9)
            return outputs

        client.get_output_async = marked

    def record(self, scheduler_stats: Any, iteration_stats: Any) -> None:
        """Keep what an iteration says of itself; other statistics, and idle iterations, say nothing."""
        details = getattr(scheduler_stats, "iteration_details", None)
        if details is None or getattr(details, "is_dummy", False):
            return
        generated = 0
        if iteration_stats is not None:
            # The first token of a response is of its prefill.
            generated = iteration_stats.num_generation_tokens - len(iteration_stats.time_to_first_tokens_iter)
        end_ns = time.monotonic_ns() if self._core_ns is None else self._core_ns
        self._iterations.append(Iteration(end_ns, details.num_ctx_tokens, generated))

    def clear(self) -> None:
        """Forget what was recorded."""
        self._iterations.clear()

    def take(self) -> tuple[Iteration, ...]:
        """Return the iterations since the last call, in order."""
        taken = tuple(self._iterations)
        self.clear()
        return taken


def flights_of(outputs: Iterable[Any]) -> tuple[tuple[int, int], ...]:
    """Tell when each request was first scheduled and when its last token was there, by ``RequestOutput.metrics``."""
    return tuple(
        (int(output.metrics.scheduled_ts * 1e9), int(output.metrics.last_token_ts * 1e9))
        for output in outputs
    )


def steps_of(iterations: Sequence[Iteration], flights: Sequence[tuple[int, int]]) -> tuple[Step, ...]:
    """Make steps of iterations. ``flights`` are the times at which each request was first scheduled and was done.

    An iteration is known by its end. It starts at the end of the one before, for the device goes from one to the
    next while requests are in flight: what the host does between them is in it. Where none was, the engine idled, and
    it starts when the next request was scheduled: idle time is in no step.
    """
    steps: list[Step] = []
    scheduled = sorted(start for start, _ in flights)
    before_ns: int | None = None
    for iteration in iterations:
        start_ns = before_ns
        if before_ns is None or not any(start <= before_ns < end for start, end in flights):
            start_ns = next((each for each in scheduled if before_ns is None or each > before_ns), before_ns)
        if start_ns is None or start_ns >= iteration.end_ns:
            start_ns = before_ns
        if start_ns is not None and start_ns < iteration.end_ns:
            steps.append(
                Step(start_ns, iteration.end_ns, iteration.prompt_tokens, iteration.generated_tokens)
            )
        before_ns = iteration.end_ns
    return tuple(steps)
