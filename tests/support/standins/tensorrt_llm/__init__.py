"""Stand-in for TensorRT-LLM 1.2: ``LLM`` of llmapi/llm.py with the fields of ``TorchLlmArgs`` (llmapi/llm_args.py),
``SamplingParams`` (sampling_params.py), ``GenerationResult`` (executor/result.py) and ``RequestPerfMetrics`` as
executor/bindings.cpp gives it to Python and ``PyExecutor`` fills it (_torch/pyexecutor/py_executor.py).

Of the fields of TorchLlmArgs only those below are known. Iterations run while a result is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from tensorrt_llm.llmapi import KvCacheConfig

from tests.support.standins.core import STEP_S, Core

__version__ = "1.2.1"


@dataclass(kw_only=True)
class SamplingParams:
    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    bad: Any = None
    bad_token_ids: Any = None
    stop: Any = None
    stop_token_ids: Any = None
    include_stop_str_in_output: bool = False
    embedding_bias: Any = None
    logits_processor: Any = None
    apply_batched_logits_processor: bool = False
    n: int = 1
    best_of: int | None = None
    use_beam_search: bool = False
    top_k: int | None = None
    top_p: float | None = None
    top_p_min: float | None = None
    top_p_reset_ids: int | None = None
    top_p_decay: float | None = None
    seed: int | None = None
    temperature: float | None = None
    min_tokens: int | None = None
    beam_search_diversity_rate: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    length_penalty: float | None = None
    early_stopping: int | None = None
    no_repeat_ngram_size: int | None = None
    min_p: float | None = None
    beam_width_array: Any = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    return_context_logits: bool = False
    return_generation_logits: bool = False
    exclude_input_from_output: bool = True
    return_encoder_output: bool = False
    return_perf_metrics: bool = False
    additional_model_outputs: Any = None
    lookahead_config: Any = None
    guided_decoding: Any = None
    ignore_eos: bool = False
    detokenize: bool = True
    add_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True

    @property
    def _greedy_decoding(self) -> bool:
        return not self.use_beam_search and self.top_k in (None, 1) and self.top_p in (None, 0.0)


@dataclass
class TorchLlmArgs:
    model: str
    tokenizer: Any = None
    tokenizer_mode: str = "auto"
    skip_tokenizer_init: bool = False
    trust_remote_code: bool = False
    tensor_parallel_size: int = 1
    dtype: str = "auto"
    revision: str | None = None
    tokenizer_revision: str | None = None
    pipeline_parallel_size: int = 1
    context_parallel_size: int = 1
    moe_expert_parallel_size: int | None = None
    enable_attention_dp: bool = False
    load_format: str = "auto"
    kv_cache_config: KvCacheConfig = field(default_factory=KvCacheConfig)
    enable_chunked_prefill: bool = False
    speculative_config: Any = None
    max_batch_size: int | None = 2048
    max_seq_len: int | None = None
    max_num_tokens: int | None = 8192
    backend: str | None = "pytorch"
    return_perf_metrics: bool = False
    orchestrator_type: str | None = None
    cuda_graph_config: Any = field(default_factory=SimpleNamespace)
    disable_overlap_scheduler: bool = False
    attn_backend: str = "TRTLLM"

    @property
    def quant_config(self) -> Any:
        return SimpleNamespace(quant_algo=None)


class GenerationResult:
    def __init__(self, llm: LLM, number: str, sampling: SamplingParams) -> None:
        self.request_id = int(number)
        self._llm = llm
        self.prompt_token_ids = llm.core.requests[number].prompt
        self.cached_tokens = 0
        self.finished = False
        self._aborted = False
        zero = timedelta(0)
        self.metrics = SimpleNamespace(
            timing_metrics=SimpleNamespace(
                arrival_time=_steady_clock_now(),
                first_scheduled_time=zero,
                first_token_time=zero,
                last_token_time=zero,
            ),
            kv_cache_metrics=SimpleNamespace(num_reused_blocks=0, num_missed_blocks=1),
            first_iter=None,
            last_iter=None,
            iter=None,
        )
        self.outputs = [
            SimpleNamespace(
                index=0,
                text="",
                token_ids=[],
                finish_reason=None,
                request_perf_metrics=self.metrics if sampling.return_perf_metrics else None,
            )
        ]

    def result(self, timeout: float | None = None) -> GenerationResult:
        while not self.finished:
            self._llm.iterate()
        return self

    def abort(self) -> None:
        self._aborted = True
        self._llm.forget(self)

    def aborted(self) -> bool:
        return self._aborted


class LLM:
    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        known = {each.name for each in fields(TorchLlmArgs)}
        for key in kwargs:
            if key not in known:
                raise ValueError(f"{type(self).__name__} got invalid argument: {key}")
        self.args = TorchLlmArgs(
            model,
            tokenizer,
            tokenizer_mode,
            skip_tokenizer_init,
            trust_remote_code,
            tensor_parallel_size,
            dtype,
            revision,
            tokenizer_revision,
            **kwargs,
        )
        if not skip_tokenizer_init:
            raise OSError(f"Can't load tokenizer for '{model}'")
        self.core = Core(budget=self.args.max_num_tokens or 8192)
        self.iter_counter = 1
        self.results: dict[str, GenerationResult] = {}
        self.seen: set[tuple[int, ...]] = set()
        self.speculated = 0
        self._executor: object | None = object()

    def generate(
        self,
        inputs: Any,
        sampling_params: Any = None,
        use_tqdm: bool = True,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        kv_cache_retention_config: Any = None,
        disaggregated_params: Any = None,
        scheduling_params: Any = None,
        cache_salt: Any = None,
    ) -> Any:
        futures = [self.generate_async(each, sampling_params) for each in inputs]
        return [future.result() for future in futures]

    def generate_async(
        self,
        inputs: Any,
        sampling_params: SamplingParams | None = None,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        streaming: bool = False,
        kv_cache_retention_config: Any = None,
        disaggregated_params: Any = None,
        _postproc_params: Any = None,
        scheduling_params: Any = None,
        cache_salt: str | None = None,
    ) -> GenerationResult:
        if self._executor is None:
            raise RuntimeError("LLM is shutting down")
        if not isinstance(sampling_params, SamplingParams):
            raise TypeError(
                f"The sampling_params must be type SamplingParams, but got {type(sampling_params)}"
            )
        if sampling_params.end_id is None:
            raise ValueError(
                "tokenizer is required to reset end_id if it is None, or you can explicitly specify the end_id for "
                "sampling_params"
            )
        if set(inputs) != {"prompt_token_ids"}:
            raise TypeError(f"The inputs must be type str or list of int, but got {type(inputs)}")
        prompt: Sequence[int] = inputs["prompt_token_ids"]
        limit = self.args.max_num_tokens
        if not self.args.enable_chunked_prefill and limit and len(prompt) > limit:
            raise ValueError(
                f"The sum of prompt length ({len(prompt)}) should not exceed max_num_tokens ({limit})"
            )
        wanted = (
            sampling_params.max_tokens if sampling_params.ignore_eos else min(sampling_params.max_tokens, 2)
        )
        number = self.core.submit(prompt, wanted, greedy=sampling_params._greedy_decoding)
        result = self.results[number] = GenerationResult(self, number, sampling_params)
        if self.args.kv_cache_config.enable_block_reuse and tuple(prompt) in self.seen:
            result.metrics.kv_cache_metrics.num_reused_blocks = 1
        self.seen.add(tuple(prompt))
        return result

    def iterate(self) -> None:
        """One iteration without overlap: schedule, run, then hand the tokens out."""
        before = {number: self.core.requests[number].computed for number in self.results}
        now = _steady_clock_now()
        time.sleep(STEP_S)
        new = self.core.step()
        for number, result in self.results.items():
            timing = result.metrics.timing_metrics
            if not before[number] and self.core.requests[number].computed:
                timing.first_scheduled_time = now
            if number not in new:
                continue
            result.outputs[0].token_ids.extend(new[number])
            now_done = _steady_clock_now()
            if result.metrics.first_iter is None:
                result.metrics.first_iter, timing.first_token_time = self.iter_counter, now_done
            result.metrics.iter = self.iter_counter
            if len(self.core.requests[number].outputs) == self.core.requests[number].new_tokens:
                result.finished = True
                result.outputs[0].finish_reason = "length"
                result.metrics.last_iter = self.iter_counter - self.speculated
                timing.last_token_time = now_done
        self.iter_counter += 1
        self.results = {number: each for number, each in self.results.items() if not each.finished}

    def forget(self, result: GenerationResult) -> None:
        number = str(result.request_id)
        self.results.pop(number, None)
        self.core.scheduler.requests = [
            each for each in self.core.scheduler.requests if each.req_id != number
        ]

    def shutdown(self) -> None:
        self._executor = None


def _steady_clock_now() -> timedelta:
    """std::chrono::steady_clock::now() as the bindings give it: whole microseconds of CLOCK_MONOTONIC."""
    return timedelta(microseconds=time.monotonic_ns() // 1000)
