"""The NVML meter by itself: which boards it takes, what it says of them, and that each sample is read once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_tokenpower.errors import MeterError, MeterUnavailable
from pytest_tokenpower.meters.adapters.nvml.boards import visible_indices
from pytest_tokenpower.meters.adapters.nvml.meter import NvmlMeter
from pytest_tokenpower.meters.adapters.nvml.ring import PowerRing
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.simulation.board import RING_DELAY_NS
from pytest_tokenpower.meters.simulation.library import SimulatedBoards
from pytest_tokenpower.meters.simulation.scenario import Board, Fault, Process, Scenario, numbered_boards
from pytest_tokenpower.meters.types import Reading
from tests.support.virtual import SECOND, WORK, Measured, measure

UUIDS = ["GPU-aa11", "GPU-aa22", "GPU-bb33"]
ALIKE = ["H100"] * 3


# --- which boards


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        (None, [0, 1, 2]),
        ("0", [0]),
        ("2, 0", [2, 0]),
        ("GPU-bb", [2]),
        ("GPU-aa22,GPU-aa11", [1, 0]),
        # CUDA stops at the first entry that is none.
        ("1,7,0", [1]),
        ("0,-1,1", [0]),
    ],
)
def test_visible_boards(visible: str | None, indices: list[int]) -> None:
    assert visible_indices(visible, UUIDS, ALIKE) == indices


@pytest.mark.parametrize(
    ("visible", "said"),
    [
        ("", "leaves no GPU visible"),
        ("-1", "leaves no GPU visible"),
        ("NoDevFiles", "leaves no GPU visible"),
        ("GPU-aa", r"names GPU-aa, which matches 2 of the GPUs GPU-aa11, GPU-aa22, GPU-bb33"),
        ("GPU-cc", "names GPU-cc, which matches 0 of the GPUs"),
        ("MIG-aa11", "names the MIG slice MIG-aa11: .* the whole board"),
    ],
)
def test_what_names_no_board_is_refused_with_the_reason(visible: str, said: str) -> None:
    with pytest.raises(MeterUnavailable, match=said):
        visible_indices(visible, UUIDS, ALIKE)


def test_the_order_of_cuda_is_not_that_of_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    different = ["H100", "A100", "H100"]
    with pytest.raises(
        MeterUnavailable, match=r"CUDA's order.*\(A100, H100\): set CUDA_DEVICE_ORDER=PCI_BUS_ID"
    ):
        visible_indices("1", UUIDS, different)
    assert visible_indices("GPU-aa22", UUIDS, different) == [1]
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert visible_indices("1", UUIDS, different) == [1]


def test_a_board_that_is_named_twice_is_read_once() -> None:
    boards = numbered_boards(2, Board(power=WORK))
    first = boards[0].uuid
    for visible in ("0,0", f"{first},{first}", f"0,{first}", "1,0,1"):
        found = opened(visible=visible, boards=boards)
        assert len(found) == len(set(found)) == (2 if "1" in visible.split(",") else 1)
    with pytest.raises(MeterUnavailable, match="leaves no GPU visible"):
        opened(visible="\N{SUPERSCRIPT TWO}", boards=boards)


def test_only_visible_boards_are_read() -> None:
    measured = Measured(
        boards=numbered_boards(3, Board(power=WORK)), meter=lambda boards: NvmlMeter(boards, visible="2")
    )
    measured.open()
    assert [device.id[:12] for device in measured.devices] == ["GPU-51000002"]


NEIGHBOUR = numbered_boards(2)[1].uuid
LOST = Fault(kind="lost", board=1)
DENIED = Fault(kind="error", call="nvmlDeviceGetHandleByIndex", nth=2, error="NO_PERMISSION")
SILENT = Fault(kind="error", call="nvmlDeviceGetHandleByIndex", nth=2, error="UNKNOWN")
NAMELESS = Fault(kind="error", call="nvmlDeviceGetName", board=1)


def opened(*faults: Fault, visible: str | None, boards: Sequence[Board] = numbered_boards(3)) -> list[str]:
    measured = Measured(*faults, boards=boards, meter=lambda nvml: NvmlMeter(nvml, visible=visible))
    measured.open()
    return [device.id[4:12] for device in measured.devices]


@pytest.mark.parametrize("fault", [LOST, DENIED, SILENT, NAMELESS])
@pytest.mark.parametrize("visible", ["0", "GPU-51000000"])
def test_a_neighbour_that_does_not_answer_harms_nothing(fault: Fault, visible: str) -> None:
    assert opened(fault, visible=visible) == ["51000000"]


def test_cuda_counts_no_board_that_may_not_be_opened() -> None:
    assert opened(DENIED, visible=None) == ["51000000", "51000002"]
    assert opened(DENIED, visible="1") == ["51000002"]
    every = Fault(kind="error", call="nvmlDeviceGetHandleByIndex", error="NO_PERMISSION")
    with pytest.raises(
        MeterUnavailable, match=r"none of the 3 NVIDIA GPUs may be opened .* ask the scheduler"
    ):
        opened(every, visible=None)


@pytest.mark.parametrize("fault", [LOST, SILENT])
def test_what_may_be_ours_and_does_not_answer_is_refused_with_a_remedy(fault: Fault) -> None:
    rest = "GPU-51000000-0000-0000-0000-000000000000,GPU-51000002-0000-0000-0000-000000000000"
    with pytest.raises(MeterUnavailable, match=f"GPU 1: .*failed.*hide it: CUDA_VISIBLE_DEVICES={rest}$"):
        opened(fault, visible=None)
    for visible in ("1", "2"):
        with pytest.raises(
            MeterUnavailable, match=r"counts a GPU that does not answer .*: name the GPUs by UUID"
        ):
            opened(fault, visible=visible)
    with pytest.raises(MeterUnavailable, match=r"none of the GPUs that answer .* one that does not: GPU 1: "):
        opened(fault, visible=NEIGHBOUR)
    with pytest.raises(MeterUnavailable, match="names GPU-7, which is none of the GPUs that answer"):
        opened(fault, visible="GPU-7")


@pytest.mark.parametrize("board", [0, 1])
@pytest.mark.parametrize("call", ["nvmlDeviceGetName", "nvmlDeviceGetMemoryInfo"])
def test_a_board_that_cannot_be_described_can_be_hidden(board: int, call: str) -> None:
    two = numbered_boards(2)
    fault = Fault(kind="error", call=call, error="GPU_IS_LOST", board=board)
    with pytest.raises(
        MeterUnavailable,
        match=rf"describe {two[board].uuid}: {call} failed: .*dmesg.*CUDA_VISIBLE_DEVICES={two[1 - board].uuid}$",
    ):
        opened(fault, visible=None, boards=two)


def test_a_board_that_is_lost_is_not_called_a_display_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a fall off the bus that the driver has not noticed when it listed its boards."""
    boards = SimulatedBoards(Scenario())

    def gone(*_: object) -> None:
        raise boards.NVMLError_GpuIsLost

    for call in ("nvmlDeviceGetSamples", "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage"):
        monkeypatch.setattr(boards, call, gone, raising=False)
    with pytest.raises(MeterUnavailable, match=r"could not describe GPU-.*GPU is lost.*a reset or a reboot"):
        NvmlMeter(boards).open(Clock())


