"""The simulated board against its own physics: every reading is held to the exact integral of its curve."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.simulation.library import SimulatedBoards
from pytest_tokenpower.meters.simulation.power_curve import FunctionCurve, PowerCurve
from pytest_tokenpower.meters.simulation.scenario import (
    Board,
    Fault,
    Process,
    Scenario,
    load_scenario,
    numbered_boards,
)

SECOND = 1_000_000_000
REALTIME_AHEAD = 1_795_000_000_123_456_789
RING = pynvml.NVML_TOTAL_POWER_SAMPLES
SWING = PowerCurve(points=((0, 100), (1, 600)), repeat_s=2)


class RoundEvaluator:
    """Boards on a virtual time, initialised, with a handle of the first."""

    def __init__(self, board: Board | None = None, *faults: Fault, scenario: Scenario | None = None) -> None:
        self.now_ns = 5_000_000_777
        self.step_ns = 0
        self.slept: list[float] = []
        self.boards = SimulatedBoards(
            scenario or Scenario(boards=(board or Board(),), faults=faults),
            clock=Clock(lambda: self.now_ns, lambda: self.now_ns + REALTIME_AHEAD + self.step_ns, self.sleep),
        )
        # Any: it stands in for a module.
        self.nvml: Any = self.boards
        self.nvml.nvmlInit()
        self.handle = self.nvml.nvmlDeviceGetHandleByIndex(0)
        self.last_us = 0

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        self.now_ns += round(seconds * SECOND)

    def drain(self, kind: int = RING) -> list[tuple[int, int]]:
        """Return new samples as (realtime µs, mW); empty where NVML says that there are none."""
        try:
            _, samples = self.nvml.nvmlDeviceGetSamples(self.handle, kind, self.last_us)
        except pynvml.NVMLError_NotFound:
            return []
        rows = [(int(sample.timeStamp), int(sample.sampleValue.uiVal)) for sample in samples]
        self.last_us = rows[-1][0]
        return rows

    def drain_for(self, seconds: int) -> list[tuple[int, int]]:
        """One drain a second."""
        rows = self.drain()
        for _ in range(seconds):
            self.advance(1)
            rows += self.drain()
        return rows

    def since_start_ns(self, realtime_us: int) -> int:
        return realtime_us * 1000 - REALTIME_AHEAD - self.boards.start_ns

    def counter(self) -> int:
        return int(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle))

    def field(self, *wanted: int | tuple[int, int]) -> list[tuple[int, int]]:
        """(nvmlReturn, value) of each field."""
        values = self.nvml.nvmlDeviceGetFieldValues(self.handle, list(wanted))
        return [(value.nvmlReturn, value.value.ullVal) for value in values]


def exact_joules(curve: PowerCurve, end_ns: int) -> Fraction:
    """Return the integral from the start in exact arithmetic, independent of the curve's own."""
    if curve.repeat_s is not None:
        turns, rest = divmod(end_ns, round(curve.repeat_s * SECOND))
        once = PowerCurve(points=curve.points, shape=curve.shape)
        return turns * exact_joules(once, round(curve.repeat_s * SECOND)) + exact_joules(once, rest)
    if end_ns < 0:
        return Fraction(curve.points[0][1]) * end_ns / SECOND
    total = Fraction(0)
    knots = [(round(second * SECOND), Fraction(watts)) for second, watts in curve.points]
    for i, (start, watts) in enumerate(knots):
        until = knots[i + 1][0] if i + 1 < len(knots) else max(end_ns, start)
        end = min(end_ns, until)
        if end <= start:
            continue
        last = watts
        if curve.shape == "lines" and i + 1 < len(knots):
            last = watts + (knots[i + 1][1] - watts) * Fraction(end - start, until - start)
        total += (watts + last) / 2 * (end - start) / SECOND
    return total


@st.composite
def curves(draw: st.DrawFn) -> PowerCurve:
    lengths = draw(st.lists(st.floats(0.001, 2.5), max_size=8))
    watts = draw(st.lists(st.floats(0, 1000), min_size=len(lengths) + 1, max_size=len(lengths) + 1))
    seconds = [sum(lengths[:i]) for i in range(len(watts))]
    repeat = draw(st.none() | st.floats(seconds[-1] + 0.001, seconds[-1] + 3))
    return PowerCurve(
        points=tuple(zip(seconds, watts, strict=True)),
        shape=draw(st.sampled_from(["steps", "lines"])),
        repeat_s=repeat,
    )


# --- the curve


@given(curves(), st.integers(-5 * SECOND, 50 * SECOND), st.integers(0, 20 * SECOND))
def test_joules_of_a_curve_are_the_exact_integral(curve: PowerCurve, start: int, length: int) -> None:
    exact = exact_joules(curve, start + length) - exact_joules(curve, start)
    assert curve.joules(start, start + length) == pytest.approx(float(exact), rel=1e-9, abs=1e-6)


def test_lines_may_jump() -> None:
    curve = PowerCurve(points=((0, 100), (1, 200), (1, 500), (2, 500)), shape="lines")
    assert curve.joules(0, 2 * SECOND) == pytest.approx(150 + 500)


