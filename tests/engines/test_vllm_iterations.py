"""Steps from the ends of iterations: an engine that idles and works is found again, and idle time is in no step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.engines.protocol import Step
from pytest_tokenpower.engines.vllm.steps import Iteration, IterationRecorder, flights_of, steps_of


@st.composite
def timelines(draw: st.DrawFn) -> tuple[list[Step], list[tuple[int, int]]]:
    """Busy stretches with idle time between them; requests in flight over whole steps of a stretch, one over all."""
    steps: list[Step] = []
    flights: list[tuple[int, int]] = []
    now = 1000
    for _ in range(draw(st.integers(1, 4))):
        now += draw(st.integers(1, 50))
        edges = [now]
        for length in draw(st.lists(st.integers(2, 30), min_size=1, max_size=6)):
            edges.append(edges[-1] + length)
        count = len(edges) - 1
        steps += [Step(edges[at], edges[at + 1], draw(st.integers(0, 9)), 1) for at in range(count)]
        flights.append((edges[0], edges[-1]))
        for _ in range(draw(st.integers(0, 3))):
            first = draw(st.integers(0, count - 1))
            last = draw(st.integers(first + 1, count))
            # Scheduled once the tokens before were there.
            flights.append((edges[first] + bool(first), edges[last]))
        now = edges[-1]
    return steps, draw(st.permutations(flights))


@given(timelines())
def test_the_steps_are_found_again(timeline: tuple[list[Step], list[tuple[int, int]]]) -> None:
    steps, flights = timeline
    iterations = [Iteration(step.end_ns, step.prompt_tokens, step.generated_tokens) for step in steps]
    assert steps_of(iterations, flights) == tuple(steps)


def test_marks_from_the_front_end_come_late_and_never_overlap() -> None:
    # The core's times are 100..200 and 260..300, each seen 30 later: by then the next request was scheduled.
    iterations = [Iteration(150, 8, 0), Iteration(230, 0, 1), Iteration(295, 8, 0), Iteration(330, 0, 1)]
    steps = steps_of(iterations, [(100, 200), (225, 300)])
    assert [(step.start_ns, step.end_ns) for step in steps] == [
        (100, 150),
        (150, 230),
        (230, 295),
        (295, 330),
    ]


def stats(**details: object) -> SimpleNamespace:
    return SimpleNamespace(iteration_details=SimpleNamespace(**details) if details else None)


def test_what_says_nothing_of_an_iteration_is_left_out() -> None:
    recorder = IterationRecorder()
    tokens = SimpleNamespace(num_generation_tokens=5, time_to_first_tokens_iter=[0.1, 0.2])
    recorder.record(None, tokens)
    recorder.record(stats(), tokens)
    recorder.record(stats(num_ctx_tokens=0, is_dummy=True), None)
    recorder.record(stats(num_ctx_tokens=7), None)
    recorder.record(stats(num_ctx_tokens=9, is_dummy=False), tokens)
    taken = recorder.take()
    # Of five new tokens two are the first of their response.
    assert [(each.prompt_tokens, each.generated_tokens) for each in taken] == [(7, 0), (9, 3)]
    assert taken[0].end_ns < taken[1].end_ns
    assert recorder.take() == ()
    assert recorder.clock == "front end"


def test_flights_are_nanoseconds_of_the_monotonic_clock() -> None:
    output = SimpleNamespace(metrics=SimpleNamespace(scheduled_ts=12.5, last_token_ts=13.25))
    assert flights_of([output]) == ((12_500_000_000, 13_250_000_000),)


@pytest.mark.parametrize("iterations", [[], [Iteration(100, 1, 0)]])
def test_without_a_request_there_is_no_step(iterations: list[Iteration]) -> None:
    assert steps_of(iterations, []) == ()
