"""An engine in pure Python: a scheduler shaped like vLLM's, with a token budget and preemptions, and no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

from pytest_tokenpower.engines._adapter import check_batch, check_counts, check_steps
from pytest_tokenpower.engines.protocol import EngineIdentity, Generation
from pytest_tokenpower.engines.vllm.steps import StepRecorder
from pytest_tokenpower.errors import EngineError
from pytest_tokenpower.workloads.base import Batch

VOCAB = 512


@dataclass
class Request:
    req_id: str
    prompt: Sequence[int]
    new_tokens: int
    computed: int = 0
    outputs: list[int] = field(default_factory=list)
    seen: bool = False

    @property
    def missing(self) -> int:
        """Positions that must be computed before the next token can be sampled."""
        return len(self.prompt) + len(self.outputs) - self.computed


@dataclass(frozen=True)
class Cached:
    """vLLM's ``CachedRequestData``, as far as it is read."""

    req_ids: list[str]
    num_computed_tokens: list[int]
    num_output_tokens: list[int]
    resumed_req_ids: set[str]

    def is_context_phase(self, req_id: str) -> bool:
        return self.num_output_tokens[self.req_ids.index(req_id)] == 0


@dataclass(frozen=True)
class Scheduled:
    """vLLM's ``SchedulerOutput``, as far as it is read."""

    scheduled_new_reqs: list[SimpleNamespace]
    scheduled_cached_reqs: Cached
    num_scheduled_tokens: Mapping[str, int]


class FakeScheduler:
    """Chunked prefill under a budget of tokens a step; ``preempt_at`` names the steps before which the last
    running request loses its cache. ``truth`` is what each step did: prompt positions that were computed for the
    first time, and tokens sampled after a response's first.
    """

    def __init__(self, budget: int, preempt_at: Sequence[int] = ()) -> None:
        self.budget = budget
        self.preempt_at = frozenset(preempt_at)
        self.requests: list[Request] = []
        self.truth: list[tuple[int, int]] = []
        self.preempted = 0
        self._positions: set[tuple[str, int]] = set()

    def schedule(self) -> Scheduled:
        running = [request for request in self.requests if request.computed]
        if len(self.truth) in self.preempt_at and running:
            running[-1].computed = 0
            self.preempted += 1
        new: list[SimpleNamespace] = []
        cached: list[Request] = []
        counts: dict[str, int] = {}
        left = self.budget
        # Those that run come first, as in vLLM.
        for request in sorted(self.requests, key=lambda request: not request.computed):
            if left and request.missing:
                counts[request.req_id] = min(left, request.missing)
                left -= counts[request.req_id]
                if request.seen:
                    cached.append(request)
                else:
                    new.append(SimpleNamespace(req_id=request.req_id, num_computed_tokens=0))
                request.seen = True
        return Scheduled(
            new,
            Cached(
                [request.req_id for request in cached],
                [request.computed for request in cached],
                [len(request.outputs) for request in cached],
                {request.req_id for request in cached if not request.computed},
            ),
            counts,
        )

    def update_from_output(self, scheduled: Scheduled, _sampled: object) -> dict[int, SimpleNamespace]:
        first_time = decoded = 0
        outputs = []
        for request in list(self.requests):
            count = scheduled.num_scheduled_tokens.get(request.req_id, 0)
            if not count:
                continue
            for position in range(request.computed, request.computed + count):
                if position < len(request.prompt) and (request.req_id, position) not in self._positions:
                    self._positions.add((request.req_id, position))
                    first_time += 1
            request.computed += count
            tokens = []
            if not request.missing:
                tokens = [(sum(request.prompt) * 31 + 7 * sum(request.outputs) + count) % VOCAB]
                decoded += bool(request.outputs)
                request.outputs += tokens
                if len(request.outputs) == request.new_tokens:
                    self.requests.remove(request)
            outputs.append(SimpleNamespace(request_id=request.req_id, new_token_ids=tokens))
        self.truth.append((first_time, decoded))
        return {0: SimpleNamespace(outputs=outputs)}


class StubEngine:
    """The protocol over :class:`FakeScheduler`, with the step recorder of the vLLM adapter."""

    device_ids: Sequence[str] | None = ()

    def __init__(self, budget: int = 64, preempt_at: Sequence[int] = ()) -> None:
        self.scheduler = FakeScheduler(budget, preempt_at)
        self._recorder = StepRecorder(self.scheduler)
        self._open = True

    @property
    def identity(self) -> EngineIdentity:
        axes = {
            "dtype": "float32",
            "quantization": None,
            "kv_cache_dtype": "float32",
            "tensor_parallel": 1,
            "pipeline_parallel": 1,
            "weights": "none",
        }
        return EngineIdentity("stub", "1.0", "tiny", axes)

    def generate(self, batch: Batch) -> Generation:
        if not self._open:
            raise EngineError("stub: generate() after close()")
        check_batch(batch, engine="stub", vocab_size=VOCAB, max_positions=2048)
        requests = [
            Request(str(index), prompt, batch.new_tokens) for index, prompt in enumerate(batch.prompts)
        ]
        self.scheduler.__init__(self.scheduler.budget, self.scheduler.preempt_at)  # type: ignore[misc]
        self.scheduler.requests = list(requests)
        while self.scheduler.requests:
            self.scheduler.update_from_output(self.scheduler.schedule(), None)
        steps, exact = self._recorder.take()
        token_ids = [request.outputs for request in requests]
        check_counts(batch, token_ids, engine="stub")
        check_steps(batch, steps, engine="stub")
        return Generation(token_ids, batch.tokens, steps, exact)

    def close(self) -> None:
        self._open = False


def labels(generation: Generation) -> Iterator[tuple[int, int]]:
    """Prompt and generated tokens of each step."""
    return ((step.prompt_tokens, step.generated_tokens) for step in generation.steps)
