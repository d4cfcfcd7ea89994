"""Small TOML files that are committed with a change and reviewed with it: one a test, so that two never conflict."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

from pytest_tokenpower.core.files import read_bounded, write_whole
from pytest_tokenpower.errors import StoreError
from pytest_tokenpower.store.git import Repository

MOST_BYTES = 1 << 20
"""No acceptance or rename is larger."""


def toml_string(text: str) -> str:
    """Return the text as a basic string of TOML."""
    # A JSON string is one, but for DEL, which TOML wants escaped.
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")


def committed_file(folder: str, test: str) -> str:
    """Where the file of a test stands in the repository."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", test.rpartition("::")[2]).strip("-.")[:60]
    return f"{folder}/{name}-{hashlib.sha256(test.encode()).hexdigest()[:6]}.toml"


def read_committed(repository: Repository, folder: str) -> dict[str, str]:
    """Return the texts of a folder's files in the work tree, by their place; raises StoreError."""
    found = {}
    for path in sorted((repository.top_level / folder).glob("*.toml")):
        try:
            text = read_bounded(path, MOST_BYTES).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise StoreError(f"{path}: cannot be read ({why})") from error
        found[f"{folder}/{path.name}"] = text.replace("\r\n", "\n")
    return found


def write_committed(repository: Repository, file: str, text: str) -> Path:
    """Write a file into the work tree, over an earlier one; returns its path. Raises StoreError."""
    path = repository.top_level / file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror or error})") from error
    return path
