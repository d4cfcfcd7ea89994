"""`tokenpower doctor` on simulated boards with faults, on fake trees, on meters that break, and with no meter."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower import cli
from pytest_tokenpower.analysis import meter_quality
from pytest_tokenpower.analysis.meter_quality import (
    Grade,
    MeterReport,
    Quality,
    Report,
    judge,
    qualify,
    report_of,
    span,
    worst,
)
from pytest_tokenpower.analysis.tracks import ring_track
from pytest_tokenpower.cli import doctor
from pytest_tokenpower.errors import MeterError, MeterUnavailable
from pytest_tokenpower.meters import probe_nvml as call_costs
from pytest_tokenpower.meters import probe_nvml as qualify_nvml
from pytest_tokenpower.meters import sources
from pytest_tokenpower.meters.adapters.nvml.meter import NvmlMeter
from pytest_tokenpower.meters.adapters.rapl import RaplMeter
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.probe import Candidate, ClockWatch, ProbeResult, WatchedMeter, try_meters
from pytest_tokenpower.meters.probe_nvml import BoardFacts, CallLog, inspect_boards
from pytest_tokenpower.meters.simulation.library import SimulatedBoards
from pytest_tokenpower.meters.simulation.power_curve import PowerCurve
from pytest_tokenpower.meters.simulation.scenario import Board, Fault, Process, Scenario, numbered_boards
from pytest_tokenpower.meters.timeline import Timeline
from pytest_tokenpower.meters.types import CounterReading, Device, Meter, PowerSamples, Reading
from pytest_tokenpower.reporting import doctor as doctor_report
from pytest_tokenpower.reporting.doctor import as_json, exit_code, render

SECOND = 1_000_000_000
REALTIME_AHEAD = 1_795_000_000_123_456_789
SWING = PowerCurve(points=((0, 100), (1, 600), (2, 100)), repeat_s=2, shape="lines")
STEADY_CLOCK = ClockWatch(((0, 5), (SECOND, 12_005), (10 * SECOND, 30_005)))


class Stage:
    """Time that the test moves, and a trial of a meter on it: what the collector does, without its threads."""

    def __init__(self) -> None:
        self.now_ns = 5_000_000_777
        self.clock = Clock(self.read, lambda: self.now_ns + REALTIME_AHEAD)

    def read(self) -> int:
        # Looking at the clock is what takes time here.
        self.now_ns += 2_000
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        # A refresh need not be watched by the millisecond to be seen.
        self.now_ns += round(max(seconds, 0.004) * SECOND)

    def trial(
        self,
        name: str,
        meter: Meter,
        seconds: float = 10.0,
        each_poll: Callable[[], None] = lambda: None,
        opened: Callable[[], None] = lambda: None,
    ) -> ProbeResult:
        watched = WatchedMeter(meter, cpu_ns=lambda: self.now_ns // 250)
        timeline = Timeline()
        try:
            devices = tuple(watched.open(self.clock))
        except MeterUnavailable as error:
            return ProbeResult(name, "unavailable", str(error))
        for device in devices:
            timeline.add_device(device)
        opened()
        start_ns = end_ns = self.now_ns
        while self.now_ns <= start_ns + (seconds + 0.02) * SECOND:
            try:
                for reading in watched.poll(self.clock):
                    timeline.append(reading)
            except MeterError:
                pass
            each_poll()
            end_ns = self.now_ns
            self.now_ns += round(watched.poll_interval_s * SECOND)
        return ProbeResult(
            name,
            "collected",
            devices=devices,
            timeline=timeline,
            polls=tuple(watched.polls),
            start_ns=start_ns,
            end_ns=end_ns,
            cpu_share=watched.cpu_share,
        )


class NvmlStage(Stage):
    """Simulated boards on that time, tried as NVML's are."""

    def __init__(self, *faults: Fault, boards: Sequence[Board] = (Board(power=SWING),)) -> None:
        super().__init__()
        self.boards = SimulatedBoards(
            Scenario(boards=tuple(boards), faults=faults),
            clock=Clock(lambda: self.now_ns, lambda: self.now_ns + REALTIME_AHEAD, self.sleep),
        )

    def examine(self, *later: Fault, seconds: float = 10.0) -> ProbeResult:
        log = CallLog(self.boards)
        trial = self.trial("nvml", NvmlMeter(log, provenance="simulated"), seconds, opened=log.calls.clear)
        self.boards.inject(*later)
        ids = [device.id for device in trial.devices]
        boards, calls, remarks = inspect_boards(
            self.boards, ids, log.calls, now_ns=self.read, sleep=self.sleep
        )
        changes: dict[str, Any] = {"boards": boards, "calls": calls, "remarks": remarks}
        return ProbeResult(
            **{**{name: getattr(trial, name) for name in trial.__dataclass_fields__}, **changes}
        )

    def report(self, *later: Fault, seconds: float = 10.0) -> Report:
        return report_of([self.examine(*later, seconds=seconds)], STEADY_CLOCK, seconds)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qualify_nvml, "REFRESH_S", 0.5)
    monkeypatch.setattr(call_costs, "COST_CALLS", 5)
    monkeypatch.setattr(qualify_nvml, "_in_container", lambda: False)


