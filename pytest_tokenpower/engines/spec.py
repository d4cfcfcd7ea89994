"""EngineSpec: an engine that is not there yet, as a value that starts it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pytest_tokenpower.engines.execution import Execution
from pytest_tokenpower.engines.isolated.engine import IsolatedEngine
from pytest_tokenpower.engines.protocol import Engine, Generation, Timeouts
from pytest_tokenpower.engines.registry import SERVERS, reference, start
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.workloads.base import Batch, Workload


@dataclass(frozen=True, init=False)
class EngineSpec:
    """``EngineSpec("vllm", "path or hub id", dtype="bfloat16", ...)``: which engine, model and options of the engine.

    ``engine`` is a name of ``registry.ENGINES``, or ``module:name`` of one's own factory. With ``isolated`` (the
    default) it runs in a subprocess of its own, with ``env`` added to its environment and held to ``timeouts``; what
    it leaves on the GPU ends with that process. The engines of ``registry.SERVERS`` are processes of their own as they
    are. Raises UsageError for an unknown engine, and for arguments of the wrong kind.
    """

    engine: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    isolated: bool = True
    timeouts: Timeouts = field(default_factory=Timeouts)
    env: Mapping[str, str] = field(default_factory=dict)

    def __init__(
        self,
        engine: str,
        model: str | os.PathLike[str],
        *,
        isolated: bool = True,
        timeouts: Timeouts | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        reference(engine)
        if not isinstance(model, str | os.PathLike):
            raise UsageError(f"EngineSpec({engine!r}, {model!r}): the model is a folder or a hub id")
        if timeouts is not None and not isinstance(timeouts, Timeouts):
            raise UsageError(
                f"EngineSpec({engine!r}, ..., timeouts={timeouts!r}): give Timeouts(start_s=..., batch_s=..., "
                "close_s=...) of pytest_tokenpower.engines"
            )
        if not all(isinstance(each, str) for pair in dict(env or {}).items() for each in pair):
            raise UsageError(
                f"EngineSpec({engine!r}, ..., env={env!r}): names and values of the environment are text"
            )
        vars(self).update(
            engine=engine,
            model=os.fspath(model),
            options=options,
            isolated=isolated,
            timeouts=timeouts or Timeouts(),
            env=dict(env or {}),
        )

    def load(self) -> Engine:
        """Start the engine with its model loaded; the caller closes it. Raises EngineError or UsageError."""
        if self.engine in SERVERS:
            return start(
                self.engine, self.model, {"timeouts": self.timeouts, "env": self.env, **self.options}
            )
        if self.isolated:
            return IsolatedEngine(
                self.engine, self.model, timeouts=self.timeouts, env=self.env, **self.options
            )
        return start(self.engine, self.model, self.options)

    @contextmanager
    def start(self) -> Iterator[Engine]:
        """Start the engine, and close it at the end of the block."""
        engine = self.load()
        try:
            yield engine
        finally:
            engine.close()

    def workload(self, workload: Workload | Batch) -> SpecWorkload:
        """Put a workload on this engine, for ``energy.compare``: each restart starts the engine anew."""
        return SpecWorkload(self, workload)


@dataclass(frozen=True)
class SpecWorkload:
    """An engine and what it is to do; a ``variants.Startable``."""

    spec: EngineSpec
    work: Workload | Batch

    @contextmanager
    def start(self) -> Iterator[Callable[[], Generation]]:
        """Start the engine; the context gives what runs the workload once."""
        with self.spec.start() as engine:
            yield Execution(engine, self.work)
