"""From repeated runs of identical code to the limit that the gate can hold on this machine. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pytest_tokenpower.analysis.rounds import good, log_errors, log_joules_per_token
from pytest_tokenpower.core.denominators import denominator, figure_per
from pytest_tokenpower.core.records import MeasurementRecord, RunRecord
from pytest_tokenpower.core.settings import DEFAULT_BASELINE_RUNS, DEFAULT_REGRESSION
from pytest_tokenpower.gate.operating_point import gpu_temperatures
from pytest_tokenpower.gate.verdict import FAILING, Policy, judge
from pytest_tokenpower.stats.noise import RunNoise, StoredGate, clopper_pearson, estimate_noise
from pytest_tokenpower.stats.prior import Prior, learn_priors
from pytest_tokenpower.stats.runs import summarise_runs
from pytest_tokenpower.stats.temperature import Adjustment, adjust_temperature
from pytest_tokenpower.store.baseline import ComparableRuns
from pytest_tokenpower.store.keys import describe, differences

FEWEST_RUNS = 3

ALPHA = 0.05

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

    ``value`` is of the ``figure`` that the test is compared by. ``raw`` is as read; ``adjusted`` at one GPU
    temperature, None where ``refusal`` says why not. ``holds`` is the smallest limit that keeps the gate's
    promises (``stats.noise.StoredGate``) at the spread that was found, ``holds_surely`` at its one-sided
    95 % upper limit: both fractions, against ``baseline_runs`` stored runs, in a ``family`` of so many tests.
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
    meter_error: float
    limit: float
    baseline_runs: int
    family: int
    prior: Prior
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

    ``threshold`` and ``baseline_runs`` replace what the tests' own settings say. The prior of each test is learned
    from these runs of the others, as it would be from a store that holds them.
    """
    ordered = sorted(runs, key=lambda run: run.created)
    tests = dict.fromkeys(measured.test for run in ordered for measured in run.measurements)
    chosen = {test: _valid(test, ordered) for test in tests}
    priors = learn_priors(
        {
            test: summarise_runs([log_joules_per_token(one.rounds, denominator(one.key)) for one in valid])
            if valid
            else []
            for test, (valid, _) in chosen.items()
        }
    )
    return tuple(
        _analyse(test, *chosen[test], priors[test], threshold, baseline_runs, len(tests)) for test in tests
    )


def _valid(test: str, runs: Sequence[RunRecord]) -> tuple[list[MeasurementRecord], list[str]]:
    """The comparable measurements of a test, and why each other run has none."""
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
    prior: Prior,
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
    raw = estimate_noise(values, prior, meter_errors_per_run=errors)
    adjusted, refusal, extra = _adjusted(
        values, [gpu_temperatures(one) for one in valid], errors, prior, stored
    )
    noise = adjusted or raw
    rule = StoredGate(noise.runs.sd, noise.location_error, stored, prior, extra, family, ALPHA)
    return MeasuredNoise(
        test=test,
        provenance=valid[0].provenance,
        method=valid[0].method,
        figure=figure_per(denominator(valid[0].key)),
        value=math.exp(float(np.mean([run.location for run in summarise_runs(values, prior=prior)]))),
        runs=len(valid),
        left_out=tuple(left_out),
        raw=raw,
        adjusted=adjusted,
        refusal=refusal,
        meter_error=float(np.sqrt(np.mean(np.square(np.concatenate(errors))))),
        limit=limit,
        baseline_runs=stored,
        family=family,
        prior=prior,
        holds=rule.smallest_threshold(),
        holds_surely=replace(rule, run_sd=noise.runs.at_most()).smallest_threshold(),
        noise_floor=rule.noise_floor,
        judged=judge_each(valid, limit, stored, prior, family),
    )


def _adjusted(
    values: Sequence[Sequence[float]],
    temperatures: Sequence[Sequence[float] | None],
    errors: Sequence[Sequence[float]],
    prior: Prior,
    baseline_runs: int,
) -> tuple[RunNoise | None, str, float]:
    """The noise at one GPU temperature, why there is none, and what the adjustment adds to se² on average."""
    if any(each is None for each in temperatures):
        return None, "the GPU's temperature is not known", 0.0
    found = adjust_temperature(values[:-1], temperatures[:-1], values[-1:], temperatures[-1:], prior)
    if not isinstance(found, Adjustment):
        return None, found.reason, 0.0
    means = [float(np.mean(each)) for each in temperatures if each is not None]
    shift = float(np.var(means, ddof=1)) * (1 + 1 / baseline_runs)
    noise = estimate_noise([*found.baseline, *found.new], prior, meter_errors_per_run=errors)
    return noise, "", shift * found.slope_stderr**2


def judge_each(
    runs: Sequence[MeasurementRecord], limit: float, baseline_runs: int, prior: Prior, family: int = 1
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
            prior=prior,
        ).kind
        for at, run in enumerate(runs)
    )
    return ReplayedGate(stored, dict(kinds))
