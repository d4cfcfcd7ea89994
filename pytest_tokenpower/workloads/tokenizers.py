"""From text to token ids: by the model's own tokenizer where there is one, else byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pytest_tokenpower.errors import EngineError

Encode = Callable[[str], Sequence[int]]
"""Token ids of a text, without special tokens of a chat."""

BYTE_OFFSET = 3

_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def byte_ids(text: str) -> list[int]:
    """Return one id for each byte of the text's UTF-8: the byte plus 3, which keeps clear of padding, start and end.

    For models without a tokenizer, such as random ones. A text comes out about four times as long as with a
    vocabulary of its language; the model must have at least 259 ids.
    """
    return [byte + BYTE_OFFSET for byte in text.encode("utf-8", "surrogatepass")]


Decode = Callable[[Sequence[int]], str]


def tokenizer_of(model: str) -> Encode | None:
    """Find the tokenizer of a model folder or hub id, loaded when it is first called; None for a folder without.

    Called, it raises EngineError where it cannot be loaded.
    """
    return (lambda text: list(_load(model)(text).input_ids)) if _has_tokenizer(model) else None


def decoder_of(model: str) -> Decode | None:
    """Find what makes texts of token ids, special tokens left out, as :func:`tokenizer_of` does."""
    if not _has_tokenizer(model):
        return None
    return lambda ids: str(_load(model).decode(ids, skip_special_tokens=True))


def _has_tokenizer(model: str) -> bool:
    folder = Path(model)
    return not folder.is_dir() or any((folder / name).exists() for name in _FILES)


@lru_cache(maxsize=4)
def _load(model: str) -> Any:
    try:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(model)
    except ImportError as error:
        raise EngineError(
            f"{model} has a tokenizer, which needs a package that does not import ({error}): "
            "pip install 'pytest-tokenpower[transformers]'"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"the tokenizer of {model} cannot be loaded: {error}") from error
