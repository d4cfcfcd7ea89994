"""Which accelerator a machine has, whether or not it can be measured: its figure must not become the CPU's."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_tokenpower.meters.adapters._sysfs import text_of
from pytest_tokenpower.meters.adapters.jetson import DEVICE_TREE, jetson_model

DEV, DRM, PCI = Path("/dev"), Path("/sys/class/drm"), Path("/sys/bus/pci/devices")

CPU_ALONE = "--energy-scope=cpu measures the CPU alone"

_INTEGRATED = "0000:00:02."
"""Where Intel's integrated GPUs are, all of them: what they draw is in the CPU's package, and read by RAPL."""


@dataclass(frozen=True)
class Accelerator:
    """An accelerator in words, the source that would measure it, and what to do where that does not work or is none."""

    name: str
    source: str | None
    remedy: str


NVIDIA = Accelerator("NVIDIA", "nvml", 'If the tests do not use it, hide it: CUDA_VISIBLE_DEVICES=""')
NVIDIA_BARE = Accelerator(
    "NVIDIA, without its driver",
    "nvml",
    'Install or load the driver (sudo modprobe nvidia), or hide the GPU: CUDA_VISIBLE_DEVICES=""',
)
AMD_BARE = Accelerator(
    "AMD, without its driver",
    "amd",
    'Install or load the driver (sudo modprobe amdgpu), or hide the GPU: ROCR_VISIBLE_DEVICES=""',
)
INTEL_BARE = Accelerator("Intel, without its driver", "intel", "Load the driver: sudo modprobe xe, or i915")
AMD = Accelerator("AMD", "amd", 'If the tests do not use it, hide it: ROCR_VISIBLE_DEVICES=""')
INTEL = Accelerator(
    "Intel", "intel", "A card's energy is given by the driver xe, or by i915 from Linux 6.2 on"
)
WSL2 = Accelerator("WSL2's", "nvml", "WSL2 passes few of NVML's readings on: run the tests on Linux itself")
_OTHERS: tuple[tuple[str, str], ...] = (
    ("hl[0-9]*", "Gaudi"),
    ("accel/accel_controlD[0-9]*", "Gaudi"),
    ("accel[0-9]*", "TPU"),
    ("neuron[0-9]*", "AWS Neuron"),
    ("davinci[0-9]*", "Ascend"),
    ("tenstorrent/[0-9]*", "Tenstorrent"),
)
"""Device files of accelerators for which there is no meter here."""

_UNMETERED = "There is no meter for it here; where it is scraped, --energy-source=prometheus reads it"


def find_accelerator(
    dev: Path = DEV,
    drm: Path = DRM,
    pci: Path = PCI,
    device_tree: Path = DEVICE_TREE,
    environment: Mapping[str, str] | None = None,
) -> Accelerator | None:
    """Return the accelerator that a driver has brought up here, or that a driver ought to; None without one.

    It tells a machine without GPUs, whose CPU is what inference runs on, from one whose GPU meter is broken or
    unknown: a driver that breaks must not turn the figure into the CPU's.

    Boards that the environment hides (CUDA_VISIBLE_DEVICES="", ROCR_VISIBLE_DEVICES="") do not count, nor GPUs that are
    part of a CPU: AMD's are boards with 8 GiB and more of their own.
    """
    if not sys.platform.startswith("linux"):
        return None  # What tells it here are Linux's own files.
    env = os.environ if environment is None else environment
    hidden = _hides_all(env.get("CUDA_VISIBLE_DEVICES"))
    if model := jetson_model(device_tree):
        return Accelerator(model, "jetson", "The drivers ina3221 and ina238 give the power of its rails")
    if not hidden and any(dev.glob("nvidia[0-9]*")):
        return NVIDIA
    if not hidden and _without_driver(pci, "0x10de", "0x03"):
        return NVIDIA_BARE
    # HIP's own variable, where it is empty NVIDIA's, hides no board by being empty.
    hip = env.get("HIP_VISIBLE_DEVICES") or env.get("CUDA_VISIBLE_DEVICES") or None
    shown = not _hides_all(env.get("ROCR_VISIBLE_DEVICES")) and not _hides_all(hip)
    if shown and _has_amd(drm):
        return AMD
    # Instincts are accelerators to the bus; what is a display to it may be part of a CPU.
    if shown and _without_driver(pci, "0x1002", "0x12"):
        return AMD_BARE
    if _has_intel(drm):
        return INTEL
    if _without_driver(pci, "0x8086", "0x03"):
        return INTEL_BARE
    for pattern, name in _OTHERS:
        if any(dev.glob(pattern)):
            return Accelerator(name, None, _UNMETERED)
    return WSL2 if (dev / "dxg").exists() and not hidden else None


def _hides_all(value: str | None) -> bool:
    """Whether a list of visible devices (None: not set) leaves none: its first entry is neither a number nor a name."""
    first = "0" if value is None else value.partition(",")[0].strip()
    return not (first.isdecimal() or first.upper().startswith(("GPU-", "MIG-")))


def _without_driver(pci: Path, maker: str, kind: str) -> bool:
    """Whether a GPU is there that its driver does not have: none of a CPU-only container, whose host has one.

    The kernel's own driver for NVIDIA's displays (nouveau) is what takes a board whose driver could not be built.
    """
    return any(
        text_of(vendor) == maker
        and text_of(vendor.with_name("class")).startswith(kind)
        and not vendor.parent.name.startswith(_INTEGRATED)
        and (
            not vendor.with_name("driver").exists() or vendor.with_name("driver").resolve().name == "nouveau"
        )
        for vendor in pci.glob("*/vendor")
    )


def _has_amd(drm: Path) -> bool:
    sizes = [text_of(memory) for memory in drm.glob("card*/device/mem_info_vram_total")]
    return any(size.isdecimal() and int(size) >= 8 << 30 for size in sizes)


def _has_intel(drm: Path) -> bool:
    return any(
        re.fullmatch(r"card\d+", vendor.parent.parent.name) is not None
        and text_of(vendor) == "0x8086"
        and not vendor.parent.resolve().name.startswith(_INTEGRATED)
        for vendor in drm.glob("card*/device/vendor")
    )
