"""Whose `pynvml` is used, and what is said where it is another's or the driver does not answer."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pynvml
import pytest

from pytest_tokenpower.errors import MeterUnavailable
from pytest_tokenpower.meters import sources
from pytest_tokenpower.meters.adapters.nvml.devices import gpu_memories, visible_gpus
from pytest_tokenpower.meters.adapters.nvml.library import load_nvml, no_answer
from pytest_tokenpower.meters.adapters.nvml.meter import NvmlMeter


def shadow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str, **installed: str) -> None:
    """Put a module of the name in front of nvidia-ml-py's, and which distributions are installed."""
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pynvml")

    def version(name: str) -> str:
        if name.replace("-", "_") not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name.replace("-", "_")]

    monkeypatch.setattr(metadata, "version", version)


OLD = "import warnings\nwarnings.warn('pynvml is deprecated', FutureWarning)\nclass NVMLError(Exception): pass\n"


@pytest.mark.parametrize(
    ("file", "installed", "said"),
    [
        (
            "pynvml/__init__.py",
            {"pynvml": "11.5.3", "nvidia_ml_py": "13.580.82"},
            r"the old package pynvml 11\.5\.3 hides .*: pip uninstall pynvml, then pip install nvidia-ml-py$",
        ),
        ("pynvml/__init__.py", {"pynvml": "11.5.3"}, "pip uninstall pynvml, then pip install nvidia-ml-py$"),
        (
            "pynvml.py",
            {"nvidia_ml_py": "11.495.46"},
            r"nvidia-ml-py 11\.495\.46 is too old .*pip install 'nvidia-ml-py>=",
        ),
        (
            "pynvml/__init__.py",
            {"nvidia_ml_py": "13.580.82"},
            "is not the pynvml of nvidia-ml-py .*: remove or rename it",
        ),
    ],
)
@pytest.mark.filterwarnings("error")
def test_another_module_of_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, installed: dict[str, str], said: str
) -> None:
    shadow(tmp_path, monkeypatch, file, OLD, **installed)
    with pytest.raises(MeterUnavailable, match=said):
        load_nvml()
    with pytest.raises(MeterUnavailable, match=said):
        sources.begin("nvml")
    with pytest.raises(MeterUnavailable, match=said):
        sources.begin("simulated")
    assert gpu_memories(None) == ()
    assert visible_gpus(None) is None
    NvmlMeter().close()


def test_a_module_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shadow(tmp_path, monkeypatch, "pynvml.py", "import no_such_module_at_all\n")
    with pytest.raises(
        MeterUnavailable, match=r"cannot be imported \(ModuleNotFoundError: .*pip install nvidia-ml-py"
    ):
        load_nvml()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
            "of different versions, .*: reboot, or reload the driver",
        ),
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, r"no libnvidia-ml.so.1: .*docker run --gpus all"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "not loaded, or not reachable"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "permissions of /dev/nvidia"),
        (pynvml.NVML_ERROR_UNKNOWN, "a container loses its GPUs .*: start it anew"),
        (pynvml.NVML_ERROR_GPU_IS_LOST, "nvidia-smi on this machine should list the GPU"),
    ],
)
def test_a_driver_that_does_not_answer_is_told_of_in_one_sentence(code: int, said: str) -> None:
    text = no_answer(pynvml, pynvml.NVMLError(code))
    assert text.startswith("no NVIDIA driver answers (")
    assert re.search(said, text)
