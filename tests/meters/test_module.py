"""Grace Hopper: the module of a GPU as a device of its own, absent where there is none, added to nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pytest_tokenpower.analysis.calibration import track_of
from pytest_tokenpower.analysis.rounds import round_records
from pytest_tokenpower.core.records import RoundRecord
from pytest_tokenpower.core.types import Scope
from pytest_tokenpower.core.windows import RoundWindow
from pytest_tokenpower.errors import MeterUnavailable
from pytest_tokenpower.meters.collector import Collector
from pytest_tokenpower.meters.scopes import choose
from pytest_tokenpower.meters.simulation.scenario import Board, Fault, Process, numbered_boards
from pytest_tokenpower.meters.types import Device
from pytest_tokenpower.runner.telemetry import TelemetrySession
from tests.support.projects import Project
from tests.support.virtual import SECOND, WORK, Measured, measure, rounds_of

EXTRA = 171.0
"""What a Grace CPU and its memory draw beside the GPU."""

GRACE = Board(name="Simulated GH200 480GB", power=WORK, module_extra_watts=EXTRA, ring_noise_share=0.002)


def of_device(run: Measured, at: int, windows: Sequence[RoundWindow]) -> tuple[RoundRecord, ...]:
    return round_records(run.timeline, [run.devices[at]], windows)


def truth(run: Measured, at: int, window: RoundWindow) -> float:
    """Return the exact energy of the GPU (0) or of its module (1)."""
    seconds = (window.end_ns - window.start_ns) / SECOND
    return run.boards.joules(0, window.start_ns, window.end_ns) + (EXTRA * seconds if at else 0.0)


def wrong(run: Measured, at: int, windows: Sequence[RoundWindow]) -> list[str]:
    """Return rounds of a device that are neither right nor invalid with a reason that names it."""
    found = []
    for window, record in zip(windows, of_device(run, at, windows), strict=True):
        exact = truth(run, at, window)
        if record.reasons:
            found += [reason for reason in record.reasons if not reason.startswith("GPU-5")]
        elif record.joules is None or record.stderr_joules is None:
            found.append("no figure and no reason")
        elif abs(record.joules - exact) > 4 * record.stderr_joules + 0.005 * exact:
            found.append(f"{record.joules:.1f} ± {record.stderr_joules:.1f} J, truly {exact:.1f}")
    return found


# --- who is there


def test_a_module_is_a_device_beside_its_gpu() -> None:
    run = measure(boards=[GRACE], seconds=2)
    gpu, module = run.devices
    assert (gpu.scope, module.scope) == ("gpu", "module")
    assert module.id == f"{gpu.id}/module"
    assert (module.gpu_id, gpu.gpu_id) == (gpu.id, gpu.id)
    assert (module.name, module.meter, module.provenance) == (gpu.name, "nvml", "simulated")
    # The counter of such a board counts the module.
    assert (gpu.facts["energy_counter"], module.facts["energy_counter"]) == (False, True)
    assert gpu.facts["frozen_after_ms"] == 1000
    assert [device.facts["power_ring"] for device in run.devices] == [True, True]


@pytest.mark.parametrize(
    ("board", "said"),
    [
        (Board(power=WORK), None),
        (Board(power=WORK, ring=False), None),
        # Two GPUs of a Blackwell module both report all of it.
        (replace(GRACE, compute_capability=(10, 0)), "another GPU of the same module may report"),
    ],
    ids=["H100", "without a ring", "Blackwell"],
)
def test_where_there_is_no_module_of_its_own_it_is_absent_and_not_zero(
    board: Board, said: str | None
) -> None:
    run = measure(boards=[board], seconds=2)
    [device] = run.devices
    assert device.scope == "gpu"
    assert (said is None and "not_counted" not in device.facts) or str(said) in str(
        device.facts["not_counted"]
    )
    assert device.facts["energy_counter"] is True


@pytest.mark.parametrize("call", ["nvmlDeviceGetSamples", "nvmlDeviceGetFieldValues"])
def test_a_disturbed_reading_at_open_leaves_the_module_where_it_is(call: str) -> None:
    run = Measured(Fault(kind="error", call=call, nth=1, error="TIMEOUT"), boards=[GRACE])
    run.open()
    assert [device.scope for device in run.devices] == ["gpu", "module"]


# --- its energy


RUN = measure(boards=[GRACE], seconds=12)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.9, 8), st.floats(0.3, 3.5))
def test_gpu_and_module_each_have_their_own_joules(start_s: float, seconds: float) -> None:
    windows = [RUN.window(start_s, seconds)]
    for at in (0, 1):
        [record] = of_device(RUN, at, windows)
        assert record.reasons == ()
        assert record.joules is not None
        assert record.temperature_celsius is not None
    assert wrong(RUN, 0, windows) + wrong(RUN, 1, windows) == []


@pytest.mark.parametrize(
    ("lacking", "methods"),
    [
        ({"ring": False}, ("power polling", "energy counter")),
        ({"counter": False}, ("power ring", "power ring")),
        ({"ring": False, "counter": False}, ("power polling", "power polling")),
    ],
    ids=["no ring", "no counter", "neither"],
)
def test_a_module_without_a_ring_is_read_as_it_can_be(
    lacking: dict[str, bool], methods: tuple[str, str]
) -> None:
    board = replace(GRACE, **lacking)
    run = measure(boards=[board], seconds=40)
    tracks = [track_of(run.timeline, device) for device in run.devices]
    assert tuple(track.method for track in tracks if track is not None) == methods
    windows = [run.window(5, 30)]
    for at in (0, 1):
        [record] = of_device(run, at, windows)
        assert record.reasons == ()
    assert wrong(run, 0, windows) + wrong(run, 1, windows) == []
    # Too short for what measures it is invalid, and not small.
    [short] = of_device(run, 1, [run.window(8, 0.04)])
    assert short.reasons or methods[1] == "power ring"


def test_a_counter_that_is_the_gpus_after_all_makes_the_module_invalid_and_the_gpu_right() -> None:
    run = measure(boards=[replace(GRACE, counter_of_module=False)], seconds=12)
    windows = rounds_of(run)
    assert wrong(run, 0, windows) == []
    assert not any(record.reasons for record in of_device(run, 0, windows))
    for record in of_device(run, 1, windows):
        assert any(
            "/module: energy counter and power ring disagree by -" in reason for reason in record.reasons
        )


@pytest.mark.parametrize(
    ("fault", "spoils"),
    [
        (Fault(kind="error", call="nvmlDeviceGetSamples", from_s=4, until_s=7), {0, 1}),
        (Fault(kind="error", call="nvmlDeviceGetTotalEnergyConsumption", from_s=4, until_s=7), {1}),
        (Fault(kind="error", call="nvmlDeviceGetFieldValues", from_s=4, until_s=7), set[int]()),
        (Fault(kind="zero", call="nvmlDeviceGetSamples", from_s=4, until_s=7), {0, 1}),
        (Fault(kind="zero", call="nvmlDeviceGetTotalEnergyConsumption", from_s=4, until_s=7), {1}),
        (Fault(kind="counter_reset", from_s=5), {1}),
        (Fault(kind="counter_scale", from_s=5), {1}),
        (Fault(kind="freeze", what="ring", from_s=4, until_s=7), {0, 1}),
        (Fault(kind="ring_gap", from_s=5, until_s=5.4), {0, 1}),
        (Fault(kind="lost", from_s=8), {0, 1}),
        (Fault(kind="clock_step", seconds=2, from_s=6), {0, 1}),
        (Fault(kind="process", pid=1, from_s=6), {0, 1}),
    ],
    ids=lambda value: f"{value.kind} {value.call}" if isinstance(value, Fault) else "",
)
def test_a_fault_spoils_what_it_touches_and_makes_nothing_wrong(fault: Fault, spoils: set[int]) -> None:
    run = measure(fault, boards=[GRACE], seconds=12)
    windows = rounds_of(run)
    assert wrong(run, 0, windows) + wrong(run, 1, windows) == []
    flagged = {at for at in (0, 1) if any(record.reasons for record in of_device(run, at, windows))}
    assert flagged == spoils


# --- whose figure it is


def device(scope: Scope, number: int = 0) -> Device:
    gpu = f"GPU-{number}0000000-aaaa-0000-0000-000000000000"
    if scope == "module":
        return Device(f"{gpu}/module", "module", "GH200", "nvml", "simulated", facts={"gpu": gpu})
    return Device(gpu if scope == "gpu" else scope, scope, scope, "nvml", "simulated")


@pytest.mark.parametrize(
    ("devices", "asked", "label", "figure"),
    [
        ([("gpu", 0), ("module", 0)], None, "gpu", ["gpu"]),
        ([("gpu", 0), ("module", 0)], "module", "module", ["module"]),
        ([("gpu", 0), ("module", 0)], "node", "module, without other", ["module"]),
        ([("gpu", 0), ("module", 0), ("cpu", 0), ("dram", 0)], "node", "module, without other", ["module"]),
        ([("gpu", 0), ("module", 0), ("node", 0)], "node", "node", ["node"]),
        # A GPU that is on no module would be left out.
        (
            [("gpu", 0), ("module", 0), ("gpu", 1), ("cpu", 0)],
            "node",
            "gpu+cpu, without dram and other",
            ["gpu", "gpu", "cpu"],
        ),
    ],
)
def test_a_module_is_never_added_to_its_parts(
    devices: list[tuple[Scope, int]], asked: Scope | None, label: str, figure: list[str]
) -> None:
    chosen = choose([device(*each) for each in devices], asked)
    assert chosen.label == label
    assert [each.scope for each in chosen.devices] == figure


def test_a_board_without_a_module_has_none_to_ask_for() -> None:
    with pytest.raises(MeterUnavailable, match=r"--energy-scope=module: .* only gpu; .*Grace Hopper"):
        choose([device("gpu")], "module")


def test_the_module_of_a_gpu_that_the_engine_does_not_use_is_not_ours() -> None:
    scopes: tuple[Scope, Scope] = ("gpu", "module")
    devices = [device(scope, number) for number in (1, 2) for scope in scopes]
    for asked in scopes:
        telemetry = TelemetrySession(Collector(()), devices, asked)
        mine = telemetry.on_gpus([devices[2].id])
        assert {each.gpu_id for each in mine.devices_in_use(())} == {devices[2].id}
        assert {each.gpu_id for each in mine.devices_of_key(())} == {devices[2].id}
        window = RoundWindow(0, 1, RUN.window(1, 1).tokens, devices=(mine.devices_in_use(())[0].id,))
        assert {each.gpu_id for each in telemetry.devices_in_use([window])} == {devices[2].id}


def test_the_module_of_an_idle_gpu_is_not_ours() -> None:
    busy, idle = numbered_boards(2, GRACE)
    run = measure(boards=[replace(busy, processes=(Process(),)), idle], seconds=3)
    telemetry = TelemetrySession(Collector(()), run.devices, "module")
    telemetry.collector.timeline = run.timeline
    assert [each.id for each in telemetry.devices_in_use([run.window(1, 1)])] == [f"{busy.uuid}/module"]


TESTS = "@quick\ndef test_it(energy):\n    energy(generate, 0.1)\n"


@pytest.fixture
def grace(project: Project) -> Project:
    """Return a project on a simulated Grace Hopper: 300 W of GPU, 450 W of module."""
    board = {"name": "Simulated GH200", "module_extra_watts": 150, "ring_noise_share": 0.002}
    project.file("grace.json", json.dumps({"boards": [board], "clock": "virtual"}))
    project.tests(TESTS)
    return project


@pytest.mark.parametrize(
    ("scope", "label", "watts", "beside"),
    [
        ("", "gpu", 300, "module 4[45]."),
        ("module", "module", 450, "gpu [23][09]."),
        ("node", "module, without other", 450, "gpu [23][09]."),
    ],
)
def test_the_figure_of_each_scope(grace: Project, scope: str, label: str, watts: float, beside: str) -> None:
    asked = [f"--energy-scope={scope}"] if scope else []
    result, run = grace.measure("--energy-source=simulated:grace.json", *asked)
    result.assert_outcomes(passed=1)
    [measured] = run.measurements
    assert (measured.scope, measured.key["scope"]) == (label, label)
    assert measured.figures["mean_watts"].value == pytest.approx(watts, rel=0.03)
    assert measured.key["gpu.name"] == "Simulated GH200"
    assert ("module.name" in measured.key) is (label != "gpu")
    result.stdout.fnmatch_lines([f"test_it: also measured: {beside}* mJ/token*"])
    gpu, module = (
        measured.rounds[0].device_joules[name] or math.nan
        for name in sorted(measured.rounds[0].device_joules)
    )
    assert module / gpu == pytest.approx(1.5, rel=0.03)


def test_a_recorded_module_is_replayed(grace: Project) -> None:
    source = "--energy-source=simulated:grace.json"
    _, live = grace.measure(source, "--energy-scope=module", "--energy-record=run.jsonl")
    _, again = grace.measure("--energy-scope=module", "--energy-source=replay:run.jsonl")
    [before], [after] = live.measurements, again.measurements
    assert after.scope == "module"
    assert [one.joules for one in after.rounds] == pytest.approx(
        [one.joules for one in before.rounds], rel=0.01
    )
