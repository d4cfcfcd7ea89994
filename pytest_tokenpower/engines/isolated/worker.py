"""The child of IsolatedEngine: loads an engine, then answers requests over a pipe until it is told to end.

COMMAND is run by ``python -c`` with two file descriptors, of the connection and of the lifeline. What is sent first is
the parent's ``sys.path``, then a Start. Everything that is printed goes to the log that is standard output.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from pytest_tokenpower.core.subprocesses import end_with_parent, kill_group
from pytest_tokenpower.engines.protocol import Engine, EngineIdentity, Generation
from pytest_tokenpower.engines.registry import start
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.workloads.base import Batch


@dataclass(frozen=True)
class Start:
    """Which engine to load: ``module:name`` of its factory, the model, its options, and what a test calls it."""

    engine: str
    model: str
    options: Mapping[str, Any]
    called: str


@dataclass(frozen=True)
class Ready:
    """The engine is loaded; ``abilities`` are the names of the optional methods that it has."""

    identity: EngineIdentity
    device_ids: tuple[str, ...] | None
    abilities: frozenset[str]


@dataclass(frozen=True)
class Request:
    """Call a method with a batch, which is sent once and then meant by its number, and further arguments."""

    method: str
    number: int = 0
    batch: Batch | None = None
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Failure:
    """An exception: the name of its class, its text, and whether it tells of another error, the engine's own."""

    error: str
    text: str
    caused: bool = False


COMMAND = "from pytest_tokenpower.engines.isolated.worker import main; main()"
"""Not ``-m``: what an engine spawns would run the main module again."""

ABILITIES = frozenset({"serve", "encode", "decode", "log_likelihoods"})


def main() -> None:
    """Serve one engine."""
    connection = Connection(int(sys.argv[1]))
    end_with_parent(int(sys.argv[2]))
    sys.path[:] = connection.recv()
    engine: Engine | None = None
    try:
        what: Start = connection.recv()
        engine = start(what.engine, what.model, what.options, called=what.called)
        devices = engine.device_ids
        able = frozenset(name for name in ABILITIES if callable(getattr(engine, name, None)))
        connection.send(Ready(engine.identity, None if devices is None else tuple(devices), able))
        _serve(connection, engine)
    except EOFError:
        kill_group()  # the parent is gone
    except BaseException as error:
        _send_failure(connection, error)
    finally:
        if engine is not None:
            engine.close()


def _serve(connection: Connection, engine: Engine) -> None:
    batches: dict[int, Batch] = {}
    while True:
        request: Request = connection.recv()
        if request.method == "close":
            return
        try:
            connection.send(_answer(request, engine, batches))
        except EOFError:
            raise
        except BaseException as error:
            _send_failure(connection, error)


def _answer(request: Request, engine: Engine, batches: dict[int, Batch]) -> object:
    method: Callable[..., object] = getattr(engine, request.method)
    if request.number == 0:
        return method(*request.arguments)
    if request.batch is not None:
        # An adapter keeps what it has made ready of a batch for as long as it is the same object.
        batches.clear()
        batches[request.number] = request.batch
    result = method(batches[request.number], *request.arguments)
    if isinstance(result, Generation):
        if result.unsound is not None:
            raise UsageError(
                "its Generation has `unsound`, which only its own process can be asked: isolated=False"
            )
        # Marks may be worked out as they are read, and travel as what they are.
        return replace(
            result,
            token_ids=tuple(tuple(ids) for ids in result.token_ids),
            steps=tuple(result.steps),
            latencies=tuple(result.latencies),
        )
    return result


def _send_failure(connection: Connection, error: BaseException) -> None:
    traceback.print_exception(error)
    sys.stderr.flush()
    with contextlib.suppress(OSError):
        caused = error.__cause__ is not None and not isinstance(error.__cause__, ImportError)
        connection.send(Failure(type(error).__name__, str(error), caused))
