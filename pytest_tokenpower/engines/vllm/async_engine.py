"""vLLM with its engine core in a process of its own, as servers run it: ``AsyncLLM`` on an event loop of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

from pytest_tokenpower.engines._adapter import needing
from pytest_tokenpower.engines._arrivals import Admission, EventLoop, all_of, run_admitted
from pytest_tokenpower.engines.identify import identity_from_config
from pytest_tokenpower.engines.protocol import EngineIdentity, Generation
from pytest_tokenpower.engines.vllm.base import VllmAdapter, device_ids
from pytest_tokenpower.engines.vllm.processes import end, end_context, processes_of, spawning
from pytest_tokenpower.engines.vllm.requests import Requests, generation_of
from pytest_tokenpower.engines.vllm.steps import Iteration, IterationRecorder, flights_of, steps_of
from pytest_tokenpower.errors import EngineError
from pytest_tokenpower.models.fit import refuse_vllm
from pytest_tokenpower.workloads.arrivals import Arrivals
from pytest_tokenpower.workloads.base import Batch

_DETAILS = "enable_logging_iteration_details"

Work = Callable[[Requests], Coroutine[Any, Any, list[Any]]]

CLOSE_S = 20.0
"""So long the engine's processes may take to end by themselves."""

DEFAULTS: dict[str, Any] = {
    # Otherwise the second round of a batch would skip its prefill.
    "enable_prefix_caching": False,
    "skip_tokenizer_init": True,
    # Leaves out the logger that would write a line for every iteration; statistics go on for ours.
    "disable_log_stats": True,
}
"""Arguments that :class:`VllmAsyncEngine` gives to ``vllm.AsyncEngineArgs`` unless its caller says otherwise."""


