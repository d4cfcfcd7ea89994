"""Write docs/suite.schema.json, the JSON Schema of suite files: ``python docs/write_suite_schema.py``."""

from __future__ import annotations

import json
from pathlib import Path

from pytest_tokenpower.suites.schema import json_schema

PAGE = Path(__file__).parent / "suite.schema.json"


def text() -> str:
    """Render the schema as it is written."""
    return json.dumps(json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
