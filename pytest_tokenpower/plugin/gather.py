"""Results on their way: gathered from all reports, settled, shown and stored; sent along by xdist's workers."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest

from pytest_tokenpower.errors import TokenPowerError
from pytest_tokenpower.plugin.state import MEASUREMENTS, SESSION, SETTINGS, runs_tests, session_of


class Gatherer:
    """Collects the measurements of all reports; on the controller only, where the run is stored and shown."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._problems: dict[str, str] = {}
        self._losses: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and hasattr(report, "energy"):
            import msgspec

            from pytest_tokenpower.record import MeasurementRecord

            self._config.stash[MEASUREMENTS].append(msgspec.convert(report.energy, MeasurementRecord))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        result = yield
        if self._config.stash[MEASUREMENTS] and self._config.stash[SETTINGS].baselines:
            self._settle()
        return result

    def _settle(self) -> None:
        """Fail the tests that the whole family's p-values show to have regressed, and theirs alone did not."""
        from msgspec.structs import replace

        from pytest_tokenpower.verdict import settle

        measurements = self._config.stash[MEASUREMENTS]
        settled = settle(measurements)
        for at, measured in enumerate(measurements):
            verdicts = tuple(settled.get((measured.test, v.against), v) for v in measured.verdicts)
            if verdicts == measured.verdicts:
                continue
            measurements[at] = replace(measured, verdicts=verdicts)
            name = measured.test.rpartition("::")[2]
            self._config.hook.pytest_runtest_logreport(
                report=pytest.TestReport(
                    nodeid=measured.test,
                    location=(measured.test.partition("::")[0], None, name),
                    keywords={},
                    outcome="failed",
                    longrepr="\n".join(
                        f"REGRESSED: {name}: {v.message}\n  Settled with all comparisons of this run (Holm)."
                        for v in verdicts
                        if v.kind == "regressed"
                    ),
                    when="call",
                )
            )

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        output = getattr(node, "workeroutput", {})
        self._problems.update(output.get("tokenpower_problems", {}))
        self._losses.extend(output.get("tokenpower_losses", ()))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if measurements := self._config.stash[MEASUREMENTS]:
            from pytest_tokenpower.reports.terminal import summary

            session = session_of(self._config)
            summary(terminalreporter, measurements, session, {**session.problems, **self._problems})
        for loss in self._losses:
            terminalreporter.write_line(loss, red=True)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        measurements = self._config.stash[MEASUREMENTS]
        chosen = self._config.stash[SETTINGS]
        stores = chosen.stores and measurements
        if chosen.disabled or not runs_tests(self._config):
            return
        if chosen.record is not None and SESSION in self._config.stash:
            self._keep(f"recorded in {chosen.record}", session_of(self._config).write_recording)
        if not (stores or chosen.json or self._losses):
            return
        from pytest_tokenpower.record import encode_run

        run = session_of(self._config).run_record(measurements)
        if stores:
            self._keep("stored", lambda: session_of(self._config).store.write(run))
        if (path := chosen.json) is not None:
            self._keep(f"written to {path}", lambda: path.write_bytes(encode_run(run)))
        if self._losses and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR

    def _keep(self, what: str, write: Callable[[], object]) -> None:
        # Raised from here, an error would cost the reader all of pytest's summary.
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
            try:
                session_of(self._config).write_recording()
            except TokenPowerError as error:
                output["tokenpower_losses"] = [f"this run is NOT recorded: {error}"]