@pytest.mark.parametrize(
    ("points", "repeat", "complaint"),
    [
        ((), None, "points: at least one"),
        (((1, 5),), None, "points: the first must be at second 0"),
        (((0, 5), (2, 5), (1, 5)), None, "points: must be in the order of time"),
        (((0, -5),), None, "points: watts must be"),
        (((0, math.nan),), None, "points: watts must be"),
        (((0, 5), (2, 5)), 1, "repeat_s: must be"),
    ],
)
def test_a_malformed_curve_is_refused(points: Any, repeat: float | None, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        PowerCurve(points=points, repeat_s=repeat)


# --- the ring


@settings(max_examples=60, deadline=None)
@given(curves(), st.integers(0, 2**32), st.integers(2, 12))
def test_drained_samples_add_up_to_the_exact_integral(curve: PowerCurve, seed: int, seconds: int) -> None:
    bench = RoundEvaluator(scenario=Scenario(boards=(Board(power=curve, ring_scale=1.0),), seed=seed))
    rows = bench.drain_for(seconds)
    edges = [bench.since_start_ns(t_us) for t_us, _ in rows]
    joules = sum(
        mw / 1000 * (end - start) / SECOND
        for (_, mw), start, end in zip(rows[1:], edges, edges[1:], strict=False)
    )
    exact = float(exact_joules(curve, edges[-1]) - exact_joules(curve, edges[0]))
    rounding = 0.0005 * (edges[-1] - edges[0]) / SECOND
    assert joules == pytest.approx(exact, abs=rounding + 1e-6)


@given(st.integers(0, 2**32), st.floats(0, 100_000))
@settings(max_examples=40, deadline=None)
def test_jitter_is_within_what_an_h100_shows(seed: int, at_s: float) -> None:
    bench = RoundEvaluator(scenario=Scenario(seed=seed))
    bench.advance(at_s)
    stamps = [t for t, _ in bench.drain()]
    assert len(stamps) == 119
    gaps = [(later - earlier) / 1000 for earlier, later in pairwise(stamps)]
    assert 7.599 <= min(gaps) <= max(gaps) <= 45
    assert sum(gaps) == pytest.approx(118 * 20, abs=25)
    age_ms = (bench.nvml.realtime_ns() // 1000 - stamps[-1]) / 1000
    assert 3 <= age_ms <= 3 + 45


def test_a_stamp_in_microseconds_is_exact() -> None:
    bench = RoundEvaluator()
    stamps = [bench.since_start_ns(t_us) for t_us, _ in bench.drain()]
    assert stamps == bench.boards.physics[0].ring(0, -10 * SECOND).t_ns.tolist()


def test_jitter_is_really_there_and_fixed_by_the_seed() -> None:
    def stamps(seed: int) -> list[int]:
        return [t for t, _ in RoundEvaluator(scenario=Scenario(seed=seed)).drain_for(60)]

    first = stamps(1)
    gaps = [later - earlier for earlier, later in pairwise(first)]
    assert min(gaps) < 10_000
    assert max(gaps) > 35_000
    assert stamps(1) == first
    assert stamps(2) != first


def test_the_newest_sample_is_13_ms_old_on_average() -> None:
    bench = RoundEvaluator()
    ages = []
    for _ in range(500):
        bench.advance(0.1037)
        ages.append(bench.nvml.realtime_ns() / 1e6 - bench.drain()[-1][0] / 1e3)
    assert sum(ages) / len(ages) == pytest.approx(13, abs=1.5)


def test_draining_once_a_second_loses_nothing() -> None:
    bench = RoundEvaluator()
    first = bench.drain()
    rows = first + bench.drain_for(100)
    stamps = [t for t, _ in rows]
    assert len(set(stamps)) == len(stamps)
    gaps = [later - earlier for earlier, later in pairwise(stamps)]
    assert max(gaps) <= 45_000
    assert len(stamps) == pytest.approx(119 + 100 * 50, abs=1)


def test_draining_late_shows_a_gap() -> None:
    bench = RoundEvaluator()
    last = bench.drain()[-1][0]
    bench.advance(3)
    rows = bench.drain()
    assert len(rows) == 119
    assert rows[0][0] - last > 500_000


def test_no_new_sample_is_not_found_as_nvml_documents() -> None:
    bench = RoundEvaluator()
    bench.drain()
    with pytest.raises(pynvml.NVMLError_NotFound):
        bench.nvml.nvmlDeviceGetSamples(bench.handle, RING, bench.last_us)


def test_the_ring_answers_after_a_day() -> None:
    bench = RoundEvaluator(Board(power=SWING, ring_scale=1.0))
    bench.advance(86_400)
    rows = bench.drain()
    assert len(rows) == 119
    assert {mw for _, mw in rows} >= {100_000, 600_000}


def test_ring_scale_and_noise() -> None:
    assert {mw for _, mw in RoundEvaluator().drain()} == {300_150}
    milliwatts = [mw for _, mw in RoundEvaluator(Board(ring_scale=1.0, ring_noise_share=0.01)).drain_for(60)]
    mean = sum(milliwatts) / len(milliwatts)
    spread = math.sqrt(sum((mw - mean) ** 2 for mw in milliwatts) / len(milliwatts))
    assert mean == pytest.approx(300_000, rel=0.001)
    assert spread == pytest.approx(3000, rel=0.1)


def test_a_curve_in_python() -> None:
    board = Board(
        power=FunctionCurve(cumulative_joules=lambda t: 300 * t + 20 * (1 - math.cos(5 * t))), ring_scale=1.0
    )
    bench = RoundEvaluator(board)
    rows = bench.drain_for(3)
    for t_us, milliwatts in rows[-20:]:
        second = bench.since_start_ns(t_us) / SECOND - 0.01
        assert milliwatts / 1000 == pytest.approx(300 + 100 * math.sin(5 * second), abs=10)
    assert bench.boards.joules(0, bench.boards.start_ns, bench.boards.start_ns + SECOND) == pytest.approx(
        300 + 20 * (1 - math.cos(5))
    )


def test_module_scope_of_grace_hopper() -> None:
    bench = RoundEvaluator(Board(module_extra_watts=150, ring_scale=1.0))
    assert {mw for _, mw in bench.drain(pynvml.NVML_MODULE_POWER_SAMPLES)} == {450_000}
    assert bench.field((186, 0), (186, 1), (185, 1)) == [(0, 300_000), (0, 450_000), (0, 450_000)]
    with pytest.raises(pynvml.NVMLError_NotSupported):
        RoundEvaluator().drain(pynvml.NVML_MODULE_POWER_SAMPLES)


def test_the_ring_slows_at_idle_and_keeps_its_energy() -> None:
    curve = PowerCurve(points=((0, 60), (10, 400), (20, 60)))
    bench = RoundEvaluator(Board(power=curve, slow_ring_at_idle=True, ring_scale=1.0))
    rows = bench.drain_for(30)
    edges = [bench.since_start_ns(t_us) for t_us, _ in rows]
    joules = sum(
        mw / 1000 * (end - start) / SECOND
        for (_, mw), start, end in zip(rows[1:], edges, edges[1:], strict=False)
    )
    assert joules == pytest.approx(curve.joules(edges[0], edges[-1]), abs=0.0005 * 150)
    idle = [end - start for start, end in pairwise(edges) if start > 21 * SECOND]
    assert min(idle) > 0.9 * SECOND
    busy = [e for e in edges if 11 * SECOND < e < 19 * SECOND]
    assert len(busy) == pytest.approx(400, abs=1)


# --- counter and polled powers


@settings(max_examples=60, deadline=None)
@given(curves(), st.lists(st.floats(0, 3), min_size=1, max_size=20))
def test_the_counter_rises_and_stays_within_a_tick(curve: PowerCurve, waits: list[float]) -> None:
    bench = RoundEvaluator(Board(power=curve, counter_start_joules=7.0))
    last = bench.counter()
    assert last == 7000
    for wait in waits:
        bench.advance(wait)
        now = bench.now_ns - bench.boards.start_ns
        value = bench.counter()
        assert value >= last
        assert value - 7000 <= exact_joules(curve, now) * 1000 + 1e-3
        assert value - 7000 >= exact_joules(curve, now - SECOND // 10) * 1000 - 1 - 1e-3
        last = value


def test_the_counter_changes_every_100_ms() -> None:
    bench = RoundEvaluator()
    values = []
    for _ in range(1000):
        bench.advance(0.001)
        values.append(bench.counter())
    changes = [i for i, (a, b) in enumerate(pairwise(values)) if a != b]
    assert {later - earlier for earlier, later in pairwise(changes)} == {100}
    assert bench.field(83) == [(0, bench.counter())]


def test_instant_power_sees_a_quarter_of_its_period() -> None:
    # 100 ms square waves, in step with the refresh: the part that is seen is all high, or all low.
    high_last = PowerCurve(points=((0, 100), (0.05, 600)), repeat_s=0.1)
    high_first = PowerCurve(points=((0, 600), (0.05, 100)), repeat_s=0.1)
    for curve, seen in ((high_last, 600_000), (high_first, 100_000)):
        bench = RoundEvaluator(Board(power=curve))
        for _ in range(10):
            bench.advance(0.037)
            assert bench.field(186) == [(0, seen)]
            assert bench.nvml.nvmlDeviceGetPowerUsage(bench.handle) == 350_000


def test_power_usage_is_a_one_second_average_refreshed_every_100_ms() -> None:
    bench = RoundEvaluator(Board(power=PowerCurve(points=((0, 0), (5, 1000)))))
    bench.advance(5.45)
    assert bench.nvml.nvmlDeviceGetPowerUsage(bench.handle) == 400_000
    assert bench.field(185, 186) == [(0, 400_000), (0, 1_000_000)]
    bench.advance(0.049)
    assert bench.nvml.nvmlDeviceGetPowerUsage(bench.handle) == 400_000
    bench.advance(0.001)
    assert bench.nvml.nvmlDeviceGetPowerUsage(bench.handle) == 500_000


def test_temperature_follows_the_power_with_a_lag() -> None:
    board = Board(
        power=PowerCurve(points=((0, 100), (10, 700))),
        ambient_celsius=30,
        celsius_per_watt=0.05,
        thermal_lag_s=10,
    )
    bench = RoundEvaluator(board)
    expected = {0: 35.0, 10: 35.0, 20: 35 + 30 * (1 - math.exp(-1)), 100: 65.0}
    for second, celsius in expected.items():
        bench.advance(second - (bench.now_ns - bench.boards.start_ns) / SECOND)
        for read in (bench.nvml.nvmlDeviceGetTemperatureV, bench.nvml.nvmlDeviceGetTemperature):
            assert read(bench.handle, pynvml.NVML_TEMPERATURE_GPU) == pytest.approx(celsius, abs=1)


def test_temperature_and_clock_by_the_scenario() -> None:
    bench = RoundEvaluator(
        Board(temperature_points=((0, 40), (10, 60)), sm_clock_points=((0, 2000), (10, 1500)))
    )
    bench.advance(5)
    assert bench.nvml.nvmlDeviceGetTemperatureV(bench.handle, 0) == 50
    assert bench.nvml.nvmlDeviceGetClockInfo(bench.handle, pynvml.NVML_CLOCK_SM) == 1750
    assert bench.nvml.nvmlDeviceGetClockInfo(bench.handle, pynvml.NVML_CLOCK_MEM) == 2619


# --- identity, and what pynvml is


def test_the_default_board() -> None:
    bench = RoundEvaluator()
    nvml, handle = bench.nvml, bench.handle
    assert nvml.nvmlDeviceGetCount() == 1
    assert nvml.nvmlDeviceGetName(handle) == "Simulated H100 80GB"
    assert nvml.nvmlDeviceGetUUID(handle) == "GPU-51000000-0000-0000-0000-000000000000"
    assert nvml.nvmlDeviceGetIndex(handle) == 0
    assert int(nvml.nvmlSystemGetDriverVersion().split(".")[0]) == 580
    assert "simulated" in nvml.nvmlSystemGetNVMLVersion()
    assert nvml.nvmlDeviceGetCudaComputeCapability(handle) == (9, 0)
    assert nvml.nvmlDeviceGetBrand(handle) == pynvml.NVML_BRAND_NVIDIA
    assert nvml.nvmlDeviceGetPciInfo(handle).busId == "00000000:04:00.0"
    assert nvml.nvmlDeviceGetPersistenceMode(handle) == pynvml.NVML_FEATURE_ENABLED
    assert nvml.nvmlDeviceGetMigMode(handle) == [0, 0]
    assert nvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 700_000
    assert nvml.nvmlDeviceGetPowerManagementLimit(handle) == 700_000
    assert nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) == 700_000
    assert nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle) == [200_000, 700_000]
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    assert (memory.total, memory.used + memory.free) == (85_520_809_984, 85_520_809_984)
    assert nvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2).total == 85_520_809_984
    assert nvml.nvmlDeviceGetUtilizationRates(handle).gpu == 100
    assert nvml.nvmlDeviceGetCurrentClocksEventReasons(handle) == 0
    assert nvml.nvmlErrorString(pynvml.NVML_ERROR_GPU_IS_LOST) == "GPU is lost"


