"""Hugging Face transformers with a prefill and decode loop of our own, so that every step is marked exactly."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, get_args

from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.engines._adapter import cannot_load, check_batch, check_counts, missing_package
from pytest_tokenpower.engines.protocol import EngineIdentity, Generation, Step
from pytest_tokenpower.errors import EngineError, TokenPowerError, UsageError
from pytest_tokenpower.models.checkpoint import model_name, require_model, weights_name, weights_note
from pytest_tokenpower.models.fit import refuse_transformers
from pytest_tokenpower.workloads.base import Batch
from pytest_tokenpower.workloads.tokenizers import tokenizer_of


def identity_from_model(model: Any, version: str, **facts: Fact) -> EngineIdentity:
    """Identity of a ``PreTrainedModel`` from its own configuration and parameters; ``facts`` are added.

    The key-value cache is taken to be of the model's dtype, which is what transformers' own caches are.
    """
    config = model.config
    name = str(getattr(config, "name_or_path", "") or type(model).__name__)
    dtype = str(model.dtype).removeprefix("torch.")
    axes: dict[str, Fact] = {
        "dtype": dtype,
        "quantization": _quantization(config),
        "kv_cache_dtype": dtype,
        "tensor_parallel": int(getattr(model, "_tp_size", None) or 1),
        "pipeline_parallel": 1,
        "weights": weights_name(name, getattr(config, "_commit_hash", None)),
    }
    found: dict[str, Fact] = {
        "architecture": next(iter(getattr(config, "architectures", None) or []), type(model).__name__),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "attention": getattr(config, "_attn_implementation", None),
        "device": str(model.device).partition(":")[0],
        "weights_note": weights_note(name),
    }
    known = {name: value for name, value in {**found, **facts}.items() if value is not None}
    return EngineIdentity("transformers", version, model_name(name), axes, known)


def _quantization(config: Any) -> str | None:
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return None
    if isinstance(quantization, dict):
        method = quantization.get("quant_method")
    else:
        method = getattr(quantization, "quant_method", None)
    return str(getattr(method, "value", method) or type(quantization).__name__)


CacheMode = Literal["dynamic", "static", "none"]


@dataclass(frozen=True)
class _Work:
    """A batch made ready on the device, kept for its next rounds."""

    batch: Batch
    input_ids: Any
    """int64[responses, longest prompt], padded on the left."""
    lengths: Any
    """int64[responses, 1] of the prompts where they differ; None where they are equal and nothing is padded."""


class TransformersEngine:
    """A causal language model under transformers, greedy, with a key-value cache of the kind that is named.

    ``model`` is a folder or a hub id. ``cache="none"`` computes the whole prefix anew for each token.
    ``compile=True`` compiles the decode step (CUDA graphs on a GPU) and wants ``cache="static"``. ``device``
    defaults to the first GPU, else the CPU; ``threads`` sets torch's CPU threads until :meth:`close`.
    Prompts of different lengths are padded on the left under an attention mask, as users do: the padding costs
    energy, and it is not counted as tokens.

    The device is synchronised after each step, as ``generate()`` does when it looks for the end of a sequence.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        dtype: str | None = None,
        device: str | None = None,
        cache: CacheMode = "dynamic",
        compile: bool = False,
        attn_implementation: str | None = None,
        threads: int | None = None,
    ) -> None:
        if cache not in get_args(CacheMode):
            raise UsageError(
                f"TransformersEngine(cache={cache!r}): use one of {', '.join(get_args(CacheMode))}"
            )
        if compile and cache != "static":
            raise UsageError(
                f"TransformersEngine(compile=True, cache={cache!r}): compiled decoding needs 'static'"
            )
        try:
            import torch
            import transformers
        except ImportError as error:
            raise missing_package("transformers", "transformers", error) from error
        self._torch = torch
        self._cache_mode = cache
        self._compile = compile
        self._threads_before = torch.get_num_threads()
        self._work: _Work | None = None
        self._static: tuple[tuple[int, int], Any] | None = None
        name = require_model(model)
        try:
            self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            refuse_transformers(name, dtype, str(self._device))
            if threads is not None:
                torch.set_num_threads(threads)
            options: dict[str, Any] = {"dtype": "auto" if dtype is None else dtype}
            if attn_implementation is not None:
                options["attn_implementation"] = attn_implementation
            self._model: Any = _load(name, options).eval()
            if getattr(self._model, "hf_quantizer", None) is None:  # a quantized model was put in its place
                self._model = self._model.to(self._device)
            self._device = self._model.device
        except Exception as error:  # OSError, ValueError, torch's and safetensors' own among them
            torch.set_num_threads(self._threads_before)
            if isinstance(error, TokenPowerError):
                raise
            given = {"dtype": dtype, "device": device, "attn_implementation": attn_implementation}
            raise cannot_load(name, "transformers", given, error) from error
        self._decode: Any = self._model
        if compile:
            mode = "reduce-overhead" if self._device.type == "cuda" else "default"
            self._decode = torch.compile(self._model, mode=mode, dynamic=False)
        self._identity = self._describe(transformers.__version__)
        self._device_ids = self._find_devices()
        self.encode = tokenizer_of(name)

    @property
    def identity(self) -> EngineIdentity:
        """Read from the loaded model's configuration and parameters."""
        return self._identity

    @property
    def device_ids(self) -> Sequence[str]:
        """NVML UUIDs of the CUDA devices that hold parameters; empty on a CPU."""
        return self._device_ids

    def generate(self, batch: Batch) -> Generation:
        """Prefill, then one forward pass per token, each with its marks; raises EngineError."""
        if self._model is None:
            raise EngineError(f"transformers engine of {self._identity.model}: generate() after close()")
        work = self._prepare(batch)
        try:
            with self._torch.no_grad():
                marks, token_ids = self._run(work)
        except RuntimeError as error:  # torch's out-of-memory and device errors among them
            raise EngineError(f"transformers, {self._identity.model}: the batch failed: {error}") from error
        check_counts(batch, token_ids, engine="transformers")
        count = len(batch.prompts)
        prompt_tokens = batch.tokens.prompt
        steps = tuple(
            Step(start, end, prompt_tokens if index == 0 else 0, count if index else 0)
            for index, (start, end) in enumerate(pairwise(marks))
        )
        return Generation(token_ids=token_ids, tokens=batch.tokens, steps=steps)

    def close(self) -> None:
        """Free the model; safe to call twice."""
        if self._model is None:
            return
        self._model = self._decode = self._work = self._static = None
        gc.collect()
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()
        self._torch.set_num_threads(self._threads_before)

    def _prepare(self, batch: Batch) -> _Work:
        if self._work is not None and self._work.batch is batch:
            return self._work
        config = self._model.config.get_text_config(decoder=True)
        check_batch(
            batch,
            engine="transformers",
            vocab_size=getattr(config, "vocab_size", None),
            max_positions=getattr(config, "max_position_embeddings", None),
        )
        torch = self._torch
        lengths = [len(prompt) for prompt in batch.prompts]
        longest = max(lengths)
        rows = [[0] * (longest - len(prompt)) + list(prompt) for prompt in batch.prompts]
        input_ids = torch.tensor(rows, dtype=torch.long, device=self._device)
        padded = min(lengths) < longest
        column = torch.tensor(lengths, device=self._device).unsqueeze(1) if padded else None
        self._work = _Work(batch, input_ids, column)
        return self._work

    def _run(self, work: _Work) -> tuple[list[int], list[list[int]]]:
        """Marks (one more than there are steps, ns) and the token ids of each response."""
        torch, batch = self._torch, work.batch
        responses, longest = work.input_ids.shape
        total = longest + batch.new_tokens
        mask = positions = None
        if work.lengths is not None:
            # One mask for the whole run: 0 over the padding. A step sees its first columns, a static cache all.
            columns = torch.arange(total, device=self._device)
            mask = (columns >= longest - work.lengths).long()
            positions = (columns - (longest - work.lengths)).clamp(min=0)
        self._synchronize()
        marks = [time.monotonic_ns()]
        cache = self._new_cache(responses, total)
        ids = inputs = work.input_ids
        tokens: list[Any] = []
        for index in range(batch.new_tokens):
            seen = longest + index
            first = seen - inputs.shape[1]
            forward = self._model if index == 0 else self._decode
            logits = forward(
                input_ids=inputs,
                attention_mask=None if mask is None else mask[:, : total if self._static else seen],
                position_ids=None if positions is None else positions[:, first:seen],
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=1,
            ).logits
            token = logits[:, -1].argmax(dim=-1, keepdim=True)
            tokens.append(token)
            inputs = token
            if cache is None:
                inputs = ids = torch.cat((ids, token), dim=1)
            self._synchronize()
            marks.append(time.monotonic_ns())
        return marks, torch.cat(tokens, dim=1).tolist()

    def _new_cache(self, responses: int, total: int) -> Any:
        from transformers import DynamicCache, StaticCache

        config = self._model.config
        if self._cache_mode == "none":
            return None
        if self._cache_mode == "dynamic":
            return DynamicCache(config=config)
        if self._static is not None and self._static[0] == (responses, total):
            self._static[1].reset()  # the same memory again: captured graphs stay valid
        else:
            self._static = (responses, total), StaticCache(config=config, max_cache_len=total)
        return self._static[1]

    def _synchronize(self) -> None:
        # Only the model's own device: asking for another one would create a CUDA context where there is none.
        if self._device.type == "cuda":
            self._torch.cuda.synchronize(self._device)

    def _describe(self, version: str) -> EngineIdentity:
        on_cpu = self._device.type == "cpu"
        identity = identity_from_model(
            self._model,
            version,
            cache=self._cache_mode,
            compile=self._compile,
            torch=str(self._torch.__version__),
            threads=self._torch.get_num_threads() if on_cpu else None,
        )
        if self._cache_mode == "none":
            return replace(identity, axes={**identity.axes, "kv_cache_dtype": None})
        return identity

    def _find_devices(self) -> tuple[str, ...]:
        devices = {parameter.device for parameter in self._model.parameters()}
        indices = sorted(device.index or 0 for device in devices if device.type == "cuda")
        return tuple(f"GPU-{self._torch.cuda.get_device_properties(index).uuid}" for index in indices)


def _load(name: str, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # its bars would cut through pytest's output
    try:
        return AutoModelForCausalLM.from_pretrained(name, **options)
    finally:
        if shown:
            logging.enable_progress_bar()
