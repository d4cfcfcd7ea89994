"""Rules that decide whether a run fails against stored runs, side by side; each sees nothing but the runs. Pure.

The project's own rule stands at the end, in one place: OWN.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from gpu_gate_rates_data import Run, executions
from scipy.stats import mannwhitneyu, t, ttest_ind

STORED = 5
FEWEST_STORED = 3
MOST_SETS = 6
LEVEL = 0.05
SEED = 13


Interval = tuple[float, float, float]
"""A change, and the lower and upper end of its 95 % interval."""


@dataclass(frozen=True)
class ReplayedGate:
    """Whether it failed, what was said, by which part, and the changes that were found."""

    failed: bool
    word: str = ""
    part: str = ""
    total: Interval | None = None
    work: Interval | None = None
    pace: Interval | None = None


Rule = Callable[[Run, Sequence[Run], float], ReplayedGate]
"""The new run, the stored ones, and the limit (a share)."""


def median(new: Run, stored: Sequence[Run], limit: float) -> ReplayedGate:
    """Return the medians of all rounds differ by more than the limit."""
    change = (
        float(np.median(new.per_token) / np.median(np.concatenate([each.per_token for each in stored]))) - 1
    )
    return ReplayedGate(change > limit)


def welch(new: Run, stored: Sequence[Run], limit: float) -> ReplayedGate:
    """Welch's t test on rounds, one-sided at 5 %, and the means differ by more than the limit."""
    logs = np.log(new.per_token)
    old = np.log(np.concatenate([each.per_token for each in stored]))
    change = math.expm1(float(logs.mean() - old.mean()))
    p = float(ttest_ind(logs, old, equal_var=False, alternative="greater").pvalue)
    return ReplayedGate(p < LEVEL and change > limit)


def mann_whitney(new: Run, stored: Sequence[Run], limit: float) -> ReplayedGate:
    """Mann and Whitney's test on rounds, one-sided at 5 %, and the medians differ by more than the limit."""
    old = np.concatenate([each.per_token for each in stored])
    change = float(np.median(new.per_token) / np.median(old)) - 1
    p = float(mannwhitneyu(new.per_token, old, alternative="greater").pvalue)
    return ReplayedGate(p < LEVEL and change > limit)


def _prediction(new: float, stored: Sequence[float], limit: float, scale: float) -> ReplayedGate:
    old = np.array(stored) / scale
    found = float(new / scale - old.mean())
    error = float(old.std(ddof=1)) * math.sqrt(1 + 1 / len(old))
    return ReplayedGate(found > max(limit, float(t.ppf(0.99, len(old) - 1)) * error))


def runs_total(new: Run, stored: Sequence[Run], limit: float) -> ReplayedGate:
    """Return a plain prediction interval over runs, one-sided at 1 %, of J/token; no prior, no temperature, no pace."""
    scale = float(np.mean([each.per_token.mean() for each in stored]))
    return _prediction(new.per_token.mean(), [each.per_token.mean() for each in stored], limit, scale)


def runs_work(new: Run, stored: Sequence[Run], limit: float) -> ReplayedGate:
    """Return the same of the joules without those of waiting, as a share of the total: what pace cannot hide."""
    scale = float(np.mean([each.per_token.mean() for each in stored]))
    values = [each.active_per_token().mean() for each in stored]
    return _prediction(new.active_per_token().mean(), values, limit, scale)


def stored_sets(run: Run, runs: Sequence[Run]) -> list[list[Run]]:
    """Return sets of five runs of identical code on the same board from other processes: all, or many by lot.

    Fewer than five where the board has no more, and none below three.
    """
    others = [
        each
        for each in runs
        if (each.hold, each.board) == (run.hold, run.board) and each.process != run.process and each.identical
    ]
    if len(others) < FEWEST_STORED:
        return []
    # Newest first, as a baseline is read.
    others.sort(key=lambda each: each.created, reverse=True)
    sets = [list(each) for each in combinations(others, min(STORED, len(others)))]
    lot = random.Random(f"{SEED}/{run.board}/{run.process}")
    return lot.sample(sets, MOST_SETS) if len(sets) > MOST_SETS else sets


