"""From records to the runs that the statistics compare: what each took, where, when and on which boards. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_tokenpower.analysis.rounds import gated, good
from pytest_tokenpower.core.denominators import denominator
from pytest_tokenpower.core.records import MeasurementRecord, WaitingRecord
from pytest_tokenpower.stats.boards import Calibration, calibration
from pytest_tokenpower.stats.comparison import Run
from pytest_tokenpower.stats.occasions import occasions
from pytest_tokenpower.stats.pace import Waiting, assumed_waiting
from pytest_tokenpower.store.calibrations import STALE_DAYS, CalibrationRecord

_UUID = re.compile(r"(GPU-)?[0-9a-f]{8}-", re.IGNORECASE)


@dataclass(frozen=True)
class Boards:
    """What calibrations tell of devices, by their ids: the watts of waiting, and what fixed work takes.

    Each holds for the driver that it was made with; ``stale`` are those that are too old to be used.
    """

    waiting: Mapping[str, WaitingRecord] = field(default_factory=dict)
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    drivers: Mapping[str, str] = field(default_factory=dict)
    stale: frozenset[str] = frozenset()

    @classmethod
    def of(cls, found: Iterable[CalibrationRecord]) -> Boards:
        """Return what stored calibrations tell now."""
        # Of two stores that know a board, the newer calibration tells.
        every = sorted(found, key=lambda one: one.made)
        fresh = [one for one in every if one.days_old() <= STALE_DAYS]
        return cls(
            {one.device: one.waiting for one in fresh},
            {
                one.device: calibration(
                    {name: (each.value, each.stderr) for name, each in one.pieces.items()}
                )
                for one in fresh
            },
            {one.device: one.driver for one in fresh},
            frozenset(one.device for one in every) - {one.device for one in fresh},
        )

    def holds_for(self, measurement: MeasurementRecord, device: str) -> bool:
        """Whether a device was calibrated with the driver that a measurement was made with."""
        driver = measurement.facts.get(f"{device}.driver")
        return driver is None or device not in self.drivers or str(driver) == self.drivers[device]


def devices_of(measurement: MeasurementRecord) -> tuple[str, ...]:
    """Return the ids of the devices whose joules are in the figure."""
    return tuple(sorted({name for one in measurement.rounds for name in one.device_joules}))


def board_of(measurement: MeasurementRecord) -> str:
    """Return what is one board to the statistics: the UUIDs of the devices; without one the device of this host.

    "" is not known: a device without a UUID, of a host that is not known.
    """
    devices = devices_of(measurement)
    if not devices or (not measurement.host and not all(map(_UUID.match, devices))):
        return ""
    return "+".join(each if _UUID.match(each) else f"{measurement.host}:{each}" for each in devices)


def runs_of(measurements: Sequence[MeasurementRecord]) -> list[Run]:
    """Return the runs of measurements that are compared with each other, in the order given.

    Occasions are told by all of them together. A board is in one host: containers call it by ever new names.
    """
    boards = [board_of(one) for one in measurements]
    first: dict[str, str] = {}
    for board, one in zip(boards, measurements, strict=True):
        if board and one.host:
            first.setdefault(board, one.host)
    hosts = [first.get(board, one.host) for board, one in zip(boards, measurements, strict=True)]
    known = [at for at, one in enumerate(measurements) if one.started is not None]
    named = dict(
        zip(
            known,
            occasions([measurements[at].started or 0.0 for at in known], [hosts[at] for at in known]),
            strict=True,
        )
    )
    return [
        _run(one, board, host, named.get(at, ""))
        for at, (one, board, host) in enumerate(zip(measurements, boards, hosts, strict=True))
    ]


def _run(one: MeasurementRecord, board: str, host: str, occasion: str) -> Run:
    parts = gated(one.rounds, denominator(one.key))
    celsius = [each.record.temperature_celsius for each in good(one.rounds)]
    return Run(
        joules_per_token=tuple(each.joules / each.units for each in parts),
        seconds_per_token=tuple(each.seconds / each.units for each in parts),
        temperatures_celsius=() if None in celsius else tuple(each for each in celsius if each is not None),
        meter_errors=tuple(each.stderr_joules / each.joules for each in parts),
        board=board,
        host=host,
        occasion=occasion,
    )


def waiting_of(measurements: Sequence[MeasurementRecord], boards: Boards) -> dict[str, Waiting]:
    """Return each board's waiting watts: calibrated, or guessed from its limit."""
    found: dict[str, Waiting] = {}
    guessed: dict[str, Waiting] = {}
    lacking: set[str] = set()
    for one in measurements:
        board, devices = board_of(one), devices_of(one)
        limit = one.key.get("gpu.power_limit_watts")
        if one.provenance == "measured" and one.scope == "gpu" and isinstance(limit, (int, float)) and limit:
            guessed[board] = assumed_waiting(limit * len(devices))
        held = {name: each for name, each in boards.waiting.items() if boards.holds_for(one, name)}
        if (calibrated := _of_devices(devices, held)) is not None:
            found[board] = calibrated
        else:
            lacking.add(board)
    return {**guessed, **{board: each for board, each in found.items() if board not in lacking}}


def _of_devices(devices: Sequence[str], known: Mapping[str, WaitingRecord]) -> Waiting | None:
    if not devices or any(each not in known for each in devices):
        return None
    each = [known[name] for name in devices]
    celsius = [one.celsius for one in each if one.celsius is not None]
    return Waiting(
        sum(one.watts for one in each),
        math.hypot(*(one.stderr for one in each)),
        sum(celsius) / len(celsius) if len(celsius) == len(each) else None,
    )


def calibrations_of(measurements: Sequence[MeasurementRecord], boards: Boards) -> dict[str, Calibration]:
    """Return the calibration of each board that has one; of several devices the mean."""
    found: dict[str, Calibration] = {}
    lacking: set[str] = set()
    for one in measurements:
        each = [
            boards.calibrations.get(name) if boards.holds_for(one, name) else None for name in devices_of(one)
        ]
        known = [one for one in each if one is not None]
        if known and len(known) == len(each):
            found[board_of(one)] = Calibration(
                sum(one.log_joules for one in known) / len(known),
                math.hypot(*(one.stderr for one in known)) / len(known),
            )
        else:
            # Of another driver, say: what a board takes under one tells nothing of its runs under another.
            lacking.add(board_of(one))
    return {board: each for board, each in found.items() if board not in lacking}
