"""The running meters as the orchestrator and the tests use them: windows in, rounds with their energy out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from operator import itemgetter
from typing import TYPE_CHECKING

from pytest_tokenpower.analysis import guards, slow_meters
from pytest_tokenpower.analysis.calibration import track_of
from pytest_tokenpower.analysis.other_scopes import OtherScopes, other_scopes, whole
from pytest_tokenpower.analysis.rounds import Evaluation, evaluate, readings_around
from pytest_tokenpower.core.records import RoundRecord, ScopeFigure
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.windows import RoundWindow
from pytest_tokenpower.errors import MeterUnavailable
from pytest_tokenpower.meters.scopes import choose

if TYPE_CHECKING:
    from pytest_tokenpower.core.types import Scope
    from pytest_tokenpower.meters.clock import Clock
    from pytest_tokenpower.meters.collector import Collector
    from pytest_tokenpower.meters.types import Device


AFTER_NS = 60_000_000
"""Readings are awaited until this long after a window: its last edge is placed between the samples around it."""


class TelemetrySession:
    """A running collector, the devices whose energy is the figure, and the others that are measured along with them.

    ``scope`` asks for the figure's (None: GPUs, else CPUs); ``notes`` say why a meter that was named does not run.
    Raises MeterUnavailable where no device has the scope.
    """

    def __init__(
        self,
        collector: Collector,
        devices: Sequence[Device],
        scope: Scope | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> None:
        chosen = choose(devices, scope)
        self.collector = collector
        self.devices = chosen.devices
        self.others = chosen.others
        self.scope = chosen.label
        self.notes = dict(notes or {})
        self._gpus: frozenset[str] | None = None

    def on_gpus(self, ids: Sequence[str]) -> TelemetrySession:
        """Return the same meters, with those GPUs alone that an engine says it runs on.

        Raises MeterUnavailable where a GPU of the engine is not measured, or where only GPUs are and it uses none.
        Boards that are not real stand for any.
        """
        measured = {device.id for device in (*self.devices, *self.others) if device.scope == "gpu"}
        if ids and measured.issuperset(ids):
            chosen = copy(self)
            chosen._gpus = frozenset(ids)
            return chosen
        real = "measured" in self.provenance
        if not real or not measured or (not ids and any(device.scope != "gpu" for device in self.devices)):
            return self
        if not ids:
            raise MeterUnavailable(
                "the engine runs on no GPU, and GPUs are what this run measures: --energy-scope=cpu measures CPUs, "
                "with --energy-source=rapl, or model"
            )
        missing = ", ".join(sorted(set(ids) - measured))
        raise MeterUnavailable(
            f"the engine runs on {missing}, which this run does not measure (it measures "
            f"{', '.join(sorted(measured))}): look at CUDA_VISIBLE_DEVICES of the engine and of the tests"
        )

    @property
    def clock(self) -> Clock:
        """The clock that windows are on."""
        return self.collector.clock

    @property
    def slow(self) -> bool:
        """Whether the figure's meter resolves nothing shorter than a whole measurement."""
        return any(device.slow for device in self.devices)

    def shortest_window_ns(self) -> float:
        """How long a round must be for the slowest of the devices' meters to resolve it."""
        now_ns = self.clock.monotonic_ns()
        readings = readings_around(self.collector.timeline, self.devices, now_ns)
        # The first workload of a run may be over before a meter has read twice, and then nothing is known of it.
        if new := [each for each in self.devices if not each.slow and track_of(readings, each) is None]:
            self.collector.flush(now_ns, devices=new)
        tracks = [(track_of(readings, device), device) for device in self.devices]
        # A slow meter has hardly read when a short workload is over; what it declares is known before.
        declared = [
            slow_meters.MARGIN * slow_meters.NEEDED * each.resolution_s * 1e9
            for each in self.devices
            if each.slow
        ]
        return max(
            (slow_meters.shortest_window_ns(track, device) for track, device in tracks if track is not None),
            default=max(declared, default=0.0),
        )

    def assess(self, windows: Sequence[RoundWindow]) -> tuple[RoundRecord, ...]:
        """Wait for the readings of the last window, and give each round its energy and reasons."""
        return self.evaluate(windows).records

    def evaluate(self, windows: Sequence[RoundWindow]) -> Evaluation:
        """Wait for the readings of the last window, and evaluate the rounds; no round gives an empty evaluation."""
        if not windows:
            return Evaluation(())
        self.collector.flush(windows[-1].end_ns + AFTER_NS, devices=self.devices)
        return evaluate(self.collector.timeline, self.devices_in_use(windows), windows)

    def failed_for_good(self, start_ns: int) -> bool:
        """Whether a meter of the figure has failed and will not read again; asks nothing of the meters."""
        now_ns = self.clock.monotonic_ns()
        looked_ns = min(start_ns, now_ns - 2 * guards.LASTING_NS)
        failed = [
            device
            for device in self.devices
            if guards.failed_for_good(self.collector.timeline.events(device.id, looked_ns, now_ns), now_ns)
        ]
        if not failed:
            return False
        used = self.devices_in_use([RoundWindow(start_ns, now_ns, TokenCount(0, 0, 0))])
        return any(device in used for device in failed)

    def resolved(self, windows: Sequence[RoundWindow]) -> tuple[RoundWindow, ...]:
        """Return the windows that the figure's meter can tell apart: to a slow one they are a single one."""
        return (whole(windows),) if self.slow and windows else tuple(windows)

    @property
    def missing_scopes(self) -> tuple[ScopeFigure, ...]:
        """The meters that were named and do not run, with the reason."""
        return tuple(ScopeFigure(name, reason=reason) for name, reason in self.notes.items())

    def other_scopes(self, windows: Sequence[RoundWindow], rounds: Sequence[RoundRecord]) -> OtherScopes:
        """Evaluate the other devices over the figure's windows; ``rounds`` are the records of these."""
        if not self.others or not windows:
            return OtherScopes(tuple(rounds))
        start_ns, end_ns = windows[0].start_ns, windows[-1].end_ns
        seconds = (end_ns - start_ns) / 1e9
        events = self.collector.timeline.events
        # What cannot resolve the measurement, or has failed already, is not waited for.
        able = [
            each
            for each in self.others
            if (not each.slow or seconds >= slow_meters.NEEDED * each.resolution_s)
            and not events(each.id, start_ns, end_ns)
        ]
        if able:
            self.collector.flush(end_ns + AFTER_NS, devices=able)
        devices, others = self.devices_in_use(windows), self._in_use(self.others, windows)
        return other_scopes(self.collector.timeline, devices, others, windows, rounds)

    def devices_in_use(self, windows: Sequence[RoundWindow]) -> tuple[Device, ...]:
        """Return the figure's devices; of GPUs only those that processes of ours ran on, or may have, if any did."""
        return self._in_use(self.devices, windows)

    def devices_of_key(self, windows: Sequence[RoundWindow]) -> tuple[Device, ...]:
        """Return what two comparable measurements have in common: the figure's devices, and the GPUs in any case."""
        gpus = [device for device in self._in_use(self.others, windows) if device.scope == "gpu"]
        return (*self.devices_in_use(windows), *gpus)

    def _in_use(self, devices: Sequence[Device], windows: Sequence[RoundWindow]) -> tuple[Device, ...]:
        """Without the GPUs, and the modules of GPUs, that nothing of ours ran on."""
        boards = {device.id: device.gpu_id for device in devices if device.gpu_id is not None}
        named = {name for window in windows for name in window.devices or ()}
        used = {gpu for name, gpu in boards.items() if name in named} or self._gpus
        if used is None and len({*boards.values()}) > 1 and windows:
            start_ns, end_ns = windows[0].start_ns, windows[-1].end_ns
            said = {gpu: self._said_of_ours(name, start_ns, end_ns) for name, gpu in boards.items()}
            # A GPU of which nothing is known, since it was lost, may be ours: left out, it would make the figure small.
            used = {gpu for gpu, own in said.items() if True in own or False not in own} or None
        return tuple(device for device in devices if used is None or boards.get(device.id) in (None, *used))

    def _said_of_ours(self, device_id: str, start_ns: int, end_ns: int) -> set[bool | None]:
        """Return what was read of our processes on a board in a stretch, or else nearest to it.

        A node of a cluster that is asked last is asked too late for a short stretch. Empty for a board that was lost.
        """
        timeline = self.collector.timeline
        read = [
            (max(start_ns - one.t_ns, one.t_ns - end_ns - AFTER_NS * 2, 0), one.own_process)
            for one in timeline.conditions(device_id, start_ns - guards.STALE_NS)
        ]
        inside = {own for off_ns, own in read if off_ns == 0}
        if inside or timeline.events(device_id, start_ns, end_ns):
            return inside
        near = min(read, key=itemgetter(0), default=None)
        return {near[1]} if near and near[0] <= guards.STALE_NS else set()

    @cached_property
    def provenance(self) -> str:
        """Measured, unless a device's figure is not; several kinds are named all."""
        return "+".join(sorted({device.provenance for device in self.devices}))
