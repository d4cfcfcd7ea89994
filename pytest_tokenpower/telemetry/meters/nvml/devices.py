"""Which of NVML's GPUs a CUDA program or process tree sees and computes on; creates no CUDA context."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_tokenpower.errors import MeterUnavailable
from pytest_tokenpower.telemetry.processes import is_in_tree


def visible_indices(visible: str | None, uuids: Sequence[str], names: Sequence[str]) -> list[int]:
    """The NVML indices that a value of CUDA_VISIBLE_DEVICES (None: not set) leaves, in its own order.

    ``uuids`` and ``names`` are those of all GPUs in NVML's order. Raises MeterUnavailable where the value names a
    MIG slice, nothing or something ambiguous.
    """
    if visible is None:
        return list(range(len(uuids)))
    models = sorted(set(names))
    chosen: list[int] = []
    for part in (part.strip() for part in visible.split(",")):
        if part.startswith("MIG-"):
            raise MeterUnavailable(
                f"CUDA_VISIBLE_DEVICES names the MIG slice {part}: NVML reports the power of the whole board, "
                "so the energy of one slice cannot be measured; run energy tests on a GPU without MIG"
            )
        if part.startswith("GPU-"):
            matches = [index for index, uuid in enumerate(uuids) if uuid.startswith(part)]
            if len(matches) != 1:
                raise MeterUnavailable(
                    f"CUDA_VISIBLE_DEVICES names {part}, which matches {len(matches)} of the GPUs {', '.join(uuids)}"
                )
            chosen += matches
            continue
        # CUDA hides this entry and all after it when one is not a valid index ("-1", "NoDevFiles").
        if not part.isdigit() or int(part) >= len(uuids):
            break
        if len(models) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
            raise MeterUnavailable(
                f"CUDA_VISIBLE_DEVICES={visible} counts in CUDA's order, which is not NVML's on a machine "
                f"with different GPUs ({', '.join(models)}): set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name "
                "the GPUs by UUID (nvidia-smi -L)"
            )
        chosen.append(int(part))
    if not chosen:
        raise MeterUnavailable(f"CUDA_VISIBLE_DEVICES={visible!r} leaves no GPU visible")
    return chosen


@dataclass(frozen=True)
class GpuMemory:
    """A GPU as CUDA counts it, and all of its memory in bytes."""

    index: int
    name: str
    total: int


def gpu_memories(visible: str | None, nvml: Any = None) -> tuple[GpuMemory, ...]:
    """The GPUs that a value of CUDA_VISIBLE_DEVICES (None: not set) leaves, in its order.

    Empty where there is no driver, no GPU, or where it cannot be said which one CUDA will take (a MIG slice that is
    not named, different GPUs counted in CUDA's own order). ``nvml`` is the `pynvml` module or anything with its calls.
    """
    if nvml is None:
        import pynvml

        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        return tuple(
            GpuMemory(
                index, _text(nvml.nvmlDeviceGetName(handle)), int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
            )
            for index, handle in enumerate(_handles(nvml, visible))
        )
    except (nvml.NVMLError, MeterUnavailable):
        return ()
    finally:
        nvml.nvmlShutdown()


def _handles(nvml: Any, visible: str | None) -> list[Any]:
    if visible is not None and visible.startswith("MIG-"):  # CUDA takes one slice at most
        return [nvml.nvmlDeviceGetHandleByUUID(visible.partition(",")[0].strip())]
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    names = [_text(nvml.nvmlDeviceGetName(handle)) for handle in handles]
    chosen = [handles[index] for index in visible_indices(visible, uuids, names)]
    return [] if any(_is_cut(nvml, handle) for handle in chosen) else chosen


def _is_cut(nvml: Any, handle: Any) -> bool:
    """Whether the board is in MIG mode, so that a program sees a slice of it."""
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        return False  # a board that knows no MIG
    return bool(current)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


Uuids = tuple[str, ...]


def gpus_of(root_pid: int, nvml: Any = None) -> Uuids | None:
    """UUIDs of the GPUs on which ``root_pid`` or a process below it has a CUDA context; None where none is seen.

    None is no "no GPU": in a container NVML's process numbers may be another namespace's. ``nvml`` is the `pynvml`
    module or anything with its calls.
    """

    def used(nvml: Any, handles: list[Any]) -> Uuids:
        return tuple(
            str(nvml.nvmlDeviceGetUUID(handle))
            for handle in handles
            if any(
                is_in_tree(process.pid, root_pid)
                for process in nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)
            )
        )

    return _ask(nvml, used) or None


def visible_gpus(visible: str | None, nvml: Any = None) -> Uuids | None:
    """UUIDs of the GPUs that a value of CUDA_VISIBLE_DEVICES (None: not set) leaves, in its order; None: not known."""

    def seen(nvml: Any, handles: list[Any]) -> Uuids:
        uuids = [str(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        names = [str(nvml.nvmlDeviceGetName(handle)) for handle in handles]
        return tuple(uuids[index] for index in visible_indices(visible, uuids, names))

    return _ask(nvml, seen)


def _ask(nvml: Any, question: Callable[[Any, list[Any]], Uuids]) -> Uuids | None:
    """The answer from NVML's calls and all boards; None where there is no driver, or a call fails."""
    if nvml is None:
        import pynvml

        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return question(nvml, handles)
    except (nvml.NVMLError, MeterUnavailable):
        return None
    finally:
        nvml.nvmlShutdown()
