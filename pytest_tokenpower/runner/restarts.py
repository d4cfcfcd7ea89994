"""Doubtful comparisons measured anew in fresh processes, the most doubtful first, while there is time.

The order is by p, the smallest first: what is left undone for want of time is then less suspicious than what was
restarted, and may be decided by the plain rule without more false failures than that rule has by itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from pytest_tokenpower.core.records import MeasurementRecord, VerdictRecord
from pytest_tokenpower.core.text import short_test_name
from pytest_tokenpower.errors import TokenPowerError
from pytest_tokenpower.gate.operating_point import unlikeness
from pytest_tokenpower.gate.verdict import LOOKS
from pytest_tokenpower.runner.child import ChildRun, output_of

Judge = Callable[[MeasurementRecord, VerdictRecord, Sequence[MeasurementRecord], "int | None"], VerdictRecord]
"""A doubtful verdict of a measurement judged again, with its restarts, at one of LOOKS looks (None: the only one)."""

Restart = Callable[[str, float], MeasurementRecord]
"""A test measured in a fresh process, within so many seconds; raises TokenPowerError."""


@dataclass
class Case:
    """A test with doubtful verdicts, what its restarts measured, and how many seconds one is thought to take.

    Key fields in ``ignore`` may differ between them, as they may from the baseline.
    """

    measured: MeasurementRecord
    seconds: float
    ignore: Sequence[str] = ()
    restarts: list[MeasurementRecord] = field(default_factory=list)

    @property
    def test(self) -> str:
        """The test's node id."""
        return self.measured.test

    @property
    def name(self) -> str:
        """What people call the test."""
        return short_test_name(self.test)

    @property
    def doubtful(self) -> bool:
        """Whether another restart could decide it."""
        return any(verdict.kind == "doubtful" for verdict in self.measured.verdicts)

    @property
    def p(self) -> float:
        """The smallest p of its doubtful verdicts."""
        return min(v.p_value or 0.0 for v in self.measured.verdicts if v.kind == "doubtful")

    @property
    def needed_s(self) -> float:
        """How long all restarts that it may still take are thought to take."""
        return (LOOKS - 1 - len(self.restarts)) * self.seconds


class Escalation:
    """The restarts of one run: at most ``max_seconds`` in all, none begun that cannot end in time."""

    def __init__(
        self,
        restart: Restart,
        judge: Judge,
        max_seconds: float,
        *,
        say: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._restart = restart
        self._judge = judge
        self._max_seconds = max_seconds
        self._say = say
        self._clock = clock
        self._slack = 0.0

    def decide(self, cases: Sequence[Case]) -> None:
        """Restart and judge until each case is decided or the time is over; then no verdict is doubtful any more."""
        began = self._clock()
        try:
            while waiting := [case for case in cases if case.doubtful]:
                left = self._max_seconds - (self._clock() - began)
                affordable = [case for case in waiting if case.seconds + self._slack <= left]
                if not affordable:
                    self._give_up(waiting, left)
                    break
                self._look_again(min(affordable, key=lambda case: case.p), left)
        finally:
            for case in cases:
                self.close(case, "The run ended before it could be restarted.")

    def close(self, case: Case, reason: str) -> None:
        """Judge a case that is still doubtful by what there is, and say why there is no more."""
        # Its last look is the one there was time for; without any restart it is the plain comparison.
        self._judge_again(case, LOOKS if case.restarts else None, reason)

    def _look_again(self, case: Case, left_s: float) -> None:
        number = len(case.restarts) + 1
        self._say(f"restart {number} of {case.name}, about {case.seconds:.0f} s of the {left_s:.0f} s left")
        began = self._clock()
        try:
            found = self._restart(case.test, left_s)
            _check(case.measured, found, case.ignore)
        except TokenPowerError as error:
            self._say(f"{case.name}: {error}")
            self.close(case, f"Restart {number} gave nothing: {str(error).splitlines()[0].rstrip(':')}.")
            return
        finally:
            # The guess knows nothing of what a process takes to start; the next ones take that long, too.
            took = self._clock() - began
            self._slack = max(self._slack, took - case.seconds)
        case.seconds = took
        case.restarts.append(found)
        case.measured = replace(case.measured, restarts=tuple(one.rounds for one in case.restarts))
        self._judge_again(case, 1 + len(case.restarts))
        self._say(f"{case.name}: {', '.join(dict.fromkeys(v.kind for v in case.measured.verdicts))}")

    def _give_up(self, waiting: Sequence[Case], left_s: float) -> None:
        missing = sum(case.needed_s + self._slack * (case.needed_s > 0) for case in waiting)
        enough = self._max_seconds - left_s + missing
        wanted = f"--energy-max-seconds={10 * math.ceil(enough / 10):.0f} would do"
        self._say(
            f"no time for more restarts: {', '.join(case.name for case in waiting)} left as they are; {wanted}"
        )
        for case in waiting:
            self.close(
                case,
                f"No time for a restart: it takes about {case.seconds + self._slack:.0f} s, and {max(left_s, 0):.0f} s "
                f"were left; {wanted} for all tests.",
            )

    def _judge_again(self, case: Case, look: int | None, reason: str = "") -> None:
        verdicts = []
        for verdict in case.measured.verdicts:
            judged = verdict
            if verdict.kind == "doubtful":
                judged = self._judge(case.measured, verdict, case.restarts, look)
                if reason:
                    judged = replace(judged, notes=(*judged.notes, reason))
            verdicts.append(judged)
        case.measured = replace(case.measured, verdicts=tuple(verdicts))


def _check(first: MeasurementRecord, again: MeasurementRecord, ignore: Sequence[str]) -> None:
    """Raise TokenPowerError where a restart did not measure the same thing on the same devices."""
    if not again.comparable:
        raise TokenPowerError("; ".join(again.reasons) or "it is not comparable")
    if unlike := unlikeness(first, again, ignore):
        raise TokenPowerError(unlike)


def restarted(child: ChildRun, folder: Path, test: str, number: int, timeout_s: float) -> MeasurementRecord:
    """Return the test measured by a child run of it alone; raises TokenPowerError that says what happened instead."""
    record = folder / f"{number}.json"
    run = child.run(record, f"a restart of {test}", timeout_s=timeout_s)
    # Its node id may be spelt in another way there; of several measurements, none under its name is surely its own.
    found = [one for one in run.measurements if one.test == test] or run.measurements
    if len(found) != 1:
        tests = ", ".join(one.test for one in found) or "nothing"
        raise TokenPowerError(f"it measured {tests}, not {test}:\n{output_of(record)}")
    return found[0]
