"""The background collector: one thread a meter drains it into the timeline, away from the measured path."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from pytest_tokenpower.errors import MeterError
from pytest_tokenpower.telemetry.clock import Clock
from pytest_tokenpower.telemetry.timeline import Event, Timeline
from pytest_tokenpower.telemetry.values import Device, Meter

OPEN_TIMEOUT_S = 20.0
FLUSH_TIMEOUT_S = 5.0


class _Poller(threading.Thread):
    """Polls one meter until it is stopped. A daemon: a call into a dead driver must not keep pytest alive."""

    def __init__(self, meter: Meter, timeline: Timeline, clock: Clock) -> None:
        super().__init__(name=f"tokenpower-{meter.name}", daemon=True)
        self.meter = meter
        self.devices: Sequence[Device] = ()
        self.opened = threading.Event()
        self.error: BaseException | None = None
        self._timeline = timeline
        self._clock = clock
        self._wake = threading.Event()
        self._stopping = False
        self._polled = threading.Condition()
        self._polls = 0
        self._last_poll_ns = 0

    def run(self) -> None:
        try:
            self.devices = self.meter.open(self._clock)
            for device in self.devices:
                self._timeline.add_device(device)
        except BaseException as error:
            self.error = error
            self.opened.set()
            return
        self._last_poll_ns = self._clock.monotonic_ns()
        self._poll()
        self.opened.set()
        while not self._stopping:
            self._wake.wait(self.meter.poll_interval_s)
            self._wake.clear()
            self._poll()
        self.meter.close()

    def _poll(self) -> None:
        start_ns = self._last_poll_ns
        step = self._clock.tick()
        try:
            readings = self.meter.poll(self._clock)
            for reading in readings:
                self._timeline.append(reading)
                if reading.fault is not None:
                    self._note("meter failed", reading.fault, start_ns, reading.device_id)
        except MeterError as error:
            for device in self.devices:
                self._note("meter failed", str(error), start_ns, device.id)
        except Exception as error:
            for device in self.devices:
                self._note(
                    "meter failed", f"{self.meter.name}: {type(error).__name__}: {error}", start_ns, device.id
                )
        if step is not None:
            reason = (
                f"the realtime clock was set by {step.step_ns / 1e6:+.1f} ms during the measurement (NTP)"
            )
            self._timeline.note(Event(step.start_ns, step.end_ns, "clock step", reason))
        self._last_poll_ns = self._clock.monotonic_ns()
        with self._polled:
            self._polls += 1
            self._polled.notify_all()

    def _note(self, guard: str, reason: str, start_ns: int, device_id: str) -> None:
        self._timeline.note(Event(start_ns, self._clock.monotonic_ns(), guard, reason, device_id))

    def poll_now(self, timeout_s: float) -> bool:
        """Ask for a poll and wait for its end; False if the meter hangs."""
        with self._polled:
            # The poll under way may have read the meter before now: wait for one that began after.
            target = self._polls + 2
            deadline = time.monotonic() + timeout_s
            while self._polls < target:
                self._wake.set()
                left = deadline - time.monotonic()
                if left <= 0 or not self.is_alive():
                    return False
                self._polled.wait(min(left, 0.05))
            return True

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()


def _opened(poller: _Poller) -> Sequence[Device]:
    """The devices of a poller that was started; raises what its meter's ``open`` raised."""
    if not poller.opened.wait(OPEN_TIMEOUT_S):
        raise MeterError(f"the meter {poller.meter.name} did not answer within {OPEN_TIMEOUT_S:.0f} s")
    if poller.error is not None:
        raise poller.error
    return poller.devices


class Collector:
    """Runs meters in the background and fills a timeline.

    Raises whatever a meter's ``open`` raises (MeterUnavailable), or MeterError where it does not answer.
    """

    def __init__(self, meters: Sequence[Meter], clock_factory: type[Clock] = Clock) -> None:
        self.timeline = Timeline()
        self._clock_factory = clock_factory
        # Each thread has a clock of its own: the offset is read anew at each of its polls.
        self._pollers = [_Poller(meter, self.timeline, clock_factory()) for meter in meters]

    def start(self) -> Sequence[Device]:
        """Open the meters and begin; returns their devices."""
        for poller in self._pollers:
            poller.start()
        try:
            return [device for poller in self._pollers for device in _opened(poller)]
        except BaseException:
            self.stop()
            raise

    def add(self, meter: Meter) -> Sequence[Device]:
        """Open one more meter beside those that run; where it fails, they go on."""
        poller = _Poller(meter, self.timeline, self._clock_factory())
        poller.start()
        try:
            devices = _opened(poller)
        except BaseException:
            poller.stop()
            raise
        self._pollers.append(poller)
        return devices

    def flush(
        self, until_ns: int, timeout_s: float = FLUSH_TIMEOUT_S, devices: Sequence[Device] | None = None
    ) -> None:
        """Return when the readings of ``devices`` (None: of all) reach beyond ``until_ns``.

        A meter that hangs or stops is noted in the timeline as a fault of its devices; it is not waited for
        longer than ``timeout_s`` and the latency of its devices.
        """
        wanted = None if devices is None else {device.id for device in devices}
        began = time.monotonic()
        for poller in self._pollers:
            mine = [each for each in poller.devices if wanted is None or each.id in wanted]
            if not mine:
                continue
            latency_s = max(each.latency_s for each in mine)
            # What comes late need not be asked for fifty times a second.
            pause_s = min(max(0.02, latency_s / 20), 1.0)
            while True:
                left = began + timeout_s + latency_s - time.monotonic()
                if not poller.poll_now(max(left, 0.2)):
                    self._note_hang(poller.meter, mine, until_ns, "did not answer", timeout_s + latency_s)
                    break
                behind = [each for each in mine if (self.timeline.newest_ns(each.id) or 0) < until_ns]
                if not behind:
                    break
                if left <= 0:
                    self._note_hang(
                        poller.meter, mine, until_ns, "gave no newer reading", timeout_s + latency_s
                    )
                    break
                time.sleep(pause_s)

    def _note_hang(
        self, meter: Meter, devices: Sequence[Device], until_ns: int, what: str, waited_s: float
    ) -> None:
        now_ns = time.monotonic_ns()
        for device in devices:
            start_ns = min(self.timeline.newest_ns(device.id) or until_ns, until_ns)
            reason = f"{device.id}: the meter {meter.name} {what} for {waited_s:.0f} s"
            self.timeline.note(Event(start_ns, max(now_ns, until_ns), "meter failed", reason, device.id))

    def stop(self) -> None:
        """End the threads; one that hangs in its meter is left behind (it is a daemon)."""
        for poller in self._pollers:
            poller.stop()
        for poller in self._pollers:
            if poller.ident is not None:
                poller.join(timeout=1.0)
