"""What is counted: each shape against a count by hand, what is refused, and that requests count once."""

from __future__ import annotations

import asyncio
from collections import deque
from copy import deepcopy
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.core.token_ids import Call, ran_of
from pytest_tokenpower.core.tokens import TokenCount, count_tokens
from pytest_tokenpower.errors import TokenCountError

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


def completion(ids: Any, index: int = 0, finish: str | None = "length") -> SimpleNamespace:
    return SimpleNamespace(index=index, token_ids=ids, finish_reason=finish, text="", stop_reason=None)


def output(request: str, *completions: SimpleNamespace, prompt: int = 3, **more: Any) -> SimpleNamespace:
    """Return a stand-in with the fields of vLLM's RequestOutput; tests/test_tokens_libraries.py takes the real one."""
    fields = {"finished": True, "metrics": None, "num_cached_tokens": None, "error": None} | more
    return SimpleNamespace(
        request_id=request, prompt_token_ids=list(range(prompt)), outputs=list(completions), **fields
    )


def pooling(request: str, prompt: int, **data: Any) -> SimpleNamespace:
    return SimpleNamespace(
        request_id=request,
        prompt_token_ids=list(range(prompt)),
        outputs=SimpleNamespace(**data),
        num_cached_tokens=0,
        finished=True,
    )


def chunk(id_: str, index: int | None, usage: Any = None, finish: str | None = None) -> dict[str, Any]:
    choices = [] if index is None else [{"index": index, "delta": {"content": "x"}, "finish_reason": finish}]
    return {"id": id_, "object": "chat.completion.chunk", "choices": choices, "usage": usage}


def used(prompt: int, generated: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


@dataclass
class Answer:
    """Somebody's own result."""

    text: str = "words"
    usage: dict[str, int] = field(default_factory=lambda: dict(USAGE))


DETAILS: dict[str, Any] = {"prompt_tokens_details": {"cached_tokens": 8}}
META = {
    "id": "r",
    "prompt_tokens": 9,
    "completion_tokens": 3,
    "cached_tokens": 4,
    "finish_reason": {"type": "stop"},
}

GEMINI = {
    "prompt_token_count": 11,
    "tool_use_prompt_token_count": 4,
    "cached_content_token_count": 8,
    "candidates_token_count": 7,
    "thoughts_token_count": 20,
    "total_token_count": 42,
}


def gemini(usage: Any, *finish: str | None, id_: str | None = "g", **more: Any) -> SimpleNamespace:
    """Return a stand-in with the fields of google-genai's GenerateContentResponse."""
    candidates = [
        SimpleNamespace(
            index=None if at == 0 else at, finish_reason=reason, content=SimpleNamespace(parts=["x"])
        )
        for at, reason in enumerate(finish)
    ]
    usage = SimpleNamespace(**usage) if usage is not None else None
    return SimpleNamespace(candidates=candidates, usage_metadata=usage, response_id=id_, **more)


def gemini_used(prompt: int, answer: int | None, thoughts: int | None = None) -> dict[str, int | None]:
    return {"prompt_token_count": prompt, "candidates_token_count": answer, "thoughts_token_count": thoughts}


def converse(id_: str = "c", **usage: int) -> dict[str, Any]:
    """Return what boto3's ``converse`` does."""
    message = {"role": "assistant", "content": [{"text": "x"}]}
    return {
        "ResponseMetadata": {"RequestId": id_, "HTTPStatusCode": 200},
        "output": {"message": message},
        "stopReason": "end_turn",
        "usage": {"inputTokens": 11, "outputTokens": 7, "totalTokens": 18} | usage,
        "metrics": {"latencyMs": 20},
    }


CONVERSE_STREAM: list[dict[str, Any]] = [
    {"messageStart": {"role": "assistant"}},
    {"contentBlockDelta": {"delta": {"text": "x"}, "contentBlockIndex": 0}},
    {"contentBlockStop": {"contentBlockIndex": 0}},
    {"messageStop": {"stopReason": "end_turn"}},
    {"metadata": {"usage": converse()["usage"], "metrics": {"latencyMs": 20}}},
]


ANTHROPIC_STREAM: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": {
            "id": "msg",
            "type": "message",
            "content": [],
            "stop_reason": None,
            "usage": {
                "input_tokens": 4,
                "cache_read_input_tokens": 6,
                "cache_creation_input_tokens": 1,
                "output_tokens": 1,
            },
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}},
    {"type": "text", "text": "x", "snapshot": "x"},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
]


def anthropic_stream(id_: str) -> list[dict[str, Any]]:
    events = deepcopy(ANTHROPIC_STREAM)
    events[0]["message"]["id"] = id_
    return events