def test_idle_is_seen() -> None:
    bench = RoundEvaluator(Board(power=PowerCurve.constant(60)))
    assert bench.nvml.nvmlDeviceGetUtilizationRates(bench.handle).gpu == 0
    reasons = bench.nvml.nvmlDeviceGetCurrentClocksEventReasons(bench.handle)
    assert reasons == pynvml.nvmlClocksEventReasonGpuIdle


def test_several_boards_are_apart() -> None:
    boards = numbered_boards(8)
    bench = RoundEvaluator(scenario=Scenario(boards=boards))
    assert bench.nvml.nvmlDeviceGetCount() == 8
    handles = [bench.nvml.nvmlDeviceGetHandleByIndex(i) for i in range(8)]
    assert [bench.nvml.nvmlDeviceGetUUID(handle) for handle in handles] == [board.uuid for board in boards]
    third = bench.nvml.nvmlDeviceGetHandleByUUID(boards[3].uuid)
    assert bench.nvml.nvmlDeviceGetIndex(third) == 3
    stamps = {tuple(s.timeStamp for s in bench.nvml.nvmlDeviceGetSamples(h, RING, 0)[1]) for h in handles}
    assert len(stamps) == 8


def test_names_are_pynvmls_own() -> None:
    nvml = RoundEvaluator().nvml
    assert nvml.NVMLError is pynvml.NVMLError
    assert nvml.NVMLError_GpuIsLost is pynvml.NVMLError_GpuIsLost
    assert nvml.NVML_FI_DEV_POWER_INSTANT == 186
    assert nvml.c_nvmlFieldValue_t is pynvml.c_nvmlFieldValue_t
    with pytest.raises(AttributeError, match="NVML_NO_SUCH"):
        _ = nvml.NVML_NO_SUCH


