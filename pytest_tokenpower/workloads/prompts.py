"""Sets of prompts from files or a hub: CSV, JSON and JSONL, in the formats of Alpaca, LongBench, or of one's own."""

from __future__ import annotations

import csv
import importlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.workloads.arrivals import AllAtOnce, Arrivals
from pytest_tokenpower.workloads.base import Batch, Workload, check_positive, fingerprint_of
from pytest_tokenpower.workloads.tokenizers import Encode, byte_ids

_ALPACA = "Below is an instruction that describes a task"
MOST_SEARCHED = 2000
"""Rows of a data set in which prompts of a length are looked for."""

_RESPONSE = "Write a response that appropriately completes the request."


@dataclass(frozen=True)
class PromptSet(Workload):
    """Texts as prompts, and ``new_tokens`` generated for each.

    A prompt of more than ``max_prompt_tokens`` loses its middle, as LongBench does it: instructions stand at both
    ends. Without a tokenizer a token is a byte (``tokenizers.byte_ids``), which the key then says. ``tokens`` are the
    lengths of a bin, from the first to below the second: ``count`` prompts of these lengths are taken.
    """

    texts: tuple[str, ...]
    new_tokens: int
    max_prompt_tokens: int | None = None
    arrivals: Arrivals = field(default_factory=AllAtOnce)
    tokens: tuple[int, int] | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        check_positive("PromptSet", new_tokens=self.new_tokens)
        if self.max_prompt_tokens is not None:
            check_positive("PromptSet", max_prompt_tokens=self.max_prompt_tokens)
        if self.tokens is not None and not 0 <= self.tokens[0] < self.tokens[1]:
            raise UsageError(
                f"PromptSet(tokens={self.tokens}): give the least length and one above the longest"
            )
        if self.count is not None:
            check_positive("PromptSet", count=self.count)
            if self.tokens is None:
                raise UsageError(
                    f"PromptSet(count={self.count}): is of a bin of lengths: give tokens=(least, most), or fewer texts"
                )
        if isinstance(self.texts, str):
            raise UsageError(
                f"PromptSet(texts={self.texts[:40]!r}): one text is a set too: give a tuple of texts"
            )
        if not self.texts:
            raise UsageError("PromptSet: there is no prompt")
        for index, text in enumerate(self.texts):
            if not isinstance(text, str) or not text:
                raise UsageError(f"PromptSet: prompt {index} is {text!r}, not a text")

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        *,
        new_tokens: int,
        limit: int | None = None,
        max_prompt_tokens: int | None = None,
        arrivals: Arrivals | None = None,
        tokens: tuple[int, int] | None = None,
    ) -> PromptSet:
        """Read the first prompts of a file.

        A row (an object of JSON, a line of CSV under its header) has ``instruction`` and perhaps ``input`` (Alpaca,
        in its own template), ``context`` and ``input`` (LongBench), or ``prompt`` or ``text``; in JSON it may be the
        text itself. Other fields are left alone.

        Args:
            path: A .csv, .json or .jsonl file.
            new_tokens: To be generated for each prompt.
            limit: So many prompts at most; of a bin of lengths exactly so many.
            max_prompt_tokens: A longer prompt loses its middle.
            arrivals: When the requests come (default: all at once).
            tokens: Only prompts of that many tokens, from the first number to below the second.

        Returns:
            The set of prompts.

        Raises:
            UsageError: Names the file and the row.
        """
        check_limit("PromptSet", limit)
        path = Path(path)
        texts = tuple(islice(_texts(rows_of(path), str(path)), limit if tokens is None else None))
        if not texts:
            raise UsageError(f"{path}: there is no prompt in it")
        return cls(
            texts, new_tokens, max_prompt_tokens, arrivals or AllAtOnce(), tokens, limit if tokens else None
        )

    @classmethod
    def from_hub(
        cls,
        dataset: str,
        *,
        new_tokens: int,
        split: str = "train",
        subset: str | None = None,
        limit: int | None = None,
        max_prompt_tokens: int | None = None,
        arrivals: Arrivals | None = None,
        tokens: tuple[int, int] | None = None,
    ) -> PromptSet:
        """Read prompts as :meth:`read` does from a data set of the Hugging Face hub, in its own order.

        Args:
            dataset: The data set's hub id.
            split: Of the data set.
            subset: Of the data set, where it has several.
            new_tokens: As for :meth:`read`.
            limit: As for :meth:`read`.
            max_prompt_tokens: As for :meth:`read`.
            arrivals: As for :meth:`read`.
            tokens: As for :meth:`read`, among the first MOST_SEARCHED rows.

        Returns:
            The set of prompts.

        Raises:
            UsageError: Where the package ``datasets`` or the hub is not there.
        """
        check_limit("PromptSet", limit)
        try:
            load_dataset = importlib.import_module("datasets").load_dataset
        except ImportError:
            raise UsageError(
                f"{dataset}: data sets of the hub need a package that is not installed: pip install datasets (or save "
                "the prompts to a file, and use PromptSet.read)"
            ) from None
        where = f"data set {dataset}, split {split}"
        try:
            rows = load_dataset(dataset, subset, split=split, streaming=True)
            numbered = ((f"row {at}", row) for at, row in enumerate(rows))
            texts = tuple(islice(_texts(numbered, where), limit if tokens is None else MOST_SEARCHED))
        except UsageError:
            raise
        except Exception as error:  # the hub's client raises what its transport does
            raise UsageError(f"{where}: cannot be loaded: {type(error).__name__}: {error}") from error
        if not texts:
            raise UsageError(f"{where}: there is no prompt in it")
        return cls(
            texts, new_tokens, max_prompt_tokens, arrivals or AllAtOnce(), tokens, limit if tokens else None
        )

    def to_batch(self, encode: Encode | None = None) -> Batch:
        """Return the prompts' token ids, cut in the middle where they are too long.

        Raises UsageError where fewer prompts than are to be taken have the lengths that are asked for.
        """
        ids: Iterator[tuple[int, ...]] = (tuple(each) for each in map(encode or byte_ids, self.texts))
        if self.tokens is not None:
            least, most = self.tokens
            ids = islice((each for each in ids if least <= len(each) < most), self.count)
        taken = tuple(ids)
        if len(taken) < (self.count or 1):
            raise UsageError(
                f"PromptSet(tokens={self.tokens}): of {len(self.texts)} prompts {len(taken)} have so many tokens, and "
                f"{self.count or 'some'} are asked for"
            )
        return Batch(tuple(_cut(each, self.max_prompt_tokens) for each in taken), self.new_tokens)

    @property
    def fingerprint(self) -> str:
        """Of all texts and limits; which tokenizer they go through is the model's business."""
        binned = () if self.tokens is None else (self.tokens, self.count)
        return fingerprint_of(
            "texts", self.arrivals, self.new_tokens, self.max_prompt_tokens, self.texts, *binned
        )

    @property
    def tokenized(self) -> bool:
        """Texts need a tokenizer."""
        return False


