"""vLLM offline in this process, with every scheduler step marked exactly."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar

from pytest_tokenpower.engines._adapter import environment_kept, needing
from pytest_tokenpower.engines._arrivals import Admission
from pytest_tokenpower.engines.identify import identity_from_config
from pytest_tokenpower.engines.protocol import Generation
from pytest_tokenpower.engines.vllm.base import VllmAdapter, device_ids
from pytest_tokenpower.engines.vllm.requests import Requests, generation_of
from pytest_tokenpower.engines.vllm.steps import StepRecorder
from pytest_tokenpower.errors import EngineError
from pytest_tokenpower.models.fit import refuse_vllm
from pytest_tokenpower.workloads.arrivals import Arrivals
from pytest_tokenpower.workloads.base import Batch

_IN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"

DEFAULTS: dict[str, Any] = {
    # Without statistics RequestOutput.metrics is None.
    "disable_log_stats": False,
    # Exact step times; not vLLM's default deployment mode, hence recorded in the identity's facts.
    "async_scheduling": False,
    # Otherwise the second round of a batch would skip its prefill.
    "enable_prefix_caching": False,
    "skip_tokenizer_init": True,
}
"""Arguments that :class:`VllmEngine` gives to ``vllm.LLM`` unless its caller says otherwise."""


class VllmEngine(VllmAdapter):
    """``vllm.LLM`` in this process: ``VllmEngine("folder or hub id", **arguments of vllm.LLM)``.

    One at a time: vLLM's parallel groups belong to the process, and shutting one engine down takes them from any other.
    The engine core runs in-process (``VLLM_ENABLE_V1_MULTIPROCESSING=0`` while the engine is built); with tensor or
    pipeline parallelism vLLM still starts worker processes of its own. Generation is greedy, runs through
    end-of-sequence and is not detokenized. vLLM 0.19 to 0.32.
    """

    _last: ClassVar[weakref.ref[VllmEngine] | None] = None

    _recorder: StepRecorder | None = None

    def _load(self, name: str, options: dict[str, Any]) -> None:
        other = VllmEngine._last() if VllmEngine._last is not None else None
        if other is not None and other.llm is not None:
            raise EngineError(
                f"{name}: a vLLM engine of {other.identity.model} is open in this process, and vLLM keeps one set of "
                "parallel groups for all: close() that one first"
            )
        # Only while it is built, so that the caller's own engines are not affected.
        with environment_kept(**{_IN_PROCESS: "0"}):
            with needing("vllm", "vllm"):
                import vllm
                from vllm import envs
            if envs.VLLM_ENABLE_V1_MULTIPROCESSING:
                raise EngineError(
                    f"vLLM was imported before with {_IN_PROCESS} on and has kept that value: its engine would run "
                    f"in another process, out of reach for exact steps. Set {_IN_PROCESS}=0 before the first "
                    "import of vllm"
                )
            refuse_vllm(name, options)
            self._handle = vllm.LLM(model=name, **{**DEFAULTS, **options})
        self._config = self._handle.llm_engine.vllm_config
        self._recorder = StepRecorder(_scheduler(self._handle))
        self._identity = identity_from_config(self._config, vllm.__version__)
        self._device_ids = device_ids(self._config)
        VllmEngine._last = weakref.ref(self)

    def generate(self, batch: Batch) -> Generation:
        """Run the batch to its end; raises EngineError."""
        requests = self._ready(batch, "generate")
        return self._recorded(
            batch, lambda: self._handle.generate(requests.prompts, requests.sampling, use_tqdm=False)
        )

    def serve(self, batch: Batch, arrivals: Arrivals) -> Generation:
        """Run the batch with its prompts arriving as ``arrivals`` says; otherwise as :meth:`generate`.

        A request that is due joins before the next step. While none is unfinished this waits for the next one: such
        idle time is in the window of the round, as its energy is, and in none of the steps.
        """
        requests = self._ready(batch, "serve")
        return self._recorded(batch, lambda: self._serve(requests, arrivals))

    def _recorded(self, batch: Batch, work: Callable[[], Sequence[Any]]) -> Generation:
        assert self._recorder is not None
        self._recorder.clear()
        with self._running():
            outputs = work()
        steps, exact = self._recorder.take()
        return generation_of(batch, outputs, steps, exact=exact)

    def _serve(self, requests: Requests, arrivals: Arrivals) -> list[Any]:
        engine = self._handle.llm_engine
        admission = Admission(arrivals, len(requests.inputs))
        outputs: dict[int, Any] = {}
        began = time.monotonic()
        while not admission.done:
            for index in admission.take(time.monotonic() - began):
                engine.add_request(str(index), requests.inputs[index], requests.sampling)
            if not admission.unfinished:
                time.sleep(admission.wait_s(time.monotonic() - began) or 0.0)
                continue
            ended = [output for output in engine.step() if output.finished]
            outputs |= {int(output.request_id): output for output in ended}
            admission.finished(len(ended))
        return [outputs[index] for index in range(len(outputs))]

    def _abandon(self, handle: Any) -> None:
        with suppress(Exception):
            # All of them are ours: LLM.generate does not say what it has called its own.
            requests = list(handle.llm_engine.output_processor.request_states)
            handle.llm_engine.abort_request(requests, internal=True)

    def _shut_down(self, handle: Any) -> None:
        if self._recorder is not None:
            self._recorder.unwrap()
        self._recorder = self._requests = None
        handle.llm_engine.engine_core.shutdown()
        del handle
        gc.collect()
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()


def _scheduler(llm: Any) -> Any:
    """Return the engine core's scheduler; ``EngineCoreClient`` in-process holds the core under ``engine_core``."""
    core = getattr(llm.llm_engine.engine_core, "engine_core", None)
    scheduler = getattr(core, "scheduler", None)
    if scheduler is None:
        raise EngineError(
            "this vLLM keeps its scheduler out of reach (no llm_engine.engine_core.engine_core.scheduler): "
            "pytest-tokenpower knows vLLM 0.19 to 0.32 with its engine core in-process"
        )
    return scheduler