def test_what_is_not_simulated_is_function_not_found() -> None:
    bench = RoundEvaluator()
    for name in ("nvmlDeviceGetFanSpeed", "nvmlDeviceGetNoSuchThing"):
        with pytest.raises(pynvml.NVMLError_FunctionNotFound):
            getattr(bench.nvml, name)(bench.handle)


def test_misuse_is_answered_as_nvml_does() -> None:
    bench = RoundEvaluator()
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        bench.nvml.nvmlDeviceGetHandleByIndex(1)
    with pytest.raises(pynvml.NVMLError_NotFound):
        bench.nvml.nvmlDeviceGetHandleByUUID("GPU-none")
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        bench.nvml.nvmlDeviceGetPowerUsage(pynvml.c_nvmlDevice_t())
    bench.nvml.nvmlShutdown()
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        bench.nvml.nvmlDeviceGetPowerUsage(bench.handle)
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        bench.nvml.nvmlShutdown()
    # The real library was never touched.
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetCount()


def test_missing_readings_are_not_supported() -> None:
    bench = RoundEvaluator(Board(ring=False, counter=False, instant=False))
    with pytest.raises(pynvml.NVMLError_NotSupported):
        bench.drain()
    with pytest.raises(pynvml.NVMLError_NotSupported):
        bench.counter()
    returns = [code for code, _ in bench.field(83, 186, 185, (186, 2), 999)]
    unsupported = pynvml.NVML_ERROR_NOT_SUPPORTED
    assert returns == [unsupported, unsupported, 0, unsupported, unsupported]


def test_mig() -> None:
    bench = RoundEvaluator(Board(mig="on", mig_slices=3))
    nvml = bench.nvml
    assert nvml.nvmlDeviceGetMigMode(bench.handle) == [1, 1]
    assert nvml.nvmlDeviceGetMaxMigDeviceCount(bench.handle) == 7
    part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(bench.handle, 2)
    uuid = nvml.nvmlDeviceGetUUID(part)
    assert uuid.startswith("MIG-51000000")
    assert nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByUUID(uuid)) == uuid
    assert nvml.nvmlDeviceIsMigDeviceHandle(part).value == 1
    whole = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(part)
    assert nvml.nvmlDeviceGetUUID(whole) == bench.boards.scenario.boards[0].uuid
    with pytest.raises(pynvml.NVMLError_NotFound):
        nvml.nvmlDeviceGetMigDeviceHandleByIndex(bench.handle, 3)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        nvml.nvmlDeviceGetTotalEnergyConsumption(part)


