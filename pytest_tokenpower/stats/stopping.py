"""When a run has enough rounds: judged by precision alone, never by a p-value."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_tokenpower.stats.runs import summarise_runs
from pytest_tokenpower.stats.types import DEFAULT_PRIOR, Prior


def enough(
    values: Sequence[float],
    meter_squared_error: float = 0.0,
    prior: Prior = DEFAULT_PRIOR,
    *,
    fewest: int = 6,
    most: int = 30,
) -> bool:
    """Whether more rounds of this run would hardly sharpen a verdict: w <= tau/2, between ``fewest`` and ``most``.

    ``values`` are the good rounds' ln(J/token) so far (temperature-adjusted, if the verdict will be),
    ``meter_squared_error`` the squared error of their mean by the meter's own account, a floor for w². With
    w = tau/2 the rounds add an eighth to the run-to-run SD. The rule looks at spread, not at where the values
    lie, so it cannot chase significance: peeking at p makes 20 % of identical builds fail.
    """
    if len(values) < fewest:
        return False
    if len(values) >= most:
        return True
    (run,) = summarise_runs([values], prior=prior)
    return math.sqrt(max(run.squared_error, meter_squared_error)) <= prior.tau0 / 2