def tgi(generated: int, prefill: int, **more: Any) -> dict[str, Any]:
    """Return text-generation-inference's answer with details."""
    tokens = [{"id": at, "text": "x", "logprob": 0.0, "special": False} for at in range(generated)]
    details = {
        "finish_reason": "length",
        "generated_tokens": generated,
        "prefill": [{"id": at, "text": "x", "logprob": None} for at in range(prefill)],
        "tokens": tokens,
    }
    return {"generated_text": "x", "details": details | more}


def tgi_chunk(details: Any = None) -> dict[str, Any]:
    text = None if details is None else "xx"
    return {"index": 1, "token": {"id": 5, "text": "x"}, "generated_text": text, "details": details}


COUNTED: dict[str, tuple[object, tuple[int, ...]]] = {
    "gemini": (gemini(GEMINI, "STOP"), (15, 27, 1, 8)),
    "gemini-all-thoughts": (gemini(gemini_used(11, None, 20), "MAX_TOKENS"), (11, 20, 1, 0)),
    "gemini-candidates": (gemini(gemini_used(11, 9), "STOP", "STOP"), (11, 9, 2, 0)),
    "gemini-same-object-twice": ([gemini(gemini_used(11, 9), "STOP")] * 2, (11, 9, 1, 0)),
    "gemini-json": (
        {
            "candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": "STOP"}],
            "usageMetadata": {
                "promptTokenCount": 11,
                "candidatesTokenCount": 7,
                "cachedContentTokenCount": 8,
                "totalTokenCount": 18,
            },
            "responseId": "g",
        },
        (11, 7, 1, 8),
    ),
    "gemini-stream": (
        [
            gemini(gemini_used(11, None, 20), None),
            gemini(gemini_used(11, 3, 20), None),
            gemini(gemini_used(11, 7, 20), "STOP"),
        ],
        (11, 27, 1, 0),
    ),
    "gemini-stream-without-ids": (
        [gemini(None, None, id_=None), gemini(gemini_used(11, 7), "STOP", id_=None)],
        (11, 7, 1, 0),
    ),
    "bedrock": (converse(), (11, 7, 1, 0)),
    "bedrock-cached": (
        converse(cacheReadInputTokens=20, cacheWriteInputTokens=5, totalTokens=43),
        (36, 7, 1, 20),
    ),
    "bedrock-nothing-cached": (converse(cacheReadInputTokens=0, cacheWriteInputTokens=0), (11, 7, 1, 0)),
    "bedrock-two": ([converse("a"), converse("b")], (22, 14, 2, 0)),
    "bedrock-same-object-twice": ([converse("a")] * 2, (11, 7, 1, 0)),
    "bedrock-stream": (CONVERSE_STREAM, (11, 7, 1, 0)),
    "bedrock-two-streams": ([CONVERSE_STREAM, CONVERSE_STREAM], (22, 14, 2, 0)),
    "tgi": (tgi(7, 11), (11, 7, 1, 0)),
    "tgi-best-of": (tgi(7, 11, best_of_sequences=[tgi(5, 11)["details"]]), (11, 12, 2, 0)),
    "tgi-stream": (
        [tgi_chunk(), tgi_chunk({"generated_tokens": 2, "input_length": 11, "finish_reason": "length"})],
        (11, 2, 1, 0),
    ),
    "token-count": (TokenCount(2, 3, 4, 1), (2, 3, 4, 1)),
    "numpy-integers": (TokenCount(np.int64(2), np.int32(3)), (2, 3, 1, 0)),
    "generation": (SimpleNamespace(tokens=TokenCount(5, 6, 2)), (5, 6, 2, 0)),
    "prompt-only": (TokenCount(1200, 0, 4), (1200, 0, 4, 0)),
    "vllm-one": (output("0", completion([5, 6, 7])), (3, 3, 1, 0)),
    "vllm-n-2": (output("0", completion([5, 6, 7]), completion([5], 1)), (3, 4, 2, 0)),
    "vllm-cached": (output("0", completion([5]), num_cached_tokens=2), (3, 1, 1, 2)),
    "vllm-tuple-and-deque": (
        deque([(output("0", completion([1])),), output("1", completion([2, 3]))]),
        (6, 3, 2, 0),
    ),
    "vllm-encoder-decoder": (output("0", completion([5]), encoder_prompt_token_ids=[1] * 9), (12, 1, 1, 0)),
    "vllm-same-object-twice": ([output("0", completion([5, 6]))] * 2, (3, 2, 1, 0)),
    "vllm-nothing-generated": (output("0", completion([])), (3, 0, 1, 0)),
    "vllm-by-name": ({"a": output("0", completion([1])), "b": output("1", completion([1]))}, (6, 2, 2, 0)),
    "vllm-cumulative": (
        [
            output("0", completion([5], finish=None), finished=False),
            output("0", completion([5, 6, 7], finish=None), finished=False),
            output("0", completion([5, 6, 7, 8])),
        ],
        (3, 4, 1, 0),
    ),
    "vllm-deltas": (
        [
            output("0", completion([5], finish=None), finished=False),
            output("0", completion([6, 7], finish=None), finished=False),
            output("0", completion([8])),
        ],
        (3, 4, 1, 0),
    ),
    "vllm-streamed-n-2": (
        [
            output("0", completion([5], 0, None), finished=False),
            output("0", completion([9], 1, None), finished=False),
            output("0", completion([5, 6], 0), finished=False),
            output("0", completion([9, 8, 7], 1)),
        ],
        (3, 5, 2, 0),
    ),
    "vllm-embedding": ([pooling("0", 5, embedding=[0.1]), pooling("1", 7, embedding=[0.2])], (12, 0, 2, 0)),
    "vllm-score": (pooling("0", 5, score=0.5), (5, 0, 1, 0)),
    "vllm-class": (pooling("0", 5, probs=[0.5]), (5, 0, 1, 0)),
    "vllm-pooling": (pooling("0", 5, data=np.zeros(4)), (5, 0, 1, 0)),
    "continuous-batch": (
        {"r0": SimpleNamespace(request_id="r0", prompt_ids=[1, 2], generated_tokens=[3, 4, 5], error=None)},
        (2, 3, 1, 0),
    ),
    "beams": (
        SimpleNamespace(
            sequences=[
                SimpleNamespace(
                    orig_prompt={"type": "token", "prompt_token_ids": [5, 6]}, tokens=[5, 6, *more], text="x"
                )
                for more in ([7, 8, 2], [7, 2])
            ]
        ),
        (2, 5, 2, 0),
    ),
    "usage-dict": ({"usage": USAGE, "choices": [{}, {}]}, (11, 7, 2, 0)),
    "usage-dataclass": (Answer(), (11, 7, 1, 0)),
    "usage-cached": ({"usage": USAGE | DETAILS, "choices": [{}]}, (11, 7, 1, 8)),
    "usage-numpy": (
        {"usage": {"prompt_tokens": np.int64(4), "completion_tokens": np.int64(5)}},
        (4, 5, 1, 0),
    ),
    "usage-anthropic": (
        {
            "usage": {
                "input_tokens": 4,
                "output_tokens": 5,
                "cache_read_input_tokens": 6,
                "cache_creation_input_tokens": 1,
            }
        },
        (11, 5, 1, 6),
    ),
    "anthropic-stream": (ANTHROPIC_STREAM, (11, 5, 1, 6)),
    "anthropic-streams": ([ANTHROPIC_STREAM, anthropic_stream("other")], (22, 10, 2, 12)),
    "anthropic-stream-twice": ([ANTHROPIC_STREAM, list(ANTHROPIC_STREAM)], (11, 5, 1, 6)),
    "usage-embeddings": (
        {
            "object": "list",
            "data": [{"embedding": [0.1]}] * 3,
            "usage": {"prompt_tokens": 9, "total_tokens": 9},
        },
        (9, 0, 3, 0),
    ),
    "usage-rerank": (
        {"id": "rerank-1", "results": [{"index": 0}] * 2, "usage": {"total_tokens": 20}},
        (20, 0, 2, 0),
    ),
    "usage-nothing-generated": ({"choices": [{}], "usage": used(11, 0)}, (11, 0, 1, 0)),
    "responses": (
        {
            "id": "resp",
            "object": "response",
            "status": "completed",
            "output": [],
            "usage": {
                "input_tokens": 11,
                "output_tokens": 7,
                "total_tokens": 18,
                "input_tokens_details": {"cached_tokens": 3},
            },
        },
        (11, 7, 1, 3),
    ),
    "stream-include-usage": (
        [chunk("a", 0), chunk("a", 0, finish="stop"), chunk("a", None, used(11, 7))],
        (11, 7, 1, 0),
    ),
    "stream-through-openai-s-helper": (
        [
            {"type": "chunk", "chunk": chunk("a", 0), "snapshot": {}},
            {"type": "content.delta", "delta": "x", "snapshot": "x"},
            {"type": "chunk", "chunk": chunk("a", 0, finish="stop"), "snapshot": {}},
            {"type": "content.done", "content": "xx"},
            {"type": "chunk", "chunk": chunk("a", None, used(11, 7)), "snapshot": {}},
        ],
        (11, 7, 1, 0),
    ),
    "stream-usage-in-each-chunk": (
        [chunk("a", 0, used(11, 1)), chunk("a", 0, used(11, 2)), chunk("a", 0, used(11, 3), "stop")],
        (11, 3, 1, 0),
    ),
    "stream-n-2": (
        [
            chunk("a", 0, used(11, 1), "stop"),
            chunk("a", 1, used(11, 1)),
            chunk("a", 1, used(11, 2), "stop"),
            chunk("a", None, used(11, 3)),
        ],
        (11, 3, 2, 0),
    ),
    "streams-mixed": (
        [
            chunk("a", 0, used(11, 1), "stop"),
            chunk("b", 0, used(5, 1)),
            chunk("b", 0, used(5, 2), "stop"),
            chunk("a", None, used(11, 1)),
        ],
        (16, 3, 2, 0),
    ),
    "usage-with-reasoning": (
        {"choices": [{}], "usage": USAGE | {"completion_tokens_details": {"reasoning_tokens": 6}}},
        (11, 7, 1, 0),
    ),
    "usage-with-a-prediction-that-did-not-come-true": (
        {"choices": [{}], "usage": USAGE | {"completion_tokens_details": {"rejected_prediction_tokens": 3}}},
        (11, 4, 1, 0),
    ),
    "stream-that-begins-with-filters": (
        [
            {"id": "", "object": "", "choices": [], "prompt_filter_results": [{}]},
            chunk("a", 0, finish="stop"),
            chunk("a", None, used(11, 7)),
        ],
        (11, 7, 1, 0),
    ),
    "stream-with-zeros-until-its-end": (
        [chunk("a", 0, used(0, 0)), chunk("a", 0, used(0, 0)), chunk("a", 0, used(11, 7), "stop")],
        (11, 7, 1, 0),
    ),
    "sglang": ({"text": "x", "output_ids": [1, 2, 3], "meta_info": META}, (9, 3, 1, 4)),
    "sglang-stream": (
        [
            {"text": "x", "meta_info": META | {"completion_tokens": 1, "finish_reason": None}},
            {"text": "xy", "meta_info": META},
        ],
        (9, 3, 1, 4),
    ),
    "sglang-embedding": ({"embedding": [0.1], "meta_info": {"id": "e", "prompt_tokens": 6}}, (6, 0, 1, 0)),
    "ollama": ({"response": "x", "done": True, "prompt_eval_count": 26, "eval_count": 9}, (26, 9, 1, 0)),
    "ollama-stream": (
        [
            {"response": "x", "done": False},
            {"response": "", "done": True, "prompt_eval_count": 26, "eval_count": 9},
        ],
        (26, 9, 1, 0),
    ),
    "ollama-embed": ({"embeddings": [[0.1], [0.2]], "prompt_eval_count": 8}, (8, 0, 2, 0)),
    "llama-cpp-server": (
        {
            "content": "x",
            "stop": True,
            "tokens_evaluated": 12,
            "tokens_predicted": 5,
            "timings": {"cache_n": 10},
        },
        (12, 5, 1, 10),
    ),
}