def test_a_display_card_beside_can_be_hidden() -> None:
    first, second = numbered_boards(2)
    card = msgspec.structs.replace(second, name="NVIDIA T400 4GB", ring=False, counter=False)
    dark = Fault(kind="zero", call="nvmlDeviceGetPowerUsage", board=1)
    with pytest.raises(
        MeterUnavailable,
        match=rf"\(NVIDIA T400 4GB\) offers neither .*hide it: CUDA_VISIBLE_DEVICES={first.uuid}$",
    ):
        opened(dark, visible=None, boards=(first, card))
    assert opened(dark, visible=first.uuid, boards=(first, card)) == ["51000000"]


# --- slices


def slices(boards: Sequence[Board]) -> list[str]:
    nvml = SimulatedBoards(Scenario(boards=tuple(boards)))
    nvml.nvmlInit()
    board = nvml.nvmlDeviceGetHandleByIndex(0)
    parts = range(boards[0].mig_slices)
    return [nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetMigDeviceHandleByIndex(board, part)) for part in parts]


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("named", [False, True])
def test_a_board_whose_slices_are_all_ours_is_measured_and_labelled(count: int, named: bool) -> None:
    boards = (Board(mig="on", mig_slices=count),)
    visible = ",".join(slices(boards)) if named else None
    measured = Measured(boards=boards, meter=lambda nvml: NvmlMeter(nvml, visible=visible))
    measured.open()
    [device] = measured.devices
    assert device.name == "Simulated H100 80GB (whole board, in MIG mode)"
    assert device.key_facts["mig"] == "whole board"