@dataclass(frozen=True)
class Outcome:
    """A run, judged against each set of stored runs."""

    run: Run
    judged: tuple[ReplayedGate, ...]

    @property
    def failed(self) -> bool:
        """By most sets: the sets overlap, so that the run is counted once."""
        return 2 * sum(each.failed for each in self.judged) > len(self.judged)

    @property
    def share(self) -> float:
        """Of the sets that fail it."""
        return sum(each.failed for each in self.judged) / len(self.judged)


def judge(rule: Rule, runs: Sequence[Run], identical: Sequence[Run], limit: float) -> list[Outcome]:
    """Each run that has enough stored runs."""
    return [
        Outcome(run, tuple(rule(run, each, limit) for each in sets))
        for run in runs
        if (sets := stored_sets(run, identical))
    ]


# joules 0.8.0 (PyPI landauer-gap), `joules ci`: base and candidate run alternately, three runs a side by default. It
# fails where the medians differ by more than the budget and the two ranges do not overlap. Its unit is the joules of
# the whole command; here it is given J/token of the measured rounds, without the start of the engine: a kinder unit.
CI_RUNS = 3
# `joules compare` has an exact two-sided p of Mann and Whitney; three runs a side cannot reach 5 %, five can.
COMPARED_RUNS = 5


def alternating(runs: Sequence[Run], each_side: int) -> list[tuple[list[Run], list[Run]]]:
    """Candidate and base, alternating in time, from a board's runs of identical code; no run is used twice."""
    ordered = sorted(runs, key=lambda one: one.created)
    size = 2 * each_side
    return [
        (ordered[at : at + size : 2], ordered[at + 1 : at + size : 2])
        for at in range(0, len(ordered) - size + 1, size)
    ]


def joules_ci(new: Sequence[float], base: Sequence[float], budget: float) -> bool:
    """Return the rule of ``joules ci`` as version 0.8.0 has it."""
    change = float(np.median(new) / np.median(base)) - 1
    return change > budget and not (min(new) <= max(base) and min(base) <= max(new))


def joules_compare(new: Sequence[float], base: Sequence[float], budget: float) -> bool:
    """Medians over the budget, and Mann-Whitney on runs two-sided below 5 %."""
    change = float(np.median(new) / np.median(base)) - 1
    return change > budget and float(mannwhitneyu(new, base, alternative="two-sided").pvalue) < LEVEL


def own(*, separate: bool) -> Rule:
    """Return the gate of the plugin as stored mode has it: one test in the family, no restarts, no other tests known.

    All runs of one hold share their occasion, as they are minutes apart; ``separate`` takes each for one of another
    day, as stored runs mostly are.
    """

    def rule(new: Run, stored: Sequence[Run], limit: float) -> ReplayedGate:
        from pytest_tokenpower.gate.verdict import Policy, judge
        from pytest_tokenpower.store.baseline import ComparableRuns

        found = judge(
            _record(new, separate),
            ComparableRuns(
                "identical code",
                tuple(_record(each, separate) for each in stored),
                tuple(str(each.process) for each in stored),
            ),
            Policy(limit, boards=_calibrated([new, *stored])),
        )
        return ReplayedGate(
            found.kind == "regressed",
            found.kind,
            found.decided_by,
            None
            if found.change is None
            else (found.change, found.change_low or 0.0, found.change_high or 0.0),
            None if found.work is None else (found.work.change, found.work.low, found.work.high),
            None if found.pace is None else (found.pace.change, found.pace.low, found.pace.high),
        )

    return rule


