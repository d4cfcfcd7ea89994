"""Results on their way: gathered from all reports, settled, shown and stored; sent along by xdist's workers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import nullcontext
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import pytest

from pytest_tokenpower.core.settings import CHILD_VARIABLE
from pytest_tokenpower.core.text import plural, short_test_name
from pytest_tokenpower.errors import TokenPowerError
from pytest_tokenpower.plugin.edge import Lines, faults_end_in, said
from pytest_tokenpower.plugin.options import layout_of
from pytest_tokenpower.plugin.reports import report_of, tell_github, write_report
from pytest_tokenpower.plugin.reserved import ReservedReports
from pytest_tokenpower.plugin.restarts import PendingRestarts
from pytest_tokenpower.plugin.state import (
    MEASUREMENTS,
    SESSION,
    SETTINGS,
    WAYS,
    failure_of,
    has_workers,
    runs_tests,
    session_of,
)

if TYPE_CHECKING:
    from pytest_tokenpower.analysis.power_curves import PowerCurves
    from pytest_tokenpower.core.records import MeasurementRecord, RunRecord


def _first_line(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = str(report.longreprtext if crash is None else crash.message).strip().splitlines()
    return lines[0] if lines else "no reason is known"


class Gatherer:
    """Collects the measurements of all reports; on the controller only, where the run is stored and shown."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._problems: dict[str, str] = {}
        self._losses: list[str] = []
        self._doubts = PendingRestarts(config)
        self._rerun: set[str] = set()
        self._failures: dict[str, str] = {}
        self._saved: list[str] = []
        self._commands: list[str] = []
        self._reserved = ReservedReports(config, self)
        self._tests: dict[str, str] = {}
        self._failed: set[str] = set()
        self._curves: dict[str, PowerCurves] = {}
        self._skipped: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if reason := getattr(report, "energy_skipped", None):
            self._skipped[reason] += 1
        self._doubts.note(report)
        # A failing verdict is passed anew by the run that has started this one; it needs to know of other failures.
        if (
            CHILD_VARIABLE in os.environ
            and report.failed
            and not getattr(report, "energy", {}).get("verdicts")
        ):
            self._failures.setdefault(report.nodeid, _first_line(report))
        by_verdict = False
        if report.when == "call" and hasattr(report, "energy"):
            import msgspec

            from pytest_tokenpower.core.records import MeasurementRecord

            measured = msgspec.convert(report.energy, MeasurementRecord)
            self._tests[report.nodeid] = measured.test
            self._keep_measurement(measured)
            if (drawn := getattr(report, "energy_curves", None)) is not None:
                from pytest_tokenpower.analysis.power_curves import PowerCurves

                self._curves[measured.test] = msgspec.convert(drawn, PowerCurves)
            if report.outcome == "rerun":  # type: ignore[comparison-overlap]
                self._rerun.add(report.energy["test"])
            complaint = failure_of(short_test_name(measured.test), measured, self._config.stash[SETTINGS])
            by_verdict = bool(complaint) and said(complaint) in report.longreprtext
        late = report.when == "teardown" and report.skipped
        if (report.failed and not by_verdict) or (late and hasattr(report, "wasxfail")):
            self._failed.add(report.nodeid)
        elif late and report.nodeid in self._tests:
            self._forget(self._tests[report.nodeid])
        if report.nodeid in self._failed and report.nodeid in self._tests:
            self._discredit(self._tests[report.nodeid])

    def _discredit(self, test: str) -> None:
        """Leave nothing to compare with of a test that failed by itself, in whichever of its reports that was said."""
        from pytest_tokenpower.runner.outcome import failed_by_itself

        measurements = self._config.stash[MEASUREMENTS]
        measurements[:] = [failed_by_itself(one) if one.test == test else one for one in measurements]

    def _forget(self, test: str) -> None:
        """Leave nothing of a test that skipped when it had measured, as its fixtures were torn down."""
        measurements = self._config.stash[MEASUREMENTS]
        measurements[:] = [one for one in measurements if one.test != test]

    def _keep_measurement(self, measured: MeasurementRecord) -> None:
        measurements = self._config.stash[MEASUREMENTS]
        # What a test measured in an earlier try is in the last one's record, or was superseded by it.
        if measured.attempts > 1 or measured.test in self._rerun:
            self._rerun.discard(measured.test)
            measurements[:] = [one for one in measurements if one.test != measured.test]
        measurements.append(measured)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        complete = False
        # Watching every hook costs time: only where a test can be open. A controller of xdist collects none.
        stash = self._config.stash
        may_wait = stash[SETTINGS].baselines or WAYS in stash or has_workers(self._config)
        with self._reserved.open() if may_wait else nullcontext():
            try:
                result = yield
                complete = True
            finally:
                with faults_end_in(self._losses.append):
                    self._decide(complete)
                if complete and stash[MEASUREMENTS]:
                    with faults_end_in(self._losses.append):
                        self._settle()
        return result

    def _decide(self, complete: bool) -> None:
        """Decide what was left doubtful, and fail the tests that do not pass in the end."""
        measurements = self._config.stash[MEASUREMENTS]
        decided: dict[str, MeasurementRecord] = {}
        try:
            self._doubts.decide(measurements, decided, complete=complete)
        finally:
            # Also when it is interrupted: a table that says regressed goes with a test that failed.
            measurements[:] = [decided.get(measured.test, measured) for measured in measurements]
            for measured in decided.values():
                complaint = failure_of(short_test_name(measured.test), measured, self._config.stash[SETTINGS])
                self._reserved.settle(measured, complaint)

    def _settle(self) -> None:
        """Fail the tests that the whole family's p-values show to have regressed, and theirs alone did not."""
        from msgspec.structs import replace

        from pytest_tokenpower.gate.verdict import settle

        measurements = self._config.stash[MEASUREMENTS]
        settled = settle(measurements, self._config.stash[SETTINGS].alpha)
        for at, measured in enumerate(measurements):
            verdicts = tuple(settled.get((measured.test, v.against), v) for v in measured.verdicts)
            if verdicts == measured.verdicts:
                continue
            measurements[at] = replace(measured, verdicts=verdicts)
            complaint = failure_of(
                short_test_name(measured.test), measurements[at], self._config.stash[SETTINGS]
            )
            self._reserved.settle(measurements[at], complaint)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        output = getattr(node, "workeroutput", {})
        self._problems.update(output.get("tokenpower_problems", {}))
        self._losses.extend(output.get("tokenpower_losses", ()))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        lines = Lines(terminalreporter)
        with faults_end_in(self._losses.append):
            if measurements := self._config.stash[MEASUREMENTS]:
                from pytest_tokenpower.reporting.terminal import summary

                session = session_of(self._config)
                summary(
                    lines,
                    measurements,
                    session,
                    {**session.problems, **self._problems},
                    layout=layout_of(self._config),
                    width=terminalreporter._tw.fullwidth,
                    verbosity=self._config.get_verbosity(),
                )
        for measured in measurements:
            if (soaked := measured.facts.get("soak")) is not None:
                lines.write_line(f"{short_test_name(measured.test)} was soaked: {soaked}")
        # pytest gives reasons of skips under -rs only, and an energy test that did not measure guards nothing.
        for reason, count in self._skipped.items():
            for line in wrap(
                f"energy: {plural(count, 'test')} skipped, not measured: {reason}",
                terminalreporter._tw.fullwidth,
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            ):
                lines.write_line(line, yellow=True)
        for line in self._saved:
            lines.write_line(line)
        # An annotation is a command that is meant.
        for command in self._commands:
            terminalreporter.write_line(command)
        for loss in self._losses:
            lines.write_line(loss, red=True)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._config.stash[SETTINGS].disabled or not runs_tests(self._config):
            return
        with faults_end_in(self._losses.append):
            self._write()
        if self._losses and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR

    def _write(self) -> None:
        """Write what was asked for: the recording, the run in the store, the record."""
        measurements = self._config.stash[MEASUREMENTS]
        chosen = self._config.stash[SETTINGS]
        if chosen.record is not None and SESSION in self._config.stash:
            self._keep(f"recorded in {chosen.record}", session_of(self._config).write_recording)
        stores = chosen.stores and measurements
        if not (stores or chosen.json or chosen.reports):
            return
        from pytest_tokenpower.core.files import write_whole
        from pytest_tokenpower.core.records import encode_run

        session = session_of(self._config)
        run = session.run_record(measurements, self._failures)
        if stores:
            self._keep("stored", lambda: self._saved.append(session.saved(run)))
        if (path := chosen.json) is not None:
            self._keep(f"written to {path}", lambda: write_whole(path, encode_run(run)))
        if chosen.reports:
            self._keep("reported", lambda: self._report(run))

    def _report(self, run: RunRecord) -> None:
        report = report_of(self._config, run, self._curves)
        for target in self._config.stash[SETTINGS].reports:
            self._saved.append(write_report(target, report))
            if target.format == "markdown":
                self._commands += tell_github(report, os.environ)

    def _keep(self, what: str, write: Callable[[], object]) -> None:
        # Raised from here, an error would cost the reader all of pytest's summary.
        with faults_end_in(lambda fault: self._losses.append(f"this run is NOT {what}: {fault}")):
            try:
                write()
            except (TokenPowerError, OSError) as error:
                self._losses.append(f"this run is NOT {what}: {error}")


class Sender:
    """On an xdist worker: sends along what no report carries."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_sessionfinish(self) -> None:
        if SESSION in self._config.stash:
            output: dict[str, object] = self._config.workeroutput  # type: ignore[attr-defined]
            output["tokenpower_problems"] = session_of(self._config).problems
            losses: list[str] = []
            output["tokenpower_losses"] = losses
            try:
                with faults_end_in(losses.append):
                    session_of(self._config).write_recording()
            except TokenPowerError as error:
                losses.append(f"this run is NOT recorded: {error}")
