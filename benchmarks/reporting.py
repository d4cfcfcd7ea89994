"""What the GPU benchmarks share: the file of their results, the time, and the lines that all their pages have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any


class Results:
    """The parts of a results file; written anew, and copied, whenever a part has something."""

    def __init__(self, path: Path, copy: Path | None = None) -> None:
        self._path, self._copy = path, copy
        self.parts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def keep(self, part: str, value: Any) -> None:
        """Set a part and write everything."""
        self.parts[part] = value
        text = json.dumps(self.parts, separators=(",", ":"))
        for path in (self._path, self._copy):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{path.name}.part")
                temporary.write_text(text)
                temporary.replace(path)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def driver_of(facts: Mapping[str, object]) -> str:
    """The driver's version from a measurement's facts: that of its first device."""
    return next((str(value) for name, value in facts.items() if name.endswith(".driver")), "unknown")


def versions_line(versions: Mapping[str, str]) -> str:
    """A line of a page, with Markdown's break at its end."""
    return "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".  "
