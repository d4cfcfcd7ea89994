"""Scopes: whose joules make the figure, what stands beside it, and what a slow meter of the node can say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_tokenpower.analysis.calibration import track_of
from pytest_tokenpower.analysis.other_scopes import OtherScopes, other_scopes, whole
from pytest_tokenpower.analysis.rounds import round_records
from pytest_tokenpower.analysis.slow_meters import shortest_window_ns
from pytest_tokenpower.core.records import MeasurementRecord, RunRecord, decode_run
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.types import Provenance, Scope
from pytest_tokenpower.core.windows import Latency, PhaseWindow, RoundWindow
from pytest_tokenpower.errors import MeterError, MeterUnavailable
from pytest_tokenpower.meters.adapters.nvml.meter import NvmlMeter
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.collector import Collector
from pytest_tokenpower.meters.scopes import SCOPES, choose
from pytest_tokenpower.meters.simulation.library import SimulatedBoards
from pytest_tokenpower.meters.simulation.scenario import Scenario
from pytest_tokenpower.meters.simulation.virtual_time import VIRTUAL_TIME, VirtualTime
from pytest_tokenpower.meters.timeline import Event, Timeline
from pytest_tokenpower.meters.types import CounterReading, Device, Meter, PowerSamples, Reading
from pytest_tokenpower.reporting.terminal import absences, also_measured
from tests.support.projects import Project

S = 1_000_000_000

Power = float | Callable[[float], float]
"""Watts, of time in seconds."""

BMC = {"resolution_ms": 60_000.0}


def device(
    scope: Scope, number: int = 0, *, slow: bool = False, provenance: Provenance = "measured"
) -> Device:
    return Device(f"{scope}{number}", scope, scope, "fake", provenance, facts=BMC if slow else {})


def rounds(count: int, seconds: float = 10.0, pause: float = 0.0, start: float = 100.0) -> list[RoundWindow]:
    """Return rounds of 1000 generated tokens, one after the other."""
    begins = [start + at * (seconds + pause) for at in range(count)]
    return [
        RoundWindow(round(begin * S), round((begin + seconds) * S), TokenCount(10, 1000)) for begin in begins
    ]


def timeline(watts: Mapping[str, Power], devices: Sequence[Device]) -> Timeline:
    """600 s of each device: one point a second of a slow one, a counter read ten times a second of a quick one."""
    made = Timeline()
    for each in devices:
        power = watts[each.id]
        made.add_device(each)
        if each.slow:
            t = np.arange(0, 600, 1.0)
            values = np.array([power(at) if callable(power) else power for at in t])
            samples = PowerSamples((t * S).astype(np.int64), (values * 1000).astype(np.int64), held=False)
            made.append(Reading(each.id, power=samples))
        else:
            assert not callable(power)
            reads = [
                CounterReading(at * S // 10, at * S // 10, round(power * at * 1e5)) for at in range(0, 6000)
            ]
            made.append(Reading(each.id, counters=reads))
    return made


def known(result: OtherScopes) -> dict[str, float]:
    return {each.scope: each.joules_per_token.value for each in result.scopes if each.joules_per_token}


def absent(result: OtherScopes) -> dict[str, str]:
    return {each.scope: each.reason for each in result.scopes if each.joules_per_token is None}


def over(
    devices: Sequence[Device],
    scope: Scope | None,
    watts: Mapping[str, Power],
    windows: Sequence[RoundWindow],
) -> tuple[OtherScopes, Timeline]:
    chosen = choose(devices, scope)
    made = timeline(watts, devices)
    records = round_records(made, chosen.devices, windows)
    return other_scopes(made, chosen.devices, chosen.others, windows, records), made


# Which devices make the figure.


@pytest.mark.parametrize(
    ("scopes", "asked", "label", "figure"),
    [
        (("gpu",), None, "gpu", ("gpu",)),
        (("cpu", "gpu"), None, "gpu", ("gpu",)),
        (("cpu", "dram"), None, "cpu", ("cpu",)),
        (("node",), None, "node", ("node",)),
        (("gpu", "cpu", "dram", "node"), None, "gpu", ("gpu",)),
        (("gpu", "cpu", "dram", "node"), "dram", "dram", ("dram",)),
        (("gpu", "cpu", "dram", "node"), "node", "node", ("node",)),
        (("gpu", "cpu", "dram"), "node", "gpu+cpu+dram, without other", ("gpu", "cpu", "dram")),
        (("gpu", "cpu"), "node", "gpu+cpu, without dram and other", ("gpu", "cpu")),
        (("cpu", "dram", "rack"), "node", "cpu+dram, without gpu and other", ("cpu", "dram")),
        (("rack",), None, "rack", ("rack",)),
    ],
)
def test_the_scope_says_whose_joules_make_the_figure(
    scopes: Sequence[Scope], asked: Scope | None, label: str, figure: Sequence[Scope]
) -> None:
    devices = [device(scope) for scope in scopes]
    chosen = choose(devices, asked)
    assert chosen.label == label
    assert [each.scope for each in chosen.devices] == list(figure)
    assert sorted(each.id for each in (*chosen.devices, *chosen.others)) == sorted(
        each.id for each in devices
    )


@pytest.mark.parametrize(
    ("scopes", "asked"),
    [(("gpu",), "cpu"), (("gpu",), "node"), (("cpu",), "node"), (("cpu",), "gpu"), (("node",), "gpu")],
)
def test_no_figure_is_called_what_it_is_not(scopes: Sequence[Scope], asked: Scope) -> None:
    with pytest.raises(
        MeterUnavailable, match=f"--energy-scope={asked}: no meter .* only {', '.join(scopes)}"
    ):
        choose([device(scope) for scope in scopes], asked)


# Sums, and absent parts.


WATTS = st.floats(20, 900)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(
    gpu=WATTS, second=WATTS, cpu=WATTS, dram=WATTS, more=WATTS, asked=st.sampled_from([None, "gpu", "cpu"])
)
def test_scopes_stand_beside_each_other_and_the_rest_is_the_node_less_its_parts(
    gpu: float, second: float, cpu: float, dram: float, more: float, asked: Scope | None
) -> None:
    devices = [device("gpu", 0), device("gpu", 1), device("cpu"), device("dram"), device("node")]
    watts = {
        "gpu0": gpu,
        "gpu1": second,
        "cpu0": cpu,
        "dram0": dram,
    }
    sums = {
        "gpu": gpu + second,
        "cpu": cpu,
        "dram": dram,
        "node": gpu + second + cpu + dram + more,
        "other": more,
    }
    watts["node0"] = sums["node"]
    windows = rounds(4)
    result, _ = over(devices, asked, watts, windows)
    figure = asked or "gpu"
    for one in result.rounds:
        assert not one.reasons
        assert one.joules == pytest.approx(10 * sums[figure], rel=1e-6)
        assert one.device_joules == pytest.approx({name: 10 * w for name, w in watts.items()}, rel=1e-6)
    found = known(result)
    assert set(found) == sums.keys() - {figure}
    for name, value in found.items():
        assert value == pytest.approx(sums[name] / 100, rel=1e-5)
    assert not absent(result)


@pytest.mark.parametrize("missing", ["gpu", "cpu", "dram"])
def test_the_rest_of_a_node_is_absent_where_a_part_is(missing: Scope) -> None:
    parts: list[Scope] = [scope for scope in ("gpu", "cpu", "dram") if scope != missing]
    devices = [*(device(scope) for scope in parts), device("node")]
    result, _ = over(devices, None, {each.id: 100.0 for each in devices}, rounds(3))
    assert set(known(result)) == {each.scope for each in devices[1:]}


def test_a_node_that_reads_less_than_its_parts_has_no_rest() -> None:
    devices = [device(scope) for scope in ("gpu", "cpu", "dram", "node")]
    result, _ = over(devices, None, {"gpu0": 300.0, "cpu0": 100.0, "dram0": 10.0, "node0": 350.0}, rounds(3))
    assert "less than its parts together: one of the meters is wrong" in absent(result)["other"]
    assert known(result)["node"] == pytest.approx(3.5)


def test_a_modelled_scope_beside_a_measured_one_says_so_and_makes_no_rest() -> None:
    devices = [device("gpu"), device("cpu", provenance="modelled"), device("dram"), device("node")]
    result, _ = over(devices, None, {each.id: 50.0 * (at + 1) for at, each in enumerate(devices)}, rounds(3))
    assert [(each.scope, each.provenance) for each in result.scopes] == [
        ("cpu", "modelled"),
        ("dram", "measured"),
        ("node", "measured"),
    ]
    assert len(known(result)) == 3


def test_a_side_meter_that_fails_is_a_note_and_the_figure_stands() -> None:
    devices = [device("gpu"), device("cpu"), device("dram"), device("node")]
    chosen = choose(devices)
    made = timeline({"gpu0": 400.0, "cpu0": 90.0, "dram0": 20.0, "node0": 600.0}, devices)
    made.note(Event(105 * S, 125 * S, "meter failed", "RAPL: the counter was reset", "cpu0"))
    windows = rounds(4)
    records = round_records(made, chosen.devices, windows)
    result = other_scopes(made, chosen.devices, chosen.others, windows, records)
    assert [one.reasons for one in result.rounds] == [()] * 4
    assert [one.device_joules["cpu0"] for one in result.rounds] == [None] * 3 + [pytest.approx(900)]
    assert "RAPL: the counter was reset (4 of 4 rounds)" not in str(result.scopes)
    assert "RAPL: the counter was reset (3 of 4 rounds)" in absent(result)["cpu"]
    assert "RAPL: the counter was reset" in absent(result)["other"]
    assert set(known(result)) == {"dram", "node"}


# A slow meter.


def test_a_slow_meter_is_taken_over_the_whole_measurement() -> None:
    devices = [device("gpu"), device("cpu"), device("dram"), device("node", slow=True)]
    windows = rounds(6, seconds=20, pause=5)
    watts = {
        "gpu0": 400.0,
        "cpu0": 90.0,
        "dram0": 20.0,
        "node0": 700.0,
    }
    result, _ = over(devices, None, watts, windows)
    # 145 s from the first round's start to the last one's end, of which 120 are in rounds, for 6000 tokens.
    scopes = {each.scope: each for each in result.scopes}
    node = scopes["node"].joules_per_token
    assert node is not None
    assert node.value == pytest.approx(700 * 145 / 6000, rel=1e-3)
    assert 0 < node.stderr < 0.02 * node.value
    assert (scopes["node"].span_seconds, scopes["node"].share_in_rounds) == (145.0, 0.8276)
    assert known(result)["other"] == pytest.approx(190 * 145 / 6000, rel=1e-3)
    assert known(result)["cpu"] == pytest.approx(1.8)
    assert all("node0" not in one.device_joules for one in result.rounds)


def test_a_measurement_too_short_for_a_slow_meter_has_none_of_it() -> None:
    devices = [device("gpu"), device("node", slow=True)]
    result, _ = over(devices, None, {"gpu0": 400.0, "node0": 700.0}, rounds(5))
    assert not known(result)
    assert (
        "the window of 50 s is too short for the meter fake, whose readings may be 60 s old: it takes 120 s"
        in absent(result)["node"]
    )


def test_a_slow_meter_gives_no_phases_and_no_short_rounds() -> None:
    node = device("node", slow=True)
    made = timeline({"node0": 700.0}, [node])
    phases = (PhaseWindow("prefill", 100 * S, 110 * S), PhaseWindow("decode", 110 * S, 230 * S))
    long = replace(rounds(1, seconds=130)[0], phases=phases)
    short = rounds(1, seconds=30, start=300)[0]
    first, second = round_records(made, [node], [long, short])
    assert not first.reasons
    assert first.phases == {}
    assert first.joules == pytest.approx(91_000, rel=1e-6)
    assert second.reasons == (
        "node0: the window of 30 s is too short for the meter fake, whose readings may be 60 s old: it takes 120 s",
    )
    track = track_of(made, node)
    assert track is not None
    assert 120 * S < shortest_window_ns(track, node) < 140 * S


@settings(deadline=None, max_examples=60)
@given(
    age=st.floats(0, 60),
    warm=st.floats(0, 60),
    seconds=st.floats(120, 300),
    idle=st.floats(100, 600),
    second=st.floats(200, 900),
    share=st.floats(0, 1),
)
def test_a_slow_meter_is_right_within_its_error_or_says_that_it_is_not(
    age: float, warm: float, seconds: float, idle: float, second: float, share: float
) -> None:
    """Idle, 700 W from ``warm`` before the window on, other work from some time in it on, all told ``age`` late.

    What changes in the last minute may not be told in time: there the work must be the same, as documented.
    """
    node = device("node", slow=True)
    turn = 100 + share * (seconds - 65)

    def told(at: float) -> float:
        at -= age
        return idle if at < 100 - warm else 700 if at < turn else second

    made = timeline({"node0": told}, [node])
    (one,) = round_records(made, [node], rounds(1, seconds=seconds))
    true = 700 * (turn - 100) + second * (100 + seconds - turn)
    if one.reasons:
        assert "are not steady over the window" in one.reasons[0]
        return
    assert one.joules is not None
    assert one.stderr_joules is not None
    # One reading a second places each step to within a second.
    assert abs(one.joules - true) <= 2.5 * one.stderr_joules + abs(second - 700) + 700 - idle


def test_even_work_is_right_however_late_the_readings_are() -> None:
    node = device("node", slow=True)
    made = timeline({"node0": lambda at: 700.0 if at - 60 >= 100 else 400.0}, [node])
    (one,) = round_records(made, [node], rounds(1, seconds=300))
    assert one.joules == pytest.approx(700 * 300, rel=1e-3)
    assert one.joules is not None
    assert one.stderr_joules is not None
    assert 0.02 < one.stderr_joules / one.joules < 0.06


def test_steady_readings_leave_little_error() -> None:
    node = device("node", slow=True)
    made = timeline({"node0": lambda at: 700 + 20 * math.sin(at)}, [node])
    (one,) = round_records(made, [node], rounds(1, seconds=126))
    assert one.joules == pytest.approx(700 * 126, rel=5e-3)
    assert one.stderr_joules is not None
    assert one.stderr_joules < 0.006 * 700 * 126


def test_a_window_over_all_rounds() -> None:
    one = whole(rounds(3, seconds=2, pause=1))
    assert (one.start_ns, one.end_ns, one.repeats) == (100 * S, 108 * S, 3)
    assert one.tokens == TokenCount(30, 3000, 3)


def test_a_window_over_all_rounds_has_all_that_is_known_of_them() -> None:
    waited = Latency(0.5, 0.01)
    first, second, third = (replace(each, latencies=(waited,), devices=("GPU-1",)) for each in rounds(3))
    second = replace(second, reasons=("others used the server",))
    one = whole([first, second, replace(third, reasons=(*second.reasons, "it was restarted"))])
    assert one.reasons == ("others used the server", "it was restarted")
    assert one.latencies == (waited,) * 3
    assert one.devices == ("GPU-1",)
    assert whole([first, replace(second, latencies=())]).latencies == ()


def test_work_for_others_makes_a_slow_figure_invalid() -> None:
    node = device("node", slow=True)
    made = timeline({"node0": lambda at: 700.0}, [node])
    windows = rounds(3, seconds=60)
    windows[1] = replace(windows[1], reasons=("others used the server",))
    [one] = round_records(made, [node], [whole(windows)])
    assert one.reasons == ("others used the server",)


# Readings that come late.


class Late:
    """A scraped meter: each poll gives what is at least ``late_s`` old."""

    name = "late"
    poll_interval_s = 0.02

    def __init__(self, late_s: float, latency_s: float) -> None:
        self.clock = VirtualTime().clock
        self.late_s, self.latency_s = late_s, latency_s

    def open(self, clock: Clock) -> Sequence[Device]:
        return [Device("late", "rack", "PDU", self.name, "measured", latency_s=self.latency_s)]

    def poll(self, clock: Clock) -> Sequence[Reading]:
        at_ns = clock.monotonic_ns() - round(self.late_s * S)
        return [Reading("late", counters=(CounterReading(at_ns, at_ns, at_ns // 1000),))]

    def close(self) -> None: ...


@pytest.mark.parametrize(("latency_s", "arrives"), [(0.0, False), (20.0, True)])
def test_late_readings_are_waited_for_as_long_as_the_device_says(latency_s: float, arrives: bool) -> None:
    collector = Collector([Late(1.0, latency_s)])
    collector.start()
    until_ns = collector.clock.monotonic_ns()
    collector.flush(until_ns, timeout_s=0.1)
    newest_ns = collector.timeline.newest_ns("late")
    events = collector.timeline.events("late", until_ns, until_ns)
    collector.stop()
    assert newest_ns is not None
    assert (newest_ns >= until_ns) is arrives
    assert [event.reason for event in events] == (
        [] if arrives else ["late: the meter late gave no newer reading for 0 s"]
    )


def test_a_device_that_is_not_asked_for_is_not_waited_for() -> None:
    collector = Collector([Late(3600.0, 0.0)])
    devices = collector.start()
    until_ns = collector.clock.monotonic_ns()
    collector.flush(until_ns, timeout_s=0.1, devices=[])
    assert not collector.timeline.events("late", until_ns, until_ns)
    collector.flush(until_ns, timeout_s=0.1, devices=devices)
    assert collector.timeline.events("late", until_ns, until_ns)
    collector.stop()


# Through pytest.


class Fake:
    """A meter of one device that draws the same power all the time; it may fail, and it may be slow."""

    poll_interval_s = 0.05
    clock = VIRTUAL_TIME.clock

    def __init__(
        self, scope: Scope, watts: float, *, resolution_ms: float = 100.0, fails: bool = False
    ) -> None:
        self.name = f"fake-{scope}"
        self._device = Device(
            f"{scope}0",
            scope,
            f"Fake {scope}",
            self.name,
            "simulated",
            facts={"resolution_ms": resolution_ms},
        )
        self._watts, self._fails, self._polls = watts, fails, 0

    def open(self, clock: Clock) -> Sequence[Device]:
        return [self._device]

    def poll(self, clock: Clock) -> Sequence[Reading]:
        self._polls += 1
        if self._fails and self._polls > 2:
            raise MeterError(f"{self.name} fell silent")
        now_ns = clock.monotonic_ns()
        if self._device.slow:
            power = PowerSamples(np.array([now_ns]), np.array([round(self._watts * 1000)]), held=False)
            return [Reading(self._device.id, power=power)]
        counter = CounterReading(now_ns, now_ns, round(self._watts * now_ns / 1000))
        return [Reading(self._device.id, counters=(counter,))]

    def close(self) -> None: ...


class Lab:
    """The plugin of a project whose --energy-source=lab is the simulated board and fakes beside it."""

    def __init__(self, *fakes: Fake, gpu: bool = True) -> None:
        self.fakes, self.gpu = fakes, gpu

    def pytest_tokenpower_meters(self, source: str) -> Sequence[Meter] | None:
        if source != "lab":
            return None
        boards = SimulatedBoards(Scenario(clock="virtual"))
        gpu = [NvmlMeter(boards, provenance="simulated", clock=boards.clock)] if self.gpu else []
        return [*gpu, *self.fakes]


QUICK = "@quick\ndef test_it(energy):\n    energy(generate, seconds=0.2)\n"


def measure(project: Project, lab: Lab, *arguments: str) -> tuple[pytest.RunResult, RunRecord]:
    path = project.path / "run.json"
    result = project.pytester.runpytest_inprocess(
        "--energy-source=lab", f"--energy-json={path}", *arguments, plugins=[lab]
    )
    return result, decode_run(path.read_bytes(), source=str(path))


def test_other_scopes_are_shown_beside_the_figure(project: Project) -> None:
    project.tests(QUICK)
    result, run = measure(project, Lab(Fake("cpu", 60), Fake("dram", 8), Fake("node", 500)))
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["*power ring (gpu energy)", "test_it: also measured: cpu * mJ/token*, node * mJ/token*"]
    )
    (measured,) = run.measurements
    assert measured.scope == measured.key["scope"] == "gpu"
    assert not any(field.startswith(("cpu", "dram", "node")) for field in measured.key)
    for one in measured.rounds:
        assert one.joules is not None
        assert one.joules == one.device_joules["GPU-51000000-0000-0000-0000-000000000000"]
        assert one.device_joules["cpu0"] == pytest.approx(60 * one.seconds, rel=1e-3)
    others = {
        each.scope: each.joules_per_token.value for each in measured.other_scopes if each.joules_per_token
    }
    gpu = measured.figures["joules_per_token"].value
    assert others["other"] == pytest.approx(
        others["node"] - gpu - others["cpu"] - others["dram"],
        rel=0.02,
    )


@pytest.mark.parametrize(
    ("counts", "figure", "unit"),
    [
        ("prompt=400, generated=0, responses=4", "joules_per_prompt_token", "J/prompt token"),
        ("prompt=0, generated=0, responses=4", "joules_per_response", "J/response"),
    ],
)
def test_other_scopes_have_the_figure_s_denominator(
    project: Project, counts: str, figure: str, unit: str
) -> None:
    project.tests(f"@quick\ndef test_it(energy):\n    energy(generate, seconds=0.2, {counts})\n")
    result, run = measure(project, Lab(Fake("cpu", 60)))
    result.stdout.fnmatch_lines([f"test_it: also measured: cpu *{unit}*"])
    (measured,) = run.measurements
    (cpu,) = (each for each in measured.other_scopes if each.scope == "cpu")
    assert cpu.joules_per_token is None
    # 60 W of the CPU beside the 300 W of the board.
    assert cpu.figures[figure].value == pytest.approx(measured.figures[figure].value / 5, rel=0.05)


@pytest.mark.parametrize(
    ("scope", "label"), [("cpu", "cpu"), ("node", "gpu+cpu, without dram and other"), ("gpu", "gpu")]
)
def test_the_scope_is_in_the_key_and_with_it_the_gpu(project: Project, scope: str, label: str) -> None:
    project.tests(QUICK)
    result, run = measure(project, Lab(Fake("cpu", 60)), f"--energy-scope={scope}")
    result.assert_outcomes(passed=1)
    (measured,) = run.measurements
    assert measured.scope == measured.key["scope"] == label
    assert measured.key["gpu.name"] == "Simulated H100 80GB"
    assert ("cpu.name" in measured.key) is (scope != "gpu")
    for one in measured.rounds:
        counted = {"cpu": ["cpu0"], "gpu": ["GPU-51000000-0000-0000-0000-000000000000"]}.get(
            scope, list(one.device_joules)
        )
        assert one.joules == pytest.approx(sum(one.device_joules[name] or 0 for name in counted))


def test_figures_of_two_scopes_are_not_compared(project: Project) -> None:
    project.tests(QUICK)
    measure(project, Lab(Fake("cpu", 60)), "--energy-save=before")
    result, run = measure(project, Lab(Fake("cpu", 60)), "--energy-baseline=before", "--energy-scope=node")
    assert [verdict.kind for verdict in run.measurements[0].verdicts] == ["no baseline"]
    result.stdout.fnmatch_lines(["*scope: gpu+cpu, without dram and other here, gpu there*"])
    _, run = measure(project, Lab(), "--energy-baseline=before")
    assert run.measurements[0].verdicts[0].kind != "no baseline"


def test_a_slow_meter_of_the_node_measures_all_rounds_as_one(project: Project) -> None:
    project.tests(QUICK)
    lab = Lab(Fake("node", 500, resolution_ms=2100.0), Fake("cpu", 60))
    result, run = measure(project, lab, "--energy-scope=node")
    result.assert_outcomes(passed=1)
    (measured,) = run.measurements
    assert (measured.scope, measured.method) == ("node", "power polling")
    (one,) = measured.rounds
    assert one.seconds > 4.2
    assert one.repeats > 10
    assert one.joules == pytest.approx(500 * one.seconds, rel=1e-3)
    assert measured.figures["joules_per_token"].value == pytest.approx(
        500 * one.seconds / one.generated_tokens, rel=1e-3
    )
    assert {"gpu", "cpu"} <= {each.scope for each in measured.other_scopes if each.joules_per_token}


def test_blocks_of_a_slow_meter_are_one_measurement(project: Project) -> None:
    project.tests(
        "def test_it(energy):\n"
        "    for _ in range(6):\n"
        "        with energy.measure() as window:\n"
        "            window.count(generate(0.8))\n"
    )
    lab = Lab(Fake("node", 500, resolution_ms=2100.0), gpu=False)
    result, run = measure(project, lab)
    result.assert_outcomes(passed=1)
    (one,) = run.measurements[0].rounds
    assert (one.repeats, one.generated_tokens) == (6, 6000)
    project.tests("def test_it(energy):\n    with energy.measure() as w:\n        w.count(generate(0.1))\n")
    result, run = measure(project, lab)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*INVALID: test_it: *is too short for the meter fake-node*it takes 4.2 s*"])


@pytest.mark.parametrize("scope", ["gpu", "node"])
def test_the_scope_of_the_figure_decides_what_a_failing_meter_does(project: Project, scope: str) -> None:
    project.tests(QUICK)
    result, run = measure(project, Lab(Fake("node", 500, fails=True)), f"--energy-scope={scope}")
    (measured,) = run.measurements
    if scope == "gpu":
        result.assert_outcomes(passed=1)
        assert "fake-node fell silent" in str(measured.other_scopes)
        result.stdout.fnmatch_lines(["test_it: not measured: node: *fake-node fell silent (2 of 2 rounds)*"])
        assert all(one.device_joules["node0"] is None for one in measured.rounds)
    else:
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["*INVALID: test_it: *fake-node fell silent*"])
        assert not measured.figures


def test_a_scope_that_nothing_measures_skips_and_one_that_is_none_is_refused(project: Project) -> None:
    project.tests(QUICK)
    result = project.run("--energy-scope=node")
    result.assert_outcomes(skipped=1)
    result = project.run("--energy-scope=node", "-rs")
    result.stdout.fnmatch_lines(["*--energy-scope=node: no meter of this run measures it, only gpu*"])
    result = project.run("--energy-scope=room")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--energy-scope=room: must be one of gpu, cpu, dram, module, node, rack"])
    project.ini("energy_scope = node")
    project.run().assert_outcomes(skipped=1)


def test_lines_of_the_summary() -> None:
    from pytest_tokenpower.core.records import Figure, ScopeFigure

    measured = MeasurementRecord(
        test="test_a.py::test_chat",
        key={},
        provenance="measured",
        scope="gpu",
        method="",
        rounds=(),
        comparable=True,
        figures={
            "joules_per_token": Figure(0.24, 0.001),
            "prefill_joules_per_token": Figure(0.02, 0.001),
        },
        other_scopes=(
            ScopeFigure("cpu", joules_per_token=Figure(0.021, 0.00001)),
            ScopeFigure("dram", "modelled", Figure(0.004, 0.00001)),
            ScopeFigure("node", "measured", Figure(0.4, 0.01), "", 83.2, 0.64),
            ScopeFigure("rack", reason="no answer"),
        ),
    )
    assert also_measured(measured) == [
        "test_chat: also measured: cpu 21.00 mJ/token, dram 4.000 mJ/token (modelled), "
        "node 400.0 mJ/token (±5 %, over 83 s, 64 % of it in rounds)"
    ]
    assert absences([measured]) == ["test_chat: not measured: rack: no answer"]
    assert absences([measured, measured]) == ["all tests: not measured: rack: no answer"]
    assert set(SCOPES) == {"gpu", "cpu", "dram", "module", "node", "rack"}
