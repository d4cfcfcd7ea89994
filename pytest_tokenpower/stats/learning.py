"""What the other tests of a store teach of a test's noise: robust, and aware of how much tests differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import digamma, polygamma

from pytest_tokenpower.stats.comparison import Run, readings
from pytest_tokenpower.stats.pace import Waiting
from pytest_tokenpower.stats.scatter import DEFAULT_NOISE, FEWEST_DF, Groups, Noise, Scatter
from pytest_tokenpower.stats.types import FloatArray

FEWEST_TESTS = 3
"""Fewer tests do not tell how much tests differ."""

MOST_LEARNED_DF = 60.0
_LEAST_SD = 0.001
_WINSOR = 2.5


def learn_noise(
    tests: Mapping[str, Sequence[Sequence[Run]]], waiting: Mapping[str, Waiting] | None = None
) -> dict[str, Noise]:
    """Learn the noise of each test from all the others, and the spread of boards from all.

    DEFAULT_NOISE is believed where the store tells nothing: fewer than three other tests with three occasions.

    Args:
        tests: Per test the levels of its history (levels.split_levels); steps are thus no scatter.
        waiting: The waiting watts by board.
    """
    spreads = {name: readings(levels, waiting) for name, levels in tests.items() if any(levels)}
    total = {name: _between(groups) for name, (groups, _) in spreads.items()}
    work = {name: _between(groups) for name, (_, groups) in spreads.items() if groups is not None}
    boards = _boards([groups for groups, _ in spreads.values()], DEFAULT_NOISE.board)
    learned = {}
    for name in tests:
        others = [value for other, value in total.items() if other != name and value]
        found = fit_scatter(others)
        own = replace(DEFAULT_NOISE, board=boards)
        if found is not None:
            own_work = fit_scatter([v for other, v in work.items() if other != name and v])
            own = replace(
                own,
                total=found,
                work=own_work or DEFAULT_NOISE.work,
                learned=True,
                source=f"run-to-run SD {found.sd:.2%}, from {len(others)} other tests",
            )
        learned[name] = own
    return learned


def fit_scatter(variances: Sequence[tuple[float, float]]) -> Scatter | None:
    """Return the scaled inverse chi-squared distribution that variances of different tests come from.

    limma's estimate (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3:3, section 6.2): with e = ln s² - digamma(d/2) +
    ln(d/2), trigamma(nu0/2) is the variance of e beyond mean trigamma(d/2). Three things differ, as a store has few
    tests: e is winsorised at 2.5 robust SDs about its median (a step that nobody saw is one test's), and nu0 is taken
    at one standard error above the estimated variance, so that a few tests that happen to agree do not seem alike. The
    SD is the typical test's, exp(mean e / 2): limma's scale, below that by what nu0 says, would seem to agree with few.

    Args:
        variances: Per test its variance and its degrees of freedom.

    Returns:
        None for fewer than three tests with two degrees of freedom.
    """
    kept = [(max(variance, 1e-12), df) for variance, df in variances if df >= FEWEST_DF]
    if len(kept) < FEWEST_TESTS:
        return None
    values, df = np.array([v for v, _ in kept]), np.array([d for _, d in kept])
    e = np.log(values) - digamma(df / 2) + np.log(df / 2)
    expected = float(polygamma(1, df / 2).mean())
    middle = float(np.median(e))
    spread = max(1.4826 * float(np.median(np.abs(e - middle))), math.sqrt(expected))
    e = np.clip(e, middle - _WINSOR * spread, middle + _WINSOR * spread)
    count = len(kept)
    seen = float(e.var(ddof=1))
    surplus = max(seen - expected, 0.0) + max(seen, expected) * math.sqrt(2 / (count - 1))
    nu = min(2 * _trigamma_inverse(surplus), MOST_LEARNED_DF)
    return Scatter(max(math.exp(float(e.mean()) / 2), _LEAST_SD), nu)


def _between(groups: Groups | None) -> tuple[float, float] | None:
    if groups is None:
        return None
    squares, df = groups.between()
    return (squares / df, float(df)) if df >= FEWEST_DF else None


def _boards(tests: Sequence[Groups], believed: Scatter) -> Scatter:
    """Return the SD between boards: of their means in one level, less what occasions make of them.

    The boards of one store are the same in each of its tests, so that tests share their degrees of freedom.
    """
    found: list[tuple[float, int]] = []
    for groups in tests:
        squares, df = groups.between()
        cells = list(dict.fromkeys(groups.cells))
        for level in dict.fromkeys(cell[0] for cell in cells):
            members = [
                groups.means[[at for at, each in enumerate(groups.cells) if each == cell]]
                for cell in cells
                if cell[0] == level
            ]
            if df and len(members) > 1:
                means: FloatArray = np.array([each.mean() for each in members])
                noise = squares / df * float(np.mean([1 / len(each) for each in members]))
                found.append((max(float(means.var(ddof=1)) - noise, 0.0), len(means) - 1))
    if not found:
        return believed
    total = max(df for _, df in found)
    variance = float(np.average([each for each, _ in found], weights=[df for _, df in found]))
    return Scatter(
        math.sqrt((believed.df * believed.sd**2 + total * variance) / (believed.df + total)),
        believed.df + total,
    )


def _trigamma_inverse(value: float) -> float:
    """Return the x at which trigamma(x) is ``value``, by Newton's method on 1/trigamma (Smyth 2004, appendix)."""
    if value > 1e7:
        return 1 / math.sqrt(value)
    if value < 1e-6:
        return 1 / value
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, x))
        x += step
        if -step / x < 1e-8:
            break
    return x
