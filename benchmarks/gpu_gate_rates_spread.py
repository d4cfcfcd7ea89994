"""How far runs of identical code scatter, as read and reduced to one temperature and one pace; and boards. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from gpu_gate_rates_data import PIECES, Calibration, Floats, Measured, Run, Waiting
from scipy.stats import chi2

LARGEST_SLOPE = 0.004
"""Of J/token per °C; the pooled slope is clipped to 0 to this where it is used."""


@dataclass(frozen=True)
class Spread:
    """The SD between runs of one board, pooled over boards, as a share of J/token, with its exact 95 % interval."""

    sd: float
    df: int

    @property
    def interval(self) -> tuple[float, float]:
        """Of normal runs."""
        low, high = (float(chi2.ppf(tail, self.df)) for tail in (0.975, 0.025))
        return self.sd * math.sqrt(self.df / low), self.sd * math.sqrt(self.df / high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.sd:.2f} % ({100 * low:.2f} to {100 * high:.2f})"


def by_board(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs of each board, in order of time."""
    ordered = sorted(runs, key=lambda each: (each.hold, each.board, each.created))
    return [list(group) for _, group in groupby(ordered, key=lambda each: (each.hold, each.board))]


def within_boards(groups: Sequence[Floats]) -> Spread:
    """Return the SD of the runs about their board's mean."""
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    df = sum(len(group) - 1 for group in groups)
    return Spread(math.sqrt(squares / df), df)


def temperature_slope(runs: Sequence[Run], values: Callable[[Run], Floats], *, clipped: bool = True) -> float:
    """Return the slope of the values per °C, pooled within runs."""
    x = np.concatenate([each.celsius - each.celsius.mean() for each in runs])
    y = np.concatenate([values(each) - values(each).mean() for each in runs])
    scale = float(np.mean([each.per_token.mean() for each in runs]))
    slope = float(x @ y / (x @ x)) / scale if x @ x > 0 else 0.0
    return scale * (min(max(slope, 0.0), LARGEST_SLOPE) if clipped else slope)


def pace_slope(runs: Sequence[Run]) -> float:
    """Watts by which a round's joules rise with its seconds, pooled within runs, per token: the check of waiting."""
    x = np.concatenate([(each.seconds / each.tokens) - (each.seconds / each.tokens).mean() for each in runs])
    y = np.concatenate([each.per_token - each.per_token.mean() for each in runs])
    return float(x @ y / (x @ x))


def run_values(
    runs: Sequence[Run], *, pace: bool = False, temperature: bool = False, watts: float | None = None
) -> list[Floats]:
    """One value a run, board by board, as a share of the test's mean J/token.

    With ``pace`` the joules of waiting are taken out, by the run's own windows or by fixed ``watts``; with
    ``temperature`` the slope that is pooled within runs reduces them to the runs' mean temperature.
    """

    def values(run: Run) -> Floats:
        return run.active_per_token(watts) if pace else run.per_token

    scale = float(np.mean([each.per_token.mean() for each in runs]))
    slope = temperature_slope(runs, values) if temperature else 0.0
    centre = float(np.mean([each.celsius.mean() for each in runs]))
    return [
        np.array([values(each).mean() - slope * (each.celsius.mean() - centre) for each in board]) / scale
        for board in by_board(runs)
    ]


@dataclass(frozen=True)
class BoardSpread:
    """The SD between boards of the logarithm of a value, and of what a calibration leaves of it."""

    what: str
    sd: float
    correlation: float | None
    slope: float | None = None
    fitted_sd: float | None = None


FORETOLD_BY = "mean of matmul and gemms"
"""What the gate subtracts (stats/boards.py)."""


def between_boards(
    measured: Measured, test: str, value: Callable[[Run], float], when: str
) -> tuple[int, list[BoardSpread]]:
    """Return what calibration at ``when`` (first, last, both) leaves of the boards' differences, slope 1.

    How many boards.
    """
    groups = [board for board in by_board(measured.of(test)) if len(board) >= 2]
    logs = np.array([np.mean([math.log(value(each)) for each in board]) for board in groups])
    keys = [(board[0].hold, board[0].board) for board in groups]
    found = [BoardSpread("nothing", float(logs.std(ddof=1)), None)]
    pieces = {
        piece: np.array([_calibrated(measured.calibrations, key, piece, when) for key in keys])
        for piece in PIECES
    }
    pieces[FORETOLD_BY] = (pieces["matmul"] + pieces["gemms"]) / 2
    for piece, calibrated in pieces.items():
        found.append(
            BoardSpread(
                piece,
                float((logs - calibrated).std(ddof=1)),
                float(np.corrcoef(logs, calibrated)[0, 1]),
                float(np.polyfit(calibrated, logs, 1)[0]),
                _foretold(logs, calibrated),
            )
        )
    return len(groups), found


def _foretold(logs: Floats, calibrated: Floats) -> float:
    """Return the SD of what a line through the other boards does not foretell of each board, each left out in turn."""
    errors = []
    for at in range(len(logs)):
        others = np.arange(len(logs)) != at
        errors.append(logs[at] - np.polyval(np.polyfit(calibrated[others], logs[others], 1), calibrated[at]))
    return float(np.sqrt(np.mean(np.square(errors))))


def _calibrated(found: Sequence[Calibration], key: tuple[int, str], piece: str, when: str) -> float:
    return float(
        np.mean(
            [
                math.log(each.joules)
                for each in found
                if (each.hold, each.board) == key
                and each.piece == piece
                and (when == "both" or each.first == (when == "first"))
            ]
        )
    )


def waiting_slope(waitings: Sequence[Waiting]) -> float:
    """Watts per °C of a waiting board, from the windows before and after the tests of each process."""
    x = np.array([each.last_celsius - each.first_celsius for each in waitings])
    y = np.array([each.last_watts - each.first_watts for each in waitings])
    return float(x @ y / (x @ x))
