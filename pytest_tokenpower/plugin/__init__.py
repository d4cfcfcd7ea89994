"""pytest's hooks that every run has, and nothing else: a run without energy tests imports little more.

What watches a run that measures is registered when there is something to watch (:mod:`.watching`).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_tokenpower.core.settings import CHILD_VARIABLE, EVENTS_VARIABLE, HELD_AS_READ, SOAK_VARIABLE
from pytest_tokenpower.engines import registry
from pytest_tokenpower.errors import TokenPowerError, UsageError
from pytest_tokenpower.plugin import hookspecs, marker, options
from pytest_tokenpower.plugin.edge import fail, faults_end_in, refuse, said
from pytest_tokenpower.plugin.state import (
    EACH,
    MEASUREMENTS,
    SESSION,
    SETTINGS,
    TWICE,
    WAYS,
    has_workers,
    is_worker,
    may_measure,
    runs_tests,
    session_of,
    test_id,
)

NODE: pytest.StashKey[pytest.Item | pytest.Collector] = pytest.StashKey()
"""The module that is collected, or the test that runs: hooks are asked as its conftest files have them."""

if TYPE_CHECKING:
    from pytest_tokenpower.runner.fixture import DisabledEnergy, Energy


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare options and ini values."""
    options.add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare how others add meters, engines and token counters."""
    pluginmanager.add_hookspecs(hookspecs)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, object, object]:
    """In a child run, take back what other plugins would begin with at once: measuring coverage."""
    if CHILD_VARIABLE in os.environ:
        from pytest_tokenpower.plugin.child import leave_alone

        leave_alone(early_config.known_args_namespace)
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Read and check the settings."""
    config.addinivalue_line("markers", marker.MARKER)
    config.addinivalue_line("markers", marker.CELL_MARKER)
    config.addinivalue_line("markers", marker.SOAK_MARKER)
    config.stash[MEASUREMENTS] = []
    config.add_cleanup(registry.register_source(lambda: _engines(config)))
    if CHILD_VARIABLE in os.environ:
        from pytest_tokenpower.plugin.child import leave_alone

        leave_alone(config.option)
    if CHILD_VARIABLE in os.environ or EVENTS_VARIABLE in os.environ:
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

    return added_engines(config.stash.get(NODE, None) or config)


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


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect suites (``*.energy.toml``), whose cells are tests."""
    if not file_path.name.endswith(".energy.toml"):
        return None
    from pytest_tokenpower.plugin.suites import SuiteFile
    from pytest_tokenpower.plugin.watching import watch

    watch(parent.config)
    return SuiteFile.from_parent(parent, path=file_path)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Check every power_budget marker at collection, so that a malformed one stops the run before it begins."""
    collector.config.stash[NODE] = collector
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
    """Look at the energy tests of this run before the first of them: no two of one id, and how they can fail.

    Every xdist worker collects, so counts, them all.
    """
    config = session.config
    chosen = config.stash[SETTINGS]
    if chosen.disabled or config.option.collectonly:
        return
    if SOAK_VARIABLE in os.environ and len(session.items) > 1:
        named = ", ".join(item.nodeid for item in session.items[:5])
        refuse(f"{len(session.items)} tests are selected, and a soak is of one: {named}")
    gated = [] if chosen.skip else [item for item in session.items if may_measure(item)]
    measuring = Counter(map(test_id, gated))
    doubled: frozenset[str] = frozenset(test for test, times in measuring.items() if times > 1)
    config.stash[TWICE] = doubled
    if gated:
        from pytest_tokenpower.plugin.watching import watch

        watch(config)
    # A worker cannot end the run: there each test says it.
    if doubled and runs_tests(config) and not is_worker(config):
        from pytest_tokenpower.plugin.opening import twice

        refuse(twice(min(doubled)))
    ceilings = 0
    for item in gated:
        # A marker that was added late and is malformed is said when its test comes.
        with contextlib.suppress(UsageError):
            ceilings += len(marker.read_budget(item).ceilings.keys() - HELD_AS_READ)
    if gated:
        config.stash[WAYS] = (len(gated), ceilings)
    if not chosen.baselines:
        return
    if gated and runs_tests(config) and not is_worker(config):
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
    from pytest_tokenpower.plugin.opening import open_energy

    with open_energy(request.node) as fixture:
        yield fixture


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell an xdist worker that others run the same tests, which it cannot know."""
    if node.config.getoption("dist") == "each":
        node.workerinput[EACH] = node.workerinput["workercount"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Say what a fixture could not start, an engine most of all, in the error's own words."""
    item.config.stash[NODE] = item
    chosen = item.config.stash[SETTINGS]
    if chosen.only and not may_measure(item):
        pytest.skip("measures no energy (--energy-only)")
    if chosen.skip and may_measure(item):
        pytest.skip("measures energy (--energy-skip)")
    try:
        return (yield)
    except TokenPowerError as error:
        fail(error)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Find mistakes in what names a meter, a store or a baseline before any test runs (and any worker starts)."""
    config = session.config
    chosen = config.stash[SETTINGS]
    unusual_source = chosen.source not in options.PLAIN_SOURCES
    asked = chosen.given or chosen.baselines or unusual_source or EVENTS_VARIABLE in os.environ
    # A controller of xdist collects nothing: it learns of energy tests by their reports.
    if not asked and not has_workers(config):
        return
    from pytest_tokenpower.plugin.watching import watch

    try:
        with faults_end_in(refuse):
            watch(config)
            if chosen.disabled or not runs_tests(config):
                return
            if unusual_source:
                session_of(config).check_source()
            if (
                chosen.stores
                or chosen.baselines
                or chosen.json is not None
                or chosen.record is not None
                or chosen.reports
            ):
                session_of(config).prepare()
    except TokenPowerError as error:
        refuse(error)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, object]) -> None:
    """Tell pytest-benchmark's JSON what energy was measured with; without what differs between two like machines."""
    if (session := config.stash.get(SESSION, None)) is not None and (devices := session.devices):
        machine_info["energy"] = [
            {"name": each.name, "scope": each.scope, "meter": each.meter, "provenance": each.provenance}
            for each in devices
        ]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the collector."""
    if (session := config.stash.get(SESSION, None)) is not None:
        session.close()