def only_device(report: Report) -> tuple[Quality, BoardFacts]:
    [device] = report.meters[0].devices
    assert device.board is not None
    return device.quality, device.board


# --- a sound board


def test_text_of_a_sound_board() -> None:
    assert render(NvmlStage().report(), width=100) == EXPECTED_TEXT


EXPECTED_TEXT = """\
nvml        good: windows from 0.2 s
  Simulated H100 80GB · GPU-51000000-0000-0000-0000-000000000000 · scope gpu, simulated
    energy      4271.2 ± 1.7 J in 12.4 s, 345.6 W (power ring)
    ring        a sample every 20 ms (8.2 ms to 41 ms), 619 in all, 119 kept = 2.4 s, no gaps, step
                0.001 W
    counter     read every 1.0 s (1.0 s to 1.0 s), 11 in all, changes every 100 ms
    agreement   counter / ring = 0.9995 ± 0.0002 over 10 readings: agree
    refresh     average (PowerUsage) every 100 ms, instant (186) every 100 ms, average (185) every
                100 ms
    board       350 W now, limit 700 W (default 700 W), 51 °C, SM 1980 MHz, memory 2619 MHz, MIG
                off, persistence mode on
    clocks held by nothing
    processes   none
    calls       median (99 %) of each: GetSamples 2.0 µs (2.0 µs), GetTotalEnergyConsumption 2.0 µs
                (2.0 µs), GetFieldValues 2.0 µs (2.0 µs), GetTemperatureV 2.0 µs (2.0 µs),
                GetComputeRunningProcesses_v3 2.0 µs (2.0 µs), GetMemoryInfo 2.0 µs (2.0 µs),
                GetClockInfo 2.0 µs (2.0 µs)
    collector   0.40 % of one core, 11 polls of 10 µs (99 %: 10 µs, longest 10 µs), none failed
clock       stable: realtime moved +0.03 ms against monotonic, 0.02 ms at most at once

--energy-source=auto takes nvml (1 device)"""


def test_sound_board_in_figures() -> None:
    report = NvmlStage().report()
    [meter] = report.meters
    quality, board = only_device(report)
    assert (meter.grade, meter.verdict) == ("good", "good: windows from 0.2 s")
    assert quality.power is not None
    assert quality.power.median_ns == pytest.approx(20e6, rel=0.05)
    assert 7e6 < quality.power.shortest_ns < 13e6
    assert 30e6 < quality.power.longest_ns < 46e6
    assert quality.shortest_window_ns == pytest.approx(200e6, rel=0.05)
    assert (board.ring_kept, quality.gaps) == (119, 0)
    assert quality.agreement is not None
    # The simulated ring's integral is 1.0005 of the counter's.
    assert quality.agreement.ratio == pytest.approx(1 / 1.0005, abs=3e-3)
    assert quality.joules is not None
    assert quality.seconds is not None
    assert quality.joules == pytest.approx(350 * quality.seconds, rel=0.02)
    assert {name: refresh.period_ns for name, refresh in board.refresh.items()} == pytest.approx(
        dict.fromkeys(("counter", "usage", "instant", "average"), 100e6), rel=0.05
    )
    # One part in 250 of the time is what the stage's thread is said to have used.
    assert meter.cpu_share == pytest.approx(0.004)
    assert meter.polls is not None
    assert (meter.polls.count, meter.polls.failed) == (11, 0)
    assert {call.call for call in meter.calls} >= {
        "nvmlDeviceGetSamples",
        "nvmlDeviceGetTotalEnergyConsumption",
    }
    assert exit_code(report, allow_model=False) == 0


