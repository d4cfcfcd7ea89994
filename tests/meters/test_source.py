"""Where the joules come from: no meter, unknown meters, modelled ones, others' meters, and ones that die."""

from __future__ import annotations

import json

import pytest

from tests.support.projects import Project

TEST = "@quick\ndef test_it(energy):\n    open('ran', 'w').close()\n    energy(generate)\n"

METER = '''
import pytest
from pytest_tokenpower.errors import MeterUnavailable
from pytest_tokenpower.meters.simulation.virtual_time import VIRTUAL_TIME
from pytest_tokenpower.meters.types import CounterReading, Device, Reading


class BenchSupply:
    """A laboratory supply that gives 5 W and counts them."""

    name = "bench supply"
    poll_interval_s = 0.01
    clock = VIRTUAL_TIME.clock

    def open(self, clock):
        if SOURCE == "unplugged":
            raise MeterUnavailable("the bench supply is not plugged in")
        self.start_ns = clock.monotonic_ns()
        return [] if SOURCE == "empty" else [Device("bench", "node", "Bench supply", self.name, "measured")]

    def poll(self, clock):
        now_ns = clock.monotonic_ns()
        return [Reading("bench", counters=[CounterReading(now_ns, now_ns, (now_ns - self.start_ns) * 5 // 1000)])]

    def close(self):
        pass


def pytest_tokenpower_meters(source):
    global SOURCE
    SOURCE = source
    return [BenchSupply()] if source in ("bench", "unplugged", "empty") else None
'''


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a driver or without one: no GPU is visible."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def text(result: pytest.RunResult) -> str:
    return " ".join(result.stdout.str().split())


def test_without_a_meter_a_test_skips_with_the_reason(project: Project) -> None:
    project.tests(TEST)
    result, run = project.measure("--energy-source=nvml", "-rs")
    result.assert_outcomes(skipped=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["SKIPPED*: no NVIDIA driver answers *"])
    assert run.measurements == ()
    assert not (project.path / "ran").exists()


def test_without_a_meter_a_test_fails_where_hardware_is_required(project: Project) -> None:
    project.ini("energy_require_hardware = true")
    project.tests(TEST)
    result = project.run("--energy-source=nvml")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["energy_require_hardware is set, and no NVIDIA driver answers *"])
    assert not (project.path / "ran").exists()


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("nonsense", "--energy-source=nonsense: the valid sources are auto, nvml, "),
        ("nvml:0", "--energy-source=nvml:0: the valid sources are "),
        ("simulated:none.json", "cannot read the scenario none.json: No such file or directory"),
        ("simulated:bad.json", "bad.json: Object contains unknown field `watts` (at boards[0])"),
    ],
)
def test_a_source_that_cannot_be_meant_stops_the_run_before_any_test(
    project: Project, source: str, complaint: str
) -> None:
    project.file("bad.json", '{"boards": [{"watts": 3}]}')
    project.tests(TEST + "\n\ndef test_other():\n    open('ran', 'w').close()\n")
    result = project.run(f"--energy-source={source}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert complaint in result.stderr.str()
    assert not (project.path / "ran").exists()

    project.ini(f"energy_source = {source}")
    assert project.run().ret == pytest.ExitCode.USAGE_ERROR


def test_a_board_without_a_ring_is_not_compared_with_one_that_has_it(project: Project) -> None:
    project.file("ringless.json", '{"boards": [{"ring": false}], "clock": "virtual"}')
    project.tests(
        "@pytest.mark.power_budget(min_rounds=1, max_rounds=1)\n"
        "def test_it(energy):\n    energy(generate, 0.05)\n"
    )
    _, with_ring = project.measure("--energy-save=before", "--energy-storage=store")
    assert with_ring.measurements[0].key["method"] == "power ring"
    result, without = project.measure(
        "--energy-source=simulated:ringless.json", "--energy-baseline=before", "--energy-storage=store"
    )
    [measured] = without.measurements
    assert measured.key["method"] == measured.method == "energy counter"
    result.stdout.fnmatch_lines(
        [
            "no baseline: test_it: *not comparable: meter method: energy counter here, power ring there",
        ]
    )


def test_modelled_joules_say_so_and_never_meet_others(project: Project) -> None:
    project.on_machine_time()
    project.tests(
        """
def busy():
    end = time.monotonic() + 0.15
    while time.monotonic() < end:
        pass
    return TokenCount(0, 1000)

@quick
def test_it(energy):
    energy(busy)
"""
    )
    result, run = project.measure("--energy-source=model", "--energy-save=modelled")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["MODELLED, not measured: 1x * (modelled from CPU time), energy counter (cpu energy)"]
    )
    assert run.measurements[0].provenance == "modelled"
    assert run.measurements[0].key["provenance"] == "modelled"

    again = project.run("--energy-source=model", "--energy-baseline=modelled")
    again.stdout.no_fnmatch_line("*no baseline*")

    project.ini("energy_key_ignore = *")
    simulated = project.run("--energy-baseline=modelled")
    simulated.stdout.fnmatch_lines(["test_it * no baseline"])
    assert "provenance: simulated here, modelled there" in text(simulated)


