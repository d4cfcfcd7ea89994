"""What lives for a whole pytest process: the telemetry, started by the first energy test, the store, the baseline."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_tokenpower.baselines.git import Repository
from pytest_tokenpower.baselines.resolve import Baseline
from pytest_tokenpower.baselines.store import Store, default_store_path
from pytest_tokenpower.errors import MeterError, MeterUnavailable, UsageError
from pytest_tokenpower.measurement import RoundWindow, round_records, track_of
from pytest_tokenpower.record import MeasurementRecord, RoundRecord, RunRecord
from pytest_tokenpower.settings import Settings
from pytest_tokenpower.telemetry import sources

if TYPE_CHECKING:
    from pytest_tokenpower.telemetry.collector import Collector
    from pytest_tokenpower.telemetry.recording import Recording
    from pytest_tokenpower.telemetry.values import Device, Meter

AFTER_NS = 60_000_000
"""Readings are awaited until this long after a window: its last edge is placed between the samples around it."""


class Telemetry:
    """A running collector and the devices whose energy is the figure."""

    def __init__(self, collector: Collector, devices: Sequence[Device]) -> None:
        self.collector = collector
        self.devices = tuple(devices)

    def shortest_window_ns(self) -> float:
        """How long a round must be for the slowest of the devices' meters to resolve it."""
        from pytest_tokenpower.analysis.guards import shortest_window_ns

        tracks = [track_of(self.collector.timeline, device) for device in self.devices]
        return max((shortest_window_ns(track) for track in tracks if track is not None), default=0.0)

    def assess(self, windows: Sequence[RoundWindow]) -> tuple[RoundRecord, ...]:
        """Wait for the readings of the last window, and give each round its energy and reasons."""
        self.collector.flush(windows[-1].end_ns + AFTER_NS)
        return round_records(self.collector.timeline, self.devices_in_use(windows), windows)

    def devices_in_use(self, windows: Sequence[RoundWindow]) -> tuple[Device, ...]:
        """The GPUs that processes of ours ran on; all visible ones where the driver does not say."""
        if len(self.devices) < 2 or not windows:
            return self.devices
        start_ns, end_ns = windows[0].start_ns, windows[-1].end_ns
        timeline = self.collector.timeline
        ours = tuple(
            device
            for device in self.devices
            if any(
                condition.own_process
                for condition in timeline.conditions(device.id)
                if start_ns <= condition.t_ns <= end_ns + AFTER_NS * 2
            )
        )
        return ours or self.devices

    @cached_property
    def provenance(self) -> str:
        """Measured, unless a device's figure is not; several kinds are named all."""
        return "+".join(sorted({device.provenance for device in self.devices}))


