"""The shapes of results that carry token counts or token ids, told apart by structure; docs/token-counts.md shows them.

A shape reads an object as parts: what the object says of one request. Parts of one request are merged once all are
known, since streams say the same request's count again and again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from pytest_tokenpower.core.token_ids import (
    Call,
    array_kind,
    count_generated,
    count_pipeline_record,
    count_ran,
    flat_ids,
    is_id_table,
    ran_of,
    whole,
)
from pytest_tokenpower.errors import TokenCountError

# No execution of a test has more; a larger number is a broken field.
MOST_TOKENS = 10**12

OWN_COUNT = "pytest_tokenpower.TokenCount(prompt=..., generated=...)"

RETURN = (
    "return vLLM RequestOutputs, transformers' generate() output, an OpenAI completion (with .usage), or "
    + OWN_COUNT
)

_FAILED = frozenset({"error", "abort", "aborted", "failed", "cancelled", "canceled", "repetition_error"})


@dataclass(frozen=True)
class Tally:
    """The tokens of one request."""

    prompt: int
    generated: int
    responses: int
    cached: int = 0


@dataclass(frozen=True)
class Part:
    """What one object says of one request; ``source`` tells objects apart, and ``request`` requests."""

    request: Hashable
    source: int

    def merged(self, parts: Sequence[Any]) -> Tally | None:
        """Count the request that these parts, each another object, are of; None: they do not say."""
        raise NotImplementedError


@dataclass(frozen=True)
class Known(Part):
    """An object that has the whole count of a request."""

    tally: Tally

    def merged(self, parts: Sequence[Known]) -> Tally:
        """See Part."""
        return parts[0].tally


@dataclass(frozen=True)
class Ran(Part):
    """Ids of calls of generate() that were seen to run; ``of`` are these calls."""

    call: Call
    of: frozenset[int]

    def merged(self, parts: Sequence[Ran]) -> Tally:
        """See Part: the energy is of all calls, however much of it came back."""
        return Tally(*count_ran(self.call))


@dataclass(frozen=True)
class Silent(Part):
    """A piece of a stream without counts; ``lack`` says what is missing where no later piece of the stream has them.

    ``stream`` is the request that it opened, where it says so.
    """

    lack: str
    stream: str | None = None

    def merged(self, parts: Sequence[Silent]) -> None:
        """See Part."""
        return


@dataclass(frozen=True)
class Outputs(Part):
    """An output with the ids of each of its completions, as vLLM's RequestOutput: whole, cumulative or a delta."""

    prompt: int | None
    cached: int | None
    completions: Mapping[int, tuple[int, ...]]
    finished: bool | None
    generated: int | None

    def merged(self, parts: Sequence[Outputs]) -> Tally:
        """See Part: cumulative outputs count by their last, deltas by their sum."""
        if sum(part.finished is True for part in parts) > 1 or (
            len(parts) > 1 and all(part.finished is None for part in parts)
        ):
            raise TokenCountError(
                f"{len(parts)} results with one request id, {self.request!r}: give each request an id of its own, or "
                f"return {OWN_COUNT}"
            )
        if any(part.finished is False for part in parts) and not any(part.finished for part in parts):
            raise TokenCountError(
                f"request {self.request!r} is not finished: return its last output, or all of them"
            )
        prompts = {part.prompt for part in parts if part.prompt is not None}
        if all(part.completions == {} for part in parts):
            raise TokenCountError(
                f"request {self.request!r} has no completion in .outputs: return {OWN_COUNT}"
            )
        if len(prompts) != 1:
            said = (
                "its prompt's ids are not in it"
                if not prompts
                else f"its prompts have {sorted(prompts)} tokens"
            )
            raise TokenCountError(f"request {self.request!r}: {said}: return {OWN_COUNT}")
        choices = sorted({index for part in parts for index in part.completions})
        generated = sum(
            self._stream([part.completions[index] for part in parts if index in part.completions])
            for index in choices
        )
        said_generated = max((part.generated for part in parts if part.generated), default=None)
        if len(choices) == 1 and said_generated is not None and said_generated != generated:
            raise TokenCountError(
                f"{generated} ids came back of request {self.request!r}, whose metrics say that {said_generated} were "
                "generated: return all outputs of the stream, or have output_kind=FINAL_ONLY"
            )
        cached = max((part.cached for part in parts if part.cached is not None), default=0)
        return Tally(prompts.pop(), generated, max(len(choices), 1), cached)

    def _stream(self, chunks: list[tuple[int, ...]]) -> int:
        chunks = sorted((chunk for chunk in chunks if chunk), key=len)
        pairs = list(pairwise(chunks))
        if not all(later[: len(sooner)] == sooner for sooner, later in pairs):
            return sum(map(len, chunks))
        # Each begins with the one before: cumulative, unless a delta repeats another.
        if pairs and (len({id_ for chunk in chunks for id_ in chunk}) == 1 or any(a == b for a, b in pairs)):
            raise TokenCountError(
                f"the outputs of request {self.request!r} may be cumulative or deltas, their ids do not tell: return "
                "the last output, with output_kind=CUMULATIVE or FINAL_ONLY"
            )
        return len(chunks[-1]) if chunks else 0


