"""Which accelerator a machine has, told from faked trees of /dev and /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_tokenpower.meters.accelerators import Accelerator, find_accelerator


class Machine:
    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("dev", "drm", "pci", "tree"):
            (root / name).mkdir()

    def card(self, number: int, vendor: str, address: str | None = None, **files: str) -> None:
        folder = self.root / "drm" / f"card{number}"
        folder.mkdir()
        device = folder / "device"
        if address is None:
            device.mkdir()
        else:
            (self.root / "real" / address).mkdir(parents=True)
            device.symlink_to(self.root / "real" / address)
        for name, text in {"vendor": vendor, **files}.items():
            (device / name).write_text(f"{text}\n")

    def board(self, address: str, vendor: str, kind: str, *, driver: str | None) -> None:
        folder = self.root / "pci" / address
        folder.mkdir()
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "class").write_text(f"{kind}\n")
        if driver is not None:
            (self.root / driver).mkdir()
            (folder / "driver").symlink_to(self.root / driver)

    def found(self, **environment: str) -> Accelerator | None:
        dev, drm, pci, tree = (self.root / name for name in ("dev", "drm", "pci", "tree"))
        return find_accelerator(dev, drm, pci, tree, environment)

    def name(self, **environment: str) -> str | None:
        found = self.found(**environment)
        return None if found is None else found.name


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_machine_without(machine: Machine) -> None:
    (machine.root / "dev" / "nvidiactl").touch()
    machine.card(0, "0x1234")
    machine.board("0000:01:00.0", "0x10de", "0x020000", driver=None)  # a network card of NVIDIA's
    assert machine.name() is None


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ("nvidia0", "NVIDIA"),
        ("hl0", "Gaudi"),
        ("accel/accel_controlD0", "Gaudi"),
        ("accel0", "TPU"),
        ("neuron0", "AWS Neuron"),
        ("davinci0", "Ascend"),
        ("tenstorrent/0", "Tenstorrent"),
        ("dxg", "WSL2's"),
    ],
)
def test_by_its_device_file(machine: Machine, node: str, name: str) -> None:
    path = machine.root / "dev" / node
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert machine.name() == name
    found = machine.found()
    assert found is not None
    assert found.remedy


def test_what_the_environment_hides_does_not_count(machine: Machine) -> None:
    (machine.root / "dev" / "nvidia0").touch()
    (machine.root / "dev" / "dxg").touch()
    for value in ("", "-1", "NoDevFiles", "none", "-1,0", " ", ","):
        assert machine.name(CUDA_VISIBLE_DEVICES=value) is None
    for value in ("0", "1,-1", "GPU-8932f937", "MIG-1", "gpu-0"):
        assert machine.name(CUDA_VISIBLE_DEVICES=value) == "NVIDIA"
    machine.card(0, "0x1002", mem_info_vram_total=str(192 << 30))
    assert machine.name(CUDA_VISIBLE_DEVICES="") == "AMD"
    assert machine.name(CUDA_VISIBLE_DEVICES="", ROCR_VISIBLE_DEVICES="") is None
    assert machine.name(CUDA_VISIBLE_DEVICES="-1") is None
    assert machine.name(CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="-1") is None
    assert machine.name(CUDA_VISIBLE_DEVICES="-1", HIP_VISIBLE_DEVICES="0") == "AMD"


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("0000:03:00.0", "Intel"),
        (None, "Intel"),
        # Part of the CPU, and of what RAPL reads.
        ("0000:00:02.0", None),
        ("0000:00:02.1", None),
    ],
)
def test_intels_cards_and_not_what_is_part_of_a_cpu(
    machine: Machine, address: str | None, name: str | None
) -> None:
    machine.card(1, "0x8086", address)
    assert machine.name() == name


@pytest.mark.parametrize(
    ("board", "driver", "name"),
    [
        (("0x10de", "0x030200"), "nvidia", None),
        (("0x10de", "0x030200"), "vfio-pci", None),
        (("0x10de", "0x030200"), None, "NVIDIA, without its driver"),
        (("0x10de", "0x030000"), "nouveau", "NVIDIA, without its driver"),
        (("0x1002", "0x120000"), "amdgpu", None),
        (("0x1002", "0x120000"), None, "AMD, without its driver"),
        (("0x1002", "0x030000"), None, None),  # it may be part of a CPU
        (("0x8086", "0x038000"), "xe", None),
        (("0x8086", "0x038000"), None, "Intel, without its driver"),
    ],
)
def test_a_board_whose_driver_is_not_loaded(
    machine: Machine, board: tuple[str, str], driver: str | None, name: str | None
) -> None:
    """With a driver and no device file it is a container's host that has the board."""
    machine.board("0000:65:00.0", *board, driver=driver)
    assert machine.name() == name
    if board[0] != "0x8086":
        assert machine.name(CUDA_VISIBLE_DEVICES="", ROCR_VISIBLE_DEVICES="") is None


def test_intels_integrated_gpu_without_a_driver_is_part_of_the_cpu(machine: Machine) -> None:
    machine.board("0000:00:02.0", "0x8086", "0x030000", driver=None)
    assert machine.name() is None


def test_a_jetson(machine: Machine) -> None:
    (machine.root / "tree" / "compatible").write_text("nvidia,p3737\0nvidia,tegra234\0")
    (machine.root / "tree" / "model").write_text("NVIDIA Jetson AGX Orin\0")
    found = machine.found()
    assert found is not None
    assert (found.name, found.source) == ("NVIDIA Jetson AGX Orin", "jetson")
