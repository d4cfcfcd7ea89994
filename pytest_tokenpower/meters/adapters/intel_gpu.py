"""Intel GPUs through hwmon: the energy counter of cards that the drivers xe and i915 run (Arc, Flex, Max)."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_tokenpower.errors import MeterError, MeterUnavailable
from pytest_tokenpower.meters.adapters._sysfs import number_of, text_of
from pytest_tokenpower.meters.adapters.hwmon import HWMON
from pytest_tokenpower.meters.adapters.no_reading import is_counted
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.types import CounterReading, Device, Reading

DRIVERS = ("xe", "i915")
"""Names of the chips that are whole cards; ``i915_gt0`` and the like are tiles, parts of one."""

MOVES_WITHIN_S = 2.0
"""A card draws watts when it idles, so that a counter of microjoules which stands still for so long is dead."""

_PCI = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_NUMBER = re.compile(r"[0-9]+")


@dataclass
class _Card:
    id: str
    path: Path
    channel: str
    driver: str
    name: str
    last_uj: int = 0


class IntelGpuMeter:
    """The card's counter (``energy1_input``, "card"), or where a card has none its chip's (``energy2_input``, "pkg").

    Microjoules, which the driver adds up from a register of 32 bits: it must be read at least every few minutes.
    Integrated GPUs have no such counter, they are part of the CPU's package. Untried on hardware.

    ``pause`` waits between two looks at a counter that has to move when the meter is opened.
    """

    name = "intel"
    poll_interval_s = 0.1

    def __init__(
        self,
        root: Path = HWMON,
        environment: Mapping[str, str] | None = None,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._root = root
        self._environment = os.environ if environment is None else environment
        self._pause = pause
        self._cards: list[_Card] = []

    def open(self, clock: Clock) -> Sequence[Device]:
        """Find the cards that are visible and whose counters move; raises MeterUnavailable."""
        found = self._find()
        if not any(card.channel for card in found):
            raise MeterUnavailable(
                f"Intel GPU: no meter, {self._root} has no energy counter of the drivers xe or i915 (they give one for"
                " cards, from Linux 6.2 on, and none for GPUs that are part of a CPU)"
            )
        cards = self._visible(found)
        silent = [card.id for card in cards if not card.channel]
        if silent:
            raise MeterUnavailable(
                f"Intel GPU: {', '.join(silent)} has no energy counter, and the other cards' is not all of it; leave "
                "it out by ZE_AFFINITY_MASK, with ZE_ENABLE_PCI_ID_DEVICE_ORDER=1"
            )
        try:
            for card in cards:
                self._check_moves(card)
        except MeterError as error:
            raise MeterUnavailable(str(error)) from error
        self._cards = cards
        return [
            Device(
                id=card.id,
                scope="gpu",
                name=card.name,
                meter=self.name,
                provenance="measured",
                key_facts={"driver": card.driver, "channel": card.channel, "model": card.name},
                facts={
                    "resolution_ms": self.poll_interval_s * 1e3,
                    "refresh_ms": self.poll_interval_s * 1e3,
                    "counter": str(card.path),
                },
            )
            for card in cards
        ]

    def poll(self, clock: Clock) -> Sequence[Reading]:
        """One reading of each counter; one that cannot be read, or falls, is a fault."""
        readings = []
        for card in self._cards:
            t0_ns = clock.monotonic_ns()
            try:
                now_uj = _read(card)
                if now_uj < card.last_uj:
                    card.last_uj, before_uj = now_uj, card.last_uj
                    raise MeterError(
                        f"Intel GPU: the energy counter of {card.id} went from {before_uj} to {now_uj} µJ: the driver"
                        " was loaded anew"
                    )
            except MeterError as error:
                readings.append(Reading(card.id, fault=str(error)))
                continue
            card.last_uj = now_uj
            readings.append(Reading(card.id, counters=(CounterReading(t0_ns, clock.monotonic_ns(), now_uj),)))
        return readings

    def close(self) -> None:
        """Forget the cards."""
        self._cards = []

    def _find(self) -> list[_Card]:
        """Return the cards, in the order of the bus; one without a counter has no channel."""
        cards: list[_Card] = []
        for chip in sorted(self._root.glob("hwmon*")):
            driver = text_of(chip / "name")
            if driver not in DRIVERS:
                continue
            labels = {
                text_of(chip / f"energy{number}_label") or ("card" if number == 1 else ""): number
                for number in (2, 1)
                if (chip / f"energy{number}_input").exists()
            }
            channel = next((each for each in ("card", "pkg") if each in labels), "")
            device = (chip / "device").resolve()
            known = _PCI.fullmatch(device.name) is not None
            number = text_of(device / "device").removeprefix("0x")
            cards.append(
                _Card(
                    id=f"intel:{device.name if known else chip.name}",
                    path=chip / f"energy{labels.get(channel, 1)}_input",
                    channel=channel,
                    driver=driver,
                    name=f"Intel GPU {number}" if number else "Intel GPU",
                )
            )
        return sorted(cards, key=lambda card: card.id)

    def _tiles(self) -> bool:
        """Whether a card has several tiles, each of which is a chip of its own here and a device to Level Zero."""
        return any(
            re.fullmatch(r"(i915|xe)_gt[1-9]", text_of(chip / "name")) for chip in self._root.glob("hwmon*")
        )

    def _visible(self, found: Sequence[_Card]) -> list[_Card]:
        """Return the cards that ZE_AFFINITY_MASK leaves; raises MeterUnavailable where that cannot be said."""
        mask = self._environment.get("ZE_AFFINITY_MASK")
        selector = self._environment.get("ONEAPI_DEVICE_SELECTOR")
        if selector and len(found) > 1:
            raise MeterUnavailable(
                f"Intel GPU: ONEAPI_DEVICE_SELECTOR={selector} is not understood here: choose the cards by"
                " ZE_AFFINITY_MASK, with ZE_ENABLE_PCI_ID_DEVICE_ORDER=1"
            )
        if not mask:
            return list(found)
        numbers = [part.strip() for part in mask.split(",")]
        if any("." in each for each in numbers):
            raise MeterUnavailable(
                f"Intel GPU: ZE_AFFINITY_MASK={mask} names tiles: the counter is the whole card's, so the energy of one"
                " tile cannot be measured; name whole cards"
            )
        if self._tiles() and self._environment.get("ZE_FLAT_DEVICE_HIERARCHY") != "COMPOSITE":
            raise MeterUnavailable(
                f"Intel GPU: ZE_AFFINITY_MASK={mask} counts tiles here, and the counter is the whole card's: set"
                " ZE_FLAT_DEVICE_HIERARCHY=COMPOSITE and name whole cards"
            )
        if len(found) > 1 and self._environment.get("ZE_ENABLE_PCI_ID_DEVICE_ORDER") != "1":
            raise MeterUnavailable(
                f"Intel GPU: ZE_AFFINITY_MASK={mask} counts in Level Zero's order, which is not known here: set"
                " ZE_ENABLE_PCI_ID_DEVICE_ORDER=1"
            )
        chosen = [found[int(each)] for each in numbers if _NUMBER.fullmatch(each) and int(each) < len(found)]
        if not chosen:
            raise MeterUnavailable(f"Intel GPU: ZE_AFFINITY_MASK={mask} leaves none of {len(found)} visible")
        return list({card.id: card for card in chosen}.values())

    def _check_moves(self, card: _Card) -> None:
        first_uj = card.last_uj = _read(card)
        waited_s = 0.0
        while card.last_uj == first_uj:
            if waited_s >= MOVES_WITHIN_S:
                raise MeterError(
                    f"Intel GPU: the energy counter of {card.id} stands still at {first_uj} µJ ({card.path})"
                )
            self._pause(0.1)
            waited_s += 0.1
            card.last_uj = _read(card)


def _read(card: _Card) -> int:
    microjoules = number_of(card.path, f"Intel GPU: reading {card.id}")
    if not is_counted(microjoules):
        raise MeterError(
            f"Intel GPU: the energy counter of {card.id} reads {microjoules} µJ, which is no reading ({card.path})"
        )
    return microjoules
