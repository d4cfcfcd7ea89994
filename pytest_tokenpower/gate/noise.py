"""From repeated runs of identical code to the limit that the gate can hold on this machine. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import msgspec
import numpy as np

from pytest_tokenpower.analysis.rounds import good, log_errors, log_joules_per_token
from pytest_tokenpower.core.denominators import denominator, figure_per
from pytest_tokenpower.core.records import MeasurementRecord, RunRecord
from pytest_tokenpower.core.settings import DEFAULT_BASELINE_RUNS, DEFAULT_REGRESSION
from pytest_tokenpower.gate.evidence import Boards, runs_of, waiting_of
from pytest_tokenpower.gate.operating_point import gpu_temperatures
from pytest_tokenpower.gate.verdict import FAILING, Policy, judge
from pytest_tokenpower.stats.learning import learn_noise
from pytest_tokenpower.stats.noise import RunNoise, clopper_pearson, estimate_noise
from pytest_tokenpower.stats.planning import NoiseParts, noise_floor, noise_parts, smallest_limit
from pytest_tokenpower.stats.runs import summarise_runs
from pytest_tokenpower.stats.scatter import Noise
from pytest_tokenpower.stats.temperature import Adjustment, adjust_temperature
from pytest_tokenpower.store.baseline import ComparableRuns
from pytest_tokenpower.store.keys import describe, differences

FEWEST_RUNS = 3

ALPHA = 0.01

_COMPARES = "compares two variants within the test"

Answer = Literal["holds", "likely holds", "tight", "below the noise", "fails identical code"]

REFUSED: frozenset[Answer] = frozenset({"below the noise", "fails identical code"})
"""Answers that make the limit one to change: the gate would cry wolf, or could not see what it is set to see."""


@dataclass(frozen=True)
class ReplayedGate:
    """Each run judged by the gate against ``baseline_runs`` of the others, at the test's limit.

    ``kinds`` counts the verdicts; one that fails the build is a false failure, as the code is the same.
    """

    baseline_runs: int
    kinds: Mapping[str, int]

    @property
    def runs(self) -> int:
        """How many were judged."""
        return sum(self.kinds.values())

    @property
    def false_failures(self) -> int:
        """How many of them failed."""
        return sum(count for kind, count in self.kinds.items() if kind in FAILING)

    @property
    def false_failure_interval(self) -> tuple[float, float]:
        """The exact 95 % interval (Clopper-Pearson) of the share that fails."""
        return clopper_pearson(self.false_failures, self.runs)


@dataclass(frozen=True)
class MeasuredNoise:
    """What identical runs of one test scatter by, and what a limit may be there.

    ``value`` is of the ``figure`` that the test is compared by. ``raw`` is as read; ``adjusted`` at one temperature,
    None where ``refusal`` says why not; ``parts`` tells occasions, pace and boards apart. ``holds`` is the smallest
    limit that keeps the gate's promises (``stats.planning.smallest_limit``) at the spread that was found,
    ``holds_surely`` at its one-sided 95 % upper limit: both fractions, against ``baseline_runs`` stored runs, in a
    ``family`` of so many tests.
    """

    test: str
    provenance: str
    method: str
    figure: str
    value: float
    runs: int
    left_out: tuple[str, ...]
    raw: RunNoise
    adjusted: RunNoise | None
    refusal: str
    parts: NoiseParts
    meter_error: float
    limit: float
    baseline_runs: int
    family: int
    holds: float
    holds_surely: float
    noise_floor: float
    judged: ReplayedGate

    @property
    def unsteady(self) -> bool:
        """Whether the runs go one way, by more in all than a run's own rounds leave uncertain."""
        noise = self.adjusted or self.raw
        trend = noise.run_drift
        return (
            trend is not None and trend.certain and abs(trend.slope) * (self.runs - 1) > noise.location_error
        )

    @property
    def answer(self) -> Answer:
        """Whether the limit can be held."""
        if self.judged.false_failure_interval[0] > ALPHA:
            return "fails identical code"
        if self.limit < self.noise_floor:
            return "below the noise"
        if self.limit < self.holds:
            return "tight"
        return "holds" if self.limit >= self.holds_surely else "likely holds"


@dataclass(frozen=True)
class NoAnswer:
    """A test whose noise these runs do not tell, and why; ``meant`` for one that asks nothing of stored runs."""

    test: str
    why: str
    meant: bool = False


def analyse(
    runs: Sequence[RunRecord], *, threshold: float | None = None, baseline_runs: int | None = None
) -> tuple[MeasuredNoise | NoAnswer, ...]:
    """Each energy test of repeated runs of identical code, in the order of the first run that holds it.

    ``threshold`` and ``baseline_runs`` replace what the tests' own settings say. The noise of each test is learned
    from these runs of the others, as it would be from a store that holds them.
    """
    ordered = [_dated(run) for run in sorted(runs, key=lambda run: run.created)]
    tests = dict.fromkeys(measured.test for run in ordered for measured in run.measurements)
    chosen = {test: _valid(test, ordered) for test in tests}
    learned = learn_noise(
        {test: (tuple(runs_of(valid)),) if valid else () for test, (valid, _) in chosen.items()},
        waiting_of([one for valid, _ in chosen.values() for one in valid], Boards()),
    )
    return tuple(
        _analyse(test, *chosen[test], learned[test], threshold, baseline_runs, len(tests)) for test in tests
    )


