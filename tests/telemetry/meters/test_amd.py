"""AMD GPUs through a module that plays amdsmi (its names and return values are those of amdsmi 7.0.2)."""

from __future__ import annotations

import sys
from enum import IntEnum
from types import ModuleType
from typing import Any

import pytest

from pytest_tokenpower.errors import MeterUnavailable
from pytest_tokenpower.telemetry.clock import Clock
from pytest_tokenpower.telemetry.meters.amd import AmdMeter


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
        self.units = {"card0": 123_456_789_012, "card1": 2_000_000}
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


@pytest.fixture
def smi(monkeypatch: pytest.MonkeyPatch) -> FakeSmi:
    module = FakeSmi()
    monkeypatch.setitem(sys.modules, "amdsmi", module)
    return module


def test_boards_are_listed_with_what_makes_them_comparable(smi: FakeSmi) -> None:
    meter = AmdMeter()
    devices = meter.open(Clock())
    assert [(device.id, device.scope, device.provenance) for device in devices] == [
        ("uuid-of-card0", "gpu", "measured"),
        ("uuid-of-card1", "gpu", "measured"),
    ]
    assert devices[0].key_facts == {
        "name": "AMD Instinct MI300X",
        "memory_mib": 196_592,
        "power_limit": 750_000_000,
        "driver_major": "6",
    }
    assert (devices[0].facts["resolution_ms"], devices[0].facts["refresh_ms"]) == (100.0, 100.0)
    meter.close()
    assert smi.up == 0


def test_counter_power_and_temperature(smi: FakeSmi) -> None:
    meter = AmdMeter()
    clock = Clock()
    meter.open(clock)
    first = meter.poll(clock)[0]
    assert first.counters[0].microjoules == 1_888_888_871_884  # 123456789012 × 15.3, to the microjoule
    assert first.counters[0].t0_ns <= first.counters[0].t1_ns
    assert first.power is not None
    assert first.power.milliwatts.tolist() == [652_000]
    assert first.power.held is False
    assert first.conditions is not None
    assert first.conditions.temperature_celsius == 61.0
    smi.units["card0"] += 1_000_000
    second = meter.poll(clock)[0]
    assert second.counters[0].microjoules - first.counters[0].microjoules == 15_300_000


def test_what_a_board_lacks_is_absent(smi: FakeSmi) -> None:
    smi.fail |= {"amdsmi_get_gpu_asic_info", "amdsmi_get_power_cap_info", "amdsmi_get_gpu_vram_info"}
    meter = AmdMeter()
    devices = meter.open(Clock())
    assert devices[0].name == "AMD GPU"
    assert devices[0].key_facts["power_limit"] is None
    smi.power = {"current_socket_power": "N/A", "average_socket_power": 300}
    smi.celsius = {TemperatureType.HOTSPOT: 0, TemperatureType.EDGE: 45}
    (reading, _) = meter.poll(Clock())
    assert reading.power is not None
    assert reading.power.milliwatts.tolist() == [300_000]
    assert reading.conditions is not None
    assert reading.conditions.temperature_celsius == 45.0
    for power in ({"current_socket_power": 0xFFFF}, {"current_socket_power": 0}, {}):
        smi.power = power
        assert meter.poll(Clock())[0].power is None
    smi.fail |= {"amdsmi_get_power_info", "amdsmi_get_temp_metric"}
    (reading, _) = meter.poll(Clock())
    assert reading.power is None
    assert reading.conditions is not None
    assert reading.conditions.temperature_celsius is None
    assert reading.counters


def test_older_name_of_the_accumulator(smi: FakeSmi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        smi, "amdsmi_get_energy_count", lambda handle: {"power": 100, "counter_resolution": 15.0}
    )
    meter = AmdMeter()
    meter.open(Clock())
    assert meter.poll(Clock())[0].counters[0].microjoules == 1500
    monkeypatch.setattr(smi, "amdsmi_get_energy_count", lambda handle: {"timestamp": 5})
    (reading, _) = meter.poll(Clock())
    assert not reading.counters
    assert "gave no counter" in (reading.fault or "")


def test_a_counter_that_reads_zero_is_refused(smi: FakeSmi) -> None:
    smi.units["card1"] = 0
    with pytest.raises(
        MeterUnavailable, match=r"GPU 1 \(uuid-of-card1\) reads zero \(amdsmi_get_energy_count\)"
    ):
        AmdMeter().open(Clock())
    assert smi.up == 0


@pytest.mark.parametrize("function", ["amdsmi_init", "amdsmi_get_gpu_device_uuid", "amdsmi_get_energy_count"])
def test_failures_at_open_name_the_call(smi: FakeSmi, function: str) -> None:
    smi.fail.add(function)
    with pytest.raises(MeterUnavailable, match=f"AMD: {function} failed on .*NOT_SUPPORTED"):
        AmdMeter().open(Clock())


def test_no_boards_and_failures_at_poll(smi: FakeSmi) -> None:
    meter = AmdMeter()
    meter.open(Clock())
    smi.fail.add("amdsmi_get_energy_count")
    (reading, _) = meter.poll(Clock())
    assert not reading.counters
    assert "amdsmi_get_energy_count failed on uuid-of-card0" in (reading.fault or "")
    assert reading.power is not None
    smi.fail.add("amdsmi_shut_down")
    meter.close()
    smi.fail.clear()
    smi.units.clear()
    with pytest.raises(MeterUnavailable, match="lists no GPU"):
        AmdMeter().open(Clock())


def test_without_amdsmi_or_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    with pytest.raises(MeterUnavailable, match="no amdsmi: install"):
        AmdMeter().open(Clock())
    monkeypatch.delitem(sys.modules, "amdsmi")

    class Broken:
        """amdsmi 7.0.2 without its library fails on import with this error."""

        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "amdsmi":
                raise KeyError("libamd_smi.so")

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(MeterUnavailable, match=r"libamd_smi.so is missing"):
        AmdMeter().open(Clock())
