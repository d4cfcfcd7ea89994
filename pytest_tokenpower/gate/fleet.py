"""A pool of boards of one model, from the runs and the calibrations of a store."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_tokenpower.core.records import MeasurementRecord
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import StoreError
from pytest_tokenpower.gate.evidence import Boards, board_of, devices_of, runs_of, waiting_of
from pytest_tokenpower.gate.history import Line
from pytest_tokenpower.stats.boards import calibration
from pytest_tokenpower.stats.comparison import readings
from pytest_tokenpower.stats.fleet import (
    Drifting,
    Standing,
    calibrated_standings,
    deviations,
    drifts,
    standings,
)
from pytest_tokenpower.stats.learning import learn_noise
from pytest_tokenpower.stats.levels import split_levels
from pytest_tokenpower.stats.scatter import DEFAULT_NOISE
from pytest_tokenpower.store.calibrations import STALE_DAYS, CalibrationRecord
from pytest_tokenpower.store.store import Store


@dataclass(frozen=True)
class CalibrationState:
    """A board's newest calibration, and what came of its work since the first one with the same driver."""

    driver: str
    days_old: float
    count: int
    change: float | None
    change_days: float
    standing: Standing | None = None

    @property
    def stale(self) -> bool:
        """Whether the gate does not use it any more."""
        return self.days_old > STALE_DAYS


@dataclass(frozen=True)
class FleetBoard:
    """One board (or the boards of one run): what is stored of it, and how it stands among the others.

    ``uncalibrated`` are those of its devices that no calibration in use is of, with the driver of the newest run.
    """

    board: str
    hosts: tuple[str, ...] = ()
    tests: int = 0
    measurements: int = 0
    occasions: int = 0
    last: float | None = None
    standing: Standing | None = None
    drift: Drifting | None = None
    calibration: CalibrationState | None = None
    uncalibrated: tuple[str, ...] = ()

    @property
    def off(self) -> bool:
        """Whether its runs or its calibration say that it differs by more than boards do."""
        of_calibration = self.calibration.standing if self.calibration else None
        return any(each is not None and each.off for each in (self.standing, of_calibration))


@dataclass(frozen=True)
class Fleet:
    """The boards of one model; ``at_one_pace``: differences of hosts' pace are taken out."""

    model: str
    boards: tuple[FleetBoard, ...]
    at_one_pace: bool = False


def measurements_on(store: Store, line: Line, text: str = "") -> list[tuple[MeasurementRecord, int]]:
    """Return the comparable measurements along a line, oldest first, with their accepted level.

    Args:
        store: whose runs.
        line: the stored runs along a branch.
        text: only tests whose ids hold it.
    """
    found = []
    for entry in reversed(line.entries):
        try:
            for test, place in store.contents(entry).measurements.items():
                if place.comparable and text in test:
                    measured = store.dated(entry, test)
                    level = line.accepted.level(entry.commit, test) if line.accepted else 0
                    found.append((measured, level))
        except StoreError:
            continue  # Named in store.problems.
    return found


def model_of(key: Mapping[str, Fact]) -> str:
    """Return the GPUs of a key in words (2x NVIDIA H100; unlike ones with a plus); "" where it has none."""
    groups = [name.removesuffix(".name") for name in key if re.fullmatch(r"gpu\d*\.name", name)]
    return " + ".join(_group(key[f"{each}.name"], key.get(f"{each}.count")) for each in groups)


def _group(name: Fact, count: Fact) -> str:
    return f"{count}x {name}" if isinstance(count, int) and count > 1 else str(name)


