"""Levels: cut where somebody said so, where a step is seen, and nowhere else."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.stats.comparison import Run, compare
from pytest_tokenpower.stats.levels import split_levels
from pytest_tokenpower.stats.occasions import occasions
from pytest_tokenpower.stats.rule import Policy, decide

from .simulator import Machine

WOBBLE = (0.999, 1.001, 1.0, 1.0015, 0.9985)


def run(level: float, *, board: str = "A", occasion: str = "") -> Run:
    return Run(tuple(level * math.exp(0.003 * (-1) ** i) for i in range(8)), board=board, occasion=occasion)


@pytest.mark.parametrize("new", range(6))
def test_a_saving_that_is_thrown_away_again_fails(new: int) -> None:
    """A 20 % saving is merged; with 0 to 5 of 5 stored runs at the new level it is thrown away."""
    stored = [run((0.16 if at >= 5 - new else 0.2) * WOBBLE[at]) for at in range(5)]
    levels = split_levels(stored)
    assert len(levels[-1]) == (new or 5)
    found = compare(levels[-1], [run(0.25 if new == 0 else 0.2)], earlier=levels[:-1])
    assert decide(found, Policy(0.03)).kind == "regressed"
    assert found.total.change == pytest.approx(0.25, abs=0.01)


def test_a_blessing_starts_a_level() -> None:
    stored = [run(0.2 * w) for w in WOBBLE]
    assert [len(level) for level in split_levels(stored, starts={3})] == [3, 2]
    with pytest.raises(ValueError, match="starts at none"):
        split_levels(stored, starts={5})


@pytest.mark.parametrize("back", [1, 2])
def test_what_was_accepted_and_taken_back_ends_with_its_first_run(back: int) -> None:
    """Of a level of two or three runs the levels before tell whether the last one is apart."""
    stored = [run(0.2 * w) for w in WOBBLE] + [run(0.216)] * back + [run(0.2)]
    assert [len(level) for level in split_levels(stored, starts={5})] == [5, back, 1]
    steady = [run(0.2 * w) for w in WOBBLE] + [run(0.216)] * back + [run(0.2165)]
    assert [len(level) for level in split_levels(steady, starts={5})] == [5, back + 1]
    assert len(split_levels(stored[5:])) == 1


def test_another_board_is_no_step() -> None:
    stored = [run(0.2 * w, board="A") for w in WOBBLE] + [run(0.21 * w, board="B") for w in WOBBLE]
    assert len(split_levels(stored)) == 1


@pytest.mark.parametrize("new", range(1, 5))
@pytest.mark.parametrize("change", [0.8, 1.1, 1.3])
def test_a_step_within_one_sitting_ends_the_level(new: int, change: float) -> None:
    """A branch that gets five merges an hour, one of which changes the level."""
    stored = [run(0.2 * w * (change if at >= 5 - new else 1), occasion="mon") for at, w in enumerate(WOBBLE)]
    assert [len(level) for level in split_levels(stored)] == [5 - new, new]


def test_a_step_within_a_sitting_parts_it_for_what_comes_after() -> None:
    stored = [
        *(run(0.2 * w, occasion="mon") for w in WOBBLE[:3]),
        *(run(0.26 * w, occasion="mon") for w in WOBBLE[3:]),
        run(0.26, occasion="tue"),
    ]
    assert [len(level) for level in split_levels(stored)] == [3, 3]


def test_two_sittings_are_no_step() -> None:
    stored = [run(0.2 * w, occasion="mon") for w in WOBBLE] + [run(0.202 * w, occasion="tue") for w in WOBBLE]
    assert len(split_levels(stored)) == 1


@given(st.integers(0, 12), st.sets(st.integers(0, 11)), st.integers(0, 2**32 - 1))
def test_levels_are_the_history(count: int, starts: set[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    stored = [
        run(0.2 * math.exp(0.01 * rng.standard_normal()), occasion=str(rng.integers(6))) for _ in range(count)
    ]
    levels = split_levels(stored, starts={at for at in starts if at < count})
    assert [each for level in levels for each in level] == stored
    assert all(levels)


def test_a_history_without_steps_is_mostly_one_level() -> None:
    rng = np.random.default_rng(8)
    cut = sum(len(split_levels(Machine(run_sd=0.004).runs(rng, 10))) > 1 for _ in range(150))
    assert cut <= 9


def test_a_sitting_without_steps_is_mostly_one_level() -> None:
    rng = np.random.default_rng(9)
    one = [[replace(each, occasion="mon") for each in Machine(run_sd=0.004).runs(rng, 5)] for _ in range(300)]
    assert sum(len(split_levels(each)) > 1 for each in one) <= 9


def test_occasions_are_an_hour_on_one_host() -> None:
    named = occasions([0, 60, 3700, 100, 90_000], ["a", "a", "a", "b", "a"])
    assert named[0] == named[1]
    assert len(set(named)) == 4
    assert occasions([], []) == ()
    with pytest.raises(ValueError, match="hosts"):
        occasions([0.0], [])


def test_a_busy_machine_s_week_is_no_single_occasion() -> None:
    assert len(set(occasions([600.0 * at for at in range(100)], ["a"] * 100))) > 10
