"""Which of NVML's GPUs a CUDA program or process tree sees and computes on; creates no CUDA context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pytest_tokenpower.errors import MeterUnavailable
from pytest_tokenpower.meters.adapters.nvml.boards import (
    ListedBoard,
    chosen_boards,
    is_cut,
    list_boards,
    text,
)
from pytest_tokenpower.meters.adapters.nvml.library import load_nvml
from pytest_tokenpower.meters.processes import is_in_tree


@dataclass(frozen=True)
class GpuMemory:
    """A GPU as CUDA counts it, and all of its memory in bytes."""

    index: int
    name: str
    total: int


def gpu_memories(visible: str | None, nvml: Any = None) -> tuple[GpuMemory, ...]:
    """Return the GPUs that a value of CUDA_VISIBLE_DEVICES (None: not set) leaves, in its order.

    Empty where there is no driver, no GPU, or where it cannot be said which one CUDA will take (a MIG slice that is
    not named, different GPUs counted in CUDA's own order). ``nvml`` is the `pynvml` module or anything with its calls.
    """

    def told(nvml: Any) -> tuple[GpuMemory, ...]:
        return tuple(
            GpuMemory(
                index, text(nvml.nvmlDeviceGetName(handle)), int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
            )
            for index, handle in enumerate(_handles(nvml, visible))
        )

    return _ask(nvml, told) or ()


def _handles(nvml: Any, visible: str | None) -> list[Any]:
    if visible is not None and visible.startswith("MIG-"):  # CUDA takes one slice at most
        return [nvml.nvmlDeviceGetHandleByUUID(visible.partition(",")[0].strip())]
    handles = [board.handle for board in chosen_boards(nvml, visible)]
    # A program sees a slice of a board that is cut.
    return [] if any(is_cut(nvml, handle) for handle in handles) else handles


Uuids = tuple[str, ...]

T = TypeVar("T")


def gpus_of(root_pid: int, nvml: Any = None) -> Uuids | None:
    """UUIDs of the GPUs on which ``root_pid`` or a process below it has a CUDA context; None where none is seen.

    None is no "no GPU": in a container NVML's process numbers may be another namespace's. ``nvml`` is the `pynvml`
    module or anything with its calls.
    """

    def used(nvml: Any) -> Uuids:
        return tuple(
            board.uuid
            for board in list_boards(nvml)
            if board.uuid is not None and _computes_on(nvml, board, root_pid)
        )

    return _ask(nvml, used) or None


def _computes_on(nvml: Any, board: ListedBoard, root_pid: int) -> bool:
    """Whether a process of the tree is on a board; one that does not say (another job's, a lost one) has none."""
    try:
        running = nvml.nvmlDeviceGetComputeRunningProcesses_v3(board.handle)
    except nvml.NVMLError:
        return False
    return any(is_in_tree(process.pid, root_pid) for process in running)


def visible_gpus(visible: str | None, nvml: Any = None) -> Uuids | None:
    """UUIDs of the GPUs that a value of CUDA_VISIBLE_DEVICES (None: not set) leaves, in its order; None: not known."""

    def seen(nvml: Any) -> Uuids:
        return tuple(board.uuid or "" for board in chosen_boards(nvml, visible))

    return _ask(nvml, seen)


def _ask(nvml: Any, question: Callable[[Any], T]) -> T | None:
    """Return the answer from NVML's calls; None where there is no driver, or a call fails."""
    try:
        nvml = load_nvml() if nvml is None else nvml
    except MeterUnavailable:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        return question(nvml)
    except (nvml.NVMLError, MeterUnavailable):
        return None
    finally:
        nvml.nvmlShutdown()