def test_a_part_of_a_board_is_refused() -> None:
    boards = (Board(mig="on", mig_slices=7), msgspec.structs.replace(Board(), uuid=NEIGHBOUR))
    first, second, *_ = slices(boards)
    for visible, said in ((first, r"\(1 of 7 are"), (f"{first},{second}", r"\(2 of 7 are")):
        with pytest.raises(MeterUnavailable, match=f"in MIG mode: .* the whole board.*{said}"):
            opened(visible=visible, boards=boards)
    twice = ",".join([*slices(boards)[:4]] * 2)
    with pytest.raises(MeterUnavailable, match=r"\(4 of 7 are"):
        opened(visible=twice, boards=boards)
    with pytest.raises(MeterUnavailable, match="names MIG slices and whole GPUs"):
        opened(visible=f"{first},GPU-5", boards=boards)
    with pytest.raises(MeterUnavailable, match="names the MIG slice MIG-x, which NVML does not find"):
        opened(visible="MIG-x", boards=boards)
    # Two slices of three sevenths leave a seventh that may be another's.
    with pytest.raises(MeterUnavailable, match=r"in MIG mode: .*\(6 of 7 are"):
        opened(visible=None, boards=(Board(mig="on", mig_slices=2),))
    assert opened(visible=NEIGHBOUR, boards=boards) == ["51000001"]


# --- what is said of them


def test_a_board_is_described() -> None:
    measured = Measured(boards=(Board(power_limit_watts=450),))
    measured.open()
    [device] = measured.devices
    assert (device.scope, device.meter, device.provenance) == ("gpu", "nvml", "simulated")
    assert device.key_facts == {
        "model": "Simulated H100 80GB",
        "memory_gib": 80,
        "power_limit_watts": 450,
        "driver_major": "580",
        "mig": False,
    }
    assert (device.facts["power_ring"], device.facts["energy_counter"]) == (True, True)
    assert not [name for name in device.facts if name.endswith("_error")]


@pytest.mark.parametrize(
    ("board", "interval_s", "lacking"),
    [
        (Board(), 1.0, set()),
        (Board(ring=False), 0.1, {"power_ring_error"}),
        (Board(counter=False), 1.0, {"energy_counter_error"}),
        (Board(ring=False, counter=False), 0.1, {"power_ring_error", "energy_counter_error"}),
    ],
)
def test_what_a_board_lacks_is_a_fact(board: Board, interval_s: float, lacking: set[str]) -> None:
    measured = Measured(boards=(board,))
    measured.open()
    [device] = measured.devices
    assert measured.meter.poll_interval_s == interval_s
    assert {name for name in device.facts if name.endswith("_error")} == lacking
    assert all("Not Supported" in str(device.facts[name]) for name in lacking)


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (
            [Fault(kind="error", call="nvmlInit", error="DRIVER_NOT_LOADED")],
            "no NVIDIA driver answers .*Driver Not L",
        ),
        ([Fault(kind="zero", call="nvmlDeviceGetCount")], "the NVIDIA driver lists no GPU"),
        (
            [Fault(kind="error", call="nvmlDeviceGetHandleByIndex", error="GPU_IS_LOST")],
            "GPU 0: nvmlDeviceGetHandleByIndex failed: GPU is lost",
        ),
        (
            [Fault(kind="lost")],
            "GPU 0: nvmlDeviceGetHandleByIndex failed: GPU is lost",
        ),
        (
            [
                Fault(kind="zero", call=f"nvmlDeviceGet{each}")
                for each in ("TotalEnergyConsumption", "PowerUsage")
            ],
            "offers neither power samples, nor an energy counter, nor power: .*nothing was read",
        ),
    ],
)
def test_no_board_no_meter(faults: Sequence[Fault], said: str) -> None:
    with pytest.raises(MeterUnavailable, match=said):
        Measured(*faults, boards=(Board(ring=len(faults) == 1),)).open()


