"""Phases of simulated step streams: planted coefficients through a power curve and its ring, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_tokenpower.analysis.phases import step_phases, undivided_error
from pytest_tokenpower.analysis.step_split import LARGEST_CONDITION, Split, StepColumns, fit_split
from pytest_tokenpower.analysis.tracks import EnergyTrack, window_energy
from pytest_tokenpower.core.windows import BETWEEN, DECODE, PREFILL
from tests.support.readings import MS, ring_of

RING_MS = (20, 20, 12, 28, 20, 19, 21)

Tokens = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Planted:
    """What a stream is made with: J and ms of a prompt and of a generated token, W of all time."""

    prompt_joules: float = 0.01
    generated_joules: float = 0.1
    watts: float = 150.0
    prompt_ms: float = 0.05
    generated_ms: float = 0.5

    def milliseconds(self, tokens: tuple[int, int]) -> int:
        return max(1, round(tokens[0] * self.prompt_ms + tokens[1] * self.generated_ms))

    def joules(self, tokens: tuple[int, int]) -> float:
        return (
            self.prompt_joules * tokens[0]
            + self.generated_joules * tokens[1]
            + self.watts * self.milliseconds(tokens) / 1e3
        )

    def prefill_share(self, tokens: tuple[int, int]) -> float:
        prompt, generated = tokens
        time = prompt * self.prompt_ms / (prompt * self.prompt_ms + generated * self.generated_ms)
        return (
            self.prompt_joules * prompt + self.watts * self.milliseconds(tokens) / 1e3 * time
        ) / self.joules(tokens)


@dataclass(frozen=True)
class Stream:
    steps: StepColumns
    track: EnergyTrack
    prefill_joules: float
    decode_joules: float
    between_joules: float


def stream(
    rounds: Sequence[Tokens], by: Planted | Sequence[Planted], *, gap_ms: int = 0, gap_watts: float = 80.0
) -> Stream:
    """Return a board's ring over rounds of steps with these tokens, 300 ms apart."""
    pieces: list[tuple[int, float]] = []
    marks: list[tuple[int, int, int, int, int]] = []
    at_ms = 1000
    prefill = decode = between = 0.0
    for index, tokens in enumerate(rounds):
        planted = by if isinstance(by, Planted) else by[index]
        for place, each in enumerate(tokens):
            if place and gap_ms:
                pieces.append((gap_ms, gap_watts))
                at_ms += gap_ms
                between += gap_watts * gap_ms / 1e3
            length, joules = planted.milliseconds(each), planted.joules(each)
            pieces.append((length, joules / length * 1e3))
            marks.append((at_ms, at_ms + length, *each, index))
            at_ms += length
            share = planted.prefill_share(each)
            prefill += share * joules
            decode += (1 - share) * joules
        pieces.append((300, 60.0))
        at_ms += 300
    columns = np.array(marks, dtype=np.int64).T
    steps = StepColumns(
        columns[0] * MS,
        columns[1] * MS,
        columns[2].astype(np.float64),
        columns[3].astype(np.float64),
        columns[4].astype(np.intp),
    )
    return Stream(steps, ring_of(pieces, "steps", RING_MS).track, prefill, decode, between)


def chunked(prompts: int, length: int, new_tokens: int, budget: int) -> list[tuple[int, int]]:
    """Return the steps of chunked prefill: sequences that decode come first, the rest of the budget goes to prompts."""
    waiting, running = [length] * prompts, [0] * 0
    steps = []
    while waiting or running:
        left = budget - len(running)
        generated, prompt = len(running), 0
        running = [each + 1 for each in running]
        while waiting and left:
            part = min(waiting[0], left)
            waiting[0], left, prompt = waiting[0] - part, left - part, prompt + part
            if not waiting[0]:
                waiting.pop(0)
                running.append(1)
        running = [each for each in running if each < new_tokens]
        steps.append((prompt, generated))
    return steps


