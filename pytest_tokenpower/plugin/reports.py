"""Reports at the end of a run: files, and what GitHub is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_tokenpower.core.files import write_whole
from pytest_tokenpower.core.settings import ReportTarget
from pytest_tokenpower.plugin.state import SETTINGS, session_of

if TYPE_CHECKING:
    from pytest_tokenpower.analysis.power_curves import PowerCurves
    from pytest_tokenpower.core.records import RunRecord
    from pytest_tokenpower.gate.history import History
    from pytest_tokenpower.reporting.report import Report


def report_of(config: pytest.Config, run: RunRecord, curves: Mapping[str, PowerCurves]) -> Report:
    """Gather what is reported of a run; ``curves`` are by test."""
    from pytest_tokenpower.reporting.formats import FORMATS
    from pytest_tokenpower.reporting.report import Report, histories, tests_of
    from pytest_tokenpower.store.access import StoreContext

    chosen, session = config.stash[SETTINGS], session_of(config)
    past: dict[str, History] = {}
    reason = ""
    if any(FORMATS[target.format].looks_back for target in chosen.reports):
        past, reason = histories(
            StoreContext(session.store, session.repository, session.rootdir), tests_of([run])
        )
    return Report(
        (run,), {(run.id, test): each for test, each in curves.items()}, past, reason, chosen.factors
    )


def write_report(target: ReportTarget, report: Report) -> str:
    """Write a report whole or not at all; returns the line that says so."""
    from pytest_tokenpower.reporting.formats import render

    write_whole(target.path, render(target.format, report).encode("utf-8", "backslashreplace"))
    return f"Report written to {target.path}"


def tell_github(report: Report, environment: Mapping[str, str]) -> list[str]:
    """On GitHub Actions append the summary to the step's; returns the lines to print: one annotation for the run."""
    from pytest_tokenpower.reporting.markdown import annotation, summary

    if environment.get("GITHUB_ACTIONS") != "true" or not any(report):
        return []
    if path := environment.get("GITHUB_STEP_SUMMARY"):
        with Path(path).open("a", encoding="utf-8") as out:
            out.write(summary(report, out.tell()))
    return annotation(report).splitlines()
