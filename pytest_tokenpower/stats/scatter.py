"""How figures scatter from occasion to occasion, within one, and from board to board; and what is believed of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_tokenpower.stats.types import FloatArray

Cell = tuple[str, str]
"""A level of a test's history on one board."""

FEWEST_DF = 2
"""With fewer degrees of freedom of its own a test's noise is not known, whatever its few runs look like."""

CAUTION_SD = 0.02
"""The run-to-run SD that a test is taken to have while its own is not known: it keeps identical code that does."""

QUIET = 0.25
"""A test whose own SD is at most this share of the cautious one is taken to be no noisier than that: without it a build
of many tests would need more of three stored runs than of one. A test that is 2.5 times as noisy as the cautious one
looks so by chance in 1 % of cases."""

CAUTION_PROCESS_SD = 0.01
"""The same of the difference of two variants that run alternately, from restart to restart: on H100s it is 0.14 %."""

CAUTION_PER_ROUND_SD = 1.0
"""A test whose rounds scatter has runs that do: on H100s by a third to once the SD of its rounds."""


AGREEMENT = 4
"""How fast a belief stops counting where a test's own variance is above it."""


def surplus(df: int) -> int:
    """Return the degrees of freedom beyond those without which a scatter is not known.

    A belief may add as many: few runs that are noisier than it says look alike by chance, and would fail for that.
    """
    return max(df - FEWEST_DF, 0)


@dataclass(frozen=True)
class Scatter:
    """A standard deviation and the degrees of freedom that the belief in it is worth."""

    sd: float
    df: float


@dataclass(frozen=True)
class Noise:
    """What is believed of a test's scatter before its runs are seen; SDs of ln(J/token), 0.005 is 0.5 %.

    ``total`` and ``work`` are from run to run on different occasions, of the figure as it is and at one pace.
    ``occasion_share`` of their variance belongs to the occasion, the rest to the single process. ``interleaved`` is of
    the difference of two variants between restarts in which both ran alternately. ``board`` is from board to board of
    one model, ``calibrated_board`` what of it is left after calibration. Only a ``learned`` belief sharpens what a
    test's own runs show; ``interleaved``, of which drift and occasion have fallen out, always may.
    """

    total: Scatter
    work: Scatter
    interleaved: Scatter
    board: Scatter
    calibrated_board: Scatter
    occasion_share: float
    learned: bool = False
    source: str = ""

    def most_believed(self, df: int) -> float:
        """Return how many degrees of freedom a belief in a test's scatter may add to ``df`` of its own."""
        return surplus(df) if self.learned else 0


DEFAULT_NOISE = Noise(
    total=Scatter(0.005, 2.0),
    work=Scatter(0.005, 2.0),
    interleaved=Scatter(0.0025, 3.0),
    board=Scatter(0.015, 2.0),
    calibrated_board=Scatter(0.007, 10.0),
    occasion_share=0.5,
    source="default",
)
"""Of four H100s: boards differ by 1.6 %, which counts for little on other models; calibrated by 0.2 %. On eight
H200s calibration leaves 0.9 %, as J/token differs there by 2.3 times what the fixed work does: both together make 0.7
%. Runs: see ``types.DEFAULT_PRIOR``. That occasions share half of the variance of runs is assumed."""


@dataclass(frozen=True)
class Groups:
    """Means of the runs of one occasion in one cell (level and board): the units of evidence.

    ``within_squares`` on ``within_df`` is the scatter of runs about the mean of their group.
    """

    means: FloatArray
    counts: FloatArray
    errors: FloatArray
    cells: tuple[Cell, ...]
    occasions: tuple[str, ...]
    within_squares: float
    within_df: int

    @classmethod
    def of(
        cls,
        locations: Sequence[float],
        squared_errors: Sequence[float],
        cells: Sequence[Cell],
        occasions: Sequence[str],
    ) -> Groups:
        """Group runs by cell and occasion; a run whose occasion is not known ("") is an occasion of its own."""
        members: dict[tuple[Cell, str | int], list[int]] = {}
        for at, (cell, occasion) in enumerate(zip(cells, occasions, strict=True)):
            members.setdefault((cell, occasion or at), []).append(at)
        values, errors = np.asarray(locations, dtype=np.float64), np.asarray(squared_errors, dtype=np.float64)
        squares, df = 0.0, 0
        means, group_errors = [], []
        for indices in members.values():
            group = values[indices]
            means.append(float(group.mean()))
            group_errors.append(float(errors[indices].mean()) / len(indices))
            if len(indices) > 1:
                squares += float(((group - means[-1]) ** 2).sum())
                df += len(indices) - 1
        return cls(
            np.array(means),
            np.array([len(indices) for indices in members.values()], dtype=np.float64),
            np.array(group_errors),
            tuple(cell for cell, _ in members),
            tuple(occasions[indices[0]] for indices in members.values()),
            squares,
            df,
        )

    def between(self) -> tuple[float, int]:
        """Return the sum of squares of the means about the mean of their cell, and its degrees of freedom."""
        squares, df = 0.0, 0
        for cell in dict.fromkeys(self.cells):
            group = self.means[[at for at, each in enumerate(self.cells) if each == cell]]
            squares += float(((group - group.mean()) ** 2).sum())
            df += len(group) - 1
        return squares, df


def scatter(
    squares: float,
    df: int,
    believed: Scatter,
    caution: Scatter,
    *,
    most_believed: float,
    within: tuple[float, int] = (0.0, 0),
) -> Scatter:
    """Return the SD that a claim goes by, and on how many degrees of freedom, from a sum of squares on ``df`` of them.

    With fewer than two: the larger of the cautious and the believed SD, as a normal one; what these runs, and those
    ``within`` occasions (a sum of squares and its degrees of freedom), scatter by beyond that counts on the few degrees
    of freedom that there are. Otherwise the test's own variance. A belief moderates it, (nu tau0² + SS)/(nu + df) as
    in limma (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3:3), with at most ``most_believed`` degrees of freedom, and
    only as far as the two agree, (min(1, tau0²/s²))⁴: a test noisier than its neighbours is judged by its own runs (as
    limma's robust rule takes the prior from hypervariable genes; Phipson et al. 2016, Ann. Appl. Stat. 10:946).
    """
    if df < FEWEST_DF:
        expected = max(caution.sd, believed.sd)
        seen_df = df + within[1]
        seen = (squares + within[0]) / seen_df if seen_df else 0.0
        if seen <= expected**2:
            return Scatter(expected, caution.df)
        # What is beyond caution is known from these few alone (Satterthwaite 1946, Biometrics Bull. 2:110).
        return Scatter(math.sqrt(seen), min(seen_df * (seen / (seen - expected**2)) ** 2, caution.df))
    variance = squares / df
    agreement = min(1.0, believed.sd**2 / variance) ** AGREEMENT if variance > 0 else 1.0
    weight = min(believed.df, most_believed) * agreement
    return Scatter(math.sqrt((weight * believed.sd**2 + squares) / (weight + df)), weight + df)


def widest(unit: Scatter, df: int, believed: Scatter, caution: Scatter) -> float:
    """Return the SD that a unit surely has at most, from its own SD on ``df`` degrees of freedom."""
    most = max(caution.sd, believed.sd)
    return most if df >= FEWEST_DF and unit.sd <= QUIET * most else math.inf
