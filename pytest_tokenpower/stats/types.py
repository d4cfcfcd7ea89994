"""The values that the statistics pass on: arrays, one run's summary, what is believed of its noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class RunSummary:
    """One run (a fresh process on one occasion), the unit of evidence.

    ``location`` is the 20 % trimmed mean of ln(J/token) over its ``rounds``, ``squared_error`` its squared
    standard error (rounds only: the run effect is not in it), ``round_sd`` the SD of its rounds and ``lag1``
    the autocorrelation that the squared error allows for.
    """

    location: float
    squared_error: float
    rounds: int
    round_sd: float = 0.0
    lag1: float = 0.0


@dataclass(frozen=True)
class Prior:
    """Expected noise of ln(J/token); 0.005 is 0.5 %.

    ``tau0`` is the run-to-run SD (fresh process, other occasion) and ``nu0`` how many degrees of freedom it
    is worth: the run-to-run variance is scaled-inverse-chi-squared(nu0, tau0²), the prior of limma (Smyth
    2004, Stat. Appl. Genet. Mol. Biol. 3(1), article 3). ``round_sd`` and ``lag1`` are the SD and
    the lag-1 autocorrelation of the rounds of one run; they are worth ``round_df`` degrees of freedom and
    ``lag1_rounds`` rounds. ``source`` says where the figures come from, for the report.
    """

    tau0: float
    nu0: float
    round_sd: float
    lag1: float
    round_df: float = 2.0
    lag1_rounds: float = 6.0
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("tau0", "nu0", "round_sd", "round_df", "lag1_rounds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"Prior({name}={value!r}): must be finite and at least 0")
        if not 0 <= self.lag1 <= 0.8:
            raise ValueError(f"Prior(lag1={self.lag1!r}): must be from 0 to 0.8")


DEFAULT_PRIOR = Prior(
    tau0=0.005,
    nu0=2.0,
    round_sd=0.005,
    lag1=0.4,
    source="default, from repeated vLLM runs on H100s widened for noisier boards",
)
"""Where the defaults come from.

Fresh-process runs of vLLM on three H100s: run-to-run SD 0.3 % raw and 0.16 % temperature-adjusted, rounds 0.4
to 0.7 %, lag-1 0.3 to 0.6. The run-to-run prior is wider, 0.5 %, and weak, because other boards are noisier:
with two degrees of freedom half of all boards lie above 0.6 % and one in ten above 1.5 %.
"""
