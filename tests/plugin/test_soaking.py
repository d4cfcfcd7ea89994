"""Tests that their marker soaks before their rounds: drift as a limit, the file, resumption, what cannot be soaked."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_tokenpower.suites.soak import read_soak
from tests.support.projects import Project

SOAKED = """
import math

passed_s = [0]

def heavier():
    seconds = 10 * {grown}
    passed_s[0] += seconds
    sleep(seconds)
    return TokenCount(0, 1000)

@quick
@pytest.mark.energy_soak(hours=0.2, max_drift="5%")
def test_chat(energy):
    energy(heavier)
"""


def soak_file(project: Project) -> Path:
    [found] = (project.path / ".tokenpower" / "soaks").glob("test_chat-????????.jsonl")
    return found


def test_a_marked_test_is_soaked_and_then_measured(project: Project) -> None:
    project.tests(SOAKED.format(grown=1))
    result, run = project.measure()
    result.assert_outcomes(passed=1)
    [one] = run.measurements
    result.stdout.fnmatch_lines(["test_chat was soaked: 0.202 h of continuous work; drift of J/token*"])
    assert len(one.rounds) == 2
    assert str(one.facts["soak"]).startswith(
        "0.202 h of continuous work; drift of J/token from beginning to end: "
    )
    assert [(verdict.kind, verdict.against) for verdict in one.verdicts] == [("passed", "soak")]
    begun, stretches, size = read_soak(soak_file(project).read_bytes())
    assert begun is not None
    assert begun.test == "test_energy.py::test_chat"
    assert 720 <= stretches[-1].at_s + stretches[-1].round.seconds < 740
    assert size == soak_file(project).stat().st_size


FULL = """
import errno, pathlib, pytest

@pytest.fixture(autouse=True)
def full(monkeypatch):
    append = pathlib.Path.open

    def opened(path, mode="r", *more, **named):
        if mode == "ab" and path.parent.name == "soaks" and path.stat().st_size > 5000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(path, mode, *more, **named)

    monkeypatch.setattr(pathlib.Path, "open", opened)
"""


def test_a_soak_that_finds_no_room_says_so_and_goes_on_when_there_is(project: Project) -> None:
    project.tests(SOAKED.format(grown=1))
    conftest = project.file("conftest.py", FULL)
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*/soaks/test_chat-*.jsonl: the soak cannot be written: No space left on device (resumed, it goes on *"
        ]
    )
    assert "Error" not in result.stdout.str()
    kept = soak_file(project).read_bytes()
    conftest.unlink()
    project.run("--energy-resume").assert_outcomes(passed=1)
    assert soak_file(project).read_bytes().startswith(kept)


def test_a_drift_beyond_the_limit_fails_the_test(project: Project) -> None:
    project.tests(SOAKED.format(grown="math.exp(passed_s[0] / 3600)"))
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["OVER BUDGET: test_chat: in 0.2* h drift of J/token from beginning to end: +* limit 5 %*"]
    )


def test_a_drift_that_may_be_within_the_limit_is_inconclusive(project: Project) -> None:
    """A step: so much alike are neighbours beside the straight line that it is hardly known."""
    project.tests(SOAKED.format(grown="(1 + 0.1 * (passed_s[0] > 360))"))
    result = project.run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "inconclusive: test_chat: in 0.2* limit 5 %; * is not sure (energy_alpha = 0.01): a longer soak tells"
        ]
    )
    project.ini("energy_inconclusive = fail")
    project.run().assert_outcomes(failed=1)


def test_a_soak_is_judged_where_the_rounds_after_it_are_invalid(project: Project) -> None:
    project.tests(
        SOAKED.format(grown="math.exp(passed_s[0] / 3600)").replace(
            "@quick", "@pytest.mark.power_budget(per='prompt_token', max_rounds=2, min_rounds=2)"
        )
    )
    result, run = project.measure()
    result.assert_outcomes(failed=1)
    [one] = run.measurements
    assert [(verdict.kind, verdict.against) for verdict in one.verdicts] == [
        ("over budget", "soak"),
        ("invalid", ""),
    ]
    result.stdout.fnmatch_lines(["INVALID: test_chat: *", "OVER BUDGET: test_chat: in 0.2* h drift*"])


def test_an_interrupted_soak_goes_on_where_it_stopped(project: Project) -> None:
    project.tests(SOAKED.format(grown=1))
    project.run().assert_outcomes(passed=1)
    path = soak_file(project)
    lines = path.read_bytes().splitlines(keepends=True)
    half = b"".join(lines[: len(lines) // 2])
    path.write_bytes(half + lines[-1][:40])
    project.run("--energy-resume").assert_outcomes(passed=1)
    data = path.read_bytes()
    assert data.startswith(half)
    _, stretches, size = read_soak(data)
    assert size == len(data)
    assert 720 <= stretches[-1].at_s + stretches[-1].round.seconds < 740
    # Without the option it begins anew, and keeps the last one aside.
    project.run().assert_outcomes(passed=1)
    assert path.with_suffix(".previous.jsonl").read_bytes() == data


LONG = """
@quick
def test_before(energy):
    energy(generate)

