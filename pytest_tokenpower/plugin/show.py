"""Progress lines in pytest's terminal, past its capturing of output."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from pytest_tokenpower import progress


def show_progress(config: pytest.Config) -> None:
    """Have the lines of long waits (an engine that loads) shown, until the run ends; nothing under ``-q``."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if reporter is None or config.get_verbosity() < 0:
        return

    def show(line: str) -> None:
        with capture.global_and_fixture_disabled() if capture is not None else nullcontext():
            reporter.ensure_newline()
            reporter.write_line(f"energy: {line}")
            reporter.flush()

    config.add_cleanup(progress.show_on(show))
