"""Token ids of real, tiny transformers models against counts by hand: prompts, ends, and what cannot be known."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pytest_tokenpower.core.tokens import TokenCount, count_tokens
from pytest_tokenpower.errors import TokenCountError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.real_engine

EOS, PAD, NEW = 2, 0, 30


def _llama(eos: int | list[int] | None = EOS, pad: int | None = PAD) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    return transformers.LlamaForCausalLM(config).eval()


def _t5() -> Any:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=16,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=3,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return transformers.T5ForConditionalGeneration(config).eval()


LLAMA, PADLESS = _llama(), _llama(pad=None)
T5 = _t5()
IDS = torch.randint(3, 16, (4, 6), generator=torch.Generator().manual_seed(7))
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
SAMPLED = {"do_sample": True, "max_new_tokens": NEW}


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # More threads than free cores make tiny models slow.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # Random weights end a sequence by chance alone, when sampled.
    for model in (LLAMA, T5):
        sample = type(model)._sample

        def seeded(self: Any, *args: Any, _sample: Any = sample, **kwargs: Any) -> Any:
            torch.manual_seed(1)
            return _sample(self, *args, **kwargs)

        monkeypatch.setattr(type(model), "_sample", seeded)
    yield
    torch.set_num_threads(threads)


def by_hand(rows: Any, ends: tuple[int, ...] = (EOS,)) -> int:
    return sum(next((i + 1 for i, t in enumerate(row) if t in ends), len(row)) for row in rows.tolist())


def counted(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, TokenCount]:
    result = fn(*args, **kwargs)
    return result, count_tokens(result, args, kwargs, fn)


def new(result: Any) -> Any:
    return getattr(result, "sequences", result)[:, IDS.shape[1] :]


_Criterion: Any = transformers.StoppingCriteria


class _At5(_Criterion):  # type: ignore[misc]
    def __call__(self, ids: Any, scores: Any, **kwargs: Any) -> Any:
        return ids[:, -1] == 5


def _decorated(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


CALLS = {
    "plain": (LLAMA.generate, INPUTS | SAMPLED),
    "inputs": (LLAMA.generate, {"inputs": IDS} | SAMPLED),
    "output-object": (LLAMA.generate, INPUTS | SAMPLED | {"return_dict_in_generate": True}),
    "partial": (functools.partial(LLAMA.generate, **SAMPLED), INPUTS),
    "partial-of-partial": (functools.partial(functools.partial(LLAMA.generate, **SAMPLED), **INPUTS), {}),
    "decorated": (_decorated(LLAMA.generate), INPUTS | SAMPLED),
    "inference-mode": (torch.inference_mode()(LLAMA.generate), INPUTS | SAMPLED),
    "decorated-partial": (torch.no_grad()(functools.partial(LLAMA.generate, **SAMPLED)), INPUTS),
    "config-given": (
        LLAMA.generate,
        INPUTS | {"generation_config": transformers.GenerationConfig(do_sample=True, max_new_tokens=NEW)},
    ),
    "padding-is-the-end": (PADLESS.generate, INPUTS | SAMPLED),
}


@pytest.mark.parametrize(("fn", "kwargs"), CALLS.values(), ids=list(CALLS))
def test_the_end_is_that_of_the_model(fn: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    result, count = counted(fn, **kwargs)
    expected = by_hand(new(result))
    assert expected < new(result).numel()
    assert count == TokenCount(24, expected, 4)


@pytest.mark.parametrize("as_", [list, tuple, torch.tensor], ids=["list", "tuple", "tensor"])
@pytest.mark.parametrize("given_by", ["call", "config", "model"])
def test_several_ends(as_: Callable[[list[int]], Any], given_by: str) -> None:
    kwargs: dict[str, Any]
    ends = as_([EOS, 7])
    if given_by == "model":
        model, kwargs = _llama(eos=[EOS, 7]), SAMPLED
    elif given_by == "config":
        config = transformers.GenerationConfig(do_sample=True, max_new_tokens=NEW, eos_token_id=[EOS, 7])
        model, kwargs = LLAMA, {"generation_config": config}
    else:
        model, kwargs = LLAMA, SAMPLED | {"eos_token_id": ends if not isinstance(ends, tuple) else list(ends)}
    result, count = counted(model.generate, **INPUTS, **kwargs)
    assert count == TokenCount(24, by_hand(new(result), (EOS, 7)), 4)


def test_without_an_end_all_counts() -> None:
    _, count = counted(LLAMA.generate, **INPUTS, **SAMPLED, eos_token_id=None)
    assert count == TokenCount(24, 4 * NEW, 4)


def test_stopping_criteria_end_rows_where_padding_begins() -> None:
    criteria = transformers.StoppingCriteriaList([_At5()])
    result, count = counted(LLAMA.generate, **INPUTS, **SAMPLED, stopping_criteria=criteria)
    assert count == TokenCount(24, by_hand(new(result), (EOS, 5)), 4)


@pytest.mark.parametrize("model", [LLAMA, PADLESS], ids=["padded", "padding-is-the-end"])
def test_criteria_that_end_all_at_once_pad_nothing(model: Any) -> None:
    criteria = [transformers.MaxLengthCriteria(9), transformers.MaxTimeCriteria(600.0)]
    result, count = counted(model.generate, **INPUTS, **SAMPLED, stopping_criteria=criteria)
    assert new(result).shape[1] < NEW
    assert count == TokenCount(24, by_hand(new(result)), 4)
    _, unended = counted(model.generate, **INPUTS, **SAMPLED, eos_token_id=None, stopping_criteria=criteria)
    assert unended == TokenCount(24, 4 * new(result).shape[1], 4)


def test_padding_on_the_left_is_no_prompt() -> None:
    ids = IDS.clone()
    ids[1, :3] = PAD
    mask = (ids != PAD).long()
    _, masked = counted(LLAMA.generate, input_ids=ids, attention_mask=mask, **SAMPLED)
    _, found = counted(LLAMA.generate, input_ids=ids, **SAMPLED)
    assert masked.prompt == found.prompt == 21


@pytest.mark.parametrize("how", [{"num_return_sequences": 3}, {"num_beams": 3, "num_return_sequences": 3}])
def test_several_sequences_a_prompt(how: dict[str, int]) -> None:
    result, count = counted(LLAMA.generate, **INPUTS, **SAMPLED, **how)
    assert count == TokenCount(24, by_hand(new(result)), 12)


def test_an_encoder_decoder_starts_with_its_start_token() -> None:
    result, count = counted(T5.generate, **INPUTS, **SAMPLED)
    assert result[:, 0].tolist() == [3] * 4
    assert count == TokenCount(24, by_hand(result[:, 1:]), 4)
    result, count = counted(lambda ids: T5.generate(input_ids=ids, **SAMPLED), IDS)
    assert count == TokenCount(24, by_hand(result[:, 1:]), 4)


def test_embeddings_as_prompt() -> None:
    embeds = LLAMA.get_input_embeddings()(IDS)
    result, count = counted(LLAMA.generate, inputs_embeds=embeds, **SAMPLED)
    assert count == TokenCount(24, by_hand(result), 4)


def answer(input_ids: Any, **more: Any) -> Any:
    with torch.inference_mode():
        return LLAMA.generate(input_ids=input_ids, **SAMPLED, **more)


class Service:
    def __init__(self) -> None:
        self.llm = LLAMA

    def answer(self, batch: dict[str, Any]) -> Any:
        return self.llm.generate(**batch, **SAMPLED)

    def __call__(self) -> Any:
        return self.llm.generate(**INPUTS, **SAMPLED)


OUT_OF_SIGHT: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "function": (answer, (IDS,)),
    "closure-alone": (lambda: LLAMA.generate(**INPUTS, **SAMPLED), ()),
    "calls-another": (lambda: answer(IDS), ()),
    "method": (Service().answer, (INPUTS,)),
    "callable": (Service(), ()),
    "model-given": (lambda model, batch: model.generate(**batch, **SAMPLED), (LLAMA, INPUTS)),
    "criteria": (lambda ids: answer(ids, stopping_criteria=[_At5()]), (IDS,)),
}


@pytest.mark.parametrize(("fn", "args"), OUT_OF_SIGHT.values(), ids=list(OUT_OF_SIGHT))
def test_out_of_sight_the_ids_must_confirm(fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    result, count = counted(fn, *args)
    ends = (EOS, 5) if fn is OUT_OF_SIGHT["criteria"][0] else (EOS,)
    assert count == TokenCount(24, by_hand(new(result), ends), 4)


def test_out_of_sight_an_end_that_ended_nothing_is_off() -> None:
    _, count = counted(lambda ids: answer(ids, eos_token_id=None), IDS)
    assert count == TokenCount(24, 4 * NEW, 4)


def test_new_ids_alone_count_where_they_are_a_view_of_all() -> None:
    result, count = counted(lambda ids: answer(ids)[:, ids.shape[1] :], IDS)
    assert count == TokenCount(24, by_hand(result), 4)

    def idiom(ids: Any) -> list[Any]:
        return [all_ids[len(prompt) :] for prompt, all_ids in zip(ids, answer(ids), strict=True)]

    rows, count = counted(idiom, IDS)
    assert count == TokenCount(24, by_hand(torch.stack(rows)), 4)


def test_lists_of_ids() -> None:
    result, count = counted(lambda ids: answer(ids).tolist(), IDS)
    assert count == TokenCount(24, by_hand(new(torch.tensor(result))), 4)


def test_several_calls_in_one_execution() -> None:
    halves = [{"input_ids": IDS[:2]}, {"input_ids": IDS[2:]}]

    def both(batches: list[dict[str, Any]]) -> list[Any]:
        return [LLAMA.generate(**batch, **SAMPLED) for batch in batches]

    results, count = counted(both, halves)
    assert count == TokenCount(24, sum(by_hand(new(each)) for each in results), 4)


UNKNOWN: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str]] = {
    "copied-new-ids": (lambda ids: answer(ids)[:, ids.shape[1] :].clone(), (IDS,), "where the prompts end"),
    "another-prompt": (lambda ids: answer(ids[:, 2:]), (IDS,), "where the prompts end"),
    "longer-prompt": (
        lambda ids: answer(torch.cat([ids[:, :1] * 0 + 1, ids], 1)),
        (IDS,),
        "where the prompts end",
    ),
    "text-prompt": (lambda text: answer(torch.full((4, 3), 5)), ("words",), "where the prompts end"),
    "padding-is-the-end": (lambda ids: PADLESS.generate(ids, **SAMPLED), (IDS,), "called out of sight"),
    "another-end": (lambda ids: answer(ids, eos_token_id=7), (IDS,), "called out of sight"),
    "another-padding": (lambda ids: answer(ids, pad_token_id=9), (IDS,), "called out of sight"),
    "two-models": (lambda ids, other: answer(ids), (IDS, _llama(eos=7)), "several models that differ"),
    "no-model": (torch.nn.Identity(), (torch.cat([IDS, IDS], 1),), "no model is within reach"),
    "criteria-alone": (
        functools.partial(LLAMA.generate, **SAMPLED, eos_token_id=None, stopping_criteria=[_At5()]),
        (IDS,),
        "stopping criteria without an end-of-sequence id",
    ),
    "criteria-and-padding-is-the-end": (
        functools.partial(PADLESS.generate, **SAMPLED, stopping_criteria=[_At5()]),
        (IDS,),
        "give generate() a pad_token_id of its own",
    ),
    "logits": (lambda ids: LLAMA(ids).logits, (IDS,), "is no table of token ids"),
    "last-logits": (lambda ids: LLAMA(ids).logits[:, -1], (IDS,), "is no table of token ids"),
    "embedding": (lambda ids: LLAMA.get_input_embeddings()(ids).mean(1), (IDS,), "is no table of token ids"),
    "mask": (lambda ids: ids > 3, (IDS,), "is no table of token ids"),
}


@pytest.mark.parametrize(("fn", "args", "message"), UNKNOWN.values(), ids=list(UNKNOWN))
def test_what_cannot_be_known_is_refused(fn: Callable[..., Any], args: tuple[Any, ...], message: str) -> None:
    if fn is UNKNOWN["no-model"][0]:
        whole = args[0]
        with pytest.raises(TokenCountError, match=re.escape(message)):
            count_tokens(whole, (IDS,), {}, fn)
        return
    result = fn(*args)
    with pytest.raises(TokenCountError, match=re.escape(message)) as caught:
        count_tokens(result, args, {}, fn)
    assert "TokenCount" in str(caught.value) or "pad_token_id" in str(caught.value)


def test_one_sequence_ends_where_it_ends() -> None:
    result, count = counted(lambda ids: PADLESS.generate(ids, **SAMPLED), IDS[:1])
    assert count == TokenCount(6, result.shape[1] - 6, 1)


def _pipeline() -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{at}": at for at in range(16)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="w0", eos_token="w2", padding_side="left"
    )
    return transformers.pipeline("text-generation", model=LLAMA, tokenizer=fast, device="cpu")


def test_pipeline_ids_count_and_its_text_does_not() -> None:
    pipeline = _pipeline()
    result, count = counted(pipeline, "w5 w6 w7", return_tensors=True, **SAMPLED)
    ids = torch.tensor([result[0]["generated_token_ids"]])
    assert count == TokenCount(3, by_hand(ids[:, 3:]), 1)

    texts = ["w5 w6 w7", "w8"]
    result, count = counted(pipeline, texts, return_tensors=True, batch_size=2, **SAMPLED)
    expected = 0
    for [one] in result:
        ids = one["generated_token_ids"]
        expected += by_hand(torch.tensor([ids[3:]]))
    assert count == TokenCount(4, expected, 2)

    with pytest.raises(TokenCountError, match="return_tensors=True"):
        counted(pipeline, "w5", **SAMPLED)


@pytest.mark.parametrize("as_lists", [False, True])
def test_vectors_of_an_encoder_are_refused_with_what_to_return(as_lists: bool) -> None:
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    encoder = transformers.BertModel(transformers.BertConfig(vocab_size=50, **small))
    output = encoder(input_ids=torch.ones((3, 7), dtype=torch.long))
    with pytest.raises(TokenCountError, match=r"with generated=0 and responses=\.\.\."):
        count_tokens(output.last_hidden_state.tolist() if as_lists else output)
