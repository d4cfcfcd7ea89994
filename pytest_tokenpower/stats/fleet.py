"""Boards of one model held against each other: which one is off, and which one drifts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pytest_tokenpower.stats.change import MOST_DF, Change
from pytest_tokenpower.stats.drift import drift
from pytest_tokenpower.stats.multiplicity import holm
from pytest_tokenpower.stats.scatter import CAUTION_SD, DEFAULT_NOISE, Groups, Noise, Scatter, scatter

ALPHA = 0.01
"""Of calling any sound board of a fleet off, or drifting."""

MONTH_S = 30 * 86_400.0

LEAST_SPAN_S = 14 * 86_400.0
"""A drift is not told from fewer days: a warm week is none."""

DRIFTLESS = 1.0
"""Months squared: that boards do not drift is believed like one more reading a month away. Where boards share levels in
a chain only, readings alone tell a drift from a board's place hardly or not at all, and errors add up along it."""


@dataclass(frozen=True)
class Unit:
    """One board on one occasion: how far its ln(J/token) lies from what its tests' levels are for the whole pool."""

    board: str
    occasion: str
    started: float
    deviation: float


@dataclass(frozen=True)
class Standing:
    """One board among the others.

    ``offset`` is its distance from the other boards' mean; ``p_off`` the two-sided p, over all boards of the fleet, of
    a board that differs no more than boards do.
    """

    offset: Change
    p_off: float

    @property
    def off(self) -> bool:
        """Whether it surely differs by more than boards do."""
        return self.p_off < ALPHA


@dataclass(frozen=True)
class Drifting:
    """How a board's distance from the others changes in a month; ``p`` is over all boards of the fleet."""

    monthly: Change
    days: float
    p: float

    @property
    def sure(self) -> bool:
        """Whether there is a drift."""
        return self.p < ALPHA


def deviations(tests: Sequence[Groups], started: Mapping[str, float]) -> list[Unit]:
    """Return how far each board lay from the pool on each occasion, the mean over its tests.

    By least squares of a level for each test and level of its code, and a place and a slope in time for each board,
    slopes held back by DRIFTLESS: what code did to all boards falls out. Boards that share no level, even by way of
    others, cannot be compared: only the largest group that can is taken.

    Args:
        tests: Per test its readings by level, board and occasion.
        started: When each occasion began.
    """
    rows = [
        (f"{number} {level}", board, groups.occasions[at], float(groups.means[at]))
        for number, groups in enumerate(tests)
        for at, (level, board) in enumerate(groups.cells)
        if groups.occasions[at] in started
    ]
    rows = _together(rows)
    if not rows:
        return []
    cell = np.unique([row[0] for row in rows], return_inverse=True)[1]
    board = np.unique([row[1] for row in rows], return_inverse=True)[1]
    values = np.array([row[3] for row in rows])
    months = np.array([started[row[2]] for row in rows]) / MONTH_S
    months -= months.mean()
    in_cell, of_board = np.bincount(cell), np.bincount(board)
    moved = months - (np.bincount(board, months) / of_board)[board]
    # The normal equations, with the levels eliminated: each cell's mean is taken out of both sides.
    boards = len(of_board)
    sums = np.zeros((len(in_cell), 2 * boards))
    np.add.at(sums, (cell, board), 1.0)
    np.add.at(sums, (cell, boards + board), moved)
    owed = np.bincount(cell, values) / in_cell
    drifted = np.bincount(board, moved**2) + DRIFTLESS
    matrix = np.diag(np.concatenate([of_board, drifted])) - sums.T @ (sums / in_cell[:, None])
    seen = np.concatenate([np.bincount(board, values), np.bincount(board, values * moved)]) - sums.T @ owed
    # Of the places only differences are told: the shortest solution is the one whose places add up to zero.
    found_at = np.linalg.lstsq(matrix, seen, rcond=1e-12)[0]
    fitted = found_at[board] + found_at[boards + board] * moved
    left = values - (np.bincount(cell, values - fitted) / in_cell)[cell]
    found: dict[tuple[str, str], list[float]] = {}
    for (_, name, occasion, _), each in zip(rows, left, strict=True):
        found.setdefault((name, occasion), []).append(float(each))
    return [
        Unit(name, occasion, started[occasion], sum(each) / len(each))
        for (name, occasion), each in found.items()
    ]


_Row = tuple[str, str, str, float]
"""A test's level, board, occasion and reading."""


def _together(rows: Sequence[_Row]) -> list[_Row]:
    """Return the rows of the largest group of boards that share levels, where two boards or more ran."""
    levels: dict[str, set[str]] = {}
    for level, board, *_ in rows:
        levels.setdefault(level, set()).add(board)
    groups: list[set[str]] = []
    for boards in levels.values():
        touched = [group for group in groups if group & boards]
        groups = [group for group in groups if not group & boards] + [set().union(boards, *touched)]
    largest = max(groups, key=len, default=set())
    return [row for row in rows if row[1] in largest and len(levels[row[0]]) > 1]


