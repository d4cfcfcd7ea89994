"""pytest's hooks, and nothing else. Whatever is heavy is imported by the first energy test, not here."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from pytest_tokenpower import hookspecs, settings
from pytest_tokenpower.errors import MeterError, TokenPowerError, UsageError

if TYPE_CHECKING:
    from pytest_tokenpower.fixture import DisabledEnergy, Energy
    from pytest_tokenpower.record import MeasurementRecord, VerdictRecord
    from pytest_tokenpower.rerun import Rerun
    from pytest_tokenpower.session import Session

_SETTINGS = pytest.StashKey[settings.Settings]()
_SESSION = pytest.StashKey["Session"]()
_ENERGY = pytest.StashKey["Energy"]()
_NO_METER = pytest.StashKey[str]()
_MEASUREMENTS = pytest.StashKey["list[MeasurementRecord]"]()
_MEASUREMENT = pytest.StashKey["MeasurementRecord"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare options and ini values."""
    settings.add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare how others add meters and token counters."""
    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    """Read and check the settings."""
    config.addinivalue_line("markers", settings.MARKER)
    config.stash[_MEASUREMENTS] = []
    try:
        config.stash[_SETTINGS] = settings.read_settings(config)
    except TokenPowerError as error:
        raise pytest.UsageError(str(error)) from None


def _session(config: pytest.Config) -> Session:
    if _SESSION not in config.stash:
        from pytest_tokenpower.session import Session

        config.stash[_SESSION] = Session(
            config.stash[_SETTINGS],
            config.rootpath,
            cache(lambda source: config.hook.pytest_tokenpower_meters(source=source)),
        )
    return config.stash[_SESSION]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Check every power_budget marker at collection, so that a malformed one stops the run before it begins."""
    report = yield
    complaints: dict[str, None] = {}
    for item in report.result or ():
        if isinstance(item, pytest.Item) and item.get_closest_marker("power_budget") is not None:
            try:
                settings.read_budget(item)
            except UsageError as error:
                complaints[str(error)] = None
    if complaints:
        # A UsageError from here would be an internal error on an xdist worker.
        report.outcome, report.longrepr, report.result = "failed", "\n".join(complaints), []
    return report


def pytest_collection_finish(session: pytest.Session) -> None:
    """Count the tests that can fail by a comparison; every xdist worker collects, so counts, them all."""
    if session.config.stash[_SETTINGS].baselines and not session.config.option.collectonly:
        gated = sum(map(_is_gated, session.items))
        _session(session.config).gated_tests = max(gated, 1)


@pytest.fixture
def energy(request: pytest.FixtureRequest) -> Energy | DisabledEnergy:
    """Measures the joules of a workload: ``energy(fn, *args)`` or ``with energy.measure() as window:``."""
    from pytest_tokenpower.fixture import DisabledEnergy, Energy

    item, config = request.node, request.config
    chosen = config.stash[_SETTINGS]
    if chosen.disabled:
        return DisabledEnergy()
    try:
        session = _session(config)
        item.stash[_ENERGY] = fixture = Energy(
            item.nodeid,
            settings.read_budget(item),
            session,
            lambda result, args, kwargs, fn: config.hook.pytest_tokenpower_count_tokens(
                result=result, args=args, kwargs=kwargs
            ),
        )
        return fixture
    except MeterError as error:
        if chosen.require_hardware:
            item.stash[_NO_METER] = f"energy_require_hardware is set, and {error}"
            return DisabledEnergy()
        pytest.skip(str(error))
    except UsageError as error:
        raise _failure(error) from None


