"""The contract on the pure Python engine, and the step recorder's bookkeeping against the scheduler's own truth."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.engines.protocol import Engine
from pytest_tokenpower.engines.vllm.steps import StepRecorder
from pytest_tokenpower.errors import EngineError
from pytest_tokenpower.workloads.base import Batch
from tests.support.contract import ClosingContract, EngineContract, check_bookkeeping, prompts
from tests.support.stub import Cached, FakeScheduler, Scheduled, StubEngine, labels

batches = st.builds(
    Batch,
    st.lists(st.lists(st.integers(0, 511), min_size=1, max_size=40), min_size=1, max_size=6),
    st.integers(1, 8),
)


class TestStub(EngineContract):
    @classmethod
    def make(cls, models: Path) -> Engine:
        return StubEngine()


class TestStubClosing(ClosingContract):
    @classmethod
    def make(cls, models: Path) -> Engine:
        return StubEngine()


class TestStubOfManyChunks(EngineContract):
    @classmethod
    def make(cls, models: Path) -> Engine:
        return StubEngine(budget=5)


@given(batches, st.integers(1, 300))
def test_steps_say_what_the_scheduler_did(batch: Batch, budget: int) -> None:
    engine = StubEngine(budget)
    generation = engine.generate(batch)
    check_bookkeeping(batch, generation)
    assert list(labels(generation)) == engine.scheduler.truth
    assert generation.steps_exact
    if budget >= batch.tokens.prompt:
        assert list(labels(generation)) == [
            (batch.tokens.prompt, 0),
            *[(0, len(batch.prompts))] * (batch.new_tokens - 1),
        ]


@given(batches, st.integers(1, 60), st.sets(st.integers(0, 30), min_size=1, max_size=3))
def test_what_a_preemption_computes_again_counts_once_and_is_not_exact(
    batch: Batch, budget: int, preempt_at: set[int]
) -> None:
    engine = StubEngine(budget, sorted(preempt_at))
    generation = engine.generate(batch)
    check_bookkeeping(batch, generation)
    assert list(labels(generation)) == engine.scheduler.truth
    assert generation.steps_exact == (engine.scheduler.preempted == 0)


def test_a_small_budget_mixes_prefill_and_decode() -> None:
    batch = Batch(prompts(8, 48), 16)
    steps = list(labels(StubEngine(64).generate(batch)))
    assert [prompt > 0 and generated == 0 for prompt, generated in steps].count(True) == 1
    assert [prompt > 0 and generated > 0 for prompt, generated in steps].count(True) == 6
    assert steps[0] == (64, 0)


def test_steps_in_flight_together_are_counted_from_the_end_of_the_one_before() -> None:
    scheduler = FakeScheduler(budget=4)
    recorder = StepRecorder(scheduler)
    first, second = (
        Scheduled([SimpleNamespace(req_id=name, num_computed_tokens=0)], Cached([], [], [], set()), {name: 3})
        for name in "ab"
    )
    queue = iter((first, second))
    scheduler.schedule = lambda: next(queue)  # type: ignore[method-assign]
    recorder = StepRecorder(scheduler)
    for _ in range(2):
        scheduler.schedule()
    for output in (first, second):
        time.sleep(0.001)
        scheduler.update_from_output(output, None)
    (one, two), exact = recorder.take()
    assert not exact
    assert one.end_ns == two.start_ns
    assert (one.prompt_tokens, two.prompt_tokens) == (3, 3)


def test_a_recorder_lets_go_of_its_scheduler() -> None:
    scheduler = FakeScheduler(budget=4)
    recorder = StepRecorder(scheduler)
    assert "schedule" in vars(scheduler)
    recorder.unwrap()
    assert not {"schedule", "update_from_output"} & set(vars(scheduler))


def test_a_scheduler_of_an_unknown_version_is_named() -> None:
    with pytest.raises(EngineError, match=r"SimpleNamespace has no update_from_output\(\)"):
        StepRecorder(SimpleNamespace(schedule=lambda: None))
