"""AMD GPUs through a module that plays amdsmi (its names and return values are those of amdsmi 7.0.2)."""

from __future__ import annotations

import sys

import pytest

from pytest_tokenpower.errors import MeterUnavailable
from pytest_tokenpower.meters.adapters.amd import AmdMeter
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.types import Device
from tests.support.meters.amd import UNIQUE, FakeSmi, Node, TemperatureType


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


@pytest.mark.parametrize("dead", ["zero", "all ones", "error"])
def test_where_the_counter_is_dead_power_is_integrated_and_said_so(
    smi: FakeSmi, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = {"zero": 0, "all ones": 2**64 - 1}.get(dead, 5)
    smi.units = dict.fromkeys(smi.units, units)
    if dead == "error":
        smi.fail.add("amdsmi_get_energy_count")
    meter = AmdMeter()
    devices = meter.open(Clock())
    assert [device.id for device in devices] == ["uuid-of-card0", "uuid-of-card1"]
    assert "amdsmi_get_energy_count" in str(devices[0].facts["energy_counter_error"]) or dead == "all ones"
    assert devices[0].facts["resolution_ms"] == 500.0
    (reading, _) = meter.poll(Clock())
    assert reading.power is not None
    assert (reading.power.milliwatts.tolist(), reading.counters, reading.fault) == ([652_000], (), None)
    monkeypatch.setattr(smi, "power", {"current_socket_power": "N/A"})
    assert "gives no power, and there is no counter" in (meter.poll(Clock())[0].fault or "")
    with pytest.raises(MeterUnavailable, match=r"GPU 0 \(uuid-of-card0\) reports nothing: .*, and no power"):
        AmdMeter().open(Clock())


def seen(node: Node, monkeypatch: pytest.MonkeyPatch, **environment: str) -> list[Device]:
    monkeypatch.setitem(sys.modules, "amdsmi", node)
    return list(AmdMeter(environment).open(Clock()))


def numbers(node: Node, monkeypatch: pytest.MonkeyPatch, **environment: str) -> list[int]:
    return [int(device.id[:2], 16) - 1 for device in seen(node, monkeypatch, **environment)]


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, [0, 1, 2, 3]),
        ({"HIP_VISIBLE_DEVICES": "0"}, [0]),
        ({"ROCR_VISIBLE_DEVICES": "2"}, [2]),
        ({"CUDA_VISIBLE_DEVICES": "3,1"}, [3, 1]),
        ({"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "2"}, [1]),
        # HIP counts what the runtime has left, and reads CUDA's variable where its own is empty.
        ({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "1"}, [3]),
        ({"ROCR_VISIBLE_DEVICES": "3", "HIP_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "0"}, [3]),
        ({"CUDA_VISIBLE_DEVICES": ""}, [0, 1, 2, 3]),
        ({"ROCR_VISIBLE_DEVICES": f"GPU-{UNIQUE[2]}, 0"}, [2, 0]),
        ({"ROCR_VISIBLE_DEVICES": "1,9,2"}, [1]),
    ],
)
def test_the_boards_that_a_program_sees(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], found: list[int]
) -> None:
    assert numbers(Node(650, 90, 91, 92), monkeypatch, **environment) == found


def test_hip_counts_in_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(650, 90, 91)
    node.order = [2, 0, 1]
    assert numbers(node, monkeypatch, HIP_VISIBLE_DEVICES="0") == [1]
    assert numbers(node, monkeypatch, ROCR_VISIBLE_DEVICES=f"gpu-{UNIQUE[0]}") == [0]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ROCR_VISIBLE_DEVICES": ""}, "ROCR_VISIBLE_DEVICES= leaves no AMD GPU visible"),
        ({"HIP_VISIBLE_DEVICES": "-1"}, "HIP_VISIBLE_DEVICES=-1 leaves no AMD GPU visible"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-0000"}, "leaves no AMD GPU visible"),
        (
            {"GPU_DEVICE_ORDINAL": "0"},
            "GPU_DEVICE_ORDINAL hides GPUs from some programs only: use ROCR_VISIBLE",
        ),
    ],
)
def test_what_leaves_no_board_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str
) -> None:
    with pytest.raises(MeterUnavailable, match=said):
        seen(Node(650, 90), monkeypatch, **environment)