@lru_cache(maxsize=4096)
def _record(run: Run, separate: bool) -> Any:
    """Return the measurement that the plugin stored, as far as it is packed."""
    from pytest_tokenpower.core.records import MeasurementRecord, RoundRecord

    started = datetime.fromisoformat(run.created).timestamp() + 86_400.0 * run.process * separate
    repeats = executions(run)
    return MeasurementRecord(
        test=run.test,
        key={},
        provenance="measured",
        scope="gpu",
        method="power ring",
        rounds=tuple(
            RoundRecord(
                start_ns=at,
                seconds=float(run.seconds[at]),
                joules=float(run.joules[at]),
                stderr_joules=float(run.errors[at]),
                prompt_tokens=0,
                generated_tokens=round(float(run.tokens[at])),
                repeats=repeats[at],
                device_joules={run.board: float(run.joules[at])},
                temperature_celsius=float(run.celsius[at]),
            )
            for at in range(len(run.joules))
        ),
        comparable=True,
        host=f"hold {run.hold}",
        started=started,
    )


def _calibrated(runs: Sequence[Run]) -> Any:
    """Return what is known of the boards: the waiting watts that the runs' own processes have measured."""
    from pytest_tokenpower.core.records import WaitingRecord
    from pytest_tokenpower.gate.evidence import Boards

    waiting = {}
    for board in {run.board for run in runs}:
        seen = [run for run in runs if run.board == board and math.isfinite(run.waiting_watts)]
        if seen:
            found = _waiting(seen)
            waiting[board] = WaitingRecord(found.watts, found.stderr, found.celsius)
    return Boards(waiting)


def across_boards(
    new: Run, stored: Sequence[Run], limit: float, calibrated: Mapping[str, Mapping[str, float]] | None
) -> ReplayedGate:
    """Return the same rule where the stored runs are of another board, with the pieces of fixed work by board.

    Or without.
    """
    from pytest_tokenpower.stats.boards import calibration
    from pytest_tokenpower.stats.comparison import compare
    from pytest_tokenpower.stats.rule import Policy, decide

    found = compare(
        [_evidence(each) for each in stored],
        [_evidence(new)],
        waiting={stored[0].board: _waiting(stored), new.board: _waiting([new])},
        calibrations={
            board: calibration({"matmul": (pieces["matmul"], 0.0), "memory": (pieces["gemms"], 0.0)})
            for board, pieces in (calibrated or {}).items()
        },
    )
    decision = decide(found, Policy(limit))
    word = decision.settled(decision.p_failing, decision.p_improved, Policy(limit).alpha)
    return ReplayedGate(
        word == "regressed", word, decision.part, (found.total.change, *found.total.change_interval())
    )


def _evidence(run: Run) -> Any:
    from pytest_tokenpower.stats.comparison import Run as Evidence

    return Evidence(
        tuple(run.per_token.tolist()),
        tuple((run.seconds / run.tokens).tolist()),
        tuple(run.celsius.tolist()),
        tuple((run.errors / run.joules).tolist()),
        board=run.board,
        host=f"hold {run.hold}",
        occasion=f"hold {run.hold}",
    )


def _waiting(runs: Sequence[Run]) -> Any:
    from pytest_tokenpower.stats.pace import measured_waiting

    return measured_waiting([run.waiting_watts for run in runs], [run.waiting_celsius for run in runs])


PLAIN: dict[str, Rule] = {
    "median of rounds": median,
    "Welch on rounds": welch,
    "Mann-Whitney on rounds": mann_whitney,
    "t on runs, total (1 %)": runs_total,
    "t on runs, work (1 %)": runs_work,
}

# ---- THE PROJECT'S OWN RULE IS PLUGGED IN HERE -------------------------------------------------------------------
# A rule takes the new run, the stored runs and the limit (a share), and says whether the new run fails, by which part,
# and the changes that it found.
OWN: dict[str, Rule] = {
    "the gate, one sitting": own(separate=False),
    "the gate, runs as occasions": own(separate=True),
}
# ------------------------------------------------------------------------------------------------------------------
