"""Results of the libraries themselves, where they are installed, against counts by hand."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_tokenpower.core.tokens import TokenCount, count_tokens
from pytest_tokenpower.errors import TokenCountError

# What the libraries warn of when they are imported is none of ours.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
CACHED = USAGE | {"prompt_tokens_details": {"cached_tokens": 8}}


def _completion(**more: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "x"}}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m"}
    return head | {"choices": [choice, choice | {"index": 1}], "usage": CACHED} | more


def _chunk(index: int | None, finish: str | None = None, usage: Any = None) -> dict[str, Any]:
    choices = [] if index is None else [{"index": index, "delta": {"content": "x"}, "finish_reason": finish}]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return head | {"choices": choices, "usage": usage}


def test_openai_completions_and_streams() -> None:
    types = pytest.importorskip("openai.types")
    chat = pytest.importorskip("openai.types.chat")
    full = chat.ChatCompletion.model_validate(_completion())
    assert count_tokens(full) == TokenCount(11, 7, 2, 8)
    chunks = [_chunk(0), _chunk(0, "stop"), _chunk(None, usage=USAGE)]
    stream = [chat.ChatCompletionChunk.model_validate(each) for each in chunks]
    assert count_tokens(stream) == TokenCount(11, 7, 1)
    with pytest.raises(TokenCountError, match="include_usage"):
        count_tokens(stream[:2])
    text = {"index": 0, "text": "x", "logprobs": None}
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m"}
    pieces = [
        head | {"choices": [text | {"finish_reason": None}]},
        head | {"choices": [text | {"finish_reason": "length"}]},
        head | {"choices": [], "usage": USAGE},
    ]
    # The wire's pieces, which openai.types.Completion does not validate: finish_reason is null in them.
    built = [types.Completion.model_construct(**piece) for piece in pieces]
    assert count_tokens(built) == count_tokens(pieces) == TokenCount(11, 7, 1)


def test_openai_embeddings() -> None:
    types = pytest.importorskip("openai.types")
    vectors = [{"index": at, "embedding": [0.1], "object": "embedding"} for at in range(3)]
    embeddings = types.CreateEmbeddingResponse.model_validate(
        {"object": "list", "model": "m", "data": vectors, "usage": {"prompt_tokens": 9, "total_tokens": 9}}
    )
    assert count_tokens(embeddings) == TokenCount(9, 0, 3)


def test_openai_responses_and_their_events() -> None:
    responses = pytest.importorskip("openai.types.responses")
    body = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "status": "completed",
        "usage": {
            "input_tokens": 11,
            "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 0},
            "output_tokens": 7,
            "output_tokens_details": {"reasoning_tokens": 2},
            "total_tokens": 18,
        },
    }
    done = responses.Response.model_validate(body)
    assert count_tokens(done) == TokenCount(11, 7, 1, 8)
    begun = responses.Response.model_validate(body | {"status": "in_progress", "usage": None})
    events = [
        responses.ResponseCreatedEvent(type="response.created", response=begun, sequence_number=0),
        responses.ResponseTextDeltaEvent(
            type="response.output_text.delta",
            delta="x",
            item_id="i",
            output_index=0,
            content_index=0,
            logprobs=[],
            sequence_number=1,
        ),
        responses.ResponseCompletedEvent(type="response.completed", response=done, sequence_number=2),
    ]
    assert count_tokens(events) == TokenCount(11, 7, 1, 8)
    with pytest.raises(TokenCountError, match=r"before response\.completed"):
        count_tokens(events[:2])


def test_litellm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    full = litellm.ModelResponse(**_completion())
    assert count_tokens(full) == TokenCount(11, 7, 2, 8)
    asked = {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "hi"}],
        "mock_response": "hello there",
        "stream": True,
    }
    with pytest.raises(TokenCountError, match="before it is consumed"):
        count_tokens(litellm.completion(**asked))
    stream = list(litellm.completion(**asked, stream_options={"include_usage": True}))
    said = stream[-1].usage
    assert count_tokens(stream) == TokenCount(said.prompt_tokens, said.completion_tokens)
    vectors = litellm.EmbeddingResponse(
        model="m", data=[{"embedding": [0.1]}] * 2, usage=litellm.Usage(prompt_tokens=5, total_tokens=5)
    )
    assert count_tokens(vectors) == TokenCount(5, 0, 2)


def test_langchain() -> None:
    messages = pytest.importorskip("langchain_core.messages")
    outputs = pytest.importorskip("langchain_core.outputs")
    usage = {
        "input_tokens": 11,
        "output_tokens": 7,
        "total_tokens": 18,
        "input_token_details": {"cache_read": 8},
    }

    def message(id_: str, **more: Any) -> Any:
        return messages.AIMessage("x", id=id_, usage_metadata=usage, **more)

    assert count_tokens([message("a"), message("b")]) == TokenCount(22, 14, 2, 16)
    older = messages.AIMessage("x", response_metadata={"token_usage": USAGE})
    assert count_tokens(older) == TokenCount(11, 7)
    generation = outputs.ChatGeneration(message=message("a"))
    result = outputs.LLMResult(generations=[[generation], [outputs.ChatGeneration(message=message("b"))]])
    assert count_tokens(result) == TokenCount(22, 14, 2, 16)
    # Each message of n=2 repeats the usage of both.
    twice = outputs.LLMResult(generations=[[generation, generation]], llm_output={"token_usage": USAGE})
    assert count_tokens(twice) == TokenCount(11, 7, 2)
    with pytest.raises(TokenCountError, match="several generations a prompt"):
        count_tokens(outputs.LLMResult(generations=[[generation, generation]]))
    with pytest.raises(TokenCountError, match=r"item \['messages'\]\[0\]"):
        count_tokens({"messages": [messages.HumanMessage("hi"), message("a")]})


def test_langchain_streams() -> None:
    messages = pytest.importorskip("langchain_core.messages")

    def chunk(prompt: int | None = None, generated: int = 0) -> Any:
        usage = {
            "input_tokens": prompt,
            "output_tokens": generated,
            "total_tokens": (prompt or 0) + generated,
        }
        return messages.AIMessageChunk("x", id="run-1", usage_metadata=None if prompt is None else usage)

    assert count_tokens([chunk(), chunk(), chunk(11, 7)]) == TokenCount(11, 7)
    assert count_tokens([chunk(11, 0), chunk(), chunk(0, 7)]) == TokenCount(11, 7)
    assert count_tokens([chunk(11, 1), chunk(11, 2), chunk(11, 3)]) == TokenCount(11, 3)
    assert count_tokens(chunk(11, 0) + chunk() + chunk(0, 7)) == TokenCount(11, 7)
    with pytest.raises(TokenCountError, match="it has no usage"):
        count_tokens([chunk(), chunk()])


def test_llama_index() -> None:
    llms = pytest.importorskip("llama_index.core.llms")
    raw = _completion(choices=[{"index": 0, "finish_reason": "stop"}])
    answer = llms.ChatResponse(message=llms.ChatMessage("x"), raw=raw)
    assert count_tokens(answer) == TokenCount(11, 7, 1, 8)
    text = llms.CompletionResponse(text="x", raw=raw)
    assert count_tokens([text]) == TokenCount(11, 7, 1, 8)
    stream = [
        llms.ChatResponse(message=llms.ChatMessage("x"), raw=each)
        for each in (_chunk(0), _chunk(0, "stop"), _chunk(None, usage=USAGE))
    ]
    assert count_tokens(stream) == TokenCount(11, 7)
    beside = llms.CompletionResponse(text="x", additional_kwargs={"prompt_tokens": 5, "completion_tokens": 2})
    assert count_tokens(beside) == TokenCount(5, 2)
    with pytest.raises(TokenCountError, match=r"\.raw has no usage \(None\)"):
        count_tokens(llms.MockLLM().complete("hi"))


def test_ollama() -> None:
    ollama = pytest.importorskip("ollama")
    answer = {"model": "m", "message": {"role": "assistant", "content": "x"}}
    counts = {"prompt_eval_count": 26, "eval_count": 9}
    stream = [
        ollama.ChatResponse(**answer, done=False),
        ollama.ChatResponse(**answer, done=True, **counts),
    ]
    assert count_tokens(stream[1]) == count_tokens(stream) == TokenCount(26, 9)
    with pytest.raises(TokenCountError, match="the part that is done"):
        count_tokens(stream[:1])
    with pytest.raises(TokenCountError, match="prompt_eval_count None"):
        count_tokens(ollama.GenerateResponse(model="m", response="x", done=True, eval_count=9))
    vectors = ollama.EmbedResponse(model="m", embeddings=[[0.1], [0.2]], prompt_eval_count=8)
    assert count_tokens(vectors) == TokenCount(8, 0, 2)


def test_google_genai() -> None:
    types = pytest.importorskip("google.genai.types")
    candidate = {"content": {"parts": [{"text": "x"}], "role": "model"}}
    usage = {"promptTokenCount": 11, "cachedContentTokenCount": 8, "thoughtsTokenCount": 20}

    def response(answer: int | None, finish: str | None) -> Any:
        said = usage | {"candidatesTokenCount": answer, "totalTokenCount": 31 + (answer or 0)}
        return types.GenerateContentResponse.model_validate(
            {"candidates": [candidate | {"finishReason": finish}], "usageMetadata": said, "responseId": "g"}
        )

    assert count_tokens(response(7, "STOP")) == TokenCount(11, 27, 1, 8)
    stream = [response(None, None), response(3, None), response(7, "STOP")]
    assert count_tokens(stream) == TokenCount(11, 27, 1, 8)
    with pytest.raises(TokenCountError, match="breaks off"):
        count_tokens(stream[:2])
    blocked = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 11}}
    with pytest.raises(TokenCountError, match="the request failed"):
        count_tokens(types.GenerateContentResponse.model_validate(blocked))


def test_transformers_continuous_batching() -> None:
    requests = pytest.importorskip("transformers.generation.continuous_batching.requests")
    batch = {
        name: requests.GenerationOutput(name, prompt_ids=[1, 2], generated_tokens=[3, 4, 5])
        for name in ("r0", "r1")
    }
    assert count_tokens(batch) == TokenCount(4, 6, 2)
    batch["r1"].error = "out of memory"
    with pytest.raises(
        TokenCountError, match=r"item \['r1'\] of a dict: the request failed \(out of memory\)"
    ):
        count_tokens(batch)


def test_vllm() -> None:
    outputs = pytest.importorskip("vllm.outputs")

    def output(request: str, ids: list[int], *, finished: bool = True, **more: Any) -> Any:
        reason = ("abort" if more.pop("aborted", False) else "length") if finished else None
        one = outputs.CompletionOutput(0, "x", ids, None, None, finish_reason=reason)
        return outputs.RequestOutput(request, "p", [1, 2, 3], None, [one], finished, **more)

    assert count_tokens([output("0", [5, 6], num_cached_tokens=2), output("1", [7])]) == TokenCount(
        6, 3, 2, 2
    )
    cumulative = [
        output("0", [5], finished=False),
        output("0", [5, 6], finished=False),
        output("0", [5, 6, 7]),
    ]
    assert count_tokens(cumulative) == TokenCount(3, 3)
    deltas = [output("0", [5], finished=False), output("0", [6], finished=False), output("0", [7])]
    assert count_tokens(deltas) == TokenCount(3, 3)
    with pytest.raises(TokenCountError, match=r"item \[1\].*the request failed \(abort\)"):
        count_tokens([output("0", [5]), output("1", [5], aborted=True)])
    vector = outputs.EmbeddingOutput([0.1])
    embedding = outputs.EmbeddingRequestOutput("2", vector, [1, 2, 3, 4], 0, True)
    score = outputs.ScoringRequestOutput("3", outputs.ScoringOutput(0.5), [1, 2], 1, True)
    assert count_tokens([embedding, score]) == TokenCount(6, 0, 2, 1)