def test_a_neighbour_that_reports_nothing_harms_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert numbers(Node(650, 0), monkeypatch, HIP_VISIBLE_DEVICES="0") == [0]
    with pytest.raises(
        MeterUnavailable, match=r"GPU 1 .* reports nothing.*; if the tests .*ROCR_VISIBLE_DEVICES=0$"
    ):
        seen(Node(650, 0), monkeypatch)
    with pytest.raises(MeterUnavailable, match=r"GPU 1 .* reports nothing.*, and no power$"):
        seen(Node(650, 0), monkeypatch, HIP_VISIBLE_DEVICES="1")


@pytest.mark.parametrize("serial", ["N/A", "0x0000000000000000", "0xFFFFFFFFFFFFFFFF", ""])
def test_boards_that_tell_no_serial_number_are_different_boards(
    monkeypatch: pytest.MonkeyPatch, serial: str
) -> None:
    node = Node(650, 90)
    monkeypatch.setattr(
        node, "amdsmi_get_gpu_asic_info", lambda handle: {"market_name": node.model, "asic_serial": serial}
    )
    assert numbers(node, monkeypatch) == [0, 1]
    assert numbers(node, monkeypatch, HIP_VISIBLE_DEVICES="1") == [1]


def test_boards_whose_uuids_hold_no_serial_number_are_different_boards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    devices = seen(Node(650, 90, serials=["0" * 16] * 2), monkeypatch)
    assert [device.name for device in devices] == ["AMD Instinct MI300X"] * 2


@pytest.mark.parametrize(
    ("environment", "found", "used"),
    [
        ({}, [0, 2], 2),
        ({"HIP_VISIBLE_DEVICES": "2,3"}, [2], 2),
        ({"HIP_VISIBLE_DEVICES": "0"}, [0], 1),
        ({"HIP_VISIBLE_DEVICES": "3"}, [2], 1),
    ],
)
def test_a_card_of_two_dies_is_measured_once_by_its_first(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], found: list[int], used: int
) -> None:
    node = Node(650, 0, 640, 0, model="AMD Instinct MI250X")
    devices = seen(node, monkeypatch, **environment)
    assert numbers(node, monkeypatch, **environment) == found
    assert {device.name for device in devices} == {"AMD Instinct MI250X (whole card of 2 dies)"}
    assert {device.key_facts["dies"] for device in devices} == {f"{used} of 2 used, energy of the whole card"}


def test_a_partitioned_board_is_measured_once_if_it_is_all_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(650, 650, 650, 90, serials=[UNIQUE[0]] * 3 + [UNIQUE[3]])
    first, second = seen(node, monkeypatch)
    assert (first.name, second.name) == (
        "AMD Instinct MI300X (whole board of 3 partitions)",
        "AMD Instinct MI300X",
    )
    with pytest.raises(MeterUnavailable, match="is partitioned, and 1 of its 3 partitions are visible"):
        seen(node, monkeypatch, HIP_VISIBLE_DEVICES="1")


@pytest.mark.parametrize("function", ["amdsmi_init", "amdsmi_get_gpu_device_uuid"])
def test_failures_at_open_name_the_call(smi: FakeSmi, function: str) -> None:
    smi.fail.add(function)
    with pytest.raises(MeterUnavailable, match=f"AMD: {function} failed on .*NOT_SUPPORTED"):
        AmdMeter().open(Clock())
    assert smi.up == (-1 if function == "amdsmi_init" else 0)  # shut down in any case


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
