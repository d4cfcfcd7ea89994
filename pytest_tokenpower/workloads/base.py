"""Workloads, and the ones that consist of token ids."""

from __future__ import annotations

import hashlib
import json
import random
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.workloads.arrivals import AllAtOnce, Arrivals
from pytest_tokenpower.workloads.tokenizers import Encode


@dataclass(frozen=True)
class Batch:
    """A fixed piece of work: token ids of each prompt, and how many tokens to generate for each.

    Generation is greedy and runs through end-of-sequence, so that every round does the same work.
    """

    prompts: Sequence[Sequence[int]]
    new_tokens: int

    @cached_property
    def tokens(self) -> TokenCount:
        """The counts that a round of this batch must come out with."""
        return TokenCount(
            prompt=sum(map(len, self.prompts)),
            generated=self.new_tokens * len(self.prompts),
            responses=len(self.prompts),
        )


FIRST_ID = 3
"""Below it lie the padding, start and end of most vocabularies."""


class Workload(ABC):
    """Prompts, how many tokens to generate for each, and when the requests arrive; the same in every round."""

    arrivals: Arrivals

    @abstractmethod
    def to_batch(self, encode: Encode | None = None) -> Batch:
        """Return all requests as token ids, for engines that take whole batches; ``encode`` is the engine's tokenizer.

        Raises UsageError.
        """

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Digits that two workloads share exactly if they are the same work; part of a measurement's key."""

    @property
    def tokenized(self) -> bool:
        """Tell whether the prompts are token ids already."""
        return True


def fingerprint_of(kind: str, arrivals: Arrivals, *parts: object, data: bytes = b"") -> str:
    """Return sixteen hexadecimal digits of the SHA-256 of all that defines a workload."""
    text = json.dumps([kind, repr(arrivals), *parts], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode() + b"\0" + data).hexdigest()[:16]


def check_positive(owner: str, **values: object) -> None:
    """Raise UsageError that names the first value that is no integer of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{owner}({name}={value!r}): must be an integer of at least 1")


@dataclass(frozen=True)
class FixedShape(Workload):
    """``batch`` prompts of ``prompt_tokens`` token ids each, and ``new_tokens`` generated for each.

    The ids are drawn from ``seed`` over ``vocab``, evenly and never below 3: zeros, and prompts that are all alike,
    would draw less power than text does. ``vocab`` may be smaller than the model's.
    """

    batch: int
    prompt_tokens: int
    new_tokens: int
    seed: int = 0
    vocab: int = 32_000
    arrivals: Arrivals = field(default_factory=AllAtOnce)

    def __post_init__(self) -> None:
        check_positive(
            "FixedShape", batch=self.batch, prompt_tokens=self.prompt_tokens, new_tokens=self.new_tokens
        )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            # Without a seed each process would draw other prompts under the same fingerprint.
            raise UsageError(f"FixedShape(seed={self.seed!r}): must be an integer")
        if not isinstance(self.vocab, int) or self.vocab < 2 * FIRST_ID + 2:
            raise UsageError(
                f"FixedShape(vocab={self.vocab!r}): must be an integer of at least {2 * FIRST_ID + 2}"
            )

    def to_batch(self, encode: Encode | None = None) -> Batch:
        """Return the prompts; ``encode`` is not needed."""
        # Python promises to keep the sequence of random() for a seed, and of nothing else.
        draw, size = random.Random(self.seed).random, self.vocab - FIRST_ID
        return Batch(
            tuple(
                tuple(FIRST_ID + int(draw() * size) for _ in range(self.prompt_tokens))
                for _ in range(self.batch)
            ),
            self.new_tokens,
        )

    @property
    def fingerprint(self) -> str:
        """Of the shape, the seed and the arrivals."""
        shape = (self.batch, self.prompt_tokens, self.new_tokens, self.seed, self.vocab)
        return fingerprint_of("shape", self.arrivals, *shape)


@dataclass(frozen=True)
class GivenBatch(Workload):
    """Token ids from elsewhere."""

    prompts: Sequence[Sequence[int]]
    new_tokens: int
    arrivals: Arrivals = field(default_factory=AllAtOnce)

    def to_batch(self, encode: Encode | None = None) -> Batch:
        """Return the prompts as they are."""
        return Batch(self.prompts, self.new_tokens)

    @property
    def fingerprint(self) -> str:
        """Of all token ids."""
        lengths = [len(prompt) for prompt in self.prompts]
        data = b"".join(array("q", prompt).tobytes() for prompt in self.prompts)
        return fingerprint_of("ids", self.arrivals, self.new_tokens, lengths, data=data)
