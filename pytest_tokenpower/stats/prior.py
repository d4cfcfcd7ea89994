"""What is believed about noise before a test's runs are seen, and how a store of other tests sharpens it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pytest_tokenpower.stats.types import DEFAULT_PRIOR, Prior, RunSummary

__all__ = ["DEFAULT_PRIOR", "Prior", "learn_prior", "learn_priors"]

MOST_LEARNED_DF = 12.0
_LEAST_TAU = 0.001


def learn_prior(other_tests: Sequence[Sequence[RunSummary]], base: Prior = DEFAULT_PRIOR) -> Prior:
    """The prior sharpened by the run-to-run variance of the *other* tests of the store.

    ``other_tests`` holds, per test, its stored runs under one key. Their variances about their own means,
    less the squared errors of the runs, are pooled over d = sum(runs - 1) degrees of freedom. Tests differ
    from each other, so d counts half, d', and at most 12. The result is ``base`` updated by it: tau² = (nu0
    tau0² + d' tau_pooled²)/(nu0 + d') and nu = min(nu0 + d', 12). The pooled SD is never below 0.1 %, less
    than any board has shown. The interleaved SD moves in proportion. Without two runs of any test the answer
    is ``base``.
    """
    return _updated(
        base, np.sum([_spread(runs) for runs in other_tests], axis=0) if other_tests else np.zeros(4)
    )


def learn_priors(tests: Mapping[str, Sequence[RunSummary]], base: Prior = DEFAULT_PRIOR) -> dict[str, Prior]:
    """:func:`learn_prior` for every test of a store from all the others, in one pass."""
    spreads = {test: _spread(runs) for test, runs in tests.items()}
    total = np.sum(list(spreads.values()), axis=0) if spreads else np.zeros(4)
    return {test: _updated(base, total - spread) for test, spread in spreads.items()}


def _spread(runs: Sequence[RunSummary]) -> NDArray[np.float64]:
    """Sum of squares about the mean, the rounds' share of it, degrees of freedom, and 1 for the test."""
    df = len(runs) - 1
    if df < 1:
        return np.zeros(4)
    locations = np.array([run.location for run in runs])
    error = sum(run.squared_error for run in runs) / len(runs)
    return np.array([((locations - locations.mean()) ** 2).sum(), df * error, df, 1.0])


def _updated(base: Prior, pooled: NDArray[np.float64]) -> Prior:
    squares, errors, df, tests = (float(part) for part in pooled)
    if df < 0.5:
        return base
    learned_df = min(df / 2, MOST_LEARNED_DF)
    learned = max((squares - errors) / df, _LEAST_TAU**2)
    tau0 = math.sqrt((base.nu0 * base.tau0**2 + learned_df * learned) / (base.nu0 + learned_df))
    ratio = base.tau0_interleaved / base.tau0 if base.tau0 else 1.0
    return replace(
        base,
        tau0=tau0,
        nu0=min(base.nu0 + learned_df, MOST_LEARNED_DF),
        tau0_interleaved=tau0 * ratio,
        source=f"run-to-run SD {math.sqrt(learned):.2%} over {df + tests:.0f} runs of {tests:.0f} other tests",
    )
