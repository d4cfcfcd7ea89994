"""Counters of a service over a stretch of time, from scraped samples: how much they rose, and how surely."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pytest_tokenpower.meters.types import Samples

MOST_FALLS = 0.2
"""Of a counter's changes, where they are not restarts."""

NEAR_ZERO = 0.05
"""Of what a counter had, at most this share is there when it is first scraped after a restart; idle power is more."""


@dataclass(frozen=True)
class Increase:
    """How much a counter rose, with its standard error; at ``resets`` it began anew."""

    value: float
    stderr: float
    resets: int = 0


@dataclass(frozen=True)
class ServiceFigure:
    """Joules per token of a service from ``start_ms`` to ``end_ms``, idle time and all, with what it is made of."""

    start_ms: int
    end_ms: int
    joules: Increase
    tokens: Increase

    @property
    def seconds(self) -> float:
        """How long it is."""
        return (self.end_ms - self.start_ms) / 1000

    @property
    def joules_per_token(self) -> float:
        """The figure."""
        return self.joules.value / self.tokens.value

    @property
    def stderr(self) -> float:
        """The standard error of the figure, from scrape intervals and resets."""
        return self.joules_per_token * math.hypot(
            self.joules.stderr / self.joules.value, self.tokens.stderr / self.tokens.value
        )


def service_figure(
    energy: Mapping[str, Samples], tokens: Mapping[str, Samples], joules: float
) -> ServiceFigure:
    """Divide what boards have counted by what servers have counted, over the time that all boards' samples cover.

    A board has to be there from beginning to end. A server may come and go: it begins at zero.

    Args:
        energy: the counter of each board.
        tokens: the counter of each server.
        joules: how many a unit of the boards' counters is.

    Raises:
        ValueError: There is no board or server, a series is no counter, a board's samples end early or its
            counter stands still, a server had
            counted before it was scraped, or nothing was generated.
    """
    for what, series in (("energy", energy), ("token", tokens)):
        if not series:
            raise ValueError(f"no {what} counter has samples in this range")
        _refuse_what_falls(series)
    short = [name for name, rows in energy.items() if len(rows) < 3]
    if short:
        raise ValueError(f"{', '.join(short)}: fewer than three samples in this range")
    start = max(rows[0][0] for rows in energy.values())
    end = min(rows[-1][0] for rows in energy.values())
    first, last = min(rows[0][0] for rows in energy.values()), max(rows[-1][0] for rows in energy.values())
    for name, rows in energy.items():
        step = _step_ms(rows)
        late, early = rows[0][0] - first, last - rows[-1][0]
        if max(late, early) > 3 * step + 60_000:
            raise ValueError(
                f"{name} has samples for {(rows[-1][0] - rows[0][0]) / 1000:.0f} of {(last - first) / 1000:.0f} s: its "
                "energy of the rest is not known. Name a range in which all boards are there, or the service's boards"
            )
        _refuse_standing(name, rows)
    _refuse_counted_before(tokens, start)
    # Servers that are there from the beginning are read from where all of them are.
    begin_late = [
        rows[0][0] for rows in tokens.values() if rows and 0 <= rows[0][0] - start <= 2 * _step_ms(rows)
    ]
    end_early = [
        rows[-1][0] for rows in tokens.values() if rows and 0 <= end - rows[-1][0] <= 2 * _step_ms(rows)
    ]
    start, end = max([start, *begin_late]), min([end, *end_early])
    if end <= start:
        raise ValueError("the samples of the boards and of the servers do not overlap")
    burnt = _sum([increase(rows, start, end) for rows in energy.values()])
    made = _sum([increase(rows, start, end, from_zero=True) for rows in tokens.values()])
    if made.value <= 0:
        raise ValueError("no token was generated in this range")
    return ServiceFigure(
        start, end, Increase(burnt.value * joules, burnt.stderr * joules, burnt.resets), made
    )


def _refuse_what_falls(series: Mapping[str, Samples]) -> None:
    """Raise ValueError for a series that goes down often, and not to zero, as a reading of power does: no counter."""
    for name, rows in series.items():
        falls = [now[1] / before[1] for before, now in pairwise(rows) if now[1] < before[1]]
        moved = sum(now[1] != before[1] for before, now in pairwise(rows))
        if len(falls) > max(1, MOST_FALLS * moved) and float(np.median(falls)) > NEAR_ZERO:
            raise ValueError(
                f"{name} falls {len(falls)} times in {moved} changes, and not to zero as a counter that begins anew: "
                "it is no counter"
            )