def test_a_meter_of_another_plugin_measures(project: Project) -> None:
    project.file("conftest.py", METER)
    project.tests(TEST)
    result, run = project.measure("--energy-source=bench")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["1x Bench supply, energy counter (node energy)"])
    [measured] = run.measurements
    assert measured.provenance == "measured"
    assert measured.key["node.name"] == "Bench supply"
    assert measured.figures["mean_watts"].value == pytest.approx(5, 0.02)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("unplugged", "the bench supply is not plugged in"),
        ("empty", "--energy-source=empty lists no device to measure"),
    ],
)
def test_a_meter_of_another_plugin_that_is_not_there_skips(
    project: Project, source: str, reason: str
) -> None:
    project.file("conftest.py", METER)
    project.tests(TEST)
    result = project.run(f"--energy-source={source}", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines([f"SKIPPED*: {reason}"])


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"kind": "lost", "from_s": 0.3}, "nvmlDeviceGetSamples failed: GPU is lost"),
        (
            {"kind": "zero", "call": "nvmlDeviceGetSamples", "from_s": 0.3},
            "the power ring reads 0 W, which no",
        ),
        ({"kind": "counter_reset", "from_s": 0.3}, "the energy counter went backwards"),
        ({"kind": "process", "pid": 1, "from_s": 0.3}, "another process used the GPU (pid 1): stop it"),
        (
            {"kind": "throttle", "limit": "thermal", "from_s": 0.3},
            "slowed down by heat or by the power supply",
        ),
    ],
    ids=lambda value: str(value["kind"]) if isinstance(value, dict) else "",
)
def test_what_goes_wrong_half_way_makes_the_measurement_invalid(
    project: Project, fault: dict[str, object], reason: str
) -> None:
    project.file("faulty.json", json.dumps({"faults": [fault], "clock": "virtual"}))
    project.tests(
        "@pytest.mark.power_budget(min_rounds=4, max_rounds=4, joules=0.001)\n"
        "def test_it(energy):\n    energy(generate, 0.12)\n"
    )
    result, run = project.measure("--energy-source=simulated:faulty.json", "--energy-save=faulty")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["INVALID: test_it: the measurement is not to be trusted: *", "test_it * INVALID"]
    )
    assert reason in text(result)
    [measured] = run.measurements
    assert not measured.comparable
    assert measured.figures == {}
    assert [verdict.kind for verdict in measured.verdicts] == ["invalid"]
    assert 0 not in [one.joules for one in measured.rounds]

    after = project.run("--energy-baseline=faulty")
    assert after.ret == 1  # Its own budget; the faulty run is no baseline.
    assert "1 measurement of it on faulty, none to be compared with" in text(after)
