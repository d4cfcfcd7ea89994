"""The CPU-time model against processes whose CPU time is known from elsewhere."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_tokenpower.errors import MeterError, MeterUnavailable, UsageError
from pytest_tokenpower.meters.adapters import cpu_model
from pytest_tokenpower.meters.adapters.cpu_model import CpuModelMeter, ProcessTree, cpu_name, process_cpu_ns
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.types import CounterReading

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="CPU clocks of processes are Linux's")


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@contextmanager
def child(code: str) -> Iterator[subprocess.Popen[bytes]]:
    """Return a Python process that prints a line when it is ready and then waits for a line."""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


BURN = """
import time, sys
print("up", flush=True)
for line in sys.stdin:
    end = time.thread_time() + float(line)
    while time.thread_time() < end: pass
    print("done", flush=True)
"""


def ask(process: subprocess.Popen[bytes], line: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(line + b"\n")
    process.stdin.flush()
    hear(process)


def hear(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def read(meter: CpuModelMeter, clock: Clock) -> CounterReading:
    (reading,) = meter.poll(clock)
    assert reading.device_id == "cpu-model"
    (counter,) = reading.counters
    assert counter.t0_ns <= counter.t1_ns
    return counter


def test_device_says_that_it_is_modelled() -> None:
    meter = CpuModelMeter(idle_watts=3.0, watts_per_core=7.0)
    (device,) = meter.open(Clock())
    assert (device.id, device.scope, device.provenance) == ("cpu-model", "cpu", "modelled")
    assert device.key_facts["idle_watts"] == 3.0
    assert device.key_facts["watts_per_core"] == 7.0
    assert device.key_facts["cpus"] == os.cpu_count()
    assert device.facts["resolution_ms"] == 20.0
    assert device.facts["refresh_ms"] == 4.0
    assert device.counter_tick_ns == 4_000_000


def test_idle_energy_is_exact_in_time() -> None:
    now_ns = 5_000_000_000
    clock = Clock(monotonic_ns=lambda: now_ns, realtime_ns=lambda: now_ns)
    meter = CpuModelMeter(idle_watts=10.0, watts_per_core=0.0)
    meter.open(clock)
    now_ns += 20_000_000
    assert read(meter, clock).microjoules == 200_000
    now_ns += 3_600_000_000_000
    assert read(meter, clock).microjoules == 36_000_200_000


def test_busy_energy_is_the_process_clock_without_the_polling_thread() -> None:
    clock = Clock()
    meter = CpuModelMeter(idle_watts=0.0, watts_per_core=8.0)
    meter.open(clock)
    first = read(meter, clock).microjoules
    threads = [threading.Thread(target=burn, args=(0.06,)) for _ in range(2)]
    before_ns = time.process_time_ns() - time.thread_time_ns()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    burn(0.1)  # the polling thread's own time
    after_ns = time.process_time_ns() - time.thread_time_ns()
    joules = (read(meter, clock).microjoules - first) / 1e6
    assert joules == pytest.approx(8.0 * (after_ns - before_ns) / 1e9, abs=0.02)
    assert joules == pytest.approx(8.0 * 0.12, rel=0.1)


def test_children_count_from_open_on_and_stay_when_they_end() -> None:
    clock = Clock()
    with child(BURN) as process:
        hear(process)
        ask(process, b"0.05")
        meter = CpuModelMeter(idle_watts=0.0, watts_per_core=1.0)
        meter.open(clock)
        first = read(meter, clock).microjoules
        assert first < 10_000  # what the child spent before is not ours
        ask(process, b"0.1")
        alive = read(meter, clock).microjoules
        assert alive - first == pytest.approx(100_000, abs=15_000)
    ended = read(meter, clock).microjoules
    assert alive <= ended <= alive + 30_000  # its base is not booked when it is reaped


def test_a_child_that_lived_between_scans_is_booked_once_when_reaped() -> None:
    tree = ProcessTree(os.getpid())
    tree.open()
    before = tree.cpu_ns()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = usage.ru_utime + usage.ru_stime
    with child(BURN) as process:
        hear(process)
        ask(process, b"0.08")
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = usage.ru_utime + usage.ru_stime - start
    assert spent > 0.08
    assert (tree.cpu_ns() - before) / 1e9 == pytest.approx(spent, abs=0.015)


def test_a_new_child_found_by_a_scan_is_booked_once() -> None:
    tree = ProcessTree(os.getpid())
    tree.open()
    before = tree.cpu_ns()
    with child(BURN) as process:
        hear(process)
        ask(process, b"0.08")
        tree.scan()
        assert process.pid in tree.pids
        spent = process_cpu_ns(process.pid)
        alive = tree.cpu_ns()
        assert alive - before == pytest.approx(spent, abs=15e6)
    assert tree.cpu_ns() - alive < 15e6
    assert process.pid not in tree.pids


GRANDCHILD = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.readline()"])
"""


