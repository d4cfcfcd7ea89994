"""What watches a run that measures energy: registered by the first sign that it does, once."""

from __future__ import annotations

import pytest

from pytest_tokenpower.core.signals import interrupt_when_terminated
from pytest_tokenpower.plugin import outcome
from pytest_tokenpower.plugin.absent_tests import AbsentTests
from pytest_tokenpower.plugin.progress import show_progress
from pytest_tokenpower.plugin.rerun import Rerunner
from pytest_tokenpower.plugin.results import Gatherer, Sender
from pytest_tokenpower.plugin.state import SETTINGS, is_worker, runs_tests
from pytest_tokenpower.plugin.sweeps import Sweeps

WATCHED: pytest.StashKey[bool] = pytest.StashKey()


def watch(config: pytest.Config) -> None:
    """Have the run watched from here on; raises UsageError where its options do not go together."""
    if WATCHED in config.stash:
        return
    config.stash[WATCHED] = True
    plugins = config.pluginmanager
    # Results are gathered on the controller (or the only process); xdist's workers only send theirs.
    worker = is_worker(config)
    plugins.register(outcome, "tokenpower-outcome")
    if worker:
        plugins.register(Sender(config), "tokenpower-sender")
    else:
        plugins.register(Gatherer(config), "tokenpower-gatherer")
        plugins.register(Sweeps(config), "tokenpower-sweeps")
    chosen = config.stash[SETTINGS]
    if chosen.disabled or not runs_tests(config):
        return
    # Engines, work trees and folders that are made for a run are to be gone after it, however it ends.
    config.add_cleanup(interrupt_when_terminated())
    show_progress(config)
    if not worker:
        if chosen.baselines:
            plugins.register(AbsentTests(config), "tokenpower-absent-tests")
        if chosen.rerun_baseline:
            plugins.register(Rerunner(config), "tokenpower-rerunner")