@dataclass(frozen=True)
class Usage(Part):
    """A response or a chunk of one that may carry the usage of its request.

    ``piece``: a part of a stream. ``text``: words stand in it, which are of at least one token.
    """

    prompt: int | None
    generated: int | None
    cached: int | None
    responses: int
    choices: frozenset[int] = frozenset()
    ended: frozenset[int] = frozenset()
    open: frozenset[int] = frozenset()
    ids: int = 0
    additive: bool = False
    piece: bool = False
    text: bool = False

    def merged(self, parts: Sequence[Usage]) -> Tally:
        """See Part: the usage at the end of a stream, or the last where it is in every chunk and grows."""
        ends = Counter(index for part in parts for index in part.ended)
        if (most := max(ends.values(), default=0)) > 1:
            raise TokenCountError(
                f"{most} finished results with one id, {self.request!r}, or in one list without ids: give each request "
                f"an id of its own, or return {OWN_COUNT}"
            )
        said = [part for part in parts if part.prompt is not None and part.generated is not None]
        # Servers that fill the field in at the end alone have zeros in it until then.
        filled = [part for part in said if part.prompt or part.generated]
        said = filled if filled and not self.additive else said
        if not said:
            raise TokenCountError(
                "it has no usage with prompt and completion tokens: ask for it (of a stream with "
                f'stream_options={{"include_usage": True}}) and keep the chunk that has it, or return {OWN_COUNT}'
            )
        choices = frozenset[int]().union(*(part.choices for part in parts))
        last = [part for part in said if not part.choices] if choices else []
        ended = frozenset[int]().union(*(part.ended for part in parts))
        begun = frozenset[int]().union(*(part.open for part in parts))
        if begun - ended and not last:
            of = f" of {self.request!r}" if self.request is not None else ""
            raise TokenCountError(f"the stream{of} breaks off: return all of its chunks")
        prompt, generated = self._usage(said, last, choices)
        if not generated and any(part.text for part in parts):
            raise TokenCountError(
                f"its usage says 0 generated tokens, and words came back: return {OWN_COUNT}"
            )
        if sum(part.ids for part in parts) > generated:
            raise TokenCountError(
                f"its usage says {generated} generated tokens, and its choices hold "
                f"{sum(part.ids for part in parts)}: return {OWN_COUNT}"
            )
        cached = max((part.cached for part in said if part.cached is not None), default=0)
        return Tally(prompt, generated, len(choices) or max(part.responses for part in parts), cached)

    def _usage(
        self, said: Sequence[Usage], last: Sequence[Usage], choices: frozenset[int]
    ) -> tuple[int, int]:
        prompts = [part.prompt or 0 for part in said]
        counts = [part.generated or 0 for part in said]
        if last:
            prompt, generated = max((part.prompt or 0, part.generated or 0) for part in last)
            if max(counts) > generated or max(prompts) > prompt:
                raise TokenCountError(
                    f"the chunks of {self.request!r} say more than its last usage: {RETURN}"
                )
            return prompt, generated
        if self.additive and sum(prompt > 0 for prompt in prompts) == 1:
            return sum(prompts), sum(counts)
        if len(set(prompts)) > 1 or (len(said) > 1 and len(choices) > 1):
            raise TokenCountError(
                f"the usages of {self.request!r} do not tell which is of all of it: ask for "
                f'stream_options={{"include_usage": True}}, or return {OWN_COUNT}'
            )
        # What the chunks say of all so far grows with each that brings words; anything else may be of the chunk alone.
        words = [part.generated or 0 for part in said if part.text]
        if len(said) > 1 and (sorted(counts) != counts or len(set(words)) < len(words)):
            raise TokenCountError(
                f"the usages of {self.request!r} do not grow from chunk to chunk, so that each may be of its chunk "
                f'alone: ask for stream_options={{"include_usage": True}}, or return {OWN_COUNT}'
            )
        return prompts[0], max(counts)