def test_boards_without_mig() -> None:
    for mode, error in (("off", pynvml.NVMLError_NotFound), ("unsupported", pynvml.NVMLError_NotSupported)):
        bench = RoundEvaluator(msgspec.convert({"mig": mode}, Board))
        with pytest.raises(error):
            bench.nvml.nvmlDeviceGetMigDeviceHandleByIndex(bench.handle, 0)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        bench.nvml.nvmlDeviceGetMigMode(bench.handle)


def test_processes() -> None:
    bench = RoundEvaluator(Board(processes=(Process(), Process(pid=77, memory_bytes=5 << 20))))
    for read in (
        bench.nvml.nvmlDeviceGetComputeRunningProcesses,
        bench.nvml.nvmlDeviceGetComputeRunningProcesses_v3,
    ):
        found = [(process.pid, process.usedGpuMemory) for process in read(bench.handle)]
        assert found == [(os.getpid(), 1 << 30), (77, 5 << 20)]
    assert RoundEvaluator().nvml.nvmlDeviceGetComputeRunningProcesses(RoundEvaluator().handle) == []


# --- faults


def busy_bench(*faults: Fault) -> RoundEvaluator:
    """Return a board with a process, and a second one in MIG mode."""
    first, second = numbered_boards(2)
    boards = (
        msgspec.structs.replace(first, processes=(Process(),)),
        msgspec.structs.replace(second, mig="on"),
    )
    return RoundEvaluator(scenario=Scenario(boards=boards, faults=faults))


def mig_slice(bench: RoundEvaluator) -> object:
    whole = bench.nvml.nvmlDeviceGetHandleByIndex(1)
    return bench.nvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, 0)


CALLS: dict[str, Callable[[RoundEvaluator], object]] = {
    "nvmlInit": lambda b: b.nvml.nvmlInit(),
    "nvmlInitWithFlags": lambda b: b.nvml.nvmlInitWithFlags(0),
    "nvmlSystemGetDriverVersion": lambda b: b.nvml.nvmlSystemGetDriverVersion(),
    "nvmlSystemGetNVMLVersion": lambda b: b.nvml.nvmlSystemGetNVMLVersion(),
    "nvmlDeviceGetCount": lambda b: b.nvml.nvmlDeviceGetCount(),
    "nvmlDeviceGetHandleByIndex": lambda b: b.nvml.nvmlDeviceGetHandleByIndex(0),
    "nvmlDeviceGetHandleByUUID": lambda b: b.nvml.nvmlDeviceGetHandleByUUID(Board().uuid),
    "nvmlDeviceGetUUID": lambda b: b.nvml.nvmlDeviceGetUUID(b.handle),
    "nvmlDeviceGetName": lambda b: b.nvml.nvmlDeviceGetName(b.handle),
    "nvmlDeviceGetIndex": lambda b: b.nvml.nvmlDeviceGetIndex(b.handle),
    "nvmlDeviceGetMemoryInfo": lambda b: b.nvml.nvmlDeviceGetMemoryInfo(b.handle).total,
    "nvmlDeviceGetPciInfo": lambda b: b.nvml.nvmlDeviceGetPciInfo(b.handle).busId,
    "nvmlDeviceGetMigMode": lambda b: b.nvml.nvmlDeviceGetMigMode(b.handle),
    "nvmlDeviceGetMaxMigDeviceCount": lambda b: b.nvml.nvmlDeviceGetMaxMigDeviceCount(b.handle),
    "nvmlDeviceGetMigDeviceHandleByIndex": mig_slice,
    "nvmlDeviceGetEnforcedPowerLimit": lambda b: b.nvml.nvmlDeviceGetEnforcedPowerLimit(b.handle),
    "nvmlDeviceGetPowerManagementLimit": lambda b: b.nvml.nvmlDeviceGetPowerManagementLimit(b.handle),
    "nvmlDeviceGetPowerManagementDefaultLimit": (
        lambda b: b.nvml.nvmlDeviceGetPowerManagementDefaultLimit(b.handle)
    ),
    "nvmlDeviceGetPowerManagementLimitConstraints": (
        lambda b: b.nvml.nvmlDeviceGetPowerManagementLimitConstraints(b.handle)
    ),
    "nvmlDeviceGetPersistenceMode": lambda b: b.nvml.nvmlDeviceGetPersistenceMode(b.handle),
    "nvmlDeviceGetSamples": lambda b: [
        s.sampleValue.uiVal for s in b.nvml.nvmlDeviceGetSamples(b.handle, RING, 0)[1]
    ],
    "nvmlDeviceGetTotalEnergyConsumption": lambda b: b.counter(),
    "nvmlDeviceGetPowerUsage": lambda b: b.nvml.nvmlDeviceGetPowerUsage(b.handle),
    "nvmlDeviceGetFieldValues": lambda b: [value for _, value in b.field(185, 186, 83)],
    "nvmlDeviceGetTemperatureV": lambda b: b.nvml.nvmlDeviceGetTemperatureV(b.handle, 0),
    "nvmlDeviceGetTemperature": lambda b: b.nvml.nvmlDeviceGetTemperature(b.handle, 0),
    "nvmlDeviceGetClockInfo": lambda b: b.nvml.nvmlDeviceGetClockInfo(b.handle, 1),
    "nvmlDeviceGetCurrentClocksEventReasons": (
        lambda b: b.nvml.nvmlDeviceGetCurrentClocksEventReasons(b.handle)
    ),
    "nvmlDeviceGetComputeRunningProcesses": (
        lambda b: len(b.nvml.nvmlDeviceGetComputeRunningProcesses(b.handle))
    ),
    "nvmlDeviceGetCudaComputeCapability": lambda b: b.nvml.nvmlDeviceGetCudaComputeCapability(b.handle),
    "nvmlDeviceGetBrand": lambda b: b.nvml.nvmlDeviceGetBrand(b.handle),
    "nvmlDeviceGetUtilizationRates": lambda b: b.nvml.nvmlDeviceGetUtilizationRates(b.handle).gpu,
    "nvmlShutdown": lambda b: b.nvml.nvmlShutdown(),
}
NUMBERS = [
    "nvmlDeviceGetCount",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetEnforcedPowerLimit",
    "nvmlDeviceGetSamples",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetComputeRunningProcesses",
]
ON_A_DEVICE = [name for name in CALLS if name.startswith("nvmlDevice") and name != "nvmlDeviceGetCount"]


