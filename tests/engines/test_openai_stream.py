"""A streamed completion from its bytes: tokens and arrivals, however the network cut it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_tokenpower.engines.openai.client import Stream, shown
from pytest_tokenpower.errors import EngineError

DONE = b"data: [DONE]\n\n"


def line(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def chunk(
    text: str = "x", ids: Sequence[int] | None = None, usage: int | None = None, reason: str | None = None
) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}
    if ids is not None:
        choice["token_ids"] = list(ids)
    event: dict[str, object] = {"id": "x", "object": "text_completion", "choices": [choice]}
    if usage is not None:
        event["usage"] = {"prompt_tokens": 4, "completion_tokens": usage, "total_tokens": 4 + usage}
    return line(event)


def last(usage: int) -> bytes:
    return line({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": usage}}) + DONE


def read(*parts: bytes, new_tokens: int) -> Stream:
    stream = Stream("here", 4, new_tokens)
    for at, part in enumerate(parts, 1):
        stream.feed(part, 10 * at)
    return stream


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 500), min_size=1, max_size=3), min_size=1, max_size=6),
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.sampled_from([b"\n", b"\r\n"]),
)
def test_however_it_is_cut(ids: list[list[int]], cuts: list[int], newline: bytes) -> None:
    data = b"".join(chunk(ids=each) for each in ids) + last(sum(map(len, ids)))
    data = data.replace(b"\n", newline)
    stream, now, at = Stream("here", 4, sum(map(len, ids))), 0, 0
    while at < len(data):
        size = cuts[now % len(cuts)]
        now += 1
        stream.feed(data[at : at + size], now)
        at += size
    response = stream.finish()
    assert response.token_ids == tuple(token for each in ids for token in each)
    assert [tokens for _, tokens in response.trace.chunks] == [len(each) for each in ids]
    times = [arrived for arrived, _ in response.trace.chunks]
    assert times == sorted(times)
    assert times[-1] <= now


def test_usage_in_each_chunk_counts_it() -> None:
    stream = read(chunk(usage=1), chunk(usage=3), chunk("", usage=3, reason="length"), last(3), new_tokens=3)
    response = stream.finish()
    assert response.trace.chunks == ((10, 1), (20, 2))
    assert response.token_ids is None


@pytest.mark.parametrize(
    ("chunks", "total", "expected"),
    [
        # Each chunk is a token; the one that only says why it ended is none.
        ([chunk(), chunk(), chunk()], 3, [1, 1, 1]),
        ([chunk(), chunk(), chunk("", reason="length")], 2, [1, 1]),
        ([chunk(), chunk(), chunk("", reason="length")], 3, [1, 1, 1]),
        # A token without text of its own (half a character), and several in a chunk.
        ([chunk(), chunk(""), chunk(reason="length")], 3, [1, 1, 1]),
        ([chunk(), chunk()], 5, [3, 2]),
        ([chunk(), chunk(), chunk()], 2, [1, 1]),
    ],
)
def test_chunks_that_nobody_counts_share_the_total(
    chunks: list[bytes], total: int, expected: list[int]
) -> None:
    response = read(*chunks, last(total), new_tokens=total).finish()
    assert [tokens for _, tokens in response.trace.chunks] == expected
    assert response.token_ids is None
    assert response.tokens == total


def test_no_token_at_all() -> None:
    with pytest.raises(EngineError, match=r"here: stopped after 0 of 3 tokens"):
        read(last(0), new_tokens=3).finish()


def test_what_is_shown_of_a_server_is_short_and_on_one_line() -> None:
    assert shown(b"a\n  b\xff") == "a b�"
    assert len(shown(b"word " * 1000)) < 320
