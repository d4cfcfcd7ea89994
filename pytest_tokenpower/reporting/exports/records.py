"""The records themselves, and the schema that they keep to."""

from __future__ import annotations

from typing import Any

import msgspec

from pytest_tokenpower.core.records import SCHEMA_VERSION, RunRecord, encode_run
from pytest_tokenpower.reporting.report import Report


def json_records(report: Report) -> str:
    """Each run as one line of JSON, as it is stored."""
    return b"".join(encode_run(run) for run in report.runs).decode()


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a stored run (draft 2020-12)."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"A run of pytest-tokenpower, schema {SCHEMA_VERSION}",
        **msgspec.json.schema(RunRecord),
    }


def schema_text() -> str:
    """Return the schema as it is published."""
    return msgspec.json.format(msgspec.json.encode(json_schema()), indent=2).decode() + "\n"
