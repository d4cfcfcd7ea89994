"""docs/platforms.md: the sentence that a user of each platform gets is the one that is produced here."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_tokenpower.errors import MeterError
from pytest_tokenpower.meters import sources
from pytest_tokenpower.meters.accelerators import find_accelerator
from pytest_tokenpower.meters.adapters.amd import AmdMeter
from pytest_tokenpower.meters.adapters.hwmon import HwmonMeter
from pytest_tokenpower.meters.adapters.intel_gpu import IntelGpuMeter
from pytest_tokenpower.meters.adapters.ipmi import IpmiMeter
from pytest_tokenpower.meters.adapters.jetson import JetsonMeter
from pytest_tokenpower.meters.adapters.nvml.meter import NvmlMeter
from pytest_tokenpower.meters.adapters.rapl import RaplMeter
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.simulation.library import SimulatedBoards
from pytest_tokenpower.meters.simulation.scenario import Board, Fault, Scenario, numbered_boards
from pytest_tokenpower.meters.types import Meter
from tests.support.meters import amd, intel_gpu, jetson, rapl

PAGE = Path(__file__).parents[2] / "docs" / "platforms.md"

Said = Callable[[Path, pytest.MonkeyPatch], str]


def said(open_meter: Callable[[], Sequence[Any]]) -> str:
    """Return what opening a meter tells the user: its devices, or why there is none."""
    try:
        devices = open_meter()
    except MeterError as error:
        return str(error)
    return "measures " + ", ".join(f"{device.name} ({device.scope})" for device in devices)


def nvml(*faults: Fault, visible: str | None = None, boards: tuple[Board, ...] = (Board(),)) -> NvmlMeter:
    return NvmlMeter(SimulatedBoards(Scenario(boards=boards, faults=faults)), visible=visible)


def of_nvml(*faults: Fault, **options: Any) -> Said:
    return lambda root, monkeypatch: said(lambda: nvml(*faults, **options).open(Clock()))


def of_amd(
    *watts: int, counter: bool = True, environment: dict[str, str] | None = None, **options: Any
) -> Said:
    def told(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        node = amd.Node(*watts, **options)
        if not counter:
            node.units = dict.fromkeys(node.units, 0)
        monkeypatch.setitem(sys.modules, "amdsmi", node)
        return said(lambda: AmdMeter(environment or {}).open(Clock()))

    return told


def intel_card(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    machine = intel_gpu.Machine(root)
    machine.chip(0, "xe", "0000:03:00.0", energy1="card")
    return said(lambda: machine.meter().open(Clock()))


def orin(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return said(lambda: jetson.agx_orin(root).open(Clock()))


def unknown_jetson(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    jetson.monitor(root, 1, ("VDD_X", 5_000, 1_500))
    return said(lambda: jetson.jetson(root, "NVIDIA Jetson X").open(Clock()))


def of_rapl(*zones: str, flags: str = "fpu", still: bool = False) -> Said:
    def told(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        machine = rapl.Machine(root, flags=flags)
        for number, name in enumerate(zones):
            machine.zone(f"intel-rapl:{number}", name, 5_000_000_000 + number, still=still)
        return said(lambda: machine.meter().open(machine.clock))

    return told


def of_auto(node: str = "", *faults: Fault, intel: bool = False) -> Said:
    """``auto`` on a machine with one device file, whose CPU could be measured."""

    def told(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        dev, drm = root / "dev", root / "drm"
        (dev / node).parent.mkdir(parents=True, exist_ok=True)
        if node:
            (dev / node).touch()
        if intel:
            card = drm / "card0" / "device"
            card.mkdir(parents=True)
            (card / "vendor").write_text("0x8086\n")
        machine = rapl.Machine(root / "cpu")
        machine.zone("intel-rapl:0", "package-0")
        absent = Fault(kind="error", call="nvmlInit", error="LIBRARY_NOT_FOUND")
        meters: dict[str, Meter] = {
            "nvml": nvml(*(faults or (absent,))),
            "amd": AmdMeter({}),
            "intel": IntelGpuMeter(root / "hwmon"),
            "jetson": JetsonMeter(root / "hwmon", root / "tree"),
            "rapl": RaplMeter(machine.root, machine.proc, load=lambda: machine.spend(1)),
            "hwmon": HwmonMeter(root / "hwmon"),
        }
        monkeypatch.setitem(sys.modules, "amdsmi", None)
        monkeypatch.setattr(sources, "meters_for", lambda name: [meters[name]])
        monkeypatch.setattr(sources, "find_accelerator", lambda: find_accelerator(dev, drm))

        def begin() -> Sequence[Any]:
            started = sources.begin("auto")
            started.collector.stop()
            return started.devices

        return said(begin)

    return told


def old_pynvml(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    from importlib import metadata

    folder = root / "pynvml"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(root)
    monkeypatch.delitem(sys.modules, "pynvml")
    monkeypatch.setattr(metadata, "version", lambda name: "11.5.3")
    return said(lambda: NvmlMeter().open(Clock()))


def of_hwmon(*channels: str) -> Said:
    def told(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        chip = root / "hwmon" / "hwmon0"
        chip.mkdir(parents=True)
        (chip / "name").write_text("power_meter")
        for channel in channels:
            (chip / f"{channel}_average").write_text("412000000")
        return said(lambda: HwmonMeter(root / "hwmon").open(Clock()))

    return told


def of_ipmi(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    program = root / "ipmitool"
    program.write_text("#!/bin/sh\necho 'Instantaneous power reading: 412 Watts'\n")
    program.chmod(0o755)
    return said(lambda: IpmiMeter((str(program),)).open(Clock()))


def no_ipmitool(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PATH", str(root))
    return said(lambda: IpmiMeter().open(Clock()))


H100 = "NVIDIA H100 80GB HBM3"
TWO = numbered_boards(2)
MISMATCH = Fault(kind="error", call="nvmlInit", error="LIB_RM_VERSION_MISMATCH")

PLATFORMS: dict[str, Said] = {
    "NVIDIA H100": of_nvml(boards=(Board(name=H100),)),
    "NVIDIA H200": of_nvml(boards=(Board(name="NVIDIA H200"),)),
    "NVIDIA without a power ring": of_nvml(boards=(Board(name="NVIDIA L40S", ring=False),)),
    "NVIDIA without an energy counter": of_nvml(
        boards=(Board(name="NVIDIA GeForce GTX 1080", ring=False, counter=False),)
    ),
    "Grace Hopper": of_nvml(boards=(Board(name="NVIDIA GH200 480GB", module_extra_watts=150),)),
    "MIG, all slices": of_nvml(boards=(Board(name=H100, mig="on", mig_slices=7),)),
    "AMD MI300X": of_amd(650),
    "AMD in a guest": of_amd(650, counter=False),
    "AMD MI250X": of_amd(650, 0, model="AMD Instinct MI250X"),
    "AMD MI300X, partitioned": of_amd(650, 650, serials=[amd.UNIQUE[0]] * 2),
    "Intel card": intel_card,
    "Jetson AGX Orin": orin,
    "CPU, Intel and AMD": of_rapl("package-0"),
    "CPU, Zen 1 and 2": of_rapl("package-0-die-0", "package-0-die-1"),
    "no GPU, auto": of_auto(),
    "server with an ACPI power meter": of_hwmon("power1"),
    "BMC, IPMI": of_ipmi,
    "MIG, one slice": of_nvml(boards=(Board(name=H100, mig="on", mig_slices=2),)),
    "AMD, part of a partitioned board": of_amd(
        650, 650, serials=[amd.UNIQUE[0]] * 2, environment={"HIP_VISIBLE_DEVICES": "0"}
    ),
    "a display card beside": of_nvml(
        Fault(kind="zero", call="nvmlDeviceGetPowerUsage", board=1),
        boards=(TWO[0], msgspec.structs.replace(TWO[1], name="NVIDIA T400", ring=False, counter=False)),
    ),
    "an NVIDIA driver of another version": of_auto("nvidia0", MISMATCH),
    "an old pynvml": old_pynvml,
    "Intel card without a counter, auto": of_auto(intel=True),
    "Gaudi, auto": of_auto("hl0"),
    "TPU, auto": of_auto("accel0"),
    "WSL2, auto": of_auto("dxg"),
    "Jetson with other rails": unknown_jetson,
    "virtual machine's CPU": of_rapl("package-0", flags="fpu hypervisor", still=True),
    "server with several unnamed power sensors": of_hwmon("power1", "power2"),
    "BMC, no ipmitool": no_ipmitool,
}


def shown(text: str, root: Path) -> str:
    """Return a sentence as it stands in the page: folders of the test are named as on a machine."""
    for folder, real in (
        ("cpu/powercap", "/sys/class/powercap"),
        ("powercap", "/sys/class/powercap"),
        ("hwmon", "/sys/class/hwmon"),
    ):
        text = text.replace(str(root / folder), real)
    return re.sub(r"[^ (]*/pynvml/__init__\.py", ".../site-packages/pynvml/__init__.py", text)


def rows() -> dict[str, str]:
    """Platform to sentence, from the tables of the page."""
    found = re.findall(r"^\| (?P<name>[^|]+?) \| (?P<said>[^|]+?) \|$", PAGE.read_text(), re.MULTILINE)
    return {name: sentence for name, sentence in found if name not in ("platform", "---")}


@pytest.fixture(autouse=True)
def _nothing_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_page_says_what_a_user_of_a_platform_gets(
    platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rows().get(platform) == shown(PLATFORMS[platform](tmp_path, monkeypatch), tmp_path)


def test_every_platform_of_the_page_is_produced() -> None:
    assert list(rows()) == list(PLATFORMS)