def test_json_holds_the_same_facts() -> None:
    report = NvmlStage(boards=(Board(power=SWING, processes=(Process(pid=1),)),)).report()
    plain = json.loads(json.dumps(as_json(report, 0), allow_nan=False))
    quality, board = only_device(report)
    [meter] = plain["meters"]
    [device] = meter["devices"]
    assert (plain["version"], plain["auto"]["source"], plain["exit_code"]) == (1, "nvml", 0)
    assert plain["clock"] == {"readings": 3, "moved_ns": 30_000, "largest_jump_ns": 18_000, "stable": True}
    assert (meter["grade"], meter["verdict"]) == ("good", report.meters[0].verdict)
    assert device["device"]["id"] == quality.device_id
    assert quality.agreement is not None
    assert device["quality"]["agreement"]["ratio"] == quality.agreement.ratio
    assert device["board"]["processes"] == [{"pid": 1, "owner": "foreign"}]
    assert device["board"]["refresh"]["counter"]["changes"] == board.refresh["counter"].changes
    assert {call["call"] for call in meter["calls"]} == {call.call for call in report.meters[0].calls}


def test_json_has_no_infinity() -> None:
    assert doctor_report._plain({"a": [float("inf"), (float("nan"), 1.5)]}) == {"a": [None, [None, 1.5]]}


# --- faults of a board


@pytest.mark.parametrize(
    ("faults", "board", "grade", "said"),
    [
        pytest.param(
            [Fault(kind="counter_scale", factor=2)],
            Board(power=SWING),
            "unusable",
            "energy counter and power ring disagree: [12]\\.",
            id="counter twice the ring",
        ),
        pytest.param(
            [Fault(kind="freeze", what="counter", from_s=0)],
            Board(power=SWING),
            "unusable",
            "disagree: 0.000",
            id="counter sticks",
        ),
        pytest.param(
            [Fault(kind="freeze", what="ring", watts=590.0)],
            Board(power=SWING),
            "unusable",
            "disagree",
            id="ring frozen",
        ),
        pytest.param(
            [],
            Board(power=SWING, ring=False),
            "usable",
            "longer than 1.4 s$",
            id="no ring",
        ),
        pytest.param(
            [],
            Board(power=SWING, ring=False, counter=False),
            "usable",
            "longer than 14 s$",
            id="neither ring nor counter",
        ),
        pytest.param(
            [],
            Board(power=SWING, counter=False),
            "good",
            "windows from 0.2 s",
            id="no counter",
        ),
        pytest.param(
            [Fault(kind="freeze", what="counter", from_s=0)],
            Board(power=SWING, ring=False),
            "unusable",
            "energy counter and polled power disagree: 0.000",
            id="counter sticks, no ring",
        ),
        pytest.param(
            [],
            Board(power=PowerCurve.constant(70), slow_ring_at_idle=True),
            "usable",
            "longer than 10 s: the ring gives one sample per 1.0 s, as boards do at deep idle: run again under load",
            id="idle",
        ),
        pytest.param(
            [Fault(kind="slow_ring")],
            Board(power=PowerCurve.constant(500)),
            "usable",
            "and the board is not idle",
            id="slow ring under load",
        ),
        pytest.param(
            [Fault(kind="ring_gap", from_s=4, until_s=4.5)],
            Board(power=SWING),
            "usable",
            "readings missing 1 time, 5[0-9]{2} ms at most",
            id="gap",
        ),
        pytest.param(
            [Fault(kind="lost", from_s=5)],
            Board(power=SWING),
            "unusable",
            "6 of 11 polls failed: GPU-51.* GPU is lost",
            id="lost",
        ),
        pytest.param(
            [Fault(kind="zero", call="nvmlDeviceGetSamples", from_s=3, until_s=4.5)],
            Board(power=SWING),
            "unusable",
            "polls failed: .* the power ring reads 0 W",
            id="zero",
        ),
        pytest.param(
            [Fault(kind="counter_back", from_s=5, millijoules=2_000_000)],
            Board(power=SWING, counter_start_joules=1e6),
            "unusable",
            "polls failed: .*went backwards",
            id="counter backwards",
        ),
        pytest.param(
            [Fault(kind="freeze", what="ring", watts=1500.0)],
            Board(power=PowerCurve.constant(1500), power_limit_watts=700),
            "unusable",
            "above twice its enforced limit of 700 W",
            id="above the limit",
        ),
        pytest.param([], Board(mig="on"), "absent", "not available: GPU-51.* MIG mode", id="MIG"),
    ],
)
def test_faults(faults: Sequence[Fault], board: Board, grade: Grade, said: str) -> None:
    report = NvmlStage(*faults, boards=(board,)).report()
    [meter] = report.meters
    assert meter.grade == grade, meter.verdict
    assert re.search(said, meter.verdict), meter.verdict
    assert exit_code(report, allow_model=False) == (0 if grade in ("good", "usable") else 1)
    assert meter.verdict[:40] in render(report, width=200)


