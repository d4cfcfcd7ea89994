"""Reports that wait: a test whose verdict is settled at the end of the run has one outcome, told then.

pytest, JUnit and every other plugin learn of an outcome by the hook ``pytest_runtest_logreport``, and what it told them
cannot be taken back: a second report would be a second test. So while a verdict is open, the calls of that hook for
its test are kept, and made when it is settled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pytest_tokenpower.core.settings import MOST_ALPHA
from pytest_tokenpower.plugin.edge import said

if TYPE_CHECKING:
    from pluggy import HookImpl

    from pytest_tokenpower.core.records import MeasurementRecord

HOOK = "pytest_runtest_logreport"


@dataclass
class _Call:
    """A call of the hook that was kept: the report, and who is still to see it."""

    report: pytest.TestReport
    impls: Sequence[HookImpl]


class ReservedReports:
    """Keeps the reports of tests with an open verdict from everyone but ``seer``, who learns of them at once."""

    def __init__(self, config: pytest.Config, seer: object) -> None:
        self._config = config
        self._seer = seer
        self._kept: dict[str, list[_Call]] = {}
        self._told: _Call | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Keep reports until the end of this context, and tell them then, however it ends."""
        undo = self._config.pluginmanager.add_hookcall_monitoring(
            self._before, lambda outcome, hook_name, hook_impls, kwargs: None
        )
        try:
            yield
        finally:
            try:
                self._tell()
            finally:
                undo()

    def settle(self, measured: MeasurementRecord, complaint: str) -> None:
        """Give a test that was kept its verdict: its reports get the figures, and it fails with a complaint."""
        from pytest_tokenpower.reporting.junit import properties

        for calls in self._kept.values():
            if calls[0].report.energy["test"] != measured.test:
                continue
            for call in calls:
                call.report.user_properties = [
                    *(each for each in call.report.user_properties if not each[0].startswith("energy.")),
                    *properties(measured),
                ]
            if complaint:
                calls[0].report.outcome, calls[0].report.longrepr = "failed", said(complaint)

    def _before(self, hook_name: str, hook_impls: Sequence[HookImpl], kwargs: Mapping[str, Any]) -> None:
        if hook_name != HOOK:
            return
        # pluggy makes this list for the one call.
        assert isinstance(hook_impls, list)
        report = kwargs["report"]
        if self._told is not None and report is self._told.report:
            hook_impls[:] = self._told.impls
        elif report.nodeid in self._kept or _is_open(report):
            others = [each for each in hook_impls if each.plugin is not self._seer]
            self._kept.setdefault(report.nodeid, []).append(_Call(report, others))
            hook_impls[:] = [each for each in hook_impls if each.plugin is self._seer]

    def _tell(self) -> None:
        tests = list(self._kept.values())
        if tests and (reporter := self._config.pluginmanager.get_plugin("terminalreporter")) is not None:
            reporter.ensure_newline()
        # --stepwise goes on from the failure that it heard of last: that must be the first of the run.
        for calls in reversed(tests) if self._config.getoption("stepwise", False) else tests:
            for call in calls:
                self._told = call
                self._config.hook.pytest_runtest_logreport(report=call.report)


def _is_open(report: pytest.TestReport) -> bool:
    """Whether the end of the run may still fail a test: a restart, or the p-values of all tests together."""
    if report.when != "call" or not report.passed or hasattr(report, "wasxfail"):
        return False
    return any(
        verdict["kind"] == "doubtful"
        or (verdict["kind"] == "inconclusive" and (verdict.get("p_value") or 1.0) < MOST_ALPHA)
        for verdict in getattr(report, "energy", {}).get("verdicts", ())
    )
