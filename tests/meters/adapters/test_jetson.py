"""Jetson modules against faked trees of hwmon and of the device tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_tokenpower.errors import MeterError, MeterUnavailable
from pytest_tokenpower.meters.adapters.jetson import JetsonMeter
from pytest_tokenpower.meters.clock import Clock
from tests.support.meters.jetson import agx_orin, jetson, monitor


def test_the_rails_that_feed_the_module_are_added_up(tmp_path: Path) -> None:
    meter = agx_orin(tmp_path)
    (device,) = meter.open(Clock())
    assert (device.scope, device.name) == ("module", "NVIDIA Jetson AGX Orin Developer Kit")
    assert device.key_facts["rails"] == "VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0"
    assert device.facts["not_counted"] == "VDDQ_VDD2_1V8AO"
    (reading,) = meter.poll(Clock())
    assert reading.power is not None
    assert reading.power.milliwatts.tolist() == [18_000 + 6_000 + 5_000]


def test_the_input_goes_before_its_parts(tmp_path: Path) -> None:
    monitor(tmp_path, 1, ("VDD_IN", 5_000, 1_500), ("VDD_CPU_GPU_CV", 5_000, 700), ("VDD_SOC", 5_000, 300))
    meter = jetson(tmp_path, "NVIDIA Jetson Orin NX")
    (device,) = meter.open(Clock())
    assert device.key_facts["rails"] == "VDD_IN"
    (reading,) = meter.poll(Clock())
    assert reading.power is not None
    assert reading.power.milliwatts.tolist() == [7_500]


def test_an_ina238_gives_the_power_itself(tmp_path: Path) -> None:
    folder = monitor(tmp_path, 0, name="ina238")
    (folder / "power1_input").write_text("41500000\n")
    monitor(
        tmp_path, 1, ("VDD_GPU", 12_000, 900), ("VDD_CPU_SOC_MSS", 12_000, 500), ("VIN_SYS_5V0", 5_000, 800)
    )
    meter = jetson(tmp_path, "NVIDIA Jetson AGX Thor Developer Kit")
    assert meter.open(Clock())[0].key_facts["rails"] == "VIN"
    (reading,) = meter.poll(Clock())
    assert reading.power is not None
    assert reading.power.milliwatts.tolist() == [41_500]


def test_what_is_not_known_to_be_the_whole_is_refused(tmp_path: Path) -> None:
    monitor(tmp_path, 1, ("VDD_GPU_SOC", 20_000, 900), ("VDD_CPU_CV", 20_000, 300))
    with pytest.raises(
        MeterUnavailable, match=r"no rails that are known .*\(there are: VDD_CPU_CV, VDD_GPU_SOC\)"
    ):
        jetson(tmp_path).open(Clock())


def test_another_board_with_such_a_monitor_is_no_jetson(tmp_path: Path) -> None:
    monitor(tmp_path, 1, ("VDD_IN", 5_000, 1_500))
    with pytest.raises(MeterUnavailable, match="this machine is none"):
        JetsonMeter(tmp_path / "hwmon", tmp_path / "none").open(Clock())


def test_a_module_that_draws_nothing_and_a_rail_that_is_gone(tmp_path: Path) -> None:
    meter = agx_orin(tmp_path)
    meter.open(Clock())
    first = tmp_path / "hwmon" / "hwmon1"
    (first / "curr2_input").write_text("0\n")  # an idle rail is no fault
    assert meter.poll(Clock())[0].power is not None
    for number in (1, 3):
        (first / f"curr{number}_input").write_text("0\n")
    with pytest.raises(MeterError, match="reads 0 µW, which is no reading"):
        meter.poll(Clock())
    (first / "curr1_input").write_text("-1\n")
    with pytest.raises(MeterError, match="VDD_GPU_SOC reads -1"):
        meter.poll(Clock())
    (first / "in1_input").unlink()
    with pytest.raises(MeterError, match="reading VDD_GPU_SOC failed"):
        meter.poll(Clock())
    meter.close()
    with pytest.raises(MeterError, match="poll before open"):
        meter.poll(Clock())
