"""Progress lines in pytest's terminal, past its capturing of output."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext

import pytest

from pytest_tokenpower.core import progress
from pytest_tokenpower.plugin.edge import said


def teller(config: pytest.Config) -> Callable[[str], None]:
    """Return what writes a line between tests, as the runs that this one starts come and go."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")

    def say(text: str) -> None:
        if reporter is not None:
            # Under xdist the share of tests that are done stands at the end of an open line.
            if getattr(reporter._tw, "width_of_current_line", 0):
                reporter.write_line("")
            reporter.write_line(f"energy: {said(text)}")
            reporter.flush()

    return say


def show_progress(config: pytest.Config) -> None:
    """Have the lines of long waits (an engine that loads) shown, until the run ends; under ``-q`` urgent ones only.

    An xdist worker has no terminal: there urgent lines go to standard error, which is the controller's.
    """
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")

    def show(line: str) -> None:
        with capture.global_and_fixture_disabled() if capture is not None else nullcontext():
            if reporter is None:
                print(f"energy: {said(line)}", file=sys.stderr, flush=True)
                return
            reporter.ensure_newline()
            reporter.write_line(f"energy: {said(line)}")
            reporter.flush()

    quiet = reporter is None or config.get_verbosity() < 0
    config.add_cleanup(progress.show_on(show, urgent_only=quiet))
