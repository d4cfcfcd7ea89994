"""Intel GPUs against a faked tree of hwmon, as the drivers xe and i915 make it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_tokenpower.errors import MeterUnavailable
from pytest_tokenpower.meters.clock import Clock
from tests.support.meters.intel_gpu import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def two_cards(machine: Machine) -> None:
    machine.chip(0, "coretemp")
    machine.chip(1, "xe", "0000:83:00.0", energy1="card", energy2="pkg")
    machine.chip(2, "i915", "0000:03:00.0", energy1="")
    machine.chip(3, "i915_gt0", "0000:03:00.0", energy1="")


def test_whole_cards_are_measured_by_their_own_counter(machine: Machine) -> None:
    two_cards(machine)
    meter = machine.meter()
    devices = meter.open(Clock())
    assert [(device.id, device.scope, device.provenance) for device in devices] == [
        ("intel:0000:03:00.0", "gpu", "measured"),
        ("intel:0000:83:00.0", "gpu", "measured"),
    ]
    assert devices[0].key_facts == {"driver": "i915", "channel": "card", "model": "Intel GPU e20b"}
    before = [reading.counters[0].microjoules for reading in meter.poll(Clock())]
    machine.move(12.5)
    after = [reading.counters[0].microjoules for reading in meter.poll(Clock())]
    assert [b - a for a, b in zip(before, after, strict=True)] == [12_500_000, 12_500_000]


def test_the_chip_stands_in_for_a_card_without_a_counter_and_says_so(machine: Machine) -> None:
    machine.chip(0, "xe", energy2="pkg")
    (device,) = machine.meter().open(Clock())
    assert (device.id, device.key_facts["channel"]) == ("intel:hwmon0", "pkg")


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, ["03", "83"]),
        ({"ZE_AFFINITY_MASK": "1", "ZE_ENABLE_PCI_ID_DEVICE_ORDER": "1"}, ["83"]),
        ({"ZE_AFFINITY_MASK": "1,0", "ZE_ENABLE_PCI_ID_DEVICE_ORDER": "1"}, ["83", "03"]),
    ],
)
def test_the_cards_that_level_zero_sees(
    machine: Machine, environment: dict[str, str], found: list[str]
) -> None:
    two_cards(machine)
    assert [device.id[11:13] for device in machine.meter(**environment).open(Clock())] == found


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ZE_AFFINITY_MASK": "1"}, "set ZE_ENABLE_PCI_ID_DEVICE_ORDER=1"),
        ({"ZE_AFFINITY_MASK": "0.1"}, "names tiles: .* name whole cards"),
        ({"ZE_AFFINITY_MASK": "7", "ZE_ENABLE_PCI_ID_DEVICE_ORDER": "1"}, "leaves none of 2 visible"),
        ({"ONEAPI_DEVICE_SELECTOR": "level_zero:0"}, "choose the cards by ZE_AFFINITY_MASK"),
    ],
)
def test_what_cannot_be_told_is_refused(machine: Machine, environment: dict[str, str], said: str) -> None:
    two_cards(machine)
    with pytest.raises(MeterUnavailable, match=said):
        machine.meter(**environment).open(Clock())


def test_where_cards_have_tiles_a_mask_may_count_those(machine: Machine) -> None:
    """Level Zero's default makes each tile a device, and the counter is the card's."""
    machine.chip(0, "i915", "0000:03:00.0", energy1="")
    machine.chip(1, "i915_gt0", "0000:03:00.0", energy1="")
    machine.chip(2, "i915_gt1", "0000:03:00.0", energy1="")
    assert len(machine.meter().open(Clock())) == 1
    with pytest.raises(MeterUnavailable, match=r"counts tiles here, .*ZE_FLAT_DEVICE_HIERARCHY=COMPOSITE"):
        machine.meter(ZE_AFFINITY_MASK="0").open(Clock())
    whole = {"ZE_AFFINITY_MASK": "0", "ZE_FLAT_DEVICE_HIERARCHY": "COMPOSITE"}
    assert len(machine.meter(**whole).open(Clock())) == 1


def test_a_card_without_a_counter_is_not_left_out(machine: Machine) -> None:
    two_cards(machine)
    machine.chip(4, "xe", "0000:43:00.0")
    with pytest.raises(MeterUnavailable, match=r"intel:0000:43:00\.0 has no energy counter, and the other"):
        machine.meter().open(Clock())
    environment = {"ZE_AFFINITY_MASK": "0,2", "ZE_ENABLE_PCI_ID_DEVICE_ORDER": "1"}
    assert [device.id[11:13] for device in machine.meter(**environment).open(Clock())] == ["03", "83"]


def test_a_counter_that_stands_still_or_gives_nothing_is_no_meter(machine: Machine) -> None:
    with pytest.raises(MeterUnavailable, match="no energy counter of the drivers xe or i915"):
        machine.meter().open(Clock())
    folder = machine.chip(0, "xe", energy1="card")
    path = folder / "energy1_input"
    machine.still.add(path)
    with pytest.raises(MeterUnavailable, match="intel:hwmon0 stands still at 1000000000 µJ"):
        machine.meter().open(Clock())
    for text, said in (("0\n", "reads 0 µJ"), (f"{2**64 - 1}\n", "is no reading"), ("x\n", "not a number")):
        path.write_text(text)
        with pytest.raises(MeterUnavailable, match=said):
            machine.meter().open(Clock())


def test_a_counter_that_falls_is_a_fault_once(machine: Machine) -> None:
    path = machine.chip(0, "xe", energy1="card") / "energy1_input"
    meter = machine.meter()
    meter.open(Clock())
    path.write_text("5000000\n")
    assert "went from 1030000000 to 5000000 µJ: the driver was loaded anew" in (
        meter.poll(Clock())[0].fault or ""
    )
    path.write_text("6000000\n")
    assert meter.poll(Clock())[0].fault is None
    path.unlink()
    assert "reading intel:hwmon0 failed" in (meter.poll(Clock())[0].fault or "")
