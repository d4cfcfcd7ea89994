"""A workload on an engine, as the callable that is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.engines.protocol import Engine, EngineIdentity, Generation, Serving
from pytest_tokenpower.errors import TokenCountError, UsageError
from pytest_tokenpower.workloads.arrivals import AllAtOnce, Arrivals
from pytest_tokenpower.workloads.base import Batch, GivenBatch, Workload


class Execution:
    """Runs a workload once on each call, and makes sure that the engine did all of it.

    Everything that can be made ready is: the tokens are encoded, the arrivals are drawn. Raises UsageError where
    the engine cannot take requests as they arrive.
    """

    def __init__(self, engine: Engine, workload: Workload | Batch) -> None:
        if isinstance(workload, Batch):
            workload = GivenBatch(workload.prompts, workload.new_tokens)
        if not isinstance(workload, Workload):
            raise UsageError(
                f"the workload is {type(workload).__name__}: give FixedShape, PromptSet or GivenBatch of "
                "pytest_tokenpower.workloads, or a Batch"
            )
        if not isinstance(engine, Engine):
            raise UsageError(
                f"the engine is {type(engine).__name__}: give an adapter of pytest_tokenpower.engines, an EngineSpec, "
                "or an object with identity, device_ids, generate(batch) and close()"
            )
        self._engine = engine
        encode = None if workload.tokenized else getattr(engine, "encode", None)
        self.batch = workload.to_batch(encode)
        self.fingerprint = workload.fingerprint
        if not workload.tokenized and encode is None:
            self.fingerprint += "-bytes"
        self._run: Callable[[], Generation] = partial(engine.generate, self.batch)
        if not isinstance(workload.arrivals, Arrivals):
            raise UsageError(
                f"{type(workload).__name__}(arrivals={workload.arrivals!r}): give AllAtOnce(), "
                "Concurrency(requests=...) or Poisson(per_second=...)"
            )
        if not isinstance(workload.arrivals, AllAtOnce):
            if not isinstance(engine, Serving):
                raise UsageError(
                    f"the {engine.identity.engine} engine takes whole batches, and {workload.arrivals} needs one that "
                    "takes requests as they come (a serve method): use such an engine, or arrivals=AllAtOnce()"
                )
            self._run = partial(engine.serve, self.batch, workload.arrivals)

    @property
    def identity(self) -> EngineIdentity:
        """Identity that the engine gives."""
        return self._engine.identity

    @property
    def device_ids(self) -> Sequence[str] | None:
        """The GPUs that the engine says it uses."""
        return self._engine.device_ids

    @property
    def remote_host(self) -> str | None:
        """The other machine that the engine runs on; None for this one, and where the engine says nothing of it."""
        host: str | None = getattr(self._engine, "remote_host", None)
        return host

    def __call__(self) -> Generation:
        """Run it; raises EngineError, and TokenCountError where the engine did less or more than was asked for."""
        __tracebackhide__ = True
        generation = self._run()
        asked = self.batch.tokens
        ids = sum(map(len, generation.token_ids))
        given = (ids, len(generation.token_ids))
        # An engine that gives no ids has counted the tokens of each response itself.
        reported = replace(generation.tokens, cached_prompt=0)
        if reported != asked or given not in (
            (asked.generated, asked.responses),
            (0, 0),
        ):
            with_ids = f", with {ids} token ids in {given[1]} responses" if given[1] else ""
            raise TokenCountError(
                f"the {self.identity.engine} engine was asked for {_said(asked)}, and reports "
                f"{_said(generation.tokens)}{with_ids}"
            )
        return generation


def _said(tokens: TokenCount) -> str:
    return f"{tokens.prompt} prompt and {tokens.generated} generated tokens in {tokens.responses} responses"