def test_a_wrong_counter_gives_no_energy() -> None:
    text = render(NvmlStage(Fault(kind="counter_scale", factor=2)).report())
    assert "DISAGREE" in text
    assert "    energy " not in text


def test_the_worst_of_several_boards_decides() -> None:
    boards = numbered_boards(3, Board(power=SWING))
    report = NvmlStage(Fault(kind="counter_scale", factor=2, board=1), boards=boards).report()
    [meter] = report.meters
    assert [each.quality.grade for each in meter.devices] == ["good", "unusable", "good"]
    assert meter.grade == "unusable"
    assert f"{boards[1].uuid}, the worst of 3 devices" in meter.verdict


def test_a_module_is_shown_beside_its_gpu() -> None:
    grace = Board(name="Simulated GH200", power=SWING, module_extra_watts=150, ring_noise_share=0.002)
    [meter] = NvmlStage(boards=[grace]).report().meters
    assert (meter.grade, meter.verdict) == ("good", "good: windows from 0.2 s")
    gpu, module = meter.devices
    assert (gpu.quality.joules or 0) / 350 == pytest.approx((module.quality.joules or 0) / 500, rel=0.01)
    assert module.quality.agreement is not None
    assert module.quality.agreement.sound
    assert gpu.quality.agreement is None
    text = render(NvmlStage(boards=[grace]).report())
    assert f"Simulated GH200 · {grace.uuid} · scope gpu, simulated" in text
    assert f"Simulated GH200 · {grace.uuid}/module · scope module, simulated" in text


def test_a_module_that_is_wrong_is_said_of_it_alone() -> None:
    grace = Board(power=SWING, module_extra_watts=150, ring_noise_share=0.002, counter_of_module=False)
    [meter] = NvmlStage(boards=[grace]).report().meters
    assert meter.grade == "good"
    assert [each.quality.grade for each in meter.devices] == ["good", "unusable"]
    assert "energy counter and power ring disagree" in render(NvmlStage(boards=[grace]).report())


def test_a_modules_power_that_is_not_counted_is_named() -> None:
    blackwell = Board(power=SWING, module_extra_watts=150, compute_capability=(10, 0))
    assert "not counted: the module's power" in " ".join(
        render(NvmlStage(boards=[blackwell]).report()).split()
    )


def test_who_else_uses_the_board() -> None:
    # Process 1 lives and is not ours; no Linux has a process above 2^22.
    processes = (Process(pid="own"), Process(pid=1), Process(pid=5_000_000))
    report = NvmlStage(boards=(Board(power=SWING, processes=processes),)).report()
    _, board = only_device(report)
    assert board.processes is not None
    assert [process.owner for process in board.processes] == ["own", "foreign", "unknown"]
    text = render(report, width=200)
    assert "pid 1 FOREIGN, pid 5000000 of another PID namespace" in text
    assert "! " in text
    assert "another process uses the GPU (pid 1)" in text


