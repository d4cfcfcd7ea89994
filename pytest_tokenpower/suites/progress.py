"""How far a sweep is: what becomes of each cell, and the time that is left. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import msgspec

from pytest_tokenpower.suites.estimate import Estimate, Machine, estimate, load_seconds
from pytest_tokenpower.suites.grid import Suite
from pytest_tokenpower.suites.order import visits


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """What pytest says of a cell as it goes along; ``outcome`` is "" when it begins.

    With ``selected`` it is said of the whole sweep: which cells will be run.
    """

    cell: str
    outcome: str = ""
    reason: str = ""
    seconds: float = 0.0
    figures: dict[str, float] = {}
    selected: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """A cell in its turn: its name, what is foretold of it, and the seconds of loading that come before it."""

    cell: str
    foretold: Estimate
    load_seconds: float


def plan(suite: Suite, machine: Machine) -> tuple[Step, ...]:
    """Every cell in the order in which it is measured."""
    steps = []
    for visit in visits(suite):
        loading = load_seconds(str(suite.engine(visit.cells[0].values["engine"]).adapter))
        for cell in visit.cells:
            foretold = estimate(suite, cell, machine)
            steps.append(Step(visit.name(cell), foretold, 0.0 if foretold.skipped else loading))
            loading = 0.0 if not foretold.skipped else loading
    return tuple(steps)


@dataclass
class Progress:
    """What is known so far; ``began`` and times are seconds of one clock."""

    steps: Sequence[Step]
    began: float
    ended: dict[str, Event] = field(default_factory=dict)
    running: str = ""
    _last: float = 0.0

    def take(self, event: Event, now: float) -> None:
        """Take note of an event."""
        if event.selected:
            chosen = set(event.selected)
            self.steps = _of(self.steps, chosen)
            return
        if not event.outcome:
            self.running = event.cell
            return
        self.ended[event.cell] = event
        self.running = ""
        self._last = now

    def seconds_left(self, now: float) -> float | None:
        """Time that is left: the forecast of what is open, as the forecast of what is done has held; None: unknown."""
        foretold = {step.cell: self._foretold(step) for step in self.steps}
        done = sum(foretold[name] for name in self.ended if name in foretold)
        open_ = sum(seconds for name, seconds in foretold.items() if name not in self.ended)
        if not open_:
            return 0.0
        # Before much is done the forecast is all that there is; what is running counts as it was foretold.
        spent = max(self._last - self.began, 0.0)
        if not sum(foretold.values()):
            return None
        factor = (spent + _TRUST_S) / (done + _TRUST_S)
        since = now - (self._last or self.began)
        return max(open_ * factor - since, 0.0)

    def _foretold(self, step: Step) -> float:
        if step.foretold.skipped:
            return 0.0
        return step.load_seconds + (_UNKNOWN_S if step.foretold.seconds is None else step.foretold.seconds)

    @property
    def outcomes(self) -> Mapping[str, int]:
        """How many cells ended how."""
        found: dict[str, int] = {}
        for event in self.ended.values():
            found[event.outcome] = found.get(event.outcome, 0) + 1
        return found


def _of(steps: Sequence[Step], cells: Set[str]) -> list[Step]:
    """Leave the other cells out: what loads an engine is the first of those that are left."""
    kept, loading = [], 0.0
    for step in steps:
        loading = max(loading, step.load_seconds)
        if step.cell in cells:
            kept.append(replace(step, load_seconds=loading))
            loading = 0.0
    return kept


_TRUST_S = 30.0
"""So many seconds the forecast is worth against what was seen of it."""

_UNKNOWN_S = 30.0
"""What a cell takes of which nothing is foretold."""