@pytest.mark.parametrize(("result", "expected"), COUNTED.values(), ids=list(COUNTED))
def test_counts_as_by_hand(result: object, expected: tuple[int, ...]) -> None:
    assert count_tokens(result) == TokenCount(*expected)


async def _coroutine() -> None:
    pass


def _unawaited() -> object:
    coroutine = _coroutine()
    coroutine.close()
    return coroutine


async def _asynchronous() -> Any:
    yield 1


REFUSED: dict[str, tuple[object, str]] = {
    "gemini-thoughts-in-both": (
        gemini(GEMINI | {"total_token_count": 22}, "STOP"),
        "its usage says 15 prompt and 27 generated tokens, and 22 in all",
    ),
    "gemini-blocked": (
        gemini(gemini_used(11, None), prompt_feedback=SimpleNamespace(block_reason="SAFETY")),
        "the request failed (SAFETY): let the workload raise it",
    ),
    "gemini-breaks-off": ([gemini(gemini_used(11, 3), None)], "the stream of 'g' breaks off"),
    "gemini-without-usage": (gemini(None, "STOP"), "it has no usage with prompt and completion tokens"),
    "gemini-one-id-for-two": (
        [gemini(gemini_used(11, 9), "STOP"), gemini(gemini_used(11, 9), "STOP")],
        "2 finished results with one id, 'g'",
    ),
    "bedrock-cached-in-or-beside": (
        converse(cacheReadInputTokens=5),
        "its usage says 16 prompt and 7 generated tokens, and 18 in all: return",
    ),
    "bedrock-breaks-off": (CONVERSE_STREAM[:-1], "item [3] of a list of dict: the stream breaks off before"),
    "anthropic-one-id-for-two": (
        [ANTHROPIC_STREAM, deepcopy(ANTHROPIC_STREAM)],
        "another result has its id, 'msg': give each request an id of its own",
    ),
    "anthropic-stream-and-its-message": (
        [
            *ANTHROPIC_STREAM,
            {"id": "msg", "type": "message", "usage": {"input_tokens": 11, "output_tokens": 5}},
        ],
        "another result has its id, 'msg'",
    ),
    "anthropic-breaks-off": (
        ANTHROPIC_STREAM[:-2],
        "the stream breaks off before a message_delta with a stop_reason",
    ),
    "anthropic-without-its-start": (
        ANTHROPIC_STREAM[1:],
        "its events say None prompt and 5 generated tokens, and both are needed",
    ),
    "anthropic-two-in-one-list": (
        ANTHROPIC_STREAM + deepcopy(ANTHROPIC_STREAM),
        "2 finished results or streams in one list",
    ),
    "http-response": (
        [SimpleNamespace(status_code=200, headers={}, json=lambda: {"usage": USAGE})],
        "item [0] of a list of SimpleNamespace: a SimpleNamespace is HTTP's, not yet read: return response.json()",
    ),
    "beams-without-their-prompt": (
        SimpleNamespace(sequences=[SimpleNamespace(orig_prompt={"prompt_token_ids": [5, 6]}, tokens=[7, 2])]),
        "its beams are not seen to begin with their prompt's ids",
    ),
    "beams-of-an-encoder-decoder": (
        SimpleNamespace(sequences=[SimpleNamespace(orig_prompt={"encoder_prompt": {}}, tokens=[7, 2])]),
        "None in orig_prompt is no sequence of token ids",
    ),
    "bedrock-unread": (
        {"ResponseMetadata": {"RequestId": "c"}, "stream": object()},
        "before it is consumed: do that inside the workload (return list(response['stream']))",
    ),
    "bedrock-nothing-written": (
        converse(outputTokens=0, totalTokens=11),
        "0 generated tokens, and words came",
    ),
    "tgi-without-prompt": (tgi(7, 0), "ask for decoder_input_details=True beside details=True, or return"),
    "tgi-without-details": ({"generated_text": "x"}, "TGI with details=True and decoder_input_details=True"),
    "tgi-contradicts-itself": (tgi(7, 11, generated_tokens=6), "generated_tokens 6 and hold 7 tokens"),
    "tgi-breaks-off": ([tgi_chunk()], "the stream breaks off before the part with details"),
    "none": (None, "the tokens of None cannot be counted: return"),
    "words": ("words", "the tokens of a str cannot be counted"),
    "empty": ([], "the tokens of a list cannot be counted (it is empty)"),
    "nothing-at-all": (TokenCount(0, 0, 0), "nothing was read and nothing generated"),
    "number": (7, "the tokens of an int"),
    "flags": (np.ones((2, 3), dtype=bool), "an array of bool with 2 dimensions is no table of token ids"),
    "logits": (np.ones((2, 3, 4)), "an array of float64 with 3 dimensions is no table"),
    "float-table": (np.ones((2, 3)), "generated=0 and responses=... for embeddings"),
    "ids-in-one-dimension": (np.ones(3, dtype=int), "an array of int64 with 1 dimension is no table"),
    "one-hot": (np.eye(4, dtype=int)[None], "3 dimensions is no table"),
    "ids-without-prompt": (np.ones((2, 3), dtype=int), "energy(model.generate, **inputs)"),
    "sequences-of-floats": (
        {"sequences": np.ones((2, 3))},
        "item ['sequences'] of a dict: an array of float64",
    ),
    "id-lists-without-prompt": ([[1, 2, 3]], "where the prompts end in token ids cannot be told"),
    "embeddings": (
        [[0.1, 0.2]],
        "item [0][0] of a list of list: vectors and scores do not say how many tokens were read: return",
    ),
    "none-among": (
        [output("0", completion([1])), None],
        "item [1] of a list of SimpleNamespace: the tokens of None",
    ),
    "exception-among": (
        [output("0", completion([1])), TimeoutError("late")],
        "item [1] of a list of SimpleNamespace: a request failed (TimeoutError: late): let the workload raise it",
    ),
    "named-among": ({"a": TokenCount(1, 1), "b": "x"}, "item ['b'] of a dict: the tokens of a str"),
    "generator": ((x for x in [1]), "before it is consumed: do that inside the workload"),
    "async-generator": (_asynchronous(), "before it is consumed"),
    "coroutine": (_unawaited(), "it was not awaited"),
    "vllm-error": (output("0", completion([1], finish="error")), "the request failed (error)"),
    "vllm-abort-among": (
        [output("0", completion([1])), output("1", completion([1], finish="abort"))],
        "item [1] of a list of SimpleNamespace: the request failed (abort)",
    ),
    "vllm-without-prompt": (
        SimpleNamespace(request_id="0", prompt_token_ids=None, outputs=[completion([1])], finished=True),
        "its prompt's ids are not in it",
    ),
    "vllm-unfinished": (
        output("0", completion([1], finish=None), finished=False),
        "request '0' is not finished",
    ),
    "vllm-last-delta-only": (
        output("0", completion([8]), metrics=SimpleNamespace(num_generation_tokens=4)),
        "1 ids came back of request '0', whose metrics say that 4",
    ),
    "vllm-one-id-for-two": (
        [output("0", completion([1, 2])), output("0", completion([1, 2]))],
        "items [0], [1] of a list of SimpleNamespace: 2 results with one request id, '0'",
    ),
    "vllm-cumulative-or-deltas": (
        [output("0", completion([5], finish=None), finished=False), output("0", completion([5, 5]))],
        "may be cumulative or deltas",
    ),
    "pooling-of-nothing": (pooling("0", 5, other=1), "holds neither ids nor a vector"),
    "usage-partial": ({"usage": {"prompt_tokens": 1}}, "it has no usage with prompt and completion tokens"),
    "usage-bool": ({"usage": used(1, 1) | {"completion_tokens": True}}, "completion_tokens is True"),
    "usage-negative": ({"usage": {"prompt_tokens": 1, "completion_tokens": -1}}, "completion_tokens is -1"),
    "usage-float": ({"usage": {"prompt_tokens": 1, "completion_tokens": 2.0}}, "completion_tokens is 2.0"),
    "usage-huge": (
        {"usage": {"prompt_tokens": 1, "completion_tokens": 10**13}},
        "which is no number of tokens",
    ),
    "usage-total": (
        {"usage": USAGE | {"total_tokens": 30}},
        "11 prompt and 7 generated tokens, and 30 in all",
    ),
    "usage-cached": ({"usage": USAGE | {"prompt_tokens_details": {"cached_tokens": 12}}}, "12 cached of 11"),
    "usage-fewer-than-ids": (
        {"usage": used(1, 2), "choices": [{"token_ids": [1, 2]}, {"token_ids": [3]}]},
        "its usage says 2 generated tokens, and its choices hold 3",
    ),
    "usage-none": ({"object": "chat.completion", "choices": [{}], "usage": None}, "include_usage"),
    "usage-zero": ({"usage": used(0, 0)}, "its prompt has 0 tokens"),
    "usage-zero-with-words": (
        {"usage": used(3, 0), "choices": [{"message": {"content": "x"}}]},
        "0 generated tokens, and words came back",
    ),
    "usage-zero-with-a-refusal": (
        {"usage": used(3, 0), "choices": [{"message": {"content": None, "refusal": "no"}}]},
        "0 generated tokens, and words came back",
    ),
    "usage-zero-with-a-call": (
        {"usage": used(3, 0), "choices": [{"message": {"function_call": {"name": "f"}}}]},
        "0 generated tokens, and words came back",
    ),
    "usage-zero-with-a-response": (
        {"usage": used(3, 0), "object": "response", "output": [{"type": "message"}]},
        "0 generated tokens, and words came back",
    ),
    "usage-zero-with-a-message": (
        {"usage": used(3, 0), "type": "message", "content": [{"type": "text", "text": "x"}]},
        "0 generated tokens, and words came back",
    ),
    "usage-with-more-reasoning": (
        {"choices": [{}], "usage": USAGE | {"completion_tokens_details": {"reasoning_tokens": 80}}},
        "says 7 generated tokens, and 80 of them reasoning_tokens",
    ),
    "completion-without-choices": (
        {"id": "a", "object": "chat.completion", "choices": [], "usage": used(3, 0)},
        "it has no choices",
    ),
    "filters-alone": (
        {"id": "", "object": "", "choices": [], "prompt_filter_results": [{}]},
        "nothing was read",
    ),
    "usage-cached-as-float": (
        {"usage": USAGE | {"prompt_tokens_details": {"cached_tokens": 8.0}}},
        "cached_tokens is 8.0, which is no number of tokens",
    ),
    "usage-cached-as-text": ({"usage": USAGE | {"cached_tokens": "8"}}, "cached_tokens is '8'"),
    "usage-cached-twice": (
        {"usage": USAGE | {"cached_tokens": 4, "prompt_cache_hit_tokens": 8}},
        "does not say how many prompt tokens were cached",
    ),
    **{
        f"stream-of-deltas-{name}": (
            [
                chunk("a", 0, used(9, generated), "stop" if at == 2 else None)
                for at, generated in enumerate(each)
            ],
            "do not grow from chunk to chunk",
        )
        for name, each in {"alike": (1, 1, 1), "large": (3, 3, 3), "mixed": (1, 3, 2)}.items()
    },
    "two-streams-of-one-list-without-ids": (
        [chunk("", 0, used(1, 1), "stop"), chunk("", 0, used(1, 1), "stop")],
        "2 finished results with one id",
    ),
    "one-of-two-streams-breaks-off": (
        [
            [{"response": "x", "done": True, "prompt_eval_count": 3, "eval_count": 4}],
            [{"response": "x", "done": False}],
        ],
        "item [1][0] of a list of list: the stream breaks off",
    ),
    "one-of-two-responses-breaks-off": (
        [
            {"type": "response.created", "response": {"id": "a"}},
            {"type": "response.created", "response": {"id": "b"}},
            {"type": "response.completed", "response": {"id": "a", "usage": USAGE, "status": "completed"}},
        ],
        "item [1] of a list of dict: the stream breaks off before response.completed",
    ),
    **{
        f"ids-that-are-{name}": (output("r", completion(ids)), "in token_ids is no sequence of token ids")
        for name, ids in {"text": "abc", "floats": [0.1, 0.2], "a-table": np.ones((1, 3), int)}.items()
    },
    "prompt-ids-that-are-text": (
        SimpleNamespace(request_id="r", prompt_token_ids="hello", outputs=[completion([1])]),
        "a str in prompt_token_ids is no sequence of token ids",
    ),
    "no-completion": (output("r"), "request 'r' has no completion"),
    "cached-as-float": (output("r", completion([1]), num_cached_tokens=2.0), "num_cached_tokens is 2.0"),
    "response-failed": ({"status": "failed", "usage": USAGE}, "the request failed (failed)"),
    "response-error-body": ({"error": {"message": "no such model"}}, "no such model"),
    "stream-without-usage": ([chunk("a", 0), chunk("a", 0, finish="stop")], "include_usage"),
    "stream-breaks-off": (
        [chunk("a", 0, used(1, 1)), chunk("a", 0, used(1, 2))],
        "the stream of 'a' breaks off",
    ),
    "stream-n-2-without-last": (
        [chunk("a", 0, used(1, 1), "stop"), chunk("a", 1, used(1, 2), "stop")],
        "do not tell which is of all of it",
    ),
    "one-id-for-two-completions": (
        [
            {"id": "x", "choices": [{}], "usage": dict(USAGE)},
            {"id": "x", "choices": [{}], "usage": dict(USAGE)},
        ],
        "2 finished results with one id, 'x'",
    ),
    "ollama-prompt-from-cache": ({"response": "x", "done": True, "eval_count": 9}, "prompt_eval_count None"),
    "ollama-breaks-off": ([{"response": "x", "done": False}], "the part that is done, which has the counts"),
    "pipeline-text": ([{"generated_text": "x"}], "item [0] of a list of dict: text without token ids"),
    "pipeline-ids-alone": ([{"generated_token_ids": [1, 2]}], "have the pipeline called by the fixture"),
    "sglang-abort": (
        {"meta_info": META | {"finish_reason": {"type": "abort"}}},
        "the request failed (abort)",
    ),
}