streams = st.builds(
    lambda lengths, new, budget: [chunked(8, length, new, budget) for length in lengths],
    st.lists(st.integers(400, 1000), min_size=4, max_size=4),
    st.integers(20, 40),
    st.integers(400, 900),
)
coefficients = st.builds(
    Planted,
    st.floats(0.0, 0.03),
    st.floats(0.02, 0.3),
    st.floats(60.0, 200.0),
    st.floats(0.03, 0.12),
    st.floats(1.0, 3.0),
)


@settings(max_examples=15, deadline=None)
@given(streams, coefficients, st.integers(0, 3))
def test_planted_coefficients_come_back_from_mixed_steps(
    rounds: list[Tokens], planted: Planted, gap_ms: int
) -> None:
    made = stream(rounds, planted, gap_ms=gap_ms)
    assert made.steps.mixed.any()
    found = step_phases([made.track], made.steps, len(rounds))
    assert found.refusal is None
    total = made.prefill_joules + made.decode_joules
    # A gap shorter than the ring's samples is seen at the power around it: what it gets too much, a phase lacks.
    blur = abs(found.phases[BETWEEN].joules.sum() - made.between_joules)
    for name, true in ((PREFILL, made.prefill_joules), (DECODE, made.decode_joules)):
        phase = found.phases[name]
        assert phase.joules.sum() == pytest.approx(
            true, abs=0.02 * total + blur + 4 * np.sqrt(phase.variance).sum()
        )
    # Whatever the split, nothing is lost and nothing is counted twice.
    first = np.flatnonzero(np.diff(made.steps.round_at, prepend=-1))
    last = np.append(first[1:], len(made.steps.end_ns)) - 1
    whole = window_energy(made.track, made.steps.start_ns[first], made.steps.end_ns[last])
    assert sum(phase.joules for phase in found.phases.values()) == pytest.approx(whole.joules)
    assert sum(phase.seconds for phase in found.phases.values()) == pytest.approx(
        (made.steps.end_ns[last] - made.steps.start_ns[first]) / 1e9
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 20), st.integers(0, 40), coefficients)
def test_pure_steps_are_what_they_are(responses: int, gap_ms: int, planted: Planted) -> None:
    rounds = [[(4000, 0), *[(0, responses)] * 40]] * 2
    made = stream(rounds, planted, gap_ms=gap_ms)
    found = step_phases([made.track], made.steps, 2)
    assert found.split is None
    assert found.mixed_share == 0
    blur = abs(found.phases[BETWEEN].joules.sum() - made.between_joules)
    for name, true in ((PREFILL, made.prefill_joules), (DECODE, made.decode_joules)):
        phase = found.phases[name]
        error = 5 * np.sqrt(phase.variance.sum())
        assert phase.joules.sum() == pytest.approx(true, rel=0.01, abs=error + blur)
    if not gap_ms:
        assert found.phases[BETWEEN].seconds.sum() == 0


def test_the_time_between_steps_is_named() -> None:
    made = stream([[(3000, 0), *[(0, 100)] * 10]] * 4, Planted(), gap_ms=100)
    found = step_phases([made.track], made.steps, 4)
    between = found.phases[BETWEEN]
    assert between.seconds.sum() == pytest.approx(4 * 10 * 0.1)
    assert between.joules.sum() == pytest.approx(made.between_joules, rel=0.02)


def test_steps_of_one_mix_are_refused() -> None:
    made = stream([[(200, 10), (202, 10), (204, 10)] * 10] * 4, Planted())
    found = step_phases([made.track], made.steps, 4)
    assert found.phases == {}
    assert found.mixed_share == pytest.approx(1.0)
    assert found.refusal is not None
    assert "all steps have nearly the same mix" in found.refusal
    assert f"at most {LARGEST_CONDITION:.0f}" in found.refusal


