"""The CPU-time model: a meter for machines without one. Its joules are modelled, and always labelled so."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import MeterError, MeterUnavailable, UsageError
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.processes import adopted, is_in_tree, parent_of
from pytest_tokenpower.meters.types import CounterReading, Device, Reading

if sys.platform != "win32":
    import resource

SCAN_INTERVAL_S = 0.5
"""New processes are looked for this often: that lists /proc, while a read of a process's clock costs 1 µs."""

SCAN_SHARE = 0.005
"""Where processes are very many the scan is made rarer, so that it takes at most this share of a core."""

KERNEL_TICK_MS = 4.0
"""Linux brings the CPU time of a thread that runs on another core up to date at scheduler ticks (250 Hz)."""


class CpuModelMeter:
    """Energy = ``idle_watts`` x time + ``watts_per_core`` x CPU seconds of a process and its descendants.

    The defaults are round figures for a server core, not facts about any machine. Cloud Carbon Footprint
    takes 0.7 W (idle) to 3.5 W (busy) on average per hardware thread, two of which make a core; the TDP is
    4.4 W per core of an EPYC 7763 and 6.3 W of a Xeon 8480+, without fans and power supply. 8 W per busy
    core is a little above; 10 W is the idle power of 14 hardware threads. Only ratios on one machine mean
    something, and they mean CPU time: a change that draws more power for the same time is not seen.

    ``root_pid`` is the process whose tree is counted (None: this one, and what it has adopted: processes.adopt).
    The thread that polls is not counted.
    A process is found within half a second of its start and its CPU time so far is booked then; one that
    lives shorter is booked when its parent, if that is this process, has waited for it. What a process spent
    between the last poll and its end (20 ms) is booked in the same way, or not at all. The counter never falls.
    """

    name = "cpu-model"
    poll_interval_s = 0.02

    def __init__(
        self,
        idle_watts: float = 10.0,
        watts_per_core: float = 8.0,
        root_pid: int | None = None,
    ) -> None:
        for parameter, value in (("idle_watts", idle_watts), ("watts_per_core", watts_per_core)):
            if not 0.0 <= value < 1e6:
                raise UsageError(f"CPU model: {parameter}={value!r} must be watts, at least 0")
        self._idle_watts = idle_watts
        self._watts_per_core = watts_per_core
        self._tree = ProcessTree(os.getpid() if root_pid is None else root_pid)
        self._adopts = root_pid is None
        self._opened = False
        self._start_ns = 0
        self._next_scan_ns = 0
        self._last_uj = 0

    def open(self, clock: Clock) -> Sequence[Device]:
        """Find the process tree; raises MeterUnavailable where its CPU time cannot be read."""
        if sys.platform != "linux":
            raise MeterUnavailable(
                f"CPU model: reads the CPU clocks of processes, which needs Linux, and this is {sys.platform}"
            )
        try:
            self._tree.open()
        except OSError as error:
            raise MeterUnavailable(
                f"CPU model: CPU time of process {self._tree.root_pid} cannot be read"
                f" (clock_gettime on its CPU clock: {error.strerror or error});"
                " it needs Linux and a living process"
            ) from error
        self._opened = True
        self._start_ns = clock.monotonic_ns()
        self._next_scan_ns = self._start_ns + round(SCAN_INTERVAL_S * 1e9)
        self._last_uj = 0
        cpus = os.cpu_count()
        model = cpu_name()
        key_facts: dict[str, Fact] = {
            "cpu": model,
            "cpus": cpus,
            "idle_watts": self._idle_watts,
            "watts_per_core": self._watts_per_core,
        }
        facts: dict[str, Fact] = {
            "resolution_ms": self.poll_interval_s * 1e3,
            "refresh_ms": KERNEL_TICK_MS,
        }
        return [
            Device(
                id="cpu-model",
                scope="cpu",
                name=f"{model or 'CPU'} (modelled from CPU time)",
                meter=self.name,
                provenance="modelled",
                key_facts=key_facts,
                facts=facts,
                counter_tick_ns=round(KERNEL_TICK_MS * 1e6),
            )
        ]

    def poll(self, clock: Clock) -> Sequence[Reading]:
        """One reading of the modelled counter; raises MeterError when the root process is gone."""
        if not self._opened:
            raise MeterError("CPU model: poll before open")
        t0_ns = clock.monotonic_ns()
        if self._adopts:
            self._tree.follow(adopted())
        if t0_ns >= self._next_scan_ns:
            self._tree.scan()
            end_ns = clock.monotonic_ns()
            cost_ns = end_ns - t0_ns
            self._next_scan_ns = end_ns + max(round(SCAN_INTERVAL_S * 1e9), round(cost_ns / SCAN_SHARE))
            t0_ns = end_ns
        try:
            cpu_ns = self._tree.cpu_ns()
        except OSError as error:
            raise MeterError(
                f"CPU model: process {self._tree.root_pid} is gone"
                f" (clock_gettime on its CPU clock: {error.strerror or error})"
            ) from error
        t1_ns = clock.monotonic_ns()
        elapsed_ns = (t0_ns + t1_ns) // 2 - self._start_ns
        energy_uj = round((self._idle_watts * elapsed_ns + self._watts_per_core * cpu_ns) / 1000.0)
        self._last_uj = max(self._last_uj, energy_uj)
        return [Reading("cpu-model", counters=(CounterReading(t0_ns, t1_ns, self._last_uj),))]

    def close(self) -> None:
        """Forget the tree."""
        self._opened = False


