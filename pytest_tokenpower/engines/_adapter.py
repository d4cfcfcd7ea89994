"""What every adapter does the same way: check a batch and its counts, read plain values of a configuration."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.engines.protocol import Step
from pytest_tokenpower.errors import EngineError, UsageError
from pytest_tokenpower.telemetry.meters.nvml.devices import visible_gpus
from pytest_tokenpower.workloads.base import Batch


def missing_package(engine: str, extra: str, error: ImportError) -> EngineError:
    """The error for an engine whose package cannot be imported; names the extra that brings it."""
    return EngineError(
        f"the {engine} engine needs a package that does not import ({error}): "
        f"pip install 'pytest-tokenpower[{extra}]'"
    )


def cannot_load(model: str, engine: str, options: Mapping[str, Any], error: BaseException) -> EngineError:
    """The error for a model that an engine would not load: in its words, and with the options that it was given."""
    text = f"{model}: {engine} cannot load it: {str(error) or type(error).__name__}"
    given = ", ".join(f"{name}={repr(value)[:80]}" for name, value in options.items() if value is not None)
    if given:
        text += f"\n  with {given}"
    if not Path(model).is_dir():
        text += f"\n  There is no folder {model!r} here, so that it was taken for a hub id."
    return EngineError(text)


def require_batch(batch: object) -> None:
    """Raise UsageError where an engine was given something else to generate, such as a workload."""
    if isinstance(batch, Batch):
        return
    kind = type(batch).__name__
    made = f"{kind}(...).to_batch()" if hasattr(batch, "to_batch") else "Batch(prompts=..., new_tokens=...)"
    raise UsageError(
        f"generate({kind}): an engine takes a Batch: give {made}, or measure with energy.run(engine, workload)"
    )


def check_batch(batch: Batch, *, engine: str, vocab_size: int | None, max_positions: int | None) -> None:
    """Raise EngineError where the engine could not run the batch as it stands, saying which prompt is at fault.

    An id outside the vocabulary would end a CUDA process, so that it is looked for here. Raises UsageError for what is
    no batch.
    """
    require_batch(batch)
    if not batch.prompts:
        raise EngineError(f"{engine}: the batch holds no prompt")
    if batch.new_tokens < 1:
        raise EngineError(f"{engine}: new_tokens={batch.new_tokens}, at least 1 must be generated")
    for index, prompt in enumerate(batch.prompts):
        if not len(prompt):
            raise EngineError(f"{engine}: prompt {index} is empty")
        if vocab_size is not None and (min(prompt) < 0 or max(prompt) >= vocab_size):
            raise EngineError(
                f"{engine}: prompt {index} holds token ids outside 0 to {vocab_size - 1}, the model's vocabulary; "
                f"FixedShape(..., vocab={vocab_size}) stays inside it"
            )
        length = len(prompt) + batch.new_tokens
        if max_positions is not None and length > max_positions:
            raise EngineError(
                f"{engine}: prompt {index} has {len(prompt)} tokens, with {batch.new_tokens} new ones {length}: "
                f"the model takes {max_positions}"
            )


def check_counts(batch: Batch, token_ids: Sequence[Sequence[int]], *, engine: str) -> None:
    """Raise EngineError unless each response has as many tokens as were asked for: rounds must do the same work."""
    if len(token_ids) != len(batch.prompts):
        raise EngineError(f"{engine}: {len(token_ids)} responses to {len(batch.prompts)} prompts")
    for index, ids in enumerate(token_ids):
        if len(ids) != batch.new_tokens:
            raise EngineError(
                f"{engine}: response {index} has {len(ids)} tokens, {batch.new_tokens} were asked for"
            )


def check_steps(batch: Batch, steps: Sequence[Step], *, engine: str) -> None:
    """Raise EngineError unless the steps account for every token of the batch, each once."""
    prompt = sum(step.prompt_tokens for step in steps)
    generated = sum(step.generated_tokens for step in steps)
    # The first token of each response comes out of its prefill.
    expected = len(batch.prompts) * (batch.new_tokens - 1)
    if prompt != batch.tokens.prompt or generated != expected:
        raise EngineError(
            f"{engine}: the steps account for {prompt} prompt and {generated} decoded tokens, "
            f"the batch has {batch.tokens.prompt} and {expected}"
        )


def as_fact(value: Any) -> Fact:
    """A configuration value as a fact: enumerations by name in lower case, torch dtypes without their module."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(getattr(value, "name", None), str):
        return str(value.name).lower()
    return value if isinstance(value, int) else str(value).removeprefix("torch.")


def config_facts(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Fact]:
    """Those of the values that are there and not None, as facts."""
    return {name: as_fact(values[name]) for name in names if values.get(name) is not None}


def checkpoint_config(model: str) -> Mapping[str, Any]:
    """The language model's part of a folder's or hub id's ``config.json``; raises EngineError where it cannot be read.

    A hub id is asked for through transformers, on which every engine that takes one depends.
    """
    try:
        if Path(model).is_dir():
            config = json.loads((Path(model) / "config.json").read_text())
        else:
            config = importlib.import_module("transformers").AutoConfig.from_pretrained(model).to_dict()
    except (OSError, ValueError, ImportError) as error:
        raise EngineError(f"{model}: its config.json cannot be read: {error}") from error
    part = config.get("text_config")
    return {**config, **part} if isinstance(part, dict) else config


def checkpoint_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype that a checkpoint's configuration names; transformers called it ``torch_dtype`` before 4.56."""
    dtype = as_fact(config.get("dtype") or config.get("torch_dtype"))
    return None if dtype is None else str(dtype)


def gpus_in_order(count: int, *, first: int = 0, step: int = 1) -> tuple[str, ...] | None:
    """UUIDs of so many GPUs as CUDA counts them, from ``first`` on; None where that cannot be known.

    Asks NVML, and so creates no CUDA context here.
    """
    seen = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    wanted = range(first, first + count * step, step)
    return None if seen is None or wanted[-1] >= len(seen) else tuple(seen[index] for index in wanted)
