"""Stand-in for SGLang 0.5.23: ``Engine`` of srt/entrypoints/engine.py with ``ServerArgs`` (srt/arg_groups/fields/),
``GenerateReqInput`` (srt/managers/io_struct.py), ``SamplingParams`` (srt/sampling/sampling_params.py) and the chunks
that ``TokenizerManager._handle_batch_output`` makes without a tokenizer (srt/managers/tokenizer_manager.py).

It was held against a real SGLang on a CPU (test_sglang_real.py). Of the about 400 fields of ServerArgs only those below
are known. There is no overlap of steps and no second process.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any

from tests.support.standins.core import STEP_S, Core, config_of
from tests.support.stub import FakeScheduler, Scheduled

__version__ = "0.5.23"


@dataclasses.dataclass
class ServerArgs:
    model_path: str
    tokenizer_path: str | None = None
    skip_tokenizer_init: bool = False
    load_format: str = "auto"
    revision: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    context_length: int | None = None
    device: str | None = None
    base_gpu_id: int = 0
    gpu_id_step: int = 1
    tp_size: int = 1
    pp_size: int = 1
    dp_size: int = 1
    attn_dp_size: int = 1
    ep_size: int = 1
    nnodes: int = 1
    use_ray: bool = False
    enable_dp_attention: bool = False
    attention_backend: str | None = None
    sampling_backend: str | None = None
    disable_cuda_graph: bool = False
    disable_overlap_schedule: bool = False
    disable_radix_cache: bool = False
    chunked_prefill_size: int | None = None
    max_running_requests: int | None = None
    max_total_tokens: int | None = None
    max_prefill_tokens: int = 16384
    mem_fraction_static: float | None = None
    enable_mixed_chunk: bool = False
    page_size: int | None = None
    speculative_algorithm: str | None = None
    stream_interval: int = 1
    incremental_streaming_output: bool = False
    log_level: str = "info"

    def resolved_dict(self) -> dict[str, Any]:
        cpu = self.device == "cpu"
        chosen = {
            "device": "cuda",
            "attention_backend": "torch_native" if cpu else "fa3",
            "sampling_backend": "pytorch" if cpu else "flashinfer",
            "chunked_prefill_size": 4096 if cpu else 8192,
            "mem_fraction_static": 0.85,
            "page_size": 1,
        }
        fields = dataclasses.asdict(self)
        resolved: dict[str, Any] = {
            name: chosen.get(name) if value is None else value for name, value in fields.items()
        }
        if self.enable_dp_attention and self.attn_dp_size == 1:
            resolved["attn_dp_size"], resolved["dp_size"] = self.dp_size, 1
        resolved["enable_dp_attention"] = resolved["attn_dp_size"] > 1
        # A backend without graphs leaves disable_cuda_graph as it was given.
        graphs = not self.disable_cuda_graph and resolved["attention_backend"] != "torch_native"
        resolved["cuda_graph_config"] = {
            "decode": {"backend": "full" if graphs else "disabled"},
            "prefill": {"backend": "breakable" if graphs else "disabled"},
        }
        return resolved


class PrefillFirst(FakeScheduler):
    """Prompts in forward passes of their own, before the next token of those that decode."""

    def schedule(self) -> Scheduled:
        every = self.requests
        self.requests = [request for request in every if not request.outputs] or every
        try:
            return super().schedule()
        finally:
            self.requests = every


SAMPLING = frozenset(
    {
        "max_new_tokens",
        "stop",
        "stop_token_ids",
        "stop_regex",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "min_new_tokens",
        "n",
        "beam_width",
        "json_schema",
        "regex",
        "ebnf",
        "structural_tag",
        "ignore_eos",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "no_stop_trim",
        "custom_params",
        "stream_interval",
        "logit_bias",
        "sampling_seed",
    }
)


@dataclasses.dataclass
class _State:
    prompt: list[int]
    stream: bool
    output_ids: list[int] = dataclasses.field(default_factory=list)
    out_list: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    event: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    finished: bool = False
    created_s: float = dataclasses.field(default_factory=time.perf_counter)
    cached: int = 0


class TokenizerManager:
    def __init__(self, server_args: ServerArgs) -> None:
        config = config_of(server_args.model_path)
        stored = config["torch_dtype"] if server_args.dtype == "auto" else server_args.dtype
        self.server_args = server_args
        self.context_len = server_args.context_length or config["max_position_embeddings"]
        self.model_config = SimpleNamespace(
            # A torch.dtype, whose text this is.
            dtype=f"torch.{stored}",
            quantization=server_args.quantization,
            vocab_size=config["vocab_size"],
            context_len=self.context_len,
        )
        resolved = server_args.resolved_dict()
        self.core = Core(budget=resolved["chunked_prefill_size"])
        if not server_args.enable_mixed_chunk:
            self.core.scheduler = PrefillFirst(self.core.budget)
        self.max_req_len = min(self.context_len, server_args.max_total_tokens or self.context_len) - 1
        self.max_req_input_len = self.max_req_len - 5
        self.rid_to_state: dict[str, _State] = {}
        self.seen: set[tuple[int, ...]] = set()
        self._loop_task: asyncio.Task[None] | None = None

    def abort_request(self, rid: str = "", abort_all: bool = False) -> None:
        if abort_all:
            self.core.forget()
            for state in self.rid_to_state.values():
                state.finished = True
                reason = {"type": "abort", "message": "Aborted"}
                state.out_list.append(
                    {"output_ids": state.output_ids, "meta_info": {"finish_reason": reason}}
                )
                state.event.set()

    async def generate_request(
        self, input_ids: list[int], sampling_params: dict[str, Any], stream: bool
    ) -> AsyncIterator[dict[str, Any]]:
        unknown = set(sampling_params) - SAMPLING
        if unknown:
            raise TypeError(f"Unexpected keyword argument {sorted(unknown)}")
        wanted = sampling_params.get("max_new_tokens", 128)
        if len(input_ids) + wanted > self.context_len:
            raise ValueError(
                f"Requested token count exceeds the model's maximum context length of {self.context_len}"
            )
        if not sampling_params.get("ignore_eos", False):
            wanted = min(wanted, 2)  # an end of sequence comes early here
        if len(input_ids) >= self.max_req_input_len:
            message = (
                f"Input length ({len(input_ids)} tokens) exceeds the maximum allowed length "
                f"({self.max_req_input_len} tokens). Use a shorter input or enable --allow-auto-truncate."
            )
            reason = {"type": "abort", "message": message, "err_type": "BadRequestError"}
            meta = {"finish_reason": reason, "prompt_tokens": len(input_ids), "completion_tokens": 1}
            yield {"output_ids": [0], "meta_info": meta}
            return
        wanted = min(wanted, self.max_req_len - len(input_ids) - 1)  # and nothing is said
        rid = self.core.submit(input_ids, wanted, greedy=sampling_params.get("temperature", 1.0) == 0)
        state = self.rid_to_state[rid] = _State(list(input_ids), stream)
        if not self.server_args.disable_radix_cache and tuple(input_ids) in self.seen:
            state.cached = len(input_ids) - 1
        self.seen.add(tuple(input_ids))
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.ensure_future(self._schedule())
        while True:
            await state.event.wait()
            out_list, state.out_list = state.out_list, []
            state.event.clear()
            for out in out_list if self.server_args.incremental_streaming_output else out_list[-1:]:
                yield out
            if state.finished:
                self.rid_to_state.pop(rid, None)
                return

    async def _schedule(self) -> None:
        while self.core.busy:
            await asyncio.sleep(STEP_S)
            try:
                new = self.core.step()
            except RuntimeError as error:
                # The real scheduler's process would have ended, and this one with it.
                self.core.forget()
                new = {rid: [] for rid in self.rid_to_state}
                reason: dict[str, Any] | None = {"type": "abort", "message": str(error), "status_code": 500}
            else:
                reason = None
            for rid, tokens in new.items():
                if rid in self.rid_to_state:
                    self._hand_out(rid, tokens, reason)

    def _hand_out(self, rid: str, tokens: list[int], reason: dict[str, Any] | None) -> None:
        state, request = self.rid_to_state[rid], self.core.requests[rid]
        state.output_ids.extend(tokens)
        if reason is None and len(state.output_ids) == request.new_tokens:
            reason = {"type": "length", "length": request.new_tokens}
        state.finished = reason is not None
        meta_info: dict[str, Any] = {
            "id": rid,
            "finish_reason": reason,
            "prompt_tokens": len(state.prompt),
            "weight_version": "default",
            "num_retractions": 0,
            "reasoning_tokens": 0,
            "completion_tokens": len(state.output_ids),
            "cached_tokens": state.cached,
            "weight_versions": [{"version": "default", "start": 0, "end": len(state.output_ids)}],
            "cached_tokens_details": None,
            "dp_rank": None,
        }
        if state.finished:
            meta_info["response_sent_to_client_ts"] = time.time()
            meta_info["e2e_latency"] = time.perf_counter() - state.created_s
        if state.stream or state.finished:
            # Until the end it is the list itself, which grows.
            ids = state.output_ids.copy() if state.finished else state.output_ids
            if state.stream and self.server_args.incremental_streaming_output:
                ids = tokens
            state.out_list.append({"output_ids": ids, "meta_info": meta_info})
            state.event.set()


class Engine:
    opened = 0

    def __init__(self, **kwargs: Any) -> None:
        if "log_level" not in kwargs:
            kwargs["log_level"] = "error"
        self.server_args = ServerArgs(**kwargs)
        if not self.server_args.skip_tokenizer_init:
            raise OSError(f"Can't load tokenizer for '{self.server_args.model_path}'")
        self.tokenizer_manager = TokenizerManager(self.server_args)
        self.loop = asyncio.new_event_loop()
        Engine.opened += 1
        self._running = True

    async def async_generate(
        self,
        prompt: Any = None,
        sampling_params: Any = None,
        input_ids: Any = None,
        image_data: Any = None,
        audio_data: Any = None,
        video_data: Any = None,
        mm_hashes: Any = None,
        mm_content_hashes: Any = None,
        return_logprob: Any = False,
        logprob_start_len: Any = None,
        top_logprobs_num: Any = None,
        token_ids_logprob: Any = None,
        lora_path: Any = None,
        custom_logit_processor: Any = None,
        require_reasoning: bool = False,
        return_hidden_states: Any = False,
        return_routed_experts: bool = False,
        routed_experts_start_len: int = 0,
        stream: bool = False,
        bootstrap_host: Any = None,
        bootstrap_port: Any = None,
        bootstrap_room: Any = None,
        routed_dp_rank: int | None = None,
        disagg_prefill_dp_rank: int | None = None,
        kv_hints: Any = None,
        data_parallel_rank: int | None = None,
        external_trace_header: Any = None,
        rid: Any = None,
        session_params: Any = None,
        priority: int | None = None,
        session_id: str | None = None,
        *,
        cache_salt: Any = None,
    ) -> Any:
        if (prompt is None) == (input_ids is None):
            raise ValueError("Either text, input_ids or input_embeds should be provided.")
        if prompt is not None:
            raise ValueError(
                "The engine initialized with skip_tokenizer_init=True cannot accept text prompts."
            )
        if not isinstance(input_ids, list) or not all(isinstance(each, int) for each in input_ids):
            raise ValueError("the stand-in knows one request at a time, as a list of integers")
        if not isinstance(sampling_params, Mapping):
            raise ValueError("the stand-in knows one dictionary of sampling parameters")
        generator = self.tokenizer_manager.generate_request(input_ids, dict(sampling_params), stream)
        if stream is True:
            return generator
        return await generator.__anext__()

    def shutdown(self) -> None:
        if self._running:
            self._running = False
            self.loop.close()
            Engine.opened -= 1
