"""pytest's hooks, and nothing else. Whatever is heavy is imported by the first energy test, not here."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING

import pytest

from pytest_tokenpower.core.settings import CHILD_VARIABLE
from pytest_tokenpower.core.signals import interrupt_when_terminated
from pytest_tokenpower.engines import registry
from pytest_tokenpower.errors import HistoryError, MeterError, StoreError, TokenPowerError, UsageError
from pytest_tokenpower.plugin import hookspecs, marker, options
from pytest_tokenpower.plugin.edge import fail, faults_end_in, refuse, said
from pytest_tokenpower.plugin.state import (
    ATTEMPTS,
    ENERGY,
    MEASUREMENT,
    MEASUREMENTS,
    NO_METER,
    SESSION,
    SETTINGS,
    SKIPPED,
    failure_of,
    may_measure,
    runs_tests,
    session_of,
    test_id,
)

if TYPE_CHECKING:
    from pytest_tokenpower.runner.fixture import DisabledEnergy, Energy


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare options and ini values."""
    options.add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare how others add meters, engines and token counters."""
    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    """Read and check the settings."""
    config.addinivalue_line("markers", marker.MARKER)
    config.stash[MEASUREMENTS] = []
    config.add_cleanup(registry.register_source(lambda: _engines(config)))
    if CHILD_VARIABLE in os.environ:
        _end_with_parent()
    try:
        config.stash[SETTINGS] = options.read_settings(config)
        # Importing what checks it is for those who ask for it.
        if any(config.getoption(f"--energy-{name}") != default for name, default in options.PLAIN_LAYOUT):
            options.layout_of(config)
    except TokenPowerError as error:
        refuse(error)


def _engines(config: pytest.Config) -> Mapping[str, str]:
    from pytest_tokenpower.plugin.engines import added_engines

    return added_engines(config)


def _end_with_parent() -> None:
    """Have a child run interrupted when the run that waits for it is killed: it would hold the GPU for nobody."""
    import ctypes

    from pytest_tokenpower.core.subprocesses import keep_descendants

    keep_descendants()
    # A shell has what it starts in the background ignore Ctrl-C, and so would the child.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Check every power_budget marker at collection, so that a malformed one stops the run before it begins."""
    report = yield
    complaints: dict[str, None] = {}
    for item in report.result or ():
        if isinstance(item, pytest.Item) and item.get_closest_marker("power_budget") is not None:
            try:
                marker.read_budget(item)
            except UsageError as error:
                complaints[str(error)] = None
    if complaints:
        # A UsageError from here would be an internal error on an xdist worker.
        report.outcome, report.longrepr, report.result = "failed", said("\n".join(complaints)), []
    return report


def pytest_collection_finish(session: pytest.Session) -> None:
    """Count the tests that can fail by a comparison; every xdist worker collects, so counts, them all."""
    config = session.config
    chosen = config.stash[SETTINGS]
    if not chosen.baselines or config.option.collectonly:
        return
    gated = sum(map(may_measure, session.items))
    session_of(config).gated_tests = max(gated, 1)
    # A worker cannot end the run: there each energy test says it.
    if gated and runs_tests(config) and not chosen.disabled and not hasattr(config, "workerinput"):
        try:
            with faults_end_in(refuse):
                _ = session_of(config).baselines
        except TokenPowerError as error:
            refuse(f"ini energy_baseline: {error}")


@pytest.fixture
def energy(request: pytest.FixtureRequest) -> Generator[Energy | DisabledEnergy, None, None]:
    """Measures the joules of a workload: ``energy(fn, *args)`` or ``with energy.measure() as window:``.

    While the test lasts no other process of this user measures on the same GPUs (an xdist worker, another job).
    """
    from pytest_tokenpower.runner.locks import hold_devices

    with faults_end_in(fail):
        fixture = _energy(request)
    try:
        with hold_devices(getattr(fixture, "gpu_ids", ())):
            yield fixture
    finally:
        # A plugin may run the item again.
        for key in (ENERGY, NO_METER):
            if key in request.node.stash:
                del request.node.stash[key]


