"""--energy-rerun-baseline inside pytest: child runs before the loop, and their verdicts as the tests' reports."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from pytest_tokenpower.errors import TokenPowerError, UsageError
from pytest_tokenpower.plugin.edge import fail, said
from pytest_tokenpower.plugin.marker import read_budget
from pytest_tokenpower.plugin.progress import teller
from pytest_tokenpower.plugin.state import (
    MEASUREMENT,
    SETTINGS,
    failure_of,
    has_workers,
    is_gated,
    may_measure,
    session_of,
)

if TYPE_CHECKING:
    from pytest_tokenpower.runner.rerun import Rerun


class Rerunner:
    """--energy-rerun-baseline: energy tests are not run here, but in turn with the baseline's in fresh processes."""

    def __init__(self, config: pytest.Config) -> None:
        chosen = config.stash[SETTINGS]
        if len(chosen.baselines) != 1:
            raise UsageError("--energy-rerun-baseline needs one git ref: --energy-baseline=REF")
        if has_workers(config):
            raise UsageError("--energy-rerun-baseline runs one process at a time: leave -n away")
        self._config = config
        self._rerun: Rerun | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        if any(may_measure(item) for item in session.items):
            from pytest_tokenpower.runner.rerun import rerun

            try:
                self._rerun = rerun(
                    session_of(self._config).repository,
                    self._config.stash[SETTINGS].baselines[0],
                    [str(argument) for argument in self._config.invocation_params.args],
                    self._config.invocation_params.dir,
                    teller(self._config),
                    session_of(self._config).root,
                )
            except TokenPowerError as error:
                pytest.exit(said(f"energy: {error}"), returncode=pytest.ExitCode.USAGE_ERROR)
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        rerun = self._rerun
        if rerun is None:
            return None
        # What measured there is judged, whichever way it came to the fixture.
        if not is_gated(item) and not rerun.of_test(item.nodeid)[1] and not rerun.failure(item.nodeid):
            return None
        chosen, limits, session = self._config.stash[SETTINGS], read_budget(item), session_of(self._config)
        measured = rerun.judge(item.nodeid, session.policy(limits), limits.ceilings)

        def outcome() -> None:
            if measured is None:
                if failure := rerun.failure(item.nodeid):
                    fail(f"{item.name} failed in a process of its own: {failure}")
                pytest.skip("nothing was measured in its own process: run it alone to see why")
            item.stash[MEASUREMENT] = measured
            if complaint := failure_of(item.name, measured, chosen):
                fail(complaint)

        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for when, body in (("setup", lambda: None), ("call", outcome), ("teardown", lambda: None)):
            call = pytest.CallInfo.from_call(body, when)  # type: ignore[arg-type]
            hook.pytest_runtest_logreport(report=hook.pytest_runtest_makereport(item=item, call=call))
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True