@pytest.mark.parametrize(("result", "message"), REFUSED.values(), ids=list(REFUSED))
def test_refuses_and_says_what_to_return(result: object, message: str) -> None:
    with pytest.raises(TokenCountError) as caught:
        count_tokens(result)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((1, -1), "generated=-1"),
        ((True, 1), "prompt=True"),
        ((1.0, 1), "prompt=1.0"),
        ((np.bool_(True), 1), "prompt="),
        (("1", 1), "prompt='1'"),
        ((10**13, 1), "more than any execution has"),
        ((1, 1, 1, 2), "more than the 1 prompt tokens"),
    ],
)
def test_a_count_is_of_whole_numbers(fields: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match="TokenCount") as caught:
        TokenCount(*fields)
    assert message in str(caught.value)


@pytest.mark.parametrize("as_", [int, np.uint8, np.int64, np.array], ids=lambda one: one.__name__)
def test_numbers_may_be_of_any_integer_type(as_: Any) -> None:
    assert TokenCount(as_(11), as_(7)) == TokenCount(11, 7)
    usage = {"prompt_tokens": as_(11), "completion_tokens": as_(7), "cached_tokens": as_(8)}
    assert count_tokens({"usage": usage}) == TokenCount(11, 7, 1, 8)
    with pytest.raises(ValueError, match="must be an integer"):
        TokenCount(as_(11), np.array(7.0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "said",
    [
        {"cached_tokens": 8},
        {"prompt_cache_hit_tokens": 8, "prompt_cache_miss_tokens": 3},
        {"cache_read_input_tokens": 8, "cache_creation_input_tokens": 2},
        {"prompt_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 3}},
        {"prompt_tokens_details": SimpleNamespace(cached_tokens=8), "cached_tokens": 8},
    ],
)
def test_what_a_cache_held_counts_under_any_name(said: dict[str, Any]) -> None:
    assert count_tokens({"usage": USAGE | said}) == TokenCount(11, 7, 1, 8)
    assert count_tokens(SimpleNamespace(usage=SimpleNamespace(**USAGE, **said))) == TokenCount(11, 7, 1, 8)


def test_a_stream_without_ids_is_one_request() -> None:
    stream = [chunk("", 0), chunk("", 0, finish="stop"), chunk("", None, used(3, 2))]
    assert count_tokens(stream) == TokenCount(3, 2)
    other = [chunk("", 0), chunk("", 0, finish="stop"), chunk("", None, used(3, 5))]
    assert count_tokens([stream, other]) == TokenCount(6, 7, 2)


def test_a_failed_request_is_named_by_its_place() -> None:
    async def work() -> list[object]:
        async def one(at: int) -> object:
            if at == 2:
                raise ConnectionError("reset")
            return {"usage": USAGE, "choices": [{}]}

        return await asyncio.gather(*(one(at) for at in range(4)), return_exceptions=True)

    with pytest.raises(
        TokenCountError, match=r"^item \[2\] of a list of dict: a request failed \(ConnectionError"
    ):
        count_tokens(asyncio.run(work()))


# Tokens of one request, as ids that tell cumulative outputs from deltas: no id repeats.
requests = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.booleans()),
    min_size=1,
    max_size=4,
)