class Session:
    """The settings of this run and what they stand for. Telemetry starts at the first energy test, not before."""

    def __init__(
        self,
        settings: Settings,
        rootdir: Path,
        extra_meters: Callable[[str], Sequence[Meter] | None] = lambda source: None,
    ) -> None:
        self.settings = settings
        self.rootdir = rootdir
        self._extra_meters = extra_meters
        self._telemetry: Telemetry | MeterError | None = None
        self._measured: list[tuple[str, tuple[RoundWindow, ...]]] = []

    @cached_property
    def recording(self) -> Recording | None:
        """What --energy-source=replay:PATH names; raises UsageError."""
        kind, _, path = self.settings.source.partition(":")
        if kind != "replay":
            return None
        from pytest_tokenpower.telemetry.recording import read_recording

        if not path:
            raise UsageError("--energy-source=replay: name a recording: --energy-source=replay:PATH")
        return read_recording(Path(path))

    @cached_property
    def repository(self) -> Repository | None:
        """The git repository of the tests, as it stood when it was first asked for."""
        return Repository.discover(self.rootdir)

    @cached_property
    def store(self) -> Store:
        """Where runs are read and written."""
        return Store(self.settings.storage or default_store_path(self.repository, self.rootdir))

    @cached_property
    def baseline(self) -> Baseline | None:
        """What --energy-baseline names; raises UsageError, HistoryError or StoreError."""
        if self.settings.baseline is None:
            return None
        return Baseline.resolve(
            self.settings.baseline,
            self.store,
            self.repository,
            self.settings.baseline_runs,
            folder=self.rootdir,
        )

    def prepare(self) -> None:
        """Everything that can be wrong before a test runs; raises a TokenPowerError that says what to do."""
        if self.settings.save is not None:
            from pytest_tokenpower.baselines.files import validate_name

            validate_name(self.settings.save)
        # The store may lie inside the work tree: whether that is clean is read before anything is written.
        if self.settings.stores or self.settings.baseline is not None:
            _ = self.repository
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
        _ = self.recording
        _ = self.baseline

    def check_source(self) -> None:
        """Raises UsageError for a source that nobody knows, or whose file is wrong; opens no meter."""
        # A meter that is known and not there is no mistake of the command line: each test says so.
        with contextlib.suppress(MeterError):
            if self.recording is None and self._extra_meters(self.settings.source) is None:
                sources.meters_for(self.settings.source)

    @property
    def problems(self) -> dict[str, str]:
        """The files of the store and the baseline that were left out so far, each with the reason."""
        baseline = self.__dict__.get("baseline")
        stores = [self.store, *([baseline.store] if baseline is not None else [])]
        return {str(problem.path): problem.reason for store in stores for problem in store.problems}

    def telemetry(self) -> Telemetry:
        """The running telemetry; raises MeterError (again for each test) where nothing can measure."""
        if self._telemetry is None:
            try:
                self._telemetry = started = self._start()
                if not started.devices:
                    raise MeterUnavailable(
                        f"--energy-source={self.settings.source} lists no device to measure"
                    )
            except MeterError as error:
                self._telemetry = error
        if isinstance(self._telemetry, MeterError):
            raise self._telemetry
        return self._telemetry

    def _start(self) -> Telemetry:
        source = self.settings.source
        if self.recording is None:
            return Telemetry(*sources.start(source, self._extra_meters(source)))
        from pytest_tokenpower.telemetry.collector import Collector

        # Without meters a collector adds nothing to its timeline and has nothing to wait for.
        collector = Collector(())
        collector.timeline = self.recording.timeline
        return Telemetry(collector, self.recording.devices)

    def replayed(self, test: str) -> tuple[RoundWindow, ...] | None:
        """The recorded rounds of a test; None in a run that measures. Raises UsageError where it has none."""
        if self.recording is None:
            return None
        from pytest_tokenpower.replay import rounds_of

        return rounds_of(self.recording, test)

    def keep(self, test: str, windows: Sequence[RoundWindow]) -> None:
        """Remember a test's rounds for --energy-record."""
        self._measured.append((test, tuple(windows)))

    def write_recording(self) -> None:
        """Write what --energy-record asks for; nothing where no energy test has run in this process."""
        record, telemetry = self.settings.record, self._telemetry
        if record is None or not isinstance(telemetry, Telemetry):
            return
        from pytest_tokenpower.replay import recorded_windows
        from pytest_tokenpower.telemetry.clock import Clock
        from pytest_tokenpower.telemetry.recording import write_recording

        windows = [
            window
            for test, rounds in self._measured
            for window in recorded_windows(test, rounds, [d.id for d in telemetry.devices_in_use(rounds)])
        ]
        write_recording(record, telemetry.collector.timeline, windows, realtime_offset_ns=Clock().offset_ns)

    def close(self) -> None:
        """Stop the collector."""
        if isinstance(self._telemetry, Telemetry):
            self._telemetry.collector.stop()
        self._telemetry = None

    def run_record(self, measurements: Sequence[MeasurementRecord]) -> RunRecord:
        """The run as it is stored."""
        from importlib import metadata

        repository = self.repository
        versions = {"python": platform.python_version()}
        for name in ("pytest-tokenpower", "pytest", "nvidia-ml-py", "torch", "transformers", "vllm"):
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
            host={"hostname": platform.node(), "machine": platform.machine(), "cpus": os.cpu_count()},
            versions=versions,
            command=tuple(sys.argv[1:]),
        )
