"""The formats of a report by name; whatever makes one is imported when it is asked for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pytest_tokenpower.core.settings import ReportTarget
from pytest_tokenpower.errors import UsageError

if TYPE_CHECKING:
    from pytest_tokenpower.reporting.report import Report


class Format(NamedTuple):
    """A format: the function that renders it, the suffix that stands for it ("" for none), and what it is.

    ``draws`` formats show power over time, ``looks_back`` ones the history.
    """

    function: str
    suffix: str
    text: str
    draws: bool = False
    looks_back: bool = False


FORMATS = {
    "html": Format("page:page", ".html", "one page with drawings that opens without a network", True, True),
    "markdown": Format("markdown:summary", ".md", "a summary for GitHub's job summary, under 1 MiB"),
    "comment": Format(
        "markdown:comment", "", "the body of a pull-request comment, with a marker line to find it by"
    ),
    "annotation": Format("markdown:annotation", "", "one workflow command that annotates the whole run"),
    "csv": Format(
        "exports.tidy:csv_table", ".csv", "one row a test: parameters, engine options and axes as columns"
    ),
    "json": Format("exports.records:json_records", "", "the records, as docs/run.schema.json describes them"),
    "bencher": Format("exports.dashboards:bencher", "", "Bencher Metric Format"),
    "github-action-benchmark": Format(
        "exports.dashboards:smaller_is_better", "", "customSmallerIsBetter of github-action-benchmark"
    ),
    "openmetrics": Format("exports.openmetrics:openmetrics", ".om", "OpenMetrics text, for Prometheus"),
    "trace": Format("exports.trace:trace", "", "Chrome trace JSON of power and phases, for Perfetto", True),
    "pytest-benchmark": Format(
        "exports.pytest_benchmark:benchmarks", "", "JSON that pytest-benchmark compare reads"
    ),
}


def render(name: str, report: Report) -> str:
    """Render a report in the format of that name."""
    module, _, function = FORMATS[name].function.partition(":")
    made: str = getattr(importlib.import_module(f"pytest_tokenpower.reporting.{module}"), function)(report)
    return made


def target(text: str, folder: Path) -> ReportTarget:
    """Read ``[FORMAT:]PATH``; without a format the suffix tells it. Raises UsageError."""
    name, colon, path = text.partition(":")
    if colon and name in FORMATS:
        if not path:
            raise UsageError(f"--energy-report={text}: names no file: {name}:PATH")
        return ReportTarget(name, folder / path)
    suffixes = {one.suffix: name for name, one in FORMATS.items() if one.suffix}
    found = suffixes.get(Path(text).suffix.lower())
    if found is None:
        raise UsageError(
            f"--energy-report={text}: a file's suffix says what it is ({', '.join(suffixes)}), or a format before a "
            f"colon ({', '.join(FORMATS)})"
        )
    return ReportTarget(found, folder / text)
