"""Simulated boards that speak NVML: pynvml's own code runs over a simulated C library, with faults on demand."""

# ruff: noqa: D102 - NVML's reference documents each function under its name.

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import CellType, FunctionType
from typing import Any

import numpy as np
import pynvml

from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.simulation.board import ArmedFault, BoardPhysics, RingSamples, SimulatedTime
from pytest_tokenpower.meters.simulation.scenario import Fault, Limit, Scenario
from pytest_tokenpower.meters.simulation.virtual_time import VIRTUAL_TIME

OK = int(pynvml.NVML_SUCCESS)

NOT_SUPPORTED = int(pynvml.NVML_ERROR_NOT_SUPPORTED)

NOT_FOUND = int(pynvml.NVML_ERROR_NOT_FOUND)

INVALID_ARGUMENT = int(pynvml.NVML_ERROR_INVALID_ARGUMENT)

INSUFFICIENT_SIZE = int(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)

UNINITIALIZED = int(pynvml.NVML_ERROR_UNINITIALIZED)

_HANDLE_BASE = 0x51000000

_FRAMEBUFFER_BYTES = 500 << 20

_MOST_SLICES = 7

_SLICES_OF_PROFILE = {
    pynvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE: 1,
    pynvml.NVML_GPU_INSTANCE_PROFILE_2_SLICE: 2,
    pynvml.NVML_GPU_INSTANCE_PROFILE_3_SLICE: 3,
    pynvml.NVML_GPU_INSTANCE_PROFILE_7_SLICE: _MOST_SLICES,
}

