"""In which order the cells of a suite are measured: each engine is loaded once a run, and drift is balanced."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from pytest_tokenpower.suites.grid import Cell, Suite

T = TypeVar("T")


@dataclass(frozen=True)
class Visit:
    """An engine's cells in the order in which one process measures them; runs and places are counted from 1 and 0."""

    group: str
    run: int
    first: int
    cells: tuple[Cell, ...]

    def name(self, cell: Cell) -> str:
        """Return a cell's name; from the second run on with its number."""
        return cell.name if self.run == 1 else f"{cell.name}@run{self.run}"


def visits(suite: Suite) -> tuple[Visit, ...]:
    """Order the engines by chance, every other run the other way round, and the cells of each anew by chance.

    The chance is the suite's seed. Going there and back has what drifts evenly cancel out between engines.
    """
    head, groups = suite.table.suite, suite.groups
    engines = _shuffled(tuple(groups), f"{head.seed}")
    found: list[Visit] = []
    first = 0
    for run in range(1, head.runs + 1):
        for group in engines if run % 2 else engines[::-1]:
            cells = _shuffled(groups[group], f"{head.seed}/{run}/{group}")
            found.append(Visit(group, run, first, cells))
            first += len(cells)
    return tuple(found)


def _shuffled(these: Sequence[T], seed: str) -> tuple[T, ...]:
    # Python promises to keep the sequence of random() for a seed, and of nothing else.
    draw = random.Random(seed).random
    return tuple(each for _, _, each in sorted((draw(), at, each) for at, each in enumerate(these)))