def test_few_steps_are_not_divided() -> None:
    made = stream([[(400, 0), (300, 20), (0, 40), (0, 40)]], Planted())
    found = step_phases([made.track], made.steps, 1)
    assert found.refusal is not None
    assert found.refusal.startswith("mixed steps cannot be split: 4 steps, at least 12 are needed")


@pytest.mark.parametrize(
    ("prompts", "both", "left_out"),
    [
        (2000, 20, set()),  # mixed energy is a small part of either phase
        (150, 20, {PREFILL}),  # of the decode alone
        (150, 400, {PREFILL, DECODE}),
    ],
)
def test_mixed_steps_that_cannot_be_divided_leave_undecided_what_they_are_a_large_part_of(
    prompts: int, both: int, left_out: set[str]
) -> None:
    made = stream([[(prompts, 0), (both, both), *[(0, 20)] * 7]], Planted())
    found = step_phases([made.track], made.steps, 1)
    assert {PREFILL, DECODE} - found.phases.keys() == left_out
    if not found.phases:
        return
    undivided = sum(float(phase.undivided[0]) for name, phase in found.phases.items() if name == DECODE)
    assert undivided == pytest.approx(Planted().joules((both, both)), rel=0.2)
    for name, truly in ((PREFILL, made.prefill_joules), (DECODE, made.decode_joules)):
        if name in found.phases:
            phase = found.phases[name]
            error = np.hypot(undivided_error(undivided), np.sqrt(phase.variance[0]))
            assert abs(phase.joules[0] - truly) < 2 * error
    for name in left_out:
        assert f"; {name} is left out, with a standard error of" in (found.refusal or "")


def test_a_split_that_noise_has_made_is_refused() -> None:
    # Power that has nothing to do with the tokens, and mixes that are told apart by their tails alone.
    made = stream([chunked(8, 500, 30, 450)] * 4, Planted(generated_ms=2.0))
    noisy = np.random.default_rng(1).normal(0, 1.0, len(made.track.joules)).cumsum()
    track = EnergyTrack(
        "power ring", made.track.t_ns, made.track.joules * 0.05 + 10 * noisy, made.track.period_ns, 1e6
    )
    found = step_phases([track], made.steps, 4)
    assert found.phases == {}
    assert found.refusal is not None
    assert "standard error" in found.refusal


def test_the_error_covers_the_scatter_of_the_readings() -> None:
    random = np.random.default_rng(7)
    made = stream([chunked(8, 700, 30, 600)] * 6, Planted(generated_ms=2.0))
    misses = []
    for _ in range(30):
        scatter = 1 + 0.2 * random.standard_normal(len(made.track.joules) - 1)
        joules = np.concatenate([[0.0], np.cumsum(np.diff(made.track.joules) * scatter)])
        track = EnergyTrack("power ring", made.track.t_ns, joules, made.track.period_ns, 1e6)
        phase = step_phases([track], made.steps, 6).phases[PREFILL]
        misses.append((phase.joules.sum() - made.prefill_joules) / np.sqrt(phase.variance).sum())
    assert 0.7 < np.sqrt(np.mean(np.square(misses))) < 1.5


def test_rounds_that_disagree_on_the_price_of_a_token_make_the_split_uncertain() -> None:
    rounds = [chunked(8, 700, 30, 600)] * 6
    prices = [0.005, 0.02, 0.005, 0.02, 0.005, 0.02]
    alike = stream(rounds, Planted(0.0125, generated_ms=2.0))
    unlike = stream(rounds, [Planted(price, generated_ms=2.0) for price in prices])
    errors = [
        np.sqrt(step_phases([made.track], made.steps, 6).phases[PREFILL].variance).sum()
        for made in (alike, unlike)
    ]
    assert errors[1] > 1.5 * errors[0]


def online(seed: int, steps: int) -> list[tuple[int, int]]:
    """Return requests that come by chance to an engine that decodes: a step in three or four has a prompt in it."""
    random = np.random.default_rng(seed)
    return [
        (int(random.integers(100, 500)) if random.random() < 0.3 else 0, int(random.integers(4, 9)))
        for _ in range(steps)
    ]


