"""What a machine's noise is made of, and the limit that the gate can hold there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import gammaincinv, ndtr

from pytest_tokenpower.stats.change import MOST_DF, Change
from pytest_tokenpower.stats.comparison import Run, readings
from pytest_tokenpower.stats.noise import Spread
from pytest_tokenpower.stats.pace import Waiting
from pytest_tokenpower.stats.rule import Policy
from pytest_tokenpower.stats.scatter import CAUTION_SD, DEFAULT_NOISE, Groups, Noise, Scatter, scatter, widest
from pytest_tokenpower.stats.types import FloatArray

FOUND = 0.95
"""How often a change of twice the limit is found where the limit is held."""

_QUANTILES = 100
_WIDEST = 10.0


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
    """Return the limit, as a fraction, that a gate of so many stored runs (one an occasion) holds at this noise.

    The smallest at which twice as much is found in 95 % of builds, and not below the noise floor. Identical code then
    fails less often than the level says.
    """
    low, high = noise_floor(run_sd, stored_runs, policy, noise), _WIDEST
    for _ in range(40):
        middle = (low + high) / 2
        tried = replace(policy, limit=middle)
        low, high = (
            (low, middle)
            if failing_share(2 * middle, run_sd, stored_runs, tried, noise) >= FOUND
            else (middle, high)
        )
    return high


def noise_floor(run_sd: float, stored_runs: int, policy: Policy, noise: Noise = DEFAULT_NOISE) -> float:
    """Return the smallest rise that fails (a fraction): the median over what so few stored runs may show."""
    return math.expm1(float(np.median(_margins(run_sd, stored_runs, policy, noise))))


def failing_share(
    change: float, run_sd: float, stored_runs: int, policy: Policy, noise: Noise = DEFAULT_NOISE
) -> float:
    """How often a run whose true change is ``change`` (a fraction) fails, for normal runs of this noise.

    The difference, with SD run_sd sqrt(1 + 1/K), is independent of the stored runs' scatter (Cochran 1934), so that
    the share is a mean over what that may be.
    """
    needed = np.maximum(policy.theta, _margins(run_sd, stored_runs, policy, noise))
    spread = max(run_sd * math.sqrt(1 + 1 / stored_runs), 1e-12)
    return float(ndtr((math.log1p(change) - needed) / spread).mean())


def _margins(run_sd: float, stored_runs: int, policy: Policy, noise: Noise) -> FloatArray:
    """Equally likely values of the difference that is just significant: the stored runs' squares are chi-squared."""
    df = stored_runs - 1
    at = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    squares = run_sd**2 * 2 * gammaincinv(df / 2, at) if df else np.zeros(1)
    spread = math.sqrt(1 + 1 / stored_runs)
    caution = Scatter(CAUTION_SD, MOST_DF)
    margins = []
    for each in squares:
        unit = scatter(float(each), df, noise.total, caution, most_believed=noise.most_believed(df))
        most = widest(unit, df, noise.total, caution) * spread
        margins.append(Change(0.0, unit.sd * spread, unit.df, most=most).margin(policy.level))
    return np.array(margins)


def _between(groups: Groups) -> Spread | None:
    return _spread(*groups.between())


def _spread(squares: float, df: int) -> Spread | None:
    return Spread(math.sqrt(squares / df), df) if df else None
