"""Hugging Face transformers with a prefill and decode loop of our own, so that every step is marked exactly."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, get_args

from pytest_tokenpower.engines._adapter import InProcessEngine, check_batch, check_counts, needing
from pytest_tokenpower.engines.identify import identity_from_model
from pytest_tokenpower.engines.protocol import EngineIdentity, Generation, Step
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.models.fit import refuse_transformers
from pytest_tokenpower.workloads.base import Batch

CacheMode = Literal["dynamic", "static", "none"]


@dataclass(frozen=True)
class _Work:
    """A batch made ready on the device, kept for its next rounds."""

    batch: Batch
    input_ids: Any
    """int64[responses, longest prompt], padded on the left."""
    lengths: Any
    """int64[responses, 1] of the prompts where they differ; None where they are equal and nothing is padded."""


class TransformersEngine(InProcessEngine):
    """A causal language model under transformers, greedy, with a key-value cache of the kind that is named.

    ``model`` is a folder or a hub id. ``cache="none"`` computes the whole prefix anew for each token.
    ``compile=True`` compiles the decode step (CUDA graphs on a GPU) and wants ``cache="static"``. ``device``
    defaults to the first GPU, else the CPU; ``threads`` sets torch's CPU threads until :meth:`close`. The identity is
    read from the loaded model's configuration and parameters, the devices are those that hold parameters.
    Prompts of different lengths are padded on the left under an attention mask, as users do: the padding costs
    energy, and it is not counted as tokens.

    The device is synchronised after each step, as ``generate()`` does when it looks for the end of a sequence.
    """

    label = "transformers"

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
        self._cache_mode = cache
        self._compile = compile
        self._wanted_threads = threads
        options = {"dtype": dtype, "device": device, "attn_implementation": attn_implementation}
        super().__init__(model, **options)

    def _load(self, name: str, options: dict[str, Any]) -> None:
        with needing(self.label, "transformers"):
            import torch
            import transformers
        self._torch = torch
        self._threads_before = torch.get_num_threads()
        self._work: _Work | None = None
        self._static: tuple[tuple[int, int], Any] | None = None
        dtype, device, attention = options["dtype"], options["device"], options["attn_implementation"]
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        refuse_transformers(name, dtype, str(self._device))
        try:
            if self._wanted_threads is not None:
                torch.set_num_threads(self._wanted_threads)
            self._handle = _load_model(name, dtype, attention).eval()
            if getattr(self._handle, "hf_quantizer", None) is None:  # a quantized model was put in its place
                self._handle = self._handle.to(self._device)
        except BaseException:
            torch.set_num_threads(self._threads_before)
            raise
        self._device = self._handle.device
        self._decode: Any = self._handle
        if self._compile:
            mode = "reduce-overhead" if self._device.type == "cuda" else "default"
            self._decode = torch.compile(self._handle, mode=mode, dynamic=False)
        self._identity = self._describe(transformers.__version__)
        self._device_ids = self._find_devices()

    @property
    def model(self) -> Any:
        """The ``PreTrainedModel`` itself; None after :meth:`close`."""
        return self._handle

    def generate(self, batch: Batch) -> Generation:
        """Prefill, then one forward pass per token, each with its marks; raises EngineError."""
        self._opened()
        work = self._prepare(batch)
        with self._running(), self._torch.no_grad():
            marks, token_ids = self._run(work)
        check_counts(batch, token_ids, engine=self.label)
        count = len(batch.prompts)
        prompt_tokens = batch.tokens.prompt
        steps = tuple(
            Step(start, end, prompt_tokens if index == 0 else 0, count if index else 0)
            for index, (start, end) in enumerate(pairwise(marks))
        )
        return Generation(token_ids=token_ids, tokens=batch.tokens, steps=steps)

    def log_likelihoods(self, ids: Sequence[int]) -> list[float]:
        """Return the natural logarithm of the probability of each token but the first; raises EngineError."""
        self._opened("log_likelihoods")
        torch = self._torch
        with self._running(), torch.no_grad():
            given = torch.tensor([list(ids)], dtype=torch.long, device=self._device)
            logs = self._handle(input_ids=given).logits[0, :-1].float().log_softmax(dim=-1)
            found: list[float] = logs.gather(1, given[0, 1:, None])[:, 0].tolist()
        return found

    def _shut_down(self, handle: Any) -> None:
        del handle
        self._decode = self._work = self._static = None
        gc.collect()
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()
        self._torch.set_num_threads(self._threads_before)

    def _prepare(self, batch: Batch) -> _Work:
        if self._work is not None and self._work.batch is batch:
            return self._work
        config = self._handle.config.get_text_config(decoder=True)
        check_batch(
            batch,
            engine=self.label,
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
        """Return the marks (one more than there are steps, ns) and the token ids of each response."""
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
            forward = self._handle if index == 0 else self._decode
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

        config = self._handle.config
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
            self._handle,
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
        devices = {parameter.device for parameter in self._handle.parameters()}
        indices = sorted(device.index or 0 for device in devices if device.type == "cuda")
        return tuple(f"GPU-{self._torch.cuda.get_device_properties(index).uuid}" for index in indices)


def _load_model(name: str, dtype: str | None, attention: str | None) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # its bars would cut through pytest's output
    options = {} if attention is None else {"attn_implementation": attention}
    try:
        return AutoModelForCausalLM.from_pretrained(name, dtype=dtype or "auto", **options)
    finally:
        if shown:
            logging.enable_progress_bar()
