"""Every fault of the simulated board at every call: the energy of a round is right, or invalid with a reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_tokenpower.analysis import guards
from pytest_tokenpower.errors import MeterError, MeterUnavailable
from pytest_tokenpower.meters.adapters.nvml import ring as nvml_ring
from pytest_tokenpower.meters.collector import Collector
from pytest_tokenpower.meters.simulation.power_curve import PowerCurve
from pytest_tokenpower.meters.simulation.scenario import (
    Board,
    Fault,
    FaultKind,
    Limit,
    Process,
    numbered_boards,
)
from pytest_tokenpower.meters.timeline import Timeline
from pytest_tokenpower.meters.types import CounterReading, PowerSamples, Reading
from pytest_tokenpower.runner.telemetry import TelemetrySession
from tests.support.virtual import WORK, Measured, ReplayedGate, judge, measure, rounds_of, work

# Without a ring and a counter there is only a one-second average, which must never stand still: no steps.
GLIDING = work((0.23, 640), (0.81, 420), (0.12, 130), (0.31, 610), (1.17, 455), (0.09, 180), shape="lines")
OTHER = work((0.4, 300), (0.7, 700), (0.2, 90))
BOARDS: dict[str, tuple[Board, ...]] = {
    "ring and counter": (Board(power=WORK),),
    "no ring": (Board(power=WORK, ring=False),),
    "no counter": (Board(power=WORK, counter=False),),
    "two": (Board(power=WORK), Board(uuid="GPU-52", power=OTHER)),
}
POLLED = (Board(power=GLIDING, ring=False, counter=False),)

ERRORS = (
    "NOT_SUPPORTED",
    "UNKNOWN",
    "GPU_IS_LOST",
    "TIMEOUT",
    "NO_PERMISSION",
    "UNINITIALIZED",
    "NOT_FOUND",
    "INSUFFICIENT_SIZE",
)
NEEDED = {"nvmlDeviceGetSamples", "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage"}
AT_OPEN = {
    "nvmlInitWithFlags",
    "nvmlDeviceGetCount",
    "nvmlDeviceGetHandleByIndex",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetName",
    "nvmlDeviceGetMigMode",
    "nvmlSystemGetDriverVersion",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetEnforcedPowerLimit",
    "nvmlDeviceGetPersistenceMode",
}
CONDITIONS = {
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetComputeRunningProcesses",
}


def polled_rounds(measured: Measured) -> list[Any]:
    return [measured.window(1.5, 15), measured.window(3, 16.5)]


# --- without faults, and with a harness that is broken on purpose


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("boards", BOARDS.values(), ids=BOARDS)
def test_without_faults_every_round_is_right_and_has_no_reasons(boards: Sequence[Board], seed: int) -> None:
    judged = judge(measure(boards=boards, seed=seed))
    assert judged.wrong == ()
    assert judged.flagged == 0
    assert len(judged.records) > 6


def test_polled_power_is_right_without_faults() -> None:
    measured = measure(boards=POLLED, seconds=20)
    judged = judge(measured, polled_rounds(measured))
    assert judged.wrong == ()
    assert judged.flagged == 0


def _blind(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(guards, name, lambda *_: [])


def _deaf(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Timeline, "note", lambda *_: None)


def _zero_is_a_power(patch: pytest.MonkeyPatch) -> None:
    real = nvml_ring.PowerRing.drain

    def drain(self: nvml_ring.PowerRing, clock: Any) -> PowerSamples | None:
        try:
            return real(self, clock)
        except MeterError:
            t_ns = clock.monotonic_ns() + np.arange(-50, 0) * 20_000_000
            return PowerSamples(t_ns, np.zeros(50, dtype=np.int64))

    patch.setattr(nvml_ring.PowerRing, "drain", drain)
    # An open-eyed counter would give it away.
    _blind("cross_check_reasons")(patch)
    _deaf(patch)


def _hot(patch: pytest.MonkeyPatch) -> None:
    real = guards.condition_reasons
    patch.setattr(guards, "condition_reasons", lambda device, *rest: [*real(device, *rest), "hot"])


def _more(patch: pytest.MonkeyPatch) -> None:
    real = Measured.truth
    patch.setattr(Measured, "truth", lambda self, window: 1.05 * real(self, window))


@pytest.mark.parametrize(
    ("plant", "fault", "boards"),
    [
        (_more, None, "ring and counter"),
        (_hot, None, "ring and counter"),
        (
            _blind("energy_reasons"),
            Fault(kind="error", call="nvmlDeviceGetSamples", error="NOT_FOUND", from_s=5),
            "no counter",
        ),
        (_blind("cross_check_reasons"), Fault(kind="freeze", what="ring", from_s=3.3), "ring and counter"),
        (_blind("cross_check_reasons"), Fault(kind="freeze", what="counter", from_s=3.3), "no ring"),
        (_zero_is_a_power, Fault(kind="zero", call="nvmlDeviceGetSamples", nth=6), "no counter"),
        (_deaf, Fault(kind="counter_reset", from_s=3.3), "no ring"),
    ],
)
def test_the_harness_sees_a_defect(
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
    fault: Fault | None,
    boards: str,
) -> None:
    faults = [] if fault is None else [fault]
    assert not judge(measure(*faults, boards=BOARDS[boards])).wrong
    plant(monkeypatch)
    judged = judge(measure(*faults, boards=BOARDS[boards]), spoilt_s=(2, 9) if faults else (-1, -1))
    assert judged.wrong


# --- every call


def attempt(*faults: Fault, boards: Sequence[Board], seconds: float = 6.0) -> ReplayedGate | str:
    """Return a run, or what open said."""
    measured = Measured(*faults, boards=boards)
    try:
        measured.open()
    except MeterUnavailable as error:
        return str(error)
    measured.run_until(seconds + 1)
    return judge(measured, rounds_of(measured, seconds))


def calls_of(boards: Sequence[Board]) -> dict[str, tuple[int, int]]:
    """Of each call: how often open makes it, and how often a run does."""
    measured = Measured(boards=boards)
    measured.open()
    at_open = dict(measured.boards.call_counts)
    measured.run_until(7)
    return {call: (at_open.get(call, 0), count) for call, count in measured.boards.call_counts.items()}


CALLS = {name: calls_of(boards) for name, boards in BOARDS.items()}


def test_every_call_of_the_meter_is_in_the_sweep() -> None:
    assert {call for calls in CALLS.values() for call in calls} == NEEDED | AT_OPEN | CONDITIONS


@pytest.mark.parametrize("call", sorted(CALLS["ring and counter"]))
def test_a_call_that_fails_once(call: str) -> None:
    at_open, count = CALLS["ring and counter"][call]
    wrong = []
    # Each at open (the first poll is one of them), one in the middle, the last.
    places = sorted({*range(1, at_open + 2), (at_open + count) // 2, count} & set(range(1, count + 1)))
    middle = (at_open + count) // 2
    for error, nth in [("UNKNOWN", nth) for nth in places] + [(error, middle) for error in ERRORS]:
        outcome = attempt(
            Fault(kind="error", call=call, nth=nth, error=error), boards=BOARDS["ring and counter"]
        )
        where = f"{error} at call {nth} of {count}"
        if isinstance(outcome, str):
            if call not in AT_OPEN or (call != "nvmlInitWithFlags" and call not in outcome):
                wrong.append(f"{where}: {outcome}")
            continue
        wrong += [f"{where}: {each}" for each in outcome.wrong]
        if call in CONDITIONS | AT_OPEN and outcome.flagged:
            wrong.append(f"{where}: spoilt by {outcome.reasons}")
        # NOT_FOUND is how NVML says that there is no new sample.
        if call in NEEDED and nth == middle and not outcome.flagged and error != "NOT_FOUND":
            wrong.append(f"{where}: nobody noticed")
    assert wrong == []


@pytest.mark.parametrize(
    ("boards", "call"),
    [
        (boards, call)
        for boards, calls in CALLS.items()
        for call, (at_open, count) in calls.items()
        if call in NEEDED and count > at_open
    ],
)
def test_a_reading_that_stops_for_good(boards: str, call: str) -> None:
    for error in ("UNKNOWN", "GPU_IS_LOST", "NOT_FOUND"):
        outcome = attempt(Fault(kind="error", call=call, error=error, from_s=3.3), boards=BOARDS[boards])
        assert isinstance(outcome, ReplayedGate)
        assert outcome.wrong == ()
        if boards == "no ring" and call == "nvmlDeviceGetPowerUsage":
            assert outcome.flagged == 0
        else:
            # All rounds that end after it.
            assert [bool(r.reasons) for r in outcome.records][-2:] == [True, True], (error, outcome.records)


@pytest.mark.parametrize("boards", [*BOARDS, "polled"])
@pytest.mark.parametrize("error", ["UNKNOWN", "NOT_SUPPORTED", "GPU_IS_LOST"])
@pytest.mark.parametrize("call", sorted(NEEDED))
def test_a_reading_that_never_works_is_done_without(boards: str, call: str, error: str) -> None:
    chosen = POLLED if boards == "polled" else BOARDS[boards]
    measured = Measured(Fault(kind="error", call=call, error=error), boards=chosen)
    lacking = {"no ring": "nvmlDeviceGetTotalEnergyConsumption", "no counter": "nvmlDeviceGetSamples"}
    if boards == "polled" and call == "nvmlDeviceGetPowerUsage":
        with pytest.raises(
            MeterUnavailable, match=r"GPU-51.* offers neither .*nvmlDeviceGetPowerUsage failed"
        ):
            measured.open()
        return
    measured.open()
    # Whatever is left gives no resolution of a second: then the rounds say so.
    coarse = lacking.get(boards) == call
    measured.run_until(21 if coarse else 13)
    judged = judge(measured, polled_rounds(measured) if coarse else None)
    assert judged.wrong == ()
    if call != "nvmlDeviceGetPowerUsage" and (boards, call) not in (
        ("no ring", "nvmlDeviceGetSamples"),
        ("no counter", "nvmlDeviceGetTotalEnergyConsumption"),
    ):
        said = {str(v) for d in measured.devices for name, v in d.facts.items() if name.endswith("_error")}
        assert any(call in each for each in said) or boards == "polled"


@pytest.mark.parametrize("call", sorted(CONDITIONS))
def test_a_condition_that_cannot_be_read_is_absent_and_the_energy_stands(call: str) -> None:
    also = ("nvmlDeviceGetTemperature",) if call == "nvmlDeviceGetTemperatureV" else ()
    for error in ("UNKNOWN", "TIMEOUT", "NO_PERMISSION", "NOT_SUPPORTED"):
        judged = judge(measure(*(Fault(kind="error", call=each, error=error) for each in (call, *also))))
        assert judged.wrong == ()
        assert judged.flagged == 0
        for record in judged.records:
            absent = {
                "nvmlDeviceGetFieldValues": record.limited_shares == {},
                "nvmlDeviceGetTemperatureV": record.temperature_celsius is None,
                "nvmlDeviceGetClockInfo": record.sm_clock_mhz is None,
                "nvmlDeviceGetComputeRunningProcesses": True,
            }
            assert {name: value for name, value in absent.items() if value}.keys() == {
                call,
                "nvmlDeviceGetComputeRunningProcesses",
            }


def test_a_condition_that_stops_is_not_made_up_from_what_it_was() -> None:
    measured = measure(
        Fault(kind="error", call="nvmlDeviceGetTemperatureV", from_s=4),
        Fault(kind="error", call="nvmlDeviceGetTemperature", from_s=4),
        Fault(kind="error", call="nvmlDeviceGetFieldValues", from_s=4),
        Fault(kind="error", call="nvmlDeviceGetClockInfo", from_s=4),
        Fault(kind="error", call="nvmlDeviceGetMemoryInfo", from_s=4),
        seconds=20,
    )
    early, late = measured.records([measured.window(1.5, 1), measured.window(12, 1)])
    assert early.temperature_celsius is not None
    assert early.sm_clock_mhz is not None
    assert early.limited_shares
    assert early.memory_gib == pytest.approx(0.49, abs=0.01)
    assert (late.temperature_celsius, late.sm_clock_mhz, late.limited_shares) == (None, None, {})
    assert late.memory_gib is None
    assert (early.reasons, late.reasons) == ((), ())


@pytest.mark.parametrize(
    "call", ["nvmlDeviceGetTemperatureV", "nvmlDeviceGetClockInfo", "nvmlDeviceGetMemoryInfo"]
)
def test_a_zero_is_no_reading(call: str) -> None:
    also = ("nvmlDeviceGetTemperature",) if call == "nvmlDeviceGetTemperatureV" else ()
    measured = measure(*(Fault(kind="zero", call=each) for each in (call, *also)))
    judged = judge(measured)
    assert judged.wrong == ()
    assert judged.flagged == 0
    [record, *_] = judged.records
    [device] = measured.devices
    assert None in (record.temperature_celsius, record.sm_clock_mhz, device.key_facts["memory_gib"])
    assert 0 not in (record.temperature_celsius, record.sm_clock_mhz, device.key_facts["memory_gib"])
    assert (record.memory_gib is None) == (call == "nvmlDeviceGetMemoryInfo")


# --- readings that are wrong


def wrong_readings() -> Iterator[tuple[str, tuple[float, float], Sequence[Fault]]]:
    """Names, between when rounds may be invalid (seconds), and the faults."""
    for at in (3.3, 3.95):
        for seconds in (1.6, 4.0, None):
            until = None if seconds is None else at + seconds
            # Readings come once a second, and what contradicts them with the next one.
            spoilt = (at - 2.2, 99 if until is None else until + 2.2)
            for watts in (None, 590.0, 440.0, 90.0):
                yield (
                    f"ring frozen at {watts} from {at} for {seconds}",
                    spoilt,
                    [Fault(kind="freeze", what="ring", watts=watts, from_s=at, until_s=until)],
                )
            changes: list[tuple[FaultKind, dict[str, Any]]] = [
                ("freeze", {"what": "counter"}),
                ("counter_scale", {"factor": 2.0}),
                ("counter_scale", {"factor": 0.5}),
                ("slow_ring", {}),
                ("ring_gap", {}),
                ("lost", {}),
                ("zero", {"call": "nvmlDeviceGetSamples"}),
                ("zero", {"call": "nvmlDeviceGetTotalEnergyConsumption"}),
                ("zero", {"call": "nvmlDeviceGetPowerUsage"}),
            ]
            for kind, details in changes:
                fault = Fault(kind=kind, from_s=at, until_s=until, **details)
                yield f"{kind} {details} from {at} for {seconds}", spoilt, [fault]
        once = (at - 2.2, at + 3.2)
        yield f"counter_reset at {at}", once, [Fault(kind="counter_reset", from_s=at)]
        for millijoules in (1_000, 100_000, 400_000, 1_200_000):
            yield (
                f"counter_back {millijoules} at {at}",
                once,
                [Fault(kind="counter_back", millijoules=millijoules, from_s=at)],
            )


WRONG_READINGS = {name: (spoilt, faults) for name, spoilt, faults in wrong_readings()}


@pytest.mark.slow
@pytest.mark.parametrize("boards", BOARDS)
def test_a_reading_that_is_wrong(boards: str) -> None:
    wrong = []
    for name, (spoilt, faults) in WRONG_READINGS.items():
        if boards in ("two", "no ring") and " 3.95 " in name:
            continue
        measured = measure(*faults, boards=BOARDS[boards], seconds=9)
        judged = judge(measured, rounds_of(measured, 9), spoilt_s=spoilt)
        wrong += [f"{name}: {each}" for each in judged.wrong]
    assert wrong == []


def test_a_counter_a_little_off_is_followed_as_far_as_the_guard_allows() -> None:
    # There is no telling which of the two is right: up to LARGEST_DISAGREEMENT the counter is believed.
    measured = measure(Fault(kind="counter_scale", factor=1.03))
    judged = judge(measured, share=0.035)
    assert judged.wrong == ()
    assert judged.flagged == 0
    assert judge(measured).wrong


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "counter_reset"},
        {"kind": "counter_back", "millijoules": 900_000},
        {"kind": "freeze", "what": "counter", "until_s": 8.1},
        {"kind": "counter_scale", "until_s": 8.1},
        {"kind": "ring_gap", "until_s": 8.1},
        {"kind": "hang", "call": "nvmlDeviceGetTotalEnergyConsumption", "seconds": 0.8, "until_s": 8.1},
    ],
    ids=lambda fault: str(fault["kind"]),
)
def test_a_fault_does_not_spoil_the_scale_of_the_rest(fault: dict[str, Any]) -> None:
    board = Board(power=WORK, ring_scale=1.03)
    measured = measure(Fault(from_s=6.1, **fault), boards=(board,), seconds=22)
    judged = judge(measured, rounds_of(measured, 22), spoilt_s=(4, 11))
    assert judged.wrong == ()


def test_a_second_of_a_long_window_is_held_against_the_counter_by_itself() -> None:
    # Half as much again in one second of twenty: 2 % over all, which alone would pass.
    measured = measure(boards=(Board(power=WORK, ring_noise_share=0.01),), seconds=22)
    window = measured.window(1.3, 20)
    [sound] = measured.records([window])
    assert sound.reasons == ()
    found = measured.timeline.power(measured.devices[0].id)
    assert found is not None
    second = np.abs(found.t_ns - measured.began_ns - 10_500_000_000) < 500_000_000
    lying = Timeline()
    lying.add_device(measured.devices[0])
    milliwatts = np.where(second, found.milliwatts * 3 // 2, found.milliwatts)
    lying.append(Reading(measured.devices[0].id, PowerSamples(found.t_ns, milliwatts.astype(np.int64))))
    columns = measured.timeline.counters(measured.devices[0].id)
    rows = zip(columns.t0_ns.tolist(), columns.t1_ns.tolist(), columns.microjoules.tolist(), strict=True)
    lying.append(Reading(measured.devices[0].id, counters=[CounterReading(*row) for row in rows]))
    measured.timeline = lying
    [record] = measured.records([window])
    [reason] = record.reasons
    assert "energy counter and power ring disagree by -" in reason


@pytest.mark.parametrize("watts", [590.0, 60.0, None])
@pytest.mark.parametrize("seconds", [4, None])
def test_a_frozen_power_reading_is_seen_where_there_is_nothing_else(
    watts: float | None, seconds: int | None
) -> None:
    until = None if seconds is None else 6.3 + seconds
    fault = Fault(kind="freeze", what="power", watts=watts, from_s=6.3, until_s=until)
    measured = measure(fault, boards=POLLED, seconds=20)
    judged = judge(measured, polled_rounds(measured))
    assert judged.wrong == ()
    assert judged.flagged == 2
    assert all(
        ": the power reading is frozen: it did not move by a milliwatt" in each for each in judged.reasons
    )


def test_a_long_idle_before_does_not_hide_a_gap() -> None:
    # While a model loads, the ring of an idle board gives one sample a second.
    swing = ((300 + 0.3 * i, 640.0 if i % 2 else 420.0) for i in range(40))
    idle = Board(power=PowerCurve(points=((0.0, 70.0), *swing)), slow_ring_at_idle=True)
    measured = Measured(Fault(kind="ring_gap", from_s=304.2, until_s=304.5), boards=(idle,))
    measured.open()
    measured.run_until(307)
    judged = judge(
        measured, [measured.window(301.1, 1.2), measured.window(303.9, 1.1), measured.window(305.2, 1.1)]
    )
    assert judged.wrong == ()
    assert [bool(record.reasons) for record in judged.records] == [False, True, False]


# --- time


STEPS = (0.004, 0.006, 0.3, 0.9, 1.5, 2.5, 10.0, 3600.0)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1, -1], ids=["forward", "back"])
@pytest.mark.parametrize("at", [3.3, 3.95, 4.0])
@pytest.mark.parametrize("boards", ["ring and counter", "no counter"])
def test_a_clock_that_is_set(boards: str, at: float, sign: int) -> None:
    wrong = []
    for step in STEPS:
        for seconds in (0.65, 3.3, None):
            until = None if seconds is None else at + seconds
            fault = Fault(kind="clock_step", seconds=sign * step, from_s=at, until_s=until)
            measured = measure(fault, boards=BOARDS[boards])
            spoilt = (at - 2.2, at + 2.2 if until is None else until + 2.2)
            judged = judge(measured, spoilt_s=spoilt)
            name = f"{sign * step:+} s for {seconds}"
            wrong += [f"{name}: {each}" for each in judged.wrong]
            # Forth and back between two polls, a few milliseconds show nowhere and matter to nothing.
            if step > (0.1 if seconds == 0.65 else 0.005) and not judged.flagged:
                wrong.append(f"{name}: nobody noticed")
            if step < 0.005 and judged.flagged:
                wrong.append(f"{name}: a slew is no step: {judged.reasons}")
    assert wrong == []


def test_a_step_says_by_how_much() -> None:
    [reason] = judge(measure(Fault(kind="clock_step", seconds=-0.25, from_s=5.5))).reasons - {
        "GPU-51000000-0000-0000-0000-000000000000: readings are missing inside the window (more than 3 periods of "
        "20 ms)"
    }
    assert reason.endswith(": the realtime clock was set by -250.0 ms during the measurement (NTP)")


@pytest.mark.parametrize("boards", BOARDS)
def test_a_call_that_hangs(boards: str) -> None:
    wrong = []
    for call in (*sorted(NEEDED), "nvmlDeviceGetFieldValues", "*"):
        for seconds, at in ((0.03, 3.3), (0.3, 3.95), (1.2, 3.3), (2.4, 3.95), (4.0, 3.3)):
            fault = Fault(kind="hang", call=call, seconds=seconds, from_s=at, until_s=at + 1.01)
            measured = measure(fault, boards=BOARDS[boards], seconds=10)
            # Several calls of one poll may hang, one after the other.
            spoilt = (at - 2.2, at + 7 * seconds * len(BOARDS[boards]) + 5)
            judged = judge(measured, rounds_of(measured, 10), spoilt_s=spoilt)
            wrong += [f"{call} for {seconds} s at {at}: {each}" for each in judged.wrong]
    assert wrong == []


def test_realtime_that_is_set_while_a_call_hangs() -> None:
    wrong = []
    for call in sorted(NEEDED):
        for step in (-10, -0.5, 0.5, 10):
            faults = [
                Fault(kind="hang", call=call, seconds=1.2, from_s=3.3, until_s=4.01),
                Fault(kind="clock_step", seconds=step, from_s=4.4),
            ]
            judged = judge(measure(*faults), spoilt_s=(2, 9))
            wrong += [f"{call}, {step:+} s: {each}" for each in judged.wrong]
    assert wrong == []


# --- heat, processes, several boards


@pytest.mark.parametrize("limit", guards.HEAT_LIMITS)
@pytest.mark.parametrize("share", [0.05, 1.0])
def test_heat_makes_a_round_invalid(limit: Limit, share: float) -> None:
    judged = judge(
        measure(Fault(kind="throttle", limit=limit, share=share, from_s=3.3, until_s=6)), spoilt_s=(2, 8)
    )
    assert judged.wrong == ()
    assert judged.flagged >= 2
    assert all(f"heat or by the power supply: {limit.replace('_', ' ')} " in each for each in judged.reasons)


@pytest.mark.parametrize("limit", ["power", "board"])
def test_a_power_cap_is_information(limit: Limit) -> None:
    judged = judge(measure(Fault(kind="throttle", limit=limit, share=0.8, from_s=0)))
    assert judged.wrong == ()
    assert judged.flagged == 0
    assert judged.records[3].limited_shares[limit] == pytest.approx(0.8, abs=0.02)


def test_another_process_on_the_board_makes_a_round_invalid() -> None:
    judged = judge(measure(Fault(kind="process", pid=1, from_s=4.5, until_s=6.5)), spoilt_s=(3, 8))
    assert judged.wrong == ()
    assert judged.flagged
    assert all("another process used the GPU (pid 1)" in each for each in judged.reasons)


@pytest.mark.parametrize("pid", ["own", 2_000_000_000], ids=["own", "of another namespace"])
def test_a_process_that_is_ours_or_may_be_does_not(pid: Any) -> None:
    judged = judge(measure(boards=(Board(power=WORK, processes=(Process(pid=pid),)),)))
    assert judged.wrong == ()
    assert judged.flagged == 0
    assert os.getpid() != 1


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "lost"},
        {"kind": "ring_gap"},
        {"kind": "freeze", "what": "counter"},
        {"kind": "error", "call": "nvmlDeviceGetSamples"},
        {"kind": "error", "call": "nvmlDeviceGetTotalEnergyConsumption"},
        {"kind": "zero", "call": "nvmlDeviceGetSamples"},
        {"kind": "throttle", "limit": "hw_thermal"},
        {"kind": "process", "pid": 1},
        {"kind": "counter_reset"},
    ],
    ids=lambda fault: " ".join(map(str, fault.values())),
)
@pytest.mark.parametrize("board", [0, 2])
def test_of_several_boards_the_one_that_fails_is_named(fault: dict[str, Any], board: int) -> None:
    boards = numbered_boards(3, Board(power=WORK))
    judged = judge(measure(Fault(board=board, from_s=5.2, **fault), boards=boards), spoilt_s=(3, 99))
    assert judged.wrong == ()
    assert judged.flagged
    assert all(each.startswith(boards[board].uuid) for each in judged.reasons)


def test_a_board_that_is_lost_is_not_left_out_as_if_it_were_idle() -> None:
    own = Board(power=WORK, processes=(Process(),))
    boards = (*numbered_boards(2, own), Board(uuid="GPU-idle", power=WORK))
    for fault in (
        Fault(kind="lost", board=0, from_s=2.5),
        Fault(kind="error", call="nvmlDeviceGetComputeRunningProcesses", board=0, from_s=2.5),
    ):
        measured = measure(fault, boards=boards, seconds=6)
        collector = Collector(())
        collector.timeline = measured.timeline
        used = TelemetrySession(collector, measured.devices).devices_in_use([measured.window(3.1, 2.5)])
        assert [device.id for device in used] == [board.uuid for board in boards[:2]]


def test_a_slice_of_a_board_is_refused() -> None:
    with pytest.raises(MeterUnavailable, match=r"GPU-51.* runs in MIG mode"):
        measure(boards=(Board(mig="on"),))


# --- any power, any window


@st.composite
def curves(draw: st.DrawFn) -> PowerCurve:
    pieces = draw(st.lists(st.tuples(st.floats(0.05, 1.5), st.floats(60, 700)), min_size=1, max_size=12))
    return work(*pieces, shape=draw(st.sampled_from(["steps", "lines"])))


@settings(max_examples=40, deadline=None)
@given(
    curves(),
    st.sampled_from(["both", "no ring", "no counter"]),
    st.lists(st.tuples(st.floats(0.1, 8), st.floats(0.03, 3)), min_size=1, max_size=12),
    st.integers(0, 1000),
)
def test_a_window_is_never_far_off(
    curve: PowerCurve, has: str, windows: list[tuple[float, float]], seed: int
) -> None:
    board = Board(power=curve, ring=has != "no ring", counter=has != "no counter")
    measured = measure(boards=(board,), seed=seed)
    chosen = [measured.window(start, seconds) for start, seconds in windows]
    for window, record in zip(chosen, measured.records(chosen), strict=True):
        truth = measured.truth(window)
        if not record.reasons:
            assert record.joules is not None
            assert record.stderr_joules is not None
            assert abs(record.joules - truth) <= 6 * record.stderr_joules + 0.005 * truth
            continue
        # A short window may be too short, and a steady board without a counter looks frozen.
        allowed = ("too short", "shorter than", "frozen")
        assert all(any(words in each for words in allowed) for each in record.reasons), record.reasons


@pytest.mark.parametrize("ring", [True, False], ids=["ring", "counter"])
def test_intervals_of_95_percent_hold_the_energy_that_often(ring: bool) -> None:
    random = np.random.default_rng(20_251_122)
    held = total = 0
    for run in range(12):
        count = int(random.integers(3, 12))
        pieces = zip(random.uniform(0.05, 1.5, count), random.uniform(60, 700, count), strict=True)
        curve = work(*((float(seconds), float(watts)) for seconds, watts in pieces))
        measured = measure(boards=(Board(power=curve, ring=ring),), seed=run)
        windows = [
            measured.window(float(start), float(seconds))
            for start, seconds in zip(random.uniform(0.5, 8, 50), random.uniform(0.1, 3, 50), strict=True)
        ]
        for window, record in zip(windows, measured.records(windows), strict=True):
            if not record.reasons and record.joules is not None and record.stderr_joules is not None:
                held += abs(record.joules - measured.truth(window)) <= 1.96 * record.stderr_joules
                total += 1
    assert total > 400
    assert held / total >= 0.93
