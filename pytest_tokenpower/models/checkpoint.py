"""Which model and which weights an engine loaded, as they enter a measurement's key."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
from pathlib import Path

from pytest_tokenpower.errors import EngineError
from pytest_tokenpower.models.registry import load_models

_SAMPLE_BYTES = 1 << 20

_SNAPSHOT = re.compile(r"models--([^/]+)/snapshots/([^/]+)")
"""The hub's cache: ``models--meta-llama--Llama-3.1-8B/snapshots/<commit>``. vLLM puts it in the place of a hub id where
HF_HUB_OFFLINE is set."""


def require_model(model: str | os.PathLike[str]) -> str:
    """Return the folder or hub id as text; raises EngineError for a path that is no folder, and a registry's name."""
    name = os.path.expanduser(os.fspath(model))
    looks_local = isinstance(model, Path) or name.startswith((".", "~", os.sep)) or name.count("/") > 1
    if Path(name).is_file():
        raise EngineError(
            f"{name}: is a file, and a model is a folder (config.json beside its .safetensors) or a hub id; a server "
            "that runs a GGUF file is measured by the openai engine"
        )
    if looks_local and not Path(name).is_dir():
        raise EngineError(f"{name}: no such model folder (write one with pytest_tokenpower.models)")
    if "/" not in name and not Path(name).exists():
        _refuse_registry_name(name)
    return name


def _refuse_registry_name(name: str) -> None:
    known = load_models().get(name)
    if known is not None:
        or_hub = f", or load its hub id, {known.hub!r}" if known.hub else ""
        raise EngineError(
            f"{name}: is a model of the registry, and no folder or hub id: write it with random weights "
            f"(pytest_tokenpower.models.write_random_model(folder, {name!r})) and give that folder{or_hub}"
        )


def model_name(model: str) -> str:
    """Name the model for the key: by its architecture for our random checkpoints, a folder's own name, a hub id.

    Never a whole path, which differs from machine to machine.
    """
    path = Path(model)
    if not path.is_dir():
        return model
    if (snapshot := _snapshot(path)) is not None:
        return snapshot[0]
    return str(_config(path).get("tokenpower_architecture") or path.resolve().name)


def weights_name(model: str, revision: str | None = None) -> str:
    """``random`` for our random checkpoints, else a fingerprint of the folder's weights, else the hub's commit.

    The fingerprint covers names, sizes, and the first and last MiB of each file: enough to tell fine-tunes
    apart (a safetensors header and real weights are among it) without reading 100 GB.
    """
    path = Path(model)
    if not path.is_dir():
        return _cached_commit(model, revision) or revision or "hub"
    if (snapshot := _snapshot(path)) is not None:
        return snapshot[1]
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
    """Read what a random checkpoint of ours says of its weights; None for any other."""
    path = Path(model)
    note = _config(path).get("tokenpower_weights") if path.is_dir() else None
    return None if note is None else str(note)


def _snapshot(path: Path) -> tuple[str, str] | None:
    """Hub id and commit of a folder of the hub's cache."""
    found = _SNAPSHOT.fullmatch("/".join(path.resolve().parts[-3:]))
    return None if found is None else (found[1].replace("--", "/", 1), found[2])


def _cached_commit(model: str, revision: str | None) -> str | None:
    """Find the commit that a hub id was loaded from: what its cache holds under the revision (default: main)."""
    try:
        hub = importlib.import_module("huggingface_hub")
        file = hub.try_to_load_from_cache(model, "config.json", revision=revision)
    except (ImportError, ValueError):  # no hub's client, or no hub id
        return None
    snapshot = _snapshot(Path(file).parent) if isinstance(file, str) else None
    return None if snapshot is None else snapshot[1]


def _config(path: Path) -> dict[str, object]:
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
