"""The words that say a verdict against stored runs: the change, how sure it is, and where it comes from. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_tokenpower.analysis.figures import figures
from pytest_tokenpower.core.text import signed
from pytest_tokenpower.stats.decision import below_noise_floor

if TYPE_CHECKING:
    from pytest_tokenpower.core.records import MeasurementRecord
    from pytest_tokenpower.gate.operating_point import Drift
    from pytest_tokenpower.stats.moderated import Estimate
    from pytest_tokenpower.store.baseline import ComparableRuns


UNDECIDED = "  Not decided:"


"""How the line of a message begins that says what would decide it."""


SETTLED = "  Settled with all comparisons of this run (Holm)."


"""What a message ends with that only the whole run's comparisons together have decided."""


def comparison(
    kind: str,
    new: Sequence[MeasurementRecord],
    stored: ComparableRuns,
    threshold: float,
    estimate: Estimate,
    raw: Estimate,
    drift: Drift,
    *,
    trusted: bool,
) -> str:
    """The message of a verdict: of ``estimate``, ``raw`` being as read; ``trusted``: the conditions let it be decided.

    ``new`` are the measurement and its restarts.
    """
    here, there = _averages(new), _averages(stored.runs)
    changes = {name: math.log(here[name] / there[name]) for name in here if name in there}
    base = there["joules_per_token"]
    low, high = estimate.change_interval()
    runs = f"{len(stored.runs)} run{'s' if len(stored.runs) != 1 else ''}"
    side = "above" if estimate.change >= 0 else "below"
    # The figures are as read; the change that is judged is at one GPU temperature, and may be another one.
    as_read = f", at the same GPU temperature ({signed(raw.change)} as read)"
    lines = [
        f"{here['joules_per_token']:.4g} J/token is {100 * abs(estimate.change):.1f} % {side} {stored.label} "
        f"({base:.4g}, {runs}){as_read if abs(raw.change - estimate.change) >= 5e-4 else ''}; "
        f"limit {_percent(threshold)}."
    ]
    lines.append(f"  95 % interval {signed(low)} to {signed(high)}, one-sided p {_p(estimate, kind)}.")
    lines.append("  " + _anatomy(changes, here))
    if drift.invalid:
        lines[0] = f"  {lines[0]}"
        lines.insert(0, f"the comparison is not to be trusted: {drift.invalid}.")
    lines += [f"  {line}" for line in drift.lines]
    if len(new) > 1:
        lines.append(f"  Over {len(new)} runs of this code, each in a fresh process.")
    if kind == "doubtful":
        lines.append("  Doubtful: to be restarted in a fresh process when all tests have run.")
    elif kind == "inconclusive" and not trusted:
        lines.append(
            f"{UNDECIDED} the difference of the GPU temperatures may be worth {signed(math.expm1(drift.leakage))}, "
            "which would make it another verdict: bring the board to the baseline's temperature (warm-up rounds)."
        )
    elif kind == "inconclusive":
        lines.append(
            f"{UNDECIDED} this comparison can tell changes from {_percent(estimate.resolvable(threshold), 2)} on; "
            "more stored runs of the baseline or more rounds would tell smaller ones."
        )
    elif below_noise_floor(estimate, threshold):
        lines.append(
            f"  The limit is below the noise: changes under {_percent(math.expm1(estimate.smallest_failing()), 2)} "
            "cannot be told."
        )
    if stored.note:
        lines.append(f"  {stored.note}")
    if estimate.provisional:
        lines.append(f"  Provisional: only {runs} stored.")
    return "\n".join(lines)


def _p(estimate: Estimate, kind: str) -> str:
    p = estimate.p_below() if kind == "improved" else estimate.p_above()
    return f"= {p:.2g}" if p >= 1e-4 else "< 0.0001"


def _percent(share: float, digits: int = 3) -> str:
    return f"{100 * share:.{digits}g} %"


def _averages(runs: Sequence[MeasurementRecord]) -> dict[str, float]:
    """The geometric mean of each figure that every run has."""
    each = [figures(run.rounds) for run in runs]
    return {
        name: math.exp(sum(math.log(one[name].value) for one in each) / len(each))
        for name in each[0]
        if all(name in one for one in each)
    }


def _anatomy(changes: Mapping[str, float], here: Mapping[str, float]) -> str:
    """Prefill or decode, power or speed: where the change comes from."""

    def part(name: str) -> str:
        return signed(math.expm1(changes[name]))

    phases = [
        f"{label} {part(name)}"
        for label, name in (("decode", "decode_joules_per_token"), ("prefill", "prefill_joules_per_token"))
        if name in changes
    ]
    engine = (
        f"power {here['mean_watts']:.0f} W ({part('mean_watts')}), "
        f"{here['tokens_per_second']:.4g} tok/s ({part('tokens_per_second')}): "
        f"{_power_or_speed(changes['mean_watts'], changes['tokens_per_second'])}"
    )
    return ", ".join(phases) + ("; " if phases else "") + engine + "."


def _power_or_speed(power: float, speed: float) -> str:
    """With ln J/token = ln W - ln tok/s: which of the two carries the change."""
    total = power - speed
    if abs(total) < 0.005:
        return "no change"
    share = power / total
    hotter, slower = ("hotter", "slower") if total > 0 else ("cooler", "faster")
    if share > 0.75:
        return f"{hotter}, not {slower}"
    if share < 0.25:
        return f"{slower}, not {hotter}"
    return f"{hotter} and {slower}"