def _dated(run: RunRecord) -> RunRecord:
    """Return the run with the time of each of its measurements, which older ones do not say."""
    created = datetime.fromisoformat(run.created.replace("Z", "+00:00")).timestamp()
    return msgspec.structs.replace(
        run,
        measurements=tuple(
            one if one.started is not None else msgspec.structs.replace(one, started=created)
            for one in run.measurements
        ),
    )


def _valid(test: str, runs: Sequence[RunRecord]) -> tuple[list[MeasurementRecord], list[str]]:
    """Return the comparable measurements of a test, and why each other run has none."""
    valid: list[MeasurementRecord] = []
    left_out: list[str] = []
    for number, run in enumerate(runs, 1):
        measured = next((one for one in run.measurements if one.test == test), None)
        if measured is None:
            left_out.append(f"run {number}: not measured")
        elif measured.variants:
            left_out.append(f"run {number}: {_COMPARES}")
        elif not measured.comparable or not good(measured.rounds):
            left_out.append(f"run {number}: {'; '.join(measured.reasons) or 'no round could be measured'}")
        elif valid and (found := differences(valid[0].key, measured.key)):
            left_out.append(f"run {number}: differs from the first in {describe(found)}")
        else:
            valid.append(measured)
    return valid, left_out


def _analyse(
    test: str,
    valid: Sequence[MeasurementRecord],
    left_out: Sequence[str],
    noise: Noise,
    threshold: float | None,
    baseline_runs: int | None,
    family: int,
) -> MeasuredNoise | NoAnswer:
    if not valid and left_out and all(why.endswith(_COMPARES) for why in left_out):
        return NoAnswer(test, f"{_COMPARES}: no stored runs are judged", meant=True)
    if len(valid) < FEWEST_RUNS:
        causes = Counter(why.partition(": ")[2] for why in left_out)
        listed = "; ".join(f"{why} ({count} run{'s' * (count > 1)})" for why, count in causes.items())
        return NoAnswer(
            test,
            f"{len(valid)} valid run{'s' * (len(valid) != 1)} of at least {FEWEST_RUNS}"
            + (f": {listed}" if listed else ""),
        )
    gate = valid[-1].gate
    limit = threshold or (gate.regression if gate else DEFAULT_REGRESSION)
    stored = baseline_runs or (gate.baseline_runs if gate else DEFAULT_BASELINE_RUNS)
    values = [log_joules_per_token(one.rounds, denominator(one.key)) for one in valid]
    errors = [log_errors(one.rounds, denominator(one.key)) for one in valid]
    raw = estimate_noise(values, meter_errors_per_run=errors)
    adjusted, refusal = _adjusted(values, [gpu_temperatures(one) for one in valid], errors)
    parts = noise_parts(runs_of(valid), waiting_of(valid, Boards()))
    policy = Policy(limit, family=family)
    # Occasions are the units of the gate; from too few of them runs alone have to tell.
    enough = parts.total is not None and parts.total.df >= FEWEST_RUNS - 1
    spread = parts.total if enough and parts.total is not None else (adjusted or raw).runs
    sd, surely = (max(each, 1e-6) for each in (spread.sd, spread.at_most()))
    return MeasuredNoise(
        test=test,
        provenance=valid[0].provenance,
        method=valid[0].method,
        figure=figure_per(denominator(valid[0].key)),
        value=math.exp(float(np.mean([run.location for run in summarise_runs(values)]))),
        runs=len(valid),
        left_out=tuple(left_out),
        raw=raw,
        adjusted=adjusted,
        refusal=refusal,
        parts=parts,
        meter_error=float(np.sqrt(np.mean(np.square(np.concatenate(errors))))),
        limit=limit,
        baseline_runs=stored,
        family=family,
        holds=smallest_limit(sd, stored, policy.of_rule(limit), noise),
        holds_surely=smallest_limit(surely, stored, policy.of_rule(limit), noise),
        noise_floor=noise_floor(sd, stored, policy.of_rule(limit), noise),
        judged=judge_each(valid, limit, stored, noise, family),
    )


def _adjusted(
    values: Sequence[Sequence[float]],
    temperatures: Sequence[Sequence[float] | None],
    errors: Sequence[Sequence[float]],
) -> tuple[RunNoise | None, str]:
    """Return the noise at one GPU temperature, or why there is none."""
    if any(each is None for each in temperatures):
        return None, "the GPU's temperature is not known"
    found = adjust_temperature(values[:-1], temperatures[:-1], values[-1:], temperatures[-1:])
    if not isinstance(found, Adjustment):
        return None, found.reason
    return estimate_noise([*found.baseline, *found.new], meter_errors_per_run=errors), ""


def judge_each(
    runs: Sequence[MeasurementRecord], limit: float, baseline_runs: int, noise: Noise, family: int = 1
) -> ReplayedGate:
    """Each run against the ``baseline_runs`` others that follow it, round about: each is a baseline equally often."""
    stored = min(baseline_runs, len(runs) - 1)
    kinds = Counter(
        judge(
            run,
            ComparableRuns(
                "the others", tuple(runs[(at + step) % len(runs)] for step in range(1, stored + 1))
            ),
            Policy(limit, family=family),
            noise=noise,
        ).kind
        for at, run in enumerate(runs)
    )
    return ReplayedGate(stored, dict(kinds))