def test_a_disturbed_reading_at_open_is_tried_again() -> None:
    calls = ("nvmlDeviceGetSamples", "nvmlDeviceGetTotalEnergyConsumption")
    measured = Measured(*(Fault(kind="error", call=call, nth=1, error="TIMEOUT") for call in calls))
    measured.open()
    [device] = measured.devices
    assert (device.facts["power_ring"], device.facts["energy_counter"]) == (True, True)
    assert not [name for name in device.facts if name.endswith("_error")]


# --- the ring


def true_stamps(measured: Measured, board: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    """When the board really took its samples, on the monotonic clock."""
    until = (measured.now_ns - measured.began_ns) // 20_000_000
    times = measured.boards.physics[board].sample_times(np.arange(-150, until + 5, dtype=np.int64))
    return times + measured.began_ns


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.001, 2.2), min_size=3, max_size=25), st.integers(0, 1000))
def test_every_sample_is_read_once_whenever_the_ring_is_drained(pauses: list[float], seed: int) -> None:
    measured = Measured(seed=seed)
    measured.open()
    for pause in pauses:
        measured.advance(pause)
        measured.poll()
    found = measured.timeline.power(measured.devices[0].id)
    assert found is not None
    expected = true_stamps(measured)
    first = int(np.searchsorted(expected, found.t_ns[0] - 2000))
    readable = expected[first:][expected[first:] <= measured.now_ns - RING_DELAY_NS]
    assert np.abs(found.t_ns - readable).max() <= 2000


@pytest.mark.parametrize("step", [-3600, -2.5, -1, -0.9, -0.5, -0.02, 0.02, 0.3, 1, 2, 3600])
@pytest.mark.parametrize("until", [None, 8.3, 6.05])
def test_no_sample_is_misplaced_when_realtime_is_set(step: float, until: float | None) -> None:
    measured = measure(Fault(kind="clock_step", seconds=step, from_s=5.4, until_s=until))
    found = measured.timeline.power(measured.devices[0].id)
    assert found is not None
    true = true_stamps(measured)
    off = np.array([np.abs(true - t_ns).min() for t_ns in found.t_ns])
    # Where no sample of the true times is near, it must lie in a stretch that an event spoils.
    for t_ns in found.t_ns[off > 2000]:
        assert measured.timeline.events(measured.devices[0].id, int(t_ns), int(t_ns))
    # It recovers: the last two seconds are whole.
    assert np.sum(found.t_ns > measured.now_ns - 2 * SECOND) >= 95


# --- the counter


def readings(*faults: Fault, seconds: int = 8, board: Board | None = None) -> list[Reading]:
    measured = Measured(*faults, boards=(board or Board(power=WORK),))
    measured.open()
    found = []
    for _ in range(seconds):
        measured.advance(1)
        found += list(measured.meter.poll(measured.clock))
    return found


@pytest.mark.parametrize(
    "fault",
    [Fault(kind="counter_reset", from_s=3.5), Fault(kind="counter_back", millijoules=900_000, from_s=3.5)],
)
def test_a_counter_that_falls_goes_on_from_where_it_was_and_says_so(fault: Fault) -> None:
    found = readings(fault)
    values = [counter.microjoules for reading in found for counter in reading.counters]
    assert len(values) == 8
    assert values == sorted(values)
    assert [reading.fault is not None for reading in found] == [False] * 3 + [True, True] + [False] * 3
    assert "GPU-51000000-0000-0000-0000-000000000000: the energy counter went backwards" in str(
        found[3].fault
    )


@pytest.mark.parametrize("call", ["nvmlDeviceGetSamples", "nvmlDeviceGetTotalEnergyConsumption"])
def test_one_reading_that_fails_leaves_the_others(call: str) -> None:
    [*_, last] = readings(Fault(kind="error", call=call, from_s=6.5), seconds=7)
    assert str(last.fault).endswith(f"{call} failed: Unknown Error")
    assert (last.power is None) == (call == "nvmlDeviceGetSamples")
    assert len(last.counters) == (call == "nvmlDeviceGetSamples")
    assert last.conditions is not None
    assert last.conditions.temperature_celsius


# --- processes, the clock, the end


