"""vLLM offline in this process, with every scheduler step marked exactly."""

from __future__ import annotations

import gc
import os
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

from pytest_tokenpower.engines._adapter import cannot_load, missing_package
from pytest_tokenpower.engines._arrivals import Admission
from pytest_tokenpower.engines.protocol import EngineIdentity, Generation
from pytest_tokenpower.engines.vllm.config import device_ids, identity_from_config
from pytest_tokenpower.engines.vllm.requests import Requests, generation_of, requests_of
from pytest_tokenpower.engines.vllm.steps import StepRecorder
from pytest_tokenpower.errors import EngineError
from pytest_tokenpower.models.checkpoint import require_model
from pytest_tokenpower.models.fit import refuse_vllm
from pytest_tokenpower.workloads.arrivals import Arrivals
from pytest_tokenpower.workloads.base import Batch
from pytest_tokenpower.workloads.tokenizers import tokenizer_of

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


class VllmEngine:
    """``vllm.LLM`` in this process: ``VllmEngine("folder or hub id", **arguments of vllm.LLM)``.

    One at a time: vLLM's parallel groups belong to the process, and shutting one engine down takes them from any other.
    The engine core runs in-process (``VLLM_ENABLE_V1_MULTIPROCESSING=0`` while the engine is built); with tensor or
    pipeline parallelism vLLM still starts worker processes of its own. Generation is greedy, runs through
    end-of-sequence and is not detokenized. vLLM 0.19 to 0.32.
    """

    _last: ClassVar[weakref.ref[VllmEngine] | None] = None

    def __init__(self, model: str | os.PathLike[str], **llm_args: Any) -> None:
        name = require_model(model)
        other = VllmEngine._last() if VllmEngine._last is not None else None
        if other is not None and other._llm is not None:
            raise EngineError(
                f"{name}: a vLLM engine of {other.identity.model} is open in this process, and vLLM keeps one set of "
                "parallel groups for all: close() that one first"
            )
        self._llm: Any = None
        self._recorder: StepRecorder | None = None
        self._requests: Requests | None = None
        with _in_process():
            try:
                import vllm
                from vllm import envs
            except ImportError as error:
                raise missing_package("vllm", "vllm", error) from error
            if envs.VLLM_ENABLE_V1_MULTIPROCESSING:
                raise EngineError(
                    f"vLLM was imported before with {_IN_PROCESS} on and has kept that value: its engine would run "
                    f"in another process, out of reach for exact steps. Set {_IN_PROCESS}=0 before the first "
                    "import of vllm"
                )
            refuse_vllm(name, llm_args)
            try:
                self._llm = vllm.LLM(model=name, **{**DEFAULTS, **llm_args})
            except Exception as error:  # ValueError, pydantic's, torch's and vLLM's own among them
                raise cannot_load(name, "vLLM", llm_args, error) from error
        self.encode = tokenizer_of(name)
        try:
            self._config = self._llm.llm_engine.vllm_config
            self._recorder = StepRecorder(_scheduler(self._llm))
            self._identity = identity_from_config(self._config, vllm.__version__)
            self._device_ids = device_ids(self._config)
        except BaseException:
            self.close()
            raise
        VllmEngine._last = weakref.ref(self)

    @property
    def llm(self) -> Any:
        """The ``vllm.LLM`` itself; None after :meth:`close`."""
        return self._llm

    @property
    def identity(self) -> EngineIdentity:
        """Read from the engine's own ``VllmConfig``."""
        return self._identity

    @property
    def device_ids(self) -> Sequence[str] | None:
        """NVML UUIDs of the GPUs that the workers use; empty on a CPU; None on other accelerators."""
        return self._device_ids

    def generate(self, batch: Batch) -> Generation:
        """Run the batch to its end; raises EngineError, also where a prompt was read from the prefix cache."""
        with self._running(batch, "generate") as (requests, recorder):
            outputs = self._llm.generate(requests.prompts, requests.sampling, use_tqdm=False)
        steps, exact = recorder.take()
        return generation_of(batch, outputs, steps, exact=exact)

    def serve(self, batch: Batch, arrivals: Arrivals) -> Generation:
        """Run the batch with its prompts arriving as ``arrivals`` says; otherwise as :meth:`generate`.

        A request that is due joins before the next step. While none is unfinished this waits for the next one: such
        idle time is in the window of the round, as its energy is, and in none of the steps.
        """
        with self._running(batch, "serve") as (requests, recorder):
            outputs = self._serve(requests, arrivals)
        steps, exact = recorder.take()
        return generation_of(batch, outputs, steps, exact=exact)

    def _serve(self, requests: Requests, arrivals: Arrivals) -> list[Any]:
        engine = self._llm.llm_engine
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

    @contextmanager
    def _running(self, batch: Batch, method: str) -> Iterator[tuple[Requests, StepRecorder]]:
        """Make the batch ready; what fails in the block leaves no request behind in the engine."""
        if self._llm is None or self._recorder is None:
            raise EngineError(f"vLLM engine of {self._identity.model}: {method}() after close()")
        if self._requests is None or self._requests.batch is not batch:
            self._requests = requests_of(batch, self._config)
        self._recorder.clear()
        try:
            yield self._requests, self._recorder
        except BaseException as error:
            _abort_all(self._llm.llm_engine)
            if isinstance(error, EngineError) or not isinstance(error, Exception):
                raise
            # A failed step surfaces as whatever torch or vLLM raised.
            raise EngineError(f"vLLM, {self._identity.model}: the batch failed: {error}") from error

    def close(self) -> None:
        """Shut the engine down, end its workers and free the memory; safe to call twice."""
        if self._llm is None:
            return
        llm, self._llm = self._llm, None
        if self._recorder is not None:
            self._recorder.unwrap()
        self._recorder = self._requests = None
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()


@contextmanager
def _in_process() -> Iterator[None]:
    """Have vLLM build its engine core in this process; the caller's own engines are not affected."""
    before = os.environ.get(_IN_PROCESS)
    os.environ[_IN_PROCESS] = "0"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_IN_PROCESS, None)
        else:
            os.environ[_IN_PROCESS] = before


def _scheduler(llm: Any) -> Any:
    """The engine core's scheduler; ``EngineCoreClient`` in-process holds the core under ``engine_core``."""
    core = getattr(llm.llm_engine.engine_core, "engine_core", None)
    scheduler = getattr(core, "scheduler", None)
    if scheduler is None:
        raise EngineError(
            "this vLLM keeps its scheduler out of reach (no llm_engine.engine_core.engine_core.scheduler): "
            "pytest-tokenpower knows vLLM 0.19 to 0.32 with its engine core in-process"
        )
    return scheduler


def _abort_all(engine: Any) -> None:
    """Have the engine forget its requests; what had failed is the error that matters."""
    with suppress(Exception):
        # All of them are ours: LLM.generate does not say what it has called its own.
        engine.abort_request(list(engine.output_processor.request_states), internal=True)
