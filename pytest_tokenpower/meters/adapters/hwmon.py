"""hwmon power meters: ACPI power meters (a server's own, NVIDIA Grace's sockets) and drivers that know a CPU."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_tokenpower.core.types import Fact, Scope
from pytest_tokenpower.errors import MeterError, MeterUnavailable, UsageError
from pytest_tokenpower.meters.adapters._sysfs import number_of, text_of
from pytest_tokenpower.meters.adapters.no_reading import is_fine_power, is_watts
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.types import Device, PowerSamples, Reading

HWMON = Path("/sys/class/hwmon")

MAX_REFRESH_MS = 1000.0
"""Taken where a sensor does not say over which interval it averages."""

_SCOPES: tuple[Scope, ...] = ("gpu", "cpu", "dram", "node", "rack")

_CPU_DRIVERS: Mapping[str, re.Pattern[str]] = {
    "fam15h_power": re.compile(".*"),
    "xgene_hwmon": re.compile("CPU power"),
}
"""Drivers whose sensors stand for a CPU, and which of their labels do."""


@dataclass(frozen=True)
class _Sensor:
    path: Path
    id: str
    label: str
    driver: str
    scope: Scope
    refresh_ms: float


class HwmonMeter:
    """Power sensors of ``/sys/class/hwmon`` (``power*_average``, ``power*_input``, in microwatts), as points.

    An ACPI power meter (driver ``power_meter``) without a label is the machine's own: scope ``node``. On NVIDIA
    Grace its label (``power*_oem_info``) is read: ``Grace Power Socket N`` is the whole CPU side of a socket and
    has scope ``cpu``; ``CPU Power`` and ``SysIO Power`` are parts of it and count only where it is missing.
    ``Module Power`` holds CPU and GPU together: it fits no scope, is never added, and is named in the facts.
    Other sensors (of GPUs, of rails on a board) are not guessed at: ``scopes`` says what they stand for, as
    ``{"driver/label": "cpu"}``.
    """

    name = "hwmon"
    poll_interval_s = 0.1

    def __init__(self, root: Path = HWMON, scopes: Mapping[str, Scope] | None = None) -> None:
        for sensor, scope in (scopes or {}).items():
            if scope not in _SCOPES:
                raise UsageError(
                    f"hwmon: {sensor!r} has scope {scope!r}; must be one of {', '.join(_SCOPES)}"
                )
        self._root = root
        self._scopes = dict(scopes or {})
        self._sensors: list[_Sensor] = []

    def open(self, clock: Clock) -> Sequence[Device]:
        """Find the sensors that can be read and draw power; raises MeterUnavailable."""
        sensors, left_out = self._find()
        unknown = self._scopes.keys() - {f"{sensor.driver}/{sensor.label}" for sensor in sensors}
        if unknown:
            raise MeterUnavailable(
                f"hwmon: no sensor {', '.join(sorted(unknown))} in {self._root}"
                f" (there: {', '.join([s.driver + '/' + s.label for s in sensors] + left_out) or 'none'})"
            )
        if not sensors:
            raise MeterUnavailable(
                f"hwmon: no meter, {self._root} has no power sensor that stands for a CPU or the machine"
                + (f" (not counted: {', '.join(left_out)})" if left_out else "")
            )
        for sensor in sensors:
            try:
                microwatts = _number(sensor)
            except MeterError as error:
                raise MeterUnavailable(str(error)) from error
            if not _is_power(microwatts):
                raise MeterUnavailable(
                    f"hwmon: no meter, {sensor.label} reads {microwatts} µW ({sensor.path})"
                )
        self._sensors = sensors
        devices = []
        for sensor in sensors:
            facts: dict[str, Fact] = {
                # A point may be one refresh old at either end of a window.
                "resolution_ms": 2 * max(sensor.refresh_ms, self.poll_interval_s * 1e3),
                "refresh_ms": sensor.refresh_ms,
            }
            if left_out:
                facts["not_counted"] = ", ".join(left_out)
            devices.append(
                Device(
                    id=sensor.id,
                    scope=sensor.scope,
                    name=sensor.label,
                    meter=self.name,
                    provenance="measured",
                    key_facts={"sensor": f"{sensor.driver}/{sensor.label}"},
                    facts=facts,
                )
            )
        return devices

    def poll(self, clock: Clock) -> Sequence[Reading]:
        """One point of each sensor; one that cannot be read, or reads nothing, is a fault."""
        readings = []
        for sensor in self._sensors:
            t0_ns = clock.monotonic_ns()
            try:
                microwatts = _number(sensor)
                if not _is_power(microwatts):
                    raise MeterError(f"hwmon: {sensor.label} reads {microwatts} µW ({sensor.path})")
            except MeterError as error:
                readings.append(Reading(sensor.id, fault=str(error)))
                continue
            t1_ns = clock.monotonic_ns()
            readings.append(Reading(sensor.id, power=PowerSamples.point(t0_ns, t1_ns, microwatts / 1000)))
        return readings

    def close(self) -> None:
        """Forget the sensors."""
        self._sensors = []

    def _find(self) -> tuple[list[_Sensor], list[str]]:
        """Return the sensors to read, and what else was there, in words."""
        found: list[tuple[Path, str, str, str]] = []
        for chip in sorted(self._root.glob("hwmon*")):
            driver = text_of(chip / "name") or "unnamed"
            # The ACPI power meter keeps its attributes on the device, as older kernels did for all.
            for folder in (chip, chip / "device"):
                channels = _channels(folder)
                for channel, path in channels.items():
                    label = (
                        text_of(folder / f"{channel}_oem_info")
                        or text_of(folder / f"{channel}_label")
                        or (channel if len(channels) > 1 else "power")
                    )
                    found.append((path, driver, label, channel))
                if channels:
                    break
        # A socket's whole is counted instead of its parts.
        sockets = {
            label.removeprefix("Grace Power ") for _, _, label, _ in found if label.startswith("Grace Power ")
        }
        sensors: list[_Sensor] = []
        left_out: list[str] = []
        for path, driver, label, channel in found:
            key = f"{driver}/{label}"
            scope = self._scopes.get(key) or _scope(driver, label, sockets)
            before = sum(sensor.driver == driver and sensor.label == label for sensor in sensors)
            # A driver that knows CPUs has a chip for each socket.
            socket = before and driver in _CPU_DRIVERS and key not in self._scopes
            if scope is None or (before and not socket and (scope != "node" or key in self._scopes)):
                left_out.append(key)
                continue
            interval_ms = text_of(path.parent / f"{channel}_average_interval")
            refresh_ms = (
                float(interval_ms) if interval_ms.isdecimal() and int(interval_ms) else MAX_REFRESH_MS
            )
            name = f"hwmon:{key}" + (f" {before + 1}" if socket else "")
            sensors.append(_Sensor(path, name, label, driver, scope, refresh_ms))
        # A machine has one whole: of several sensors that nobody names, some are parts of others.
        if sum(s.scope == "node" for s in sensors) > 1:
            whole = [s for s in sensors if s.scope == "node" and f"{s.driver}/{s.label}" not in self._scopes]
            left_out += [f"{s.driver}/{s.label}, of several that may be the machine" for s in whole]
            sensors = [s for s in sensors if s not in whole]
        return sensors, left_out


def _scope(driver: str, label: str, whole: set[str]) -> Scope | None:
    if driver == "power_meter":
        kind, power, socket = label.partition(" Power ")
        if not power:
            return "node"
        if kind == "Grace":
            return "cpu"
        if kind in ("CPU", "SysIO") and socket not in whole:
            return "cpu"
        return None
    labels = _CPU_DRIVERS.get(driver)
    return "cpu" if labels is not None and labels.fullmatch(label) else None


def _channels(folder: Path) -> dict[str, Path]:
    """``{"power1": path}``; the average where a channel has both, since it misses nothing between two polls."""
    try:
        entries = set(os.listdir(folder))
    except OSError:
        return {}
    channels: dict[str, Path] = {}
    for quantity in ("average", "input"):
        for entry in sorted(entries):
            match = re.fullmatch(rf"(power\d+)_{quantity}", entry)
            if match:
                channels.setdefault(match[1], folder / entry)
    return channels


def _is_power(microwatts: int) -> bool:
    """Whether it is one, and no register that was never written: firmware counts in watts, milliwatts or microwatts."""
    fine = all(is_fine_power(microwatts // unit) for unit in (1, 1_000) if microwatts % unit == 0)
    return fine and (microwatts % 1_000_000 != 0 or is_watts(microwatts // 1_000_000))


def _number(sensor: _Sensor) -> int:
    return number_of(
        sensor.path,
        f"hwmon: reading {sensor.label}",
        f"hwmon: {sensor.label} may not be read: sudo chmod a+r {sensor.path}"
        f" (to keep it: a line 'z {sensor.path} 0444' in /etc/tmpfiles.d/)",
    )