def test_container_is_named_where_processes_may_be_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qualify_nvml, "_in_container", lambda: True)
    assert "none (this is a container: others may be hidden from it)" in render(
        NvmlStage().report(), width=200
    )


def test_state_that_matters_is_pointed_out() -> None:
    board = Board(power=SWING, power_limit_watts=450, persistence_mode=False)
    faults = (Fault(kind="throttle", limit="hw_thermal", share=0.25), Fault(kind="throttle", limit="power"))
    text = render(NvmlStage(*faults, boards=(board,)).report(), width=200)
    assert "persistence mode is off, so the counter may restart: sudo nvidia-smi -pm 1" in text
    assert "limit 450 W (default 700 W)" in text
    assert "the power limit is below the default" in text
    assert "hw thermal 25 % of the time" in text
    assert re.search("clocks held +power cap, thermal slowdown", text)


def test_half_a_board() -> None:
    errors = [
        Fault(kind="error", call=call, error="NOT_SUPPORTED")
        for call in ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature", "nvmlDeviceGetPersistenceMode")
    ]
    errors.append(Fault(kind="error", call="nvmlDeviceGetUtilizationRates", error="NO_PERMISSION"))
    errors.append(Fault(kind="error", call="nvmlDeviceGetFieldValues", field=186, error="NOT_SUPPORTED"))
    report = NvmlStage(*errors).report()
    quality, board = only_device(report)
    assert quality.grade == "good"
    assert (board.temperature_celsius, board.persistence, board.utilisation) == (None, None, None)
    assert set(board.refresh) == {"counter", "usage", "average"}
    text = render(report, width=300)
    assert "could not be read: nvmlDeviceGetUtilizationRates (Insufficient Permissions)" in text
    assert re.search("not offered by this board: .*nvmlDeviceGetPersistenceMode", text)
    assert "persistence mode unknown" in text


USED_CALLS = [
    "nvmlInit",
    "nvmlDeviceGetCount",
    "nvmlDeviceGetHandleByIndex",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetSamples",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetMigMode",
    "nvmlShutdown",
    "*",
]


@pytest.mark.parametrize("call", USED_CALLS)
def test_any_call_may_fail_after_the_collecting(call: str) -> None:
    stage = NvmlStage()
    report = stage.report(Fault(kind="error", call=call, error="GPU_IS_LOST"), seconds=4)
    [meter] = report.meters
    assert meter.grade == "good"
    assert render(report)


@pytest.mark.parametrize("kind", ["error", "zero"])
@pytest.mark.parametrize("call", USED_CALLS)
def test_any_call_may_fail_from_the_start(call: str, kind: Any) -> None:
    details: Mapping[str, Any] = {"error": "UNKNOWN"} if kind == "error" else {}
    stage = NvmlStage(Fault(kind=kind, call=call, **details))
    report = stage.report(seconds=4)
    assert render(report)
    assert json.dumps(as_json(report, 1), allow_nan=False)


# --- other meters


def test_rapl_of_a_fake_tree(tmp_path: Path) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "name").write_text("package-0")
    (zone / "max_energy_range_uj").write_text("262143328850")
    stage = Stage()

    def draw() -> None:
        # 100 W, counted in units of 61 µJ.
        (zone / "energy_uj").write_text(f"{stage.now_ns // 10 // 61 * 61}")

    draw()

    def load() -> None:
        stage.now_ns += SECOND // 30
        draw()

    report = report_of([stage.trial("rapl", RaplMeter(tmp_path, load=load), 2.0, draw)], STEADY_CLOCK, 2)
    [meter] = report.meters
    [device] = meter.devices
    assert (meter.grade, meter.verdict) == ("good", "good: windows from 0.25 s")
    assert (report.auto, exit_code(report, allow_model=False)) == ("rapl", 0)
    assert device.quality.counter_changes is not None
    assert device.quality.counter_changes.median_ns == pytest.approx(50e6, rel=1e-3)
    assert device.quality.seconds is not None
    assert device.quality.joules == pytest.approx(100 * device.quality.seconds, rel=0.05)
    assert "--energy-source=auto takes rapl (1 device)" in render(report)


