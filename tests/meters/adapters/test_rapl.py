"""RAPL against a fake powercap tree."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.errors import MeterUnavailable
from pytest_tokenpower.meters.adapters.rapl import RaplMeter
from pytest_tokenpower.meters.types import Reading
from tests.support.meters.rapl import RANGE_UJ, Machine


def microjoules(readings: list[Reading] | tuple[Reading, ...]) -> dict[str, int]:
    return {reading.device_id: reading.counters[0].microjoules for reading in readings}


def fault(meter: RaplMeter, machine: Machine) -> str:
    (reading,) = meter.poll(machine.clock)
    assert not reading.counters
    return reading.fault or ""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def intel(machine: Machine) -> None:
    for socket in (0, 1):
        machine.zone(f"intel-rapl:{socket}", f"package-{socket}", 5_000_000 * (socket + 1))
        machine.zone(f"intel-rapl:{socket}:0", "core")
        machine.zone(f"intel-rapl:{socket}:1", "dram", range_uj=65_712_999_613)
    machine.zone("intel-rapl:2", "psys")
    machine.zone("intel-rapl-mmio:0", "package-0", 77)
    (machine.root / "intel-rapl").mkdir()
    (machine.root / "dtpm").mkdir()


def test_packages_and_dram_are_read_once_and_nothing_that_they_hold(machine: Machine) -> None:
    intel(machine)
    meter = machine.meter()
    devices = meter.open(machine.clock)
    assert {device.id: device.scope for device in devices} == {
        "rapl:package-0": "cpu",
        "rapl:package-1": "cpu",
        "rapl:dram of package-0": "dram",
        "rapl:dram of package-1": "dram",
    }
    assert devices[0].key_facts == {"cpu": "Xeon 8480+", "packages": 2}
    assert (devices[0].facts["resolution_ms"], devices[0].facts["refresh_ms"]) == (50.0, 1.0)
    assert devices[0].counter_tick_ns == 1_000_000
    machine.spend(12.5)
    (reading, *_) = meter.poll(machine.clock)
    assert reading.counters[0].t0_ns <= reading.counters[0].t1_ns
    machine.spend(2.5)
    assert microjoules(list(meter.poll(machine.clock))) == dict.fromkeys(
        (device.id for device in devices), 15_000_000
    )


def test_amd_and_die_packages(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0", range_uj=65_532_610_987)
    machine.zone("intel-rapl:0:0", "core", range_uj=65_532_610_987)
    machine.zone("intel-rapl:1", "package-0-die-1")
    assert [device.id for device in machine.meter().open(machine.clock)] == [
        "rapl:package-0",
        "rapl:package-0-die-1",
    ]


def mirrored(machine: Machine, *names: str, behind_uj: int = 1_400) -> None:
    """Zones that show one counter, each read a little later than the one before."""
    for number, name in enumerate(names):
        entry = f"intel-rapl:{number}"
        machine.zone(entry, name, 5_000_000_000 + number * behind_uj)
        machine.zone(f"{entry}:0", "dram", 900_000_000 + number * behind_uj)


@pytest.mark.parametrize(
    "names", [("package-0-die-0", "package-0-die-1"), ("package-0", "package-1", "package-2")]
)
@pytest.mark.parametrize("behind_uj", [0, 1_400, -1_400, 68_000])
def test_zones_that_show_one_counter_are_counted_once(
    machine: Machine, names: tuple[str, ...], behind_uj: int
) -> None:
    mirrored(machine, *names, behind_uj=behind_uj)
    meter = machine.meter()
    devices = meter.open(machine.clock)
    assert [device.id for device in devices] == [f"rapl:{names[0]}", f"rapl:dram of {names[0]}"]
    assert devices[0].key_facts["packages"] == 1
    assert devices[0].facts["also_shown_by"] == ", ".join(names[1:])
    for _ in range(100):
        machine.spend(3.4)
        last = list(meter.poll(machine.clock))
    assert microjoules(last) == {device.id: 340_000_000 for device in devices}


def test_sockets_that_draw_alike_are_not_one(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0", 5_000_000_000)
    machine.zone("intel-rapl:1", "package-1", 5_003_000_000)  # 3 J apart
    assert len(machine.meter().open(machine.clock)) == 2


def test_counters_that_were_one_and_part_are_an_error(machine: Machine) -> None:
    mirrored(machine, "package-0-die-0", "package-0-die-1")
    meter = machine.meter()
    meter.open(machine.clock)
    machine.values["intel-rapl:1"] += 5_000_000
    machine.spend(1)
    bad, good = meter.poll(machine.clock)
    assert "package-0-die-0 and package-0-die-1 showed one counter and are apart now" in (bad.fault or "")
    assert good.fault is None


def test_psys_alone_is_the_node(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "psys")
    (device,) = machine.meter().open(machine.clock)
    assert (device.id, device.scope) == ("rapl:psys", "node")


@given(
    start=st.integers(0, RANGE_UJ - 1),
    steps=st.lists(st.tuples(st.floats(0, 1900), st.floats(0.001, 60)), min_size=1, max_size=30),
)
def test_wraps_are_unwrapped(
    tmp_path_factory: pytest.TempPathFactory, start: int, steps: list[tuple[float, float]]
) -> None:
    machine = Machine(tmp_path_factory.mktemp("rapl"))
    machine.zone("intel-rapl:0", "package-0", start)
    meter = machine.meter()
    meter.open(machine.clock)
    total = 0
    for watts, seconds in steps:
        machine.spend(watts * seconds, seconds)
        total += round(watts * seconds * 1e6)
        assert microjoules(list(meter.poll(machine.clock))) == {"rapl:package-0": total}


def test_a_reset_is_an_error_and_no_energy(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0", 100_000_000_000)
    meter = machine.meter()
    meter.open(machine.clock)
    machine.spend(10)
    assert microjoules(list(meter.poll(machine.clock))) == {"rapl:package-0": 10_000_000}
    machine.values["intel-rapl:0"] = 5_000
    machine.spend(0)
    assert re.search(r"package-0 went from .* to 5000 µJ .*reset", fault(meter, machine))
    machine.spend(3)
    assert microjoules(list(meter.poll(machine.clock))) == {"rapl:package-0": 13_000_000}


def test_a_leap_and_a_silence_are_errors(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0")
    meter = machine.meter()
    meter.open(machine.clock)
    machine.spend(5_000)
    assert re.search("no package draws that much", fault(meter, machine))
    machine.spend(10, seconds=3600)
    assert re.search("not read for 3600 s", fault(meter, machine))
    machine.spend(1)
    meter.poll(machine.clock)


@pytest.mark.parametrize(("value", "flags"), [(0, "fpu hypervisor lm"), (4711, "fpu")])
def test_counters_that_stand_still_are_no_meter(tmp_path: Path, value: int, flags: str) -> None:
    machine = Machine(tmp_path, flags=flags)
    machine.zone("intel-rapl:0", "package-0", value, still=True)
    machine.zone("intel-rapl:0:0", "dram")
    with pytest.raises(
        MeterUnavailable, match=rf"stand still under load \(package-0 reads {value} µJ"
    ) as caught:
        machine.meter().open(machine.clock)
    assert ("virtual machine" in str(caught.value)) == ("hypervisor" in flags)


def test_a_dead_dram_counter_is_absent_not_zero(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0")
    machine.zone("intel-rapl:0:0", "dram", 0, still=True)
    (device,) = machine.meter().open(machine.clock)
    assert device.id == "rapl:package-0"
    assert device.facts["not_measured"] == "dram of package-0 reads 0 µJ"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (
            "max_energy_range_uj",
            None,
            "max_energy_range_uj cannot be read or says nothing, so that what package-1",
        ),
        (
            "max_energy_range_uj",
            "0",
            "max_energy_range_uj cannot be read or says nothing, so that what package-1",
        ),
        (
            "max_energy_range_uj",
            "-",
            "max_energy_range_uj cannot be read or says nothing, so that what package-1",
        ),
        ("name", None, "name cannot be read or says nothing, so that what intel-rapl:1 draws"),
    ],
)
def test_a_socket_that_cannot_be_read_is_not_left_out(
    machine: Machine, file: str, content: str | None, said: str
) -> None:
    machine.zone("intel-rapl:0", "package-0")
    machine.zone("intel-rapl:1", "package-1", 900_000_000)
    path = machine.root / "intel-rapl:1" / file
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(MeterUnavailable, match=said):
        machine.meter().open(machine.clock)


def test_a_socket_whose_counter_stands_still_is_not_left_out(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0")
    machine.zone("intel-rapl:1", "package-1", 0, still=True)
    with pytest.raises(MeterUnavailable, match=r"\(package-1 reads 0 µJ\), and the others are not all of it"):
        machine.meter().open(machine.clock)


def test_memory_of_one_socket_is_not_the_machines(machine: Machine) -> None:
    for socket in range(2):
        machine.zone(f"intel-rapl:{socket}", f"package-{socket}", socket * 900_000_000)
        machine.zone(f"intel-rapl:{socket}:0", "dram", 5, still=socket == 1)
    devices = machine.meter().open(machine.clock)
    assert [device.id for device in devices] == ["rapl:package-0", "rapl:package-1"]
    assert devices[0].facts["not_measured"] == "dram of package-1 reads 5 µJ"


def test_sockets_of_one_name_are_both_counted(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0")
    machine.zone("intel-rapl:1", "package-0", 900_000_000)
    devices = machine.meter().open(machine.clock)
    assert [device.id for device in devices] == ["rapl:package-0", "rapl:package-0 (intel-rapl:1)"]


def test_no_powercap(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    with pytest.raises(MeterUnavailable, match=r"no package counter .*modprobe intel_rapl_msr"):
        RaplMeter(tmp_path / "absent", machine.proc).open(machine.clock)


def test_permission_denied_names_the_command_and_the_reason(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.zone("intel-rapl:0", "package-0")
    counter = machine.root / "intel-rapl:0" / "energy_uj"
    counter.chmod(0)
    if os.access(counter, os.R_OK):  # root may read everything
        read_text = Path.read_text

        def refuse(path: Path, *arguments: str, **options: str) -> str:
            if path == counter:
                raise PermissionError(13, "Permission denied")
            return read_text(path, *arguments, **options)

        monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(MeterUnavailable) as caught:
        machine.meter().open(machine.clock)
    message = str(caught.value)
    for part in (str(counter), "CVE-2020-8694", "sudo chgrp", "chmod g+r", "/etc/tmpfiles.d/rapl.conf"):
        assert part in message


def test_one_bad_counter_leaves_the_others(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0")
    machine.zone("intel-rapl:1", "package-1")
    meter = machine.meter()
    meter.open(machine.clock)
    machine.spend(2)
    (machine.root / "intel-rapl:0" / "energy_uj").unlink()
    bad, good = meter.poll(machine.clock)
    assert bad.fault is not None
    assert good.fault is None
    assert good.counters[0].microjoules == 2_000_000


def test_a_counter_that_vanishes_is_named(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0")
    meter = machine.meter()
    meter.open(machine.clock)
    counter = machine.root / "intel-rapl:0" / "energy_uj"
    counter.unlink()
    assert re.search(r"package-0 failed: .*energy_uj: No such file", fault(meter, machine))
    counter.write_text("nonsense\n")
    assert re.search("not a number", fault(meter, machine))
    meter.close()
    assert meter.poll(machine.clock) == []


def test_the_default_load_lasts_long_enough() -> None:
    import time

    from pytest_tokenpower.meters.adapters import rapl

    before = time.monotonic()
    rapl._busy()
    assert time.monotonic() - before >= 0.02