def check_limit(owner: str, limit: int | None) -> None:
    """Raise UsageError for what is no number of rows to read."""
    if limit is not None:
        check_positive(owner, limit=limit)


def _cut(ids: tuple[int, ...], most: int | None) -> tuple[int, ...]:
    if most is None or len(ids) <= most:
        return ids
    return ids[: most - most // 2] + ids[len(ids) - most // 2 :]


Rows = Iterator[tuple[str, Any]]


def rows_of(path: Path) -> Rows:
    """Read the rows of a file, each with its place; raises UsageError that names the file."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{path}: prompts are read from {', '.join(_READERS)} files")
    try:
        yield from reader(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: is no {path.suffix[1:].upper()} in UTF-8: {error}") from None


def _texts(rows: Iterable[tuple[str, Any]], where: str) -> Iterator[str]:
    for place, row in rows:
        yield prompt_of(row, f"{where}, {place}")


def prompt_of(row: Any, where: str) -> str:
    """Return the prompt of a row; raises UsageError that says ``where`` it lacks one."""
    text = row if isinstance(row, str) else _prompt(row) if isinstance(row, Mapping) else None
    if text is None:
        fields = f"the fields {', '.join(map(str, row))}" if isinstance(row, Mapping) else repr(row)[:80]
        raise UsageError(
            f"{where}: has {fields}; needed are, as text, instruction (and input), context and input, "
            "prompt, or text"
        )
    if not text.strip():
        raise UsageError(f"{where}: the prompt is empty")
    return text


def _prompt(row: Mapping[str, Any]) -> str | None:
    def words(name: str) -> str | None:
        value = row.get(name)
        return value if isinstance(value, str) else None

    instruction, given = words("instruction"), words("input")
    if instruction is not None:
        if not instruction.strip():
            return ""
        # The template that Alpaca was trained with.
        if given:
            return (
                f"{_ALPACA}, paired with an input that provides further context. {_RESPONSE}\n\n"
                f"### Instruction:\n{instruction}\n\n### Input:\n{given}\n\n### Response:"
            )
        return f"{_ALPACA}. {_RESPONSE}\n\n### Instruction:\n{instruction}\n\n### Response:"
    context = words("context")
    if context is not None and given is not None:
        return f"{context}\n\n{given}"
    return next((text for text in (words("prompt"), words("text")) if text is not None), None)


def _csv(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        for row in reader:
            yield f"line {reader.line_num}", row


def _json(path: Path) -> Rows:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}: is no JSON: {error}") from None
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise UsageError(f"{path}: must be a list of prompts, not {type(rows).__name__}")
    for at, row in enumerate(rows):
        yield f"entry {at}", row


def _jsonl(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise UsageError(f"{path}, line {number}: is no JSON: {error}") from None


_READERS: Mapping[str, Callable[[Path], Rows]] = {".csv": _csv, ".json": _json, ".jsonl": _jsonl}
