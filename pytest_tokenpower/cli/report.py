"""`tokenpower report`: pages, summaries and exports of stored runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pytest_tokenpower.analysis.power_curves import PowerCurves, recorded_curves
from pytest_tokenpower.cli.store_access import add_storage
from pytest_tokenpower.core.files import write_whole
from pytest_tokenpower.core.records import RunRecord
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.gate.history import History
from pytest_tokenpower.gate.verdict import SEVERITY
from pytest_tokenpower.meters.recording import read_recording
from pytest_tokenpower.reporting.costs import read_factors
from pytest_tokenpower.reporting.formats import FORMATS, render
from pytest_tokenpower.reporting.markdown import TITLE
from pytest_tokenpower.reporting.report import Report, histories, tests_of
from pytest_tokenpower.store.access import RUN_HELP, StoreContext

SCHEMA = "schema"
"""The format that needs no run: the JSON Schema of the stored ones."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which runs, in which format, and where to."""
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="*",
        help=f"{RUN_HELP}; the newest run of each (default: the newest run of all)",
    )
    listed = "; ".join(f"{name}: {one.text}" for name, one in FORMATS.items())
    parser.add_argument(
        "--format",
        choices=(*FORMATS, SCHEMA),
        metavar="FORMAT",
        help=f"default: by the suffix of --output, else markdown. {listed}; {SCHEMA}: the JSON Schema of a run",
    )
    parser.add_argument(
        "--output", "-o", type=Path, metavar="PATH", help="write to a file instead of printing"
    )
    parser.add_argument(
        "--recording",
        type=Path,
        metavar="PATH",
        action="append",
        default=[],
        help="a recording of one of the runs (pytest --energy-record), for its power curves; may be repeated",
    )
    parser.add_argument(
        "--title",
        default="",
        metavar="NAME",
        help="the job that a summary or comment is of: in its heading, and in the marker of its comment",
    )
    parser.add_argument("--price", metavar="NUMBER", help="price of a kWh, as ini energy_price")
    parser.add_argument("--currency", metavar="CODE", help="the prices' currency, as ini energy_currency")
    parser.add_argument(
        "--token-prices",
        metavar="'IN OUT'",
        help="what an API charges per million input and output tokens, as ini energy_token_prices",
    )
    parser.add_argument(
        "--carbon-intensity", metavar="GRAMS|COUNTRY", help="gCO2e per kWh or a country's three letters"
    )
    parser.add_argument("--pue", metavar="NUMBER", help="the data centre's total over its IT energy")
    add_storage(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print or write the report; 0 whatever its verdicts are."""
    chosen = arguments.format or _by_suffix(arguments.output)
    if chosen == SCHEMA:
        from pytest_tokenpower.reporting.exports.records import schema_text

        text = schema_text()
    else:
        text = render(chosen, _report(arguments, chosen))
    if arguments.output is None:
        # An annotation is a command that is meant.
        out = getattr(sys.stdout, "plain", sys.stdout) if chosen == "annotation" else sys.stdout
        out.write(text)
        return 0
    try:
        write_whole(arguments.output, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UsageError(
            f"--output={arguments.output}: cannot be written: {error.strerror or error}"
        ) from error
    return 0


def _by_suffix(output: Path | None) -> str:
    if output is None:
        return "markdown"
    found = [name for name, one in FORMATS.items() if one.suffix and one.suffix == output.suffix.lower()]
    if not found:
        raise UsageError(f"--output={output}: its suffix tells no format: add --format")
    return found[0]


def _report(arguments: argparse.Namespace, chosen: str) -> Report:
    if arguments.title and not TITLE.fullmatch(arguments.title):
        raise UsageError(f"--title={arguments.title}: must be up to 100 letters, digits, '.', '_' and '-'")
    place, records = _runs(arguments)
    _check_verdicts(records)
    curves = _curves(arguments.recording, records)
    past: dict[str, History] = {}
    reason = ""
    if FORMATS[chosen].looks_back:
        past, reason = histories(place, tests_of(records))
    factors = read_factors(
        arguments.price, arguments.currency, arguments.carbon_intensity, arguments.pue, arguments.token_prices
    )
    return Report(tuple(records), curves, past, reason, factors, arguments.title)


def _runs(arguments: argparse.Namespace) -> tuple[StoreContext, list[RunRecord]]:
    place = StoreContext.of(arguments)
    if not arguments.runs:
        return place, [place.store.load(place.entries()[0])]
    records = []
    for name in arguments.runs:
        found = place.runs(name, commit_only=True)
        if not found.entries:
            raise UsageError(f"{found.label} holds no run")
        records.append(found.store.load(found.entries[0]))
    return place, list({record.id: record for record in records}.values())


def _check_verdicts(records: list[RunRecord]) -> None:
    for record in records:
        for kind in (verdict.kind for one in record.measurements for verdict in one.verdicts):
            if kind not in SEVERITY:
                raise UsageError(
                    f"run {record.id[:8]}: {kind!r} is no verdict that this pytest-tokenpower knows"
                )


def _curves(paths: list[Path], records: list[RunRecord]) -> dict[tuple[str, str], PowerCurves]:
    """Return the curves of the recordings; raises UsageError for one that is of none of the runs."""
    found: dict[tuple[str, str], PowerCurves] = {}
    for path in paths:
        recording = read_recording(path)
        drawn = {
            (record.id, measured.test): curves
            for record in records
            for measured in record.measurements
            if (curves := recorded_curves(recording, measured)) is not None
        }
        if not drawn:
            raise UsageError(f"--recording={path}: holds the rounds of none of these runs")
        found |= drawn
    return found