@dataclass
class _Process:
    """CPU time of one process: ``base_ns`` was spent before we looked, ``last_ns`` was read last."""

    base_ns: int
    last_ns: int


class ProcessTree:
    """CPU nanoseconds spent by a process and its descendants since :meth:`open`.

    Linux gives every process a CPU clock that anyone may read (clock id ``(~pid << 3) | 2``, see
    clock_getcpuclockid(3)). It counts all threads, ended ones too, and stays until the process is waited for.
    """

    def __init__(self, root_pid: int) -> None:
        self.root_pid = root_pid
        self._processes: dict[int, _Process] = {}
        self._strangers: set[int] = set()
        self._followed: frozenset[int] = frozenset()
        self._ended_ns = 0
        self._reaped_base_ns = 0
        self._last_ns = 0
        self._thread: int | None = None
        self._thread_base_ns = self._thread_last_ns = self._thread_ended_ns = 0

    def open(self) -> None:
        """Start counting here; raises OSError when the root process does not exist."""
        root_ns = process_cpu_ns(self.root_pid)
        self._processes = {self.root_pid: _Process(root_ns, root_ns)}
        self._strangers = set()
        self._followed = frozenset()
        self._ended_ns = self._last_ns = 0
        self._thread = None
        self._thread_base_ns = self._thread_last_ns = self._thread_ended_ns = 0
        self._reaped_base_ns = self._reaped_ns()
        self.scan(existing=True)

    @property
    def pids(self) -> frozenset[int]:
        """The processes that are counted now."""
        return frozenset(self._processes)

    def follow(self, roots: frozenset[int]) -> None:
        """Count these processes and what is below them too, from now on; those that are no longer named, no more."""
        if roots == self._followed:
            return
        for root in self._followed - roots:
            for pid in [pid for pid in self._processes if is_in_tree(pid, root)]:
                self._end(pid)
                self._strangers.add(pid)
        for root in roots - self._followed - self._processes.keys():
            with contextlib.suppress(OSError):
                now_ns = process_cpu_ns(root)
                self._processes[root] = _Process(now_ns, now_ns)
        self._followed = roots
        self._strangers -= {pid for pid in self._strangers if any(is_in_tree(pid, root) for root in roots)}
        self.scan(existing=True)

    def scan(self, *, existing: bool = False) -> None:
        """Find descendants that are new; with ``existing`` their CPU time so far is not ours to count."""
        try:
            present = {int(entry) for entry in os.listdir("/proc") if entry.isdecimal()}
        except OSError:
            return
        self._strangers &= present
        # A stranger's parent never changes into one of ours, so only new processes have to be looked at.
        parents = {
            pid: parent
            for pid in present - self._strangers - self._processes.keys()
            if (parent := parent_of(pid)) is not None
        }
        found = True
        while found:
            found = False
            for pid, parent in list(parents.items()):
                if parent in self._processes:
                    del parents[pid]
                    found = True
                    try:
                        now_ns = process_cpu_ns(pid)
                    except OSError:
                        continue
                    self._processes[pid] = _Process(now_ns if existing else 0, now_ns)
        self._strangers |= parents.keys()

    def cpu_ns(self) -> int:
        """CPU nanoseconds since open; never falls. Raises OSError when the root process is gone."""
        # What was reaped is read first: a child that ends after that is then counted once, by its last value.
        reaped_ns = self._reaped_ns()
        total_ns = 0
        for pid, process in list(self._processes.items()):
            try:
                now_ns = process_cpu_ns(pid)
            except OSError:
                if pid == self.root_pid:
                    raise
                self._end(pid)
                continue
            process.last_ns = max(process.last_ns, now_ns)
            total_ns += process.last_ns - process.base_ns
        # Both count ended processes and neither counts all: the first misses what lived between two scans and
        # the last 20 ms of each, the second what nobody waited for.
        total_ns += max(self._ended_ns, reaped_ns - self._reaped_base_ns) - self._own_ns()
        self._last_ns = max(self._last_ns, total_ns)
        return self._last_ns

    def _end(self, pid: int) -> None:
        process = self._processes.pop(pid)
        self._ended_ns += process.last_ns - process.base_ns
        self._reaped_base_ns += process.base_ns

    def _reaped_ns(self) -> int:
        if self.root_pid != os.getpid():
            return 0
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return round((usage.ru_utime + usage.ru_stime) * 1e9)

    def _own_ns(self) -> int:
        """CPU time of the polling thread since it polls."""
        if os.getpid() not in self._processes:
            return 0
        thread = threading.get_ident()
        now_ns = time.thread_time_ns()
        if thread != self._thread:
            self._thread, self._thread_base_ns = thread, now_ns
            self._thread_ended_ns, self._thread_last_ns = self._thread_ended_ns + self._thread_last_ns, 0
        self._thread_last_ns = now_ns - self._thread_base_ns
        return self._thread_ended_ns + self._thread_last_ns


def process_cpu_ns(pid: int) -> int:
    """CPU nanoseconds of all threads of a process since its start; raises OSError when there is none."""
    return time.clock_gettime_ns((~pid << 3) | 2)


def cpu_name(proc: Path = Path("/proc")) -> str | None:
    """Return the processor's model name from /proc/cpuinfo; None where it does not say."""
    try:
        text = (proc / "cpuinfo").read_text(errors="replace")
    except OSError:
        return None
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    if "model name" in fields:
        return fields["model name"]
    if "CPU part" in fields:  # Arm: numbers only
        return f"Arm implementer {fields.get('CPU implementer', '?')} part {fields['CPU part']}"
    return None