def test_grandchildren_are_in_the_tree() -> None:
    tree = ProcessTree(os.getpid())
    with child(GRANDCHILD) as process:
        hear(process)
        tree.open()
        assert process.pid in tree.pids
        assert len(tree.pids) >= 3
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)
        process.stdin = None
        tree.cpu_ns()
        assert process.pid not in tree.pids


def test_strangers_are_not_counted() -> None:
    with child(BURN) as root, child(BURN) as stranger:
        hear(root)
        hear(stranger)
        tree = ProcessTree(root.pid)
        tree.open()
        assert tree.pids == {root.pid}
        before = tree.cpu_ns()
        ask(stranger, b"0.05")
        tree.scan()
        assert tree.pids == {root.pid}
        assert tree.cpu_ns() - before < 5e6


def test_counter_never_falls_while_children_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random clocks of processes: they come, run, end, are waited for or not; pids are used again."""
    import random

    rng = random.Random(7)
    root = os.getpid()
    clocks = {root: 1_000, 11: 500}
    reaped = 0
    tree = ProcessTree(root)

    def fake_cpu_ns(pid: int) -> int:
        if pid not in clocks:
            raise ProcessLookupError
        return clocks[pid]

    monkeypatch.setattr(cpu_model, "process_cpu_ns", fake_cpu_ns)
    monkeypatch.setattr(tree, "_reaped_ns", lambda: reaped)
    monkeypatch.setattr(tree, "_own_ns", lambda: 0)
    monkeypatch.setattr(cpu_model, "parent_of", lambda pid: root)
    monkeypatch.setattr(os, "listdir", lambda path: [*map(str, clocks), "self"])
    tree.open()
    spent = 0
    last = 0
    for _ in range(3_000):
        for pid in list(clocks):
            step = rng.randrange(20)
            clocks[pid] += step
            spent += step
        if rng.random() < 0.2:
            clocks.setdefault(rng.randrange(20, 26), 0)
        if len(clocks) > 1 and rng.random() < 0.2:
            pid = rng.choice([pid for pid in clocks if pid != root])
            now = clocks.pop(pid)
            if pid != 11 and rng.random() < 0.7:
                reaped += now
        if rng.random() < 0.3:
            tree.scan()
        total = tree.cpu_ns()
        assert last <= total <= spent
        last = total
    # Where every process is seen or waited for, only the last bit of each is lost.
    assert last > 0.5 * spent


def test_missing_process_is_unavailable_at_open_and_an_error_at_poll() -> None:
    clock = Clock()
    with child(BURN) as process:
        hear(process)
        meter = CpuModelMeter(root_pid=process.pid)
        meter.open(clock)
        read(meter, clock)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with pytest.raises(MeterError, match=rf"process {process.pid} is gone"):
            meter.poll(clock)
        with pytest.raises(MeterUnavailable, match=rf"process {process.pid} cannot be read"):
            CpuModelMeter(root_pid=process.pid).open(clock)
    with pytest.raises(MeterError, match="poll before open"):
        CpuModelMeter().poll(clock)


@pytest.mark.parametrize("watts", [-1.0, float("nan"), float("inf")])
def test_parameters_are_checked(watts: float) -> None:
    with pytest.raises(UsageError, match="idle_watts"):
        CpuModelMeter(idle_watts=watts)
    with pytest.raises(UsageError, match="watts_per_core"):
        CpuModelMeter(watts_per_core=watts)


def test_cpu_name(tmp_path: Path) -> None:
    assert cpu_name(tmp_path) is None
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: AMD EPYC 9654\n")
    assert cpu_name(tmp_path) == "AMD EPYC 9654"
    (tmp_path / "cpuinfo").write_text("CPU implementer\t: 0x41\nCPU part\t: 0xd4f\n")
    assert cpu_name(tmp_path) == "Arm implementer 0x41 part 0xd4f"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\n")
    assert cpu_name(tmp_path) is None