@pytest.mark.parametrize(
    ("pids", "own", "foreign"),
    [
        ((), False, ()),
        (("own",), True, ()),
        ((1,), False, (1,)),
        (("own", 1), True, (1,)),
        # One of another PID namespace may be our own: nothing is known of the board's users then.
        ((2_000_000_000,), None, ()),
        (("own", 2_000_000_000), None, ()),
    ],
)
def test_whose_processes_are_on_the_board(
    pids: Sequence[Any], own: bool | None, foreign: tuple[int, ...]
) -> None:
    assert os.getpid() != 1
    [reading] = readings(seconds=1, board=Board(processes=tuple(Process(pid=pid) for pid in pids)))
    assert reading.conditions is not None
    assert (reading.conditions.own_process, reading.conditions.foreign_pids) == (own, foreign)


def test_all_ones_are_no_reading() -> None:
    meter = NvmlMeter(SimulatedBoards(Scenario(boards=(Board(ring=False, counter=False),))))
    meter.open(Clock())
    meter._nvml = SimpleNamespace(
        NVMLError=Exception,
        nvmlDeviceGetPowerUsage=lambda _: 0xFFFFFFFF,
        nvmlDeviceGetTotalEnergyConsumption=lambda _: 2**64 - 1,
    )
    [board] = meter._boards
    with pytest.raises(MeterError, match="the power reading is 4294967 W"):
        meter._usage(board, Clock())
    with pytest.raises(MeterError, match=r"the energy counter reads .* J, which is no reading"):
        meter._counter(board, Clock())


def test_all_ones_are_no_condition_of_a_board_and_no_part_of_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    boards = SimulatedBoards(Scenario())
    for call in ("TemperatureV", "Temperature", "ClockInfo", "EnforcedPowerLimit"):
        monkeypatch.setattr(boards, f"nvmlDeviceGet{call}", lambda *_: 0xFFFFFFFF, raising=False)
    memory = SimpleNamespace(total=2**64 - 1, used=2**30)
    monkeypatch.setattr(boards, "nvmlDeviceGetMemoryInfo", lambda _: memory, raising=False)
    meter = NvmlMeter(boards)
    [device] = meter.open(Clock())
    assert (device.key_facts["power_limit_watts"], device.key_facts["memory_gib"]) == (None, None)
    [reading] = meter.poll(Clock())
    assert reading.conditions is not None
    assert (reading.conditions.temperature_celsius, reading.conditions.sm_clock_mhz) == (None, None)
    assert reading.conditions.memory_gib == 1
    memory.used = 2**64 - 1
    [reading] = meter.poll(Clock())
    assert reading.conditions is not None
    assert reading.conditions.memory_gib is None


def test_a_board_may_bring_the_realtime_that_it_stamps_by() -> None:
    # The ring already holds samples from before the boards' start.
    boards = SimulatedBoards(Scenario(faults=(Fault(kind="clock_step", seconds=3600, from_s=-60),)))
    meter = NvmlMeter(boards, provenance="simulated", clock=boards.clock)
    clock = boards.clock
    meter.open(clock)
    assert clock.tick() is None
    [reading] = meter.poll(clock)
    assert reading.power is not None
    # Near to now, not an hour away.
    assert clock.monotonic_ns() - int(reading.power.t_ns[-1]) < 60 * SECOND


def test_closing_never_raises() -> None:
    NvmlMeter().close()
    boards = SimulatedBoards(
        Scenario(faults=(Fault(kind="error", call="nvmlShutdown", error="UNINITIALIZED"),))
    )
    meter = NvmlMeter(boards)
    meter.close()
    meter.open(Clock())
    meter.close()
    meter.close()


@given(
    st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 2**32 - 1)), max_size=50), st.integers(0, 2**62)
)
def test_the_samples_of_the_ring_are_read_as_the_driver_gives_them(
    samples: list[tuple[int, int]], after: int
) -> None:
    given_ = (pynvml.c_nvmlSample_t * len(samples))()
    for one, (t_us, milliwatts) in zip(given_, samples, strict=True):
        one.timeStamp = t_us
        # What the driver leaves in the upper half is no part of the value.
        one.sampleValue.ullVal = 2**63 + milliwatts
    nvml = SimpleNamespace(
        NVML_TOTAL_POWER_SAMPLES=0,
        NVMLError=pynvml.NVMLError,
        nvmlDeviceGetSamples=lambda *_: (0, given_[0 : len(samples)]),
    )
    wanted = [(one.timeStamp, one.sampleValue.uiVal) for one in given_ if one.timeStamp > after]
    assert [tuple(row) for row in PowerRing(nvml, None, "GPU-1").since(after).tolist()] == wanted
