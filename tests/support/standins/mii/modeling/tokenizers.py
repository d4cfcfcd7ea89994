"""The tokenizers of DeepSpeed-MII 0.3.3 (mii/modeling/tokenizers.py)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class MIITokenizerWrapper(ABC):
    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @property
    @abstractmethod
    def vocab_size(self) -> int: ...

    @property
    @abstractmethod
    def eos_token_id(self) -> int: ...

    @abstractmethod
    def encode(self, input: str) -> Any: ...

    @abstractmethod
    def decode(self, tokens: Any) -> str: ...


class HFTokenizer(MIITokenizerWrapper):
    def __init__(self, tokenizer: Any) -> None:
        if isinstance(tokenizer, str):
            raise OSError(f"Can't load tokenizer for '{tokenizer}'")
        super().__init__(tokenizer)

    @property
    def vocab_size(self) -> int:
        return len(self.tokenizer)

    @property
    def eos_token_id(self) -> int:
        for attr in ("eod", "eos_token_id", "eos_token", "eod_id"):
            if getattr(self.tokenizer, attr, None) is not None:
                return int(getattr(self.tokenizer, attr))
        raise ValueError("Tokenizer must have an end of sequence")

    def encode(self, input: str) -> Any:
        return self.tokenizer.encode(input, return_tensors="pt").flatten()

    def decode(self, tokens: Any) -> str:
        return str(self.tokenizer.decode(tokens))
