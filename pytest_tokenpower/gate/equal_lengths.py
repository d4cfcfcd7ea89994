"""Stored runs whose answers have other lengths: their figures at the counts of the run that is judged. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_tokenpower.analysis.rounds import gated, good, prefilled_tokens, units_per
from pytest_tokenpower.core.denominators import denominator
from pytest_tokenpower.core.records import MeasurementRecord, RoundRecord
from pytest_tokenpower.core.text import percent, plural
from pytest_tokenpower.stats.comparison import Run
from pytest_tokenpower.stats.lengths import UNTOLD_TOLERANCE, Counts, NotComparable, PhaseFigures, at_lengths
from pytest_tokenpower.store.keys import LENGTHS, VARY

REMEDIES = (
    "fix the lengths (min_tokens == max_tokens), store runs at the new lengths, or compare both variants in one test "
    "with energy.compare"
)


@dataclass(frozen=True)
class EqualLengths:
    """Stored runs at the counts of another run.

    ``kept`` are the places of ``runs`` among those that were given: the others lie too far apart. ``squared_error`` is
    what that leaves uncertain in ln(J/token), ``notes`` say it; ``refusal`` says why the others are not comparable.
    Equal counts are exact: nothing is changed, and there is nothing to say.
    """

    runs: tuple[Run, ...]
    kept: tuple[int, ...]
    squared_error: float = 0.0
    notes: tuple[str, ...] = ()
    refusal: str = ""

    @classmethod
    def unchanged(cls, runs: Sequence[Run]) -> EqualLengths:
        """Return the runs as they are."""
        return cls(tuple(runs), tuple(range(len(runs))))


def at_equal_lengths(
    runs: Sequence[Run],
    records: Sequence[MeasurementRecord],
    judged: MeasurementRecord,
    tolerance: float,
) -> EqualLengths:
    """Re-express stored runs at the counts of the run that is judged.

    Args:
        runs: the stored runs as the statistics see them.
        records: their measurements.
        judged: whose counts are taken.
        tolerance: how far counts may lie apart, as a share.
    """
    per = denominator(judged.key)
    wanted, wanted_units = counts_of(judged.rounds, per), _units(judged, per)
    changed: list[Run] = []
    kept: list[int] = []
    errors: list[float] = []
    apart: Counts | None = None
    told = True
    refusal = ""
    for at, (run, record) in enumerate(zip(runs, records, strict=True)):
        if _constant_and_equal(record, judged):
            changed.append(run)
            kept.append(at)
            continue
        counts = counts_of(record.rounds, per)
        units = wanted_units / _units(record, per)
        energy = _joules(record, counts, per)
        joules, seconds = (
            at_lengths(each, wanted, tolerance=tolerance, units=units)
            for each in (energy, _seconds(record, counts, per))
        )
        if isinstance(joules, NotComparable) or isinstance(seconds, NotComparable):
            reason = next(each.reason for each in (joules, seconds) if isinstance(each, NotComparable))
            refusal = f"{_stated(wanted)} here, {_stated(counts)} there: {reason}; {REMEDIES}"
            continue
        if joules.log_shift or joules.stderr:
            apart = counts
            told &= energy.prefill is not None
        kept.append(at)
        errors.append(joules.stderr)
        changed.append(
            replace(
                run,
                joules_per_token=tuple(math.exp(joules.log_shift) * each for each in run.joules_per_token),
                seconds_per_token=tuple(math.exp(seconds.log_shift) * each for each in run.seconds_per_token),
            )
        )
    notes = []
    error = max(errors, default=0.0)
    if apart is not None:
        how = "from their own phases" if told else "with prefill and decode not told apart"
        notes.append(
            f"Compared at equal lengths: the stored runs had {_stated(apart)}, this one {_stated(wanted)}; their "
            f"figures are re-expressed {how}, which leaves ±{percent(1.96 * error, 2)} uncertain."
        )
    if left_out := len(runs) - len(kept):
        notes.append(
            f"{plural(left_out, 'stored run')} left out, whose lengths lie too far apart: {refusal}."
        )
    return EqualLengths(tuple(changed), tuple(kept), error**2, tuple(notes), refusal)


def _constant_and_equal(one: MeasurementRecord, other: MeasurementRecord) -> bool:
    """Whether every execution of both runs had the same lengths, by their keys: what a cache took of them may vary."""
    here, there = (tuple(each.key.get(name) for name in LENGTHS) for each in (one, other))
    return here == there and None not in here and VARY not in here


def unlike_lengths(
    baseline: Sequence[RoundRecord],
    candidate: Sequence[RoundRecord],
    per: str,
    names: tuple[str, str] | None,
) -> tuple[str, ...]:
    """Say that two variants of one test had unlike counts, which nothing takes out of the figures compared.

    Args:
        baseline: its rounds.
        candidate: its rounds.
        per: the denominator of the figures.
        names: what the two are called.
    """
    one, other = counts_of(baseline, per), counts_of(candidate, per)
    pairs = ((one.prefilled, other.prefilled), (one.generated, other.generated))
    if all(abs(after - before) <= UNTOLD_TOLERANCE * before for before, after in pairs):
        return ()
    called = names or ("the baseline", "the candidate")
    return (
        f"Not at equal lengths: an execution of {called[0]} has {_stated(one)}, of {called[1]} {_stated(other)}; the "
        "change holds what that alone makes of it.",
    )


def counts_of(rounds: Sequence[RoundRecord], per: str) -> Counts:
    """Return the mean counts of one execution over the good rounds; a prefill generates nothing."""
    kept = [one.record for one in good(rounds)]
    executions = sum(one.repeats for one in kept)
    generated = 0 if per == "prompt_token" else sum(one.generated_tokens for one in kept)
    return Counts(sum(map(prefilled_tokens, kept)) / executions, generated / executions)


def _units(measurement: MeasurementRecord, per: str) -> float:
    """Return what the joules of an execution are divided by."""
    kept = [one.record for one in good(measurement.rounds)]
    return sum(units_per(per, one) for one in kept) / sum(one.repeats for one in kept)


def _joules(record: MeasurementRecord, counts: Counts, per: str) -> PhaseFigures:
    """Return the joules that are compared, of all good rounds, and the prefill's where it is known in each of them."""
    whole = sum(one.joules for one in gated(record.rounds, per))
    if per == "prompt_token":
        return PhaseFigures(counts, whole, whole)
    kept = good(record.rounds)
    prefill = [one.record.phases.get("prefill") for one in kept]
    known = [each for each in prefill if each is not None]
    return PhaseFigures(
        counts,
        whole,
        sum(each.joules for each in known) if len(known) == len(kept) else None,
        math.hypot(*(each.stderr_joules for each in known)) if known else 0.0,
    )


def _seconds(record: MeasurementRecord, counts: Counts, per: str) -> PhaseFigures:
    """Return the same of seconds: a prefill's share of them is not its share of the joules."""
    whole = sum(one.seconds for one in gated(record.rounds, per))
    if per == "prompt_token":
        return PhaseFigures(counts, whole, whole)
    kept = [one.record for one in good(record.rounds)]
    prefill = [one.phases.get("prefill") for one in kept]
    known = [each.seconds for each in prefill if each is not None]
    return PhaseFigures(counts, whole, sum(known) if len(known) == len(kept) else None)


def _stated(counts: Counts) -> str:
    if not counts.generated:
        return f"{counts.prefilled:.6g} prefilled tokens"
    return f"{counts.prefilled:.6g} prefilled and {counts.generated:.6g} generated tokens"
