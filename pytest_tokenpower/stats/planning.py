"""What a machine's noise is made of, and the limit that the gate can hold there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from pytest_tokenpower.stats.change import MOST_DF, Change, StudentError
from pytest_tokenpower.stats.comparison import Run, readings
from pytest_tokenpower.stats.noise import Spread
from pytest_tokenpower.stats.pace import Waiting
from pytest_tokenpower.stats.rule import Policy
from pytest_tokenpower.stats.scatter import CAUTION_SD, DEFAULT_NOISE, Groups, Noise, Scatter, accounts

FOUND = 0.95
"""How often a change of twice the limit is found where the limit is held."""


@dataclass(frozen=True)
class NoiseParts:
    """The scatter of a test's runs of identical code; SDs of ln(J/token). What so few runs cannot tell is None.

    ``total`` and ``work`` (at one pace) are from occasion to occasion on one board, ``within`` from process to process
    of one occasion, ``boards`` from board to board.
    """

    runs: int
    occasions: int
    total: Spread | None
    work: Spread | None
    within: Spread | None
    boards: Spread | None


def noise_parts(runs: Sequence[Run], waiting: Mapping[str, Waiting] | None = None) -> NoiseParts:
    """Take the noise of repeated runs of identical code apart.

    Args:
        runs: Of one test, best over several occasions.
        waiting: The waiting watts by board; without them there is no work part.
    """
    if not runs:
        raise ValueError("noise needs at least one run")
    total, work = readings([runs], waiting)
    boards = [
        float(total.means[[at for at, (_, each) in enumerate(total.cells) if each == board]].mean())
        for board in dict.fromkeys(run.board for run in runs)
    ]
    return NoiseParts(
        runs=len(runs),
        occasions=len(set(total.occasions) - {""}) + total.occasions.count(""),
        total=_between(total),
        work=_between(work) if work is not None else None,
        within=_spread(total.within_squares, total.within_df),
        boards=Spread(float(np.std(boards, ddof=1)), len(boards) - 1) if len(boards) > 1 else None,
    )


def smallest_limit(run_sd: float, stored_runs: int, policy: Policy, noise: Noise = DEFAULT_NOISE) -> float:
    """The limit, as a fraction, that a gate of so many stored runs (one an occasion) holds at this noise.

    The larger of its noise floor, at the SD that the stored runs have on average, and of the limit at which twice as
    much is found in 95 % of builds. Identical code then fails less often than the level says.
    """
    df = stored_runs - 1
    found = accounts(df * run_sd**2, df, noise.total, Scatter(CAUTION_SD, MOST_DF), learned=noise.learned)
    spread = math.sqrt(1 + 1 / stored_runs)
    errors = tuple(StudentError(each.stderr * spread, each.df, each.ceiling * spread) for each in found)
    floor = Change(0.0, errors).margin(policy.level)
    return math.expm1(max(floor, float(ndtri(FOUND)) * run_sd * spread))


def _between(groups: Groups) -> Spread | None:
    return _spread(*groups.between())


def _spread(squares: float, df: int) -> Spread | None:
    return Spread(math.sqrt(squares / df), df) if df else None
