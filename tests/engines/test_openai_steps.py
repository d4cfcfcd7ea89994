"""Steps from arrivals: what holds of any, and that a synthetic engine's steps are found again."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_tokenpower.engines._estimated_steps import EstimatedSteps, Trace, estimate_steps
from pytest_tokenpower.engines.protocol import Step

MS = 1_000_000

traces_of_anything = st.lists(
    st.builds(
        lambda sent, prompt, waits, tokens: Trace(
            sent,
            prompt,
            tuple(zip((sent + sum(waits[: at + 1]) for at in range(len(waits))), tokens, strict=False)),
        ),
        st.integers(0, 5 * MS),
        st.integers(1, 3000),
        st.lists(
            st.sampled_from([0, 1, 1000, MS, 30 * MS]) | st.integers(0, 40 * MS), min_size=1, max_size=12
        ),
        st.lists(st.integers(1, 4), min_size=12, max_size=12),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(traces_of_anything)
def test_every_token_is_in_one_step_and_steps_follow_each_other(traces: list[Trace]) -> None:
    steps = estimate_steps(traces)
    assert sum(step.prompt_tokens for step in steps) == sum(trace.prompt_tokens for trace in traces)
    decoded = sum(tokens for trace in traces for _, tokens in trace.chunks) - len(traces)
    assert sum(step.generated_tokens for step in steps) == decoded
    for step in steps:
        assert step.start_ns < step.end_ns
        assert min(step.prompt_tokens, step.generated_tokens) >= 0
    for before, after in pairwise(steps):
        assert before.end_ns <= after.start_ns
    assert steps[0].start_ns >= min(trace.sent_ns for trace in traces)
    assert steps[0].prompt_tokens


@settings(max_examples=40, deadline=None)
@given(traces_of_anything, st.integers(0, 10**15))
def test_only_differences_of_times_matter(traces: list[Trace], later_ns: int) -> None:
    later = [
        Trace(each.sent_ns + later_ns, each.prompt_tokens, tuple((at + later_ns, n) for at, n in each.chunks))
        for each in traces
    ]
    assert estimate_steps(later) == tuple(
        Step(step.start_ns + later_ns, step.end_ns + later_ns, step.prompt_tokens, step.generated_tokens)
        for step in estimate_steps(traces)
    )


@dataclass
class Running:
    sent_ns: int
    prompt: int
    new_tokens: int
    left: int
    ends: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Engine:
    """Continuous batching: each step decodes what runs and prefills what fits into its budget."""

    decode_ns: int = 10 * MS
    prefill_token_ns: int = 20_000
    budget: int = 1 << 30
    seats: int = 1 << 30

    def run(self, requests: list[tuple[int, int, int]]) -> tuple[list[Step], list[Running]]:
        """Its steps for (sent, prompt tokens, new tokens), and when each sequence got its tokens."""
        sequences = [Running(sent, prompt, new, prompt) for sent, prompt, new in sorted(requests)]
        steps: list[Step] = []
        now = 0
        while alive := [each for each in sequences if len(each.ends) < each.new_tokens]:
            here = [each for each in alive if each.sent_ns < now][: self.seats]
            if not here:
                now = alive[0].sent_ns + 1
                continue
            decoding = [each for each in here if not each.left]
            budget, prompt, finished = self.budget - len(decoding), 0, []
            for each in here:
                part = min(each.left, budget)
                each.left, budget, prompt = each.left - part, budget - part, prompt + part
                if part and not each.left:
                    finished.append(each)
            end = now + self.decode_ns + prompt * self.prefill_token_ns
            for each in (*decoding, *finished):
                each.ends.append(end)
            steps.append(Step(now, end, prompt, len(decoding)))
            now = end
        return steps, sequences


def seen(sequences: list[Running], delays: list[int]) -> list[Trace]:
    """Return what a client sees, each chunk late by one of these delays."""
    late = iter(delays * (1 + sum(len(each.ends) for each in sequences) // len(delays)))
    return [
        Trace(each.sent_ns, each.prompt, tuple((end + next(late), 1) for end in each.ends))
        for each in sequences
    ]


requests = st.lists(
    st.tuples(st.integers(0, 150 * MS), st.integers(1, 500), st.integers(2, 12)), min_size=1, max_size=10
)


@settings(max_examples=40, deadline=None)
@given(
    requests,
    st.integers(0, 30 * MS),
    st.lists(st.integers(0, 2 * MS), min_size=1, max_size=20),
    st.integers(1, 9),
)
def test_an_engines_steps_are_found_again(
    asked: list[tuple[int, int, int]], latency: int, jitter: list[int], seats: int
) -> None:
    # Each prompt fits into one step; queueing for a seat is part of it. No chunk is later than a fifth of a step.
    true, sequences = Engine(seats=seats).run(asked)
    found = estimate_steps(seen(sequences, [latency + each for each in jitter]))
    assert [(step.prompt_tokens, step.generated_tokens) for step in found] == [
        (step.prompt_tokens, step.generated_tokens) for step in true
    ]
    for step, exact in zip(found, true, strict=True):
        assert 0 <= step.end_ns - exact.end_ns - latency <= max(jitter)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 12 * MS))
def test_a_long_prompt_is_prefilled_in_the_steps_that_were_long(later_ns: int) -> None:
    # One sequence decodes all along; a prompt of 2,000 tokens comes in four parts of 500 less one.
    true, sequences = Engine(budget=501).run([(0, 10, 40), (55 * MS + later_ns, 2000, 5)])
    found = estimate_steps(seen(sequences, [3 * MS]))
    assert [(step.prompt_tokens > 0, step.generated_tokens) for step in found] == [
        (step.prompt_tokens > 0, step.generated_tokens) for step in true
    ]
    parts = [step.prompt_tokens for step in found if step.prompt_tokens][1:]
    assert parts == pytest.approx([500] * 4, abs=5)


def test_waiting_for_a_seat_is_not_prefill() -> None:
    true, sequences = Engine(seats=1).run([(0, 400, 10), (0, 400, 10)])
    found = estimate_steps(seen(sequences, [0]))
    assert [step.prompt_tokens for step in found] == [step.prompt_tokens for step in true]


def test_a_step_before_the_request_was_sent_has_nothing_of_its_prompt() -> None:
    # Of the first response one step took long, for whatever reason; the second request came just after it.
    times = [10, 20, 30, 40, 50, 60, 100, 110, 120]
    found = estimate_steps(
        [
            Trace(0, 5, tuple((at * MS, 1) for at in times)),
            Trace(101 * MS, 50, ((110 * MS, 1), (120 * MS, 1))),
        ]
    )
    assert [step.prompt_tokens for step in found] == [5, 0, 0, 0, 0, 0, 0, 50, 0]


def test_an_idle_engine_has_no_steps() -> None:
    true, sequences = Engine().run([(0, 100, 5), (500 * MS, 100, 5)])
    found = estimate_steps(seen(sequences, [MS]))
    assert found[5].start_ns == 500 * MS
    assert found[5].start_ns - found[4].end_ns > 400 * MS
    assert len(found) == len(true)


def test_a_first_token_of_a_request_that_was_sent_later_begins_a_step() -> None:
    # The second request is sent between two chunks of one burst, as a slow reader sees it.
    traces = [
        Trace(0, 5, ((10 * MS, 1), (20 * MS, 1), (30 * MS, 1))),
        Trace(0, 5, ((10 * MS, 1), (23 * MS, 1), (30 * MS, 1))),
        Trace(21 * MS, 7, ((24 * MS, 1), (34 * MS, 1))),
    ]
    found = estimate_steps(traces)
    assert [(step.start_ns, step.prompt_tokens) for step in found if step.prompt_tokens] == [
        (0, 10),
        (21 * MS, 7),
    ]


def test_chunks_that_waited_to_be_read_are_put_back_to_the_usual_pace() -> None:
    regular = tuple((10 * MS * (at + 1), 1) for at in range(8))
    # The reader was away from 35 to 60 ms and then had three at once.
    stalled = tuple((60 * MS + at if at in (3, 4, 5) else 10 * MS * (at + 1), 1) for at in range(8))
    assert [(s.prompt_tokens, s.generated_tokens) for s in estimate_steps([Trace(0, 5, regular)])] == [
        (s.prompt_tokens, s.generated_tokens) for s in estimate_steps([Trace(0, 5, stalled)])
    ]
    found = estimate_steps([Trace(0, 5, stalled)])
    assert [step.end_ns / MS for step in found] == pytest.approx([10, 20, 30, 40, 50, 60, 70, 80], abs=0.01)


def test_several_tokens_in_a_chunk_are_of_its_step() -> None:
    found = estimate_steps([Trace(0, 9, ((20 * MS, 3), (30 * MS, 4)))])
    assert found == (Step(0, 20 * MS, 9, 2), Step(20 * MS, 30 * MS, 0, 4))


def test_steps_are_worked_out_when_they_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(traces: list[Trace]) -> tuple[Step, ...]:
        asked.append(len(traces))
        return estimate_steps(traces)

    monkeypatch.setattr("pytest_tokenpower.engines._estimated_steps.estimate_steps", counted)
    steps = EstimatedSteps([Trace(0, 9, ((20 * MS, 1), (30 * MS, 1)))])
    assert not asked
    assert len(steps) == 2
    assert steps[-1] == Step(20 * MS, 30 * MS, 0, 1)
    assert steps[:1] == (Step(0, 20 * MS, 9, 0),)
    assert asked == [1]
