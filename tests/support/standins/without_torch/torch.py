"""As much of torch as a tokenizer needs, where torch itself is not installed."""

from __future__ import annotations

from collections.abc import Iterable


class Tensor(list[int]):
    def flatten(self) -> Tensor:
        return self

    def tolist(self) -> list[int]:
        return list(self)


def tensor(values: Iterable[int]) -> Tensor:
    return Tensor(values)
