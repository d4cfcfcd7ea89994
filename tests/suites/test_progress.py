"""How far a sweep is, the time that is left, and what a terminal shows of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.reporting.suites import duration, live_table
from pytest_tokenpower.suites.estimate import Estimate, Machine
from pytest_tokenpower.suites.grid import Suite
from pytest_tokenpower.suites.progress import Event, Progress, Step, plan


def steps(*seconds: float) -> tuple[Step, ...]:
    return tuple(Step(f"c{at}", Estimate(each, 0), 0.0) for at, each in enumerate(seconds))


def test_what_is_not_selected_takes_no_time() -> None:
    first = Step("loading", Estimate(10.0, None), 60.0)
    progress = Progress((first, *steps(1.0, 2.0)), 0.0)
    names = [step.cell for step in progress.steps]
    progress.take(Event("", selected=(names[2],)), 0.0)
    # The engine is loaded for the first that is left.
    assert [(step.cell, step.load_seconds) for step in progress.steps] == [(names[2], 60.0)]
    assert progress.seconds_left(0.0) == pytest.approx(62.0)


def test_each_engine_is_loaded_once_in_the_plan_and_never_for_what_is_skipped() -> None:
    text = (
        '[axes]\nmodel = ["llama-3.1-8b", "llama-3.1-405b"]\nengine = "vllm"\nbatch = [1, 2]\n'
        "[variants]\na = {}\nb = { tensor_parallel = 9 }\n"
    )
    machine = Machine([80 << 30], 0, lambda package: True)
    found = plan(Suite.parse(text, Path("s.energy.toml")), machine)
    assert len(found) == 8
    assert [step.load_seconds for step in found if not step.foretold.skipped] == [60.0, 0.0]
    assert {step.load_seconds for step in found if step.foretold.skipped} == {0.0}


def test_the_time_left_begins_as_foretold_and_follows_what_is_seen() -> None:
    progress = Progress(steps(100, 100, 100, 100), 1000.0)
    assert progress.seconds_left(1000.0) == 400.0
    assert progress.seconds_left(1010.0) == 390.0
    progress.take(Event("c0"), 1000.0)
    assert progress.running == "c0"
    progress.take(Event("c0", "passed", seconds=200), 1200.0)
    # Twice as slow as foretold, as far as it is believed after one cell.
    assert progress.seconds_left(1200.0) == pytest.approx(300 * 230 / 130)
    for name in ("c1", "c2", "c3"):
        progress.take(Event(name, "passed"), 1300.0)
    assert progress.seconds_left(1300.0) == 0.0
    assert progress.outcomes == {"passed": 4}


@given(st.lists(st.floats(0, 500), min_size=1, max_size=8), st.data())
def test_the_time_left_is_never_negative_and_nothing_when_all_is_done(
    seconds: list[float], data: st.DataObject
) -> None:
    progress, now = Progress(steps(*seconds), 0.0), 0.0
    for step in progress.steps:
        now += data.draw(st.floats(0, 1000))
        left = progress.seconds_left(now)
        assert left is None or left >= 0
        progress.take(Event(step.cell, "passed"), now)
    assert progress.seconds_left(now) == 0.0


def test_the_live_table_stays_inside_the_terminal_and_shows_what_runs() -> None:
    progress = Progress(steps(*[10.0] * 50), 0.0)
    for at in range(30):
        progress.take(Event(f"c{at}", "passed", figures={"joules_per_token": 0.25}), 10.0 * at)
    progress.take(Event("c30"), 300.0)
    lines = live_table(progress, 305.0, rows=10, width=40)
    assert len(lines) == 11
    assert max(map(len, lines)) <= 40
    assert lines[0].startswith("30 of 50 cells (30 passed), 5 min")
    assert "  c30  running" in lines
    assert "  c29  250.0 mJ/token  passed" in lines


def test_an_outcome_without_a_figure_says_why() -> None:
    progress = Progress((Step("a", Estimate(None, None, "does not fit"), 0), *steps(1.0)), 0.0)
    assert "  a   will be skipped, does not fit" in live_table(progress, 0.0, rows=5, width=80)
    progress.take(Event("a", "skipped", "does not fit"), 1.0)
    assert "  a   skipped does not fit" in live_table(progress, 1.0, rows=5, width=80)


@pytest.mark.parametrize(("seconds", "words"), [(5.4, "5 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h")])
def test_times_are_for_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words