def standings(units: Sequence[Unit], noise: Noise = DEFAULT_NOISE) -> dict[str, Standing]:
    """Return where each board stands; empty for fewer than two boards.

    The scatter of occasions is the gate's account of it. How much boards differ is learned from the others, so that a
    board that is off does not widen what it is held to.
    """
    values = _by_board(units)
    if len(values) < 2:
        return {}
    squares = sum(float(((each - each.mean()) ** 2).sum()) for each in values.values())
    df = sum(len(each) - 1 for each in values.values())
    caution = Scatter(CAUTION_SD, MOST_DF)
    unit = scatter(squares, df, noise.total, caution, most_believed=noise.most_believed(df))
    return _standings(
        {board: float(each.mean()) for board, each in values.items()},
        {board: 1 / len(each) for board, each in values.items()},
        unit,
        noise.board,
    )


def calibrated_standings(log_joules: Mapping[str, float]) -> dict[str, Standing]:
    """Return where each board's calibration stands among the others'; empty for fewer than two boards."""
    if len(log_joules) < 2:
        return {}
    unit = Scatter(DEFAULT_NOISE.total.sd, MOST_DF)
    return _standings(log_joules, dict.fromkeys(log_joules, 1.0), unit, DEFAULT_NOISE.board)


def _standings(
    places: Mapping[str, float], shares: Mapping[str, float], unit: Scatter, believed: Scatter
) -> dict[str, Standing]:
    """Judge each board's distance from the others' mean; ``shares`` of the squared errors are in each own mean."""
    p_values = []
    for board in places:
        rest = [each for each in places if each != board]
        offset = _offset(board, rest, places, shares, unit)
        noise = unit.sd**2 * float(np.mean([shares[each] for each in rest]))
        others = np.array([places[each] for each in rest])
        seen = max(float(others.var(ddof=1)) - noise, 0.0) if len(rest) > 1 else 0.0
        df = believed.df + len(rest) - 1
        spread = (believed.df * believed.sd**2 + (len(rest) - 1) * seen) / df * (1 + 1 / len(rest))
        variance = offset.stderr**2 + spread
        worth = variance**2 / (offset.stderr**4 / offset.df + spread**2 / df)
        p_values.append(_two_sided(Change(offset.delta, math.sqrt(variance), worth)))
    adjusted = dict(zip(places, map(float, holm(p_values)), strict=True))
    sound = [board for board, p in adjusted.items() if p >= ALPHA]
    found = {}
    for board, p in adjusted.items():
        # A board that is off is no part of what the others are held to.
        rest = [each for each in sound if each != board] or [each for each in places if each != board]
        found[board] = Standing(_offset(board, rest, places, shares, unit), p)
    return found


def _offset(
    board: str, rest: Sequence[str], places: Mapping[str, float], shares: Mapping[str, float], unit: Scatter
) -> Change:
    """Return how far a board lies from the mean of others."""
    share = shares[board] + sum(shares[each] for each in rest) / len(rest) ** 2
    offset = places[board] - sum(places[each] for each in rest) / len(rest)
    return Change(offset, unit.sd * math.sqrt(share), unit.df)


def drifts(units: Sequence[Unit]) -> dict[str, Drifting]:
    """Return how boards drift against the others; those without enough occasions or days are absent.

    What all boards do together is the code's or the driver's doing, and falls out.
    """
    slopes: dict[str, tuple[float, float, float, float]] = {}
    for board in dict.fromkeys(unit.board for unit in units):
        own = sorted((unit for unit in units if unit.board == board), key=lambda unit: unit.started)
        span = own[-1].started - own[0].started
        if span < LEAST_SPAN_S:
            continue
        found = drift([unit.started for unit in own], [math.exp(unit.deviation) for unit in own])
        if found is not None:
            scale, change = MONTH_S / span, found.change
            slopes[board] = (change.delta * scale, change.stderr * scale, change.df, span / 86_400)
    if len(slopes) < 2:
        return {}
    changes = {}
    for board, (slope, stderr, df, _) in slopes.items():
        rest = [each for name, each in slopes.items() if name != board]
        parts = [(stderr, df), *((each[1] / len(rest), each[2]) for each in rest)]
        squared = sum(one**2 for one, _ in parts)
        worth = squared**2 / sum(one**4 / d for one, d in parts) if squared else MOST_DF
        changes[board] = Change(slope - sum(each[0] for each in rest) / len(rest), math.sqrt(squared), worth)
    adjusted = holm([_two_sided(each) for each in changes.values()])
    return {
        board: Drifting(change, slopes[board][3], float(p))
        for (board, change), p in zip(changes.items(), adjusted, strict=True)
    }


def _two_sided(change: Change) -> float:
    return min(1.0, 2 * min(change.p_above(), change.p_below()))


def _by_board(units: Sequence[Unit]) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    return {
        board: np.array([unit.deviation for unit in units if unit.board == board])
        for board in dict.fromkeys(unit.board for unit in units)
    }