def _failure(error: TokenPowerError) -> BaseException:
    """A failure of the test in the error's words alone, without a traceback into the plugin."""
    return pytest.fail.Exception(str(error), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Judge an energy test when its body has ended, and fail the test itself."""
    if (reason := item.stash.get(_NO_METER, None)) is not None:
        pytest.fail(reason, pytrace=False)
    fixture = item.stash.get(_ENERGY, None)
    if fixture is None:
        return (yield)
    try:
        result = yield
    except (KeyboardInterrupt, pytest.exit.Exception, pytest.skip.Exception):
        raise
    except UsageError as error:
        raise _failure(error) from None
    except TokenPowerError as error:
        if fixture.used:
            item.stash[_MEASUREMENT] = fixture.finish(failed=True)
        raise _failure(error) from None
    except BaseException:
        if fixture.used:
            item.stash[_MEASUREMENT] = fixture.finish(failed=True)
        raise
    if not fixture.used:
        pytest.fail(
            f"{item.nodeid} asks for the energy fixture and measures nothing: call energy(fn, ...) or enter "
            "energy.measure()",
            pytrace=False,
        )
    item.stash[_MEASUREMENT] = measured = fixture.finish(failed=False)
    complaint = _complaint(item, measured)
    if complaint:
        pytest.fail(complaint, pytrace=False)
    return result


def _complaint(item: pytest.Item, measured: MeasurementRecord) -> str:
    """What fails the test: each failing verdict, the gravest first; empty if none does."""
    from pytest_tokenpower.verdict import SEVERITY

    chosen = item.config.stash[_SETTINGS]
    failing = sorted(
        (verdict for verdict in measured.verdicts if _fails(verdict, chosen)),
        key=lambda verdict: SEVERITY.index(verdict.kind),
    )
    return "\n".join(f"{verdict.kind.upper()}: {item.name}: {verdict.message}" for verdict in failing)


def _fails(verdict: VerdictRecord, chosen: settings.Settings) -> bool:
    from pytest_tokenpower.verdict import FAILING

    if verdict.kind == "no baseline":
        return chosen.missing_baseline == "fail"
    if verdict.kind == "inconclusive":
        return chosen.inconclusive == "fail"
    return verdict.kind in FAILING


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Send the measurement along with the report: that is how it travels from an xdist worker."""
    if call.when == "call" and (measured := item.stash.get(_MEASUREMENT, None)) is not None:
        import msgspec

        from pytest_tokenpower.reports.junit import properties

        # A plugin that reruns tests makes several reports of one item: each has its own measurement.
        del item.stash[_MEASUREMENT]
        item.user_properties[:] = [
            each for each in item.user_properties if not each[0].startswith("energy.")
        ] + properties(measured)
        report = yield
        report.energy = msgspec.to_builtins(measured)  # type: ignore[attr-defined]
        return report
    return (yield)


class _Rerunner:
    """--energy-rerun-baseline: energy tests are not run here, but in turn with the baseline's in fresh processes."""

    def __init__(self, config: pytest.Config) -> None:
        chosen = config.stash[_SETTINGS]
        if len(chosen.baselines) != 1:
            raise UsageError("--energy-rerun-baseline needs one git ref: --energy-baseline=REF")
        if config.getoption("numprocesses", None):
            raise UsageError("--energy-rerun-baseline runs one process at a time: leave -n away")
        self._config = config
        self._rerun: Rerun | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        if any(_is_gated(item) for item in session.items):
            from pytest_tokenpower.rerun import rerun

            reporter = self._config.pluginmanager.get_plugin("terminalreporter")

            def say(text: str) -> None:
                if reporter is not None:
                    reporter.write_line(f"energy: {text}")
                    reporter.flush()

            try:
                self._rerun = rerun(
                    _session(self._config).repository,
                    self._config.stash[_SETTINGS].baselines[0],
                    [str(argument) for argument in self._config.invocation_params.args],
                    self._config.invocation_params.dir,
                    say,
                )
            except TokenPowerError as error:
                pytest.exit(f"energy: {error}", returncode=pytest.ExitCode.USAGE_ERROR)
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if self._rerun is None or not _is_gated(item):
            return None
        chosen, budget = self._config.stash[_SETTINGS], settings.read_budget(item)
        measured = self._rerun.judge(
            item.nodeid,
            budget.regression or chosen.regression,
            budget.ceilings,
            (*chosen.key_ignore, *budget.key_ignore),
            _session(self._config).gated_tests,
        )

        def outcome() -> None:
            if measured is None:
                pytest.skip("nothing was measured in its own process: run it alone to see why")
            item.stash[_MEASUREMENT] = measured
            if complaint := _complaint(item, measured):
                pytest.fail(complaint, pytrace=False)

        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for when, body in (("setup", lambda: None), ("call", outcome), ("teardown", lambda: None)):
            call = pytest.CallInfo.from_call(body, when)  # type: ignore[arg-type]
            hook.pytest_runtest_logreport(report=hook.pytest_runtest_makereport(item=item, call=call))
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True


def _is_gated(item: pytest.Item) -> bool:
    return "energy" in getattr(item, "fixturenames", ())


class _Gatherer:
    """Collects the measurements of all reports; on the controller only, where the run is stored and shown."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._problems: dict[str, str] = {}
        self._losses: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and hasattr(report, "energy"):
            import msgspec

            from pytest_tokenpower.record import MeasurementRecord

            self._config.stash[_MEASUREMENTS].append(msgspec.convert(report.energy, MeasurementRecord))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        result = yield
        if self._config.stash[_MEASUREMENTS] and self._config.stash[_SETTINGS].baselines:
            self._settle()
        return result

    def _settle(self) -> None:
        """Fail the tests that the whole family's p-values show to have regressed, and theirs alone did not."""
        from msgspec.structs import replace

        from pytest_tokenpower.verdict import settle

        measurements = self._config.stash[_MEASUREMENTS]
        settled = settle(measurements)
        for at, measured in enumerate(measurements):
            verdicts = tuple(settled.get((measured.test, v.against), v) for v in measured.verdicts)
            if verdicts == measured.verdicts:
                continue
            measurements[at] = replace(measured, verdicts=verdicts)
            name = measured.test.rpartition("::")[2]
            self._config.hook.pytest_runtest_logreport(
                report=pytest.TestReport(
                    nodeid=measured.test,
                    location=(measured.test.partition("::")[0], None, name),
                    keywords={},
                    outcome="failed",
                    longrepr="\n".join(
                        f"REGRESSED: {name}: {v.message}\n  Settled with all comparisons of this run (Holm)."
                        for v in verdicts
                        if v.kind == "regressed"
                    ),
                    when="call",
                )
            )

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        output = getattr(node, "workeroutput", {})
        self._problems.update(output.get("tokenpower_problems", {}))
        self._losses.extend(output.get("tokenpower_losses", ()))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if measurements := self._config.stash[_MEASUREMENTS]:
            from pytest_tokenpower.reports.terminal import summary

            session = _session(self._config)
            summary(terminalreporter, measurements, session, {**session.problems, **self._problems})
        for loss in self._losses:
            terminalreporter.write_line(loss, red=True)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        measurements = self._config.stash[_MEASUREMENTS]
        chosen = self._config.stash[_SETTINGS]
        stores = chosen.stores and measurements
        if chosen.disabled or not _runs_tests(self._config):
            return
        if chosen.record is not None and _SESSION in self._config.stash:
            self._keep(f"recorded in {chosen.record}", _session(self._config).write_recording)
        if not (stores or chosen.json or self._losses):
            return
        from pytest_tokenpower.record import encode_run

        run = _session(self._config).run_record(measurements)
        if stores:
            self._keep("stored", lambda: _session(self._config).store.write(run))
        if (path := chosen.json) is not None:
            self._keep(f"written to {path}", lambda: path.write_bytes(encode_run(run)))
        if self._losses and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR

    def _keep(self, what: str, write: Callable[[], object]) -> None:
        # Raised from here, an error would cost the reader all of pytest's summary.
        try:
            write()
        except (TokenPowerError, OSError) as error:
            self._losses.append(f"this run is NOT {what}: {error}")


class _Sender:
    """On an xdist worker: sends along what no report carries."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_sessionfinish(self) -> None:
        if _SESSION in self._config.stash:
            output: dict[str, object] = self._config.workeroutput  # type: ignore[attr-defined]
            output["tokenpower_problems"] = _session(self._config).problems
            try:
                _session(self._config).write_recording()
            except TokenPowerError as error:
                output["tokenpower_losses"] = [f"this run is NOT recorded: {error}"]


def _runs_tests(config: pytest.Config) -> bool:
    """Whether tests are to run: not where pytest is only asked what there is."""
    questions = ("collectonly", "showfixtures", "show_fixtures_per_test")
    return not any(getattr(config.option, question, False) for question in questions)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Find mistakes in what names a meter, a store or a baseline before any test runs (and any worker starts)."""
    config = session.config
    # Results are gathered on the controller (or the only process); xdist's workers only send theirs.
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(_Sender(config), "tokenpower-sender")
    else:
        config.pluginmanager.register(_Gatherer(config), "tokenpower-gatherer")
    chosen = config.stash[_SETTINGS]
    if chosen.disabled or not _runs_tests(config):
        return
    try:
        if chosen.rerun_baseline and not hasattr(config, "workerinput"):
            config.pluginmanager.register(_Rerunner(config), "tokenpower-rerunner")
        if chosen.source not in settings.PLAIN_SOURCES:
            _session(config).check_source()
        if chosen.stores or chosen.baselines or chosen.json is not None or chosen.record is not None:
            _session(config).prepare()
    except TokenPowerError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the collector."""
    if (session := config.stash.get(_SESSION, None)) is not None:
        session.close()