def _energy(request: pytest.FixtureRequest) -> Energy | DisabledEnergy:
    from pytest_tokenpower.runner.fixture import DisabledEnergy, Energy

    item, config = request.node, request.config
    chosen = config.stash[SETTINGS]
    if chosen.disabled:
        return DisabledEnergy()
    try:
        session = session_of(config)
        _ = session.baselines
        item.stash[ENERGY] = fixture = Energy(
            test_id(item),
            marker.read_budget(item),
            session,
            lambda result, args, kwargs, fn: item.ihook.pytest_tokenpower_count_tokens(
                result=result, args=args, kwargs=kwargs
            ),
            item.stash.get(ATTEMPTS, ()),
        )
        return fixture
    except MeterError as error:
        if chosen.require_hardware:
            item.stash[NO_METER] = f"energy_require_hardware is set, and {error}"
            return DisabledEnergy()
        item.stash[SKIPPED] = said(error)
        pytest.skip(said(error))
    except (UsageError, HistoryError, StoreError) as error:
        fail(error)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    """Say what a fixture could not start, an engine most of all, in the error's own words."""
    try:
        return (yield)
    except TokenPowerError as error:
        fail(error)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Judge an energy test when its body has ended, and fail the test itself."""
    _check_meter(item)
    try:
        result = yield
    except (KeyboardInterrupt, pytest.exit.Exception, pytest.skip.Exception):
        raise
    except BaseException as error:
        fixture = item.stash.get(ENERGY, None)
        if fixture is not None and fixture.used and not isinstance(error, UsageError):
            with faults_end_in(fail):
                item.stash[MEASUREMENT] = fixture.finish(failed=True)
        if fixture is not None and isinstance(error, TokenPowerError):
            fail(error)
        raise
    # A test may ask for the fixture in its body: request.getfixturevalue("energy").
    _check_meter(item)
    fixture = item.stash.get(ENERGY, None)
    if fixture is None:
        return result
    if not fixture.used:
        fail(
            f"{item.nodeid} asks for the energy fixture and measures nothing: call energy(fn, ...) or enter "
            "energy.measure()"
        )
    with faults_end_in(fail):
        item.stash[MEASUREMENT] = measured = fixture.finish(failed=False)
    # Should a plugin run this test again, its rounds are judged together: another roll would hide half of what is
    # found. A measurement that is not to be trusted says nothing, and is left out.
    if all(verdict.kind != "invalid" for verdict in measured.verdicts):
        item.stash[ATTEMPTS] = fixture.attempts
    complaint = failure_of(item.name, measured, item.config.stash[SETTINGS])
    if complaint:
        fail(complaint)
    return result


def _check_meter(item: pytest.Item) -> None:
    if (reason := item.stash.get(NO_METER, None)) is not None:
        fail(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Send the measurement along with the report: that is how it travels from an xdist worker."""
    if call.when == "call" and (measured := item.stash.get(MEASUREMENT, None)) is not None:
        import msgspec

        from pytest_tokenpower.reporting.junit import properties

        # A plugin that reruns tests makes several reports of one item: each has its own measurement.
        del item.stash[MEASUREMENT]
        item.user_properties[:] = [
            each for each in item.user_properties if not each[0].startswith("energy.")
        ] + properties(measured)
        report = yield
        report.energy = msgspec.to_builtins(measured)  # type: ignore[attr-defined]
        if any(verdict.kind == "doubtful" for verdict in measured.verdicts):
            # The controller, which decides it in the end, has no items to read this from.
            chosen, session = item.config.stash[SETTINGS], session_of(item.config)
            ignore = (*chosen.key_ignore, *marker.read_budget(item).key_ignore)
            report.energy_doubt = {"family": session.family, "ignore": ignore}  # type: ignore[attr-defined]
        return report
    report = yield
    if report.skipped and (reason := item.stash.get(SKIPPED, None)) is not None:
        report.energy_skipped = reason  # type: ignore[attr-defined]
        del item.stash[SKIPPED]
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Find mistakes in what names a meter, a store or a baseline before any test runs (and any worker starts)."""
    from pytest_tokenpower.plugin.absent_tests import AbsentTests
    from pytest_tokenpower.plugin.progress import show_progress
    from pytest_tokenpower.plugin.rerun import Rerunner
    from pytest_tokenpower.plugin.results import Gatherer, Sender

    config = session.config
    # Results are gathered on the controller (or the only process); xdist's workers only send theirs.
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Sender(config), "tokenpower-sender")
    else:
        config.pluginmanager.register(Gatherer(config), "tokenpower-gatherer")
    chosen = config.stash[SETTINGS]
    if chosen.disabled or not runs_tests(config):
        return
    # Engines, work trees and folders that are made for a run are to be gone after it, however it ends.
    config.add_cleanup(interrupt_when_terminated())
    try:
        with faults_end_in(refuse):
            show_progress(config)
            if not hasattr(config, "workerinput"):
                if chosen.baselines:
                    config.pluginmanager.register(AbsentTests(config), "tokenpower-absent-tests")
                if chosen.rerun_baseline:
                    config.pluginmanager.register(Rerunner(config), "tokenpower-rerunner")
            if chosen.source not in options.PLAIN_SOURCES:
                session_of(config).check_source()
            if chosen.stores or chosen.baselines or chosen.json is not None or chosen.record is not None:
                session_of(config).prepare()
    except TokenPowerError as error:
        refuse(error)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the collector."""
    if (session := config.stash.get(SESSION, None)) is not None:
        session.close()
