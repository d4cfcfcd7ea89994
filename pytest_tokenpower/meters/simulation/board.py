"""The physics of one simulated board: its ring, counter, powers, temperature and limits as functions of time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.simulation.power_curve import SECOND_NS
from pytest_tokenpower.meters.simulation.scenario import Board, Fault, FaultKind, Limit

if TYPE_CHECKING:
    from numpy.typing import NDArray


_TOLERANCE_NS = 2_000_000

_ALL_TIME_NS = -(1 << 62)


class SimulatedTime:
    """Turns the two clocks, which can be replaced, into times since the start and stamps in realtime µs.

    A stamp of the past must come out the same at every call, so the offset between the clocks is kept; when the
    real one has moved by more than 2 ms, later samples get the new one. Faults of kind ``clock_step`` are added.
    """

    def __init__(self, monotonic_ns: Callable[[], int], realtime_ns: Callable[[], int]) -> None:
        self._monotonic_ns, self._realtime_ns = monotonic_ns, realtime_ns
        self._offset_ns = Clock(monotonic_ns, realtime_ns).offset_ns
        self._moves: tuple[tuple[int, int], ...] = ()
        self.start_ns = monotonic_ns()
        self.steps: tuple[ArmedFault, ...] = ()

    @property
    def phase_ns(self) -> int:
        """The start's realtime modulo 1 µs."""
        return (self.start_ns + self._offset_ns) % 1000

    def now_ns(self) -> int:
        """Nanoseconds since the boards' start."""
        return self._monotonic_ns() - self.start_ns

    def realtime_ns(self) -> int:
        """Return the realtime clock, with the steps of the scenario."""
        now_ns = self.now_ns()
        return self._realtime_ns() + sum(_step_ns(step) for step in self.steps if step.holds(now_ns))

    def follow(self) -> None:
        """Notices when the offset between the two clocks has moved."""
        known_ns = self._offset_ns + sum(move_ns for _, move_ns in self._moves)
        moved_ns = Clock(self._monotonic_ns, self._realtime_ns).offset_ns - known_ns
        if abs(moved_ns) > _TOLERANCE_NS:
            self._moves = (*self._moves, (self.now_ns(), round(moved_ns / 1000) * 1000))

    def stamps_us(self, t_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Realtime stamps of times since the start, int64[n]."""
        stamps = t_ns + (self.start_ns + self._offset_ns)
        for from_ns, move_ns in self._moves:
            stamps = stamps + np.where(t_ns >= from_ns, move_ns, 0)
        for step in self.steps:
            stamps = stamps + np.where((t_ns >= step.from_ns) & (t_ns < step.until_ns), _step_ns(step), 0)
        return stamps // 1000

    def stamp_us(self, t_ns: int) -> int:
        """Return the stamp of one time."""
        return int(self.stamps_us(np.array([t_ns], np.int64))[0])

    def before_stamp_ns(self, stamp_us: int) -> int:
        """Return a time since the start after which all samples with a stamp above ``stamp_us`` lie."""
        if self._moves or self.steps:
            return _ALL_TIME_NS
        return stamp_us * 1000 - self.start_ns - self._offset_ns


def _step_ns(step: ArmedFault) -> int:
    return round(step.fault.seconds * 1_000_000) * 1000


RING_SAMPLES = 119

RING_PERIOD_NS = 20_000_000

RING_DELAY_NS = 3_000_000
"""From a sample's stamp to the moment when it can be read: the newest is then 3 to 45 ms old, 13 ms on average."""

INSTANT_NS = 25_000_000
"""What POWER_INSTANT sees of each of its periods, on an H100."""

_PER_SECOND = SECOND_NS // RING_PERIOD_NS


# Most samples sit within 0.3 ms of the 20 ms grid; in a sixth of the groups of four one comes early and the next
# late. The gaps so made lie between 7.6 and 44.2 ms (measured on an H100: 7.6 to 45).
_TREMBLE_NS = 300_000

_PUSH_NS = 11_800_000

_PUSHED_SHARE = 1 / 6


# Jitter and noise come round again after this many samples (22 minutes): a table is quicker than a hash.
_TABLE = 1 << 16

_FOREVER = 1 << 62


@dataclass(frozen=True)
class ArmedFault:
    """A fault with its times fixed."""

    fault: Fault
    from_ns: int
    until_ns: int = _FOREVER

    @classmethod
    def at(cls, fault: Fault, now_ns: int) -> ArmedFault:
        """Return the fault as it holds when it is injected at ``now_ns``."""
        start = now_ns if fault.from_s is None else round(fault.from_s * SECOND_NS)
        return cls(fault, start, _FOREVER if fault.until_s is None else round(fault.until_s * SECOND_NS))

    def holds(self, now_ns: int) -> bool:
        """Whether it is in force at ``now_ns``."""
        return self.from_ns <= now_ns < self.until_ns

    def held_ns(self, now_ns: int) -> int:
        """For how long it has been in force by ``now_ns``."""
        return max(0, min(now_ns, self.until_ns) - self.from_ns)


class RingSamples(NamedTuple):
    """Samples in the order of time: int64[n] stamps (ns since the start), and the power in mW over the period
    before each.
    """

    t_ns: NDArray[np.int64]
    milliwatts: NDArray[np.int64]


@dataclass
class BoardPhysics:
    """Every reading of one board. ``faults`` may be replaced at any time; all else is fixed.

    ``stamp_phase_ns`` is the start's realtime modulo 1 µs: samples fall on whole microseconds of realtime, so that
    a stamp in µs is exact.
    """

    board: Board
    seed: int
    stamp_phase_ns: int = 0
    faults: tuple[ArmedFault, ...] = ()
    _refresh_ns: int = field(init=False)

    def __post_init__(self) -> None:
        self.energy = self.board.power.energy()
        self._jitter_ns, self._noise = _tables(self.seed)
        self._refresh_ns = round(self.board.refresh_s * SECOND_NS)

    def _of(self, kind: FaultKind) -> Iterator[ArmedFault]:
        return (armed for armed in self.faults if armed.fault.kind == kind)

    def _frozen(self, what: str, now_ns: int) -> ArmedFault | None:
        held = (a for a in self._of("freeze") if a.fault.what == what and a.holds(now_ns))
        return next(held, None)

    # --- the ring

    def sample_times(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """When samples number ``indices`` of the undisturbed ring were taken (int64[n], ns)."""
        times = indices * RING_PERIOD_NS + self._jitter_ns[indices % _TABLE]
        whole: NDArray[np.int64] = times - (times + self.stamp_phase_ns) % 1000
        return whole

    def ring(self, now_ns: int, after_ns: int, extra_watts: float = 0.0) -> RingSamples:
        """Return what the ring holds at ``now_ns`` and was stamped after ``after_ns``, at most the newest 119 samples.

        ``extra_watts`` is a constant power on top of the curve (a module's).
        """
        times, before = self._recorded(now_ns - RING_DELAY_NS, after_ns)
        if not len(times):
            return RingSamples(times, times)
        joules = self.energy.joules_at_each(np.concatenate([before, times]))
        watts = (joules[len(times) :] - joules[: len(times)]) * SECOND_NS / (times - before)
        watts = (watts + extra_watts) * self.board.ring_scale
        if self.board.ring_noise_share:
            watts = watts * (1 + self.board.ring_noise_share * self._noise[times // RING_PERIOD_NS % _TABLE])
        for armed in self._of("freeze"):
            if armed.fault.what == "ring":
                last = self._mean_watts(armed.from_ns, RING_PERIOD_NS) + extra_watts
                shown = last * self.board.ring_scale if armed.fault.watts is None else armed.fault.watts
                frozen = (times >= armed.from_ns) & (times < armed.until_ns)
                watts = np.where(frozen, shown, watts)
        return RingSamples(times, np.maximum(np.rint(watts * 1000), 0).astype(np.int64))

    def _recorded(self, latest_ns: int, after_ns: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return times of recorded samples in (after, latest], the newest 119, and each one's start."""
        gaps = list(self._of("ring_gap"))
        pieces: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        found = 0
        # The samples of a second lie between just before its start and some milliseconds before its end.
        second = (latest_ns + RING_PERIOD_NS) // SECOND_NS
        while found < RING_SAMPLES and (second + 1) * SECOND_NS > after_ns:
            start_ns, end_ns = (second - 1) * SECOND_NS, (second + 2) * SECOND_NS
            inside = [gap.from_ns for gap in gaps if gap.from_ns < start_ns and end_ns < gap.until_ns]
            if inside:
                second = min(inside) // SECOND_NS + 1
            step = _PER_SECOND if self._slow(second) else 1
            indices = np.arange(second * _PER_SECOND - 1, (second + 1) * _PER_SECOND, step)
            times = self.sample_times(indices)
            before, times = times[:-1], times[1:]
            kept = (times <= latest_ns) & (times > after_ns)
            for gap in gaps:
                kept &= (times < gap.from_ns) | (times >= gap.until_ns)
            pieces.append((times[kept], before[kept]))
            found += int(kept.sum())
            second -= 1
        ordered = pieces[::-1]
        if not ordered:
            nothing = np.empty(0, np.int64)
            return nothing, nothing
        newest = slice(-RING_SAMPLES, None)
        return (
            np.concatenate([times for times, _ in ordered])[newest],
            np.concatenate([before for _, before in ordered])[newest],
        )

    def _slow(self, second: int) -> bool:
        start = second * SECOND_NS
        if any(armed.holds(start) for armed in self._of("slow_ring")):
            return True
        if not self.board.slow_ring_at_idle:
            return False
        joules = self.energy.joules_at(start + SECOND_NS) - self.energy.joules_at(start)
        return joules < self.board.idle_watts

    # --- counter and polled powers

    def counter_millijoules(self, now_ns: int) -> int:
        """Return the energy counter, which changes at every refresh."""
        for armed in self._of("freeze"):
            if armed.fault.what == "counter" and armed.holds(now_ns):
                now_ns = min(now_ns, armed.from_ns)
        resets = [a.from_ns for a in self._of("counter_reset") if a.from_ns <= now_ns]
        start_ns = max(resets, default=0)
        joules = self._counted_joules(now_ns) - (self._counted_joules(start_ns) if resets else 0.0)
        if not resets:
            joules += self.board.counter_start_joules
        lost = sum(
            armed.fault.millijoules
            for armed in self._of("counter_back")
            if armed.from_ns <= now_ns and (not resets or armed.from_ns >= start_ns)
        )
        return max(0, math.floor(joules * 1000) - lost)

    def _counted_joules(self, now_ns: int) -> float:
        tick = now_ns // self._refresh_ns * self._refresh_ns
        extra_watts = self.board.module_extra_watts or 0.0 if self.board.counter_of_module else 0.0

        def joules_at(t_ns: int) -> float:
            return self.energy.joules_at(t_ns) + extra_watts * t_ns / SECOND_NS

        joules = joules_at(tick)
        for armed in self._of("counter_scale"):
            if armed.from_ns < tick:
                end = min(tick, armed.until_ns)
                scaled = joules_at(end) - joules_at(armed.from_ns)
                joules += (armed.fault.factor - 1) * scaled
        return joules

    def _mean_watts(self, end_ns: int, length_ns: int) -> float:
        joules = self.energy.joules_at(end_ns) - self.energy.joules_at(end_ns - length_ns)
        return joules * SECOND_NS / length_ns

    def average_milliwatts(self, now_ns: int) -> int:
        """Return the slow average (nvmlDeviceGetPowerUsage, POWER_AVERAGE), as of the last refresh."""
        return self._polled(now_ns, max(1_000_000, round(self.board.average_s * SECOND_NS)))

    def instant_milliwatts(self, now_ns: int) -> int:
        """POWER_INSTANT: the mean of the last 25 ms before the last refresh."""
        return self._polled(now_ns, INSTANT_NS)

    def _polled(self, now_ns: int, length_ns: int) -> int:
        frozen = self._frozen("power", now_ns)
        if frozen is not None:
            if frozen.fault.watts is not None:
                return round(frozen.fault.watts * 1000)
            now_ns = frozen.from_ns
        return round(self._mean_watts(now_ns // self._refresh_ns * self._refresh_ns, length_ns) * 1000)

    # --- conditions

    def is_idle(self, now_ns: int) -> bool:
        """Whether the last second's mean power was below ``idle_watts``."""
        return self._mean_watts(now_ns, SECOND_NS) < self.board.idle_watts

    def temperature_celsius(self, now_ns: int) -> int:
        """Return the whole degrees that the scenario's points say, or a first-order lag behind the power."""
        if self.board.temperature_points is not None:
            return round(_interpolated(self.board.temperature_points, now_ns))
        back_ns, weights = self._past
        heat = np.diff(self.energy.joules_at_each(now_ns - back_ns)) @ weights
        return round(self.board.ambient_celsius + self.board.celsius_per_watt * float(heat))

    @cached_property
    def _past(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Cells of time whose energies make the temperature: how far back the edges are (ns), what a joule weighs."""
        lag_ns = self.board.thermal_lag_s * SECOND_NS
        # Eight lags back, the weight of what came before is 0.03 %; it is given to the oldest cell.
        back_ns = np.linspace(8 * lag_ns, 0, 65).astype(np.int64)
        weights = np.diff(np.exp(-back_ns / lag_ns))
        weights[0] += 1 - weights.sum()
        return back_ns, weights * SECOND_NS / -np.diff(back_ns)

    def limited_share(self, limit: Limit, now_ns: int) -> float:
        """Return the share of time that ``limit`` holds the clocks down just now."""
        shares = [a.fault.share for a in self._of("throttle") if a.fault.limit == limit and a.holds(now_ns)]
        return max(shares, default=0.0)

    def limited_ns(self, limit: Limit, now_ns: int) -> int:
        """For how long ``limit`` has held the clocks down since the start."""
        return round(
            sum(a.fault.share * a.held_ns(now_ns) for a in self._of("throttle") if a.fault.limit == limit)
        )

    def sm_clock_mhz(self, now_ns: int) -> int:
        """Return the SM clock; a limit in force takes up to half of it, by its share."""
        points = self.board.sm_clock_points
        clock = self.board.sm_clock_mhz if points is None else _interpolated(points, now_ns)
        shares = [armed.fault.share for armed in self._of("throttle") if armed.holds(now_ns)]
        return round(clock * (1 - max(shares, default=0.0) / 2))


def _interpolated(points: tuple[tuple[float, float], ...], now_ns: int) -> float:
    return float(np.interp(now_ns / SECOND_NS, [s for s, _ in points], [value for _, value in points]))


@lru_cache(maxsize=32)
def _tables(seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """How far each sample strays from the 20 ms grid, in ns, and its noise (standard normal)."""
    random = np.random.default_rng(seed)
    groups = _TABLE // 4
    jitter = random.uniform(-_TREMBLE_NS, _TREMBLE_NS, (groups, 4))
    pushed = random.random(groups) < _PUSHED_SHARE
    jitter[pushed, 1] -= random.uniform(0, _PUSH_NS, pushed.sum())
    jitter[pushed, 2] += random.uniform(0, _PUSH_NS, pushed.sum())
    tables = jitter.astype(np.int64).reshape(_TABLE), random.standard_normal(_TABLE)
    for table in tables:
        table.flags.writeable = False
    return tables
