"""Answers of another length: a baseline's figure re-expressed at the counts of the run that is judged.

A change of the model's numerics (a quantization) changes greedy text, so that answers end a token sooner or later and
no stored run has the same counts. Prefill costs energy by prefilled token, decoding by generated token:

    J/token at counts (P', G') = (a P' + b G') / G',    a = prefill joules / P,  b = (joules - prefill joules) / G

Where the phases are not known, the truth lies between the two extremes that prefill is nothing and that it is all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TOLERANCE = 0.10
"""How far counts may lie apart, as a share: beyond it nobody knows how a token's cost grows with its context."""

UNTOLD_TOLERANCE = 0.02
"""The same where the phases are not known: what a difference of more is worth would be a guess."""

CONTEXT_GROWTH = 0.1
"""How much of a change of length may come back as a change of each token's own cost (attention over a longer context);
taken as the standard error."""


@dataclass(frozen=True)
class Counts:
    """Tokens of one execution (or means over executions that vary): prefilled ones are those not read from a cache."""

    prefilled: float
    generated: float


@dataclass(frozen=True)
class PhaseFigures:
    """A baseline's energy (or seconds) at its own counts; ``prefill_stderr`` is the error of the split.

    ``prefill`` is None where the phases are not told apart.
    """

    counts: Counts
    total: float
    prefill: float | None
    prefill_stderr: float = 0.0


@dataclass(frozen=True)
class Reexpressed:
    """What to add to ln(J/token) of the baseline's rounds, and the standard error that this brings in."""

    log_shift: float
    stderr: float


@dataclass(frozen=True)
class NotComparable:
    """Why a figure cannot be re-expressed."""

    reason: str


def at_lengths(
    figures: PhaseFigures, counts: Counts, *, tolerance: float = TOLERANCE, units: float | None = None
) -> Reexpressed | NotComparable:
    """Re-express a baseline's figure at other counts.

    Args:
        figures: The baseline's, from its own phases.
        counts: Of the run that is judged.
        tolerance: The largest difference of either count, as a share of the baseline's.
        units: How many times as many units the joules are divided by at these counts (default: generated tokens).

    Returns:
        The shift and its standard error: the split's, and that of tokens whose cost grows with their context. Equal
        counts are exact: a shift and an error of 0.

    Raises:
        ValueError: A count or the energy is not positive, or the prefill is not within the total.
    """
    old = figures.counts
    if min(old.generated, counts.generated, old.prefilled, counts.prefilled) < 0:
        raise ValueError("counts must be positive")
    if units is None and min(old.generated, counts.generated) <= 0:
        raise ValueError("counts must be positive")
    if figures.total <= 0 or not 0 <= (figures.prefill or 0.0) <= figures.total:
        raise ValueError("the prefill's energy must lie within the total's")
    if old == counts:
        return Reexpressed(0.0, 0.0)
    for name, before, after in (
        ("prefilled", old.prefilled, counts.prefilled),
        ("generated", old.generated, counts.generated),
    ):
        if before == 0 and after > 0:
            return NotComparable(
                f"the baseline {name} nothing, so that the cost of a {name} token is not known"
            )
    longer = counts.generated / old.generated if old.generated else 1.0
    fuller = counts.prefilled / old.prefilled if old.prefilled else 1.0
    worst = max(abs(longer - 1), abs(fuller - 1))
    if worst > tolerance:
        return NotComparable(f"the counts lie {worst:.0%} apart, more than the tolerance of {tolerance:.0%}")
    if figures.prefill is None:
        if worst > UNTOLD_TOLERANCE:
            return NotComparable(
                f"the counts lie {worst:.1%} apart, and prefill and decode were not told apart, which allows no more "
                f"than {UNTOLD_TOLERANCE:.0%}"
            )
        share, share_error = 0.5, 0.5
    else:
        share, share_error = figures.prefill / figures.total, figures.prefill_stderr / figures.total
    scaled = share * fuller + (1 - share) * longer
    # d ln(scaled) / d share, times the error of the share.
    split = abs(fuller - longer) / scaled * share_error
    growth = CONTEXT_GROWTH * math.hypot(
        math.log(longer) * (1 - share), math.log(fuller) if fuller > 0 else 0.0
    )
    return Reexpressed(math.log(scaled / (longer if units is None else units)), math.hypot(split, growth))
