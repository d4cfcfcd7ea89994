"""What an engine's answers are worth, beside what they cost: a score on a data set of one's own."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.workloads.base import Batch, check_positive
from pytest_tokenpower.workloads.prompts import check_limit, prompt_of, rows_of

AT_ONCE = 16
"""Questions in one batch, so that any engine that fits its own work has room for them."""


@dataclass(frozen=True)
class Score:
    """A score above 0 or equal to it, of which more is better; ``name`` says what it is, ``stderr`` how sure it is."""

    value: float
    stderr: float = 0.0
    name: str = "score"

    def __post_init__(self) -> None:
        for what, number in (("value", self.value), ("stderr", self.stderr)):
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise UsageError(f"Score({what}={number!r}): must be a number")
            if not 0 <= number < math.inf:
                raise UsageError(f"Score({what}={number!r}): must be a finite number of at least 0")

    @classmethod
    def of(cls, value: Score | float) -> Score:
        """Return a plain number as a score; raises UsageError."""
        return value if isinstance(value, Score) else cls(value)


Quality = Callable[[Any], "Score | float"]
"""Called with the running engine, outside all rounds."""


@dataclass(frozen=True)
class ExactMatch:
    """The share of questions that are answered as given, apart from case, punctuation and spaces.

    An answer is a text, or a tuple of texts of which each is right. What was generated may go on after it, as engines
    are measured through the end of sequence.
    """

    questions: tuple[str, ...]
    answers: tuple[str | tuple[str, ...], ...]
    new_tokens: int = 16

    def __post_init__(self) -> None:
        check_positive("ExactMatch", new_tokens=self.new_tokens)
        if not self.questions or len(self.questions) != len(self.answers):
            raise UsageError(
                f"ExactMatch: {len(self.questions)} questions and {len(self.answers)} answers: give one answer a "
                "question"
            )
        if blank := [each for answer in self.answers for each in _each(answer) if not _words(each)]:
            raise UsageError(f"ExactMatch: the answer {blank[0]!r} has no word")

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], *, new_tokens: int = 16, limit: int | None = None
    ) -> ExactMatch:
        """Read questions as PromptSet.read does, of rows that have an ``answer``, too.

        Alpaca's is called ``output``, and LongBench's ``answers`` are each right.

        Args:
            path: A .csv, .json or .jsonl file.
            new_tokens: To be generated for each question.
            limit: So many questions at most.

        Returns:
            The questions with their answers.

        Raises:
            UsageError: Names the file and the row.
        """
        check_limit("ExactMatch", limit)
        rows = [(place, row) for place, row in islice(rows_of(Path(path)), limit)]
        questions = tuple(prompt_of(row, f"{path}, {place}") for place, row in rows)
        return cls(questions, tuple(_answer(row, f"{path}, {place}") for place, row in rows), new_tokens)

    def __call__(self, engine: Any) -> Score:
        """Ask all of them; raises UsageError for an engine without a tokenizer."""
        encode, decode = _able(engine, "encode"), _able(engine, "decode")
        right = 0
        for at in range(0, len(self.questions), AT_ONCE):
            asked = self.questions[at : at + AT_ONCE]
            batch = Batch(tuple(tuple(encode(text)) for text in asked), self.new_tokens)
            given = engine.generate(batch).token_ids
            if len(given) != len(asked):
                raise UsageError(
                    f"ExactMatch: the {engine.identity.engine} engine gives no token ids of its answers, so that "
                    "they cannot be read: score them with a callable of your own"
                )
            right += sum(
                any(_begins(decode(list(ids)), each) for each in _each(answer))
                for ids, answer in zip(given, self.answers[at : at + AT_ONCE], strict=True)
            )
        count = len(self.questions)
        share = right / count
        return Score(share, math.sqrt(share * (1 - share) / count), f"exact match on {count} questions")


@dataclass(frozen=True)
class Likelihood:
    """The probability of a token of given texts, as their geometric mean: the reciprocal of the perplexity.

    Its logarithm is the mean log-likelihood of a token. Needs an engine that tells log-likelihoods.
    """

    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.texts, str) or not self.texts or not all(self.texts):
            raise UsageError("Likelihood: give a tuple of texts, none of them empty")

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, limit: int | None = None) -> Likelihood:
        """Read texts as PromptSet.read does; raises UsageError that names the file and the row."""
        check_limit("Likelihood", limit)
        rows = islice(rows_of(Path(path)), limit)
        return cls(tuple(prompt_of(row, f"{path}, {place}") for place, row in rows))

    def __call__(self, engine: Any) -> Score:
        """Score all of them; raises UsageError for an engine that cannot."""
        encode, tell = _able(engine, "encode"), _able(engine, "log_likelihoods")
        logs = [log for text in self.texts for log in tell(tuple(encode(text)))]
        if not logs:
            raise UsageError("Likelihood: every text is a single token, which nothing foretells")
        mean = sum(logs) / len(logs)
        spread = sum((log - mean) ** 2 for log in logs) / max(len(logs) - 1, 1)
        value = math.exp(mean)
        return Score(
            value, value * math.sqrt(spread / len(logs)), f"likelihood of a token, over {len(logs)} tokens"
        )


_NEEDED = {
    "encode": "has no tokenizer",
    "decode": "has no tokenizer to read its answers with",
    "log_likelihoods": "tells no log-likelihoods (the transformers engine does)",
}


def _able(engine: Any, method: str) -> Callable[[Any], Any]:
    found: Callable[[Any], Any] | None = getattr(engine, method, None)
    if found is None:
        raise UsageError(
            f"quality: the {engine.identity.engine} engine of {engine.identity.model} {_NEEDED[method]}: score it "
            "with a callable of your own"
        )
    return found


def _answer(row: Any, where: str) -> str | tuple[str, ...]:
    for name in ("answer", "answers", "output"):
        value = row.get(name) if isinstance(row, Mapping) else None
        texts = _each(tuple(value) if isinstance(value, list) else value)
        if texts and all(isinstance(text, str) and _words(text) for text in texts):
            return texts if len(texts) > 1 else texts[0]
    raise UsageError(
        f"{where}: has no answer; needed is a text called answer (or output), or a list called answers"
    )


def _each(answer: Any) -> tuple[Any, ...]:
    return answer if isinstance(answer, tuple) else (answer,)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _begins(given: str, answer: str) -> bool:
    wanted = _words(answer)
    return _words(given)[: len(wanted)] == wanted
