"""The NVML meter: NVIDIA boards through their power ring, energy counter and violation counters.

The only module that speaks to NVML. The simulated board is handed in place of the `pynvml` module, so that the
code under test is the code that runs on GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pytest_tokenpower.core.types import Fact, Provenance
from pytest_tokenpower.errors import MeterError, MeterLost, MeterUnavailable
from pytest_tokenpower.meters.adapters.no_reading import is_counted, is_fine_power
from pytest_tokenpower.meters.adapters.nvml.boards import TROUBLE, VisibleBoard, hide, text, visible_boards
from pytest_tokenpower.meters.adapters.nvml.conditions import conditions_of, optional
from pytest_tokenpower.meters.adapters.nvml.library import load_nvml, no_answer
from pytest_tokenpower.meters.adapters.nvml.module import Module, find_module
from pytest_tokenpower.meters.adapters.nvml.ring import PowerRing
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.types import CounterReading, Device, PowerSamples, Reading

RING_POLL_S = 1.0
"""The ring keeps 119 samples of 20 ms; drained once a second it lost nothing in minutes (measured). Under load a poll
costs 8 to 10 ms of CPU time on an H100, over half of it the read of the counter."""

POLLING_S = 0.1
"""Without a ring: the period at which the counter and the instant power are refreshed on the boards we know."""

COUNTER_TICK_NS = 100_000_000

FROZEN_RING_MS, FROZEN_POWER_MS = 1000, 3000
"""Readings that do not move by a milliwatt for so long are frozen, where there is no counter to bear them out. On an
H100 no more than 5 ring samples (0.1 s) are alike; the averaged power changes every 100 to 500 ms."""

T = TypeVar("T")


@dataclass
class _Board:
    handle: Any
    id: str
    samples: PowerRing
    ring: bool = False
    counter: bool = False
    module: Module | None = None
    not_counted: str | None = None
    mig: str | None = None
    errors: dict[str, Fact] = field(default_factory=dict)
    last_microjoules: int | None = None
    missing_microjoules: int = 0
    restarts: int = 0
    answers: bool = False

    @property
    def counts_gpu(self) -> bool:
        """Whether the energy counter is the GPU's: on a module it is the module's."""
        return self.counter and self.module is None


class NvmlMeter:
    """Reads the GPUs that CUDA_VISIBLE_DEVICES leaves visible, and the modules that some of them sit on.

    ``nvml`` is the `pynvml` module or anything with its calls; ``visible`` the value of CUDA_VISIBLE_DEVICES
    (None: all GPUs). ``clock`` is the one that the boards live on and stamp by, where it is not this machine's.
    """

    name = "nvml"

    def __init__(
        self,
        nvml: Any = None,
        *,
        visible: str | None = None,
        provenance: Provenance = "measured",
        clock: Clock | None = None,
    ) -> None:
        self._nvml = nvml
        self._visible = visible
        self._provenance: Provenance = provenance
        self.clock = clock
        self._boards: list[_Board] = []
        self.poll_interval_s = RING_POLL_S

    def open(self, clock: Clock) -> Sequence[Device]:
        """Connect to the driver; raises MeterUnavailable where there is none, or no GPU that can be measured."""
        if self._nvml is None:
            self._nvml = load_nvml()
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise MeterUnavailable(no_answer(self._nvml, error)) from error
        try:
            driver = text(self._ask("NVML", "nvmlSystemGetDriverVersion"))
        except MeterError as error:
            raise MeterUnavailable(f"{error} ({TROUBLE})") from error
        self._boards, devices = [], []
        visible = visible_boards(self._nvml, self._visible)
        for each in visible:
            try:
                self._boards.append(board := self._board(each, visible))
                devices += self._describe(board, driver)
            except MeterUnavailable:
                raise
            except MeterError as error:
                others = hide([other.uuid for other in visible if other is not each])
                raise MeterUnavailable(f"NVML could not describe {error} ({TROUBLE}){others}") from error
        if not all(board.ring for board in self._boards):
            self.poll_interval_s = POLLING_S
        return devices

    def poll(self, clock: Clock) -> Sequence[Reading]:
        """Drain each board's ring and read its counter and conditions; a board that fails says so by itself."""
        return [reading for board in self._boards for reading in self._read(board, clock)]

    def close(self) -> None:
        """Disconnect from the driver."""
        if self._nvml is None:
            return
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError:
            # The driver is gone; there is nothing left to let go of.
            return

    def _board(self, seen: VisibleBoard, all_seen: Sequence[VisibleBoard]) -> _Board:
        handle, uuid = seen.handle, seen.uuid
        board = _Board(handle, uuid, PowerRing(self._nvml, handle, uuid), mig=seen.mig)
        board.ring = self._works(board, "power_ring", lambda: len(board.samples.since(0)) > 1)
        board.counter = self._works(
            board,
            "energy_counter",
            lambda: is_counted(self._ask(board.id, "nvmlDeviceGetTotalEnergyConsumption", handle)),
        )
        board.module, board.not_counted = find_module(self._nvml, handle, uuid)
        if (
            not board.ring
            and not board.counts_gpu
            and not self._works(
                board, "power", lambda: is_fine_power(self._ask(board.id, "nvmlDeviceGetPowerUsage", handle))
            )
        ):
            why = "; ".join(str(error) for error in board.errors.values())
            if not board.answers:
                raise MeterLost(why)
            name = optional(self._nvml, "nvmlDeviceGetName", handle)
            called = f"{board.id} ({text(name)})" if name else board.id
            raise MeterUnavailable(
                f"{called} offers neither power samples, nor an energy counter, nor "
                f"power: NVML cannot measure its energy (a display card, a vGPU, a Jetson, or too old a board): {why}"
                f"{hide([each.uuid for each in all_seen if each is not seen])}"
            )
        return board

    def _works(self, board: _Board, what: str, tried: Callable[[], bool]) -> bool:
        """Whether a reading gives something; one that fails may have been disturbed, so it is tried twice."""
        for _ in range(2):
            try:
                if tried():
                    board.errors.pop(f"{what}_error", None)
                    return True
                board.errors[f"{what}_error"] = f"{what.replace('_', ' ')}: nothing was read"
                board.answers = True
            except MeterError as error:
                board.answers = board.answers or not isinstance(error, MeterLost)
                board.errors[f"{what}_error"] = str(error)
        return False

    def _describe(self, board: _Board, driver: str) -> list[Device]:
        memory = self._offered(board, "nvmlDeviceGetMemoryInfo")
        limit = self._offered(board, "nvmlDeviceGetEnforcedPowerLimit")
        name = text(self._ask(board.id, "nvmlDeviceGetName", board.handle))
        facts: dict[str, Fact] = {
            "driver": driver,
            "power_ring": board.ring,
            "energy_counter": board.counts_gpu,
            "persistence_mode": optional(self._nvml, "nvmlDeviceGetPersistenceMode", board.handle),
            "refresh_ms": 20 if board.ring else 100,
            "resolution_ms": 30 if board.ring else 500,
            **board.errors,
        }
        if board.not_counted is not None:
            facts["not_counted"] = board.not_counted
        if not board.counts_gpu:
            facts["frozen_after_ms"] = FROZEN_RING_MS if board.ring else FROZEN_POWER_MS
        gpu = Device(
            id=board.id,
            scope="gpu",
            name=name if board.mig is None else f"{name} ({board.mig}, in MIG mode)",
            meter=self.name,
            provenance=self._provenance,
            key_facts={
                "model": name,
                "memory_gib": round(memory.total / 2**30) or None
                if memory is not None and is_counted(memory.total)
                else None,
                "power_limit_watts": round(limit / 1000) or None if is_fine_power(limit) else None,
                "driver_major": driver.split(".", maxsplit=1)[0],
                "mig": board.mig or False,
            },
            facts=facts,
            counter_tick_ns=COUNTER_TICK_NS,
        )
        return [gpu] if board.module is None else [gpu, board.module.device(gpu, board.counter)]

    def _read(self, board: _Board, clock: Clock) -> list[Reading]:
        faults: list[str] = []
        module_faults: list[str] = []
        lost = False
        module = board.module

        def tried(read: Callable[[], T], into: list[str]) -> T | None:
            try:
                return read()
            except MeterError as error:
                nonlocal lost
                lost = lost or isinstance(error, MeterLost)
                into.append(str(error))
                return None

        power = tried(lambda: board.samples.drain(clock), faults) if board.ring else None
        module_power = None if module is None else tried(lambda: module.power(clock), module_faults)
        counter_faults = faults if module is None else module_faults
        counter = tried(lambda: self._counter(board, clock), counter_faults) if board.counter else None
        if board.restarts:
            counter_faults.append(
                f"{board.id}: the energy counter went backwards (the driver was reloaded: switch persistence mode on)"
            )
        if not board.ring:
            power = tried(lambda: self._usage(board, clock), faults)
        counters = () if counter is None else (counter,)
        conditions = conditions_of(self._nvml, board.handle, clock.monotonic_ns())
        if module is None:
            return [Reading(board.id, power, counters, conditions, "; ".join(faults) or None, lost)]
        return [
            Reading(board.id, power, (), conditions, "; ".join(faults) or None, lost),
            Reading(module.id, module_power, counters, conditions, "; ".join(module_faults) or None, lost),
        ]

    def _counter(self, board: _Board, clock: Clock) -> CounterReading:
        before_ns = clock.monotonic_ns()
        microjoules: int = 1000 * self._ask(board.id, "nvmlDeviceGetTotalEnergyConsumption", board.handle)
        after_ns = clock.monotonic_ns()
        if not is_counted(microjoules // 1000):
            raise MeterError(
                f"{board.id}: the energy counter reads {_nothing(microjoules)} J, which is no reading"
            )
        # A counter that starts anew goes on from where it was. Was it one wrong reading, then the next one leaps: that
        # one is spoilt as well.
        board.restarts = max(0, board.restarts - 1)
        if board.last_microjoules is not None and microjoules < board.last_microjoules:
            board.restarts = 2
            board.missing_microjoules += board.last_microjoules - microjoules
        board.last_microjoules = microjoules
        return CounterReading(before_ns, after_ns, microjoules + board.missing_microjoules)

    def _usage(self, board: _Board, clock: Clock) -> PowerSamples | None:
        """Return the averaged power: all there is without ring and counter, else what the counter is held against."""
        before_ns = clock.monotonic_ns()
        milliwatts = (
            optional(self._nvml, "nvmlDeviceGetPowerUsage", board.handle)
            if board.counts_gpu
            else self._ask(board.id, "nvmlDeviceGetPowerUsage", board.handle)
        )
        after_ns = clock.monotonic_ns()
        if milliwatts is None:
            return None
        if not is_fine_power(milliwatts):
            raise MeterError(
                f"{board.id}: the power reading is {_nothing(milliwatts)} W, which no powered board draws"
            )
        return PowerSamples.point(before_ns, after_ns, milliwatts)

    def _ask(self, who: str, call: str, *arguments: Any) -> Any:
        """Return what a call answers; raises MeterError with who and what failed."""
        try:
            return getattr(self._nvml, call)(*arguments)
        except self._nvml.NVMLError_GpuIsLost as error:
            raise MeterLost(f"{who}: {call} failed: {error}") from error
        except self._nvml.NVMLError as error:
            raise MeterError(f"{who}: {call} failed: {error}") from error

    def _offered(self, board: _Board, call: str) -> Any:
        """Return what a call answers, or None where this board or driver does not offer it; raises MeterError."""
        try:
            return getattr(self._nvml, call)(board.handle)
        except (self._nvml.NVMLError_NotSupported, self._nvml.NVMLError_FunctionNotFound):
            return None
        except self._nvml.NVMLError as error:
            raise MeterError(f"{board.id}: {call} failed: {error}") from error


def _nothing(value: int) -> str:
    """Return a value that is no reading, in words: zero, or what a register holds that was never written."""
    return "0" if value == 0 else f"{value / 1000:.0f}"
