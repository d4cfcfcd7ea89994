"""Stand-in for DeepSpeed-MII 0.3.3: ``pipeline`` of mii/api.py with ``ModelConfig`` and ``GenerateParamsConfig``
(mii/config.py), ``MIIPipeline`` (mii/batching/ragged_batching.py), ``Response`` and ``Request``
(mii/batching/data_classes.py) and the tokenizers of mii/modeling/tokenizers.py.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from mii.modeling.tokenizers import HFTokenizer

from tests.support.standins.core import STEP_S, Core, config_of

__version__ = "0.3.3 "

MODEL_CONFIG: dict[str, Any] = {
    "tokenizer": None,
    "task": "text-generation",
    "tensor_parallel": 1,
    "quantization_mode": None,
    "inference_engine_config": {},
    "torch_dist_port": 29500,
    "zmq_port_number": 25555,
    "replica_num": 1,
    "replica_configs": [],
    "device_map": "auto",
    "max_length": None,
    "sync_debug": False,
    "profile_model_time": False,
}
GENERATE_PARAMS: dict[str, Any] = {
    "max_length": 1024,
    "max_new_tokens": None,
    "min_new_tokens": 0,
    "stream": False,
    "ignore_eos": False,
    "return_full_text": False,
    "do_sample": True,
    "top_p": 0.9,
    "top_k": None,
    "temperature": None,
    "stop": [],
}
BOUND: set[int] = set()
"""Ports of the pipelines that are not destroyed; the real ones bind theirs with zmq."""


class UnknownArgument(Exception):
    pass


@dataclass
class Response:
    generated_text: str
    prompt_length: int
    generated_length: int
    finish_reason: str


@dataclass(frozen=True)
class Request:
    """The part of a request that is in the next pass."""

    input_tokens: list[int]
    prompt_length: int
    seq_length: int

    @property
    def num_generated_tokens(self) -> int:
        return self.seq_length - self.prompt_length + 1 if self.seq_length >= self.prompt_length else 0


class MIIPipeline:
    def __init__(
        self, inference_engine: Any, tokenizer: HFTokenizer, model_config: Any, all_rank_output: bool = False
    ) -> None:
        self.inference_engine = inference_engine
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.model_config = model_config
        stored = inference_engine._policy._checkpoint_engine.model_config
        self.max_length = model_config.max_length or stored.max_seq_length
        self.core = Core(budget=inference_engine._config.state_manager.max_ragged_batch_size)
        self.scheduled_requests = SimpleNamespace(requests_to_run=[])
        self.forget_after: int | None = None
        self._destroyed = False
        if model_config.zmq_port_number in BOUND:
            raise RuntimeError(f"Address already in use (addr='tcp://*:{model_config.zmq_port_number}')")
        BOUND.add(model_config.zmq_port_number)

    def __call__(self, prompts: str | list[str], **generate_kwargs: Any) -> list[Response]:
        if self._destroyed:
            raise RuntimeError("The inference engine of this pipeline has been destroyed.")
        unknown = set(generate_kwargs) - set(GENERATE_PARAMS)
        if unknown:
            raise ValueError(f"{sorted(unknown)}: Extra inputs are not permitted")
        asked = GENERATE_PARAMS | {"max_length": self.max_length} | generate_kwargs
        numbers = []
        for text in [prompts] if isinstance(prompts, str) else prompts:
            tokens = self.tokenizer.encode(text)
            assert asked["max_length"] > len(tokens), "max_length must be greater than prompt_length"
            wanted = asked["max_new_tokens"] or asked["max_length"] - len(tokens)
            wanted = wanted if asked["ignore_eos"] else min(wanted, 2)
            numbers.append(self.core.submit(tokens.tolist(), wanted, greedy=not asked["do_sample"]))
        while self.core.busy:
            self.generate()
        self.generate()  # which flushes the last
        return [self._response(number) for number in numbers]

    def generate(self) -> None:
        """One pass over what was scheduled at the end of the one before: nothing at the first."""
        if self.scheduled_requests.requests_to_run:
            time.sleep(STEP_S)
            self.core.step()
        # What the stub's scheduler will take, which runs those that have begun first.
        left, chosen = self.core.budget, []
        for each in sorted(self.core.scheduler.requests, key=lambda each: not each.computed):
            if part := min(left, each.missing):
                left -= part
                tokens = [*each.prompt, *each.outputs][each.computed : each.computed + part]
                chosen.append(Request(tokens, len(each.prompt), each.computed))
        self.scheduled_requests = SimpleNamespace(requests_to_run=chosen)

    def _response(self, number: str) -> Response:
        request = self.core.requests[number]
        text = self.tokenizer.decode(request.outputs)
        lost = self.forget_after or 0  # tokens that became a part of the prompt when the cache was full
        return Response(text, len(request.prompt) + lost, len(request.outputs) - lost, "length")

    def destroy(self) -> None:
        del self.inference_engine
        BOUND.discard(self.model_config.zmq_port_number)
        self._destroyed = True


def pipeline(
    model_name_or_path: str = "",
    model_config: dict[str, Any] | None = None,
    all_rank_output: bool = False,
    **kwargs: Any,
) -> MIIPipeline:
    unknown = set(kwargs) - set(MODEL_CONFIG)
    if unknown:
        raise UnknownArgument(f"Keyword argument(s) {sorted(unknown)} not recognized")
    for name in set(model_config or {}) & set(kwargs):
        assert (model_config or {})[name] == kwargs[name], f"{name} in model_config must match {name}"
    given = {"model_name_or_path": model_name_or_path} | (model_config or {}) | kwargs
    config = SimpleNamespace(**(MODEL_CONFIG | given))
    assert config.tensor_parallel == 1, "Attempting to run with TP > 1 and not using a distributed launcher"
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"} <= set(os.environ):
        # What init_distributed of mii/utils.py sets, and leaves.
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
        os.environ["MASTER_PORT"] = str(config.torch_dist_port)
    stored = config_of(model_name_or_path)
    manager = {"max_ragged_batch_size": 768, "max_ragged_sequence_count": 512}
    manager |= config.inference_engine_config.get("state_manager", {})
    engine = SimpleNamespace(
        _config=SimpleNamespace(state_manager=SimpleNamespace(**manager)),
        _policy=SimpleNamespace(
            _checkpoint_engine=SimpleNamespace(
                model_config=SimpleNamespace(
                    torch_dtype=f"torch.{stored['torch_dtype']}",
                    max_seq_length=stored["max_position_embeddings"],
                )
            )
        ),
    )
    return MIIPipeline(engine, HFTokenizer(config.tokenizer or model_name_or_path), config, all_rank_output)
