"""The background collector: one thread a meter drains it into the timeline, away from the measured path.

On a clock that is driven (``Clock.every``) there is no thread: a meter is drained as its time passes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from pytest_tokenpower.errors import MeterError, MeterLost, TokenPowerError
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.timeline import FAILED, LOST, Event, Timeline
from pytest_tokenpower.meters.types import Device, Meter

OPEN_TIMEOUT_S = 20.0
FLUSH_TIMEOUT_S = 5.0
GRACE_S = 0.2
"""For how long a meter that was given up is waited for the next time."""


class _Poller(threading.Thread):
    """Polls one meter until it is stopped. A daemon: a call into a dead driver must not keep pytest alive.

    How long a thread hangs is told by the machine's time, whatever clock the meter lives on.
    """

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
        self._begun = 0
        self._done = 0
        self._begun_s = time.monotonic()
        self._given_up = 0
        self._since_ns = 0
        self._end_alarm: Callable[[], None] | None = None

    def start(self) -> None:
        if self._clock.every is None:
            super().start()
        elif self._open():
            self._end_alarm = self._clock.every(self.meter.poll_interval_s, self._poll_later)

    def run(self) -> None:
        if not self._open():
            return
        while not self._stopping:
            self._wake.wait(self.meter.poll_interval_s)
            self._wake.clear()
            self._poll()
        self._close()

    def _open(self) -> bool:
        try:
            devices = self.meter.open(self._clock)
            for device in devices:
                self._timeline.add_device(device)
        except BaseException as error:
            self.error = error
            self.opened.set()
            self._close()
            return False
        self.devices = devices
        self._since_ns = self._clock.monotonic_ns()
        self._poll()
        self.opened.set()
        return True

    def _close(self) -> None:
        # What ends anyway must not end in a traceback from a thread.
        with contextlib.suppress(Exception):
            self.meter.close()

    def _poll(self) -> None:
        with self._polled:
            self._begun += 1
            self._begun_s = time.monotonic()
        self._since_ns = poll_once(self.meter, self.devices, self._timeline, self._clock, self._since_ns)
        with self._polled:
            self._done = self._begun
            self._polled.notify_all()

    def _poll_later(self) -> None:
        """Poll, unless no time has passed since the last one: two readings are of two moments."""
        if self._clock.monotonic_ns() > self._since_ns:
            self._poll()

    def poll_now(self, timeout_s: float) -> bool:
        """Ask for a poll and wait for its end; False if the meter hangs.

        A meter that was given up once is hardly waited for again until it has answered.
        """
        if self._end_alarm is not None:
            self._poll_later()
            return True
        with self._polled:
            if self.hangs:
                timeout_s = min(timeout_s, GRACE_S)
            # The poll under way may have read the meter before now: wait for one that begins after.
            target = self._begun + 1
            deadline = time.monotonic() + timeout_s
            while self._done < target:
                self._wake.set()
                left = deadline - time.monotonic()
                if left <= 0 or not self.is_alive():
                    self._given_up = self._done + 1
                    return False
                self._polled.wait(min(left, 0.05))
            return True

    @property
    def silent_s(self) -> float:
        """For how long the poll under way has not come back."""
        return time.monotonic() - self._begun_s

    @property
    def hangs(self) -> bool:
        """Whether a poll was given up that has not come back yet."""
        return self._done < self._given_up

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        if self._end_alarm is not None:
            self._end_alarm()
            self._end_alarm = None
            self._close()


def poll_once(
    meter: Meter, devices: Sequence[Device], timeline: Timeline, clock: Clock, since_ns: int
) -> int:
    """Poll a meter once into a timeline; returns when the poll began, which is ``since_ns`` of the next one.

    Whatever goes wrong becomes an event, from ``since_ns`` (the beginning of the poll before: what it read first
    may be that old) until now. Never raises an Exception.
    """
    began_ns = clock.monotonic_ns()
    steps = [clock.tick()]
    faults: list[tuple[str, str, str]] = []
    try:
        for reading in meter.poll(clock):
            timeline.append(reading)
            if reading.fault is not None:
                faults.append((reading.device_id, reading.fault, LOST if reading.lost else FAILED))
    except Exception as error:
        words = str(error) if isinstance(error, MeterError) else f"{type(error).__name__}: {error}"
        guard = LOST if isinstance(error, MeterLost) else FAILED
        faults = [
            (device.id, f"{device.id}: the meter {meter.name} failed: {words}", guard) for device in devices
        ]
    # A step while the meter was being read has misplaced what it read.
    steps.append(clock.tick())
    now_ns = clock.monotonic_ns()
    for device_id, reason, guard in faults:
        timeline.note(Event(since_ns, now_ns, guard, reason, device_id))
    for step in steps:
        if step is not None:
            reason = (
                f"the realtime clock was set by {step.step_ns / 1e6:+.1f} ms during the measurement (NTP)"
            )
            timeline.note(Event(min(since_ns, step.start_ns), now_ns, "clock step", reason))
    return began_ns


def _opened(poller: _Poller) -> Sequence[Device]:
    """Return the devices of a poller that was started; raises what its meter's ``open`` raised."""
    patience_s: float = getattr(poller.meter, "open_timeout_s", OPEN_TIMEOUT_S)
    if not poller.opened.wait(patience_s):
        raise MeterError(f"the meter {poller.meter.name} did not answer within {patience_s:.0f} s")
    error = poller.error
    # A ValueError is the timeline's: two meters list one device.
    if isinstance(error, Exception) and not isinstance(error, (TokenPowerError, ValueError)):
        raise MeterError(
            f"the meter {poller.meter.name} could not be opened: {type(error).__name__}: {error}"
        ) from error
    if error is not None:
        raise error
    return poller.devices