@dataclass(frozen=True)
class Event(Part):
    """One of an Anthropic stream: its start has an id and says what was read, its end what was written."""

    prompt: int | None = None
    generated: int | None = None
    cached: int | None = None
    starts: bool = False
    stream: str | None = None
    ends: bool = False
    text: bool = False

    def merged(self, parts: Sequence[Event]) -> Tally:
        """See Part: usages are of all so far."""
        streams = max(sum(part.starts for part in parts), sum(part.ends for part in parts))
        if streams > 1:
            raise TokenCountError(
                f"{streams} finished results or streams in one list, whose events have no ids: return a list for each, "
                f"or {OWN_COUNT}"
            )
        if not any(part.ends for part in parts):
            raise TokenCountError(
                "the stream breaks off before a message_delta with a stop_reason, which has the usage: return all of "
                "its events"
            )
        prompt, generated, cached = (
            max((value for part in parts if (value := getattr(part, name)) is not None), default=None)
            for name in ("prompt", "generated", "cached")
        )
        if prompt is None or generated is None:
            raise TokenCountError(
                f"its events say {prompt} prompt and {generated} generated tokens, and both are needed: return all of "
                f"them from message_start on, or {OWN_COUNT}"
            )
        if not generated and any(part.text for part in parts):
            raise TokenCountError(
                f"its usage says 0 generated tokens, and words came back: return {OWN_COUNT}"
            )
        return Tally(prompt, generated, 1, cached or 0)


@dataclass(frozen=True)
class Shape:
    """A shape of a result: by what structure it is known, and what it says."""

    name: str
    fits: Callable[[Any], bool]
    read: Callable[[Any, Call, tuple[Hashable, ...]], Sequence[Part]] = field(repr=False)


def get(value: Any, *names: str) -> Any:
    """Return a field of an object or a mapping, by the first of its names that has a value."""
    for name in names:
        try:
            found = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        except Exception:  # a foreign class's property that fails is no answer
            found = None
        if found is not None:
            return found
    return None


def kind(result: object) -> str:
    """Name a result in a sentence."""
    if result is None:
        return "None"
    name = type(result).__name__
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    members = f" of {type(result[0]).__name__}" if isinstance(result, list | tuple) and result else ""
    return f"{article} {name}{members}"


def refusal(result: Any) -> str | None:
    """Say why an object can never be counted and what to return instead; None: it may be counted."""
    return next((says(result) for fits, says in _REFUSALS if fits(result)), None)


def _count(value: Any, name: str) -> int | None:
    """Return a number of tokens that somebody else wrote down."""
    if value is None:
        return None
    number = whole(value)
    if number is None or not 0 <= number <= MOST_TOKENS:
        raise TokenCountError(f"{name} is {value!r}, which is no number of tokens: return {OWN_COUNT}")
    return number


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else []


