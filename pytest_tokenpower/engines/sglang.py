"""SGLang offline: ``sglang.Engine``, its tokens streamed, with steps estimated from when they arrive."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from pytest_tokenpower.engines._adapter import (
    InProcessEngine,
    as_fact,
    check_batch,
    check_counts,
    gpus_in_order,
    identity_of,
    needing,
    with_cached,
)
from pytest_tokenpower.engines._arrivals import Admission, run_admitted
from pytest_tokenpower.engines._estimated_steps import EstimatedSteps, Trace
from pytest_tokenpower.engines.protocol import EngineIdentity, Generation
from pytest_tokenpower.errors import EngineError
from pytest_tokenpower.workloads.arrivals import AllAtOnce, Arrivals
from pytest_tokenpower.workloads.base import Batch

T = TypeVar("T")

DEFAULTS: dict[str, Any] = {
    # Otherwise the second round of a batch would skip its prefill.
    "disable_radix_cache": True,
    "skip_tokenizer_init": True,
}
"""Arguments that :class:`SglangEngine` gives to ``sglang.Engine`` unless its caller says otherwise."""

FACTS = (
    "attention_backend",
    "sampling_backend",
    "disable_overlap_schedule",
    "disable_radix_cache",
    "chunked_prefill_size",
    "max_prefill_tokens",
    "max_running_requests",
    "mem_fraction_static",
    "enable_mixed_chunk",
    "page_size",
    "dp_size",
    "attn_dp_size",
    "ep_size",
    "load_format",
    "speculative_algorithm",
    "stream_interval",
)
"""Arguments of the server, as it resolved them, that are worth recording."""


class SglangEngine(InProcessEngine):
    """``sglang.Engine``: ``SglangEngine("folder or hub id", **arguments of sglang's ServerArgs)``.

    Every request is streamed, as a server does, and each chunk's arrival noted: steps are estimates from outside
    (``_estimated_steps`` has the rules). SGLang hands a step's tokens out while the next one runs, so that marks
    are late by up to a step; ``disable_overlap_schedule=True`` brings them closer. Generation is greedy, runs through
    end-of-sequence and is not detokenized.

    Use it through ``EngineSpec``, in a process of its own: when one of SGLang's processes fails it ends the one that
    started it, and its shutdown ends every child of that process, whoever started it.

    Its identity is read from the engine's arguments as it resolved them, and from its model's configuration; the GPUs
    are those that its schedulers were given, unless they are of several nodes.

    Run for real with sglang 0.5.15.post1 and 0.5.23 on a CPU (``device="cpu"``, ``attention_backend="torch_native"``
    and ``SGLANG_USE_CPU_ENGINE=1`` in the environment); never on a GPU.
    """

    label = "SGLang"

    def _load(self, name: str, options: dict[str, Any]) -> None:
        with needing(self.label, "sglang"):
            import sglang

            # Its engine is imported when it is first asked for.
            self._handle = sglang.Engine(model_path=name, **{**DEFAULTS, **options})
        self._model = self._handle.tokenizer_manager.model_config
        self._args = _resolved(self._handle.server_args)
        self._positions = self._find_positions()
        self._identity = self._describe(name, sglang.__version__)
        self._device_ids = self._find_devices()

    @property
    def engine(self) -> Any:
        """The ``sglang.Engine`` itself; None after :meth:`close`."""
        return self._handle

    def generate(self, batch: Batch) -> Generation:
        """Run the batch to its end; raises EngineError."""
        return self._run("generate", batch, AllAtOnce())

    def serve(self, batch: Batch, arrivals: Arrivals) -> Generation:
        """Run the batch with its prompts arriving as ``arrivals`` says; otherwise as :meth:`generate`."""
        return self._run("serve", batch, arrivals)

    def _shut_down(self, handle: Any) -> None:
        """Shut SGLang down, and with it every child process of this one."""
        handle.shutdown()
        multiprocessing.active_children()  # it kills them and leaves them zombies, which this takes note of

    def _abandon(self, handle: Any) -> None:
        with suppress(Exception):
            handle.tokenizer_manager.abort_request(abort_all=True)

    def _run(self, method: str, batch: Batch, arrivals: Arrivals) -> Generation:
        self._opened(method)
        check_batch(
            batch, engine=self.label, vocab_size=self._model.vocab_size, max_positions=self._positions
        )
        admission = Admission(arrivals, len(batch.prompts))
        prompts = [list(prompt) for prompt in batch.prompts]
        sampling = {"temperature": 0, "max_new_tokens": batch.new_tokens, "ignore_eos": True}
        responses = self._wait(run_admitted(admission, lambda index: self._stream(prompts[index], sampling)))
        for index, (trace, _, cached) in enumerate(responses):
            if (counted := trace.prompt_tokens + cached) != len(prompts[index]):
                raise EngineError(
                    f"SGLang: prompt {index} has {len(prompts[index])} tokens, and it counted {counted}"
                )
        token_ids = tuple(tuple(ids) for _, ids, _ in responses)
        check_counts(batch, token_ids, engine=self.label)
        steps = EstimatedSteps([trace for trace, _, _ in responses])
        tokens = with_cached(batch, (cached for _, _, cached in responses))
        return Generation(token_ids, tokens, steps, steps_exact=False)

    async def _stream(self, prompt: list[int], sampling: Mapping[str, Any]) -> tuple[Trace, list[int], int]:
        """One request: when its chunks came, the token ids of its response, and prompt tokens read from the cache."""
        sent_ns = time.monotonic_ns()
        chunks: list[tuple[int, int]] = []
        ids: list[int] = []
        tokens, meta = 0, {}
        stream = await self._handle.async_generate(
            input_ids=prompt, sampling_params=dict(sampling), stream=True
        )
        async for chunk in stream:
            arrived_ns, meta, new = time.monotonic_ns(), chunk["meta_info"], chunk.get("output_ids") or []
            now = int(meta.get("completion_tokens", tokens))
            # All ids so far, unless incremental_streaming_output is on.
            ids = new if len(new) >= now else [*ids, *new]
            if now > tokens:
                # A forward pass gives a response one token, unless it guesses ahead: several were waiting to be read.
                passes = 1 if self._args.get("speculative_algorithm") else now - tokens
                chunks += [(arrived_ns, (now - tokens) // passes)] * passes
            tokens = now
        reason = meta.get("finish_reason")
        if not isinstance(reason, Mapping) or reason.get("type") != "length":
            said = reason.get("message") if isinstance(reason, Mapping) else None
            raise EngineError(f"SGLang ended a request after {tokens} tokens: {said or reason}")
        cached = int(meta.get("cached_tokens") or 0)
        return Trace(sent_ns, int(meta["prompt_tokens"]) - cached, chunks), ids, cached

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the work on the engine's own event loop and return its result."""
        loop = self._handle.loop
        task = loop.create_task(work)
        try:
            with self._running():
                return loop.run_until_complete(task)  # type: ignore[no-any-return]
        except BaseException:
            task.cancel()
            with suppress(BaseException):
                loop.run_until_complete(task)
            raise

    def _describe(self, name: str, version: str) -> EngineIdentity:
        args = self._args
        return identity_of(
            "sglang",
            version,
            name,
            dtype=as_fact(self._model.dtype),
            quantization=as_fact(self._model.quantization),
            kv_cache_dtype=as_fact(args.get("kv_cache_dtype")) or "auto",
            tensor_parallel=args.get("tp_size", 1),
            pipeline_parallel=args.get("pp_size", 1),
            revision=args.get("revision"),
            dummy=args.get("load_format") == "dummy",
            facts={
                **{fact: args.get(fact) for fact in FACTS},
                **_graphs(args),
                "steps": "estimated from streamed chunks",
            },
        )

    def _find_positions(self) -> int:
        """Prompt and response together: SGLang's scheduler cuts a response to what it has room for, and says nothing.

        Its longest prompt is 5 tokens short of what a request may have, of which one is never generated.
        """
        longest_prompt = getattr(self._handle.tokenizer_manager, "max_req_input_len", None)
        context = int(self._model.context_len)
        return context if longest_prompt is None else min(context, int(longest_prompt) + 4)

    def _find_devices(self) -> tuple[str, ...] | None:
        args = self._args
        if str(args.get("device") or "cuda") == "cpu":
            return ()
        if str(args.get("device") or "cuda") != "cuda" or args.get("nnodes", 1) > 1 or args.get("use_ray"):
            return None
        # Attention data parallelism shares the tensor parallel ranks; plain data parallelism has its own, and is all
        # that dp_size is left with once there is attn_dp_size.
        shared = args.get("enable_dp_attention") and "attn_dp_size" not in args
        replicas = 1 if shared else args.get("dp_size") or 1
        count = args.get("tp_size", 1) * args.get("pp_size", 1) * replicas
        return gpus_in_order(count, first=args.get("base_gpu_id", 0), step=args.get("gpu_id_step", 1))


def _resolved(server_args: Any) -> Mapping[str, Any]:
    """Return the arguments with SGLang's choice of those left open; before 0.5.2x that is in the fields themselves."""
    resolve = getattr(server_args, "resolved_dict", None)
    return dict(resolve() if resolve is not None else vars(server_args))


def _graphs(args: Mapping[str, Any]) -> dict[str, Any]:
    """Tell what runs as CUDA graphs; ``disable_cuda_graph`` stays False where a backend without graphs was chosen."""
    config = args.get("cuda_graph_config")
    if config is None:
        return {"disable_cuda_graph": args.get("disable_cuda_graph")}
    return {f"cuda_graph_{phase}": _part(_part(config, phase), "backend") for phase in ("prefill", "decode")}


def _part(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
