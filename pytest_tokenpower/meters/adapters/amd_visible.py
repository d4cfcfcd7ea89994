"""Which AMD GPUs a HIP program sees: ROCR_VISIBLE_DEVICES, then HIP_VISIBLE_DEVICES or CUDA_VISIBLE_DEVICES.

The first is the runtime's: it hides devices, and what is left is counted anew. The second is HIP's; where it is empty
HIP reads CUDA_VISIBLE_DEVICES. Both stop at the first entry that is no device.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_tokenpower.errors import MeterUnavailable

_UUID = re.compile(
    r"([0-9a-f]{2})ff[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{2}([0-9a-f]{2})-([0-9a-f]{12})"
)
"""amdsmi's UUID of a die holds its serial number, beside the device's id and the partition's number."""

_DUAL_DIE = re.compile(r"MI250X?\b")


@dataclass(frozen=True)
class ListedDie:
    """A die (or partition) as amdsmi lists it; ``reports`` says whether energy or power is to be had from it."""

    index: int
    handle: Any = field(compare=False)
    uuid: str | None
    serial: str | None = None
    hip_uuid: str = ""
    hip_id: int | None = None
    model: str = ""
    reports: bool = True

    @property
    def unique_id(self) -> str | None:
        """The serial number by which the runtime calls it ("GPU-" and 16 digits)."""
        if self.serial is not None:
            return self.serial
        match = _UUID.fullmatch((self.uuid or "").lower())
        return serial_of("".join(match.groups())) if match else None


def serial_of(value: object) -> str | None:
    """Return a serial number as 16 digits; None where there is none ("N/A", zero, or all ones), as in a guest."""
    text = str(value or "").lower().removeprefix("0x").zfill(16)
    return text if re.fullmatch("(?!0+$|f+$)[0-9a-f]{16}", text) else None


def without(die: ListedDie, dies: Sequence[ListedDie]) -> str:
    """Return the value of ROCR_VISIBLE_DEVICES that hides a card; empty where nothing else is there."""
    card = card_of(die, dies)
    return ",".join(
        str(number) for number, other in enumerate(_in_the_order_of_hip(dies)) if card_of(other, dies) != card
    )


def visible_dies(dies: Sequence[ListedDie], environment: Mapping[str, str]) -> list[ListedDie]:
    """Return the dies that the environment leaves, in its order.

    Raises MeterUnavailable where that is none or unclear.
    """
    seen = _in_the_order_of_hip(dies)
    hip = "HIP_VISIBLE_DEVICES" if environment.get("HIP_VISIBLE_DEVICES") else "CUDA_VISIBLE_DEVICES"
    if "ROCR_VISIBLE_DEVICES" in environment:
        seen = _named("ROCR_VISIBLE_DEVICES", environment["ROCR_VISIBLE_DEVICES"], seen)
    if environment.get(hip):
        seen = _named(hip, environment[hip], seen)
    elif environment.get("GPU_DEVICE_ORDINAL") and len(seen) > 1:
        raise MeterUnavailable(
            "AMD: GPU_DEVICE_ORDINAL hides GPUs from some programs only: use ROCR_VISIBLE_DEVICES or"
            " HIP_VISIBLE_DEVICES"
        )
    return seen


def _in_the_order_of_hip(dies: Sequence[ListedDie]) -> list[ListedDie]:
    numbers = [die.hip_id for die in dies if die.hip_id is not None]
    if len(set(numbers)) < len(dies):
        return list(dies)  # ROCm before 6.4 does not tell it; its lists are in the order of the bus
    return sorted(dies, key=lambda die: die.hip_id or 0)


def _named(variable: str, value: str, seen: Sequence[ListedDie]) -> list[ListedDie]:
    chosen: list[ListedDie] = []
    for part in (part.strip() for part in value.split(",")):
        if part.lower().startswith("gpu-"):
            matches = [die for die in seen if _is_called(die, part.lower())]
            if len(matches) > 1:
                raise MeterUnavailable(f"AMD: {variable} names {part}, which is several GPUs")
            if not matches:
                break
            chosen.append(matches[0])
        elif part.isdecimal() and int(part) < len(seen):
            chosen.append(seen[int(part)])
        else:
            break
    if not chosen:
        raise MeterUnavailable(
            f"AMD: {variable}={value} leaves no AMD GPU visible (there are {len(seen)}: "
            f"{', '.join(f'GPU-{die.unique_id or die.uuid}' for die in seen)})"
        )
    return list(dict.fromkeys(chosen))


def _is_called(die: ListedDie, name: str) -> bool:
    names = (die.hip_uuid.lower(), f"gpu-{die.unique_id}", f"gpu-{(die.uuid or '').lower()}")
    return any(each == name for each in names)


def card_of(die: ListedDie, dies: Sequence[ListedDie]) -> ListedDie:
    """Return the die that reports the energy of the card that ``die`` is on.

    Itself, but for second dies and partitions.

    Partitions of one board have its serial number. The second die of an MI250 reports nothing; it is listed after the
    first.
    """
    serial = die.unique_id
    if serial is not None:
        die = next(each for each in dies if each.unique_id == serial)
    if die.reports or not _DUAL_DIE.search(die.model):
        return die
    before = [each for each in dies if each.index < die.index and each.reports and each.model == die.model]
    return before[-1] if before and die.index - before[-1].index == 1 else die
