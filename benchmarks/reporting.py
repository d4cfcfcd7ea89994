"""Parts that the GPU benchmarks share: the file of their results, and the figures of their pages."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
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


def logger(folder: Path, began: float) -> Callable[[str], None]:
    """Return what prints a line with the seconds since ``began``, and keeps it in a folder; threads may share it."""
    lock = threading.Lock()

    def say(line: str) -> None:
        stamped = f"{time.monotonic() - began:6.1f} {line}"
        with lock:
            print(stamped, flush=True)
            with (folder / "log.txt").open("a") as log:
                log.write(stamped + "\n")

    return say


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def driver_of(facts: Mapping[str, object]) -> str:
    """Return the driver's version from a measurement's facts: that of its first device."""
    return next((str(value) for name, value in facts.items() if name.endswith(".driver")), "unknown")


def versions_line(versions: Mapping[str, str]) -> str:
    """Return a line of a page, with Markdown's break at its end."""
    return "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".  "


def table(head: str, rows: Iterable[Sequence[object] | str]) -> list[str]:
    """Lines of a table under ``head`` ("a | b"), of cells or of lines that are made already, and an empty line."""
    lines = [row if isinstance(row, str) else f"| {' | '.join(map(str, row))} |" for row in rows]
    return [f"| {head} |", "|" + " --- |" * (head.count(" | ") + 1), *lines, ""]


_FIGURES = re.compile(r"(<!-- figures: (.+?) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def refresh(page: Path, figures: Mapping[str, Sequence[str]]) -> None:
    """Write figures into a page whose prose is written by hand.

    Args:
        page: A Markdown file with ``<!-- figures: name -->`` and ``<!-- end -->`` around each place.
        figures: Lines for each name.

    Raises:
        SystemExit: Where a name has no place or a place has no figures; nothing is written then.
    """
    text = page.read_text(encoding="utf-8")
    places = {match[2] for match in _FIGURES.finditer(text)}
    if odd := places ^ figures.keys():
        raise SystemExit(
            f"{page}: figures without a place, or a place without figures: {', '.join(sorted(odd))}"
        )

    def fill(match: re.Match[str]) -> str:
        return match[1] + "\n".join(figures[match[2]]).rstrip("\n") + "\n" + match[3]

    page.write_text(_FIGURES.sub(fill, text), encoding="utf-8")
