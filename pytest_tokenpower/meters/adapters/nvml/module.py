"""The module that an NVIDIA GPU sits on, where there is one (Grace Hopper): GPU, CPU and the memory of both as one.

Its power has a ring of its own (NVML_MODULE_POWER_SAMPLES) and fields of its own scope (NVML_POWER_SCOPE_MODULE). The
board's energy counter counts the module there, not the GPU (ml-energy/zeus, pull request 172, on a GH200).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import MeterError
from pytest_tokenpower.meters.adapters.nvml.conditions import optional
from pytest_tokenpower.meters.adapters.nvml.ring import PowerRing
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.types import Device, PowerSamples

HOPPER = 9
"""Compute capability of the one generation whose module has a single GPU. From Blackwell on two GPUs share a module,
and each of them reports all of it: added up, its joules would count twice."""


@dataclass(frozen=True)
class Module:
    """A module and how its power is read: from its ``ring``, else from a field of the driver's averages."""

    id: str
    ring: PowerRing | None
    watts: Callable[[], float]
    power_limit_watts: float | None = None

    def device(self, gpu: Device, counter: bool) -> Device:
        """Return the module of ``gpu`` as a device of its own; ``counter``: the board's energy counter is there."""
        facts: dict[str, Fact] = {
            "gpu": gpu.id,
            "driver": gpu.facts.get("driver"),
            "power_ring": self.ring is not None,
            "energy_counter": counter,
            "resolution_ms": 30 if self.ring is not None else 500 if counter else 1000,
        }
        return Device(
            id=self.id,
            scope="module",
            name=gpu.name,
            meter=gpu.meter,
            provenance=gpu.provenance,
            key_facts={
                "model": gpu.name,
                "power_limit_watts": None
                if self.power_limit_watts is None
                else round(self.power_limit_watts),
                "driver_major": gpu.key_facts.get("driver_major"),
            },
            facts=facts,
            counter_tick_ns=gpu.counter_tick_ns,
        )

    def power(self, clock: Clock) -> PowerSamples | None:
        """Return what is new; raises MeterError where it cannot be read, or reads nothing."""
        if self.ring is not None:
            return self.ring.drain(clock)
        before_ns = clock.monotonic_ns()
        milliwatts = round(1000 * self.watts())
        return PowerSamples.point(before_ns, clock.monotonic_ns(), milliwatts)


def find_module(nvml: Any, handle: Any, board: str) -> tuple[Module | None, str | None]:
    """Return the module of a board, or None; and why one that answers is left alone."""
    name = f"{board}/module"

    def watts() -> float:
        average, instant = nvml.NVML_FI_DEV_POWER_AVERAGE, nvml.NVML_FI_DEV_POWER_INSTANT
        for field in (average, instant):
            if milliwatts := _field(nvml, handle, field):
                return milliwatts / 1000
        raise MeterError(f"{name}: no power of the module (nvmlDeviceGetFieldValues {average} and {instant})")

    ring: PowerRing | None = PowerRing(nvml, handle, name, nvml.NVML_MODULE_POWER_SAMPLES)
    if not _tried(lambda: ring is not None and bool(ring.since(0)[:, 1].any())):
        ring = None
    if ring is None and not _tried(lambda: watts() > 0):
        return None, None
    capability = optional(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    if capability is None or capability[0] != HOPPER:
        return None, "the module's power, which another GPU of the same module may report as well"
    limit = _field(nvml, handle, nvml.NVML_FI_DEV_POWER_CURRENT_LIMIT)
    return Module(name, ring, watts, limit / 1000 if limit else None), None


def _tried(read: Callable[[], bool]) -> bool:
    """Whether there is such a reading; one that fails may have been disturbed, so it is tried twice."""
    for _ in range(2):
        try:
            return read()
        except MeterError:
            continue
    return False


def _field(nvml: Any, handle: Any, field: int) -> int | None:
    """Return a field of the module's scope in milliwatts; None where it is not offered (missing, never zero)."""
    values = optional(nvml, "nvmlDeviceGetFieldValues", handle, [(field, nvml.NVML_POWER_SCOPE_MODULE)])
    if not values or values[0].nvmlReturn != nvml.NVML_SUCCESS:
        return None
    return int(values[0].value.uiVal) or None
