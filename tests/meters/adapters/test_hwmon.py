"""hwmon power meters against fake sysfs trees."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_tokenpower.errors import MeterUnavailable, UsageError
from pytest_tokenpower.meters.adapters.hwmon import HwmonMeter
from pytest_tokenpower.meters.clock import Clock


def chip(root: Path, index: int, name: str, *, device: bool = False, **files: str | int) -> Path:
    folder = root / f"hwmon{index}"
    folder.mkdir()
    (folder / "name").write_text(f"{name}\n")
    place = folder / "device" if device else folder
    place.mkdir(exist_ok=True)
    for file, content in files.items():
        (place / file).write_text(f"{content}\n")
    return place


def grace(root: Path, parts: tuple[str, ...] = ("Module", "Grace", "CPU", "SysIO")) -> None:
    """Make the four ACPI meters of each of two sockets, as they are named on Grace."""
    for socket in (0, 1):
        for number, part in enumerate(parts):
            chip(
                root,
                10 * socket + number,
                "power_meter",
                device=True,
                power1_average=(number + 1) * 50_000_000 + socket,
                power1_average_interval=50,
                power1_oem_info=f"{part} Power Socket {socket}",
            )


def fault(meter: HwmonMeter) -> str:
    (reading,) = meter.poll(Clock())
    assert reading.power is None
    return reading.fault or ""


def test_acpi_meter_is_the_node(tmp_path: Path) -> None:
    chip(tmp_path, 0, "power_meter", device=True, power1_average=412_000_000, power1_average_interval=1000)
    chip(tmp_path, 1, "coretemp", temp1_input=40_000)
    meter = HwmonMeter(tmp_path)
    clock = Clock()
    (device,) = meter.open(clock)
    assert (device.id, device.scope, device.provenance) == ("hwmon:power_meter/power", "node", "measured")
    assert (device.facts["resolution_ms"], device.facts["refresh_ms"]) == (2000.0, 1000.0)
    before_ns = clock.monotonic_ns()
    (reading,) = meter.poll(clock)
    assert reading.power is not None
    assert reading.power.milliwatts.tolist() == [412_000]
    assert reading.power.held is False
    assert before_ns <= reading.power.t_ns[0] <= clock.monotonic_ns()


def test_of_several_machines_none_is_the_node(tmp_path: Path) -> None:
    """Unnamed channels may be parts of each other: their sum would be watts that nobody drew."""
    chip(tmp_path, 0, "power_meter", device=True, power1_average=412_000_000, power2_average=100_000_000)
    with pytest.raises(
        MeterUnavailable, match="power_meter/power1, of several that may be the machine, power_m"
    ):
        HwmonMeter(tmp_path).open(Clock())
    (device,) = HwmonMeter(tmp_path, {"power_meter/power1": "node"}).open(Clock())
    assert device.id == "hwmon:power_meter/power1"


def test_two_meters_of_one_name_are_not_one_machine(tmp_path: Path) -> None:
    for number in (0, 1):
        chip(tmp_path, number, "power_meter", device=True, power1_average=412_000_000)
    with pytest.raises(MeterUnavailable, match="of several that may be the machine"):
        HwmonMeter(tmp_path).open(Clock())


def test_grace_sockets_are_counted_whole_and_modules_not(tmp_path: Path) -> None:
    grace(tmp_path)
    devices = HwmonMeter(tmp_path).open(Clock())
    assert {device.id: device.scope for device in devices} == {
        "hwmon:power_meter/Grace Power Socket 0": "cpu",
        "hwmon:power_meter/Grace Power Socket 1": "cpu",
    }
    assert "Module Power Socket 0" in str(devices[0].facts["not_counted"])
    assert devices[0].facts["resolution_ms"] == 200.0


def test_grace_parts_count_where_the_whole_is_missing(tmp_path: Path) -> None:
    grace(tmp_path, ("CPU", "SysIO"))
    devices = HwmonMeter(tmp_path).open(Clock())
    assert [device.scope for device in devices] == ["cpu"] * 4


def test_average_goes_before_input_and_labels_are_used(tmp_path: Path) -> None:
    chip(
        tmp_path,
        0,
        "xgene_hwmon",
        power1_input=30_000_000,
        power1_label="CPU power",
        power2_input=9_000_000,
        power2_label="IO power",
    )
    chip(tmp_path, 1, "fam15h_power", power1_input=1, power1_average=25_000_000, power1_average_interval=10)
    meter = HwmonMeter(tmp_path)
    devices = meter.open(Clock())
    assert [device.id for device in devices] == ["hwmon:xgene_hwmon/CPU power", "hwmon:fam15h_power/power"]
    assert devices[0].facts["not_counted"] == "xgene_hwmon/IO power"
    powers = [reading.power for reading in meter.poll(Clock())]
    assert [int(power.milliwatts[0]) for power in powers if power is not None] == [30_000, 25_000]


def test_sockets_of_one_name_are_all_counted(tmp_path: Path) -> None:
    for number in (0, 1):
        chip(tmp_path, number, "fam15h_power", power1_average=(25 + number) * 1_000_000)
    meter = HwmonMeter(tmp_path)
    devices = meter.open(Clock())
    assert [device.id for device in devices] == ["hwmon:fam15h_power/power", "hwmon:fam15h_power/power 2"]
    powers = [reading.power for reading in meter.poll(Clock())]
    assert [int(power.milliwatts[0]) for power in powers if power is not None] == [25_000, 26_000]


def test_unknown_sensors_need_a_scope(tmp_path: Path) -> None:
    chip(tmp_path, 0, "amdgpu", power1_average=90_000_000, power1_label="PPT")
    with pytest.raises(MeterUnavailable, match=r"no meter, .*\(not counted: amdgpu/PPT\)"):
        HwmonMeter(tmp_path).open(Clock())
    (device,) = HwmonMeter(tmp_path, {"amdgpu/PPT": "gpu"}).open(Clock())
    assert device.scope == "gpu"
    with pytest.raises(MeterUnavailable, match="no sensor ina226/cpu"):
        HwmonMeter(tmp_path, {"ina226/cpu": "cpu"}).open(Clock())
    with pytest.raises(UsageError, match="must be one of gpu, cpu"):
        HwmonMeter(tmp_path, {"amdgpu/PPT": "board"})  # type: ignore[dict-item]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(MeterUnavailable, match="has no power sensor"):
        HwmonMeter(tmp_path / "absent").open(Clock())


def test_zero_is_no_reading(tmp_path: Path) -> None:
    place = chip(tmp_path, 0, "power_meter", power1_average=0)
    with pytest.raises(MeterUnavailable, match="reads 0 µW"):
        HwmonMeter(tmp_path).open(Clock())
    (place / "power1_average").write_text("1000000")
    meter = HwmonMeter(tmp_path)
    meter.open(Clock())
    (place / "power1_average").write_text("0")
    assert re.search("reads 0 µW", fault(meter))
    (place / "power1_average").write_text("")
    assert re.search(r"power failed: .*power1_average: not a number", fault(meter))
    (place / "power1_average").unlink()
    assert re.search("No such file", fault(meter))
    meter.close()
    assert meter.poll(Clock()) == []


@pytest.mark.parametrize(
    "microwatts",
    [0, -1, 0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFFFFF * 1000, 65_535_000_000, 32_767_000_000, 2**64 - 1],
)
def test_what_a_register_holds_that_was_never_written_is_no_reading(tmp_path: Path, microwatts: int) -> None:
    place = chip(tmp_path, 0, "power_meter", device=True, power1_average=412_000_000)
    meter = HwmonMeter(tmp_path)
    meter.open(Clock())
    (place / "power1_average").write_text("65535000\n")  # 65.535 W are as good as any
    assert meter.poll(Clock())[0].fault is None
    (place / "power1_average").write_text(f"{microwatts}\n")
    assert f"reads {microwatts} µW" in fault(meter)
    with pytest.raises(MeterUnavailable, match="no meter, power reads"):
        HwmonMeter(tmp_path).open(Clock())