@quick
@pytest.mark.flaky(reruns={reruns})
@pytest.mark.power_budget(joules={joules})
@pytest.mark.energy_soak(hours=0.5)
def test_chat(energy):
    energy(generate, 10)
"""


@pytest.mark.slow
def test_a_recording_has_what_was_before_the_soak(project: Project) -> None:
    project.tests(LONG.format(reruns=0, joules=5000))
    _, live = project.measure("--energy-record=run.jsonl.gz")
    _, again = project.measure("--energy-source=replay:run.jsonl.gz")
    for before, after in zip(live.measurements, again.measurements, strict=True):
        assert before.comparable
        assert after.comparable
        # What was read later calibrates it, too.
        assert [one.joules for one in after.rounds] == pytest.approx(
            [one.joules for one in before.rounds], rel=0.01
        )


@pytest.mark.slow
def test_rounds_of_an_earlier_attempt_are_still_known_after_a_soak(project: Project) -> None:
    project.tests(LONG.format(reruns=1, joules=1))
    _, run = project.measure()
    [_, measured] = run.measurements
    assert measured.attempts == 2
    assert [one.reasons for one in measured.rounds] == [()] * 4


@pytest.mark.slow
def test_work_of_a_millisecond_fills_a_stretch(project: Project) -> None:
    project.tests("""
@quick
@pytest.mark.energy_soak(hours=0.01)
def test_chat(energy):
    energy(generate, 0.0005)
""")
    project.run().assert_outcomes(passed=1)
    _, stretches, _ = read_soak(soak_file(project).read_bytes())
    assert min(each.round.seconds for each in stretches) >= 9.9
    assert max(each.round.repeats for each in stretches) > 10_000


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        ("energy_soak(3)", "takes hours and max_drift, by name"),
        ("energy_soak(hours=0)", "energy_soak(hours=0): must be a number above 0"),
        ("energy_soak(max_drift=2)", "energy_soak(max_drift=2): is 200%: write '2%' for 2 percent"),
    ],
)
def test_a_mistake_in_the_marker_is_said(project: Project, marker: str, words: str) -> None:
    project.tests(f"@pytest.mark.{marker}\ndef test_chat(energy):\n    energy(generate)\n")
    result = project.run()
    result.assert_outcomes(errors=1)
    assert words in result.stdout.str()


def test_a_block_cannot_be_soaked(project: Project) -> None:
    project.tests("""
@pytest.mark.energy_soak(hours=1)
def test_chat(energy):
    with energy.measure() as window:
        window.count(generate())
""")
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*energy.measure() cannot be soaked: a soak repeats the work of energy(fn, ...)*"]
    )
