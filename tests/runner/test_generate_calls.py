"""Calls of transformers' generate() that are seen to run: prompts and ends are those of the call, wherever it is."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pytest_tokenpower import measure
from pytest_tokenpower.core.tokens import TokenCount, count_tokens
from pytest_tokenpower.errors import TokenCountError
from pytest_tokenpower.runner.generate_calls import generate_calls

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.real_engine

EOS, NEW = 2, 20
SAMPLED = {"do_sample": True, "max_new_tokens": NEW}
IDS = torch.randint(3, 16, (4, 6), generator=torch.Generator().manual_seed(7))
SUFFIX = torch.tensor([[5, 6]] * 4)


def _llama(pad: int | None = 0) -> Any:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(
        vocab_size=16,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=pad,
        **small,
    )
    return transformers.LlamaForCausalLM(config).eval()


_Criterion: Any = transformers.StoppingCriteria
_Llama: Any = transformers.LlamaForCausalLM
_Cache: Any = transformers.DynamicCache
LLAMA, PADLESS = _llama(), _llama(pad=None)
GIVEN = transformers.GenerationConfig(**SAMPLED, eos_token_id=7, pad_token_id=0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    yield
    torch.set_num_threads(threads)


class At5(_Criterion):  # type: ignore[misc]
    def __call__(self, ids: Any, scores: Any, **kwargs: Any) -> Any:
        return ids[:, -1] == 5


class Wrapper:
    """Has a generate() of its own, and the model's config."""

    def __init__(self, **settings: Any) -> None:
        self.config, self.settings = LLAMA.config, settings

    def generate(self, ids: Any) -> Any:
        return LLAMA.generate(ids, **SAMPLED, **self.settings)


class Override(_Llama):  # type: ignore[misc]
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return super().generate(*args, **kwargs, **SAMPLED, eos_token_id=7)


class Embedding(_Llama):  # type: ignore[misc]
    """As BLIP-2 and others with a generate() of their own: embeddings, and the ids that the result begins with."""

    def generate(self, ids: Any, **settings: Any) -> Any:
        embeds = self.get_input_embeddings()(ids)
        return super().generate(input_ids=ids, inputs_embeds=embeds, **settings)


def by_hand(rows: Any, *ends: int) -> int:
    return sum(next((i + 1 for i, t in enumerate(row) if t in ends), len(row)) for row in rows.tolist())


def seen(fn: Callable[..., Any], *args: Any) -> tuple[Any, TokenCount]:
    with generate_calls() as calls:
        result = calls.noting(lambda: fn(*args))()
        return result, count_tokens(result, args, {}, fn, calls.of(result))


SEEN: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "own-function": (lambda ids: LLAMA.generate(ids, **SAMPLED), (EOS,)),
    "another-end": (lambda ids: LLAMA.generate(ids, **SAMPLED, eos_token_id=7), (7,)),
    "another-config": (lambda ids: LLAMA.generate(ids, generation_config=GIVEN), (7,)),
    "padding-is-the-end": (lambda ids: PADLESS.generate(ids, **SAMPLED), (EOS,)),
    "criteria": (lambda ids: LLAMA.generate(ids, **SAMPLED, stopping_criteria=[At5()]), (EOS, 5)),
    "object-with-generate": (Wrapper().generate, (EOS,)),
    "whose-end-is-another": (Wrapper(eos_token_id=7).generate, (7,)),
    "whose-criteria-are-its-own": (Wrapper(stopping_criteria=[At5()]).generate, (EOS, 5)),
    "overridden-generate": (Override(LLAMA.config).eval().generate, (7,)),
}


@pytest.mark.parametrize(("fn", "ends"), SEEN.values(), ids=list(SEEN))
def test_the_settings_are_those_of_the_call(fn: Callable[..., Any], ends: tuple[int, ...]) -> None:
    result, count = seen(fn, IDS)
    expected = by_hand(result[:, 6:], *ends)
    assert expected < result[:, 6:].numel()
    assert count == TokenCount(24, expected, 4)


def test_a_prompt_that_the_workload_makes_longer_is_all_prompt() -> None:
    result, count = seen(lambda ids: LLAMA.generate(torch.cat([ids, SUFFIX], 1), **SAMPLED), IDS)
    assert count == TokenCount(32, by_hand(result[:, 8:], EOS), 4)


def test_embeddings_that_the_workload_makes_are_its_prompt() -> None:
    embed = LLAMA.get_input_embeddings()
    result, count = seen(lambda ids: LLAMA.generate(inputs_embeds=embed(ids), **SAMPLED), IDS)
    assert count == TokenCount(24, by_hand(result, EOS), 4)


