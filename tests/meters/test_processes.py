"""Processes that are adopted: in the tree of the run, in the CPU model, and on GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_tokenpower.meters import processes
from pytest_tokenpower.meters.adapters.cpu_model import CpuModelMeter, ProcessTree
from pytest_tokenpower.meters.adapters.nvml.devices import gpus_of, visible_gpus
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.processes import adopt, adopted, command_of, is_in_tree, listener_on, release

BUSY = "import subprocess, sys, time\nsys.stdout.write('.')\nsys.stdout.flush()\nwhile True: pass"


@pytest.fixture
def stranger() -> Iterator[int]:
    """Return a busy process that is nobody's child, as far as we are concerned."""
    launcher = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', sys.argv[1]]).pid, flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", launcher, BUSY], stdout=subprocess.PIPE, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        try:
            parent.wait()
            yield pid
        finally:
            os.kill(pid, 9)


def test_an_adopted_process_is_ours_until_the_last_release(stranger: int) -> None:
    assert is_in_tree(stranger) is False
    adopt(stranger)
    adopt(stranger)
    assert is_in_tree(stranger)
    assert is_in_tree(os.getpid())
    assert is_in_tree(stranger, os.getpid()) is False
    release(stranger)
    assert is_in_tree(stranger)
    release(stranger)
    assert is_in_tree(stranger) is False
    assert adopted() == frozenset()


def test_the_cpu_model_counts_an_adopted_process_from_then_on(stranger: int) -> None:
    tree = ProcessTree(os.getpid())
    tree.open()
    assert stranger not in tree.pids
    start = tree.cpu_ns()
    tree.follow(frozenset({stranger}))
    # What it had used before is not ours.
    assert tree.cpu_ns() - start < 50_000_000
    assert stranger in tree.pids
    tree.scan()
    before = tree.cpu_ns()
    until = time.monotonic() + 5
    while tree.cpu_ns() - before < 10_000_000 and time.monotonic() < until:
        time.sleep(0.005)
    counted = tree.cpu_ns()
    assert counted - before >= 10_000_000
    tree.follow(frozenset())
    assert stranger not in tree.pids
    assert tree.cpu_ns() >= counted
    tree.scan()
    assert stranger not in tree.pids


def test_the_meter_follows_what_is_adopted(stranger: int) -> None:
    meter, clock = CpuModelMeter(), Clock()
    meter.open(clock)
    adopt(stranger)
    try:
        meter.poll(clock)
        assert stranger in meter._tree.pids
    finally:
        release(stranger)
    meter.poll(clock)
    assert stranger not in meter._tree.pids
    meter.close()
    alone = CpuModelMeter(root_pid=os.getpid())
    alone.open(clock)
    adopt(stranger)
    try:
        alone.poll(clock)
    finally:
        release(stranger)
    assert stranger not in alone._tree.pids


ROW = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def test_who_listens_comes_from_the_tables_of_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(
        ROW
        + "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1\n"
        + "   1: 0100007F:1F91 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 4712 1\n"
    )
    pid = os.getpid()
    for number, inode in ((pid, 4711), (2**22 + 7, 4712)):
        folder = tmp_path / str(number) / "fd"
        folder.mkdir(parents=True)
        (folder / "3").symlink_to(f"socket:[{inode}]")
    assert listener_on(8080, tmp_path) == pid
    assert listener_on(8081, tmp_path) is None  # connected, and nobody listens
    assert listener_on(8082, tmp_path) is None
    assert listener_on(8080, tmp_path / "absent") is None


def test_process_1_of_a_container_and_all_below_it_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = {1: 0, 7: 1, 8: 7, 40: 0}
    monkeypatch.setattr(processes, "parent_of", parents.get)
    for root, ours in ((1, {1, 7, 8}), (7, {7, 8}), (40, {40})):
        monkeypatch.setattr(processes, "root_of_run", lambda root=root: root)
        assert {pid for pid in parents if processes.is_in_tree(pid)} == ours
        assert {pid for pid in parents if processes.is_in_tree(pid, root)} == ours
    assert processes.is_in_tree(99) is None


def test_a_process_that_is_not_there() -> None:
    assert command_of(2**22 + 7) == ""
    assert command_of(os.getpid())


class FakeNvml:
    """Three boards, each with the processes that compute on it."""

    class NVMLError(Exception):
        pass

    def __init__(self, *pids: list[int], broken: str = "") -> None:
        self._pids = pids
        self._broken = broken
        self.open = 0

    def __getattr__(self, name: str) -> Any:
        if name == self._broken:
            raise self.NVMLError(name)
        return {
            "nvmlDeviceGetCount": lambda: len(self._pids),
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetUUID": lambda index: f"GPU-{index}",
            "nvmlDeviceGetName": lambda index: "NVIDIA H100",
            "nvmlDeviceGetComputeRunningProcesses_v3": lambda index: [
                SimpleNamespace(pid=pid) for pid in self._pids[index]
            ],
        }[name]

    def nvmlInit(self) -> None:
        if self._broken == "nvmlInit":
            raise self.NVMLError("no driver")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1


def test_the_gpus_that_a_tree_computes_on(stranger: int) -> None:
    ours = os.getpid()
    assert gpus_of(ours, FakeNvml([ours], [stranger], [ours, stranger])) == ("GPU-0", "GPU-2")
    assert gpus_of(stranger, FakeNvml([ours], [stranger], [ours, stranger])) == ("GPU-1", "GPU-2")
    # Numbers of another namespace are nobody's here; that is no "no GPU".
    assert gpus_of(ours, FakeNvml([2**22 + 7], [])) is None
    for call in ("nvmlInit", "nvmlDeviceGetComputeRunningProcesses_v3"):
        nvml = FakeNvml([ours], broken=call)
        assert gpus_of(ours, nvml) is None
        assert nvml.open == 0


def test_a_board_that_does_not_answer_has_none_of_our_processes() -> None:
    class Partly(FakeNvml):
        NVML_ERROR_NO_PERMISSION = 4

        def __getattr__(self, name: str) -> Any:
            found = super().__getattr__(name)

            def call(*arguments: Any) -> Any:
                if arguments == (1,):
                    raise self.NVMLError(name)
                return found(*arguments)

            return call if name.startswith("nvmlDeviceGet") else found

    ours = os.getpid()
    assert gpus_of(ours, Partly([ours], [ours], [ours])) == ("GPU-0", "GPU-2")
    assert visible_gpus("0", Partly([], [], [])) == ("GPU-0",)
    assert visible_gpus("1", Partly([], [], [])) is None
    assert visible_gpus(None, Partly([], [], [])) is None


def test_the_gpus_that_a_server_would_see() -> None:
    nvml = FakeNvml([], [], [])
    assert visible_gpus(None, nvml) == ("GPU-0", "GPU-1", "GPU-2")
    assert visible_gpus("2,0", nvml) == ("GPU-2", "GPU-0")
    assert visible_gpus("MIG-1", nvml) is None
    assert nvml.open == 0
