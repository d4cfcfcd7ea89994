"""AMD GPUs through amdsmi: the energy accumulator, power and temperature of each board."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import MeterError, MeterUnavailable
from pytest_tokenpower.telemetry.clock import Clock
from pytest_tokenpower.telemetry.types import Conditions, CounterReading, Device, PowerSamples, Reading


@dataclass(frozen=True)
class _Board:
    handle: Any
    id: str


class AmdMeter:
    """Every AMD GPU that amdsmi lists: energy counter (``amdsmi_get_energy_count``), power as points, temperature.

    The accumulator counts units of ``counter_resolution`` microjoules (15.3). It works on bare metal only, and
    some boards' counters stick: one that reads zero is refused here, one that stands still is found when the
    counter is held against the power.
    """

    name = "amd"
    poll_interval_s = 0.1

    def __init__(self) -> None:
        self._smi: ModuleType | None = None
        self._boards: list[_Board] = []

    def open(self, clock: Clock) -> Sequence[Device]:
        """List the boards; raises MeterUnavailable with the reason and the remedy."""
        self._smi = smi = _load()
        try:
            self._call("amdsmi_init", "the driver")
            handles = self._call("amdsmi_get_processor_handles", "the driver")
            if not handles:
                raise MeterError("AMD: amdsmi lists no GPU")
            devices = []
            for index, handle in enumerate(handles):
                where = f"GPU {index}"
                uuid = str(self._call("amdsmi_get_gpu_device_uuid", where, handle))
                where = f"GPU {index} ({uuid})"
                if not self._energy_uj(handle, where):
                    raise MeterError(
                        f"AMD: the energy counter of {where} reads zero (amdsmi_get_energy_count);"
                        " it works on bare metal only, not in a guest"
                    )
                self._boards.append(_Board(handle, uuid))
                devices.append(self._device(smi, handle, uuid, where))
        except MeterError as error:
            self.close()
            raise MeterUnavailable(str(error)) from error
        return devices

    def poll(self, clock: Clock) -> Sequence[Reading]:
        """Counter, power and conditions of each board; a counter that cannot be read is a fault."""
        readings = []
        for board in self._boards:
            counters: tuple[CounterReading, ...] = ()
            fault = None
            t0_ns = clock.monotonic_ns()
            try:
                energy_uj = self._energy_uj(board.handle, board.id)
            except MeterError as error:
                fault = str(error)
            else:
                counters = (CounterReading(t0_ns, clock.monotonic_ns(), energy_uj),)
            t1_ns = clock.monotonic_ns()
            watts = self._watts(board)
            t2_ns = clock.monotonic_ns()
            power = None
            if watts is not None:
                power = PowerSamples(
                    t_ns=np.array([(t1_ns + t2_ns) // 2], dtype=np.int64),
                    milliwatts=np.array([watts * 1000], dtype=np.int64),
                    held=False,
                )
            conditions = Conditions(t_ns=t2_ns, temperature_celsius=self._temperature(board))
            readings.append(Reading(board.id, power, counters, conditions, fault))
        return readings

    def close(self) -> None:
        """Shut amdsmi down."""
        self._boards = []
        if self._smi is not None:
            # Never initialised, or gone with the driver: there is nothing left to let go of.
            with suppress(Exception):
                self._smi.amdsmi_shut_down()
            self._smi = None

    def _device(self, smi: ModuleType, handle: Any, uuid: str, where: str) -> Device:
        asic = self._optional("amdsmi_get_gpu_asic_info", handle) or {}
        driver = self._optional("amdsmi_get_gpu_driver_info", handle) or {}
        cap = self._optional("amdsmi_get_power_cap_info", handle) or {}
        vram = self._optional("amdsmi_get_gpu_vram_info", handle) or {}
        name = _fact(asic.get("market_name"))
        version = _fact(driver.get("driver_version"))
        key_facts: dict[str, Fact] = {
            "name": name,
            "memory_mib": _fact(vram.get("vram_size")),
            "power_limit": _fact(cap.get("power_cap")),
            "driver_major": str(version).partition(".")[0] if version is not None else None,
        }
        return Device(
            id=uuid,
            scope="gpu",
            name=str(name or "AMD GPU"),
            meter=self.name,
            provenance="measured",
            key_facts=key_facts,
            facts={
                "driver": version,
                "amdsmi": _fact(getattr(smi, "__version__", None)),
                # The counter moves in between, but is read this often.
                "resolution_ms": self.poll_interval_s * 1e3,
                "refresh_ms": self.poll_interval_s * 1e3,
            },
        )

    def _call(self, function: str, where: str, *arguments: Any) -> Any:
        assert self._smi is not None
        try:
            return getattr(self._smi, function)(*arguments)
        except self._smi.AmdSmiException as error:
            raise MeterError(f"AMD: {function} failed on {where}: {' '.join(str(error).split())}") from error

    def _optional(self, function: str, *arguments: Any) -> Any:
        """What a board need not offer; None where it does not."""
        assert self._smi is not None
        try:
            return getattr(self._smi, function)(*arguments)
        except self._smi.AmdSmiException:
            return None

    def _energy_uj(self, handle: Any, where: str) -> int:
        count = self._call("amdsmi_get_energy_count", where, handle)
        # ROCm 6.1 and older called the accumulator "power".
        units = count.get("energy_accumulator", count.get("power"))
        resolution_uj = count.get("counter_resolution")
        if not isinstance(units, int) or not isinstance(resolution_uj, int | float):
            raise MeterError(f"AMD: amdsmi_get_energy_count on {where} gave no counter: {count!r}")
        return round(units * resolution_uj)

    def _watts(self, board: _Board) -> int | None:
        """Socket power: MI300 and later fill ``current``, older boards ``average``."""
        info = self._optional("amdsmi_get_power_info", board.handle) or {}
        for field in ("current_socket_power", "average_socket_power"):
            watts = info.get(field)
            # Missing is "N/A", or an unsigned integer of all ones.
            if isinstance(watts, int) and 0 < watts < 0xFFFF:
                return watts
        return None

    def _temperature(self, board: _Board) -> float | None:
        """The hottest point of the die, where the board tells it; else its edge."""
        assert self._smi is not None
        for sensor in ("HOTSPOT", "EDGE"):
            celsius = self._optional(
                "amdsmi_get_temp_metric",
                board.handle,
                getattr(self._smi.AmdSmiTemperatureType, sensor),
                self._smi.AmdSmiTemperatureMetric.CURRENT,
            )
            if isinstance(celsius, int | float) and 0 < celsius < 200:
                return float(celsius)
        return None


def _load() -> ModuleType:
    try:
        import amdsmi
    except ImportError as error:
        raise MeterUnavailable(
            "AMD: no amdsmi: install ROCm's python3-amdsmi, or the amdsmi package of the driver's release"
        ) from error
    except Exception as error:
        # Without libamd_smi.so the module's import fails with a KeyError, AttributeError or OSError.
        raise MeterUnavailable(
            f"AMD: amdsmi cannot be imported, ROCm's libamd_smi.so is missing or of another release ({error!r})"
        ) from error
    module: ModuleType = amdsmi
    return module


def _fact(value: Any) -> Fact:
    return value if isinstance(value, str | int | float | bool) and value != "N/A" else None