def test_ids_beside_embeddings_are_what_the_result_begins_with() -> None:
    model = Embedding(LLAMA.config).eval()
    result, count = seen(lambda ids: model.generate(ids, **SAMPLED), IDS)
    assert result[:, :6].tolist() == IDS.tolist()
    assert count == TokenCount(24, by_hand(result[:, 6:], EOS), 4)


def test_every_call_of_an_execution_counts_whatever_came_back() -> None:
    def turns(ids: Any) -> Any:
        first = LLAMA.generate(ids, **SAMPLED, eos_token_id=None, pad_token_id=15)
        ones = torch.ones(4, NEW + 8, dtype=torch.long)
        more = torch.cat([first, SUFFIX], 1)
        return LLAMA.generate(more, attention_mask=ones, **SAMPLED, eos_token_id=None, pad_token_id=15)

    padded = int((IDS == 15).sum())
    assert seen(turns, IDS)[1] == TokenCount(24 - padded + 4 * (NEW + 8), 8 * NEW, 8)
    result, count = seen(lambda ids: LLAMA.generate(ids, **SAMPLED, eos_token_id=None)[:, :9], IDS)
    assert result.shape == (4, 9)
    assert count == TokenCount(24, 4 * NEW, 4)


def test_rows_of_their_own_lengths_are_seen_to_be_of_it() -> None:
    def one_by_one(ids: Any) -> Any:
        return [LLAMA.generate(each[None], **SAMPLED)[0].tolist() for each in ids]

    result, count = seen(one_by_one, IDS)
    assert len({len(row) for row in result}) > 1
    assert count == TokenCount(24, sum(len(row) - 6 for row in result), 4)
    result, count = seen(lambda ids: LLAMA.generate(ids, **SAMPLED)[0], IDS[:1])
    assert count == TokenCount(6, len(result) - 6, 1)


def test_what_an_assistant_drafts_is_no_answer() -> None:
    assistant = _llama()
    result, count = seen(
        lambda ids: LLAMA.generate(ids, max_new_tokens=NEW, do_sample=False, assistant_model=assistant),
        IDS[:1],
    )
    assert count == TokenCount(6, result.shape[1] - 6, 1)


def test_ids_that_no_call_returned_are_held_against_what_is_in_sight() -> None:
    def other(ids: Any) -> Any:
        LLAMA.generate(ids, **SAMPLED)
        return torch.arange(40).reshape(4, 10)

    with pytest.raises(TokenCountError, match="where the prompts end"):
        seen(other, IDS)


@pytest.mark.parametrize("awaited", [False, True])
def test_an_error_of_the_workload_shows_none_of_our_frames(awaited: bool) -> None:
    def broken() -> Any:
        return LLAMA.generate(IDS, max_new_tokens=-1)

    async def broken_later() -> Any:
        return broken()

    with generate_calls() as calls:
        work = calls.noting(broken_later if awaited else broken, awaited=awaited)
        with pytest.raises(ValueError, match="max_new_tokens") as caught:
            _ = asyncio.run(work()) if awaited else work()
    ours = [entry for entry in caught.traceback if "pytest_tokenpower/" in str(entry.path)]
    assert len(ours) == 3
    assert all(entry.frame.f_locals.get("__tracebackhide__") for entry in ours)


@pytest.mark.parametrize("type_", [torch.bool, torch.float32])
def test_a_mask_may_be_of_any_type(type_: Any) -> None:
    ids = IDS.clone()
    ids[1, :3] = EOS
    mask = torch.ones_like(IDS)
    mask[1, :3] = 0
    for given in ({"input_ids": ids}, {"inputs_embeds": PADLESS.get_input_embeddings()(ids)}):
        batch = given | {"attention_mask": mask.to(type_)}
        result = PADLESS.generate(**batch, **SAMPLED)
        assert count_tokens(result, (), batch, PADLESS.generate).prompt == 21


def test_the_fixture_sees_them_in_every_way_to_run_a_workload() -> None:
    def chat(ids: Any) -> Any:
        return LLAMA.generate(torch.cat([ids, SUFFIX], 1), **SAMPLED, eos_token_id=None)

    async def chat_later(ids: Any) -> Any:
        return chat(ids)

    rounds: dict[str, Any] = {"warmup_rounds": 1, "min_rounds": 2, "max_rounds": 2}
    before = transformers.generation.utils.GenerationMixin.generate
    with measure("simulated", **rounds) as call:
        call(chat, IDS)
    with measure("simulated", **rounds) as in_turn:
        in_turn(chat_later, IDS)

    async def notebook() -> None:
        with measure("simulated", **rounds) as awaited:
            await awaited.async_run(chat_later, IDS)
        check(awaited)

    def check(measured: Any) -> None:
        for one in measured.result.rounds:
            assert (one.prompt_tokens, one.generated_tokens) == (32 * one.repeats, 4 * NEW * one.repeats)

    check(call)
    check(in_turn)
    asyncio.run(notebook())
    with measure("simulated", **rounds) as compared:
        compared.compare(baseline=lambda: chat(IDS), candidate=lambda: chat(IDS))
    assert compared.result.rounds
    assert transformers.generation.utils.GenerationMixin.generate is before


