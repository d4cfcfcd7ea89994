"""DeepSpeed-MII: the FastGen pipeline of ``mii.pipeline`` in this process, with every forward pass marked exactly."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from pytest_tokenpower.engines._adapter import (
    InProcessEngine,
    as_fact,
    check_batch,
    check_counts,
    check_steps,
    checkpoint_config,
    checkpoint_dtype,
    environment_kept,
    gpus_in_order,
    identity_of,
    needing,
)
from pytest_tokenpower.engines.protocol import EngineIdentity, Generation, Step
from pytest_tokenpower.errors import EngineError, UsageError
from pytest_tokenpower.workloads.base import Batch

_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables of a launcher for each of its processes; without one, MII sets them for a launch of one process. A process
started later would take them for a launcher's, and bind the port."""


class MiiEngine(InProcessEngine):
    """``mii.pipeline``: ``MiiEngine("folder or hub id", **fields of mii's ModelConfig)``, on one GPU.

    A pipeline takes texts and tokenizes them. This one is given a tokenizer for which a text is token ids written as
    numbers, so that prompts have the lengths that were asked for, responses come back as ids, and a model needs no
    tokenizer. Generation is greedy and runs through end-of-sequence; MII still sorts the logits of each step for its
    top-p filter, which it does not let a caller leave out.

    Steps are exact: the pipeline runs in this process, and each call of its ``generate`` is one forward pass that
    ends with its tokens on the host. FastGen composes passes of prompts and decodes (Dynamic SplitFuse), so that
    steps may be mixed.

    MII's ports, 29500 and 25555 by default, are free ones here, so that engines may stand side by side; give
    ``torch_dist_port`` or ``zmq_port_number`` for others.

    Its identity is read from the pipeline's ``ModelConfig`` and the configuration of the model that it loaded. It runs
    on the first visible GPU, or on the one that a launcher's LOCAL_RANK names.

    Written against deepspeed-mii 0.3.3 on DeepSpeed 0.19.8; docs/engines.md says where it was run.
    """

    label = "DeepSpeed-MII"
    failed = "the batch failed, and the engine is closed, since a pipeline cannot forget its requests"

    def _load(self, name: str, options: dict[str, Any]) -> None:
        ranks = options.get("tensor_parallel", int(os.environ.get("WORLD_SIZE", "1")))
        if ranks != 1:
            raise UsageError(
                f"MiiEngine(tensor_parallel={ranks}): a pipeline over several GPUs is one process for each under the "
                "deepspeed launcher, and a test is one process; use tensor_parallel=1, or another engine"
            )
        if "tokenizer" in options:
            raise UsageError(
                "MiiEngine(tokenizer=...): it has a tokenizer of its own, for which a text is token ids; give texts "
                "as a PromptSet, which the model's own tokenizer encodes"
            )
        self._steps: list[Step] = []
        with needing(self.label, "deepspeed-mii"):
            import mii
            from mii.modeling.tokenizers import MIITokenizerWrapper
        self._config = checkpoint_config(name)
        tokenizer = _id_tokenizer(MIITokenizerWrapper, int(self._config["vocab_size"]))
        given = {**(options.get("model_config") or {}), **options}
        ports = dict(zip(("torch_dist_port", "zmq_port_number"), _free_ports(2), strict=True))
        free = {each: port for each, port in ports.items() if each not in given}
        with environment_kept(*_RANK):
            self._handle = mii.pipeline(name, tokenizer=tokenizer, **free, **options)
        self._identity = self._describe(name, str(mii.__version__).strip())
        self._device_ids = gpus_in_order(1, first=int(os.environ.get("LOCAL_RANK", "0")))
        self._handle.generate = self._recorded(self._handle.generate)

    @property
    def pipeline(self) -> Any:
        """The ``MIIPipeline`` itself; None after :meth:`close`."""
        return self._handle

    def generate(self, batch: Batch) -> Generation:
        """Run the batch to its end; raises EngineError, also where the KV cache was too small for it."""
        pipeline = self._opened()
        check_batch(
            batch,
            engine=self.label,
            vocab_size=self._config.get("vocab_size"),
            max_positions=getattr(pipeline, "max_length", None),
        )
        self._steps.clear()
        texts = [" ".join(map(str, prompt)) for prompt in batch.prompts]
        with self._running():
            responses = pipeline(texts, max_new_tokens=batch.new_tokens, ignore_eos=True, do_sample=False)
        for index, (response, prompt) in enumerate(zip(responses, batch.prompts, strict=False)):
            if response.prompt_length != len(prompt) or response.generated_length != batch.new_tokens:
                raise EngineError(
                    f"DeepSpeed-MII: prompt {index} was {len(prompt)} tokens and {batch.new_tokens} were asked for, "
                    f"and it counted {response.prompt_length} and {response.generated_length}: it starts a request "
                    "anew with what it has where the KV cache is full, so give it fewer or shorter ones"
                )
        token_ids = tuple(tuple(map(int, response.generated_text.split())) for response in responses)
        check_counts(batch, token_ids, engine=self.label)
        steps = tuple(self._steps)
        check_steps(batch, steps, engine=self.label)
        return Generation(token_ids, batch.tokens, steps)

    def _abandon(self, handle: Any) -> None:
        self.close()

    def _shut_down(self, handle: Any) -> None:
        """Free the model and close the pipeline's socket."""
        vars(handle).pop("generate", None)
        # DeepSpeed keeps views of every engine's buffers, by the buffer, which so never goes.
        if (allocator := sys.modules.get("deepspeed.inference.v2.allocator")) is not None:
            allocator.Allocator.cache.clear()
        handle.destroy()

    def _recorded(self, generate: Callable[[], Any]) -> Callable[[], Any]:
        """``generate`` with a step noted for each call that runs a forward pass."""

        def recorded() -> Any:
            running = self._handle.scheduled_requests.requests_to_run
            # 0 while a prompt is worked on, also in parts.
            prompt = sum(len(each.input_tokens) for each in running if not each.num_generated_tokens)
            decoded = sum(1 for each in running if each.num_generated_tokens)
            start_ns = time.monotonic_ns()
            result = generate()
            if len(running):
                self._steps.append(Step(start_ns, time.monotonic_ns(), prompt, decoded))
            return result

        return recorded

    def _describe(self, name: str, version: str) -> EngineIdentity:
        config = self._handle.model_config
        engine = self._handle.inference_engine
        # MII itself reads the model's configuration from here.
        checkpoint = getattr(getattr(engine, "_policy", None), "_checkpoint_engine", None)
        loaded = getattr(checkpoint, "model_config", None)
        dtype = as_fact(getattr(loaded, "torch_dtype", None)) or checkpoint_dtype(self._config)
        manager = getattr(getattr(engine, "_config", None), "state_manager", None)
        return identity_of(
            "deepspeed-mii",
            version,
            name,
            dtype=dtype,
            quantization=as_fact(config.quantization_mode),
            kv_cache_dtype=dtype,
            tensor_parallel=config.tensor_parallel,
            facts={
                "max_length": getattr(self._handle, "max_length", None),
                "max_ragged_batch_size": getattr(manager, "max_ragged_batch_size", None),
                "max_ragged_sequence_count": getattr(manager, "max_ragged_sequence_count", None),
                # Half of the engine is there: the model, its kernels and the KV cache.
                "deepspeed": getattr(sys.modules.get("deepspeed"), "__version__", None),
            },
        )


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


def _id_tokenizer(base: type, vocab_size: int) -> Any:
    """Make a tokenizer for which ``"5 17 3"`` is the ids 5, 17 and 3, both ways.

    MII wraps it in its ``HFTokenizer``, which calls it as it does a tokenizer of transformers; hence ``__len__`` and
    ``return_tensors``.
    """

    class IdTokenizer(base):  # type: ignore[misc]
        eos_token_id = -1  # no token

        def __len__(self) -> int:
            return vocab_size

        @property
        def vocab_size(self) -> int:
            return vocab_size

        def encode(self, input: str, return_tensors: str = "pt") -> Any:
            import torch

            return torch.tensor([int(each) for each in input.split()])

        def decode(self, tokens: Any) -> str:
            return " ".join(map(str, tokens.tolist() if hasattr(tokens, "tolist") else tokens))

    return IdTokenizer(None)
