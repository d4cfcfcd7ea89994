"""AMD GPUs through amdsmi: the energy accumulator, power and temperature of each board."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import MeterError, MeterUnavailable
from pytest_tokenpower.meters.adapters.amd_visible import ListedDie, card_of, serial_of, visible_dies, without
from pytest_tokenpower.meters.adapters.no_reading import is_counted, is_watts
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.types import Conditions, CounterReading, Device, PowerSamples, Reading


@dataclass(frozen=True)
class _Board:
    """What is measured: a card, through the die (``handle``) that reports it; without a counter its power is summed."""

    handle: Any
    id: str
    counter: bool = True


class AmdMeter:
    """The AMD GPUs that the environment leaves visible: energy counter, power as points, temperature.

    The accumulator (``amdsmi_get_energy_count``) counts units of ``counter_resolution`` microjoules (15.3). In a guest
    it is dead, and on some boards it sticks: where it gives nothing the power is integrated instead, which is said; one
    that stands still is found when the counter is held against the power.

    A card of two dies (MI250) reports all of its energy on its first die and nothing on the second: the card is
    measured once, whichever of its dies is used, and is called so. So is a board that is partitioned (MI300), if all
    partitions are visible; of a board of which others may use a part no figure is given.
    """

    name = "amd"
    poll_interval_s = 0.1

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = os.environ if environment is None else environment
        self._smi: ModuleType | None = None
        self._boards: list[_Board] = []

    def open(self, clock: Clock) -> Sequence[Device]:
        """List the boards; raises MeterUnavailable with the reason and the remedy."""
        self._smi = _load()
        try:
            self._call("amdsmi_init", "the driver")
            handles = self._call("amdsmi_get_processor_handles", "the driver")
            if not handles:
                raise MeterError("AMD: amdsmi lists no GPU")
            dies = [self._die(index, handle) for index, handle in enumerate(handles)]
            used = visible_dies(dies, self._environment)
            devices = []
            for card in dict.fromkeys(card_of(die, dies) for die in used):
                mine = [die for die in used if card_of(die, dies) == card]
                devices.append(self._card(card, mine, dies))
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
            if board.counter:
                try:
                    energy_uj = self._energy_uj(board.handle, board.id)
                except MeterError as error:
                    fault = str(error)
                else:
                    counters = (CounterReading(t0_ns, clock.monotonic_ns(), energy_uj),)
            t1_ns = clock.monotonic_ns()
            watts = self._watts(board.handle)
            t2_ns = clock.monotonic_ns()
            power = None if watts is None else PowerSamples.point(t1_ns, t2_ns, watts * 1000)
            if power is None and not board.counter:
                fault = f"AMD: amdsmi_get_power_info on {board.id} gives no power, and there is no counter"
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

    def _die(self, index: int, handle: Any) -> ListedDie:
        """Return a die as it can be named; what it does not tell is absent, for it may not be ours."""
        uuid = self._optional("amdsmi_get_gpu_device_uuid", handle)
        asic = _table(self._optional("amdsmi_get_gpu_asic_info", handle))
        listed = _table(self._optional("amdsmi_get_gpu_enumeration_info", handle))
        hip_id = listed.get("hip_id")
        reports = self._counted_uj(handle) is not None or self._watts(handle) is not None
        return ListedDie(
            index=index,
            handle=handle,
            uuid=uuid if isinstance(uuid, str) else None,
            serial=serial_of(asic.get("asic_serial")),
            hip_uuid=str(listed.get("hip_uuid") or ""),
            hip_id=hip_id if isinstance(hip_id, int) else None,
            model=str(asic.get("market_name") or ""),
            reports=reports,
        )

    def _card(self, card: ListedDie, used: Sequence[ListedDie], dies: Sequence[ListedDie]) -> Device:
        """Describe a card; raises MeterError where it reports nothing, or where not all of it is ours."""
        smi, handle = self._smi, card.handle
        assert smi is not None
        all_dies = [die for die in dies if card_of(die, dies) == card]
        where = f"GPU {card.index} ({card.uuid})" if card.uuid else f"GPU {card.index}"
        if card.uuid is None:
            self._call("amdsmi_get_gpu_device_uuid", where, handle)
            raise MeterError(f"AMD: {where} has no UUID")
        two_dies = len(all_dies) > 1 and not any(die.reports for die in all_dies if die != card)
        if len(used) < len(all_dies) and not two_dies:
            raise MeterError(
                f"AMD: {where} is partitioned, and {len(used)} of its {len(all_dies)} partitions are visible: the"
                " energy is that of the whole board; make all of them visible, or do not partition it"
                " (amd-smi set -C SPX)"
            )
        counted_uj = self._counted_uj(handle)
        if counted_uj is None and self._watts(handle) is None:
            chosen = any(self._environment.get(f"{each}_VISIBLE_DEVICES") for each in ("ROCR", "HIP", "CUDA"))
            rest = "" if chosen else without(card, dies)
            raise MeterError(
                f"AMD: {where} reports nothing: {self._silence(handle, where)}, and no power"
                + (f"; if the tests do not use it, hide it: ROCR_VISIBLE_DEVICES={rest}" if rest else "")
            )
        self._boards.append(_Board(handle, card.uuid, counted_uj is not None))
        asic = _table(self._optional("amdsmi_get_gpu_asic_info", handle))
        driver = _table(self._optional("amdsmi_get_gpu_driver_info", handle))
        cap = _table(self._optional("amdsmi_get_power_cap_info", handle))
        vram = _table(self._optional("amdsmi_get_gpu_vram_info", handle))
        name = _fact(asic.get("market_name"))
        version = _fact(driver.get("driver_version"))
        key_facts: dict[str, Fact] = {
            "name": name,
            "memory_mib": _fact(vram.get("vram_size")),
            "power_limit": _fact(cap.get("power_cap")),
            "driver_major": str(version).partition(".")[0] if version is not None else None,
        }
        facts: dict[str, Fact] = {
            "driver": version,
            "amdsmi": _fact(getattr(smi, "__version__", None)),
            # The counter moves in between, but is read this often; points of power are joined.
            "resolution_ms": self.poll_interval_s * 1e3 * (1 if counted_uj is not None else 5),
            "refresh_ms": self.poll_interval_s * 1e3,
        }
        title = str(name or "AMD GPU")
        if len(all_dies) > 1:
            whole = "card" if two_dies else "board"
            key_facts["dies"] = f"{len(used)} of {len(all_dies)} used, energy of the whole {whole}"
            title += f" (whole {whole} of {len(all_dies)} {'dies' if two_dies else 'partitions'})"
        if counted_uj is None:
            facts["energy_counter_error"] = self._silence(handle, where)
        return Device(
            id=card.uuid,
            scope="gpu",
            name=title,
            meter=self.name,
            provenance="measured",
            key_facts=key_facts,
            facts=facts,
        )

    def _call(self, function: str, where: str, *arguments: Any) -> Any:
        assert self._smi is not None
        try:
            return getattr(self._smi, function)(*arguments)
        except self._smi.AmdSmiException as error:
            raise MeterError(f"AMD: {function} failed on {where}: {' '.join(str(error).split())}") from error

    def _optional(self, function: str, *arguments: Any) -> Any:
        """Return what a board need not offer; None where it does not."""
        assert self._smi is not None
        try:
            return getattr(self._smi, function)(*arguments)
        except (AttributeError, self._smi.AmdSmiException):
            # Older releases have fewer functions.
            return None

    def _counted_uj(self, handle: Any) -> int | None:
        """Return the counter in microjoules; None where it gives nothing."""
        try:
            return self._energy_uj(handle, "it")
        except MeterError:
            return None

    def _silence(self, handle: Any, where: str) -> str:
        """Why there is no counter."""
        try:
            self._energy_uj(handle, where)
        except MeterError as error:
            return str(error).removeprefix("AMD: ")
        return "it counts now, and did not before"

    def _energy_uj(self, handle: Any, where: str) -> int:
        count = _table(self._call("amdsmi_get_energy_count", where, handle))
        # ROCm 6.1 and older called the accumulator "power".
        units = count.get("energy_accumulator", count.get("power"))
        resolution_uj: Any = count.get("counter_resolution")
        if not isinstance(units, int) or not is_counted(resolution_uj):
            raise MeterError(f"AMD: amdsmi_get_energy_count on {where} gave no counter: {count!r}")
        if units == 0:
            raise MeterError(
                f"AMD: the energy counter of {where} reads zero (amdsmi_get_energy_count); it works on bare metal only,"
                " not in a guest"
            )
        if not is_counted(units):
            raise MeterError(f"AMD: the energy counter of {where} gives no reading: {count!r}")
        energy_uj: int = round(units * resolution_uj)
        return energy_uj

    def _watts(self, handle: Any) -> int | None:
        """Socket power: MI300 and later fill ``current``, older boards ``average``."""
        info = _table(self._optional("amdsmi_get_power_info", handle))
        for field in ("current_socket_power", "average_socket_power"):
            watts = info.get(field)
            # Missing is "N/A", or an unsigned integer of all ones.
            if isinstance(watts, int) and is_watts(watts) and watts < 0xFFFF:
                return watts
        return None

    def _temperature(self, board: _Board) -> float | None:
        """Return the hottest point of the die, where the board tells it; else its edge."""
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


def _table(value: Any) -> Mapping[str, Any]:
    """Return what amdsmi gives by name; what it does not give has no names."""
    return value if isinstance(value, dict) else {}


def _fact(value: Any) -> Fact:
    return value if isinstance(value, str | int | float | bool) and value != "N/A" else None
