"""Power over time with an exact integral: what a simulated board draws, and what every reading of it is held to."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


SECOND_NS = 1_000_000_000


class Energy(Protocol):
    """Cumulative energy of a curve; times are nanoseconds since the board's start and may be negative."""

    def joules_at(self, t_ns: int) -> float:
        """Energy from the start to ``t_ns``."""
        ...

    def joules_at_each(self, t_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the same for int64[n], as float64[n]."""
        ...


class PowerCurve(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Power in watts at seconds since the board's start: ``points`` are (second, watts), beginning at second 0.

    ``steps`` holds each power until the next point. ``lines`` joins the points by straight lines; two points at
    one second make a jump. Before the first point and after the last the power stays; with ``repeat_s`` the
    piece from 0 to there is repeated for ever instead, in both directions.
    """

    points: tuple[tuple[float, float], ...] = ((0.0, 300.0),)
    shape: Literal["steps", "lines"] = "steps"
    repeat_s: float | None = None

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("points: at least one (second, watts) is needed")
        seconds = [second for second, _ in self.points]
        if seconds[0] != 0:
            raise ValueError(f"points: the first must be at second 0, not {seconds[0]:g}")
        if any(later < earlier for earlier, later in pairwise(seconds)):
            raise ValueError("points: must be in the order of time")
        if not all(0 <= watts < float("inf") for _, watts in self.points):
            raise ValueError("points: watts must be finite and at least 0")
        if self.repeat_s is not None and (self.repeat_s <= 0 or self.repeat_s < seconds[-1]):
            raise ValueError("repeat_s: must be above 0 and not before the last point")

    @classmethod
    def constant(cls, watts: float) -> PowerCurve:
        """Return the same power at all times."""
        return cls(points=((0.0, watts),))

    def energy(self) -> Energy:
        """Return the exact cumulative energy of this curve."""
        return _PiecewiseEnergy(self)

    def joules(self, start_ns: int, end_ns: int) -> float:
        """Return the exact integral between two times in nanoseconds since the board's start."""
        energy = self.energy()
        return energy.joules_at(end_ns) - energy.joules_at(start_ns)


class FunctionCurve(PowerCurve, frozen=True, kw_only=True):
    """A curve given in Python: the exact cumulative energy in joules at a second since the board's start."""

    cumulative_joules: Callable[[float], float]

    def energy(self) -> Energy:
        """Return the cumulative energy, as the function gives it."""
        return _FunctionEnergy(self.cumulative_joules)


class _FunctionEnergy:
    def __init__(self, cumulative_joules: Callable[[float], float]) -> None:
        self._joules = cumulative_joules

    def joules_at(self, t_ns: int) -> float:
        return self._joules(t_ns / SECOND_NS)

    def joules_at_each(self, t_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.array([self._joules(t / SECOND_NS) for t in t_ns.tolist()], dtype=np.float64)


class _PiecewiseEnergy:
    """Joules at the start of each piece, and a parabola inside it; the scalar form spares numpy's call cost."""

    def __init__(self, curve: PowerCurve) -> None:
        starts = [round(second * SECOND_NS) for second, _ in curve.points]
        watts = [power for _, power in curve.points]
        self._repeat_ns = round(curve.repeat_s * SECOND_NS) if curve.repeat_s is not None else None
        slopes = [0.0] * len(starts)
        joules = [0.0] * len(starts)
        for i, (start, end) in enumerate(pairwise(starts)):
            length = end - start
            if curve.shape == "lines" and length:
                slopes[i] = (watts[i + 1] - watts[i]) / length
            joules[i + 1] = joules[i] + (watts[i] + slopes[i] * length / 2) * length / SECOND_NS
        self._starts, self._watts, self._slopes, self._joules = starts, watts, slopes, joules
        self._arrays = np.array(starts, np.int64), np.array(watts), np.array(slopes), np.array(joules)
        self._repeat_joules = 0.0
        if self._repeat_ns is not None:
            self._repeat_joules = joules[-1] + watts[-1] * (self._repeat_ns - starts[-1]) / SECOND_NS

    def joules_at(self, t_ns: int) -> float:
        base = 0.0
        if self._repeat_ns is not None:
            turns, t_ns = divmod(t_ns, self._repeat_ns)
            base = turns * self._repeat_joules
        if t_ns < 0:
            return self._watts[0] * t_ns / SECOND_NS
        i = bisect_right(self._starts, t_ns) - 1
        inside = t_ns - self._starts[i]
        mean_watts = self._watts[i] + self._slopes[i] * inside / 2
        return base + self._joules[i] + mean_watts * inside / SECOND_NS

    def joules_at_each(self, t_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        starts, watts, slopes, joules = self._arrays
        turns: NDArray[np.int64] | None = None
        if self._repeat_ns is not None:
            turns, t_ns = np.divmod(t_ns, self._repeat_ns)
        i = np.maximum(np.searchsorted(starts, t_ns, side="right") - 1, 0)
        inside = t_ns - starts[i]
        mean_watts = watts[i] + np.where(inside < 0, 0.0, slopes[i] * inside / 2)
        total: NDArray[np.float64] = joules[i] + mean_watts * inside / SECOND_NS
        return total if turns is None else total + turns * self._repeat_joules
