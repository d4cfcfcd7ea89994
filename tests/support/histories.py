"""Stored histories to run the commands on: commits, runs of known level, verdicts."""

from __future__ import annotations

import random

import msgspec

from pytest_tokenpower.analysis.figures import figures
from pytest_tokenpower.core.records import MeasurementRecord, RoundRecord, VerdictRecord
from pytest_tokenpower.store.store import Store
from tests.support.repositories import KEY, TEST, Git, measurement, run

OTHER = "tests/energy/test_chat.py::test_summary[fp8]"


def at_level(
    level: float = 1.0,
    test: str = TEST,
    *,
    verdicts: tuple[VerdictRecord, ...] = (),
    seed: int = 0,
    run_sd: float = 0.002,
    comparable: bool = True,
) -> MeasurementRecord:
    """Return a measurement of 100 J for 256 tokens times ``level``, with the noise of a run and of ten rounds."""
    noise = random.Random(f"{test} {seed}")
    center = 100 * level * (1 + noise.gauss(0, run_sd))
    plain = measurement(test, KEY)
    rounds = tuple(
        RoundRecord(
            start_ns=10**12 + number * 10**9,
            seconds=1.0,
            joules=center * (1 + noise.gauss(0, 0.003)),
            stderr_joules=0.1,
            prompt_tokens=64,
            generated_tokens=256,
            temperature_celsius=61.0,
        )
        for number in range(10)
    )
    return msgspec.structs.replace(
        plain,
        rounds=rounds,
        figures=figures(rounds),
        verdicts=verdicts,
        comparable=comparable,
        reasons=() if comparable else ("the test failed by itself",),
    )


def verdict(kind: str, against: str, *, threshold: float = 0.03) -> VerdictRecord:
    """Return what a run of the gate recorded."""
    return VerdictRecord(kind, against, reason=f"{kind}.", threshold=threshold, baseline_runs=("some",))


def regressed(against: str) -> tuple[VerdictRecord, ...]:
    """Return the verdicts of a run that regressed against a baseline's label."""
    return (verdict("regressed", against),)


def stored_levels(git: Git, store: Store, levels: list[float], first: int = 0) -> list[str]:
    """Return a commit and its run for each level, in order; the commits."""
    commits = []
    for number, level in enumerate(levels, first):
        commits.append(git.commit(f"change {number}"))
        store.write(run(number, at_level(level, seed=number), commit=commits[-1]))
    return commits
