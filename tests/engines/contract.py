"""What every adapter promises, as tests: derive from :class:`EngineContract` and say how to make the engine."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import pytest

from pytest_tokenpower.engines.protocol import Batch, Engine, Generation
from pytest_tokenpower.errors import EngineError

VOCAB = 512


def prompts(responses: int, length: int) -> list[list[int]]:
    """Different prompts of one length, over the vocabulary of the tiny model."""
    return [[(37 * row + 11 * column) % 500 + 3 for column in range(length)] for row in range(responses)]


def check_bookkeeping(batch: Batch, generation: Generation) -> None:
    """Counts of a generation and of its steps against the batch that was asked for."""
    assert [len(ids) for ids in generation.token_ids] == [batch.new_tokens] * len(batch.prompts)
    assert generation.tokens == batch.tokens
    assert sum(step.prompt_tokens for step in generation.steps) == batch.tokens.prompt
    # Each response's first token belongs to its prefill.
    decoded = batch.tokens.generated - len(batch.prompts)
    assert sum(step.generated_tokens for step in generation.steps) == decoded
    for step in generation.steps:
        assert step.start_ns < step.end_ns
        assert min(step.prompt_tokens, step.generated_tokens) >= 0
    for before, after in pairwise(generation.steps):
        assert before.end_ns <= after.start_ns


class Maker:
    """Subclasses define ``make``, which may write models to the folder."""

    @classmethod
    def make(cls, models: Path) -> Engine:
        raise NotImplementedError


class EngineContract(Maker):
    """What holds while an engine is open; ``engine`` is shared by a class's tests."""

    batch = Batch(prompts(3, 24), 6)
    device_ids: tuple[str, ...] | None = ()

    def test_satisfies_the_protocol(self, engine: Engine) -> None:
        assert isinstance(engine, Engine)

    def test_counts_and_steps_add_up_inside_the_call(self, engine: Engine) -> None:
        start = time.monotonic_ns()
        generation = engine.generate(self.batch)
        end = time.monotonic_ns()
        check_bookkeeping(self.batch, generation)
        assert generation.steps
        assert generation.steps_exact
        assert start <= generation.steps[0].start_ns
        assert generation.steps[-1].end_ns <= end
        assert generation.steps[0].prompt_tokens > 0

    def test_greedy_rounds_give_the_same_tokens(self, engine: Engine) -> None:
        first = engine.generate(self.batch)
        again = engine.generate(Batch([list(prompt) for prompt in self.batch.prompts], self.batch.new_tokens))
        assert [list(ids) for ids in first.token_ids] == [list(ids) for ids in again.token_ids]
        assert all(0 <= token < VOCAB for ids in first.token_ids for token in ids)

    def test_one_new_token_is_all_prefill(self, engine: Engine) -> None:
        batch = Batch(self.batch.prompts, 1)
        generation = engine.generate(batch)
        check_bookkeeping(batch, generation)
        assert all(step.generated_tokens == 0 for step in generation.steps)

    def test_prompts_of_different_lengths(self, engine: Engine) -> None:
        batch = Batch([prompt[: 5 + 7 * row] for row, prompt in enumerate(self.batch.prompts)], 4)
        check_bookkeeping(batch, engine.generate(batch))

    def test_identity(self, engine: Engine) -> None:
        identity = engine.identity
        assert identity == engine.identity
        assert identity.engine
        assert identity.version[0].isdigit()
        assert identity.model == "tiny"
        assert {"dtype", "quantization", "kv_cache_dtype", "weights"} <= set(identity.axes)
        assert identity.axes["tensor_parallel"] == identity.axes["pipeline_parallel"] == 1
        for value in (*identity.axes.values(), *identity.facts.values()):
            assert value is None or isinstance(value, str | int | float | bool)

    def test_devices(self, engine: Engine) -> None:
        found = engine.device_ids
        assert (None if found is None else tuple(found)) == self.device_ids

    @pytest.mark.parametrize(
        ("batch", "complaint"),
        [
            (Batch([], 4), "no prompt"),
            (Batch([[1, 2], []], 4), "prompt 1 is empty"),
            (Batch([[1, 2]], 0), "new_tokens=0"),
            (Batch([[1, 2], [1, VOCAB]], 4), "prompt 1 holds token ids outside 0 to 511"),
            (Batch([[1] * 100_000], 4), "prompt 0 has 100000 tokens"),
        ],
        ids=["none", "empty", "nothing asked", "vocabulary", "length"],
    )
    def test_a_batch_that_cannot_run_is_refused(self, engine: Engine, batch: Batch, complaint: str) -> None:
        with pytest.raises(EngineError, match=complaint):
            engine.generate(batch)

    def test_works_on_after_a_refused_batch(self, engine: Engine) -> None:
        with pytest.raises(EngineError):
            engine.generate(Batch([[VOCAB]], 1))
        check_bookkeeping(self.batch, engine.generate(self.batch))


class ClosingContract(Maker):
    """Apart from the others: an engine that is alone in its process cannot be made beside the shared one."""

    def test_close_twice_then_generate(self, models: Path) -> None:
        engine = self.make(models)
        engine.close()
        engine.close()
        with pytest.raises(EngineError, match="after close"):
            engine.generate(EngineContract.batch)
        assert engine.identity.engine
