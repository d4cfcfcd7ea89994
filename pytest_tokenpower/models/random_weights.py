"""Write checkpoints of a true architecture with random weights: no hub, no network, no tokenizer.

Random normal weights draw the power of real ones within about 1 %; all-zero or near-zero ones do not.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pytest_tokenpower.core.subprocesses import inherited_path
from pytest_tokenpower.errors import EngineError, UsageError
from pytest_tokenpower.models.architecture import Architecture
from pytest_tokenpower.models.registry import architecture

MARKER = "tokenpower_model.json"
"""Written last into a checkpoint: the specification that it was made from."""

_SHARD_BYTES = 1_200_000_000
_WRITERS = 3

_COMMAND = """
import pickle, sys
from pytest_tokenpower.models.random_weights import write_weights
write_weights(*pickle.load(sys.stdin.buffer))
"""
"""Program of the writing process; not multiprocessing's, which would run the caller's main module once more."""


def write_random_model(
    path: str | os.PathLike[str], shape: Architecture | str, *, seed: int = 0, dtype: str = "bfloat16"
) -> Path:
    """Write a checkpoint (safetensors shards, config.json) with random weights.

    Which tensors there are is what transformers makes of the architecture's configuration. Matrices are normal with
    its ``initializer_range``, norms are 1 and biases 0, as transformers initializes them; each tensor has a seed of
    its own, of ``seed`` and its name. They are made on the GPU where there is one, and written shard by shard while
    the next ones are made. A complete checkpoint of the same specification is kept as it is; one of another
    specification is replaced.

    Args:
        path: The checkpoint's folder.
        shape: An architecture, or a name of the registry.
        seed: The same one gives the same weights, on the same kind of device.
        dtype: Of all weights: bfloat16, float16 or float32.

    Returns:
        The checkpoint's folder.

    Raises:
        UsageError: For an unknown architecture or dtype, and for a folder that holds anything else.
        EngineError: Without torch and transformers, where transformers does not know the architecture, and without
            enough room on the disk.
    """
    shape = architecture(shape) if isinstance(shape, str) else shape
    size = shape.bytes(dtype)
    path = Path(path)
    spec = {
        "format": 3,
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
            _write_elsewhere(scratch, shape, seed, dtype)
        else:
            write_weights(scratch, shape, seed, dtype)
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


def _write_elsewhere(folder: Path, shape: Architecture, seed: int, dtype: str) -> None:
    """Run :func:`write_weights` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND],
        input=pickle.dumps((folder, shape, seed, dtype)),
        env={**os.environ, "PYTHONPATH": inherited_path()},
        capture_output=True,
        check=False,
    )
    if done.returncode:
        # Of our own error its text, of any other the end of its traceback.
        said = done.stderr.decode(errors="replace").rpartition("EngineError: ")[2].strip()[-2000:]
        raise EngineError(
            f"{shape.name}: random weights could not be written (status {done.returncode}): {said}"
        )


def write_weights(folder: Path, shape: Architecture, seed: int, dtype: str) -> None:
    """Write config.json and the weights into an empty folder; raises EngineError."""
    try:
        import torch
        import transformers
        from huggingface_hub import split_torch_state_dict_into_shards
        from safetensors.torch import save_file
    except ImportError as error:
        raise EngineError(
            f"random weights need torch and transformers ({error}): pip install 'pytest-tokenpower[transformers]'"
        ) from error
    config = shape.hub_config(dtype) | {
        "tokenpower_architecture": shape.name,
        "tokenpower_weights": f"random normal, std {shape.initializer_range}, seed {seed}",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    tensors = _checkpoint_tensors(transformers, folder, shape, getattr(torch, dtype))
    plan = split_torch_state_dict_into_shards(tensors, max_shard_size=_SHARD_BYTES)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device)
    norm = 0.0 if shape.shape.family.startswith("gemma") else 1.0  # Gemma's count from 1

    def fill(name: str) -> Any:
        tensor = torch.empty_like(tensors[name], device=device)
        if "bias" in name:
            return tensor.zero_()
        if tensor.ndim == 1 and name.endswith(".weight"):
            return tensor.fill_(norm)
        generator.manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "big"))
        return tensor.normal_(0.0, shape.initializer_range, generator=generator)

    def save(weights: dict[str, Any], file: str) -> None:
        save_file(weights, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # as the other files: a shared cache is read by others

    with ThreadPoolExecutor(_WRITERS) as pool:
        writes: list[Future[None]] = []
        for file, names in plan.filename_to_tensors.items():
            if len(writes) >= _WRITERS:
                writes[-_WRITERS].result()  # holds the shards in memory to a few
            writes.append(pool.submit(save, {name: fill(name) for name in names}, file))
        for write in writes:
            write.result()
    if len(writes) > 1:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _checkpoint_tensors(transformers: Any, folder: Path, shape: Architecture, dtype: Any) -> dict[str, Any]:
    """Name the tensors of the checkpoint under the hub's names, on the meta device: shapes without memory."""
    import torch

    try:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                transformers.AutoConfig.from_pretrained(folder)
            )
        tensors: dict[str, Any] = model.state_dict()
        if shape.shape.tied:
            tensors.pop("lm_head.weight", None)
        # Since version 5 modules hold the experts of a layer together, and checkpoints as before one by one.
        conversion = getattr(transformers, "core_model_loading", None)
        if conversion is not None:
            tensors = conversion.revert_weight_conversion(model, tensors)
    except (ValueError, KeyError, AttributeError, ImportError, RuntimeError) as error:
        raise EngineError(
            f"{shape.name}: transformers {transformers.__version__} makes no model of its configuration (model_type "
            f"{shape.shape.family!r}): {error}"
        ) from error
    count = sum(tensor.numel() for tensor in tensors.values())
    if count != shape.parameters:
        raise EngineError(
            f"{shape.name}: transformers {transformers.__version__} makes {count} weights of its configuration "
            f"(model_type {shape.shape.family!r}), and the architecture has {shape.parameters}: another version may fit"
        )
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}
