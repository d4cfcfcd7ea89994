"""--energy-max-seconds inside pytest: the doubtful tests of the whole run, restarted when all tests have run."""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_tokenpower.core.settings import Limits
from pytest_tokenpower.plugin.progress import teller
from pytest_tokenpower.plugin.state import SETTINGS, session_of

if TYPE_CHECKING:
    from pytest_tokenpower.core.records import MeasurementRecord, VerdictRecord

START_SECONDS = 2.0
"""What a pytest process takes to start, roughly; the first restart tells it better."""


class PendingRestarts:
    """What is known of each test for its restart: how long it takes, and whether that could still fail it."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._setup_seconds = 0.0
        self._seconds: dict[str, float] = {}
        self._terms: dict[str, tuple[int, tuple[str, ...]]] = {}
        self._passed: set[str] = set()

    def note(self, report: pytest.TestReport) -> None:
        """Remember what a report says of its test."""
        # A restart sets up all that the run has set up once for many tests: an engine, above all.
        if report.when == "setup":
            self._setup_seconds = max(self._setup_seconds, report.duration)
        # By the name that the measurement has: on xdist's workers a report's own may have a group at its end.
        test = report.energy["test"] if hasattr(report, "energy") else report.nodeid
        if report.when == "call" and hasattr(report, "energy"):
            self._passed.discard(test)
            # What has failed needs no second failure; what is expected to fail is not failed by this.
            if report.passed and not hasattr(report, "wasxfail"):
                self._passed.add(test)
        if report.when == "call" and hasattr(report, "energy_doubt"):
            doubt = report.energy_doubt
            self._terms[test] = (doubt["family"], tuple(doubt["ignore"]))
            self._seconds[test] = report.duration

    def passed(self, test: str) -> bool:
        """Whether an energy test was reported as passed, so that it can still be failed."""
        return test in self._passed

    def decide(
        self,
        measurements: Sequence[MeasurementRecord],
        decided: dict[str, MeasurementRecord],
        *,
        complete: bool,
    ) -> None:
        """Put into ``decided`` each measurement that was doubtful; restarted where the loop came to its end."""
        doubtful = [one for one in measurements if any(v.kind == "doubtful" for v in one.verdicts)]
        if not doubtful:
            return
        from pytest_tokenpower.core.files import scratch_prefix
        from pytest_tokenpower.runner.restarts import Case, Escalation

        overhead = START_SECONDS + self._setup_seconds
        cases = [
            Case(one, overhead + self._seconds.get(one.test, 0.0), self._terms[one.test][1])
            for one in doubtful
        ]
        numbers = count(1)
        with tempfile.TemporaryDirectory(prefix=scratch_prefix("restart")) as folder:
            escalation = Escalation(
                lambda test, left_s: self._restart(test, left_s, Path(folder), next(numbers)),
                self._judge,
                self._config.stash[SETTINGS].restart_seconds,
                say=teller(self._config),
            )
            try:
                if complete:
                    self._make_room()
                    escalation.decide([case for case in cases if self.passed(case.test)])
            finally:
                for case in cases:
                    escalation.close(
                        case, "Not restarted: the run did not come to its end with this test passed."
                    )
                decided.update((case.test, case.measured) for case in cases)

    def _judge(
        self,
        measured: MeasurementRecord,
        verdict: VerdictRecord,
        restarts: Sequence[MeasurementRecord],
        look: int | None,
    ) -> VerdictRecord:
        from pytest_tokenpower.gate.verdict import judge

        session = session_of(self._config)
        family, ignore = self._terms[measured.test]
        # An acceptance has raised the verdict's own limit; the test's is what it is judged by once more.
        limit = measured.gate.regression if measured.gate else verdict.threshold
        policy = replace(session.policy(Limits(regression=limit)), key_ignore=ignore, family=family)
        return judge(measured, session.baseline(verdict.against), policy, restarts=restarts, look=look)

    def _restart(self, test: str, left_s: float, folder: Path, number: int) -> MeasurementRecord:
        from pytest_tokenpower.runner.child import ChildRun, single_test_arguments
        from pytest_tokenpower.runner.restarts import restarted

        config = self._config
        arguments = single_test_arguments(
            [str(argument) for argument in config.invocation_params.args],
            config.option.file_or_dir,
            test,
            config.rootpath,
            config.inipath,
        )
        if hasattr(config.option, "numprocesses"):
            arguments.append("-n0")
        child = ChildRun(config.invocation_params.dir, arguments)
        return restarted(child, folder, test, number, left_s)

    def _make_room(self) -> None:
        """Leave the GPUs to the restarts: their memory, and the meters' time."""
        session_of(self._config).rest()
        # xdist's workers have ended their runs and wait with all that their processes hold.
        nodes = getattr(self._config.pluginmanager.get_plugin("dsession"), "nodemanager", None)
        if nodes is not None:
            nodes.teardown_nodes()
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
