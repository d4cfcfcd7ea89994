"""vLLM offline in this process, with every scheduler step marked exactly."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from pytest_tokenpower.engines.checkpoint import require_model
from pytest_tokenpower.engines.checks import check_batch, check_counts, check_steps, missing_package
from pytest_tokenpower.engines.protocol import Batch, EngineIdentity, Generation
from pytest_tokenpower.engines.vllm_config import identity_from_config
from pytest_tokenpower.engines.vllm_steps import StepRecorder
from pytest_tokenpower.errors import EngineError
from pytest_tokenpower.workloads.tokenizing import tokenizer_of

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
        self._work: tuple[Batch, list[Any], Any] | None = None
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
            try:
                self._llm = vllm.LLM(model=name, **{**DEFAULTS, **llm_args})
            except Exception as error:  # ValueError, pydantic's, torch's and vLLM's own among them
                raise EngineError(f"{name}: vLLM cannot load it: {error}") from error
        self._sampling: Any = vllm.SamplingParams
        self.encode = tokenizer_of(name)
        try:
            self._config = self._llm.llm_engine.vllm_config
            self._recorder = StepRecorder(_scheduler(self._llm))
            self._identity = identity_from_config(self._config, vllm.__version__)
            self._device_ids = _device_ids(self._config)
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
        if self._llm is None or self._recorder is None:
            raise EngineError(f"vLLM engine of {self._identity.model}: generate() after close()")
        prompts, sampling = self._prepare(batch)
        self._recorder.clear()
        try:
            outputs = self._llm.generate(prompts, sampling, use_tqdm=False)
        except Exception as error:  # a failed step surfaces as whatever torch or vLLM raised
            raise EngineError(f"vLLM, {self._identity.model}: the batch failed: {error}") from error
        steps, exact = self._recorder.take()
        for index, output in enumerate(outputs):
            if output.num_cached_tokens:
                raise EngineError(
                    f"vLLM: {output.num_cached_tokens} tokens of prompt {index} came from the prefix cache, so that "
                    "rounds do not do the same work: leave enable_prefix_caching off"
                )
        token_ids = tuple(tuple(output.outputs[0].token_ids) for output in outputs)
        check_counts(batch, token_ids, engine="vLLM")
        check_steps(batch, steps, engine="vLLM")
        return Generation(token_ids=token_ids, tokens=batch.tokens, steps=steps, steps_exact=exact)

    def close(self) -> None:
        """Shut the engine down, end its workers and free the memory; safe to call twice."""
        if self._llm is None:
            return
        llm, self._llm = self._llm, None
        if self._recorder is not None:
            self._recorder.unwrap()
        self._recorder = self._work = None
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()

    def _prepare(self, batch: Batch) -> tuple[list[Any], Any]:
        if self._work is None or self._work[0] is not batch:
            check_batch(
                batch,
                engine="vLLM",
                vocab_size=_vocab_size(self._config),
                max_positions=self._config.model_config.max_model_len,
            )
            prompts = [{"prompt_token_ids": list(prompt)} for prompt in batch.prompts]
            # No min_tokens: it changes the logits.
            sampling = self._sampling(
                temperature=0, max_tokens=batch.new_tokens, ignore_eos=True, detokenize=False
            )
            self._work = batch, prompts, sampling
        return self._work[1], self._work[2]


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


def _vocab_size(config: Any) -> int | None:
    try:
        return int(config.model_config.get_vocab_size())
    except (AttributeError, TypeError):
        return None


def _device_ids(config: Any) -> tuple[str, ...] | None:
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return ()
    if not current_platform.is_cuda():
        return None
    parallel = config.parallel_config
    count = parallel.tensor_parallel_size * parallel.pipeline_parallel_size * parallel.data_parallel_size
    if getattr(parallel, "nnodes", 1) > 1 or str(parallel.distributed_executor_backend) == "ray":
        return None  # placed by somebody else
    # vLLM asks NVML in the order of CUDA_VISIBLE_DEVICES, which creates no CUDA context here.
    return tuple(str(current_platform.get_device_uuid(index)) for index in range(count))
