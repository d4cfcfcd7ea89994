"""The conditions that two sides were measured under: clocks, power limit, GPU temperature; what drift means. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_tokenpower.analysis.rounds import good
from pytest_tokenpower.core.records import MeasurementRecord
from pytest_tokenpower.stats.temperature import MOST_SHIFT_CELSIUS
from pytest_tokenpower.store.keys import describe, differences, ignoring

NOTABLE_SHARE = 0.1
"""A share of time under the power limit that differs by more than this between the sides is a finding, not noise."""

NOTABLE_CLOCK = 0.05
"""SM clocks that differ by more than this are a finding. The mean clocks of runs of one code on an H100 that is at its
power limit for a quarter of the time lie 3 % apart, single rounds 9 %."""


@dataclass(frozen=True)
class Drift:
    """How the new runs' conditions differ from the stored runs': ``lines`` say it, empty where they are alike.

    ``invalid`` says why the two cannot be compared at all.
    """

    lines: tuple[str, ...] = ()
    invalid: str = ""


def gpu_temperatures(measurement: MeasurementRecord) -> list[float] | None:
    """Return the mean GPU temperature of each good round in °C; None where one of them has none."""
    known = [each.record.temperature_celsius for each in good(measurement.rounds)]
    return [value for value in known if value is not None] if None not in known else None


def unlikeness(first: MeasurementRecord, again: MeasurementRecord, ignore: Sequence[str] = ()) -> str:
    """Why a second process on this machine did not measure the same thing on the same devices; empty where it did.

    Key fields in ``ignore`` are left out. Where the number of devices may differ, so may they.
    """
    if differing := differences(ignoring(first.key, ignore), ignoring(again.key, ignore)):
        return f"it differs in {describe(differing)}"
    here, there = ({name for one in run.rounds for name in one.device_joules} for run in (first, again))
    if here != there and len(here) == len(there):
        return f"it ran on {', '.join(sorted(there))}, the run itself on {', '.join(sorted(here))}"
    return ""


def compare_conditions(
    new: Sequence[MeasurementRecord], runs: Sequence[MeasurementRecord], refusal: str = ""
) -> Drift:
    """Hold the conditions of the new runs against those of the stored ones.

    ``refusal`` is why J/token could not be reduced to one GPU temperature; empty where it was, or where temperatures
    are not known. Conditions that one of the sides does not have are not compared.
    """
    lines = [_throttling(new, runs)]
    clocks, invalid = _clocks(new, runs)
    lines.append(clocks)
    if refusal:
        lines.append(f"Compared as read, not at one GPU temperature: {refusal}.")
    else:
        lines.append(_start(new, runs))
    return Drift(tuple(line for line in lines if line), invalid)


def _throttling(new: Sequence[MeasurementRecord], runs: Sequence[MeasurementRecord]) -> str:
    """Where the new runs spent another share of their time under the board's power limit; empty where they did not."""
    here, there = _mean(_capped(new)), _mean(_capped(runs))
    if here is None or there is None or abs(here - there) <= NOTABLE_SHARE:
        return ""
    return (
        f"At its power limit for {100 * here:.0f} % of the time, the baseline for {100 * there:.0f} %: a board that is "
        "capped spends time instead of power."
    )


def _clocks(new: Sequence[MeasurementRecord], runs: Sequence[MeasurementRecord]) -> tuple[str, str]:
    """Return the line about SM clocks, and why it makes the comparison invalid; each may be empty.

    A board at its power limit lowers its clocks by itself: that is the load's doing, and a finding. Clocks that are
    lower in every round without that are somebody's setting: another operating point, with another J/token.
    """
    here, there = _clocks_of(new), _clocks_of(runs)
    if not here or not there:
        return "", ""
    mean, before = sum(here) / len(here), sum(there) / len(there)
    change = mean / before - 1
    if abs(change) <= NOTABLE_CLOCK:
        return "", ""
    line = f"SM clock {mean:.0f} MHz, the baseline's {before:.0f} MHz ({100 * change:+.0f} %)"
    slower, faster, side = (here, there, new) if change < 0 else (there, here, runs)
    capped = _mean(_capped(side))
    if max(slower) >= min(faster):
        return f"{line}, not in every round.", ""
    if capped is None:
        return f"{line}; whether the power limit held it down is not known.", ""
    if capped > NOTABLE_SHARE:
        return f"{line}: the power limit holds the slower side's clocks down.", ""
    return "", (
        f"{line}, and no power limit explains it: clocks that were set otherwise are another operating point; set them "
        "as they were, or store new runs at these"
    )


def _start(new: Sequence[MeasurementRecord], runs: Sequence[MeasurementRecord]) -> str:
    """Where the new runs began much warmer or colder than the stored ones."""
    here, there = _mean(_starts(new)), _mean(_starts(runs))
    if here is None or there is None or abs(here - there) <= MOST_SHIFT_CELSIUS:
        return ""
    return (
        f"The first round was at {here:.0f} °C, the baseline's at {there:.0f} °C: more warm-up rounds would bring the "
        "board to one temperature."
    )


def _starts(runs: Sequence[MeasurementRecord]) -> list[float]:
    firsts = [good(run.rounds)[:1] for run in runs]
    known = [first[0].record.temperature_celsius for first in firsts if first]
    return [celsius for celsius in known if celsius is not None]


def _clocks_of(runs: Sequence[MeasurementRecord]) -> list[float]:
    clocks = [one.record.sm_clock_mhz for run in runs for one in good(run.rounds)]
    return [mhz for mhz in clocks if mhz is not None]


def _capped(runs: Sequence[MeasurementRecord]) -> list[float]:
    shares = [one.record.limited_shares.get("power") for run in runs for one in good(run.rounds)]
    return [share for share in shares if share is not None]


def _mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None
