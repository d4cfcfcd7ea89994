"""The outcome of an energy test: judged when pytest and all its plugins have said how the test itself ended.

What raised in the body is one way to fail among many: a TestCase keeps its failures, subtests report theirs apart,
other plugins turn a report into a failure. So the verdict waits for the report, and where it fails the test, the report
is made anew with that failure as the test's: expected failures, JUnit and reruns then treat it like any other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass

import pytest

from pytest_tokenpower.errors import TokenPowerError
from pytest_tokenpower.plugin import marker
from pytest_tokenpower.plugin.edge import fail, faults_end_in
from pytest_tokenpower.plugin.state import (
    ATTEMPTS,
    ENERGY,
    MEASUREMENT,
    NO_METER,
    SETTINGS,
    SKIPPED,
    failure_of,
    parameters,
    session_of,
)


@dataclass
class Body:
    """A test's body as it runs: whether it has ended, and whether a part of it that is reported apart has failed."""

    ended: bool = False
    part_failed: bool = False
    judged: bool = False


BODY: pytest.StashKey[Body] = pytest.StashKey()
TELLING: pytest.StashKey[bool] = pytest.StashKey()
"""That other plugins are told of a failing verdict, upon which one may run the test again (pytest-retry)."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Say what the fixture refuses in its own words."""
    check_meter(item)
    item.stash[BODY] = Body()
    try:
        return (yield)
    except TokenPowerError as error:
        fail(error)
    finally:
        item.stash[BODY].ended = True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Say what a fixture was refused as it was torn down in the error's own words, also where it has caught it."""
    fixture = item.stash.get(ENERGY, None)
    try:
        result = yield
    except TokenPowerError as error:
        fail(error)
    if fixture is not None and (refused := fixture.refused_late):
        fail(refused)
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge an energy test, and send the measurement along: that is how it travels from an xdist worker."""
    report = judged(item, call, (yield))
    if report.skipped and (reason := item.stash.get(SKIPPED, None)) is not None:
        report.energy_skipped = reason  # type: ignore[attr-defined]
        del item.stash[SKIPPED]
    return report


def check_meter(item: pytest.Item) -> None:
    """Fail the test where nothing can measure and that is a failure."""
    if (reason := item.stash.get(NO_METER, None)) is not None:
        fail(reason)


def judged(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> pytest.TestReport:
    """Return the report of an energy test with its measurement; made anew, as failed, where the verdict fails it."""
    if call.when == "teardown" and not report.passed:
        _drop_properties(item)
        report.user_properties = list(item.user_properties)
    if call.when != "call":
        return report
    body = item.stash.setdefault(BODY, Body(ended=True))
    if not body.ended:
        body.part_failed |= report.failed or hasattr(report, "wasxfail")
        return report
    if body.judged:
        return report
    body.judged = True
    if (fixture := item.stash.get(ENERGY, None)) is not None:
        fixture.end_body()
    # A run that was made elsewhere (--energy-rerun-baseline) has brought its measurement, judged.
    if MEASUREMENT not in item.stash:
        if not body.part_failed and (report.passed or _unexpectedly_passed(report)):
            verdict = pytest.CallInfo.from_call(
                lambda: _judge(item), "call", reraise=(pytest.exit.Exception, KeyboardInterrupt)
            )
            if verdict.excinfo is not None:
                report = _failed(item, call, report, verdict.excinfo)
        elif not report.skipped or hasattr(report, "wasxfail"):
            _keep_failed(item)
    if MEASUREMENT in item.stash:
        _attach(item, report)
    return report


def _failed(
    item: pytest.Item,
    call: pytest.CallInfo[None],
    report: pytest.TestReport,
    failure: pytest.ExceptionInfo[BaseException],
) -> pytest.TestReport:
    """Return the report of a test that its verdict fails; with another verdict where it is run again upon that."""
    if TELLING in item.stash:
        # Told once more it would run again, and so on for as long as it fails.
        report.outcome, report.longrepr = "failed", str(failure.value)
        return report
    measured = item.stash.get(MEASUREMENT, None)
    if measured is not None:
        del item.stash[MEASUREMENT]
    body = item.stash[BODY]
    call.excinfo = failure
    item.stash[TELLING] = True
    try:
        report = item.ihook.pytest_runtest_makereport(item=item, call=call)
    finally:
        del item.stash[TELLING]
    if measured is not None and item.stash[BODY] is body:
        item.stash[MEASUREMENT] = measured
    return report


def _unexpectedly_passed(report: pytest.TestReport) -> bool:
    return isinstance(report.longrepr, str) and report.longrepr.startswith("[XPASS(strict)]")


def _judge(item: pytest.Item) -> None:
    """Leave the measurement of a test that has not failed by itself; raises what fails it."""
    if item.config.stash[SETTINGS].disabled:
        return
    # A test may ask for the fixture in its body: request.getfixturevalue("energy").
    check_meter(item)
    fixture = item.stash.get(ENERGY, None)
    if fixture is None:
        if item.get_closest_marker("power_budget") is not None:
            fail(
                f"{item.nodeid} has a power_budget and measures nothing: name the energy fixture as an argument and "
                "call energy(fn, ...), or take the marker away"
            )
        return
    if not fixture.used:
        fail(
            f"{item.nodeid} asks for the energy fixture and measures nothing: call energy(fn, ...), await "
            "energy.async_run(fn, ...) or enter energy.measure()"
        )
    if refusal := fixture.refusal:
        _keep_failed(item)
        fail(refusal)
    try:
        with faults_end_in(fail):
            item.stash[MEASUREMENT] = measured = fixture.finish(failed=False)
    except TokenPowerError as error:
        fail(error)
    # Should a plugin run this test again, its rounds are judged together: another roll would hide half of what is
    # found. A measurement that is not to be trusted says nothing, and is left out.
    if all(verdict.kind != "invalid" for verdict in measured.verdicts):
        item.stash[ATTEMPTS] = fixture.attempts
    complaint = failure_of(item.name, measured, item.config.stash[SETTINGS])
    if complaint:
        fail(complaint)


def _keep_failed(item: pytest.Item) -> None:
    """Leave what a test measured that failed by itself; its failure stands, whatever becomes of that."""
    fixture = item.stash.get(ENERGY, None)
    if fixture is not None and fixture.used:
        with contextlib.suppress(TokenPowerError):
            item.stash[MEASUREMENT] = fixture.finish(failed=True)


def _attach(item: pytest.Item, report: pytest.TestReport) -> None:
    import msgspec
    from msgspec.structs import replace

    from pytest_tokenpower.reporting.formats import FORMATS
    from pytest_tokenpower.reporting.junit import properties

    # A plugin that reruns tests makes several reports of one item: each has its own measurement.
    measured = item.stash[MEASUREMENT]
    del item.stash[MEASUREMENT]
    measured = msgspec.structs.replace(measured, facts={**measured.facts, **parameters(item)})
    _drop_properties(item)
    item.user_properties += properties(measured)
    report.user_properties = list(item.user_properties)
    # pytest-benchmark writes these into its JSON, when all tests have run: no verdict, which may change until then.
    extra_info = getattr(getattr(item, "funcargs", {}).get("benchmark"), "extra_info", None)
    if isinstance(extra_info, dict):
        extra_info |= properties(replace(measured, verdicts=()))
    report.energy = msgspec.to_builtins(measured)  # type: ignore[attr-defined]
    if any(FORMATS[target.format].draws for target in item.config.stash[SETTINGS].reports):
        # The readings are in this process alone; the controller of xdist has none.
        report.energy_curves = msgspec.to_builtins(  # type: ignore[attr-defined]
            session_of(item.config).curves(measured.test)
        )
    if any(verdict.kind == "doubtful" for verdict in measured.verdicts):
        # The controller, which decides it in the end, has no items to read this from.
        chosen, session = item.config.stash[SETTINGS], session_of(item.config)
        ignore = (*chosen.key_ignore, *marker.read_budget(item).key_ignore)
        report.energy_doubt = {"family": session.family, "ignore": ignore}  # type: ignore[attr-defined]


def _drop_properties(item: pytest.Item) -> None:
    item.user_properties[:] = [each for each in item.user_properties if not each[0].startswith("energy.")]