@pytest.mark.parametrize("call", CALLS)
def test_any_call_can_fail_with_any_error_and_recovers(call: str) -> None:
    bench = busy_bench()
    codes = {value for name, value in vars(pynvml).items() if name.startswith("NVML_ERROR_")}
    if call == "nvmlDeviceGetComputeRunningProcesses":
        # To pynvml this one asks for more room, and is no error.
        codes.remove(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
    for code in codes:
        bench.boards.inject(Fault(kind="error", call=call, error=code))
        with pytest.raises((pynvml.NVMLError, pynvml.NVMLLibraryMismatchError)) as caught:
            CALLS[call](bench)
        if call != "nvmlDeviceGetComputeRunningProcesses" or code != pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            assert caught.value == pynvml.NVMLError(code)
        bench.boards.lift()
    CALLS[call](bench)


@pytest.mark.parametrize("call", CALLS)
def test_a_star_strikes_every_call(call: str) -> None:
    bench = busy_bench()
    bench.boards.inject(Fault(kind="error", error="TIMEOUT"))
    with pytest.raises(pynvml.NVMLError_Timeout):
        CALLS[call](bench)


@pytest.mark.parametrize("call", CALLS)
def test_any_call_can_hang(call: str) -> None:
    bench = busy_bench()
    bench.boards.inject(Fault(kind="hang", call=call, seconds=30, nth=1))
    before = bench.now_ns
    CALLS[call](bench)
    assert bench.slept == [30]
    assert bench.now_ns - before == 30 * SECOND
    if call != "nvmlShutdown":
        CALLS[call](bench)
        assert bench.slept == [30]


def test_a_call_that_hung_answers_for_the_time_when_it_returns() -> None:
    bench = RoundEvaluator(None, Fault(kind="hang", call="nvmlDeviceGetTotalEnergyConsumption", seconds=10))
    assert bench.counter() == 1_000_000 + 3_000_000


@pytest.mark.parametrize("call", NUMBERS)
def test_any_number_can_read_zero(call: str) -> None:
    bench = busy_bench()
    assert CALLS[call](bench)
    bench.boards.inject(Fault(kind="zero", call=call))
    answer = CALLS[call](bench)
    assert not (any(answer) if isinstance(answer, list) else answer)
    if call == "nvmlDeviceGetSamples":
        assert len(bench.drain()) == 119


@pytest.mark.parametrize("call", ON_A_DEVICE)
def test_a_lost_device_fails_every_call_from_then_on(call: str) -> None:
    bench = busy_bench(Fault(kind="lost", from_s=5))
    bench.advance(4.9)
    CALLS[call](bench)
    bench.advance(0.1)
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        CALLS[call](bench)
    assert bench.nvml.nvmlDeviceGetCount() == 2


def test_a_fault_of_one_board_spares_the_other() -> None:
    bench = busy_bench(
        Fault(kind="lost", board=1),
        Fault(kind="zero", call="*", board="GPU-51000001-0000-0000-0000-000000000000"),
    )
    assert bench.nvml.nvmlDeviceGetPowerUsage(bench.handle) == 300_000
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        bench.nvml.nvmlDeviceGetHandleByIndex(1)


def test_a_fault_strikes_the_nth_call_only() -> None:
    bench = RoundEvaluator()
    bench.boards.inject(Fault(kind="error", call="nvmlDeviceGetSamples", nth=3))
    outcomes = []
    for _ in range(5):
        bench.last_us = 0
        try:
            outcomes.append(len(bench.drain()))
        except pynvml.NVMLError_Unknown:
            outcomes.append(-1)
    assert outcomes == [119, 119, -1, 119, 119]
    assert bench.boards.call_counts["nvmlDeviceGetSamples"] == 5


def test_a_fault_strikes_between_its_times() -> None:
    fault = Fault(kind="error", call="nvmlDeviceGetPowerUsage", error="NOT_READY", from_s=2, until_s=3)
    bench = RoundEvaluator(None, fault)
    failed = []
    for _ in range(8):
        bench.advance(0.5)
        try:
            bench.nvml.nvmlDeviceGetPowerUsage(bench.handle)
            failed.append(False)
        except pynvml.NVMLError_NotReady:
            failed.append(True)
    assert failed == [False, False, False, True, True, False, False, False]


def test_one_field_can_fail_or_be_zero() -> None:
    bench = RoundEvaluator()
    bench.boards.inject(
        Fault(kind="error", call="nvmlDeviceGetFieldValues", field=186, error="GPU_IS_LOST"),
        Fault(kind="zero", call="nvmlDeviceGetFieldValues", field=185),
    )
    assert bench.field(186, 185, 190) == [(pynvml.NVML_ERROR_GPU_IS_LOST, 0), (0, 0), (0, 700_000)]


def test_frozen_readings() -> None:
    board = Board(power=SWING, ring_scale=1.0)
    bench = RoundEvaluator(board)
    bench.advance(10.5)
    bench.drain()
    bench.boards.inject(Fault(kind="freeze", what="ring"))
    assert {mw for _, mw in bench.drain_for(5)} == {100_000}
    bench.boards.inject(Fault(kind="freeze", what="counter"))
    before = bench.counter()
    bench.advance(5)
    assert bench.counter() == before
    bench.boards.inject(Fault(kind="freeze", what="power", watts=590))
    assert bench.nvml.nvmlDeviceGetPowerUsage(bench.handle) == 590_000
    assert bench.field(186, 185) == [(0, 590_000), (0, 590_000)]
    bench.boards.lift()
    bench.drain()
    assert len({mw for _, mw in bench.drain_for(5)}) > 1
    assert bench.counter() > before


def test_power_frozen_at_its_last_value() -> None:
    bench = RoundEvaluator(
        Board(power=PowerCurve(points=((0, 200), (5, 600)))), Fault(kind="freeze", what="power", from_s=2)
    )
    bench.advance(20)
    assert bench.nvml.nvmlDeviceGetPowerUsage(bench.handle) == 200_000


def test_counter_reset() -> None:
    bench = RoundEvaluator(None, Fault(kind="counter_reset", from_s=10))
    bench.advance(9.99)
    assert bench.counter() > 1_000_000
    bench.advance(0.01)
    assert bench.counter() == 0
    bench.advance(10)
    assert bench.counter() == 3_000_000


def test_counter_going_backwards() -> None:
    bench = RoundEvaluator()
    bench.advance(10)
    before = bench.counter()
    bench.boards.inject(Fault(kind="counter_back", millijoules=5000))
    assert bench.counter() == before - 5000
    bench.advance(1)
    assert bench.counter() == before - 5000 + 300_000


def test_a_reset_forgets_what_was_lost_before() -> None:
    bench = RoundEvaluator(
        None, Fault(kind="counter_back", millijoules=5000, from_s=5), Fault(kind="counter_reset", from_s=10)
    )
    bench.advance(20)
    assert bench.counter() == 3_000_000


def test_a_counter_of_twice_the_ring() -> None:
    bench = RoundEvaluator(None, Fault(kind="counter_scale", factor=2))
    before = bench.counter()
    bench.advance(10)
    assert bench.counter() - before == 6_000_000
    assert {mw for _, mw in bench.drain()} == {300_150}


def test_slow_ring_and_ring_gap() -> None:
    bench = RoundEvaluator(
        None, Fault(kind="slow_ring", from_s=10, until_s=20), Fault(kind="ring_gap", from_s=25, until_s=26.5)
    )
    stamps = [bench.since_start_ns(t) / SECOND for t, _ in bench.drain_for(30)]
    assert len([t for t in stamps if 10.05 < t < 19.99]) == 10
    assert len([t for t in stamps if 20.1 < t < 25]) > 240
    assert not [t for t in stamps if 25 <= t < 26.5]
    assert max(stamps) > 29.9


def test_a_gap_longer_than_the_ring_leaves_the_old_samples_in_it() -> None:
    bench = RoundEvaluator(None, Fault(kind="ring_gap", from_s=100))
    bench.advance(5000)
    rows = bench.drain()
    assert len(rows) == 119
    assert bench.since_start_ns(rows[-1][0]) / SECOND == pytest.approx(100, abs=0.05)
    bench.advance(1)
    assert bench.drain() == []


def test_a_clock_step_moves_stamps_and_realtime() -> None:
    bench = RoundEvaluator(None, Fault(kind="clock_step", seconds=30, from_s=10))
    clock = Clock(lambda: bench.now_ns, bench.boards.realtime_ns)
    bench.advance(9.5)
    assert clock.tick() is None
    bench.drain()
    bench.advance(1)
    step = clock.tick()
    assert step is not None
    assert step.step_ns == 30 * SECOND
    stamps = [t for t, _ in bench.drain()]
    gaps = [later - earlier for earlier, later in pairwise(stamps)]
    assert max(gaps) == pytest.approx(30_020_000, abs=25_000)
    assert sorted(gaps)[-2] <= 45_000
    bench.advance(1)
    assert len(bench.drain()) == pytest.approx(50, abs=2)


def test_a_step_back_hides_samples_as_it_does_on_a_real_board() -> None:
    bench = RoundEvaluator(None, Fault(kind="clock_step", seconds=-5, from_s=10))
    bench.advance(10)
    bench.drain()
    bench.advance(0.1)
    before_the_step = bench.drain()
    assert len(before_the_step) <= 2
    bench.advance(2)
    assert bench.drain() == []
    bench.advance(5)
    assert bench.drain()


def test_a_step_of_the_real_clock_is_followed() -> None:
    bench = RoundEvaluator()
    bench.advance(10)
    bench.drain()
    bench.step_ns = 7 * SECOND
    bench.drain()
    bench.advance(1)
    newest = bench.drain()[-1][0]
    assert bench.boards.realtime_ns() // 1000 - newest < 48_000
    bench.advance(1)
    assert len(bench.drain()) == pytest.approx(50, abs=2)


@pytest.mark.parametrize(
    ("limit", "number", "reason"),
    [
        ("power", 74, pynvml.nvmlClocksEventReasonSwPowerCap),
        ("thermal", 75, pynvml.nvmlClocksEventReasonSwThermalSlowdown),
        ("board", 77, pynvml.nvmlClocksEventReasonHwSlowdown),
        ("sw_thermal", 269, pynvml.nvmlClocksEventReasonSwThermalSlowdown),
        ("hw_thermal", 270, pynvml.nvmlClocksEventReasonHwThermalSlowdown),
        ("power_brake", 271, pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown),
    ],
)
def test_throttling_grows_its_counter(limit: Any, number: int, reason: int) -> None:
    bench = RoundEvaluator(None, Fault(kind="throttle", limit=limit, share=0.4, from_s=10, until_s=20))
    others = [n for n in (74, 75, 77, 269, 270, 271) if n != number]
    bench.advance(5)
    assert bench.field(number) == [(0, 0)]
    bench.advance(10)
    assert bench.field(number) == [(0, 2 * SECOND)]
    assert bench.nvml.nvmlDeviceGetCurrentClocksEventReasons(bench.handle) == reason
    assert bench.nvml.nvmlDeviceGetClockInfo(bench.handle, pynvml.NVML_CLOCK_SM) < 1980
    bench.advance(10)
    assert bench.field(number, *others) == [(0, 4 * SECOND)] + [(0, 0)] * 5
    assert bench.nvml.nvmlDeviceGetCurrentClocksEventReasons(bench.handle) == 0


def test_a_foreign_process_appears_and_goes() -> None:
    bench = RoundEvaluator(None, Fault(kind="process", pid=4242, memory_bytes=3 << 30, from_s=1, until_s=2))
    seen = []
    for _ in range(4):
        seen.append([p.pid for p in bench.nvml.nvmlDeviceGetComputeRunningProcesses(bench.handle)])
        bench.advance(0.75)
    assert seen == [[], [], [4242], []]


def test_a_hanging_call_can_be_released() -> None:
    boards = SimulatedBoards(Scenario(faults=(Fault(kind="hang", call="nvmlDeviceGetCount", seconds=3600),)))
    # Any: it stands in for a module.
    nvml: Any = boards
    nvml.nvmlInit()
    counts: list[int] = []
    thread = threading.Thread(target=lambda: counts.append(nvml.nvmlDeviceGetCount()), daemon=True)
    thread.start()
    boards.release()
    thread.join(timeout=60)
    assert counts == [1]


def test_several_threads_may_read_and_inject() -> None:
    boards = SimulatedBoards(Scenario(boards=numbered_boards(2)))
    # Any: it stands in for a module.
    nvml: Any = boards
    nvml.nvmlInit()
    failures: list[BaseException] = []

    def read(index: int) -> None:
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            for _ in range(100):
                assert len(nvml.nvmlDeviceGetSamples(handle, RING, 0)[1]) == 119
                nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(index,)) for index in (0, 1, 0)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        boards.inject(Fault(kind="throttle", share=0.1))
    for thread in threads:
        thread.join()
    assert failures == []
    assert boards.call_counts["nvmlDeviceGetSamples"] == 300


