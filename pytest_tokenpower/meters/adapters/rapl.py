"""RAPL through Linux powercap: energy counters of CPU packages and their DRAM, on Intel and AMD."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_tokenpower.core.types import Fact, Scope
from pytest_tokenpower.errors import MeterError, MeterUnavailable
from pytest_tokenpower.meters.adapters._sysfs import text_of
from pytest_tokenpower.meters.adapters.cpu_model import cpu_name
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.types import CounterReading, Device, Reading

if sys.platform != "win32":
    import grp

POWERCAP = Path("/sys/class/powercap")

REFRESH_MS = 1.0
"""The hardware brings a RAPL counter up to date about every millisecond (Intel SDM, volume 3B)."""

MAX_WATTS = 2_000.0
"""No package draws this much. A counter that fell and, read as a wrap, says more than this was reset."""

_ZONE = re.compile(r"(?P<control>intel-rapl(?:-mmio)?|amd-rapl):\d+(?::\d+)?")


@dataclass
class _Zone:
    path: Path
    label: str
    scope: Scope
    range_uj: int
    last_uj: int = 0
    last_ns: int = 0
    total_uj: int = 0
    mirrors: list[_Zone] = field(default_factory=list)


class RaplMeter:
    """Packages (scope ``cpu``) and DRAM (scope ``dram``) of ``/sys/class/powercap``.

    ``core`` and ``uncore`` are parts of a package and are left out; so is ``psys``, which holds the packages,
    except where it is the only counter (scope ``node``). A zone that the MMIO interface repeats is read once.
    The counters (microjoules, 32 bits of 15 or 61 µJ) wrap after minutes under load; here they are unwrapped and
    start at zero when the meter is opened. A fall that no wrap explains is an error, not energy.

    Zones that show one counter (the dies of a Zen 1 or 2 socket have a zone each) are counted once: whatever they are
    called, counters that are apart by no more than was drawn between two readings, at every reading, are one.

    ``load`` keeps a core busy for a moment at open, so that a counter which stands still can be told.
    """

    name = "rapl"
    poll_interval_s = 0.05

    def __init__(
        self,
        root: Path = POWERCAP,
        proc: Path = Path("/proc"),
        load: Callable[[], None] | None = None,
    ) -> None:
        self._root = root
        self._proc = proc
        self._load = _busy if load is None else load
        self._zones: list[_Zone] = []

    def open(self, clock: Clock) -> Sequence[Device]:
        """Find the zones whose counters run; raises MeterUnavailable with the command that grants access."""
        if sys.platform != "linux":
            raise MeterUnavailable(f"RAPL: is read through Linux's powercap, and this is {sys.platform}")
        zones = self._find()
        first = self._snapshot(zones, clock)
        self._load()
        second = self._snapshot(zones, clock)
        running: list[_Zone] = []
        dead: list[str] = []
        for zone, before, now in zip(zones, first, second, strict=True):
            zone.last_uj, zone.last_ns = now
            if now[0] == before[0]:
                dead.append(f"{zone.label} reads {before[0]} µJ")
                continue
            together = [zones.index(other) for other in running if _alike(zone, other)]
            original = next(
                (
                    zones[each]
                    for each in together
                    if _one(first[each], before, zone.range_uj) and _one(second[each], now, zone.range_uj)
                ),
                None,
            )
            if original is None:
                running.append(zone)
            else:
                original.mirrors.append(zone)
        still = [zone for zone in zones if zone.scope != "dram" and not _counted_in(zone, running)]
        if still:
            rest = (
                ", and the others are not all of it" if any(zone.scope != "dram" for zone in running) else ""
            )
            raise MeterUnavailable(
                f"RAPL: no meter, {'' if rest else 'the '}counters in {self._root} stand still under load "
                f"({', '.join(dead)}){self._virtual()}{rest}; use the host's meter, or --energy-source=model"
            )
        # With that of one socket missing, the others' memory is not the machine's.
        if dead:
            running = [zone for zone in running if zone.scope != "dram"]
        self._zones = running
        key_facts: dict[str, Fact] = {
            "cpu": cpu_name(self._proc),
            "packages": sum(zone.scope == "cpu" for zone in running),
        }
        facts: dict[str, Fact] = {
            "resolution_ms": self.poll_interval_s * 1e3,
            "refresh_ms": REFRESH_MS,
        }
        if dead:
            facts["not_measured"] = ", ".join(dead)
        return [
            Device(
                id=f"rapl:{zone.label}",
                scope=zone.scope,
                name=f"{key_facts['cpu'] or 'CPU'} {zone.label}",
                meter=self.name,
                provenance="measured",
                key_facts=key_facts,
                facts={
                    **facts,
                    "wraps_at_joules": zone.range_uj / 1e6,
                    **(
                        {"also_shown_by": ", ".join(each.label for each in zone.mirrors)}
                        if zone.mirrors
                        else {}
                    ),
                },
                counter_tick_ns=round(REFRESH_MS * 1e6),
            )
            for zone in running
        ]

    def poll(self, clock: Clock) -> Sequence[Reading]:
        """One reading of each counter; one that cannot be read, or fell without a wrap, is a fault."""
        readings = []
        for zone in self._zones:
            device_id = f"rapl:{zone.label}"
            try:
                counter = self._advance(zone, clock)
            except MeterError as error:
                readings.append(Reading(device_id, fault=str(error)))
            else:
                readings.append(Reading(device_id, counters=(counter,)))
        return readings

    def close(self) -> None:
        """Forget the zones."""
        self._zones = []

    def _find(self) -> list[_Zone]:
        try:
            entries = sorted(entry for entry in os.listdir(self._root) if _ZONE.fullmatch(entry))
        except OSError:
            entries = []
        found: dict[str, _Zone] = {}
        names: dict[str, str] = {}
        # The MSR interface comes first, so that the same package on MMIO is the one that is left out.
        for entry in sorted(entries, key=lambda entry: ("mmio" in entry, entry)):
            zone_path = self._root / entry
            names[entry] = text_of(zone_path / "name")
            parent = names.get(entry.rpartition(":")[0])
            label, scope = _label(names[entry], parent)
            # A zone on top that says nothing of itself may be a socket.
            if scope is None and (names[entry] or parent is not None):
                continue
            if "mmio" in entry and (label in found or not label):
                continue
            if label in found:
                label = f"{label} ({entry})"
            range_uj = text_of(zone_path / "max_energy_range_uj")
            if scope is None or not range_uj.isdecimal() or not int(range_uj):
                if scope == "dram":
                    continue
                file = zone_path / ("max_energy_range_uj" if names[entry] else "name")
                raise MeterUnavailable(
                    f"RAPL: no meter, {file} cannot be read or says nothing, so that what {label or entry} draws is "
                    "not known; Docker hides it from containers (docker run --security-opt systempaths=unconfined "
                    "shows it), else use the host's meter, or --energy-source=model"
                )
            found[label] = _Zone(zone_path / "energy_uj", label, scope, int(range_uj))
        zones = list(found.values())
        if any(zone.scope == "cpu" for zone in zones):
            zones = [zone for zone in zones if zone.scope != "node"]
        if not any(zone.scope != "dram" for zone in zones):
            raise MeterUnavailable(
                f"RAPL: no meter, {self._root} has no package counter"
                f"{self._virtual() or ' (try: sudo modprobe intel_rapl_msr)'}"
            )
        return zones

    def _advance(self, zone: _Zone, clock: Clock) -> CounterReading:
        t0_ns = clock.monotonic_ns()
        now_uj = self._read(zone)
        t1_ns = clock.monotonic_ns()
        delta_uj = now_uj - zone.last_uj
        wrapped = delta_uj < 0
        if wrapped:
            delta_uj += zone.range_uj
        elapsed_s = (t1_ns - zone.last_ns) / 1e9
        before_uj, zone.last_uj, zone.last_ns = zone.last_uj, now_uj, t1_ns
        # After a silence in which the counter may have come round unseen, a larger value proves nothing.
        if elapsed_s * MAX_WATTS * 1e6 > zone.range_uj:
            raise MeterError(
                f"RAPL: {zone.label} was not read for {elapsed_s:.0f} s and may have wrapped unseen"
                f" ({zone.path}, which wraps after {zone.range_uj / 1e6:.0f} J)"
            )
        if delta_uj < 0 or delta_uj > MAX_WATTS * 1e6 * (elapsed_s + 0.01):
            raise MeterError(
                f"RAPL: {zone.label} went from {before_uj} to {now_uj} µJ in {elapsed_s * 1e3:.0f} ms"
                f" ({zone.path}): {'the counter was reset' if wrapped else 'no package draws that much'}"
            )
        zone.total_uj += delta_uj
        for mirror in zone.mirrors:
            shown = self._read(mirror), clock.monotonic_ns()
            if not _one((now_uj, t0_ns), shown, zone.range_uj):
                raise MeterError(
                    f"RAPL: {zone.label} and {mirror.label} showed one counter and are apart now ({now_uj} and"
                    f" {shown[0]} µJ): what the socket drew is not known. Run the tests again"
                )
        return CounterReading(t0_ns, t1_ns, zone.total_uj)

    def _snapshot(self, zones: Sequence[_Zone], clock: Clock) -> list[tuple[int, int]]:
        """Each zone's value, and when it was read at the latest."""
        return [(self._read(zone, opening=True), clock.monotonic_ns()) for zone in zones]

    def _read(self, zone: _Zone, *, opening: bool = False) -> int:
        try:
            return int(zone.path.read_text())
        except PermissionError as error:
            raise (MeterUnavailable if opening else MeterError)(
                f"RAPL: {zone.path} may not be read; {_grant(self._root)}"
            ) from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a number"
            raise (MeterUnavailable if opening else MeterError)(
                f"RAPL: reading {zone.label} failed: {zone.path}: {reason}"
            ) from error

    def _virtual(self) -> str:
        """Return what /proc/cpuinfo says about a hypervisor, to be put after a reason."""
        try:
            flags = (self._proc / "cpuinfo").read_text(errors="replace")
        except OSError:
            return ""
        if re.search(r"^flags\s*:.*\bhypervisor\b", flags, re.MULTILINE):
            return (
                ": this is a virtual machine (hypervisor flag in /proc/cpuinfo), most of which have no RAPL"
            )
        return ""


