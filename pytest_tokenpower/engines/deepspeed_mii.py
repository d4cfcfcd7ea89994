"""DeepSpeed-MII: the FastGen pipeline of ``mii.pipeline`` in this process, with every forward pass marked exactly."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.engines._adapter import (
    as_fact,
    check_batch,
    check_counts,
    check_steps,
    checkpoint_config,
    checkpoint_dtype,
    gpus_in_order,
    missing_package,
)
from pytest_tokenpower.engines.protocol import EngineIdentity, Generation, Step
from pytest_tokenpower.errors import EngineError, UsageError
from pytest_tokenpower.models.checkpoint import model_name, require_model, weights_name, weights_note
from pytest_tokenpower.workloads.base import Batch
from pytest_tokenpower.workloads.tokenizers import tokenizer_of

_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher says to each of its processes; without one, MII sets them for a launch of one process."""


class MiiEngine:
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

    Written against deepspeed-mii 0.3.3 on DeepSpeed 0.19.8; docs/engines.md says where it was run.
    """

    def __init__(self, model: str | os.PathLike[str], **options: Any) -> None:
        name = require_model(model)
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
        self._pipeline: Any = None
        self._steps: list[Step] = []
        try:
            import mii
            from mii.modeling.tokenizers import MIITokenizerWrapper
        except ImportError as error:
            raise missing_package("DeepSpeed-MII", "deepspeed-mii", error) from error
        self._config = checkpoint_config(name)
        tokenizer = _id_tokenizer(MIITokenizerWrapper, int(self._config["vocab_size"]))
        given = {**(options.get("model_config") or {}), **options}
        ports = dict(zip(("torch_dist_port", "zmq_port_number"), _free_ports(2), strict=True))
        free = {each: port for each, port in ports.items() if each not in given}
        try:
            with _environment_restored(_RANK):
                self._pipeline = mii.pipeline(name, tokenizer=tokenizer, **free, **options)
            self._identity = self._describe(name, str(mii.__version__).strip())
            self._device_ids = gpus_in_order(1, first=int(os.environ.get("LOCAL_RANK", "0")))
            self._pipeline.generate = self._recorded(self._pipeline.generate)
        except Exception as error:  # asserts, pydantic's, torch's and its own among them
            self.close()
            raise EngineError(
                f"{name}: DeepSpeed-MII cannot load it: {type(error).__name__}: {error}"
            ) from error
        self.encode = tokenizer_of(name)

    @property
    def pipeline(self) -> Any:
        """The ``MIIPipeline`` itself; None after :meth:`close`."""
        return self._pipeline

    @property
    def identity(self) -> EngineIdentity:
        """Read from the pipeline's ``ModelConfig`` and the configuration of the model that it loaded."""
        return self._identity

    @property
    def device_ids(self) -> Sequence[str] | None:
        """NVML UUID of the GPU that it runs on, the first visible one; None where that cannot be known."""
        return self._device_ids

    def generate(self, batch: Batch) -> Generation:
        """Run the batch to its end; raises EngineError, also where the KV cache was too small for it."""
        if self._pipeline is None:
            raise EngineError(f"DeepSpeed-MII engine of {self._identity.model}: generate() after close()")
        check_batch(
            batch,
            engine="DeepSpeed-MII",
            vocab_size=self._config.get("vocab_size"),
            max_positions=getattr(self._pipeline, "max_length", None),
        )
        self._steps.clear()
        texts = [" ".join(map(str, prompt)) for prompt in batch.prompts]
        try:
            responses = self._pipeline(
                texts, max_new_tokens=batch.new_tokens, ignore_eos=True, do_sample=False
            )
        except BaseException as error:
            self.close()
            if not isinstance(error, Exception):
                raise
            raise EngineError(
                f"DeepSpeed-MII, {self._identity.model}: the batch failed, and the engine is closed, since a pipeline "
                f"cannot forget its requests: {type(error).__name__}: {error}"
            ) from error
        for index, (response, prompt) in enumerate(zip(responses, batch.prompts, strict=False)):
            if response.prompt_length != len(prompt) or response.generated_length != batch.new_tokens:
                raise EngineError(
                    f"DeepSpeed-MII: prompt {index} was {len(prompt)} tokens and {batch.new_tokens} were asked for, "
                    f"and it counted {response.prompt_length} and {response.generated_length}: it starts a request "
                    "anew with what it has where the KV cache is full, so give it fewer or shorter ones"
                )
        token_ids = tuple(tuple(map(int, response.generated_text.split())) for response in responses)
        check_counts(batch, token_ids, engine="DeepSpeed-MII")
        steps = tuple(self._steps)
        check_steps(batch, steps, engine="DeepSpeed-MII")
        return Generation(token_ids, batch.tokens, steps)

    def close(self) -> None:
        """Free the model and close the pipeline's socket; safe to call twice."""
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            vars(pipeline).pop("generate", None)
            # DeepSpeed keeps views of every engine's buffers, by the buffer, which so never goes.
            if (allocator := sys.modules.get("deepspeed.inference.v2.allocator")) is not None:
                allocator.Allocator.cache.clear()
            pipeline.destroy()

    def _recorded(self, generate: Callable[[], Any]) -> Callable[[], Any]:
        """``generate`` with a step noted for each call that runs a forward pass."""

        def recorded() -> Any:
            running = self._pipeline.scheduled_requests.requests_to_run
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
        config = self._pipeline.model_config
        engine = self._pipeline.inference_engine
        # MII itself reads the model's configuration from here.
        checkpoint = getattr(getattr(engine, "_policy", None), "_checkpoint_engine", None)
        loaded = getattr(checkpoint, "model_config", None)
        dtype = as_fact(getattr(loaded, "torch_dtype", None)) or checkpoint_dtype(self._config)
        axes: dict[str, Fact] = {
            "dtype": dtype,
            "quantization": as_fact(config.quantization_mode),
            "kv_cache_dtype": dtype,
            "tensor_parallel": config.tensor_parallel,
            "pipeline_parallel": 1,
            "weights": weights_name(name),
        }
        facts: dict[str, Fact] = {"max_length": as_fact(getattr(self._pipeline, "max_length", None))}
        manager = getattr(getattr(engine, "_config", None), "state_manager", None)
        for fact in ("max_ragged_batch_size", "max_ragged_sequence_count"):
            facts[fact] = as_fact(getattr(manager, fact, None))
        # Half of the engine is there: the model, its kernels and the KV cache.
        if (deepspeed := sys.modules.get("deepspeed")) is not None:
            facts["deepspeed"] = as_fact(deepspeed.__version__)
        if (note := weights_note(name)) is not None:
            facts["weights_note"] = note
        return EngineIdentity("deepspeed-mii", version, model_name(name), axes, facts)


@contextmanager
def _environment_restored(names: Sequence[str]) -> Iterator[None]:
    """These variables as they were: a process started later would take them for a launcher's, and bind the port."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


def _id_tokenizer(base: type, vocab_size: int) -> Any:
    """A tokenizer for which ``"5 17 3"`` is the ids 5, 17 and 3, both ways.

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