# --- the scenario's file


def test_a_scenario_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "two.json"
    text = {
        "boards": [
            {"power": {"points": [[0, 100], [1, 200]], "repeat_s": 2}, "processes": [{"pid": "own"}]},
            {"uuid": "GPU-2", "mig": "on"},
        ],
        "faults": [{"kind": "error", "call": "nvmlDeviceGetSamples", "error": "TIMEOUT", "board": "GPU-2"}],
        "seed": 3,
    }
    path.write_text(json.dumps(text))
    scenario = load_scenario(path)
    assert scenario.boards[0].power == PowerCurve(points=((0, 100), (1, 200)), repeat_s=2)
    bench = RoundEvaluator(scenario=scenario)
    assert len(bench.drain()) == 119
    bench.handle = bench.nvml.nvmlDeviceGetHandleByIndex(1)
    with pytest.raises(pynvml.NVMLError_Timeout):
        bench.drain()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is not JSON"),
        ('{"bords": []}', "`bords`"),
        ('{"boards": [{"power": {"points": [[0, "x"]]}}]}', r"boards\[0\]\.power\.points"),
        ('{"boards": [{"power": {"points": [[1, 5]]}}]}', r"first must be at second 0.*boards\[0\]\.power"),
        ('{"boards": [{"ring_scale": 0}]}', r"ring_scale: must be above 0.*boards\[0\]"),
        ('{"boards": [{}, {}]}', "is given twice"),
        ('{"faults": [{"kind": "explode"}]}', r"explode.*faults\[0\]\.kind"),
        ('{"faults": [{"kind": "error", "call": "nvmlDeviceGetPowr"}]}', "nvmlDeviceGetPowr"),
        ('{"faults": [{"kind": "error", "error": "NO_SUCH"}]}', "NVML_ERROR_NO_SUCH"),
        ('{"faults": [{"kind": "lost", "board": 3}]}', "there is no 3 among 1"),
        (
            '{"faults": [{"kind": "lost", "seconds": 3}]}',
            "seconds: a fault of kind 'lost' has no such detail",
        ),
        ('{"faults": [{"kind": "throttle", "share": 2}]}', "share: must be between 0 and 1"),
        ('{"faults": [{"kind": "hang", "from_s": 5, "until_s": 3}]}', "until_s: must not be before"),
        ('{"faults": [{"kind": "zero", "call": "*", "field": 186}]}', "field: goes with"),
        ('{"faults": [{"kind": "error", "nth": 0}]}', "nth: must be at least 1"),
        ('{"faults": [{"kind": "counter_reset", "until_s": 3}]}', "happens at one moment"),
    ],
)
def test_a_malformed_scenario_names_file_and_field(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=complaint) as caught:
        load_scenario(path)
    assert str(path) in str(caught.value)


def test_a_missing_scenario_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the scenario .*none\.json: No such file"):
        load_scenario(tmp_path / "none.json")
