"""Which model and which weights an engine loaded, as they enter a measurement's key."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from pytest_tokenpower.errors import EngineError

_SAMPLE_BYTES = 1 << 20


def require_model(model: str | os.PathLike[str]) -> str:
    """The model's folder or hub id as text; raises EngineError for a path that is no folder."""
    name = os.fspath(model)
    looks_local = isinstance(model, Path) or name.startswith((".", "~", os.sep)) or name.count("/") > 1
    if looks_local and not Path(name).is_dir():
        raise EngineError(f"{name}: no such model folder (write one with pytest_tokenpower.models)")
    return name


def model_name(model: str) -> str:
    """The model's name for the key: that of its architecture for our random checkpoints, a folder's own name, a hub id.

    Never a whole path, which differs from machine to machine.
    """
    path = Path(model)
    if not path.is_dir():
        return model
    return str(_config(path).get("tokenpower_architecture") or path.resolve().name)


def weights_name(model: str, revision: str | None = None) -> str:
    """``random`` for our random checkpoints, else a fingerprint of the folder's weights, else the hub's revision.

    The fingerprint covers names, sizes, and the first and last MiB of each file: enough to tell fine-tunes
    apart (a safetensors header and real weights are among it) without reading 100 GB.
    """
    path = Path(model)
    if not path.is_dir():
        return revision or "hub"
    if "tokenpower_weights" in _config(path):
        return "random"
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.suffix in (".safetensors", ".bin", ".pt", ".gguf"):
            size = file.stat().st_size
            digest.update(f"{file.name}:{size}:".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(_SAMPLE_BYTES))
                stream.seek(max(size - _SAMPLE_BYTES, 0))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def weights_note(model: str) -> str | None:
    """What a random checkpoint of ours says of its weights; None for any other."""
    path = Path(model)
    note = _config(path).get("tokenpower_weights") if path.is_dir() else None
    return None if note is None else str(note)


def _config(path: Path) -> dict[str, object]:
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
