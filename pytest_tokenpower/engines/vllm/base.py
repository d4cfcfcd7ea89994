"""Parts that both of vLLM's Python adapters share: the batch that is ready, and the GPUs of the workers."""

from __future__ import annotations

from typing import Any

from pytest_tokenpower.engines._adapter import InProcessEngine
from pytest_tokenpower.engines.vllm.requests import Requests, requests_of
from pytest_tokenpower.workloads.base import Batch


class VllmAdapter(InProcessEngine):
    """An engine of vLLM; its identity is read from the engine's own ``VllmConfig``, which is ``_config``."""

    label = "vLLM"

    _config: Any
    _requests: Requests | None = None

    @property
    def llm(self) -> Any:
        """The engine of vLLM's own API; None after :meth:`close`."""
        return self._handle

    def _ready(self, batch: Batch, method: str) -> Requests:
        """Make requests of the batch, kept for its next rounds; raises EngineError after :meth:`close`."""
        self._opened(method)
        if self._requests is None or self._requests.batch is not batch:
            self._requests = requests_of(batch, self._config)
        return self._requests


def device_ids(config: Any) -> tuple[str, ...] | None:
    """NVML UUIDs of the GPUs that this engine's workers use; empty on a CPU, None where it cannot be known.

    Asks vLLM's platform, so that vLLM must be installed.
    """
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