class VllmAsyncEngine(VllmAdapter):
    """``AsyncLLM``: ``VllmAsyncEngine("folder or hub id", **arguments of vllm.AsyncEngineArgs)``.

    The engine core runs in a process of its own, with asynchronous scheduling where that is vLLM's default: what users
    deploy. Generation is greedy, runs through end-of-sequence and is not detokenized.

    Steps are estimates (``steps_exact`` is False): what an iteration computed is vLLM's own count, and it ends when the
    engine core had its tokens, by the core's clock; its start is not reported, so that each begins at the end of the
    one before, with the host's work between them, or when the first request was scheduled after the engine had idled.
    The facts ``steps`` and ``step_clock`` say so. With data parallelism the cores' steps overlap and are not given.
    Between batches the engine is paused, so that all requests of the next are there when its first step begins.
    """

    _loop: EventLoop | None = None
    _processes: Sequence[Any] = ()
    _resting: asyncio.Task[bool] | None = None

    def _load(self, name: str, options: dict[str, Any]) -> None:
        with needing("vllm", "vllm"):
            import vllm
            from vllm.v1.engine.async_llm import AsyncLLM
        refuse_vllm(name, options)
        self._one_batch = asyncio.Lock()
        self._recorder = IterationRecorder()
        self._loop = EventLoop("tokenpower-vllm")
        with spawning():
            self._handle = self._loop.run(self._start(vllm, AsyncLLM, name, options))
        self._processes = processes_of(self._handle.engine_core)
        self._config = self._handle.vllm_config
        self._identity = self._describe(vllm.__version__)
        self._device_ids = device_ids(self._config)

    async def _start(self, vllm: Any, llm_class: Any, name: str, engine_args: dict[str, Any]) -> Any:
        known = {field.name for field in fields(vllm.AsyncEngineArgs)}
        details = {_DETAILS: True} if _DETAILS in known else {}
        args = vllm.AsyncEngineArgs(model=name, **{**DEFAULTS, **details, **engine_args})
        llm = llm_class.from_engine_args(args, stat_loggers=[self._recorder.logger])
        # Before the loop comes round to the task that receives outputs.
        self._recorder.watch(llm.engine_core)
        self._resting = asyncio.create_task(_pause(llm))
        return llm

    def _describe(self, version: str) -> EngineIdentity:
        identity = identity_from_config(self._config, version)
        observed = getattr(self._config, "observability_config", None)
        cores = self._config.parallel_config.data_parallel_size
        self._has_steps = bool(getattr(observed, _DETAILS, False)) and cores == 1
        facts = {
            "engine_process": "own",
            "steps": "ends estimated, starts from the step before" if self._has_steps else "unknown",
            "step_clock": self._recorder.clock if self._has_steps else None,
        }
        return replace(identity, engine="vllm-async", facts={**identity.facts, **facts})

    def generate(self, batch: Batch) -> Generation:
        """Run the batch to its end; raises EngineError, also where the engine's process ends meanwhile."""
        return self._run(batch, "generate", self._generate)

    def serve(self, batch: Batch, arrivals: Arrivals) -> Generation:
        """Run the batch with its prompts arriving as ``arrivals`` says; otherwise as :meth:`generate`.

        Time in which no request is unfinished is in the window of the round, as its energy is, and in no step.
        """
        return self._run(batch, "serve", lambda requests: self._serve(requests, arrivals))

    def close(self) -> None:
        """Shut the engine down, end its processes and the event loop; safe to call twice."""
        super().close()
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.close(CLOSE_S)

    def _shut_down(self, handle: Any) -> None:
        vars(handle.engine_core).pop("get_output_async", None)
        assert self._loop is not None
        with suppress(Exception):  # a core that crashed may leave nothing to shut down
            self._loop.run(_shut_down(handle))
        end_context(handle.engine_core, 1.0)
        # Of a core that crashed the workers are nobody's children any more.
        end(self._processes, CLOSE_S)

    def _run(self, batch: Batch, method: str, work: Work) -> Generation:
        requests = self._ready(batch, method)
        assert self._loop is not None
        with self._running():
            outputs, iterations = self._loop.run(self._measured(work, requests), self._dead)
        steps = steps_of(iterations, flights_of(outputs)) if self._has_steps else None
        return generation_of(batch, outputs, steps, exact=False)

    def _dead(self) -> EngineError | None:
        """Say what is so instead of waiting on for an answer that the engine core will not give."""
        if self._handle is None or not self._handle.errored:
            return None
        return EngineError(
            f"vLLM, {self._identity.model}: {self.failed}: the process of its engine core has ended"
        )

    async def _measured(self, work: Work, requests: Requests) -> tuple[list[Any], tuple[Iteration, ...]]:
        async with self._one_batch:  # one that was interrupted may still be cleared away
            if self._resting is not None:
                await self._resting
            self._recorder.clear()
            try:
                outputs = await work(requests)
            except BaseException:
                await self._abort_all()
                raise
            iterations = self._recorder.take()
            # After this call has returned, and so outside of its window.
            self._resting = asyncio.create_task(_pause(self._handle))
            return outputs, iterations

    async def _generate(self, requests: Requests) -> list[Any]:
        collectors = [
            await self._handle.add_request(str(index), each, requests.sampling)
            for index, each in enumerate(requests.inputs)
        ]
        await self._resume()
        return await all_of(_finish(collector) for collector in collectors)

    async def _serve(self, requests: Requests, arrivals: Arrivals) -> list[Any]:
        admission = Admission(arrivals, len(requests.inputs))
        await self._resume()

        async def respond(index: int) -> Any:
            return await _finish(
                await self._handle.add_request(str(index), requests.inputs[index], requests.sampling)
            )

        return await run_admitted(admission, respond)

    async def _resume(self) -> None:
        resting, self._resting = self._resting, None
        if resting is not None and resting.result():
            await self._handle.resume_generation()

    async def _abort_all(self) -> None:
        """Have the engine forget its requests and go on; what had failed is the error that matters."""
        with suppress(Exception):
            await self._resume()
            # A dead engine does not answer.
            if not self._handle.errored:
                await self._handle.abort(list(self._handle.output_processor.request_states), internal=True)
                # A step of theirs may still run: the next batch's begin when it has ended, as after any batch.
                self._resting = asyncio.create_task(_pause(self._handle))


async def _pause(llm: Any) -> bool:
    """Hold new requests back, where this vLLM can; says whether they are."""
    # AsyncLLM.pause_generation() is this call and 20 ms of sleep, which would be in a round that follows at once.
    pause = getattr(llm.engine_core, "pause_scheduler_async", None) or getattr(llm, "pause_generation", None)
    try:
        await pause(mode="keep", clear_cache=False)  # type: ignore[misc]
    except Exception:  # no such mode, or an engine that has ended, which the next batch will say
        return False
    return True


async def _finish(collector: Any) -> Any:
    """Wait for the last output of a request; raises what the engine says of its failure."""
    while True:
        output = collector.get_nowait() or await collector.get()
        if output.finished:
            return output


async def _shut_down(llm: Any) -> None:
    llm.shutdown(timeout=CLOSE_S / 2)