def test_what_a_cache_gives_back_was_not_generated() -> None:
    cached = functools.cache(lambda: LLAMA.generate(IDS, **SAMPLED))
    with (
        pytest.raises(TokenCountError, match="returned the very result of the one before"),
        measure("simulated") as m,
    ):
        m(cached)


def test_a_count_of_one_s_own_may_be_the_same_object_each_time() -> None:
    count, first = TokenCount(24, 80, 4), [IDS]

    def work() -> TokenCount:
        while first:
            LLAMA.generate(first.pop(), **SAMPLED)
        return count

    with measure("simulated", warmup_rounds=1, min_rounds=2, max_rounds=2) as m:
        m(work)
    assert m.result.rounds[0].generated_tokens == 80 * m.result.rounds[0].repeats


def test_beside_a_call_that_was_not_seen_the_seen_ones_are_not_all() -> None:
    kept = LLAMA.generate

    def turns(ids: Any) -> Any:
        return LLAMA.generate(kept(ids, **SAMPLED, eos_token_id=None), **SAMPLED, eos_token_id=None)

    _, count = seen(turns, IDS)
    assert count == TokenCount(24, 2 * 4 * NEW, 4)


def test_what_wraps_ours_meanwhile_notes_nothing_later() -> None:
    mixin = transformers.generation.utils.GenerationMixin
    before = mixin.generate
    try:
        with generate_calls() as calls:
            mixin.generate = functools.partialmethod(mixin.generate)
        LLAMA.generate(IDS, **SAMPLED)
        assert not calls._now
    finally:
        mixin.generate = before
    assert "prepared" not in mixin._prepare_generation_config.__qualname__


OPEN = {**SAMPLED, "eos_token_id": None, "pad_token_id": 15}
PROMPT = int((IDS != 15).sum())


def in_a_block(body: Callable[[Any], object]) -> TokenCount:
    with measure("simulated") as block:
        body(block)
    [one] = block.result.rounds
    return TokenCount(one.prompt_tokens, one.generated_tokens, one.responses)


def batches(number: int) -> list[Any]:
    return [LLAMA.generate(IDS, **OPEN) for _ in range(number)]


BLOCKS: dict[str, tuple[Callable[[Any], object], int]] = {
    "in-turn": (lambda block: [block.count(LLAMA.generate(IDS, **OPEN)) for _ in range(3)], 3),
    "a-list": (lambda block: block.count(batches(3)), 3),
    "later-and-new-ids-alone": (lambda block: [block.count(out[:, 6:].clone()) for out in batches(3)], 3),
    "one-of-two": (lambda block: block.count(batches(2)[0]), 2),
    "with-scores": (
        lambda block: block.count(
            LLAMA.generate(IDS, **OPEN, return_dict_in_generate=True, output_scores=True)
        ),
        1,
    ),
}


@pytest.mark.parametrize(("body", "calls"), BLOCKS.values(), ids=list(BLOCKS))
def test_ids_that_a_block_counts_are_those_of_its_calls(body: Callable[[Any], object], calls: int) -> None:
    assert in_a_block(body) == TokenCount(calls * PROMPT, calls * 4 * NEW, calls * 4)


def test_a_block_ends_sequences_where_their_call_did() -> None:
    kept = []

    def body(block: Any) -> None:
        kept.append(PADLESS.generate(IDS, **SAMPLED))
        block.count(kept[0])

    count = in_a_block(body)
    assert count == TokenCount(24, by_hand(kept[0][:, 6:], EOS), 4)
    assert count.generated < 4 * NEW


def test_a_window_keeps_no_model_alive() -> None:
    model = _llama()
    with measure("simulated") as block, block.measure() as window:
        window.count(model.generate(IDS, **OPEN))
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
    assert window.counted


def test_each_window_of_a_block_has_its_own_calls() -> None:
    with measure("simulated") as block:
        for number in (1, 2):
            with block.measure() as window:
                window.count(batches(number))
    assert [one.generated_tokens for one in block.result.rounds] == [4 * NEW, 8 * NEW]