def fleets(
    measured: Sequence[tuple[MeasurementRecord, int]], calibrations: Iterable[CalibrationRecord]
) -> tuple[Fleet, ...]:
    """Return the boards of each model that runs or calibrations tell of; a board without a name of its own is none."""
    kept = sorted(calibrations, key=lambda one: one.made)
    usable = [(one, level) for one, level in measured if board_of(one) and model_of(one.key)]
    models = dict.fromkeys([*(model_of(one.key) for one, _ in usable), *(one.name for one in kept)])
    boards = Boards.of(kept)
    return tuple(
        _fleet(
            model,
            [(one, level) for one, level in usable if model_of(one.key) == model],
            [one for one in kept if one.name == model],
            boards,
        )
        for model in models
    )


def _fleet(
    model: str,
    measured: Sequence[tuple[MeasurementRecord, int]],
    kept: Sequence[CalibrationRecord],
    boards: Boards,
) -> Fleet:
    records = [one for one, _ in measured]
    # All tests at once: what ran within an hour on one host is one occasion of all of them.
    runs = runs_of(records)
    tests: dict[str, list[int]] = {}
    for at, one in enumerate(records):
        tests.setdefault(f"{one.test} {sorted(one.key.items())}", []).append(at)
    levels = {}
    for test, places in tests.items():
        accepted = [measured[at][1] for at in places]
        starts = [at for at in range(1, len(accepted)) if accepted[at] != accepted[at - 1]]
        levels[test] = split_levels([runs[at] for at in places], starts=starts)
    waiting = waiting_of(records, boards)
    read = [readings(each, waiting) for each in levels.values()]
    paced = [work for _, work in read if work is not None]
    at_one_pace = bool(read) and len(paced) == len(read)
    started: dict[str, float] = {}
    for run, one in zip(runs, records, strict=True):
        if run.occasion and one.started is not None:
            started[run.occasion] = min(one.started, started.get(run.occasion, math.inf))
    units = deviations(paced if at_one_pace else [total for total, _ in read], started)
    # What is believed of the boards' spread must not come from these boards once more.
    learned = learn_noise({**levels, "": ()}, waiting)[""] if levels else DEFAULT_NOISE
    stand, drifting = standings(units, replace(learned, board=DEFAULT_NOISE.board)), drifts(units)
    states = _states(kept)
    found = []
    for board in dict.fromkeys([*(run.board for run in runs), *states]):
        own = [at for at, run in enumerate(runs) if run.board == board]
        begun = [each for at in own if (each := records[at].started) is not None]
        devices = devices_of(records[own[0]]) if own else (board,)
        found.append(
            FleetBoard(
                board,
                tuple(dict.fromkeys(records[at].host for at in own if records[at].host)),
                len({records[at].test for at in own}),
                len(own),
                len({runs[at].occasion for at in own}),
                max(begun, default=None),
                stand.get(board),
                drifting.get(board),
                states.get(board),
                tuple(
                    each
                    for each in devices
                    if each not in boards.calibrations
                    or any(not boards.holds_for(records[at], each) for at in own[-1:])
                ),
            )
        )
    return Fleet(model, tuple(sorted(found, key=lambda one: one.board)), at_one_pace)


def _states(kept: Sequence[CalibrationRecord]) -> dict[str, CalibrationState]:
    newest = {one.device: one for one in kept}
    now = {device: _log_joules(one) for device, one in newest.items()}
    stand: dict[str, Standing] = {}
    for driver in dict.fromkeys(one.driver for one in newest.values()):
        stand |= calibrated_standings(
            {device: now[device] for device, one in newest.items() if one.driver == driver}
        )
    found = {}
    for device, one in newest.items():
        same = [each for each in kept if each.device == device and each.driver == one.driver]
        several = len(same) > 1
        found[device] = CalibrationState(
            one.driver,
            one.days_old(),
            sum(each.device == device for each in kept),
            math.expm1(now[device] - _log_joules(same[0])) if several else None,
            (one.made - same[0].made).total_seconds() / 86_400,
            stand.get(device),
        )
    return found


def _log_joules(one: CalibrationRecord) -> float:
    return calibration({name: (each.value, each.stderr) for name, each in one.pieces.items()}).log_joules
