"""Scores of answers: exact match and likelihood against exact values, on an engine whose answers are known."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.workloads import Batch, ExactMatch, Likelihood, Score


class Parrot:
    """Answers each question with what stands after its colon, a token a character; all tokens are a half likely."""

    identity = SimpleNamespace(engine="parrot", model="m")

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, text: str) -> list[int]:
        return [ord(one) for one in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def generate(self, batch: Batch) -> SimpleNamespace:
        self.batches.append(len(batch.prompts))
        texts = [self.decode(each).partition(":")[2] for each in batch.prompts]
        return SimpleNamespace(token_ids=[self.encode(text)[: batch.new_tokens] for text in texts])

    def log_likelihoods(self, ids: Sequence[int]) -> list[float]:
        return [math.log(0.5)] * (len(ids) - 1)


@pytest.mark.parametrize(
    ("said", "wanted", "right"),
    [
        (" Paris. It is", "paris", True),
        ("Parisian", "Paris", False),
        ("New  York!", "New York", True),
        ("York", "New York", False),
        ("", "x", False),
        ("deux", ("two", "deux"), True),
    ],
)
def test_an_answer_is_right_where_what_was_generated_begins_with_its_words(
    said: str, wanted: str | tuple[str, ...], right: bool
) -> None:
    assert ExactMatch((f"q:{said}",), (wanted,))(Parrot()).value == right


def test_the_share_of_right_answers_has_its_binomial_error() -> None:
    engine = Parrot()
    score = ExactMatch(tuple(f"q:{at % 4}" for at in range(40)), ("0",) * 40)(engine)
    assert score == Score(0.25, math.sqrt(0.25 * 0.75 / 40), "exact match on 40 questions")
    assert engine.batches == [16, 16, 8]


def test_the_likelihood_is_the_geometric_mean_of_a_tokens_probability() -> None:
    score = Likelihood(("abc", "defg"))(Parrot())
    assert score.value == pytest.approx(0.5)
    assert score.stderr == pytest.approx(0.0)
    assert score.name == "likelihood of a token, over 5 tokens"


def test_questions_are_read_from_files_as_prompts_are(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    rows = [
        {"prompt": "a:1", "answer": "1"},
        {"instruction": "b", "output": "two"},
        {"context": "c", "input": "d", "answers": ["x", "y"]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    read = ExactMatch.read(path, new_tokens=4)
    assert read.answers == ("1", "two", ("x", "y"))
    assert read.questions[0] == "a:1"
    assert read.questions[2] == "c\n\nd"
    assert ExactMatch.read(path, limit=1).answers == ("1",)
    assert Likelihood.read(path, limit=1).texts == ("a:1",)
    for kind in (ExactMatch, Likelihood):
        for limit in (0, -1, True):
            with pytest.raises(
                UsageError, match=rf"{kind.__name__}\(limit={limit}\): must be an integer of at least 1"
            ):
                kind.read(path, limit=limit)
    path.write_text('{"prompt": "a"}')
    with pytest.raises(UsageError, match=r"q\.jsonl, line 1: has no answer; needed is a text called answer"):
        ExactMatch.read(path)


def test_an_engine_that_cannot_be_scored_says_what_it_lacks() -> None:
    mute = SimpleNamespace(identity=Parrot.identity)
    with pytest.raises(UsageError, match="the parrot engine of m has no tokenizer: score it with a callable"):
        ExactMatch(("q",), ("a",))(mute)
    mute.encode = Parrot().encode
    with pytest.raises(UsageError, match="tells no log-likelihoods"):
        Likelihood(("text",))(mute)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "0.5", True, None])
def test_what_is_no_score_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match=r"Score\(value="):
        Score.of(value)  # type: ignore[arg-type]


def test_questions_and_answers_go_together() -> None:
    with pytest.raises(UsageError, match="2 questions and 1 answers"):
        ExactMatch(("a", "b"), ("c",))
    with pytest.raises(UsageError, match="has no word"):
        ExactMatch(("a",), ("?",))
    with pytest.raises(UsageError, match="a tuple of texts"):
        Likelihood("text")  # type: ignore[arg-type]