def _identity(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _error(result: Any) -> Any:
    """Return what an object says of its own failure."""
    error = get(result, "error")
    finish = get(get(result, "meta_info"), "finish_reason")
    reasons = [
        get(finish, "type") or finish,
        get(result, "status"),
        *(
            get(each, "finish_reason")
            for name in ("outputs", "choices")
            for each in _items(get(result, name))
        ),
    ]
    failed = [reason for reason in reasons if isinstance(reason, str) and reason.lower() in _FAILED]
    blocked = get(get(result, "prompt_feedback", "promptFeedback"), "block_reason", "blockReason")
    return error or (failed[0] if failed else blocked)


_REFUSALS: tuple[tuple[Callable[[Any], bool], Callable[[Any], str]], ...] = (
    (
        lambda one: isinstance(one, BaseException),
        lambda one: (
            f"a request failed ({type(one).__name__}: {one}): let the workload raise it, since its energy "
            "belongs to no token"
        ),
    ),
    (
        lambda one: isinstance(one, Awaitable),
        lambda one: (
            f"the tokens of {kind(one)} cannot be counted, it was not awaited: await it in the workload"
        ),
    ),
    (
        lambda one: isinstance(one, Iterator | AsyncIterator),
        lambda one: (
            f"the tokens of {kind(one)} cannot be counted before it is consumed: do that inside the workload "
            "(return list(stream)), or its work is not measured"
        ),
    ),
    (
        lambda one: get(one, "stream") is not None and get(one, "ResponseMetadata") is not None,
        lambda one: (
            "the tokens of a stream cannot be counted before it is consumed: do that inside the workload (return "
            "list(response['stream'])), or its work is not measured"
        ),
    ),
    (
        lambda one: callable(get(one, "json")) and get(one, "headers") is not None,
        lambda one: f"{kind(one)} is HTTP's, not yet read: return response.json()",
    ),
    (
        lambda one: not isinstance(one, type) and _error(one) is not None,
        lambda one: (
            f"the request failed ({_error(one)}): let the workload raise it, since its energy belongs to no "
            "token"
        ),
    ),
    (
        lambda one: (
            get(one, "generated_text") is not None and get(get(one, "details"), "generated_tokens") is None
        ),
        lambda one: (
            "text without token ids cannot be counted: call the pipeline with return_tensors=True, TGI with "
            f"details=True and decoder_input_details=True, or return {OWN_COUNT}"
        ),
    ),
    (
        lambda one: isinstance(one, float),
        lambda one: (
            f"vectors and scores do not say how many tokens were read: return {OWN_COUNT}, with generated=0 and "
            "responses=..."
        ),
    ),
    (
        lambda one: array_kind(one) is not None and not is_id_table(one),
        lambda one: (
            f"{array_kind(one)} is no table of token ids [sequences, tokens]: return {OWN_COUNT}, with "
            "generated=0 and responses=... for embeddings, logits or scores"
        ),
    ),
)


def _read_outputs(result: Any, call: Call, path: tuple[Hashable, ...]) -> list[Part]:
    prompt = get(result, "prompt_token_ids")
    encoder = get(result, "encoder_prompt_token_ids")
    outputs = get(result, "outputs")
    cached = get(result, "num_cached_tokens")
    completions: dict[int, tuple[int, ...]] = {}
    alone = not isinstance(outputs, Sequence)
    for position, output in enumerate(() if alone else outputs):
        index = get(output, "index")
        ids = get(output, "token_ids")
        if ids is None:
            raise TokenCountError(f"completion {position} has no token_ids: return {OWN_COUNT}")
        completions[index if isinstance(index, int) else position] = _ids_in(ids, "token_ids")
    if not alone and len(completions) < len(outputs):
        raise TokenCountError(
            f"two completions of one index in request {get(result, 'request_id')!r}: {RETURN}"
        )
    if alone and all(get(outputs, name) is None for name in ("data", "embedding", "probs", "score")):
        raise TokenCountError(
            f"{kind(outputs)} in .outputs holds neither ids nor a vector: return {OWN_COUNT}"
        )
    finished = get(result, "finished")
    if whole(cached) == -1:
        cached = None  # vLLM's word for a request that was not scheduled
    read = [_ids_in(ids, "prompt_token_ids") for ids in (prompt, encoder) if ids is not None]
    if alone:
        completions[0] = ()
    return [
        Outputs(
            request=get(result, "request_id"),
            source=id(result),
            prompt=None if prompt is None else sum(map(len, read)),
            cached=_count(cached, "num_cached_tokens"),
            completions=completions,
            finished=finished if isinstance(finished, bool) else None,
            generated=_count(get(get(result, "metrics"), "num_generation_tokens"), "num_generation_tokens"),
        )
    ]


def _ids_in(value: Any, name: str) -> tuple[int, ...]:
    """Return the ids of one sequence; anything else has a length, too, that is no number of tokens."""
    ids = () if isinstance(value, Sequence) and not len(value) else flat_ids(value)
    if ids is None or isinstance(value, str | bytes):
        raise TokenCountError(f"{kind(value)} in {name} is no sequence of token ids: return {OWN_COUNT}")
    return tuple(ids)


# Names under which usages say what a cache held; what it took, or missed, was computed.
_CACHE = re.compile(r"cache(?!.*(creat|writ|miss))", re.IGNORECASE)


def _cached(*places: Any) -> int | None:
    """Return the prompt tokens from a cache, under whatever name a usage or its details have them."""
    found = {}
    for place in places:
        fields = place if isinstance(place, Mapping) else getattr(place, "__dict__", {})
        for name, value in {**fields, **(get(place, "model_extra") or {})}.items():
            # Flags and discounts have no say; what calls itself tokens, or was read, must be a number of them.
            number = whole(value) is not None or re.search(r"tokens$|read$", str(name), re.IGNORECASE)
            if _CACHE.search(str(name)) and number:
                found[str(name)] = _count(value, str(name))
    said = {value for value in found.values() if value}
    if len(said) > 1:
        raise TokenCountError(
            f"its usage does not say how many prompt tokens were cached ({found}): return {OWN_COUNT}"
        )
    return said.pop() if said else 0 if found else None


def _said(usage: Any, *names: str) -> int | None:
    """Return a number of tokens under the first of its names, each also as JSON's camelCase spells it."""
    for name in names:
        for spelled in (name, re.sub(r"_(.)", lambda match: match[1].upper(), name)):
            if (value := get(usage, spelled)) is not None:
                return _count(value, spelled)
    return None


def _numbers(usage: Any) -> tuple[int | None, int | None, int | None]:
    """Prompt, generated and cached tokens of a usage, whichever of the known names it has."""
    prompt = _said(usage, "prompt_tokens")
    generated = _said(usage, "completion_tokens", "output_tokens")
    total = _said(usage, "total_tokens")
    details = get(usage, "prompt_tokens_details", "input_tokens_details", "input_token_details")
    cached = _cached(usage, details)
    if prompt is None:
        prompt = _said(usage, "input_tokens")
        read = _said(usage, "cache_read_input_tokens")
        wrote = _said(usage, "cache_creation_input_tokens", "cache_write_input_tokens")
        if prompt is not None and (read is not None or wrote is not None):
            # Anthropic's and Bedrock's input tokens are those that the cache neither held nor took.
            prompt += (read or 0) + (wrote or 0)
    if prompt is None and (prompt := _said(usage, "prompt_token_count")) is not None:
        # Gemini's: its answer's tokens are without those of its thoughts, its prompt's without those of its tools.
        prompt += _said(usage, "tool_use_prompt_token_count") or 0
        written = [_said(usage, name) for name in ("candidates_token_count", "thoughts_token_count")]
        generated = None if written == [None, None] else sum(count or 0 for count in written)
        total = _said(usage, "total_token_count")
    if prompt is not None and total is not None and total != prompt + (generated or 0):
        raise TokenCountError(
            f"its usage says {prompt} prompt and {generated} generated tokens, and {total} in all: return {OWN_COUNT}"
        )
    if cached is not None and prompt is not None and cached > prompt:
        raise TokenCountError(f"its usage says {cached} cached of {prompt} prompt tokens: return {OWN_COUNT}")
    if generated is not None:
        answer = get(usage, "completion_tokens_details", "output_tokens_details")
        for part in ("reasoning_tokens", "rejected_prediction_tokens"):
            if (of_it := _count(get(answer, part), part) or 0) > generated:
                raise TokenCountError(
                    f"its usage says {generated} generated tokens, and {of_it} of them {part}: return {OWN_COUNT}"
                )
        # Billed, and in no answer: a prediction of the caller's that did not come true.
        generated -= _count(get(answer, "rejected_prediction_tokens"), "rejected_prediction_tokens") or 0
    return prompt, generated, cached


_TEXT = ("text", "content", "reasoning_content", "reasoning", "refusal")
_WORDS = (*_TEXT, "tool_calls", "function_call", "audio")


def _read_usage(result: Any, call: Call, path: tuple[Hashable, ...]) -> list[Part]:
    usage = get(result, "usage")
    prompt, generated, cached = _numbers(usage)
    choices = _items(get(result, "choices"))
    vectors = _items(get(result, "data", "results", "embeddings"))
    if vectors and not choices:
        # Work without generated tokens: all that was processed was prompt.
        total = _count(get(usage, "total_tokens"), "total_tokens")
        prompt, generated = total if prompt is None else prompt, generated or 0
    # The completions API calls whole answers and pieces of a stream alike; pieces have no finish_reason.
    alike = get(result, "object") == "text_completion"
    streamed = str(get(result, "object") or "").endswith(".chunk")
    named = [get(choice, "index") for choice in choices]
    numbered = len({index for index in named if whole(index) is not None}) == len(choices)
    indices, ended, begun, ids = set(), set(), set(), 0
    # Those of the Responses API and of Anthropic have no choices, nor has Bedrock's.
    whole_answer = get(result, "object") == "response" or get(result, "type") == "message"
    text = bool(get(get(get(result, "output"), "message"), "content")) or (
        whole_answer and bool(get(result, "output", "content"))
    )
    for position, choice in enumerate(choices):
        at = named[position] if numbered else position
        said = get(choice, "delta", "message")
        text |= any(get(one, name) for one in (choice, said) for name in _WORDS)
        piece = streamed or alike or get(choice, "delta") is not None
        indices.add(at)
        if piece:
            begun.add(at)
        if not piece or get(choice, "finish_reason") is not None:
            ended.add(at)
        logprobs = get(get(choice, "logprobs"), "content")
        ids += max(len(_items(get(choice, "token_ids"))), len(_items(logprobs)))
    if get(result, "status") in ("in_progress", "queued"):
        begun.add(0)
    elif not choices and usage is not None and not streamed and not alike:
        ended.add(0)
    if usage is None and not choices and streamed | alike | (get(result, "object") == ""):
        return []  # Azure's first, which tells what filters say of the prompt
    if get(result, "object") == "chat.completion" and not choices:
        raise TokenCountError(
            f"it has no choices, as where the request failed behind a gateway: return {OWN_COUNT}"
        )
    return [
        Usage(
            request=_identity(get(result, "id") or get(get(result, "ResponseMetadata"), "RequestId")),
            source=id(result),
            prompt=prompt,
            generated=generated,
            cached=cached,
            responses=len(vectors) or 1,
            choices=frozenset(indices),
            ended=frozenset(ended),
            open=frozenset(begun),
            ids=ids,
            piece=streamed or alike or bool(begun),
            text=text,
        )
    ]


def _read_event(result: Any, call: Call, path: tuple[Hashable, ...]) -> list[Part]:
    response = get(result, "response")
    done = get(result, "type") in ("response.completed", "response.incomplete")
    if response is not None and done:
        return _read_usage(response, call, path)
    if response is not None and (error := _error(response)) is not None:
        raise TokenCountError(f"the request failed ({error}): let the workload raise it")
    lack = "the stream breaks off before response.completed, which has the usage"
    return [Silent("silent", id(result), lack, _identity(get(response, "id")))]


def _read_helper_event(result: Any, call: Call, path: tuple[Hashable, ...]) -> list[Part]:
    """Read an event of openai's ``chat.completions.stream``: its chunks, which the others gather."""
    chunk = get(result, "chunk")
    return [] if chunk is None else _read_usage(chunk, call, path)


def _read_message_event(result: Any, call: Call, path: tuple[Hashable, ...]) -> list[Part]:
    kind_of = get(result, "type")
    first = get(result, "message") if kind_of == "message_start" else None
    prompt, generated, cached = _numbers(get(result if first is None else first, "usage"))
    return [
        Event(
            request=None,
            source=id(result),
            prompt=prompt,
            # At the start it is what was written by then, which the end says once more.
            generated=generated if kind_of == "message_delta" else None,
            cached=cached,
            starts=kind_of == "message_start",
            stream=_identity(get(first, "id")),
            ends=kind_of == "message_delta" and get(get(result, "delta"), "stop_reason") is not None,
            text=kind_of == "content_block_delta",
        )
    ]


def _read_converse_event(result: Any, call: Call, path: tuple[Hashable, ...]) -> list[Part]:
    last = get(result, "metadata")
    if last is not None:
        return _read_usage(last, call, path)
    lack = "the stream breaks off before its metadata, which has the usage"
    return [Silent("silent", id(result), lack)]


def _read_candidates(result: Any, call: Call, path: tuple[Hashable, ...]) -> list[Part]:
    prompt, generated, cached = _numbers(get(result, "usage_metadata", "usageMetadata"))
    candidates = _items(get(result, "candidates"))
    indices, ended, text = set(), set(), False
    for position, candidate in enumerate(candidates):
        index = whole(get(candidate, "index"))
        indices.add(position if index is None else index)
        reason = get(candidate, "finish_reason", "finishReason")
        if reason and "UNSPECIFIED" not in str(reason):
            ended.add(position if index is None else index)
        text |= bool(_items(get(get(candidate, "content"), "parts")))
    return [
        Usage(
            request=_identity(get(result, "response_id", "responseId")),
            source=id(result),
            prompt=prompt,
            generated=generated,
            cached=cached,
            responses=1,
            choices=frozenset(indices),
            ended=frozenset(ended),
            open=frozenset(indices),
            piece=True,
            text=text,
        )
    ]


def _read_message(result: Any, call: Call, path: tuple[Hashable, ...]) -> list[Part]:
    usage = get(result, "usage_metadata")
    if usage is None:
        usage = get(get(result, "response_metadata"), "token_usage", "usage")
    prompt, generated, cached = _numbers(usage)
    chunk = type(result).__name__.endswith("Chunk") or get(result, "type") == "AIMessageChunk"
    return [
        Usage(
            request=_identity(get(result, "id")),
            source=id(result),
            prompt=prompt,
            generated=generated,
            cached=cached,
            responses=1,
            ended=frozenset() if chunk else frozenset({0}),
            additive=True,
            piece=chunk,
            text=bool(get(result, "content")),
        )
    ]


def _read_generations(result: Any, call: Call, path: tuple[Hashable, ...]) -> list[Part]:
    lists = [_items(each) or [each] for each in get(result, "generations")]
    usage = get(get(result, "llm_output"), "token_usage", "usage")
    if usage is not None:
        prompt, generated, cached = _numbers(usage)
        return [Usage(None, id(result), prompt, generated, cached, sum(map(len, lists)))]
    if any(len(each) != 1 for each in lists):
        raise TokenCountError(
            "it has several generations a prompt and no llm_output['token_usage']: each message may repeat the usage "
            f"of all: return {OWN_COUNT}"
        )
    parts: list[Part] = []
    for each in lists:
        message = get(each[0], "message")
        parts += _read_message(message if message is not None else each[0], call, path)
    return [_apart(part) for part in parts]


def _apart(part: Any) -> Part:
    """Return a part as a request of its own within one object: the object is read once and tells them apart itself."""
    return Known(("part", part.source), part.source, part.merged([part]))


def _read_meta(result: Any, call: Call, path: tuple[Hashable, ...]) -> list[Part]:
    meta = get(result, "meta_info")
    generated = _count(get(meta, "completion_tokens"), "completion_tokens")
    finish = get(meta, "finish_reason")
    if generated is None and get(result, "embedding", "score") is not None:
        generated = 0
    said = "finish_reason" in meta and not finish
    return [
        Usage(
            request=_identity(get(meta, "id")),
            source=id(result),
            prompt=_count(get(meta, "prompt_tokens"), "prompt_tokens"),
            generated=generated,
            cached=_count(get(meta, "cached_tokens"), "cached_tokens"),
            responses=1,
            choices=frozenset({0}),
            ended=frozenset() if said else frozenset({0}),
            open=frozenset({0}) if said else frozenset(),
        )
    ]


def _read_ollama(result: Any, call: Call, path: tuple[Hashable, ...]) -> list[Part]:
    vectors = _items(get(result, "embeddings"))
    prompt = _count(get(result, "prompt_eval_count"), "prompt_eval_count")
    generated = _count(get(result, "eval_count"), "eval_count")
    if vectors:
        generated = 0
    elif get(result, "done") is False:
        return [
            Silent(
                "silent",
                id(result),
                "the stream breaks off before the part that is done, which has the counts",
            )
        ]
    if prompt is None or generated is None:
        raise TokenCountError(
            f"it has prompt_eval_count {prompt} and eval_count {generated}, and both are needed (Ollama leaves out "
            f"what its cache held): return {OWN_COUNT}"
        )
    return [Known(None, id(result), Tally(prompt, generated, len(vectors) or 1))]


def _read_llama_cpp(result: Any, call: Call, path: tuple[Hashable, ...]) -> list[Part]:
    prompt = _count(get(result, "tokens_evaluated"), "tokens_evaluated")
    generated = _count(get(result, "tokens_predicted"), "tokens_predicted")
    if get(result, "stop") is False:
        return [
            Silent(
                "silent", id(result), "the stream breaks off before the part that stops, which has the counts"
            )
        ]
    if prompt is None or generated is None:
        raise TokenCountError(f"it has not both tokens_evaluated and tokens_predicted: return {OWN_COUNT}")
    cached = _count(get(get(result, "timings"), "cache_n"), "timings.cache_n") or 0
    return [Known(None, id(result), Tally(prompt, generated, 1, cached))]


def _read_details(result: Any, call: Call, path: tuple[Hashable, ...]) -> list[Part]:
    details = get(result, "details")
    if details is None:
        return [Silent("silent", id(result), "the stream breaks off before the part with details")]
    sequences = [details, *_items(get(details, "best_of_sequences"))]
    generated = 0
    for each in sequences:
        said, ids = _said(each, "generated_tokens"), _items(get(each, "tokens"))
        if said is None or (ids and len(ids) != said):
            raise TokenCountError(
                f"its details say generated_tokens {said} and hold {len(ids)} tokens: return {OWN_COUNT}"
            )
        generated += said
    prompt = _said(details, "input_length")
    if prompt is None:
        prompt = len(_items(get(details, "prefill")))
    if not prompt:
        raise TokenCountError(
            "its details do not hold the prompt's tokens: ask for decoder_input_details=True beside details=True, or "
            f"return {OWN_COUNT}"
        )
    return [Known(None, id(result), Tally(prompt, generated, len(sequences)))]


def _read_raw(result: Any, call: Call, path: tuple[Hashable, ...]) -> list[Part]:
    raw = get(result, "raw")
    if (why := refusal(raw)) is not None:
        raise TokenCountError(why)
    shape = next((shape for shape in SHAPES if raw is not None and shape.fits(raw)), None)
    if shape is not None:
        return list(shape.read(raw, call, path))
    prompt, generated, cached = _numbers(get(result, "additional_kwargs"))
    if prompt is None or generated is None:
        raise TokenCountError(f"its .raw has no usage ({kind(raw)}): return {OWN_COUNT}")
    return [Known(None, id(result), Tally(prompt, generated, 1, cached or 0))]


def _read_batch(result: Any, call: Call, path: tuple[Hashable, ...]) -> list[Part]:
    return [
        Outputs(
            request=_identity(get(result, "request_id")),
            source=id(result),
            prompt=len(_ids_in(get(result, "prompt_ids"), "prompt_ids")),
            cached=None,
            completions={0: _ids_in(get(result, "generated_tokens"), "generated_tokens")},
            finished=None,
            generated=None,
        )
    ]


def _read_beams(result: Any, call: Call, path: tuple[Hashable, ...]) -> list[Part]:
    beams = _items(get(result, "sequences"))
    prompt = _ids_in(get(get(beams[0], "orig_prompt"), "prompt_token_ids"), "orig_prompt")
    each = [_ids_in(get(beam, "tokens"), "tokens") for beam in beams]
    if not prompt or any(ids[: len(prompt)] != prompt for ids in each):
        raise TokenCountError(f"its beams are not seen to begin with their prompt's ids: return {OWN_COUNT}")
    return [
        Known(None, id(result), Tally(len(prompt), sum(map(len, each)) - len(prompt) * len(each), len(each)))
    ]


def _read_record(result: Any, call: Call, path: tuple[Hashable, ...]) -> list[Part]:
    prompt, generated = count_pipeline_record(get(result, "generated_token_ids"), call, path)
    return [Known(None, id(result), Tally(prompt, generated, 1))]


def seen(result: Any, call: Call) -> Ran | None:
    """Return ids as those of the calls of generate() that were seen to run in an execution; None: they are not."""
    ids = get(result, "generated_token_ids")
    of = ran_of(_sequences(result) if ids is None else ids, call)
    return Ran("generate", id(result), call, of) if of else None


def _read_ids(result: Any, call: Call, path: tuple[Hashable, ...]) -> list[Part]:
    prompt, generated, responses = count_generated(_sequences(result), call)
    return [Known(None, id(result), Tally(prompt, generated, responses))]


def _sequences(result: Any) -> Any:
    sequences = None if array_kind(result) is not None else get(result, "sequences")
    return result if sequences is None else sequences


def _has_snapshot(event: Any) -> bool:
    return get(event, "snapshot") is not None


def _list_of(result: Any, name: str) -> bool:
    return isinstance(get(result, name), Sequence) and not isinstance(get(result, name), str | bytes)


_MESSAGE = frozenset(
    {"message_start", "message_delta", "message_stop", "ping"}
    | {"content_block_start", "content_block_delta", "content_block_stop"}
)
"""Events of an Anthropic stream; its library adds some that gather the words so far."""

_HELPER = re.compile(
    r"(content|refusal|logprobs\.(content|refusal)|tool_calls\.function\.arguments)\.(delta|done)$"
)
"""What openai's helper for streams says beside the chunks."""

_CONVERSE = frozenset(
    {"messageStart", "contentBlockStart", "contentBlockDelta", "contentBlockStop", "messageStop"}
)
"""Events of a stream of Bedrock's before the one that has the usage."""

# The first shape that fits reads an object, so the more particular stand before the more general.
SHAPES: tuple[Shape, ...] = (
    Shape(
        "request outputs",
        lambda one: (
            get(one, "outputs") is not None
            and (hasattr(one, "prompt_token_ids") or get(one, "prompt_token_ids") is not None)
        ),
        _read_outputs,
    ),
    Shape(
        "batch outputs",
        lambda one: _list_of(one, "prompt_ids") and _list_of(one, "generated_tokens"),
        _read_batch,
    ),
    Shape(
        "beams",
        lambda one: (
            _list_of(one, "sequences")
            and any(get(beam, "orig_prompt") is not None for beam in _items(get(one, "sequences")))
        ),
        _read_beams,
    ),
    Shape("meta_info", lambda one: isinstance(get(one, "meta_info"), Mapping), _read_meta),
    Shape("events", lambda one: str(get(one, "type") or "").startswith("response."), _read_event),
    Shape(
        "message events",
        lambda one: (
            str(get(one, "type")) in _MESSAGE
            or (get(one, "type") == "signature" and get(one, "signature") is not None)
            or (get(one, "type") in ("text", "thinking", "citation", "input_json") and _has_snapshot(one))
        ),
        _read_message_event,
    ),
    Shape(
        "helper events",
        lambda one: (
            (get(one, "type") == "chunk" and _has_snapshot(one)) or bool(_HELPER.match(str(get(one, "type"))))
        ),
        _read_helper_event,
    ),
    Shape("generations", lambda one: _list_of(one, "generations"), _read_generations),
    Shape(
        "candidates",
        lambda one: (
            _list_of(one, "candidates")
            or get(get(one, "usage_metadata", "usageMetadata"), "prompt_token_count", "promptTokenCount")
            is not None
        ),
        _read_candidates,
    ),
    Shape("messages", lambda one: get(one, "usage_metadata", "response_metadata") is not None, _read_message),
    Shape(
        "usage",
        lambda one: (
            get(one, "usage") is not None or (_list_of(one, "choices") and get(one, "object") is not None)
        ),
        _read_usage,
    ),
    Shape(
        "converse events",
        lambda one: (
            isinstance(one, Mapping)
            and len(one) == 1
            and (not one.keys().isdisjoint(_CONVERSE) or get(get(one, "metadata"), "usage") is not None)
        ),
        _read_converse_event,
    ),
    Shape(
        "details",
        lambda one: (
            get(get(one, "details"), "generated_tokens") is not None
            or get(get(one, "token"), "id") is not None
        ),
        _read_details,
    ),
    Shape(
        "eval counts",
        lambda one: (
            get(one, "eval_count", "prompt_eval_count") is not None
            or (get(one, "done") is not None and get(one, "response", "message") is not None)
        ),
        _read_ollama,
    ),
    Shape(
        "evaluated and predicted",
        lambda one: (
            get(one, "tokens_evaluated", "tokens_predicted") is not None
            or (isinstance(get(one, "stop"), bool) and get(one, "content") is not None)
        ),
        _read_llama_cpp,
    ),
    Shape(
        "raw",
        lambda one: (
            get(one, "raw") is not None or (hasattr(one, "raw") and hasattr(one, "additional_kwargs"))
        ),
        _read_raw,
    ),
    Shape("pipeline ids", lambda one: get(one, "generated_token_ids") is not None, _read_record),
    Shape("ids", lambda one: is_id_table(_sequences(one)), _read_ids),
)
