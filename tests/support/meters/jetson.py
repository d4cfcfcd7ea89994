"""Faked trees of hwmon and of the device tree, as a Jetson has them."""

from __future__ import annotations

from pathlib import Path

from pytest_tokenpower.meters.adapters.jetson import JetsonMeter


def jetson(root: Path, model: str = "NVIDIA Jetson AGX Orin Developer Kit") -> JetsonMeter:
    tree = root / "device-tree"
    tree.mkdir(exist_ok=True)
    (tree / "model").write_text(f"{model}\0")
    (tree / "compatible").write_text("nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0")
    return JetsonMeter(root / "hwmon", tree)


def monitor(root: Path, number: int, *rails: tuple[str, int, int], name: str = "ina3221") -> Path:
    """Return an INA3221 with rails of so many millivolts and milliamperes."""
    folder = root / "hwmon" / f"hwmon{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    for channel, (label, millivolts, milliamperes) in enumerate(rails, 1):
        (folder / f"in{channel}_label").write_text(f"{label}\n")
        (folder / f"in{channel}_input").write_text(f"{millivolts}\n")
        (folder / f"curr{channel}_input").write_text(f"{milliamperes}\n")
    return folder


def agx_orin(root: Path) -> JetsonMeter:
    monitor(root, 1, ("VDD_GPU_SOC", 20_000, 900), ("VDD_CPU_CV", 20_000, 300), ("VIN_SYS_5V0", 5_000, 1_000))
    monitor(root, 2, ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5_000, 200), ("NC", 0, 0))
    return jetson(root)
