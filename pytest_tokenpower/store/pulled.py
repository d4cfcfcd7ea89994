"""What a store held at its last pull and the remote did not: left by others than the job that pulled."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import msgspec

from pytest_tokenpower.core.files import read_bounded
from pytest_tokenpower.core.integrity import has_digest, is_damaged, with_digest
from pytest_tokenpower.errors import StoreError
from pytest_tokenpower.store.store import MOST_RUN_BYTES, Store, unwritable

_FILE = "pulled.json"


class Pulled(msgspec.Struct, frozen=True):
    """The job that pulled ("" outside CI), and the names of the run files that were here alone."""

    job: str
    left: tuple[str, ...]


def write_pulled(store: Store, pulled: Pulled) -> None:
    """Note the state at a pull; raises StoreError."""
    path = _path(store)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(with_digest(msgspec.json.encode(pulled)))
        # Takes the place of a link, too: whoever left one is not followed.
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unwritable(path, error) from error


def read_pulled(store: Store) -> Pulled | None:
    """Return the state at the last pull, None where there was none; raises StoreError for a file that says nothing."""
    path = _path(store)
    try:
        data = read_bounded(path, MOST_RUN_BYTES)
        if not has_digest(data) or is_damaged(data):
            raise msgspec.DecodeError("it is not what was written")
        return msgspec.json.decode(data, type=Pulled)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise StoreError(
            f"{path} cannot be read ({why}): remove it, and run tokenpower pull again"
        ) from error


def _path(store: Store) -> Path:
    return store.path / _FILE
