"""Simulated boards that speak NVML: pynvml's own code runs over a simulated C library, with faults on demand."""

from __future__ import annotations

import ctypes
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import CellType, FunctionType
from typing import Any

import pynvml

from pytest_tokenpower.telemetry.meters.simulated_board import ArmedFault, BoardPhysics
from pytest_tokenpower.telemetry.meters.simulated_identity import (
    INSUFFICIENT_SIZE,
    INVALID_ARGUMENT,
    NOT_SUPPORTED,
    OK,
    UNINITIALIZED,
    Target,
)
from pytest_tokenpower.telemetry.meters.simulated_library import SimulatedLibrary
from pytest_tokenpower.telemetry.meters.simulated_scenario import Fault, Scenario
from pytest_tokenpower.telemetry.meters.simulated_time import SimulatedTime

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
    """The C function behind a call of pynvml, without its version: faults and counts go by it."""
    stem = re.sub(r"_v\d+$", "", call)
    same = {"nvmlInit": "nvmlInitWithFlags", "nvmlDeviceGetTemperatureV1": "nvmlDeviceGetTemperatureV"}
    return same.get(stem, stem)


class SimulatedBoards:
    """Stands in for the ``pynvml`` module: the same functions, constants, structs and exceptions, no driver.

    Every function of pynvml is pynvml's own, run over a simulated C library; one that is not simulated raises
    NVMLError_FunctionNotFound, as an old driver does. Time can be replaced: ``monotonic_ns`` and ``realtime_ns``
    are what the boards live on, ``sleep(seconds)`` is what a hanging call does (by default it waits on the wall
    clock until its time is over or :meth:`release` is called). Safe to call from several threads.
    """

    def __init__(
        self,
        scenario: Scenario | None = None,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        realtime_ns: Callable[[], int] = time.time_ns,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self.scenario = scenario or Scenario()
        self._time = SimulatedTime(monotonic_ns, realtime_ns)
        self._released = threading.Event()
        self._sleep = self._released.wait if sleep is None else sleep
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

    def realtime_ns(self) -> int:
        """The realtime clock that the boards' stamps are on, with the clock steps of the scenario."""
        return self._time.realtime_ns()

    def joules(self, board: int, start_ns: int, end_ns: int) -> float:
        """The exact energy of a board between two times on the monotonic clock, whatever its readings say."""
        energy = self.physics[board].energy
        return energy.joules_at(end_ns - self.start_ns) - energy.joules_at(start_ns - self.start_ns)

    def inject(self, *faults: Fault) -> None:
        """Adds faults while the boards run; one without ``from_s`` holds from now on."""
        self._arm(faults, self._time.now_ns())

    def lift(self) -> None:
        """Ends every fault, as of now; a counter keeps what was done to it."""
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
                self._sleep(fault.seconds)
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
        """What is left of an answer under a fault of kind ``zero``, or of one field."""
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
