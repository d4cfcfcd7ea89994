"""What NVML says of the memory of GPUs, and what counts as a machine's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_tokenpower.meters.adapters.nvml.devices import GpuMemory, gpu_memories
from pytest_tokenpower.models import fit as machine


class _NVMLError(Exception):
    pass


class _Nvml:
    """NVML of two boards of 80 and 141 GiB; ``mig`` is the mode of both, None where they know no MIG."""

    NVMLError = _NVMLError

    def __init__(
        self, mig: int | None = None, names: tuple[str, ...] = ("NVIDIA H100", "NVIDIA H100")
    ) -> None:
        self._mig = mig
        self._names = names
        self.opened = 0

    def nvmlInit(self) -> None:
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self._names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "MIG-1":
            raise _NVMLError
        return uuid

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        return f"GPU-{handle}".encode()

    def nvmlDeviceGetName(self, handle: int | str) -> str:
        return "NVIDIA H100 MIG 1g.10gb" if handle == "MIG-1" else self._names[int(handle)]

    def nvmlDeviceGetMemoryInfo(self, handle: int | str) -> Any:
        return SimpleNamespace(total={0: 80, 1: 141, "MIG-1": 10}[handle] << 30)

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:
        if self._mig is None:
            raise _NVMLError
        return [self._mig, self._mig]


FIRST = GpuMemory(0, "NVIDIA H100", 80 << 30)
SECOND = GpuMemory(1, "NVIDIA H100", 141 << 30)


@pytest.mark.parametrize("mig", [None, 0])
@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, (FIRST, SECOND)),
        ("1", (GpuMemory(0, "NVIDIA H100", 141 << 30),)),
        ("GPU-1,GPU-0", (GpuMemory(0, "NVIDIA H100", 141 << 30), GpuMemory(1, "NVIDIA H100", 80 << 30))),
        ("MIG-1", (GpuMemory(0, "NVIDIA H100 MIG 1g.10gb", 10 << 30),)),
        ("MIG-2", ()),
        ("-1", ()),
    ],
)
def test_the_gpus_that_cuda_counts(
    mig: int | None, visible: str | None, found: tuple[GpuMemory, ...]
) -> None:
    nvml = _Nvml(mig)
    assert gpu_memories(visible, nvml) == found
    assert nvml.opened == 0


def test_a_board_in_slices_is_none_that_is_known() -> None:
    assert gpu_memories(None, _Nvml(mig=1)) == ()


def test_different_boards_in_cudas_order_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert gpu_memories("0", _Nvml(names=("NVIDIA A100", "NVIDIA H100"))) == ()


def test_without_a_driver_there_is_none() -> None:
    class Absent(_Nvml):
        def nvmlInit(self) -> None:
            raise _NVMLError

    assert gpu_memories(None, Absent()) == ()


def test_a_control_group_limits_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "_CGROUP", limit)
    whole = machine.system_memory()
    assert whole > 1 << 20
    limit.write_text("max\n")
    assert machine.system_memory() == whole
    limit.write_text(f"{1 << 20}\n")
    assert machine.system_memory() == 1 << 20


def test_swap_as_the_kernel_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    assert machine.swap_memory() == 0
    (tmp_path / "meminfo").write_text("MemTotal: 8 kB\nSwapTotal:       2048 kB\nSwapFree: 1 kB\n")
    assert machine.swap_memory() == 2048 * 1024
