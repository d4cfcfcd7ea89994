"""The NVML meter: NVIDIA boards through their power ring, energy counter and violation counters.

The only module that speaks to NVML. The simulated board is handed in place of the `pynvml` module, so that the
code under test is the code that runs on GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pytest_tokenpower.errors import MeterError, MeterUnavailable
from pytest_tokenpower.telemetry.clock import STEP_NS, Clock
from pytest_tokenpower.telemetry.processes import is_in_tree
from pytest_tokenpower.telemetry.values import (
    Conditions,
    CounterReading,
    Device,
    Fact,
    PowerSamples,
    Provenance,
    Reading,
)

RING_POLL_S = 1.0
"""The ring keeps 119 samples of 20 ms; drained once a second it lost nothing in minutes (measured)."""

POLLING_S = 0.1
"""Without a ring: the period at which the counter and the instant power are refreshed on the boards we know."""

COUNTER_TICK_NS = 100_000_000

LIMIT_FIELDS: Mapping[str, str] = {
    "power": "NVML_FI_DEV_PERF_POLICY_POWER",
    "thermal": "NVML_FI_DEV_PERF_POLICY_THERMAL",
    "board": "NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT",
    "sw_thermal": "NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN",
    "hw_thermal": "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN",
    "power_brake": "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN",
}
"""Cumulative time under each limit, in nanoseconds (fields 74, 75, 77, 269, 270, 271)."""


@dataclass
class _Board:
    handle: Any
    id: str
    ring: bool
    counter: bool
    last_ring_us: int = 0
    last_offset_ns: int | None = None
    last_microjoules: int | None = None


class NvmlMeter:
    """Reads the GPUs that CUDA_VISIBLE_DEVICES leaves visible.

    ``nvml`` is the `pynvml` module or anything with its calls; ``visible`` the value of CUDA_VISIBLE_DEVICES
    (None: all GPUs).
    """

    name = "nvml"

    def __init__(
        self,
        nvml: Any = None,
        *,
        visible: str | None = None,
        provenance: Provenance = "measured",
    ) -> None:
        self._nvml = nvml
        self._visible = visible
        self._provenance: Provenance = provenance
        self._boards: list[_Board] = []
        self.poll_interval_s = RING_POLL_S

    def open(self, clock: Clock) -> Sequence[Device]:
        """Connect to the driver; raises MeterUnavailable where there is none, or no GPU that can be measured."""
        if self._nvml is None:
            import pynvml

            self._nvml = pynvml
        nvml = self._nvml
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise MeterUnavailable(
                f"no NVIDIA driver answers ({error}); nvidia-smi on this machine should list the GPU"
            ) from error
        try:
            handles = self._visible_handles()
            self._boards = [self._board(handle) for handle in handles]
            devices = [self._describe(board) for board in self._boards]
        except nvml.NVMLError as error:
            raise MeterUnavailable(f"NVML could not describe the GPUs: {error}") from error
        if not all(board.ring for board in self._boards):
            self.poll_interval_s = POLLING_S
        return devices

    def poll(self, clock: Clock) -> Sequence[Reading]:
        """Drain each board's ring and read its counter and conditions; a board that fails says so by itself."""
        return [self._read(board, clock) for board in self._boards]

    def close(self) -> None:
        """Disconnect from the driver."""
        if self._nvml is None:
            return
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError:
            # The driver is gone; there is nothing left to let go of.
            return

    def _visible_handles(self) -> list[Any]:
        nvml = self._nvml
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        if not handles:
            raise MeterUnavailable("the NVIDIA driver lists no GPU")
        if self._visible is None:
            return handles
        uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        names = {_text(nvml.nvmlDeviceGetName(handle)) for handle in handles}
        chosen = []
        for part in (part.strip() for part in self._visible.split(",")):
            if part.startswith("MIG-"):
                raise MeterUnavailable(
                    f"CUDA_VISIBLE_DEVICES names the MIG slice {part}: NVML reports the power of the whole board, "
                    "so the energy of one slice cannot be measured; run energy tests on a GPU without MIG"
                )
            if part.startswith("GPU-"):
                matches = [
                    handle for handle, uuid in zip(handles, uuids, strict=True) if uuid.startswith(part)
                ]
                if len(matches) != 1:
                    raise MeterUnavailable(
                        f"CUDA_VISIBLE_DEVICES names {part}, which matches {len(matches)} of the GPUs {', '.join(uuids)}"
                    )
                chosen.append(matches[0])
                continue
            # CUDA hides this entry and all after it when one is not a valid index ("-1", "NoDevFiles").
            if not part.isdigit() or int(part) >= len(handles):
                break
            if len(names) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
                raise MeterUnavailable(
                    f"CUDA_VISIBLE_DEVICES={self._visible} counts in CUDA's order, which is not NVML's on a machine "
                    f"with different GPUs ({', '.join(sorted(names))}): set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name "
                    "the GPUs by UUID (nvidia-smi -L)"
                )
            chosen.append(handles[int(part)])
        if not chosen:
            raise MeterUnavailable(f"CUDA_VISIBLE_DEVICES={self._visible!r} leaves no GPU visible")
        return chosen

    def _board(self, handle: Any) -> _Board:
        nvml = self._nvml
        board = _Board(handle, _text(nvml.nvmlDeviceGetUUID(handle)), ring=True, counter=True)
        if (mig := self._optional("nvmlDeviceGetMigMode", handle)) and mig[0]:
            raise MeterUnavailable(
                f"{board.id} runs in MIG mode: NVML reports the power of the whole board, so the energy of one slice "
                "cannot be measured; run energy tests on a GPU without MIG"
            )
        try:
            board.ring = len(self._ring(board, 0)) > 1
        except nvml.NVMLError:
            board.ring = False
        try:
            board.counter = nvml.nvmlDeviceGetTotalEnergyConsumption(handle) > 0
        except nvml.NVMLError:
            board.counter = False
        if not board.ring and not board.counter and self._optional("nvmlDeviceGetPowerUsage", handle) is None:
            raise MeterUnavailable(
                f"{board.id} ({_text(nvml.nvmlDeviceGetName(handle))}) offers neither power samples, nor an energy "
                "counter, nor power: NVML cannot measure its energy (a vGPU, or too old a board)"
            )
        return board

    def _describe(self, board: _Board) -> Device:
        nvml, handle = self._nvml, board.handle
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        memory = self._optional("nvmlDeviceGetMemoryInfo", handle)
        limit = self._optional("nvmlDeviceGetEnforcedPowerLimit", handle)
        name = _text(nvml.nvmlDeviceGetName(handle))
        facts: dict[str, Fact] = {
            "driver": driver,
            "power_ring": board.ring,
            "energy_counter": board.counter,
            "persistence_mode": self._optional("nvmlDeviceGetPersistenceMode", handle),
            "refresh_ms": 20 if board.ring else 100,
            "resolution_ms": 30 if board.ring else 500,
        }
        return Device(
            id=board.id,
            scope="gpu",
            name=name,
            meter=self.name,
            provenance=self._provenance,
            key_facts={
                "model": name,
                "memory_gib": round(memory.total / 2**30) if memory is not None else None,
                "power_limit_watts": round(limit / 1000) if limit is not None else None,
                "driver_major": driver.split(".", maxsplit=1)[0],
                "mig": False,
            },
            facts=facts,
            counter_tick_ns=COUNTER_TICK_NS,
        )

    def _read(self, board: _Board, clock: Clock) -> Reading:
        nvml = self._nvml
        power: PowerSamples | None = None
        counters: list[CounterReading] = []
        call = ""
        try:
            if board.ring:
                call = "nvmlDeviceGetSamples"
                power = self._drain(board, clock)
            if board.counter:
                call = "nvmlDeviceGetTotalEnergyConsumption"
                counters = [self._counter(board, clock)]
            elif not board.ring:
                call = "nvmlDeviceGetPowerUsage"
                power = self._usage(board, clock)
            call = "nvmlDeviceGetFieldValues"
            conditions = self._conditions(board, clock)
        except nvml.NVMLError as error:
            return Reading(board.id, power, counters, fault=f"{board.id}: {call} failed: {error}")
        except MeterError as error:
            return Reading(board.id, power, counters, fault=f"{board.id}: {error}")
        return Reading(board.id, power, counters, conditions)

    def _ring(self, board: _Board, since_us: int) -> list[tuple[int, int]]:
        nvml = self._nvml
        try:
            _, samples = nvml.nvmlDeviceGetSamples(board.handle, nvml.NVML_TOTAL_POWER_SAMPLES, since_us)
        except nvml.NVMLError_NotFound:
            # "No samples" since the last drain.
            return []
        return [(s.timeStamp, s.sampleValue.uiVal) for s in samples if s.timeStamp > since_us]

    def _drain(self, board: _Board, clock: Clock) -> PowerSamples | None:
        previous, board.last_offset_ns = board.last_offset_ns, clock.offset_ns
        if previous is not None and abs(clock.offset_ns - previous) > STEP_NS:
            # Realtime was set: stamps after a step back would hide behind the newest one before it.
            board.last_ring_us = 0
        newest_us = (clock.monotonic_ns() + clock.offset_ns) // 1000
        rows = [row for row in self._ring(board, board.last_ring_us) if row[0] <= newest_us]
        if not rows:
            return None
        board.last_ring_us = rows[-1][0]
        columns = np.array(rows, dtype=np.int64)
        milliwatts = columns[:, 1]
        if not milliwatts.any():
            raise MeterError("the power ring reads 0 W, which no powered board draws")
        return PowerSamples(clock.from_realtime_us(columns[:, 0]), milliwatts)

    def _counter(self, board: _Board, clock: Clock) -> CounterReading:
        before_ns = clock.monotonic_ns()
        microjoules = 1000 * self._nvml.nvmlDeviceGetTotalEnergyConsumption(board.handle)
        after_ns = clock.monotonic_ns()
        previous, board.last_microjoules = board.last_microjoules, microjoules
        if previous is not None and microjoules < previous:
            raise MeterError(
                f"the energy counter went backwards, from {previous / 1e6:.1f} J to {microjoules / 1e6:.1f} J "
                "(the driver was reloaded: switch persistence mode on)"
            )
        return CounterReading(before_ns, after_ns, microjoules)

    def _usage(self, board: _Board, clock: Clock) -> PowerSamples:
        now_ns = clock.monotonic_ns()
        milliwatts = self._nvml.nvmlDeviceGetPowerUsage(board.handle)
        if milliwatts <= 0:
            raise MeterError("the power reading is 0 W, which no powered board draws")
        return PowerSamples(
            np.array([now_ns], dtype=np.int64), np.array([milliwatts], dtype=np.int64), held=False
        )

    def _conditions(self, board: _Board, clock: Clock) -> Conditions:
        nvml, handle = self._nvml, board.handle
        ids = [getattr(nvml, field) for field in LIMIT_FIELDS.values()]
        limited: dict[str, int] = {}
        for name, value in zip(
            LIMIT_FIELDS, self._optional("nvmlDeviceGetFieldValues", handle, ids) or (), strict=False
        ):
            if value.nvmlReturn == nvml.NVML_SUCCESS:
                limited[name] = int(value.value.ullVal)
        temperature = self._optional("nvmlDeviceGetTemperatureV", handle, nvml.NVML_TEMPERATURE_GPU)
        if temperature is None:
            temperature = self._optional("nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU)
        processes = self._optional("nvmlDeviceGetComputeRunningProcesses_v3", handle)
        ours, foreign = None, None
        if processes is not None:
            inside = {process.pid: is_in_tree(process.pid) for process in processes}
            # A pid that is not in our /proc belongs to another PID namespace: it may well be our own.
            foreign = tuple(sorted(pid for pid, known in inside.items() if known is False))
            ours = any(known for known in inside.values()) if None not in inside.values() else None
        return Conditions(
            t_ns=clock.monotonic_ns(),
            temperature_celsius=temperature,
            sm_clock_mhz=self._optional("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
            limited_ns=limited,
            foreign_pids=foreign,
            own_process=ours,
        )

    def _optional(self, call: str, *arguments: Any) -> Any:
        """What a call answers, or None where this board or driver does not offer it (missing, never zero)."""
        try:
            return getattr(self._nvml, call)(*arguments)
        except (self._nvml.NVMLError_NotSupported, self._nvml.NVMLError_FunctionNotFound):
            return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
