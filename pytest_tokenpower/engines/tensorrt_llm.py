"""TensorRT-LLM: ``tensorrt_llm.LLM`` on its PyTorch backend, phases from its own times of each request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.engines._adapter import (
    InProcessEngine,
    as_fact,
    check_batch,
    check_counts,
    check_steps,
    checkpoint_config,
    checkpoint_dtype,
    gpus_in_order,
    identity_of,
    needing,
    with_cached,
)
from pytest_tokenpower.engines.protocol import EngineIdentity, Generation, Step
from pytest_tokenpower.errors import EngineError
from pytest_tokenpower.workloads.base import Batch


@dataclass(frozen=True)
class RequestTimes:
    """One request: its tokens, its times on the monotonic clock, and the iterations of its first and last token."""

    prompt_tokens: int
    generated_tokens: int
    scheduled_ns: int
    first_token_ns: int
    last_token_ns: int
    first_iteration: int
    last_iteration: int

    def decoded_by(self, iteration: int) -> int:
        """Count the tokens after its first that it had when this iteration ended."""
        return min(max(iteration - self.first_iteration, 0), self.last_iteration - self.first_iteration)


def steps_between_first_tokens(requests: Sequence[RequestTimes]) -> tuple[Step, ...]:
    """Consecutive spans, cut where an iteration gave requests their first tokens; empty where they cannot be told.

    Each span ends with such an iteration and holds the prompts that were finished in it and every token decoded since
    the one before; the last is decode alone. A span is several forward passes, with the counts of all of them. Needed
    are requests that got one token in each iteration after their first: none that was paused, and no speculation.
    """
    for each in requests:
        regular = each.last_iteration - each.first_iteration == each.generated_tokens - 1
        if not regular or not each.scheduled_ns < each.first_token_ns <= each.last_token_ns:
            return ()
    boundaries = sorted({each.first_iteration for each in requests})
    start_ns = min(each.scheduled_ns for each in requests)
    steps: list[Step] = []
    decoded = 0
    for iteration in boundaries:
        group = [each for each in requests if each.first_iteration == iteration]
        # The marks of one iteration are set one after the other, once it has ended.
        end_ns = min(each.first_token_ns for each in group)
        by_now = sum(each.decoded_by(iteration) for each in requests)
        steps.append(Step(start_ns, end_ns, sum(each.prompt_tokens for each in group), by_now - decoded))
        start_ns, decoded = end_ns, by_now
    rest = sum(each.generated_tokens - 1 for each in requests) - decoded
    if rest:
        last = max(each.last_iteration for each in requests)
        end_ns = min(each.last_token_ns for each in requests if each.last_iteration == last)
        steps.append(Step(start_ns, end_ns, 0, rest))
    return tuple(steps) if all(step.start_ns < step.end_ns for step in steps) else ()


FACTS = (
    "backend",
    "attn_backend",
    "max_batch_size",
    "max_num_tokens",
    "max_seq_len",
    "enable_chunked_prefill",
    "disable_overlap_scheduler",
    "context_parallel_size",
    "moe_expert_parallel_size",
    "enable_attention_dp",
    "load_format",
)
"""Arguments of ``LLM`` that are worth recording."""

_MICROSECOND = timedelta(microseconds=1)


class TensorrtLlmEngine(InProcessEngine):
    """``tensorrt_llm.LLM``: ``TensorrtLlmEngine("folder or hub id", **arguments of tensorrt_llm.LLM)``.

    The cache is not reused across requests unless a ``kv_cache_config`` of the caller's says otherwise. Generation is
    greedy, runs through end-of-sequence and is not detokenized.

    Steps are spans from one first token to the next (``steps_between_first_tokens``). With
    ``disable_overlap_scheduler=True`` and without pipeline parallelism they are exact; by default TensorRT-LLM handles
    an iteration's tokens while the next one runs, so that the marks are late by up to one iteration, and they are
    called estimates. There are none where a request was paused or tokens were speculated.

    Its identity is read from the engine's own arguments; a dtype that they leave open from the checkpoint's
    configuration. Its ranks take the first GPUs that are visible; over several nodes the devices are not known.

    Written against the sources of TensorRT-LLM 1.2, and never run with it.
    """

    label = "TensorRT-LLM"

    def _load(self, name: str, options: dict[str, Any]) -> None:
        with needing(self.label, "tensorrt-llm"):
            import tensorrt_llm
            from tensorrt_llm.llmapi import KvCacheConfig
        self._sampling_class = tensorrt_llm.SamplingParams
        self._config = checkpoint_config(name)
        arguments = {"skip_tokenizer_init": True, "return_perf_metrics": True, **options}
        if "kv_cache_config" not in options:
            # Otherwise the second round of a batch would skip its prefill.
            arguments["kv_cache_config"] = KvCacheConfig(enable_block_reuse=False)
        self._handle = tensorrt_llm.LLM(model=name, **arguments)
        args = self._handle.args
        # Only then is an iteration over when its tokens are handled.
        self._sequential = (
            bool(getattr(args, "disable_overlap_scheduler", False)) and args.pipeline_parallel_size == 1
        )
        self._identity = self._describe(args, name, tensorrt_llm.__version__)
        self._device_ids = _devices(args)

    @property
    def llm(self) -> Any:
        """The ``tensorrt_llm.LLM`` itself; None after :meth:`close`."""
        return self._handle

    def generate(self, batch: Batch) -> Generation:
        """Run the batch to its end; raises EngineError, also where reused cache blocks are of unknown length."""
        args = self._opened().args
        check_batch(
            batch,
            engine=self.label,
            vocab_size=self._config.get("vocab_size"),
            max_positions=args.max_seq_len or self._config.get("max_position_embeddings"),
        )
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in batch.prompts]
        # Neither temperature nor top_k nor top_p: that is greedy. No min_tokens: it changes the logits. Without a
        # tokenizer there is no end_id to be found, and none is wanted.
        sampling = self._sampling_class(
            max_tokens=batch.new_tokens,
            ignore_eos=True,
            end_id=-1,
            pad_id=0,
            detokenize=False,
            return_perf_metrics=True,
        )
        outputs = self._finish(inputs, sampling)
        token_ids = tuple(tuple(output.outputs[0].token_ids) for output in outputs)
        check_counts(batch, token_ids, engine=self.label)
        for index, output in enumerate(outputs):
            if blocks := _reused_blocks(output):
                raise EngineError(
                    f"TensorRT-LLM: {blocks} blocks of prompt {index} came from the KV cache, and this release does "
                    "not say how many tokens they held: leave enable_block_reuse off in kv_cache_config"
                )
        tokens = with_cached(batch, map(_cached, outputs))
        steps, exact = self._steps(batch, outputs)
        if steps:
            check_steps(batch, steps, engine=self.label, cached=tokens.cached_prompt)
        return Generation(token_ids, tokens, steps, steps_exact=exact)

    def _shut_down(self, handle: Any) -> None:
        handle.shutdown()

    def _finish(self, inputs: Sequence[Any], sampling: Any) -> list[Any]:
        """Do what ``LLM.generate`` does, with hold of the requests, so that none goes on after a failure."""
        requests: list[Any] = []
        with self._running():
            try:
                for each in inputs:
                    requests.append(self._handle.generate_async(each, sampling_params=sampling))
                return [request.result() for request in requests]
            except BaseException:
                for request in requests:
                    if not request.finished:
                        with suppress(Exception):
                            request.abort()
                raise

    def _steps(self, batch: Batch, outputs: Sequence[Any]) -> tuple[tuple[Step, ...], bool]:
        times = [
            _times(output, len(prompt) - _cached(output), batch.new_tokens)
            for output, prompt in zip(outputs, batch.prompts, strict=True)
        ]
        known = [each for each in times if each is not None]
        steps = steps_between_first_tokens(known) if len(known) == len(times) else ()
        mixed = any(step.prompt_tokens and step.generated_tokens for step in steps)
        # A chunk of a prompt may have been computed in the span before that in which the prompt was finished.
        split = mixed and getattr(self._handle.args, "enable_chunked_prefill", False)
        return steps, self._sequential and not split

    def _describe(self, args: Any, name: str, version: str) -> EngineIdentity:
        dtype = _chosen(args.dtype) or checkpoint_dtype(self._config)
        return identity_of(
            "tensorrt-llm",
            version,
            name,
            dtype=dtype,
            quantization=_quantization(args, self._config),
            kv_cache_dtype=_chosen(getattr(args.kv_cache_config, "dtype", None)) or dtype,
            tensor_parallel=args.tensor_parallel_size,
            pipeline_parallel=args.pipeline_parallel_size,
            revision=getattr(args, "revision", None),
            dummy=as_fact(getattr(args, "load_format", None)) == "dummy",
            facts={fact: getattr(args, fact, None) for fact in FACTS}
            | {
                "block_reuse": getattr(args.kv_cache_config, "enable_block_reuse", None),
                "cuda_graphs": getattr(args, "cuda_graph_config", None) is not None,
                "speculative": getattr(getattr(args, "speculative_config", None), "decoding_type", None),
                "steps": "spans between first tokens" + ("" if self._sequential else ", estimated"),
            },
        )


def _devices(args: Any) -> tuple[str, ...] | None:
    if getattr(args, "orchestrator_type", None) == "ray":
        return None  # placed by somebody else
    ranks = args.tensor_parallel_size * args.pipeline_parallel_size
    return gpus_in_order(ranks * getattr(args, "context_parallel_size", 1))


def _chosen(dtype: Any) -> str | None:
    return None if dtype is None or dtype == "auto" else str(as_fact(dtype))


def _quantization(args: Any, config: Mapping[str, Any]) -> Fact:
    """Name the algorithm that the engine found or was told, else what the checkpoint says of itself."""
    algorithm = as_fact(getattr(getattr(args, "quant_config", None), "quant_algo", None))
    if algorithm is not None:
        return str(algorithm).lower()
    stored = config.get("quantization_config")
    return as_fact(stored.get("quant_method")) if isinstance(stored, Mapping) else None


def _cached(output: Any) -> int:
    return getattr(output, "cached_tokens", 0) or 0


def _reused_blocks(output: Any) -> int:
    """Return how many blocks of the cache were used again where nobody says how many tokens."""
    metrics = getattr(output.outputs[0], "request_perf_metrics", None)
    blocks = getattr(getattr(metrics, "kv_cache_metrics", None), "num_reused_blocks", 0) or 0
    return 0 if _cached(output) else blocks


def _times(output: Any, prompt_tokens: int, generated_tokens: int) -> RequestTimes | None:
    """Read the request's times; None where any is missing.

    They are points of C++'s steady_clock, which is CLOCK_MONOTONIC on Linux (as ``time.monotonic``), as timedeltas
    since its start; rank 0's, to which those of other ranks are aligned. A time that was not taken is 0.
    """
    metrics = getattr(output.outputs[0], "request_perf_metrics", None)
    timing = getattr(metrics, "timing_metrics", None)
    first, last = getattr(metrics, "first_iter", None), getattr(metrics, "last_iter", None)
    if timing is None or first is None or last is None:
        return None
    scheduled_ns, first_ns, last_ns = (
        _nanoseconds(getattr(timing, name, None))
        for name in ("first_scheduled_time", "first_token_time", "last_token_time")
    )
    if not (scheduled_ns and first_ns and last_ns):
        return None
    return RequestTimes(prompt_tokens, generated_tokens, scheduled_ns, first_ns, last_ns, first, last)


def _nanoseconds(point: Any) -> int:
    return point // _MICROSECOND * 1000 if isinstance(point, timedelta) else 0