class Collector:
    """Runs meters in the background and fills a timeline.

    Raises whatever a meter's ``open`` raises (MeterUnavailable), or MeterError where it does not answer.
    """

    def __init__(self, meters: Sequence[Meter]) -> None:
        self.timeline = Timeline()
        self.clock = Clock()
        """The clock of all readings, which the windows must be on."""
        # Up to where each device had got when it was waited for in vain.
        self._stuck_at: dict[str, int] = {}
        self._pollers: list[_Poller] = []
        for meter in meters:
            self._pollers.append(self._poller(meter))

    def _poller(self, meter: Meter) -> _Poller:
        clock: Clock = getattr(meter, "clock", None) or Clock()
        if not self._pollers:
            self.clock = clock
        elif clock.monotonic_ns != self.clock.monotonic_ns:
            raise ValueError(f"{meter.name} and {self._pollers[0].meter.name} do not live on the same clock")
        # Each has a copy: the offset is read anew at each of its polls.
        return _Poller(meter, self.timeline, replace(clock))

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
        poller = self._poller(meter)
        poller.start()
        try:
            devices = _opened(poller)
        except BaseException:
            poller.stop()
            raise
        self._pollers.append(poller)
        return devices

    def flush(
        self, until_ns: int, timeout_s: float | None = None, devices: Sequence[Device] | None = None
    ) -> None:
        """Return when the readings of ``devices`` (None: of all) reach beyond ``until_ns``.

        A meter that hangs or stops is noted in the timeline as a fault of its devices; it is not waited for
        longer than ``timeout_s`` (None: FLUSH_TIMEOUT_S) and the latency of its devices. Once given up, it is
        hardly waited for again until it answers (or gives something newer).
        """
        wanted = None if devices is None else {device.id for device in devices}
        began = self.clock.seconds()
        for poller in self._pollers:
            mine = [each for each in poller.devices if wanted is None or each.id in wanted]
            if not mine:
                continue
            latency_s = max(each.latency_s for each in mine)
            # What comes late need not be asked for fifty times a second.
            pause_s = min(max(0.02, latency_s / 20), 1.0)
            patience_s = (FLUSH_TIMEOUT_S if timeout_s is None else timeout_s) + latency_s
            while True:
                left = began + patience_s - self.clock.seconds()
                if not poller.poll_now(max(left, 0.2)):
                    what = f"did not answer for {poller.silent_s:.1f} s"
                    self._note_failure(poller.meter, mine, until_ns, what)
                    break
                newest = {each.id: self.timeline.newest_ns(each.id) or 0 for each in mine}
                behind = {each.id: newest[each.id] for each in mine if newest[each.id] < until_ns}
                if not behind:
                    break
                if behind == {name: self._stuck_at.get(name) for name in behind}:
                    left = began + GRACE_S - self.clock.seconds()
                if left <= 0:
                    self._stuck_at.update(behind)
                    late = [each for each in mine if each.id in behind]
                    self._note_failure(
                        poller.meter, late, until_ns, f"gave no newer reading for {patience_s:.0f} s"
                    )
                    break
                self.clock.sleep(pause_s)

    def _note_failure(self, meter: Meter, devices: Sequence[Device], until_ns: int, what: str) -> None:
        now_ns = self.clock.monotonic_ns()
        for device in devices:
            start_ns = min(self.timeline.newest_ns(device.id) or until_ns, until_ns)
            reason = f"{device.id}: the meter {meter.name} {what}"
            self.timeline.note(Event(start_ns, max(now_ns, until_ns), FAILED, reason, device.id))

    def stop(self) -> None:
        """End the threads; one that hangs in its meter is left behind (it is a daemon)."""
        for poller in self._pollers:
            poller.stop()
        for poller in self._pollers:
            if poller.ident is not None:
                poller.join(timeout=0.0 if poller.hangs else 1.0)
