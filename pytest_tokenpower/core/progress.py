"""Lines that say what a long wait is for. They go to the log; whoever runs the tests may show them elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable

_LOGGER = logging.getLogger("pytest_tokenpower")

_sinks: list[tuple[Callable[[str], object], bool]] = []


def report_progress(line: str, *, urgent: bool = False) -> None:
    """Say how far something is: to every sink, or at level INFO where there is none (``--log-cli-level=INFO``).

    What is ``urgent`` is also told to sinks that want nothing else: a wait that nobody could explain otherwise.
    """
    told = [sink for sink, urgent_only in _sinks if urgent or not urgent_only]
    for sink in told:
        sink(line)
    if not told:
        _LOGGER.info("%s", line)


WARMUP_S = 5.0
"""So often a warm-up says how far it is."""


def warmup_progress() -> Callable[[int, float], None]:
    """Return what is called before each round of a warm-up with the rounds that are done and the time in seconds.

    It tells how far the warm-up is where the last line, or its beginning, is long enough ago.
    """
    began: float | None = None
    last: float | None = None

    def at(rounds: int, now: float) -> None:
        nonlocal began, last
        if began is None or last is None:
            began = last = now
        if now - last >= WARMUP_S:
            last = now
            report_progress(
                f"warming up until steady ... {rounds} round{'s' if rounds != 1 else ''}, {now - began:.0f} s"
            )

    return at


def show_on(sink: Callable[[str], object], *, urgent_only: bool = False) -> Callable[[], None]:
    """Have lines given to ``sink`` until the function that this returns is called."""
    entry = (sink, urgent_only)
    _sinks.append(entry)
    return lambda: _sinks.remove(entry)