def test_a_slow_meter_is_not_judged_by_a_short_trial() -> None:
    device = _device(facts={"resolution_ms": 60_000.0})
    timeline = Timeline()
    timeline.add_device(device)
    quality = qualify(device, timeline, None, 0, 10 * SECOND)
    assert (quality.grade, quality.remarks) == ("usable", ("too slow to be tried in 10 s: --seconds 120",))
    assert quality.verdict == "usable for windows longer than 60 s, as it says itself: no reading in 10 s"


def test_no_reading_is_not_usable() -> None:
    device = _device()
    timeline = Timeline()
    timeline.add_device(device)
    assert qualify(device, timeline, None, 0, 10 * SECOND).verdict == "not usable: no reading in 10 s"


class Broken:
    """A meter that does what it is told at each call."""

    name = "broken"
    poll_interval_s = 0.05

    def __init__(
        self, opens: Callable[[], Sequence[Device]], polls: Callable[[], Sequence[Reading]] = list
    ) -> None:
        self._opens, self._polls = opens, polls

    def open(self, clock: Clock) -> Sequence[Device]:
        return self._opens()

    def poll(self, clock: Clock) -> Sequence[Reading]:
        return self._polls()

    def close(self) -> None:
        raise RuntimeError("close")


def _device(name: str = "device", **changes: Any) -> Device:
    return Device(name, "node", "A device", "broken", "measured", **changes)


def _raising(error: BaseException) -> Callable[..., Any]:
    def call(*_: object) -> Any:
        raise error

    return call


@pytest.fixture
def _closing_may_fail() -> Iterator[None]:
    # The collector's thread ends with the meter's error; that is what Broken is for.
    before, threading.excepthook = threading.excepthook, lambda _: None
    yield
    threading.excepthook = before


@pytest.mark.usefixtures("_closing_may_fail")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_meters_that_break_in_every_way_beside_one_that_works() -> None:
    ticks = iter(range(1, 10**6))

    def count() -> Sequence[Reading]:
        now_ns = time.monotonic_ns()
        return [Reading("device", counters=(CounterReading(now_ns, now_ns, 1000 * next(ticks)),))]

    nonsense = PowerSamples(np.array([1, 2, 3], np.int64), np.array([1, 2], np.int64))
    subjects = {
        "import": Candidate("import", _raising(ImportError("no module"))),
        "library": Candidate("library", lambda _: Broken(list), _raising(OSError("no library"))),
        "unavailable": Candidate("unavailable", lambda _: Broken(_raising(MeterUnavailable("do this")))),
        "exit": Candidate("exit", lambda _: Broken(_raising(SystemExit(3)))),
        "open": Candidate("open", lambda _: Broken(_raising(ValueError("odd")))),
        "none": Candidate("none", lambda _: Broken(list)),
        "poll": Candidate("poll", lambda _: Broken(lambda: [_device()], _raising(KeyError("key")))),
        "stranger": Candidate("stranger", lambda _: Broken(lambda: [_device()], lambda: [Reading("other")])),
        "nonsense": Candidate(
            "nonsense", lambda _: Broken(lambda: [_device()], lambda: [Reading("device", nonsense)])
        ),
        "works": Candidate("works", lambda _: Broken(lambda: [_device()], count)),
    }
    trials, clock = try_meters(list(subjects.values()), 1.0, allowance_s=4.0)
    meters = {meter.name: meter for meter in report_of(trials, clock, 1.0).meters}
    assert list(meters) == list(subjects)
    assert {name: meter.grade for name, meter in meters.items()} == {
        **dict.fromkeys(subjects, "unusable"),
        "unavailable": "absent",
        "works": "good",
    }
    expected = {
        "import": "ImportError: no module",
        "library": "OSError: no library",
        "unavailable": "not available: do this",
        "exit": "SystemExit",
        "open": "ValueError: odd",
        "none": "lists no device",
        "poll": "polls failed: broken: KeyError: 'key'",
        "stranger": "no reading",
        "nonsense": "no reading|make no sense",
        "works": "windows from",
    }
    for name, words in expected.items():
        assert re.search(words, meters[name].verdict), (name, meters[name].verdict)
    assert clock.stable


