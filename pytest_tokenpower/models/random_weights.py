"""Writes checkpoints of a true architecture with random weights: no hub, no network, no tokenizer.

Random normal weights draw the power of real ones within about 1 %; all-zero or near-zero ones do not.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pytest_tokenpower.errors import EngineError, UsageError
from pytest_tokenpower.models.architecture import DTYPE_BYTES, Architecture, Role, Tensor
from pytest_tokenpower.models.registry import architecture

MARKER = "tokenpower_model.json"
"""Written last into a checkpoint: the specification that it was made from."""

_SHARD_BYTES = 1_200_000_000
_WRITERS = 3
_CONSTANT: Mapping[Role, float] = {"norm": 1.0, "norm from 1": 0.0, "bias": 0.0, "expert bias": 0.0}


def write_random_model(
    path: str | os.PathLike[str], shape: Architecture | str, *, seed: int = 0, dtype: str = "bfloat16"
) -> Path:
    """Write a checkpoint (safetensors shards, config.json) with random weights; returns its folder.

    ``shape`` is an architecture, or a name of the registry. Matrices are normal with the architecture's
    ``initializer_range``, norms are 1 and biases 0, as transformers initializes them. They are made on the GPU where
    there is one, and written shard by shard while the next ones are made. A complete checkpoint of the same
    specification is kept as it is; one of another specification is replaced. Raises UsageError for an unknown
    architecture or dtype or for a folder that holds anything else, EngineError without torch and safetensors or
    without enough room on the disk.
    """
    shape = architecture(shape) if isinstance(shape, str) else shape
    size = shape.bytes(dtype)
    path = Path(path)
    spec = {
        "format": 2,
        "architecture": shape.name,
        "config": dict(shape.config),
        "seed": seed,
        "dtype": dtype,
    }
    if _has(path, spec):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < size * 1.02:
        raise EngineError(
            f"{path}: {shape.name} in {dtype} takes {size / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB left"
        )
    # Made beside the destination and renamed, so that a checkpoint is either complete or not there.
    scratch = path.parent / f".{path.name}.{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        if _would_open_cuda():
            # A CUDA context lasts as long as its process: held by this one, it would draw power during the tests
            # that follow, and be a foreign process to them where they run in processes of their own.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
                other.submit(_write, scratch, shape, seed, dtype).result()
        else:
            _write(scratch, shape, seed, dtype)
        (scratch / MARKER).write_text(json.dumps(spec, indent=1))
        if path.exists():
            shutil.rmtree(path)
        try:
            scratch.rename(path)
        except OSError:
            if not _has(path, spec):  # else another process was faster
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def _has(path: Path, spec: dict[str, Any]) -> bool:
    if not path.exists() or not any(path.iterdir()):
        return False
    try:
        found = json.loads((path / MARKER).read_text())
    except (OSError, ValueError):
        raise UsageError(
            f"{path}: holds something that is no checkpoint of ours; name another folder, or empty it"
        ) from None
    return bool(found == json.loads(json.dumps(spec)))


def _would_open_cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available() and not torch.cuda.is_initialized()


def _write(folder: Path, shape: Architecture, seed: int, dtype: str) -> None:
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError as error:
        raise EngineError(
            f"random weights need torch and safetensors ({error}): pip install 'pytest-tokenpower[transformers]'"
        ) from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device)
    generator.manual_seed(seed)
    shards = list(_shards(shape, dtype))
    places: dict[str, str] = {}

    def save(tensors: dict[str, Any], file: str) -> None:
        save_file(tensors, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # as the other files: a shared cache is read by others

    with ThreadPoolExecutor(_WRITERS) as pool:
        writes: list[Future[None]] = []
        for index, shard in enumerate(shards, 1):
            file = (
                f"model-{index:05d}-of-{len(shards):05d}.safetensors"
                if len(shards) > 1
                else "model.safetensors"
            )
            if len(writes) >= _WRITERS:
                writes[-_WRITERS].result()  # holds the shards in memory to a few
            tensors: dict[str, Any] = {}
            for name, lengths, role in shard:
                tensor = torch.empty(lengths, dtype=getattr(torch, dtype), device=device)
                if role in _CONSTANT:
                    tensor.fill_(_CONSTANT[role])
                else:
                    tensor.normal_(0.0, shape.initializer_range, generator=generator)
                tensors[name] = tensor
                places[name] = file
            writes.append(pool.submit(save, tensors, file))
            del tensors
        for write in writes:
            write.result()
    if len(shards) > 1:
        index_json = {"metadata": {"total_size": shape.bytes(dtype)}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index_json, indent=1))
    config = shape.hub_config(dtype) | {
        "tokenpower_architecture": shape.name,
        "tokenpower_weights": f"random normal, std {shape.initializer_range}, seed {seed}",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _shards(shape: Architecture, dtype: str) -> Iterator[list[Tensor]]:
    shard: list[Tensor] = []
    filled = 0
    for tensor in shape.tensors():
        size = tensor.size * DTYPE_BYTES[dtype]
        if shard and filled + size > _SHARD_BYTES:
            yield shard
            shard, filled = [], 0
        shard.append(tensor)
        filled += size
    yield shard
