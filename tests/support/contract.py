"""What every adapter promises, as tests: derive from :class:`EngineContract` and say how to make the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest

from pytest_tokenpower.engines.protocol import Engine, Generation, Serving
from pytest_tokenpower.errors import EngineError
from pytest_tokenpower.workloads.arrivals import AllAtOnce, Arrivals, Concurrency, Poisson
from pytest_tokenpower.workloads.base import Batch

VOCAB = 512


def prompts(responses: int, length: int) -> list[list[int]]:
    """Different prompts of one length, over the vocabulary of the tiny model."""
    return [[(37 * row + 11 * column) % 500 + 3 for column in range(length)] for row in range(responses)]


def check_bookkeeping(batch: Batch, generation: Generation) -> None:
    """Count of a generation and of its steps against the batch that was asked for."""
    assert [len(ids) for ids in generation.token_ids] == [batch.new_tokens] * len(batch.prompts)
    cached = generation.tokens.cached_prompt
    assert replace(generation.tokens, cached_prompt=0) == batch.tokens
    assert sum(step.prompt_tokens for step in generation.steps) == batch.tokens.prompt - cached
    # Each response's first token belongs to its prefill.
    decoded = batch.tokens.generated - len(batch.prompts)
    assert sum(step.generated_tokens for step in generation.steps) == decoded
    for step in generation.steps:
        assert step.start_ns < step.end_ns
        assert min(step.prompt_tokens, step.generated_tokens) >= 0
    for before, after in pairwise(generation.steps):
        assert before.end_ns <= after.start_ns


def check_seats(batch: Batch, generation: Generation, seats: int) -> None:
    """No prompt is prefilled before all but ``seats`` - 1 of the earlier requests have their last token."""
    begun = prompt = decoded = 0
    for step in generation.steps:
        while begun < len(batch.prompts) and prompt + step.prompt_tokens > sum(
            map(len, batch.prompts[:begun])
        ):
            begun += 1
        assert decoded >= (begun - seats) * (batch.new_tokens - 1)
        prompt += step.prompt_tokens
        decoded += step.generated_tokens


class Maker:
    """Subclasses define ``make``, which may write models to the folder."""

    steps_exact = True
    """False: they are worked out from when tokens arrived, which on a busy machine shows neighbouring steps as one."""

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
        assert generation.steps_exact is self.steps_exact
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


@dataclass(frozen=True)
class Every(Arrivals):
    """One request after the other, so many seconds apart."""

    apart_s: float

    def seconds(self, count: int) -> tuple[float, ...]:
        return tuple(self.apart_s * index for index in range(count))


@dataclass(frozen=True)
class Nobody(Arrivals):
    """Lets no request in."""

    @property
    def limit(self) -> int:
        return 0


def ids(generation: Generation) -> list[list[int]]:
    return [list(each) for each in generation.token_ids]


class ServingContract(Maker):
    """What holds beside it for an engine that takes requests while others run."""

    served = Batch([prompt[: 12 + 3 * row] for row, prompt in enumerate(prompts(6, 30))], 8)

    def serve(self, engine: Engine, batch: Batch, arrivals: Arrivals) -> Generation:
        assert isinstance(engine, Serving)
        return engine.serve(batch, arrivals)

    def test_all_at_once_gives_the_tokens_of_generate(self, engine: Engine) -> None:
        generation = self.serve(engine, self.served, AllAtOnce())
        check_bookkeeping(self.served, generation)
        assert ids(generation) == ids(engine.generate(self.served))
        if self.steps_exact:
            assert max(step.generated_tokens for step in generation.steps) == 6

    @pytest.mark.parametrize("requests", [1, 2])
    def test_no_more_at_a_time_than_the_limit(self, engine: Engine, requests: int) -> None:
        generation = self.serve(engine, self.served, Concurrency(requests))
        check_bookkeeping(self.served, generation)
        check_seats(self.served, generation, requests)
        assert ids(generation) == ids(engine.generate(self.served))
        if self.steps_exact:
            # Each unfinished request decodes one token in a step.
            assert max(step.generated_tokens for step in generation.steps) == requests

    @pytest.mark.parametrize("arrivals", [Poisson(50.0, seed=3), Every(0.05)])
    def test_requests_are_waited_for(self, engine: Engine, arrivals: Arrivals) -> None:
        start_ns = time.monotonic_ns()
        generation = self.serve(engine, self.served, arrivals)
        check_bookkeeping(self.served, generation)
        due_ns = [start_ns + seconds * 1e9 for seconds in arrivals.seconds(len(self.served.prompts))]
        for index, due in enumerate(due_ns):
            earlier = sum(step.prompt_tokens for step in generation.steps if step.start_ns < due)
            assert earlier <= sum(map(len, self.served.prompts[:index]))
        assert generation.steps[-1].end_ns > due_ns[-1]

    def test_a_request_joins_while_others_decode(self, engine: Engine) -> None:
        batch = Batch(prompts(3, 24), 200)
        # On a busy machine they may all have come before the first of them has a token.
        for apart_s in (0.01, 0.1, 0.4):
            generation = self.serve(engine, batch, Every(apart_s))
            check_bookkeeping(batch, generation)
            steps = generation.steps
            last_prefill = max(at for at, step in enumerate(steps) if step.prompt_tokens)
            if any(step.generated_tokens for step in steps[:last_prefill]):
                break
        else:
            pytest.fail("each request waited until the others had ended")
        if self.steps_exact:
            assert any(step.prompt_tokens and step.generated_tokens for step in steps)

    def test_serving_is_refused_what_cannot_run(self, engine: Engine) -> None:
        with pytest.raises(EngineError, match="prompt 0 holds token ids outside 0 to 511"):
            self.serve(engine, Batch([[VOCAB]], 1), AllAtOnce())
        with pytest.raises(EngineError, match="at least one request at a time"):
            self.serve(engine, self.served, Nobody())
        check_bookkeeping(self.served, self.serve(engine, self.served, AllAtOnce()))


class ClosingContract(Maker):
    """Apart from the others: an engine that is alone in its process cannot be made beside the shared one."""

    def test_close_twice_then_generate(self, models: Path) -> None:
        engine = self.make(models)
        engine.close()
        engine.close()
        with pytest.raises(EngineError, match="after close"):
            engine.generate(EngineContract.batch)
        assert engine.identity.engine
