"""What lives for a whole pytest process: the telemetry, started by the first energy test, the store, the baseline."""

from __future__ import annotations

import contextlib
import os
import platform
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_tokenpower import __version__
from pytest_tokenpower.core.credentials import without_credentials
from pytest_tokenpower.core.jobs import current_job
from pytest_tokenpower.core.records import ClaimRecord, MeasurementRecord, RunRecord
from pytest_tokenpower.core.settings import Limits, Settings
from pytest_tokenpower.core.windows import RoundWindow
from pytest_tokenpower.errors import HistoryError, MeterError, MeterUnavailable, UsageError
from pytest_tokenpower.gate.evidence import Boards
from pytest_tokenpower.gate.priors import Priors
from pytest_tokenpower.gate.verdict import Policy
from pytest_tokenpower.meters import sources
from pytest_tokenpower.runner.telemetry import TelemetrySession
from pytest_tokenpower.store.baseline import Baseline
from pytest_tokenpower.store.calibrations import read_calibrations
from pytest_tokenpower.store.explain import what_was_stored
from pytest_tokenpower.store.git import Repository, explain_absence
from pytest_tokenpower.store.identity import root_in
from pytest_tokenpower.store.store import Store, default_store_path

if TYPE_CHECKING:
    from pytest_tokenpower.analysis.power_curves import PowerCurves
    from pytest_tokenpower.meters.recording import Recording
    from pytest_tokenpower.meters.types import Device, Meter