@given(requests, st.randoms(use_true_random=False))
def test_streams_count_once_in_any_order(drawn: list[tuple[int, list[int], bool]], random: Any) -> None:
    """Cumulative or by deltas, in any order, each request counts by what it generated in all."""
    pieces = []
    for number, (prompt, steps, cumulative) in enumerate(drawn):
        ids = list(range(sum(steps)))
        end = 0
        for at, step in enumerate(steps):
            begin, end = (0 if cumulative else end), end + step
            last = at == len(steps) - 1
            one = completion(ids[begin:end], finish="stop" if last else None)
            pieces.append(output(str(number), one, prompt=prompt, finished=last))
    random.shuffle(pieces)
    expected = TokenCount(sum(d[0] for d in drawn), sum(sum(d[1]) for d in drawn), len(drawn))
    assert count_tokens(pieces) == expected
    assert count_tokens(pieces + pieces) == expected


@given(requests, st.randoms(use_true_random=False))
def test_usages_of_interleaved_streams_count_once(
    drawn: list[tuple[int, list[int], bool]], random: Any
) -> None:
    """With the usage in each chunk or in the last alone, each response counts once."""
    streams = []
    for number, (prompt, steps, each) in enumerate(drawn):
        pieces: list[Any] = []
        streams.append(pieces)
        for at in range(len(steps)):
            so_far = used(prompt, sum(steps[: at + 1])) if each else None
            pieces.append(chunk(str(number), 0, so_far, "stop" if at == len(steps) - 1 else None))
        if not each:
            pieces.append(chunk(str(number), None, used(prompt, sum(steps))))
    order = [number for number, pieces in enumerate(streams) for _ in pieces]
    random.shuffle(order)
    taken = [iter(pieces) for pieces in streams]
    assert count_tokens([next(taken[number]) for number in order]) == TokenCount(
        sum(d[0] for d in drawn), sum(sum(d[1]) for d in drawn), len(drawn)
    )


