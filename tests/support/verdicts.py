"""Judging in one line, for tests: the gate's door with a policy of so much."""

from collections.abc import Sequence

from pytest_tokenpower.core.records import MeasurementRecord, VerdictRecord
from pytest_tokenpower.gate.messages import message
from pytest_tokenpower.gate.verdict import Policy, judge
from pytest_tokenpower.stats.scatter import DEFAULT_NOISE, Noise
from pytest_tokenpower.store.baseline import ComparableRuns


def judge_stored(
    measured: MeasurementRecord,
    stored: ComparableRuns,
    limit: float,
    noise: Noise = DEFAULT_NOISE,
    *,
    family: int = 1,
    restarts: Sequence[MeasurementRecord] = (),
    look: int | None = None,
) -> VerdictRecord:
    policy = Policy(limit, family=family)
    return judge(measured, stored, policy, restarts=restarts, look=look, noise=noise)


def text(verdict: VerdictRecord) -> str:
    return message(verdict, "test_it.py::test_it")