class Session:
    """The settings of this run and what they stand for. Telemetry starts at the first energy test, not before.

    ``gated_tests`` of the run can fail by a comparison, and by ``ceilings`` absolute limits with a p-value: the family
    that Holm's rule is over. ``claims`` are what became of the claims of its suites.
    """

    def __init__(
        self,
        settings: Settings,
        rootdir: Path,
        extra_meters: Callable[[str], Sequence[Meter] | None] = lambda source: None,
    ) -> None:
        self.settings = settings
        self.rootdir = rootdir
        self._extra_meters = extra_meters
        self._telemetry: TelemetrySession | MeterError | None = None
        self._process = os.getpid()
        self._priors = Priors()
        self.gated_tests = 1
        self.ceilings = 0
        self.claims: tuple[ClaimRecord, ...] = ()
        self._measured: list[tuple[str, tuple[RoundWindow, ...], TelemetrySession]] = []

    @cached_property
    def recording(self) -> Recording | None:
        """What --energy-source=replay:PATH names; raises UsageError."""
        kind, _, path = self.settings.source.partition(":")
        if kind != "replay":
            return None
        from pytest_tokenpower.meters.recording import read_recording

        if not path:
            raise UsageError("--energy-source=replay: name a recording: --energy-source=replay:PATH")
        return read_recording(Path(path))

    @cached_property
    def repository(self) -> Repository | None:
        """The git repository of the tests, as it stood when it was first asked for."""
        return Repository.discover(self.rootdir)

    @cached_property
    def root(self) -> str | None:
        """Where pytest's root directory is, seen from the repository's top level; None outside git."""
        return root_in(self.repository, self.rootdir)

    @cached_property
    def store(self) -> Store:
        """Where runs are read and written."""
        return Store(self.settings.storage or default_store_path(self.repository, self.rootdir))

    @cached_property
    def boards(self) -> Boards:
        """What calibrations in the store tell of boards."""
        return Boards.of(read_calibrations(self.store) if self._has_store else ())

    @property
    def _has_store(self) -> bool:
        """Whether a store can be found; one that is needed and cannot has been refused before the first test."""
        try:
            return bool(self.store)
        except HistoryError:
            return False

    @cached_property
    def baselines(self) -> tuple[Baseline, ...]:
        """What --energy-baseline names, in its order; raises UsageError, HistoryError or StoreError."""
        return tuple(
            Baseline.resolve(
                name,
                self.store,
                self.repository,
                self.settings.baseline_runs,
                folder=self.rootdir,
                root=self.root,
            )
            for name in (() if self.settings.rerun_baseline else self.settings.baselines)
        )

    @property
    def family(self) -> int:
        """In how many ways this run can fail: each gated test by each baseline or by comparing itself, and ceilings."""
        return self.gated_tests * max(len(self.baselines), 1) + self.ceilings

    def policy(self, limits: Limits) -> Policy:
        """Return what a test with these limits is judged by in this run."""
        return Policy(
            regression_limit=limits.regression or self.settings.regression,
            key_ignore=(*self.settings.key_ignore, *limits.key_ignore),
            family=self.family,
            alpha=self.settings.alpha,
            boards=self.boards,
            length_tolerance=self.settings.length_tolerance,
            priors=self._priors,
        )

    def baseline(self, label: str) -> Baseline:
        """Return the baseline that is called so in a verdict."""
        return next(each for each in self.baselines if each.label == label)

    def prepare(self) -> None:
        """Everything that can be wrong before a test runs; raises a TokenPowerError that says what to do."""
        if self.settings.save is not None:
            from pytest_tokenpower.store.store import validate_name

            validate_name(self.settings.save)
        # The store may lie inside the work tree: whether that is clean is read before anything is written.
        if self.settings.stores or self.settings.baselines:
            _ = self.repository
            _ = self.store
        if self.settings.stores:
            self.store.check_writable()
        if (path := self.settings.json) is not None:
            if not path.parent.is_dir():
                raise UsageError(f"--energy-json={path}: the folder {path.parent} does not exist")
            if path.is_dir():
                raise UsageError(f"--energy-json={path}: is a folder; give a file")
        if (record := self.settings.record) is not None:
            if record.is_dir() or not record.parent.is_dir() or not os.access(record.parent, os.W_OK):
                raise UsageError(
                    f"--energy-record={record}: must be a file in a folder that exists and can be written to"
                )
            if self.recording is not None:
                raise UsageError("--energy-record: a replay measures nothing that could be recorded")
        for target in self.settings.reports:
            if not target.path.parent.is_dir() or target.path.is_dir():
                raise UsageError(f"--energy-report={target.path}: must be a file in a folder that exists")
        _ = self.recording
        # The ini file speaks for all runs: only one that has energy tests needs what it names.
        if not self.settings.baselines_of_ini:
            _ = self.baselines

    def check_source(self) -> None:
        """Raise UsageError for a source that nobody knows, or whose file is wrong; opens no meter."""
        # A meter that is known and not there is no mistake of the command line: each test says so.
        with contextlib.suppress(MeterError):
            if self._estimates is None and self.recording is None:
                sources.check(self.settings.source, self._extra_meters)

    @property
    def problems(self) -> dict[str, str]:
        """The files of the store and the baseline that were left out so far, each with the reason."""
        stores = [
            *([self.store] if self._has_store else []),
            *(baseline.store for baseline in self.__dict__.get("baselines", ())),
        ]
        return {str(problem.path): problem.reason for store in stores for problem in store.problems}

    def telemetry(self) -> TelemetrySession:
        """Return the running telemetry; raises MeterError (again for each test) where nothing can measure."""
        if self._process != os.getpid():
            # In a fork of this process (pytest-forked) its collector does not run.
            self._process, self._telemetry = os.getpid(), None
        if self._telemetry is None:
            try:
                self._telemetry = started = self._start()
                if not started.devices:
                    raise MeterUnavailable(
                        f"--energy-source={without_credentials(self.settings.source)} lists no device to measure"
                    )
            except MeterError as error:
                self._telemetry = error
        if isinstance(self._telemetry, MeterError):
            raise self._telemetry
        return self._telemetry

    @property
    def devices(self) -> Sequence[Device]:
        """What has been measured so far; nothing where no test has begun to."""
        return self._telemetry.devices if isinstance(self._telemetry, TelemetrySession) else ()

    @cached_property
    def _estimates(self) -> TelemetrySession | None:
        """What --energy-source=ecologits:PROVIDER/MODEL names; raises UsageError, MeterUnavailable."""
        kind, _, model = self.settings.source.partition(":")
        if kind != "ecologits":
            return None
        from pytest_tokenpower.meters.adapters.ecologits import Estimator
        from pytest_tokenpower.runner.estimates import Estimates

        return Estimates(Estimator.of(model), self.settings.scope)

    def _start(self) -> TelemetrySession:
        if self._estimates is not None:
            return self._estimates
        scope = self.settings.scope
        if self.recording is None:
            started = sources.begin(self.settings.source, scope, self._extra_meters)
            try:
                return TelemetrySession(started.collector, started.devices, scope, started.notes)
            except MeterError:
                started.collector.stop()
                raise
        from pytest_tokenpower.meters.collector import Collector

        # Without meters a collector adds nothing to its timeline and has nothing to wait for.
        collector = Collector(())
        collector.timeline = self.recording.timeline
        return TelemetrySession(collector, self.recording.devices, scope)

    def replayed(self, test: str) -> tuple[RoundWindow, ...] | None:
        """Return the recorded rounds of a test; None in a run that measures. Raises UsageError where it has none."""
        if self.recording is None:
            return None
        from pytest_tokenpower.analysis.replay import rounds_of

        return rounds_of(self.recording, test)

    def keep(self, test: str, windows: Sequence[RoundWindow], telemetry: TelemetrySession) -> None:
        """Remember a test's rounds for --energy-record, and by which devices they are measured."""
        self._measured.append((test, tuple(windows), telemetry))

    def curves(self, test: str) -> PowerCurves | None:
        """Return the power and phases of what a test has measured last in this process; None where it has not."""
        from pytest_tokenpower.analysis.power_curves import power_curves

        for name, windows, telemetry in reversed(self._measured):
            if name == test:
                return power_curves(telemetry.collector.timeline, telemetry.devices_in_use(windows), windows)
        return None

    def write_recording(self) -> None:
        """Write what --energy-record asks for; nothing where no energy test has run in this process."""
        record, telemetry = self.settings.record, self._telemetry
        if record is None or not isinstance(telemetry, TelemetrySession):
            return
        from pytest_tokenpower.analysis.replay import recorded_windows
        from pytest_tokenpower.meters.recording import write_recording

        windows = [
            window
            for test, rounds, used in self._measured
            for window in recorded_windows(test, rounds, [d.id for d in used.devices_in_use(rounds)])
        ]
        # A copy reads the offset anew.
        offset_ns = replace(telemetry.clock).offset_ns
        write_recording(record, telemetry.collector.timeline, windows, realtime_offset_ns=offset_ns)

    def rest(self) -> None:
        """Measure no more: the timeline stays, and its meters leave the machine to others."""
        if isinstance(self._telemetry, TelemetrySession):
            self._telemetry.collector.stop()

    def close(self) -> None:
        """Stop the collector."""
        if isinstance(self._telemetry, TelemetrySession):
            self._telemetry.collector.stop()
        self._telemetry = None

    def saved(self, run: RunRecord) -> str:
        """Store a run; returns the line that says where, and whether it can be a baseline. Raises StoreError."""
        path = self.store.write(run)
        return what_was_stored(run, path, self.repository, explain_absence(self.rootdir))

    def run_record(
        self, measurements: Sequence[MeasurementRecord], failures: Mapping[str, str] | None = None
    ) -> RunRecord:
        """Return the run as it is stored, or handed to the run that has started it."""
        from importlib import metadata

        repository = self.repository
        versions = {"python": platform.python_version(), "pytest-tokenpower": __version__}
        for name in ("pytest", "nvidia-ml-py", "torch", "transformers", "vllm"):
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        return RunRecord(
            id=uuid.uuid4().hex,
            created=datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            measurements=tuple(measurements),
            name=self.settings.save,
            commit=repository.head if repository else None,
            branch=repository.branch if repository else None,
            dirty=repository.dirty if repository else None,
            root=self.root,
            host={
                **{"hostname": platform.node(), "machine": platform.machine(), "cpus": os.cpu_count()},
                **({"job": job.name} if (job := current_job()) else {}),
            },
            versions=versions,
            command=tuple(map(without_credentials, self.settings.given)),
            failures=dict(failures or {}),
            claims=self.claims,
        )
