"""A module that plays amdsmi (its names and return values are those of amdsmi 7.0.2)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from types import ModuleType
from typing import Any


class AmdSmiException(Exception):
    pass


class TemperatureType(IntEnum):
    EDGE = 0
    HOTSPOT = 1


class TemperatureMetric(IntEnum):
    CURRENT = 0


class FakeSmi(ModuleType):
    """Two MI300X; ``fail`` names functions that raise."""

    AmdSmiException = AmdSmiException
    AmdSmiTemperatureType = TemperatureType
    AmdSmiTemperatureMetric = TemperatureMetric
    __version__ = "25.5.1"

    def __init__(self) -> None:
        super().__init__("amdsmi")
        self.units: Any = {"card0": 123_456_789_012, "card1": 2_000_000}
        self.power: dict[str, Any] = {"current_socket_power": 652, "average_socket_power": "N/A"}
        self.celsius = {TemperatureType.HOTSPOT: 61, TemperatureType.EDGE: 0}
        self.fail: set[str] = set()
        self.up = 0

    def check(self, function: str) -> None:
        if function in self.fail:
            raise AmdSmiException("Error code:\n\t2 | AMDSMI_STATUS_NOT_SUPPORTED - Command not supported")

    def amdsmi_init(self) -> None:
        self.check("amdsmi_init")
        self.up += 1

    def amdsmi_shut_down(self) -> None:
        self.check("amdsmi_shut_down")
        self.up -= 1

    def amdsmi_get_processor_handles(self) -> list[str]:
        return list(self.units)

    def amdsmi_get_gpu_device_uuid(self, handle: str) -> str:
        self.check("amdsmi_get_gpu_device_uuid")
        return f"uuid-of-{handle}"

    def amdsmi_get_energy_count(self, handle: str) -> dict[str, Any]:
        self.check("amdsmi_get_energy_count")
        return {"energy_accumulator": self.units[handle], "counter_resolution": 15.3, "timestamp": 1}

    def amdsmi_get_power_info(self, handle: str) -> dict[str, Any]:
        self.check("amdsmi_get_power_info")
        return self.power

    def amdsmi_get_temp_metric(self, handle: str, sensor: TemperatureType, metric: TemperatureMetric) -> int:
        self.check("amdsmi_get_temp_metric")
        return self.celsius[sensor]

    def amdsmi_get_gpu_asic_info(self, handle: str) -> dict[str, Any]:
        self.check("amdsmi_get_gpu_asic_info")
        return {"market_name": "AMD Instinct MI300X", "num_compute_units": 304}

    def amdsmi_get_gpu_driver_info(self, handle: str) -> dict[str, Any]:
        self.check("amdsmi_get_gpu_driver_info")
        return {"driver_name": "amdgpu", "driver_version": "6.10.5"}

    def amdsmi_get_power_cap_info(self, handle: str) -> dict[str, Any]:
        self.check("amdsmi_get_power_cap_info")
        return {"power_cap": 750_000_000}

    def amdsmi_get_gpu_vram_info(self, handle: str) -> dict[str, Any]:
        self.check("amdsmi_get_gpu_vram_info")
        return {"vram_size": 196_592}


UNIQUE = [f"{number:02x}aabbccddeeff{number:02x}" for number in range(1, 9)]


class Node(FakeSmi):
    """Dies given by watts (0: a die that reports nothing), with the UUIDs that amdsmi makes of serial numbers."""

    def __init__(
        self, *watts: int, model: str = "AMD Instinct MI300X", serials: Sequence[str] = UNIQUE
    ) -> None:
        super().__init__()
        self.watts = dict(enumerate(watts))
        self.model = model
        self.serials = serials
        self.order: list[int] | None = None
        self.units = dict(enumerate(watts))

    def amdsmi_get_processor_handles(self) -> list[Any]:
        return list(self.watts)

    def amdsmi_get_gpu_device_uuid(self, handle: Any) -> str:
        self.check("amdsmi_get_gpu_device_uuid")
        serial = self.serials[handle]
        return f"{serial[:2]}ff74a1-0000-1000-{handle:02x}{serial[2:4]}-{serial[4:]}"

    def amdsmi_get_power_info(self, handle: Any) -> dict[str, Any]:
        return {"current_socket_power": self.watts[handle] or "N/A"}

    def amdsmi_get_gpu_asic_info(self, handle: Any) -> dict[str, Any]:
        return {"market_name": self.model}

    def amdsmi_get_gpu_enumeration_info(self, handle: Any) -> dict[str, Any]:
        self.check("amdsmi_get_gpu_enumeration_info")
        if self.order is None:
            raise AmdSmiException("not supported")
        return {"hip_id": self.order[handle], "hip_uuid": f"GPU-{self.serials[handle]}"}
