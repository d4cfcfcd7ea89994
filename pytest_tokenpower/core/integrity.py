"""Digests of what is stored: bytes that are not those that were written are found."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

First = TypeVar("First")
Further = TypeVar("Further")

_DIGEST = re.compile(rb',\s*"digest"\s*:\s*"([^"]*)"\s*\}\s*\Z')


def with_digest(document: bytes) -> bytes:
    """Return a JSON object with a last field ``digest``: the SHA-256 of the object without it."""
    return document[:-1] + b',"digest":"' + hashlib.sha256(document).hexdigest().encode() + b'"}'


def has_digest(data: bytes) -> bool:
    """Whether the bytes end in a digest, as every run does that was written since there is one."""
    return _DIGEST.search(data, max(0, len(data) - 200)) is not None


def is_damaged(data: bytes) -> bool:
    """Whether JSON that carries a digest is not what was written; white space may differ (an indented export)."""
    found = _DIGEST.search(data, max(0, len(data) - 200))
    if found is None:
        return False
    if _matches(data[: found.start()] + b"}", found[1]):
        return False
    try:
        compact = msgspec.json.format(data, indent=-1)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return True
    found = _DIGEST.search(compact, max(0, len(compact) - 200))
    return found is None or not _matches(compact[: found.start()] + b"}", found[1])


def read_lines(
    data: bytes,
    first: type[First],
    further: type[Further],
    sound: Callable[[Further], bool] = lambda entry: True,
) -> tuple[First | None, tuple[Further, ...], int]:
    """Return a journal's first line, its further ones up to the first that is not whole or sound, and their bytes."""
    decode = msgspec.json.Decoder(first | further).decode
    begun: First | None = None
    entries: list[Further] = []
    size = 0
    for line in whole_lines(data):
        try:
            entry = decode(line)
        except msgspec.MsgspecError:
            break
        if isinstance(entry, first) and begun is None:
            begun = entry
        elif isinstance(entry, further) and begun is not None and sound(entry):
            entries.append(entry)
        else:
            break
        size += len(line)
    return begun, tuple(entries), size


def whole_lines(data: bytes) -> Iterator[bytes]:
    """Yield the lines of a file that grows by a line at a time, up to the first that is cut off or damaged."""
    for line in data.splitlines(keepends=True):
        if not line.endswith(b"\n") or not has_digest(line[:-1]) or is_damaged(line[:-1]):
            return
        yield line


def _matches(document: bytes, digest: bytes) -> bool:
    return hashlib.sha256(document).hexdigest().encode() == digest