def test_calls_that_hang_are_named_and_disturb_no_other_meter() -> None:
    hanging = {
        "nvmlInit": None,
        "nvmlDeviceGetTotalEnergyConsumption": 2,
        "nvmlDeviceGetSamples": 3,
        # The clock event reasons are asked for by the doctor alone, when the collecting is over.
        "nvmlDeviceGetCurrentClocksEventReasons": None,
    }
    board = Board(power=SWING)
    boards = {
        call: SimulatedBoards(
            Scenario(boards=(board,), faults=(Fault(kind="hang", call=call, nth=nth, seconds=600),))
        )
        for call, nth in hanging.items()
    }
    boards["sound"] = SimulatedBoards(Scenario(boards=(board,)))

    def simulated(name: str) -> Candidate:
        return Candidate(name, lambda nvml: NvmlMeter(nvml, provenance="simulated"), lambda: boards[name])

    try:
        trials, clock = try_meters([simulated(name) for name in boards], 1.5, allowance_s=2.5)
    finally:
        for each in boards.values():
            each.release()
    report = report_of(trials, clock, 1.5, "nvmlInit")
    for meter in report.meters:
        if meter.name == "sound":
            assert meter.grade == "good", meter.verdict
        else:
            assert meter.grade == "unusable"
            assert meter.name in meter.verdict
            assert "return" in meter.verdict
    assert exit_code(report, allow_model=True) == 1


def test_machine_without_a_driver() -> None:
    class NoDriver:
        NVMLError = pynvml.NVMLError

        def nvmlInit(self) -> None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    subject = Candidate("nvml", NvmlMeter, NoDriver)
    trials, clock = try_meters([subject], 1.0)
    report = report_of(trials, clock, 1.0)
    assert report.meters[0].verdict.startswith("not available: no NVIDIA driver answers")
    assert (report.auto, exit_code(report, allow_model=False)) == (None, 1)
    assert render(report).endswith("--energy-source=auto takes nothing: energy tests are skipped")


# --- the exit code, and what auto takes


def _reported(only: str | None = None, **grades: Grade) -> Report:
    trials = [MeterReport(name, grade, f"{grade}: a reason") for name, grade in grades.items()]
    auto = next((name for name in meter_quality.AUTO if grades.get(name, "absent") != "absent"), None)
    return Report(10.0, tuple(trials), STEADY_CLOCK, only, None if only else auto)


@pytest.mark.parametrize(
    ("report", "allow_model", "code", "line"),
    [
        (_reported(nvml="good", rapl="absent"), False, 0, "takes nvml"),
        (_reported(nvml="usable"), False, 0, "takes nvml"),
        (_reported(nvml="unusable", rapl="good"), False, 1, "takes nvml, which is not usable"),
        (_reported(nvml="unusable", model="good"), True, 1, "takes nvml, which is not usable"),
        (_reported(nvml="absent", rapl="good"), False, 0, "takes rapl"),
        (_reported(nvml="absent", rapl="absent", model="good"), False, 1, "=model would work, as modelled"),
        (_reported(nvml="absent", rapl="absent", model="good"), True, 0, "takes nothing"),
        (_reported(nvml="absent", model="unusable"), True, 1, "energy tests are skipped"),
        (_reported(only="model", model="good"), False, 0, "only model was examined"),
        (_reported(only="nvml", nvml="absent"), True, 1, "only nvml was examined"),
    ],
)
def test_exit_code_and_last_line(report: Report, allow_model: bool, code: int, line: str) -> None:
    assert exit_code(report, allow_model=allow_model) == code
    assert line in render(report).splitlines()[-1]


def test_auto_is_what_measuring_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def none(source: str) -> Sequence[Meter]:
        asked.append(source)
        return [Broken(_raising(MeterUnavailable("none")))]

    monkeypatch.setattr(sources, "meters_for", none)
    with pytest.raises(MeterUnavailable):
        sources.start("auto")
    assert tuple(asked) == meter_quality.AUTO


