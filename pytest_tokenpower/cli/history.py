"""`tokenpower history`: the stored runs of a test along the history of a branch, and where its level changed."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pytest_tokenpower.cli.store_access import add_storage
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.gate.history import History, collect, read_line
from pytest_tokenpower.reporting.history import as_text
from pytest_tokenpower.store.access import StoreContext


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which test, and how far back."""
    parser.add_argument("test", metavar="TEST", help="a test's id, or a part of it that fits no other")
    parser.add_argument(
        "--ref", metavar="REF", help="the branch whose first-parent history is shown (default: HEAD)"
    )
    parser.add_argument(
        "--runs", type=int, default=200, metavar="N", help="read the newest N runs (default: 200)"
    )
    parser.add_argument("--json", action="store_true", help="the same figures as one JSON object")
    add_storage(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the plot and the steps; 0 whatever they are."""
    if arguments.runs < 1:
        raise UsageError(f"--runs={arguments.runs}: must be at least 1")
    place = StoreContext.of(arguments)
    history = collect(place, arguments.test, read_line(place, arguments.ref, arguments.runs))
    if arguments.json:
        print(json.dumps(as_json(history), indent=1, allow_nan=False))
    else:
        print("\n".join(as_text(history, place)))
    return 0


def as_json(history: History) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    return {
        "test": history.test,
        "line": history.line,
        "invalid": history.invalid,
        "series": [
            {
                "key": dict(series.key),
                "runs": [
                    {
                        "id": point.run_id,
                        "commit": point.commit,
                        "created": point.entry.created,
                        series.figure: point.value,
                        "interval": list(point.interval()),
                        "level": level,
                        "verdict": point.verdict,
                    }
                    for point, level in zip(series.points, series.levels(), strict=True)
                ],
                "changes": [
                    {
                        "run": series.points[change.index].run_id,
                        "commits": list(history.suspects(series, change)),
                        "change": change.change,
                        "interval": list(change.change_interval()),
                        "p_value": change.p_value,
                    }
                    for change in series.changes
                ],
            }
            for series in history.series
        ],
    }