counts = st.builds(
    lambda cached, computed, generated, responses: TokenCount(
        cached + computed, generated, responses, cached
    ),
    st.integers(0, 99),
    st.integers(1, 99),
    st.integers(0, 99),
    st.integers(0, 9),
)


@given(st.lists(counts, min_size=1, max_size=5))
def test_counts_add_up(each: list[TokenCount]) -> None:
    total = count_tokens(each)
    for name in ("prompt", "generated", "responses", "cached_prompt"):
        assert getattr(total, name) == sum(getattr(one, name) for one in each)
    assert count_tokens([each]) == count_tokens(tuple(each)) == total


def test_usage_so_far_in_several_events_of_one_stream_counts_once() -> None:
    def event(generated: int, stop: str | None) -> dict[str, object]:
        usage = {"input_tokens": 10, "output_tokens": generated}
        return {"type": "message_delta", "delta": {"stop_reason": stop}, "usage": usage}

    stream = [event(3, None), event(7, "end_turn")]
    assert count_tokens(stream) == TokenCount(10, 7)
    assert count_tokens([stream, stream[1:]]) == TokenCount(10, 7) + TokenCount(10, 7)
    with pytest.raises(TokenCountError, match="the stream breaks off"):
        count_tokens(stream[:1])
    with pytest.raises(TokenCountError, match="2 finished results"):
        count_tokens([event(3, "end_turn"), event(7, "end_turn")])


def test_the_ids_of_a_call_are_read_from_their_device_once() -> None:
    class OnADevice:
        ndim, dtype, shape = 2, "int64", (1, 4)
        read = 0

        def tolist(self) -> list[list[int]]:
            self.read += 1
            return [[1, 2, 3, 4]]

    ids = OnADevice()
    ran = ((ids, Call((), {})),)
    # A block makes a call of all that ran so far with each result that it counts.
    assert [ran_of([[3, 4]], Call((), {}, ran)) for _ in range(3)] == [frozenset({0})] * 3
    assert ids.read == 1