def _beside(block: Any) -> None:
    block.tokens(prompt=PROMPT, generated=4 * NEW)
    block.count(batches(2)[1])


def _out_of_sight(block: Any) -> None:
    block.count(LLAMA.generate(IDS, **OPEN))
    KEPT(IDS, **OPEN)


KEPT = LLAMA.generate


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (_beside, "2 calls of generate.. ran, and ids of 1 of them are beside a count of your own"),
        (_out_of_sight, "was called out of sight beside calls that were seen"),
        (lambda block: [block.count(out) for out in batches(1) * 2], "was counted twice"),
    ],
)
def test_a_block_whose_calls_are_not_all_known_is_refused(
    body: Callable[[Any], object], message: str
) -> None:
    with pytest.raises(TokenCountError, match=message):
        in_a_block(body)


def test_a_count_of_one_s_own_beside_ids_may_be_of_the_other_calls() -> None:
    def both(ids: Any) -> Any:
        return [LLAMA.generate(ids, **OPEN), TokenCount(PROMPT, 4 * NEW, 4)]

    assert seen(both, IDS)[1] == TokenCount(2 * PROMPT, 8 * NEW, 8)
    with pytest.raises(TokenCountError, match=r"item \[1\] .*: 2 calls of generate.. ran"):
        seen(lambda ids: (LLAMA.generate(ids, **OPEN), both(ids))[1], IDS)


def test_what_a_cache_that_was_given_held_is_counted_apart() -> None:
    prefix = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14]] * 2)
    held = transformers.DynamicCache(config=LLAMA.config)
    with torch.no_grad():
        LLAMA(prefix, past_key_values=held, use_cache=True)

    def answer(ids: Any) -> Any:
        cache = copy.deepcopy(held)
        return LLAMA.generate(torch.cat([prefix, ids], 1), past_key_values=cache, **SAMPLED)

    result, count = seen(answer, IDS[:2])
    assert count == TokenCount(32, by_hand(result[:, 16:], EOS), 2, 20)

    class Silent(_Cache):  # type: ignore[misc]
        told = False

        def get_seq_length(self, *args: Any, **kwargs: Any) -> Any:
            if not self.told:
                self.told = True
                raise NotImplementedError
            return super().get_seq_length(*args, **kwargs)

    with pytest.raises(TokenCountError, match="do not say how much of the prompt they held"):
        seen(lambda ids: LLAMA.generate(ids, past_key_values=Silent(config=LLAMA.config), **SAMPLED), IDS)

    def from_nothing(ids: Any) -> Any:
        return LLAMA.generate(ids, past_key_values=transformers.DynamicCache(config=LLAMA.config), **SAMPLED)

    assert seen(from_nothing, IDS)[1].cached_prompt == 0


def test_batches_that_are_padded_to_one_width_are_seen_to_be_of_their_calls() -> None:
    pad = torch.nn.functional.pad

    def in_two(ids: Any) -> Any:
        return torch.cat(
            [pad(LLAMA.generate(each, **SAMPLED), (0, 40))[:, :40] for each in (ids[:2], ids[2:])]
        )

    result, count = seen(in_two, IDS)
    assert count == TokenCount(24, by_hand(result[:, 6 : 6 + NEW], EOS), 4)


def test_rows_without_their_padding_are_seen_to_be_of_it() -> None:
    made = []

    def without_padding(ids: Any, keep_end: int) -> Any:
        made.append(LLAMA.generate(ids, **SAMPLED)[:, 6:].tolist())
        return [row[: row.index(EOS) + keep_end] if EOS in row else row for row in made[-1]]

    for keep_end in (1, 0):
        torch.manual_seed(1)
        _, count = seen(without_padding, IDS, keep_end)
        assert count == TokenCount(24, by_hand(torch.tensor(made[-1]), EOS), 4)


def test_the_settings_are_those_of_the_moment_of_the_call() -> None:
    model = _llama()

    def both(ids: Any) -> Any:
        model.generation_config.eos_token_id = 7
        first = model.generate(ids, **SAMPLED)
        model.generation_config.eos_token_id = None
        return [first, model.generate(ids, **SAMPLED)]

    result, count = seen(both, IDS)
    assert count == TokenCount(48, by_hand(result[0][:, 6:], 7) + 4 * NEW, 8)


def test_a_block_looks_through_each_call_once_however_many_results_it_counts() -> None:
    with generate_calls() as calls:
        LLAMA.generate(IDS, **SAMPLED)
        first = calls.so_far()
        LLAMA.generate(IDS, **SAMPLED)
        both = calls.so_far()
    assert first is not None
    assert both is not None
    assert len(both.ran) == 2
    assert both.ran[0][1] is first.ran[0][1]
