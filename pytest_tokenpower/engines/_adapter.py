"""Parts that adapters share: their base class, checks of a batch and its counts, plain values of a configuration."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.engines.protocol import EngineIdentity, Step
from pytest_tokenpower.errors import EngineError, TokenPowerError, UsageError
from pytest_tokenpower.meters.adapters.nvml.devices import visible_gpus
from pytest_tokenpower.models.checkpoint import model_name, require_model, weights_name, weights_note
from pytest_tokenpower.workloads.base import Batch
from pytest_tokenpower.workloads.tokenizers import Decode, Encode, decoder_of, tokenizer_of


class InProcessEngine:
    """An engine whose Python API runs in this process: ``InProcessEngine("folder or hub id", **its options)``.

    An adapter sets ``_handle``, ``_identity`` and ``_device_ids`` in ``_load``, and ends the handle in ``_shut_down``.
    Constructing it raises EngineError where the model cannot be loaded, with the options that it was given.
    """

    label: ClassVar[str]
    """The engine's name in messages."""

    failed: ClassVar[str] = "the batch failed"
    """The words of messages for a batch that ended in an error of the engine's."""

    encode: Encode | None = None
    """The model's own tokenizer, where it has one."""

    decode: Decode | None = None
    """The same backwards."""

    _handle: Any = None
    _identity: EngineIdentity
    _device_ids: Sequence[str] | None

    def __init__(self, model: str | os.PathLike[str], **options: Any) -> None:
        name = require_model(model)
        try:
            self._load(name, options)
        except BaseException as error:
            self.close()
            if isinstance(error, TokenPowerError) or not isinstance(error, Exception):
                raise
            # Asserts, ValueError, pydantic's, torch's and the engine's own among them.
            raise cannot_load(name, self.label, options, error) from error
        self.encode, self.decode = tokenizer_of(name), decoder_of(name)

    @property
    def identity(self) -> EngineIdentity:
        """Identity that the engine's own configuration gave when it was loaded."""
        return self._identity

    @property
    def device_ids(self) -> Sequence[str] | None:
        """NVML UUIDs of the GPUs in use; empty on a CPU; None where they cannot be known."""
        return self._device_ids

    def close(self) -> None:
        """Free the device's memory and end every process of the engine; safe to call twice."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._shut_down(handle)

    def _load(self, name: str, options: dict[str, Any]) -> None:
        raise NotImplementedError

    def _shut_down(self, handle: Any) -> None:
        """End the engine, which nobody else holds any more."""

    def _abandon(self, handle: Any) -> None:
        """Have the engine forget a batch that has failed."""

    def _opened(self, method: str = "generate") -> Any:
        """Return the engine's own object; raises EngineError after :meth:`close`."""
        if self._handle is None:
            raise EngineError(f"{self.label} engine of {self._identity.model}: {method}() after close()")
        return self._handle

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Run a batch in the block: what fails leaves no request behind, and is an EngineError that names the model."""
        try:
            yield
        except BaseException as error:
            if (handle := self._handle) is not None:
                self._abandon(handle)
            if isinstance(error, EngineError) or not isinstance(error, Exception):
                raise
            # A failed step surfaces as whatever torch or the engine raised.
            raise EngineError(
                f"{self.label}, {self._identity.model}: {self.failed}: {type(error).__name__}: {error}"
            ) from error


@contextmanager
def needing(engine: str, extra: str) -> Iterator[None]:
    """Import an engine's package in the block; raises EngineError that names the extra where it does not import."""
    try:
        yield
    except ImportError as error:
        raise EngineError(
            f"the {engine} engine needs a package that does not import ({error}): "
            f"pip install 'pytest-tokenpower[{extra}]'"
        ) from error


@contextmanager
def environment_kept(*names: str, **values: str) -> Iterator[None]:
    """Set ``values`` in the environment of the block; these variables and ``names`` are afterwards as they were."""
    before = {name: os.environ.get(name) for name in (*names, *values)}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def cannot_load(model: str, engine: str, options: Mapping[str, Any], error: BaseException) -> EngineError:
    """Make the error for a model that an engine would not load, in its words and with the options that it was given."""
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


def with_cached(batch: Batch, cached: Iterable[int | None]) -> TokenCount:
    """Return the batch's tokens, with what a prefix cache held of each prompt (None: nothing was said of one)."""
    return replace(batch.tokens, cached_prompt=sum(each or 0 for each in cached))


def check_steps(batch: Batch, steps: Sequence[Step], *, engine: str, cached: int = 0) -> None:
    """Raise EngineError unless the steps account for every token of the batch that was computed, each once."""
    prompt = sum(step.prompt_tokens for step in steps)
    generated = sum(step.generated_tokens for step in steps)
    # The first token of each response comes out of its prefill.
    expected = len(batch.prompts) * (batch.new_tokens - 1)
    computed = batch.tokens.prompt - cached
    if prompt != computed or generated != expected:
        held = f" ({cached} more came from its cache)" if cached else ""
        raise EngineError(
            f"{engine}: the steps account for {prompt} prompt and {generated} decoded tokens, "
            f"the batch has {computed} and {expected}{held}"
        )


def identity_of(
    engine: str,
    version: object,
    model: str,
    *,
    dtype: Fact,
    quantization: Fact,
    kv_cache_dtype: Fact,
    tensor_parallel: Fact = 1,
    pipeline_parallel: Fact = 1,
    revision: str | None = None,
    dummy: bool = False,
    facts: Mapping[str, Any],
) -> EngineIdentity:
    """Identity of an engine with this folder or hub id loaded; ``facts`` that are None are left out.

    A key-value cache of "auto" is of the model's dtype. The weights have their name by ``revision``, unless they are
    ``dummy``: an engine's own, whatever the folder holds.
    """
    axes: dict[str, Fact] = {
        "dtype": dtype,
        "quantization": quantization,
        "kv_cache_dtype": dtype if kv_cache_dtype == "auto" else kv_cache_dtype,
        "tensor_parallel": tensor_parallel,
        "pipeline_parallel": pipeline_parallel,
        "weights": "dummy" if dummy else weights_name(model, revision),
    }
    known = {**facts, "weights_note": None if dummy else weights_note(model)}
    return EngineIdentity(engine, str(version), model_name(model), axes, config_facts(known, known))


def as_fact(value: Any) -> Fact:
    """Turn a configuration value into a fact: enumerations by name in lower case, torch dtypes without their module."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(getattr(value, "name", None), str):
        return str(value.name).lower()
    if isinstance(value, type):
        return value.__name__
    return value if isinstance(value, int) else str(value).removeprefix("torch.")


def config_facts(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Fact]:
    """Those of the values that are there and not None, as facts."""
    return {name: as_fact(values[name]) for name in names if values.get(name) is not None}


def checkpoint_config(model: str) -> Mapping[str, Any]:
    """Read the language model's part of a folder's or hub id's ``config.json``; raises EngineError where it cannot.

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
    """Read the dtype of a checkpoint's configuration; transformers called it ``torch_dtype`` before 4.56."""
    dtype = as_fact(config.get("dtype") or config.get("torch_dtype"))
    return None if dtype is None else str(dtype)


def gpus_in_order(count: int, *, first: int = 0, step: int = 1) -> tuple[str, ...] | None:
    """UUIDs of so many GPUs as CUDA counts them, from ``first`` on; None where that cannot be known.

    Asks NVML, and so creates no CUDA context here.
    """
    seen = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    wanted = range(first, first + count * step, step)
    return None if seen is None or wanted[-1] >= len(seen) else tuple(seen[index] for index in wanted)