@pytest.mark.parametrize(
    "planted",
    [
        Planted(0.02, 0.05, 60.0, 0.04, 1.0),
        Planted(0.0, 0.05, 60.0, 0.04, 1.0),
        Planted(0.01, 0.02, 90.0, 0.05, 0.8),
    ],
)
def test_steps_shorter_than_the_samples_keep_their_energy_apart(planted: Planted) -> None:
    # 4 to 28 ms a step, under samples of 20 ms: each reading has pure and mixed steps in it.
    made = stream([online(seed, 120) for seed in range(5)], planted)
    found = step_phases([made.track], made.steps, 5)
    assert found.phases[PREFILL].joules.sum() == pytest.approx(made.prefill_joules, rel=0.02)
    assert found.phases[DECODE].joules.sum() == pytest.approx(made.decode_joules, rel=0.02)


def test_pure_steps_shorter_than_the_samples_are_told_apart_too() -> None:
    random = np.random.default_rng(4)
    rounds = [
        [(int(random.integers(150, 300)), 0) if random.random() < 0.4 else (0, int(random.integers(4, 9)))
         for _ in range(120)]
        for _ in range(4)
    ]  # fmt: skip
    made = stream(rounds, Planted(0.03, 0.05, 60.0, 0.04, 1.0))
    assert not made.steps.mixed.any()
    found = step_phases([made.track], made.steps, 4)
    assert found.split is not None
    assert found.mixed_share == 0
    assert found.phases[PREFILL].joules.sum() == pytest.approx(made.prefill_joules, rel=0.02)
    assert found.phases[DECODE].joules.sum() == pytest.approx(made.decode_joules, rel=0.02)


def test_pure_steps_can_do_without_a_split() -> None:
    # Too few to fit anything: they are as they are read.
    made = stream([[(100, 0), (0, 5), (0, 5), (0, 5)]], Planted())
    found = step_phases([made.track], made.steps, 1)
    assert found.refusal is None
    assert found.split is None
    assert set(found.phases) == {PREFILL, DECODE, BETWEEN}


def test_two_boards_share_the_work() -> None:
    made = stream([chunked(8, 700, 30, 600)] * 4, Planted(generated_ms=2.0))
    one = step_phases([made.track], made.steps, 4)
    two = step_phases([made.track, made.track], made.steps, 4)
    for name in (PREFILL, DECODE, BETWEEN):
        assert two.phases[name].joules == pytest.approx(2 * one.phases[name].joules)
        assert two.phases[name].seconds == pytest.approx(one.phases[name].seconds)


def test_a_round_that_the_meter_missed_is_not_zero() -> None:
    made = stream([[(3000, 0), *[(0, 100)] * 10]] * 2, Planted())
    cut = int(np.searchsorted(made.track.t_ns, made.steps.start_ns[11]))
    track = EnergyTrack(
        "power ring", made.track.t_ns[:cut], made.track.joules[:cut], made.track.period_ns, 1e6
    )
    joules = step_phases([track], made.steps, 2).phases[PREFILL].joules
    assert np.isfinite(joules[0])
    assert np.isnan(joules[1])


def test_coefficients_are_never_negative() -> None:
    # Prefill at the power of nothing beside decode: an unconstrained fit would pay for it with a negative price.
    made = stream([chunked(8, 700, 30, 600)] * 4, Planted(0.0, 0.5, 1.0, generated_ms=2.0))
    split = fit_split([made.track], made.steps)
    assert isinstance(split, Split)
    for each in (split, *split.groups):
        assert min(each.joules_per_prompt_token, each.joules_per_generated_token, each.watts) >= 0
        time = each.time_share(made.steps)
        assert np.all((time >= 0) & (time <= 1))
        assert np.all(np.array(each.weights(made.steps)) >= 0)