def _counted_in(zone: _Zone, running: Sequence[_Zone]) -> bool:
    return any(zone is each or any(zone is mirror for mirror in each.mirrors) for each in running)


def _alike(zone: _Zone, other: _Zone) -> bool:
    return zone.scope == other.scope and zone.range_uj == other.range_uj


def _one(first: tuple[int, int], later: tuple[int, int], range_uj: int) -> bool:
    """Whether two readings (microjoules, nanoseconds) can be of one counter: apart by what is drawn in between.

    Beside the time between them the second may be a refresh ahead, or behind where the zones are brought up to date one
    after the other.
    """
    apart_uj = (later[0] - first[0] + range_uj // 2) % range_uj - range_uj // 2
    return abs(apart_uj) <= MAX_WATTS * ((later[1] - first[1]) / 1e3 + REFRESH_MS * 1e3)


def _label(name: str, parent: str | None) -> tuple[str, Scope | None]:
    if name.startswith("package"):
        return name, "cpu"
    if name == "dram":
        return f"dram of {parent}" if parent else "dram", "dram"
    if name == "psys":
        return "psys", "node"
    return name, None


def _grant(root: Path) -> str:
    """How to let this user's group read the counters, now and after a boot."""
    try:
        group = grp.getgrgid(os.getgid()).gr_name
    except KeyError:
        group = str(os.getgid())
    files = f"{root}/*rapl*/energy_uj"
    return (
        "only root may since CVE-2020-8694 (the counters leak keys). Where that is acceptable:"
        f" sudo chgrp {group} {files} && sudo chmod g+r {files}"
        f" -- and to keep it over boots: echo 'z {files} 0440 root {group}' | sudo tee /etc/tmpfiles.d/rapl.conf"
    )


def _busy() -> None:
    """Keep one core busy for 30 ms: 30 updates of a counter that runs."""
    end = time.monotonic() + 0.03
    while time.monotonic() < end:
        pass
