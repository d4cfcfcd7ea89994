"""The `pynvml` module of nvidia-ml-py, or why it cannot be used, in words that help."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from pytest_tokenpower.errors import MeterUnavailable

NEEDED = (
    "nvmlDeviceGetSamples",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "NVML_MODULE_POWER_SAMPLES",
    "NVML_POWER_SCOPE_MODULE",
    "NVML_FI_DEV_PERF_POLICY_POWER",
    "nvmlClocksEventReasonGpuIdle",
)
"""Names of which some are missing in every module that is older than the oldest nvidia-ml-py that will do."""

OLDEST = "12.570.86"


def load_nvml() -> Any:
    """Return the module; raises MeterUnavailable where another of its name is in its place, or it is too old."""
    try:
        with warnings.catch_warnings():
            # Old packages warn that they are old; what follows says it better.
            warnings.simplefilter("ignore")
            nvml = importlib.import_module("pynvml")
    except Exception as error:
        raise MeterUnavailable(
            f"NVML: the module pynvml cannot be imported ({type(error).__name__}: {error}): pip install nvidia-ml-py"
        ) from error
    if lacking := [name for name in NEEDED if not hasattr(nvml, name)]:
        raise MeterUnavailable(_misplaced(getattr(nvml, "__file__", None) or "somewhere", lacking[0]))
    return nvml


def _misplaced(file: str, lacking: str) -> str:
    """Why a module lacks a name: another package's hides nvidia-ml-py's, or it is itself too old."""
    versions = _installed()
    if "pynvml" in versions and file.endswith("__init__.py"):
        return (
            f"NVML: the old package pynvml {versions['pynvml']} hides the module of nvidia-ml-py "
            f"({file} has no {lacking}): pip uninstall pynvml, then pip install nvidia-ml-py"
        )
    if "nvidia-ml-py" in versions and file.endswith("pynvml.py"):
        return (
            f"NVML: nvidia-ml-py {versions['nvidia-ml-py']} is too old (it has no {lacking}): "
            f"pip install 'nvidia-ml-py>={OLDEST}'"
        )
    return (
        f"NVML: {file} is not the pynvml of nvidia-ml-py (it has no {lacking}): remove or rename it, "
        f"and pip install 'nvidia-ml-py>={OLDEST}'"
    )


def _installed() -> Mapping[str, str]:
    found = {}
    for name in ("pynvml", "nvidia-ml-py"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


_NO_ANSWER: Mapping[str, str] = {
    "NVML_ERROR_LIBRARY_NOT_FOUND": (
        "there is no libnvidia-ml.so.1: no NVIDIA driver is installed here, or this container was started without its "
        "GPUs, or without this library (docker run --gpus all, with utility in NVIDIA_DRIVER_CAPABILITIES)"
    ),
    "NVML_ERROR_DRIVER_NOT_LOADED": (
        "the NVIDIA driver is installed and not loaded, or not reachable from this container: sudo modprobe nvidia, or "
        "docker run --gpus all; nvidia-smi should list the GPU"
    ),
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": (
        "the NVIDIA driver in the kernel and its library are of different versions, as after an update: reboot, or "
        "reload the driver (sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia; sudo modprobe nvidia); a container "
        "must be started anew"
    ),
    "NVML_ERROR_UNKNOWN": (
        "a container loses its GPUs when the host's systemd reloads: start it anew; on the host see sudo dmesg"
    ),
    "NVML_ERROR_NO_PERMISSION": "this user may not use the NVIDIA driver: see the permissions of /dev/nvidia*",
    "NVML_ERROR_FUNCTION_NOT_FOUND": (
        "the NVIDIA driver's library is older than this module: update the driver, or use an older nvidia-ml-py"
    ),
}


def no_answer(nvml: Any, error: Exception) -> str:
    """Why nvmlInit failed and what to do, as one sentence."""
    code = getattr(error, "value", None)
    said = next((text for name, text in _NO_ANSWER.items() if code == getattr(nvml, name, object())), None)
    if said is None:
        return f"no NVIDIA driver answers ({error}); nvidia-smi on this machine should list the GPU"
    return f"no NVIDIA driver answers ({error}): {said}"