_ON_SLICES = frozenset(
    {
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetName",
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceIsMigDeviceHandle",
        "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
        "nvmlDeviceGetComputeRunningProcesses",
        "nvmlDeviceGetAttributes",
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
    """Store an answer where the caller wants it."""
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
        """Return the board or MIG slice of a handle; None when it is not one of ours."""
        try:
            address = ctypes.cast(handle, ctypes.c_void_p).value or 0
        except ctypes.ArgumentError:
            return None
        index, part = divmod(address - _HANDLE_BASE, 256)
        if not 0 <= index < len(self._boards):
            return None
        return Target(index, part - 1 if part else None, self._boards[index], self._time.now_ns())

    def board_named(self, function: str, key: Any) -> int | None:
        """Return the index of the board that a nvmlDeviceGetHandleBy… asks for; None when there is none."""
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

    def nvmlDeviceGetAttributes(self, at: Target, attributes: Any) -> int:
        if at.mig_slice is None:
            return NOT_SUPPORTED
        share = _MOST_SLICES // at.physics.board.mig_slices
        attributes._obj.gpuInstanceSliceCount = attributes._obj.computeInstanceSliceCount = share
        return OK

    def nvmlDeviceGetGpuInstanceProfileInfoV(self, at: Target, profile: Any, info: Any) -> int:
        if at.physics.board.mig == "unsupported" or profile not in _SLICES_OF_PROFILE:
            return NOT_SUPPORTED
        info._obj.sliceCount = _SLICES_OF_PROFILE[profile]
        return OK

    def nvmlDeviceIsMigDeviceHandle(self, at: Target, answer: Any) -> int:
        return write(answer, int(at.mig_slice is not None))

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, at: Target, handle: Any) -> int:
        return INVALID_ARGUMENT if at.mig_slice is None else self._give_handle(handle, at.index)


_SAMPLE = np.dtype([("t_us", np.uint64), ("value", np.uint64)])

_LIMIT_OF_FIELD: dict[int, Limit] = {
    74: "power",
    75: "thermal",
    77: "board",
    269: "sw_thermal",
    270: "hw_thermal",
    271: "power_brake",
}

_REASON_OF_LIMIT: dict[Limit, int] = {
    "power": pynvml.nvmlClocksEventReasonSwPowerCap,
    "thermal": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    "board": pynvml.nvmlClocksEventReasonHwSlowdown,
    "sw_thermal": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    "hw_thermal": pynvml.nvmlClocksEventReasonHwThermalSlowdown,
    "power_brake": pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
}


def _milliwatts(watts: float) -> int:
    return round(watts * 1000)


class SimulatedLibrary(IdentityCalls):
    """The simulated driver: every C function that is simulated."""

    def __init__(self, scenario: Scenario, boards: tuple[BoardPhysics, ...], time: SimulatedTime) -> None:
        super().__init__(scenario, boards, time)
        # pynvml asks twice for samples, first for their number; both answers are of the moment of the first.
        self._asked = threading.local()

    def nvmlDeviceGetEnforcedPowerLimit(self, at: Target, limit: Any) -> int:
        return write(limit, _milliwatts(at.physics.board.power_limit_watts))

    nvmlDeviceGetPowerManagementLimit = nvmlDeviceGetEnforcedPowerLimit

    def nvmlDeviceGetPowerManagementDefaultLimit(self, at: Target, limit: Any) -> int:
        return write(limit, _milliwatts(at.physics.board.power_limit_range_watts[1]))

    def nvmlDeviceGetPowerManagementLimitConstraints(self, at: Target, low: Any, high: Any) -> int:
        low._obj.value, high._obj.value = map(_milliwatts, at.physics.board.power_limit_range_watts)
        return OK

    def nvmlDeviceGetTemperatureV(self, at: Target, temperature: Any) -> int:
        temperature._obj.temperature = at.physics.temperature_celsius(at.now_ns)
        return OK

    def nvmlDeviceGetTemperature(self, at: Target, sensor: Any, celsius: Any) -> int:
        return write(celsius, at.physics.temperature_celsius(at.now_ns))

    def nvmlDeviceGetClockInfo(self, at: Target, kind: Any, mhz: Any) -> int:
        if kind.value == pynvml.NVML_CLOCK_MEM:
            return write(mhz, at.physics.board.memory_clock_mhz)
        return write(mhz, at.physics.sm_clock_mhz(at.now_ns))

    def nvmlDeviceGetCurrentClocksEventReasons(self, at: Target, reasons: Any) -> int:
        mask = pynvml.nvmlClocksEventReasonGpuIdle if at.physics.is_idle(at.now_ns) else 0
        for limit, reason in _REASON_OF_LIMIT.items():
            mask |= reason if at.physics.limited_share(limit, at.now_ns) else 0
        return write(reasons, mask)

    nvmlDeviceGetCurrentClocksThrottleReasons = nvmlDeviceGetCurrentClocksEventReasons

    def nvmlDeviceGetUtilizationRates(self, at: Target, rates: Any) -> int:
        if at.physics.board.mig == "on":
            return NOT_SUPPORTED
        rates._obj.gpu = rates._obj.memory = 0 if at.physics.is_idle(at.now_ns) else 100
        return OK

    # --- power and energy

    def nvmlDeviceGetPowerUsage(self, at: Target, milliwatts: Any) -> int:
        return write(milliwatts, at.physics.average_milliwatts(at.now_ns))

    def nvmlDeviceGetTotalEnergyConsumption(self, at: Target, millijoules: Any) -> int:
        if not at.physics.board.counter:
            return NOT_SUPPORTED
        return write(millijoules, at.physics.counter_millijoules(at.now_ns))

    def nvmlDeviceGetSamples(
        self, at: Target, kind: Any, after_us: Any, value_type: Any, count: Any, out: Any
    ) -> int:
        if out is None:
            self._time.follow()
            extra = {
                pynvml.NVML_TOTAL_POWER_SAMPLES: 0.0,
                pynvml.NVML_MODULE_POWER_SAMPLES: at.physics.board.module_extra_watts,
            }.get(kind.value)
            if extra is None or not at.physics.board.ring:
                return NOT_SUPPORTED
            samples = at.physics.ring(at.now_ns, self._time.before_stamp_ns(after_us.value), extra)
            stamps = self._time.stamps_us(samples.t_ns)
            new = stamps > after_us.value
            self._asked.samples = RingSamples(stamps[new], samples.milliwatts[new])
            value_type._obj.value = pynvml.NVML_VALUE_TYPE_UNSIGNED_INT
            count._obj.value = int(new.sum())
            return OK if count._obj.value else NOT_FOUND
        answer: RingSamples = self._asked.samples
        rows = np.frombuffer(out, _SAMPLE)
        rows["t_us"], rows["value"] = answer.t_ns, answer.milliwatts
        return OK

    def zero_samples(self) -> None:
        """Turn the samples just asked for into zeros (the fault "zero")."""
        asked: RingSamples = self._asked.samples
        self._asked.samples = asked._replace(milliwatts=np.zeros_like(asked.milliwatts))

    def nvmlDeviceGetFieldValues(self, at: Target, count: Any, values: Any) -> int:
        for value in values._obj:
            value.timestamp, value.latencyUsec = self._time.stamp_us(at.now_ns), 0
            number = self._field(at, value.fieldId, value.scopeId)
            value.nvmlReturn = NOT_SUPPORTED if number is None else OK
            wide = value.fieldId in _LIMIT_OF_FIELD or value.fieldId == 83
            value.valueType = (
                pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG if wide else pynvml.NVML_VALUE_TYPE_UNSIGNED_INT
            )
            value.value.ullVal = number or 0
        return OK

    def _field(self, at: Target, number: int, scope: int) -> int | None:
        physics, board = at.physics, at.physics.board
        if number in _LIMIT_OF_FIELD:
            return physics.limited_ns(_LIMIT_OF_FIELD[number], at.now_ns)
        if number == 83:
            return physics.counter_millijoules(at.now_ns) if board.counter else None
        if scope != pynvml.NVML_POWER_SCOPE_GPU and 187 <= number <= 190:
            return None
        limits = {187: board.power_limit_range_watts[0], 188: board.power_limit_range_watts[1]}
        limits |= {189: board.power_limit_range_watts[1], 190: board.power_limit_watts}
        if number in limits:
            return _milliwatts(limits[number])
        if number not in (185, 186) or (number == 186 and not board.instant):
            return None
        power = physics.average_milliwatts if number == 185 else physics.instant_milliwatts
        if scope == pynvml.NVML_POWER_SCOPE_GPU:
            return power(at.now_ns)
        if scope == pynvml.NVML_POWER_SCOPE_MODULE and board.module_extra_watts is not None:
            return power(at.now_ns) + _milliwatts(board.module_extra_watts)
        if scope == pynvml.NVML_POWER_SCOPE_MEMORY and board.memory_power_share is not None:
            return round(power(at.now_ns) * board.memory_power_share)
        return None


_CALL_FAULTS = frozenset({"error", "hang", "zero", "lost"})

_GIVES_HANDLE = re.compile(r"HandleBy|HandleFrom")

_ASKED_TWICE = frozenset({"nvmlDeviceGetSamples", "nvmlDeviceGetComputeRunningProcesses"})

_WITHOUT_INIT = frozenset({"nvmlInitWithFlags", "nvmlShutdown", "nvmlErrorString"})


@dataclass
class _CallFault:
    armed: ArmedFault
    board: int | None
    calls: int = 0

    def fires(self, function: str, board: int | None, now_ns: int) -> bool:
        """Whether it strikes this call; counts the calls that it could strike."""
        fault = self.armed.fault
        if not self.armed.holds(now_ns) or (self.board is not None and board != self.board):
            return False
        if fault.kind == "lost":
            return board is not None
        if fault.call not in ("*", function) and c_function(fault.call) != function:
            return False
        self.calls += 1
        return fault.nth in (None, self.calls)


def c_function(call: str) -> str:
    """Return the C function behind a call of pynvml, without its version: faults and counts go by it."""
    stem = re.sub(r"_v\d+$", "", call)
    same = {"nvmlInit": "nvmlInitWithFlags", "nvmlDeviceGetTemperatureV1": "nvmlDeviceGetTemperatureV"}
    return same.get(stem, stem)


class SimulatedBoards:
    """Stands in for the ``pynvml`` module: the same functions, constants, structs and exceptions, no driver.

    Every function of pynvml is pynvml's own, run over a simulated C library; one that is not simulated raises
    NVMLError_FunctionNotFound, as an old driver does. Safe to call from several threads.

    Args:
        scenario: the boards and their faults.
        clock: what the boards live on, instead of the one that the scenario names. Its ``sleep`` is what a hanging
            call does; on the machine's clock such a call also ends at :meth:`release`.
    """

    def __init__(
        self,
        scenario: Scenario | None = None,
        *,
        clock: Clock | None = None,
    ) -> None:
        self.scenario = scenario or Scenario()
        if clock is None and self.scenario.clock == "virtual":
            clock = VIRTUAL_TIME.clock
        self._released = threading.Event()
        self._hang = self._released.wait if clock is None else clock.sleep
        self._clock = Clock() if clock is None else clock
        self._time = SimulatedTime(self._clock.monotonic_ns, self._clock.realtime_ns)
        self._lock = threading.Lock()
        self.call_counts: Counter[str] = Counter()
        """How often each C function was called, by its name without version."""
        self.physics = tuple(
            BoardPhysics(board, self.scenario.seed * 65_537 + index, self._time.phase_ns)
            for index, board in enumerate(self.scenario.boards)
        )
        self._library = SimulatedLibrary(self.scenario, self.physics, self._time)
        self._armed: tuple[tuple[ArmedFault, int | None], ...] = ()
        self._call_faults: tuple[_CallFault, ...] = ()
        self._names = _rebound(
            _nvmlGetFunctionPointer=self._function_pointer, _LoadNvmlLibrary=lambda: None, nvmlLib=self
        )
        self._arm(self.scenario.faults, 0)

    def __getattr__(self, name: str) -> Any:
        names = self.__dict__.get("_names", {})
        if name in names:
            return names[name]
        if name.startswith("nvml"):
            return lambda *_, **__: self._function_pointer(name)
        raise AttributeError(f"pynvml has no {name!r}")

    # --- for tests

    @property
    def start_ns(self) -> int:
        """The boards' start on the monotonic clock: second 0 of curves and faults."""
        return self._time.start_ns

    @property
    def clock(self) -> Clock:
        """What the boards live on, with the clock steps of the scenario."""
        return replace(self._clock, realtime_ns=self.realtime_ns)

    def realtime_ns(self) -> int:
        """Return the realtime clock that the boards' stamps are on, with the clock steps of the scenario."""
        return self._time.realtime_ns()

    def joules(self, board: int, start_ns: int, end_ns: int) -> float:
        """Return the exact energy of a board between two times on the monotonic clock, whatever its readings say."""
        energy = self.physics[board].energy
        return energy.joules_at(end_ns - self.start_ns) - energy.joules_at(start_ns - self.start_ns)

    def inject(self, *faults: Fault) -> None:
        """Add faults while the boards run; one without ``from_s`` holds from now on."""
        self._arm(faults, self._time.now_ns())

    def lift(self) -> None:
        """End every fault, as of now; a counter keeps what was done to it."""
        now_ns = self._time.now_ns()
        with self._lock:
            self._call_faults = ()
            self._armed = tuple(
                (replace(armed, until_ns=min(armed.until_ns, now_ns)), board)
                for armed, board in self._armed
                if armed.from_ns <= now_ns
            )
            self._spread()

    def release(self) -> None:
        """Lets every call that hangs return, and keeps later ones from hanging."""
        self._released.set()

    # --- the C library's face

    def _arm(self, faults: Iterable[Fault], now_ns: int) -> None:
        added = [(ArmedFault.at(fault, now_ns), self.scenario.board_index(fault.board)) for fault in faults]
        with self._lock:
            self._armed += tuple(added)
            self._call_faults += tuple(
                _CallFault(*each) for each in added if each[0].fault.kind in _CALL_FAULTS
            )
            self._spread()

    def _spread(self) -> None:
        self._time.steps = tuple(armed for armed, _ in self._armed if armed.fault.kind == "clock_step")
        for index, physics in enumerate(self.physics):
            physics.faults = tuple(
                armed
                for armed, board in self._armed
                if board in (None, index) and armed.fault.kind not in _CALL_FAULTS
            )

    def _function_pointer(self, name: str) -> Callable[..., Any]:
        function = c_function(name)
        if function.startswith("nvml") and callable(getattr(SimulatedLibrary, function, None)):

            def pointer(*arguments: Any) -> Any:
                return self._call(function, *arguments)

            return pointer
        raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

    def _call(self, function: str, *arguments: Any) -> Any:
        """One call of a C function: faults first, then the answer."""
        implementation = getattr(self._library, function)
        if function not in _WITHOUT_INIT and not self._library.initialised:
            return UNINITIALIZED
        if function == "nvmlErrorString":
            return implementation(*arguments)
        on_device = function.startswith("nvmlDevice") and function != "nvmlDeviceGetCount"
        board: int | None = None
        target: Target | None = None
        if on_device and "GetHandleBy" in function:
            board = self._library.board_named(function, arguments[0])
        elif on_device:
            target = self._library.target(arguments[0])
            if target is None:
                return INVALID_ARGUMENT
            board = target.index
        # The second of pynvml's two calls for a list (sizes, then contents) is the same call to its user.
        fired = [] if _is_second(function, arguments) else self._strike(function, board)
        for fault in fired:
            if fault.kind == "hang":
                self._hang(fault.seconds)
                target = target and self._library.target(arguments[0])
        for fault in fired:
            if fault.kind == "lost":
                return int(pynvml.NVML_ERROR_GPU_IS_LOST)
            if fault.kind == "error" and fault.field is None:
                return fault.error_code
        if target is not None:
            if not self._library.supports(function, target):
                return NOT_SUPPORTED
            arguments = (target, *arguments[1:])
        result = implementation(*arguments)
        for fault in fired:
            result = self._spoil(function, fault, arguments, result)
        return result

    def _strike(self, function: str, board: int | None) -> list[Fault]:
        now_ns = self._time.now_ns()
        with self._lock:
            self.call_counts[function] += 1
            return [each.armed.fault for each in self._call_faults if each.fires(function, board, now_ns)]

    def _spoil(self, function: str, fault: Fault, arguments: tuple[Any, ...], result: int) -> int:
        """Return what is left of an answer under a fault of kind ``zero``, or of one field."""
        if fault.kind == "hang" or result not in (OK, INSUFFICIENT_SIZE) or _GIVES_HANDLE.search(function):
            return result
        if function == "nvmlDeviceGetFieldValues":
            for value in arguments[2]._obj:
                if fault.field in (None, value.fieldId):
                    value.value.ullVal = 0
                    value.nvmlReturn = fault.error_code if fault.kind == "error" else value.nvmlReturn
        elif function == "nvmlDeviceGetSamples":
            self._library.zero_samples()
        else:
            for reference in (argument for argument in arguments if hasattr(argument, "_obj")):
                ctypes.memset(reference, 0, ctypes.sizeof(reference._obj))
        return OK


def _is_second(function: str, arguments: tuple[Any, ...]) -> bool:
    return function in _ASKED_TWICE and arguments[-1] is not None


def _rebound(**replacements: Any) -> dict[str, Any]:
    """Pynvml's names with every function run on these very names, so that ``replacements`` reach all of them."""
    names = {**vars(pynvml), **replacements}

    def rebind(function: FunctionType) -> FunctionType:
        # A decorated function holds the one that it wraps in its closure.
        cells = tuple(
            CellType(rebind(cell.cell_contents)) if _is_pynvml(cell.cell_contents) else cell
            for cell in function.__closure__ or ()
        )
        bound = FunctionType(
            function.__code__, names, function.__name__, function.__defaults__, cells or None
        )
        bound.__doc__ = function.__doc__
        return bound

    for name, value in vars(pynvml).items():
        if name not in replacements and _is_pynvml(value):
            names[name] = rebind(value)
    return names


def _is_pynvml(value: object) -> bool:
    return isinstance(value, FunctionType) and value.__globals__ is vars(pynvml)
