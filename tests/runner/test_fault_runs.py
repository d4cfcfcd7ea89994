"""Faults in a live run of pytest: it ends normally, the test that met one is invalid, and the next one is fine."""

from __future__ import annotations

import itertools
import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_tokenpower.meters import collector
from tests.support.projects import Project

TESTS = """
def measured(energy, seconds):
    with energy.measure() as window:
        sleep(seconds)
        window.tokens(prompt=0, generated=1000)


def test_first(energy):
    measured(energy, {work})


def test_second(energy):
    sleep({pause})
    measured(energy, 0.3)
"""

SOURCE = "--energy-source=simulated:board.json"


@pytest.fixture
def hurried(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a project whose collector is not patient."""
    monkeypatch.setattr(collector, "FLUSH_TIMEOUT_S", 0.6)
    monkeypatch.setattr(collector, "OPEN_TIMEOUT_S", 0.6)
    return project


def play(project: Project, *faults: dict[str, Any], work: float = 0.9, pause: float = 0.0) -> None:
    clock = "virtual"
    if any(fault["kind"] == "hang" for fault in faults):
        # Nobody waits for a driver on a time that does not pass by itself.
        project.on_machine_time()
        clock = "machine"
    project.file("board.json", json.dumps({"faults": faults, "clock": clock}))
    project.tests(TESTS.format(work=work, pause=pause))


def text(result: pytest.RunResult) -> str:
    return " ".join(result.stdout.str().split())


_BEFORE: list[threading.Thread] = []


@pytest.fixture(autouse=True)
def _threads_of_others() -> None:
    """Other tests' libraries may have left some (litellm's logging)."""
    _BEFORE[:] = threading.enumerate()


def assert_nothing_keeps_the_process() -> None:
    assert [t.name for t in threading.enumerate() if not t.daemon and t not in _BEFORE] == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            {"kind": "lost", "from_s": 0.3, "until_s": 1.8},
            "nvmlDeviceGetSamples failed: GPU is lost",
        ),
        (
            {"kind": "clock_step", "seconds": -30, "from_s": 0.3},
            "the realtime clock was set by -30000.0 ms during the measurement (NTP)",
        ),
        (
            {
                "kind": "error",
                "call": "nvmlDeviceGetSamples",
                "error": "NOT_FOUND",
                "from_s": 0.3,
                "until_s": 1.8,
            },
            "the meter nvml gave no newer reading for 1 s",
        ),
        (
            {
                "kind": "hang",
                "call": "nvmlDeviceGetTotalEnergyConsumption",
                "seconds": 1.2,
                "from_s": 0.3,
                "until_s": 1.3,
            },
            "the meter nvml did not answer for",
        ),
    ],
    ids=["lost", "clock set", "ring stops", "hangs"],
)
def test_the_test_that_met_a_fault_is_invalid_and_the_next_one_is_fine(
    hurried: Project, fault: dict[str, Any], said: str
) -> None:
    play(hurried, fault, pause=1.8)
    result, run = hurried.measure(SOURCE)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1, passed=1)
    assert "INVALID: test_first: the measurement is not to be trusted: GPU-51" in text(result)
    assert said in text(result)
    first, second = run.measurements
    assert not first.comparable
    assert first.figures == {}
    assert second.comparable
    assert second.figures["mean_watts"].value == pytest.approx(300, rel=0.02)
    assert_nothing_keeps_the_process()


def test_a_meter_that_never_answers_again_fails_every_test_and_costs_each_little(
    hurried: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A time of the collector's own, on which each look at it is one of its waits: 14 s, were each test to wait in full.
    waited_s = itertools.count(0.05, 0.05)
    monkeypatch.setattr(collector, "time", SimpleNamespace(monotonic=lambda: next(waited_s)))
    monkeypatch.setattr(collector, "FLUSH_TIMEOUT_S", 2.0)
    play(hurried, {"kind": "hang", "seconds": 25, "from_s": 0.3})
    more = "".join(f"\n\ndef test_{number}(energy):\n    measured(energy, 0.05)\n" for number in range(5))
    hurried.tests(TESTS.format(work=0.9, pause=0) + more)
    result, run = hurried.measure(SOURCE)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=7)
    assert ["did not answer for" in " ".join(each.reasons) for each in run.measurements] == [True] * 7
    assert 2.0 < next(waited_s) < 10
    assert_nothing_keeps_the_process()


def test_a_meter_that_hangs_when_it_is_opened_is_no_meter(hurried: Project) -> None:
    play(hurried, {"kind": "hang", "call": "nvmlDeviceGetCount", "seconds": 25})
    result = hurried.run(SOURCE, "-rs")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(skipped=2)
    assert "the meter nvml did not answer within 1 s" in text(result)
    hurried.ini("energy_require_hardware = true")
    result = hurried.run(SOURCE)
    result.assert_outcomes(failed=2)
    assert_nothing_keeps_the_process()


@pytest.mark.slow
@pytest.mark.parametrize("call", ["nvmlShutdown", "*"])
def test_a_hang_at_the_end_does_not_keep_the_process(project: Project, call: str) -> None:
    play(project, {"kind": "hang", "call": call, "seconds": 600, "from_s": 1.2}, work=0.1)
    result = project.pytester.runpytest_subprocess(SOURCE, timeout=60)
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=2)
