"""The state of an NVIDIA board beside its energy, through NVML: limits, temperature, clock, memory, processes.

None of it is needed for the energy: what a call does not give, for whatever reason, is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_tokenpower.meters.adapters.no_reading import is_counted, is_fine_power
from pytest_tokenpower.meters.processes import is_in_tree
from pytest_tokenpower.meters.types import Conditions

LIMIT_FIELDS: Mapping[str, int] = {
    "power": 74,  # NVML_FI_DEV_PERF_POLICY_POWER
    "thermal": 75,  # NVML_FI_DEV_PERF_POLICY_THERMAL
    "board": 77,  # NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT
    "sw_thermal": 269,  # NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN
    "hw_thermal": 270,  # NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN
    "power_brake": 271,  # NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN
}
"""The fields of cumulative time under each limit, in nanoseconds; by number, since nvidia-ml-py before 12.575 has no
names for the last three."""


def optional(nvml: Any, call: str, *arguments: Any) -> Any:
    """Return what a call of ``nvml`` answers, or None where it fails (missing, never zero)."""
    try:
        return getattr(nvml, call)(*arguments)
    except nvml.NVMLError:
        return None


def conditions_of(nvml: Any, handle: Any, t_ns: int) -> Conditions:
    """Return the conditions of a board; ``t_ns`` is now."""
    values = optional(nvml, "nvmlDeviceGetFieldValues", handle, list(LIMIT_FIELDS.values())) or ()
    limited = {
        name: int(value.value.ullVal)
        for name, value in zip(LIMIT_FIELDS, values, strict=False)
        if value.nvmlReturn == nvml.NVML_SUCCESS
    }
    # The second is what drivers before NVML 13 have. No die at work is at 0 °C, and no clock at 0 MHz.
    temperature = optional(nvml, "nvmlDeviceGetTemperatureV", handle, nvml.NVML_TEMPERATURE_GPU) or optional(
        nvml, "nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU
    )
    processes = optional(nvml, "nvmlDeviceGetComputeRunningProcesses_v3", handle)
    ours, foreign = None, None
    if processes is not None:
        inside = {process.pid: is_in_tree(process.pid) for process in processes}
        # A pid that is not in our /proc belongs to another PID namespace: it may well be our own.
        foreign = tuple(sorted(pid for pid, known in inside.items() if known is False))
        ours = any(known for known in inside.values()) if None not in inside.values() else None
    memory = optional(nvml, "nvmlDeviceGetMemoryInfo", handle)
    clock_mhz = optional(nvml, "nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM)
    return Conditions(
        t_ns=t_ns,
        # What was never written reads as all ones.
        temperature_celsius=temperature if is_fine_power(temperature) else None,
        sm_clock_mhz=clock_mhz if is_fine_power(clock_mhz) else None,
        memory_gib=memory.used / 2**30 if memory is not None and is_counted(memory.used) else None,
        limited_ns=limited,
        foreign_pids=foreign,
        own_process=ours,
    )