def test_auto_passes_over_what_is_absent_only() -> None:
    trials = [ProbeResult("nvml", "failed", "hangs"), ProbeResult("rapl", "unavailable", "RAPL: none")]
    assert report_of(trials, STEADY_CLOCK, 10).auto == "nvml"
    assert judge(trials[1]).verdict == "not available: none"


# --- parts


@given(st.floats(0.5, 2.0), st.integers(12, 40))
def test_verdict_follows_the_agreement(ratio: float, seconds: int) -> None:
    if abs(abs(ratio - 1) - 0.05) < 0.0005:
        return
    device = Device("g", "gpu", "board", "nvml", "measured", counter_tick_ns=0)
    t_ns = np.arange(seconds * 50 + 1, dtype=np.int64) * 20_000_000
    milliwatts = 300_000 + (np.arange(len(t_ns)) % 100) * 1000
    track = ring_track(PowerSamples(t_ns, milliwatts))
    timeline = Timeline()
    timeline.add_device(device)
    timeline.append(
        Reading(
            "g",
            PowerSamples(t_ns, milliwatts),
            [
                CounterReading(int(t_ns[i]), int(t_ns[i]), round(1e6 * ratio * track.joules[i]))
                for i in range(0, len(t_ns), 50)
            ],
        )
    )
    quality = qualify(device, timeline, track, 0, int(t_ns[-1]))
    assert quality.agreement is not None
    assert quality.agreement.ratio == pytest.approx(ratio, abs=1e-3)
    assert quality.grade == ("good" if abs(ratio - 1) < 0.05 else "unusable")
    assert quality.shortest_window_ns == pytest.approx(200e6)


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (7_600, "7.6 µs"),
        (45e6, "45 ms"),
        (100e6, "100 ms"),
        (999.4e6, "999 ms"),
        (999.6e6, "1.0 s"),
        (14e9, "14 s"),
    ],
)
def test_span(nanoseconds: float, text: str) -> None:
    assert span(nanoseconds) == text


def test_worst() -> None:
    assert worst(["good", "unusable", "usable"]) == "unusable"
    assert worst([]) == "absent"


def test_a_step_of_the_clock_is_told() -> None:
    stepped = ClockWatch(((0, 0), (SECOND, 0), (2 * SECOND, -60_000_000)))
    report = Report(10.0, (), stepped)
    assert not stepped.stable
    assert "STEPPED: realtime moved -60.00 ms" in render(report)
    assert as_json(report, 1)["clock"]["stable"] is False


def test_lines_stay_within_the_width_and_units_with_their_numbers() -> None:
    for width in (60, 80, 100):
        text = render(NvmlStage().report(seconds=4), width=width)
        assert all(len(line) <= width for line in text.splitlines()[:-1])
        assert not re.search(r"\d\n +(ms|s|W|J|MHz|%)\b", text)


# --- the command


def test_command_on_simulated_boards(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qualify_nvml, "REFRESH_S", 0.3)
    assert cli.main(["doctor", "--source", "simulated", "--seconds", "1.5"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("simulated   good: windows from 0.2 s")
    assert "scope gpu, simulated" in " ".join(text.split())
    assert text.splitlines()[-1].startswith("only simulated was examined")


def test_command_as_json_with_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--source", "model", "--seconds", "1", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    [meter] = plain["meters"]
    assert (plain["exit_code"], plain["source"], meter["name"]) == (0, "model", "model")
    assert meter["devices"][0]["device"]["provenance"] == "modelled"


@pytest.mark.parametrize("source", ["gpu", "simulated:", "simulated:/nowhere.json", "nvml:0"])
def test_unknown_source(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--source", source]) == 4
    error = capsys.readouterr().err
    assert error.startswith("tokenpower doctor: ")
    assert "valid sources are nvml, amd" in error or "/nowhere.json" in error


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "x", "1e9"])
def test_seconds_are_checked(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["doctor", f"--seconds={seconds}"])
    assert "must be seconds between 1 and 3600" in capsys.readouterr().err


def test_every_meter_is_tried() -> None:
    assert [subject.name for subject in doctor.subjects_of(None)] == list(doctor.SUBJECTS)
    for subject in doctor.subjects_of(None):
        assert subject.make(None).name in (subject.name, f"cpu-{subject.name}")
