"""A history in the terminal: runs with their uncertainty, levels and steps, in plain Unicode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 80

HEIGHT = 13

_LABEL = 9

_FLAT = 0.01
"""A history that moves by less is drawn within ± this share, so that noise does not fill the plot."""


@dataclass(frozen=True)
class Point:
    """One run: its figure, its 95 % interval, and the level that it belongs to."""

    value: float
    low: float
    high: float
    level: float


def render(
    points: Sequence[Point], steps: Sequence[int] = (), left: str = "", right: str = "", width: int = WIDTH
) -> list[str]:
    """Return the plot's lines, at most ``width`` wide; ``steps`` (indices of points) are lettered a, b, ... below.

    ``left`` and ``right`` say what the first and the last point are. Where there are more points than columns, a
    column shows the mean of its points and the whole span of their intervals.
    """
    room = width - _LABEL - 2
    columns, per_column, spread = _columns(points, room)
    top, bottom = _range(columns)

    def row(value: float) -> int:
        return min(max(round((top - value) / (top - bottom) * (HEIGHT - 1)), 0), HEIGHT - 1)

    grid = [[" "] * room for _ in range(HEIGHT)]
    for at, column in enumerate(columns):
        start = at * spread
        for x in range(start, min(start + spread, room)):
            grid[row(column.level)][x] = "─"
        for y in range(row(column.high), row(column.low) + 1):
            grid[y][start] = "│"
        grid[row(column.value)][start] = "●"
    labelled = {0: top, HEIGHT // 2: (top + bottom) / 2, HEIGHT - 1: bottom}
    lines = []
    for y, cells in enumerate(grid):
        label = format(labelled[y], ".4g") if y in labelled else ""
        lines.append(f"{label:>{_LABEL}} {'┤' if label else '│'}{''.join(cells)}".rstrip())
    marks = [" "] * room
    for number, step in enumerate(steps):
        marks[min(step // per_column * spread, room - 1)] = letter(number)
    used = min((len(columns) - 1) * spread + 1, room)
    axis = "".join("┴" if mark != " " else "─" for mark in marks[:used])
    lines.append(f"{'':{_LABEL}} └{axis}")
    if steps:
        lines.append(f"{'':{_LABEL}}  {''.join(marks)}".rstrip())
    if left or right:
        gap = max(used - len(left) - len(right), 2)
        lines.append(f"{'':{_LABEL}}  {left}{' ' * gap}{right}"[:width].rstrip())
    return lines


def letter(number: int) -> str:
    """Return the mark of a step: a to z, then +."""
    return chr(ord("a") + number) if number < 26 else "+"


def _columns(points: Sequence[Point], room: int) -> tuple[list[Point], int, int]:
    """Return the points of each column, how many went into one, and how many columns wide each is drawn."""
    per_column = math.ceil(len(points) / room)
    columns = []
    for start in range(0, len(points), per_column):
        some = points[start : start + per_column]
        columns.append(
            Point(
                sum(point.value for point in some) / len(some),
                min(point.low for point in some),
                max(point.high for point in some),
                some[-1].level,
            )
        )
    return columns, per_column, max(1, min(3, room // len(columns)))


def _range(columns: Sequence[Point]) -> tuple[float, float]:
    top, bottom = max(point.high for point in columns), min(point.low for point in columns)
    middle = (top + bottom) / 2
    half = max((top - bottom) / 2, abs(middle) * _FLAT, 1e-12)
    return middle + half, middle - half
