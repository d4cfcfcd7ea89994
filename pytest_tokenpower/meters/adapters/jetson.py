"""NVIDIA Jetson through hwmon: the power that goes into the module, from its INA3221 or INA238 monitors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_tokenpower.errors import MeterError, MeterUnavailable
from pytest_tokenpower.meters.adapters._sysfs import number_of, text_of
from pytest_tokenpower.meters.adapters.hwmon import HWMON
from pytest_tokenpower.meters.adapters.no_reading import is_fine_power
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.types import Device, PowerSamples, Reading

DEVICE_TREE = Path("/proc/device-tree")

WHOLE: tuple[tuple[str, ...], ...] = (
    ("VDD_IN",),  # Orin NX and Nano, Xavier NX
    ("VIN",),  # Thor
    ("POM_5V_IN",),  # Nano
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)
"""The rails that together feed a module, for each family: the first whose rails are all there is taken."""


@dataclass(frozen=True)
class _Rail:
    """A rail's label, and the files of its power (µW), or of its voltage (mV) and current (mA)."""

    label: str
    files: tuple[Path, ...]


class JetsonMeter:
    """The module's power as points: GPU, CPU and the memory that they share are one, so the scope is module.

    Rails are parts of the module or of each other; only those that are known to feed the whole of it are added up.
    Untried on hardware.
    """

    name = "jetson"
    poll_interval_s = 0.1

    def __init__(self, root: Path = HWMON, device_tree: Path = DEVICE_TREE) -> None:
        self._root = root
        self._device_tree = device_tree
        self._rails: tuple[_Rail, ...] = ()

    def open(self, clock: Clock) -> Sequence[Device]:
        """Find the rails and read them; raises MeterUnavailable with what is there."""
        model = jetson_model(self._device_tree)
        if model is None:
            raise MeterUnavailable("Jetson: this machine is none")
        rails = self._find()
        chosen = next((labels for labels in WHOLE if all(label in rails for label in labels)), None)
        if chosen is None:
            raise MeterUnavailable(
                f"Jetson: {self._root} has no rails that are known to feed the whole of {model}"
                f" (there are: {', '.join(sorted(rails)) or 'none'}); do the drivers ina3221 and ina238 run?"
            )
        self._rails = tuple(rails[label] for label in chosen)
        try:
            self._microwatts()
        except MeterError as error:
            self._rails = ()
            raise MeterUnavailable(str(error)) from error
        return [
            Device(
                id="jetson",
                scope="module",
                name=model,
                meter=self.name,
                provenance="measured",
                key_facts={"model": model, "rails": "+".join(chosen)},
                facts={
                    # A point may be one refresh old at either end of a window, and the monitors average.
                    "resolution_ms": 500.0,
                    "refresh_ms": self.poll_interval_s * 1e3,
                    "not_counted": ", ".join(sorted(rails.keys() - {*chosen})) or None,
                },
            )
        ]

    def poll(self, clock: Clock) -> Sequence[Reading]:
        """One point; raises MeterError where a rail cannot be read or the module draws nothing."""
        t0_ns = clock.monotonic_ns()
        microwatts = self._microwatts()
        t1_ns = clock.monotonic_ns()
        return [Reading("jetson", power=PowerSamples.point(t0_ns, t1_ns, microwatts / 1000))]

    def close(self) -> None:
        """Forget the rails."""
        self._rails = ()

    def _find(self) -> dict[str, _Rail]:
        rails: dict[str, _Rail] = {}
        for chip in sorted(self._root.glob("hwmon*")):
            driver = text_of(chip / "name")
            if driver == "ina238":
                label = text_of(chip / "label") or "VIN"
                rails.setdefault(label, _Rail(label, (chip / "power1_input",)))
            elif driver == "ina3221":
                for number in (1, 2, 3):  # further inputs are voltages of shunts
                    label = text_of(chip / f"in{number}_label")
                    if label and label != "NC" and text_of(chip / f"in{number}_enable") != "0":
                        files = (chip / f"in{number}_input", chip / f"curr{number}_input")
                        rails.setdefault(label, _Rail(label, files))
        return rails

    def _microwatts(self) -> int:
        if not self._rails:
            raise MeterError("Jetson: poll before open")
        # A rail may draw nothing (an idle accelerator), the module may not.
        total = sum(_power(rail) for rail in self._rails)
        if not is_fine_power(total):
            raise MeterError(
                f"Jetson: {'+'.join(rail.label for rail in self._rails)} reads {total} µW, which is no reading"
            )
        return total


def jetson_model(device_tree: Path = DEVICE_TREE) -> str | None:
    """Return what the board calls itself; None where it is no Jetson."""
    compatible = text_of(device_tree / "compatible").replace("\0", " ")
    if not re.search(r"\bnvidia,tegra", compatible):
        return None
    return text_of(device_tree / "model").strip("\0") or "NVIDIA Jetson"


def _power(rail: _Rail) -> int:
    """Return a rail's microwatts: a product of millivolts and milliamperes where there are two files."""
    product = 1
    for path in rail.files:
        value = number_of(path, f"Jetson: reading {rail.label}")
        if value < 0 or (value and not is_fine_power(value)):
            raise MeterError(f"Jetson: {rail.label} reads {value}, which is no reading ({path})")
        product *= value
    return product
