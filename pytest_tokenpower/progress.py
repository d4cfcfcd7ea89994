"""Lines that say what a long wait is for. They go to the log; whoever runs the tests may show them elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable

_LOGGER = logging.getLogger("pytest_tokenpower")

_sinks: list[Callable[[str], object]] = []


def tell(line: str) -> None:
    """Say how far something is: to every sink, or at level INFO where there is none (``--log-cli-level=INFO``)."""
    for sink in _sinks:
        sink(line)
    if not _sinks:
        _LOGGER.info("%s", line)


def show_on(sink: Callable[[str], object]) -> Callable[[], None]:
    """Have lines given to ``sink`` until the function that this returns is called."""
    _sinks.append(sink)
    return lambda: _sinks.remove(sink)