def _refuse_standing(name: str, rows: Samples) -> None:
    """Raise ValueError for a board whose counter stands still: a board that is idle draws power, too."""
    moved = [now[0] for before, now in pairwise(rows) if now[1] != before[1]]
    if not moved:
        raise ValueError(f"{name}: its energy counter does not move in this range: missing, not zero")
    standing = rows[-1][0] - moved[-1]
    usual = float(np.median(np.diff(moved))) if len(moved) > 2 else 0.0
    scraped = max(after[0] - before[0] for before, after in pairwise(rows))
    # What it counted meanwhile is known where it goes on, and not at the end.
    if standing > 3 * max(usual, scraped) + 60_000:
        raise ValueError(
            f"{name}: its energy counter stands still for the last {standing / 1000:.0f} s, as of an exporter that "
            "reads no more: its energy there is not known. Name a range that ends before"
        )


def _refuse_counted_before(tokens: Mapping[str, Samples], start_ms: int) -> None:
    """Raise ValueError for a server that appears in the middle with more than one that just began can have made."""
    most = max(
        (now[1] - before[1] for rows in tokens.values() for before, now in pairwise(rows)), default=0.0
    )
    for name, rows in tokens.items():
        if rows and rows[0][0] - start_ms > 2 * _step_ms(rows) and rows[0][1] > 2 * most:
            raise ValueError(
                f"{name} appears {(rows[0][0] - start_ms) / 1000:.0f} s after the beginning, and has counted "
                f"{rows[0][1]:.0f} tokens by then: how many of them in this range is not known (a server that goes on "
                "under other labels, or was scraped late). Name a range from then on, or the servers by matchers"
            )


def increase(rows: Samples, start_ms: int, end_ms: int, *, from_zero: bool = False) -> Increase:
    """Return how much a counter rose from ``start_ms`` to ``end_ms``.

    What it rose between two samples is known, and when is not: at either end that is an error, by how much it rises in
    one refresh (a value that is repeated was not read anew). A counter that falls has begun again at zero; what it
    counted between the last sample and then is lost, and at most what its pace makes of that time.

    Args:
        rows: its samples.
        start_ms: the beginning.
        end_ms: the end.
        from_zero: a counter whose first sample comes after the beginning was at zero before (a server that started).
    """
    t = np.array([row[0] for row in rows], dtype=np.float64)
    v = np.array([row[1] for row in rows], dtype=np.float64)
    appeared = from_zero and len(t) > 0 and t[0] > start_ms
    if appeared:
        t, v = (
            np.concatenate([[min(t[0] - 1, max(t[0] - _step_ms(rows), start_ms))], t]),
            np.concatenate([[0.0], v]),
        )
    if len(t) < 2:
        return Increase(0.0, 0.0)
    steps, gaps = np.diff(v), np.diff(t)
    fell = steps < 0
    rises = np.where(fell, v[1:], steps)
    risen = np.concatenate([[0.0], np.cumsum(rises)])
    low, high = np.interp([start_ms, end_ms], t, risen)
    pace = rises.sum() / (t[-1] - t[0])
    changed = np.flatnonzero(steps != 0)
    refresh = max(_step_ms(rows), float(np.median(np.diff(t[changed + 1]))) if len(changed) > 2 else 0.0)
    variance = 0.0
    for edge in (start_ms, end_ms):
        at = min(max(int(np.searchsorted(t, edge, side="left")) - 1, 0), len(rises) - 1)
        outside = edge < t[0] or edge > t[-1]
        # A counter that ends has stopped counting: what is lost is at most one interval's.
        width = max(pace * refresh, 0.0 if outside else float(rises[at]))
        variance += width**2 / 12
    inside = fell & (t[1:] > start_ms) & (t[:-1] < end_ms)
    variance += float(((pace * gaps[inside]) ** 2).sum()) / 3
    return Increase(float(high - low), math.sqrt(variance), int(inside.sum()))


def _sum(parts: Sequence[Increase]) -> Increase:
    return Increase(
        sum(each.value for each in parts),
        math.hypot(*(each.stderr for each in parts)),
        sum(each.resets for each in parts),
    )


def _step_ms(rows: Samples) -> float:
    return float(np.median(np.diff([row[0] for row in rows]))) if len(rows) > 1 else 60_000.0
