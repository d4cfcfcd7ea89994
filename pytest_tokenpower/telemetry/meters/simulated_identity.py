"""Simulated NVML, the C functions about who is there: start-up, handles, identity, MIG, memory, processes.

Every function takes what NVML's takes (ctypes values, references to write to) and returns a nvmlReturn_t.
"""

# ruff: noqa: D102 - NVML's reference documents each function under its name.

from __future__ import annotations

import ctypes
import os
import threading
from dataclasses import dataclass
from typing import Any

import pynvml

from pytest_tokenpower.telemetry.meters.simulated_board import BoardPhysics
from pytest_tokenpower.telemetry.meters.simulated_scenario import Scenario
from pytest_tokenpower.telemetry.meters.simulated_time import SimulatedTime

OK = int(pynvml.NVML_SUCCESS)
NOT_SUPPORTED = int(pynvml.NVML_ERROR_NOT_SUPPORTED)
NOT_FOUND = int(pynvml.NVML_ERROR_NOT_FOUND)
INVALID_ARGUMENT = int(pynvml.NVML_ERROR_INVALID_ARGUMENT)
INSUFFICIENT_SIZE = int(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
UNINITIALIZED = int(pynvml.NVML_ERROR_UNINITIALIZED)

_HANDLE_BASE = 0x51000000
_FRAMEBUFFER_BYTES = 500 << 20
_ON_SLICES = frozenset(
    {
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetName",
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceIsMigDeviceHandle",
        "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
        "nvmlDeviceGetComputeRunningProcesses",
    }
)


@dataclass(frozen=True)
class Target:
    """What a handle stands for, and the moment of the call (ns since the boards' start)."""

    index: int
    mig_slice: int | None
    physics: BoardPhysics
    now_ns: int


def write(reference: Any, value: int) -> int:
    """Stores an answer where the caller wants it."""
    reference._obj.value = value
    return OK


class IdentityCalls:
    """A method for each C function, named as it is without its version suffix.

    Methods on a device take a :class:`Target` in the place of the handle.
    """

    def __init__(self, scenario: Scenario, boards: tuple[BoardPhysics, ...], time: SimulatedTime) -> None:
        self._scenario = scenario
        self._boards = boards
        self._time = time
        self._users_lock = threading.Lock()
        self._users = 0

    @property
    def initialised(self) -> bool:
        """Whether nvmlInit has been called more often than nvmlShutdown."""
        return self._users > 0

    # --- handles

    def target(self, handle: Any) -> Target | None:
        """The board or MIG slice of a handle; None when it is not one of ours."""
        try:
            address = ctypes.cast(handle, ctypes.c_void_p).value or 0
        except ctypes.ArgumentError:
            return None
        index, part = divmod(address - _HANDLE_BASE, 256)
        if not 0 <= index < len(self._boards):
            return None
        return Target(index, part - 1 if part else None, self._boards[index], self._time.now_ns())

    def board_named(self, function: str, key: Any) -> int | None:
        """The index of the board that a nvmlDeviceGetHandleBy… asks for; None when there is none."""
        if function == "nvmlDeviceGetHandleByIndex":
            return int(key.value) if key.value < len(self._boards) else None
        wanted = (key.value or b"").decode()
        for index, board in enumerate(self._scenario.boards):
            if wanted in (board.uuid, self._bus_id(index)) or wanted in self._slice_uuids(index):
                return index
        return None

    def _give_handle(self, reference: Any, index: int, part: int = 0) -> int:
        address = _HANDLE_BASE + 256 * index + part
        ctypes.cast(reference, ctypes.POINTER(ctypes.c_void_p))[0] = address
        return OK

    def _bus_id(self, index: int) -> str:
        return f"00000000:{index + 4:02X}:00.0"

    def _slice_uuids(self, index: int) -> list[str]:
        board = self._scenario.boards[index]
        if board.mig != "on":
            return []
        return [f"MIG-{board.uuid.removeprefix('GPU-')[:-2]}{part:02d}" for part in range(board.mig_slices)]

    def supports(self, function: str, at: Target) -> bool:
        """Whether a function answers for this kind of handle: most know whole boards only."""
        return at.mig_slice is None or function in _ON_SLICES

    # --- the system

    def nvmlInitWithFlags(self, flags: int) -> int:
        with self._users_lock:
            self._users += 1
        return OK

    def nvmlShutdown(self) -> int:
        with self._users_lock:
            if not self._users:
                return UNINITIALIZED
            self._users -= 1
        return OK

    def nvmlErrorString(self, code: int) -> bytes:
        known: dict[int, str] = pynvml.NVMLError._errcode_to_string
        return known.get(code, "Unknown Error").encode()

    def nvmlSystemGetDriverVersion(self, buffer: Any, size: Any) -> int:
        buffer.value = self._scenario.driver.encode()
        return OK

    def nvmlSystemGetNVMLVersion(self, buffer: Any, size: Any) -> int:
        buffer.value = self._scenario.nvml.encode()
        return OK

    def nvmlSystemGetCudaDriverVersion(self, version: Any) -> int:
        return write(version, 13000)

    def nvmlDeviceGetCount(self, count: Any) -> int:
        return write(count, len(self._boards))

    def nvmlDeviceGetHandleByIndex(self, key: Any, handle: Any) -> int:
        index = self.board_named("nvmlDeviceGetHandleByIndex", key)
        return INVALID_ARGUMENT if index is None else self._give_handle(handle, index)

    def nvmlDeviceGetHandleByUUID(self, key: Any, handle: Any) -> int:
        index = self.board_named("nvmlDeviceGetHandleByUUID", key)
        if index is None:
            return NOT_FOUND
        slices = self._slice_uuids(index)
        uuid = key.value.decode()
        return self._give_handle(handle, index, slices.index(uuid) + 1 if uuid in slices else 0)

    nvmlDeviceGetHandleByPciBusId = nvmlDeviceGetHandleByUUID

    # --- identity

    def nvmlDeviceGetUUID(self, at: Target, buffer: Any, size: Any) -> int:
        board = at.physics.board
        uuid = board.uuid if at.mig_slice is None else self._slice_uuids(at.index)[at.mig_slice]
        buffer.value = uuid.encode()
        return OK

    def nvmlDeviceGetName(self, at: Target, buffer: Any, size: Any) -> int:
        buffer.value = (at.physics.board.name + ("" if at.mig_slice is None else " MIG 1g.10gb")).encode()
        return OK

    def nvmlDeviceGetIndex(self, at: Target, index: Any) -> int:
        return write(index, at.index)

    def nvmlDeviceGetBrand(self, at: Target, brand: Any) -> int:
        return write(brand, pynvml.NVML_BRAND_NVIDIA)

    def nvmlDeviceGetCudaComputeCapability(self, at: Target, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = at.physics.board.compute_capability
        return OK

    def nvmlDeviceGetPciInfo(self, at: Target, info: Any) -> int:
        pci, bus_id = info._obj, self._bus_id(at.index)
        pci.busId, pci.busIdLegacy = bus_id.encode(), bus_id[4:].encode()
        pci.domain, pci.bus, pci.device, pci.pciDeviceId = 0, at.index + 4, 0, 0x233010DE
        return OK

    def nvmlDeviceGetMemoryInfo(self, at: Target, info: Any) -> int:
        memory, total = info._obj, at.physics.board.memory_bytes
        if at.mig_slice is not None:
            total //= at.physics.board.mig_slices
        used = min(total, _FRAMEBUFFER_BYTES + sum(size for _, size in self._processes(at)))
        memory.total, memory.used, memory.free = total, used, total - used
        return OK

    def nvmlDeviceGetPersistenceMode(self, at: Target, mode: Any) -> int:
        return write(mode, int(at.physics.board.persistence_mode))

    def _processes(self, at: Target) -> list[tuple[int, int]]:
        board = at.physics.board
        running = [(os.getpid() if p.pid == "own" else p.pid, p.memory_bytes) for p in board.processes]
        come = [a.fault for a in at.physics.faults if a.fault.kind == "process" and a.holds(at.now_ns)]
        return running + [(fault.pid, fault.memory_bytes) for fault in come]

    def nvmlDeviceGetComputeRunningProcesses(self, at: Target, count: Any, out: Any) -> int:
        running = self._processes(at)
        room = count._obj.value
        count._obj.value = len(running)
        if len(running) > room:
            return INSUFFICIENT_SIZE
        for i, (pid, memory_bytes) in enumerate(running):
            out[i].pid, out[i].usedGpuMemory = pid, memory_bytes
            out[i].gpuInstanceId = out[i].computeInstanceId = 0xFFFFFFFF
        return OK

    # --- MIG

    def nvmlDeviceGetMigMode(self, at: Target, current: Any, pending: Any) -> int:
        if at.physics.board.mig == "unsupported":
            return NOT_SUPPORTED
        current._obj.value = pending._obj.value = int(at.physics.board.mig == "on")
        return OK

    def nvmlDeviceGetMaxMigDeviceCount(self, at: Target, count: Any) -> int:
        return write(count, 0 if at.physics.board.mig == "unsupported" else 7)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, at: Target, part: Any, handle: Any) -> int:
        if at.physics.board.mig == "unsupported":
            return NOT_SUPPORTED
        if at.physics.board.mig == "off" or part.value >= at.physics.board.mig_slices:
            return NOT_FOUND
        return self._give_handle(handle, at.index, part.value + 1)

    def nvmlDeviceIsMigDeviceHandle(self, at: Target, answer: Any) -> int:
        return write(answer, int(at.mig_slice is not None))

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, at: Target, handle: Any) -> int:
        return INVALID_ARGUMENT if at.mig_slice is None else self._give_handle(handle, at.index)
