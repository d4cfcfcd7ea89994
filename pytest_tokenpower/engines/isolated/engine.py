"""An engine in a subprocess of its own, so that several configurations fit into one test run, one after the other."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from pytest_tokenpower.core import progress
from pytest_tokenpower.core.files import scratch_prefix
from pytest_tokenpower.core.subprocesses import ProcessGroup, inherited_path
from pytest_tokenpower.engines._adapter import require_batch
from pytest_tokenpower.engines.isolated.worker import COMMAND, Failure, Ready, Request, Start
from pytest_tokenpower.engines.protocol import EngineIdentity, Generation, Timeouts
from pytest_tokenpower.engines.registry import reference
from pytest_tokenpower.errors import (
    EngineError,
    MeterUnavailable,
    TokenCountError,
    TokenPowerError,
    UsageError,
)
from pytest_tokenpower.workloads.base import Batch

T = TypeVar("T")

PROGRESS_S = 5.0

_KNOWN = {error.__name__: error for error in (EngineError, UsageError, TokenCountError, MeterUnavailable)}


class IsolatedEngine:
    """The engine protocol over a pipe to a process that loads ``engine`` (a name, or ``module:name``) with ``model``.

    Constructing it waits until the model is loaded and says how long that takes. A child that crashes, or does not
    answer in time, is an EngineError with the end of its log, and is gone by then with all that it had started.
    Steps are marked by the same monotonic clock as here, which all processes of a host share.
    """

    def __init__(
        self,
        engine: str,
        model: str | os.PathLike[str],
        *,
        timeouts: Timeouts | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        factory = reference(engine)
        self._timeouts = timeouts or Timeouts()
        self._name = f"{engine} engine of {Path(model).name}"
        self._folder = Path(tempfile.mkdtemp(prefix=scratch_prefix("engine")))
        self._batch: Batch | None = None
        self._number = 0
        self._log_at = 0
        self._log_named = False
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        try:
            self._group = ProcessGroup(
                [sys.executable, "-c", COMMAND, str(theirs.fileno()), str(lifeline)],
                log=self._folder / "log.txt",
                pass_fds=(theirs.fileno(), lifeline),
                env={**os.environ, "PYTHONPATH": inherited_path(), "PYTHONUNBUFFERED": "1", **(env or {})},
            )
        except OSError as error:
            ours.close()
            os.close(self._lifeline)
            raise EngineError(f"{self._name}: its process cannot be started: {error}") from error
        finally:
            theirs.close()
            os.close(lifeline)
        self._connection: Connection | None = Connection(ours.detach())
        try:
            self._send([path or os.getcwd() for path in sys.path])
            self._send(Start(factory, os.fspath(model), options, engine))
            ready = self._receive(Ready, self._timeouts.start_s, "loading")
        except BaseException:
            self._abandon()
            self._clear()
            raise
        self._ready = ready
        # Present only where the engine itself has them.
        if "serve" in ready.abilities:
            self.serve = self._serve
        if "encode" in ready.abilities:
            self.encode = self._encode
        if "decode" in ready.abilities:
            self.decode = self._decode
        if "log_likelihoods" in ready.abilities:
            self.log_likelihoods = self._log_likelihoods

    @property
    def identity(self) -> EngineIdentity:
        """Identity that the engine in the child gives."""
        return self._ready.identity

    @property
    def device_ids(self) -> Sequence[str] | None:
        """GPUs that the engine in the child names."""
        return self._ready.device_ids

    @property
    def pid(self) -> int:
        """The child, which leads the process group of all that it starts."""
        return self._group.pid

    def generate(self, batch: Batch) -> Generation:
        """Run the batch in the child; raises EngineError, after a crash or a hang too."""
        return self._call(Generation, "generate", batch)

    def close(self) -> None:
        """End the child, by force where it does not follow, and all that it has started; safe to call twice."""
        if self._connection is None:
            return
        try:
            self._send(Request("close"))
        except EngineError:
            return
        self._release(self._timeouts.close_s)
        self._clear()

    def _serve(self, batch: Batch, arrivals: Any) -> Generation:
        return self._call(Generation, "serve", batch, arrivals)

    def _encode(self, text: str) -> list[int]:
        return self._ask(list, "encode", text, "tokenizing")

    def _decode(self, ids: Sequence[int]) -> str:
        return self._ask(str, "decode", list(ids), "reading an answer")

    def _log_likelihoods(self, ids: Sequence[int]) -> list[float]:
        return self._ask(list, "log_likelihoods", list(ids), "scoring a text")

    def _ask(self, kind: type[T], method: str, argument: object, what: str) -> T:
        self._check_open(method)
        with self._exchange():
            self._send(Request(method, arguments=(argument,)))
            return self._receive(kind, self._timeouts.batch_s, what)

    def _call(self, kind: type[T], method: str, batch: Batch, *arguments: object) -> T:
        require_batch(batch)
        self._check_open(method)
        known = batch is self._batch
        if not known:
            self._batch, self._number = batch, self._number + 1
        with self._exchange():
            self._send(Request(method, self._number, None if known else batch, arguments))
            return self._receive(kind, self._timeouts.batch_s, "a batch")

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """End the child where the wait for it is interrupted (Ctrl-C, a timeout of somebody else's).

        It would finish its batch, and the next request would be given that answer for its own.
        """
        with suppress(OSError):
            self._log_at = self._group.log.stat().st_size
        try:
            yield
        except TokenPowerError:
            self._batch = None  # whether it has arrived is not known
            raise
        except BaseException:
            self._abandon()
            self._clear()
            raise

    def _check_open(self, method: str) -> None:
        if self._connection is None:
            raise EngineError(
                f"{self._name}: {method}() after close(), or after its process ended or was interrupted"
            )

    def _send(self, message: object) -> None:
        assert self._connection is not None
        try:
            self._connection.send(message)
        except OSError:
            raise self._ended("between two batches") from None
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            # Pickled as a whole before the first byte is sent.
            raise UsageError(
                f"{self._name}: what it is given cannot be sent to its process: {error}; give options and arrivals "
                "that pickle, or isolated=False"
            ) from None

    def _receive(self, kind: type[T], timeout_s: float, what: str) -> T:
        assert self._connection is not None
        began = time.monotonic()
        loading = kind is Ready
        while True:
            seconds = time.monotonic() - began
            left = timeout_s - seconds
            try:
                if self._connection.poll(max(min(left, PROGRESS_S), 0.0)):
                    answer = self._connection.recv()
                    break
            except (EOFError, OSError):
                raise self._ended(what if loading else f"during {what}") from None
            if left <= 0:
                tail = self._group.tail()
                self._abandon()
                raise EngineError(
                    f"{self._name}: {what} took more than {timeout_s:g} s, so it was ended (process {self.pid}); "
                    f"timeouts=Timeouts({'start_s' if loading else 'batch_s'}=...) gives it longer.{self._log(tail)}"
                )
            if loading:
                progress.report_progress(f"{self._name}: loading ... {time.monotonic() - began:.0f} s")
        if isinstance(answer, Failure):
            raise self._failed(answer, loading=loading)
        if not isinstance(answer, kind):
            self._abandon()
            raise EngineError(f"{self._name}: answered {what} with a {type(answer).__name__}")
        if loading:
            progress.report_progress(f"{self._name}: loaded in {time.monotonic() - began:.0f} s")
        return answer

    def _failed(self, failure: Failure, *, loading: bool) -> Exception:
        known = _KNOWN.get(failure.error)
        if known is not None:
            # Of a process of its own an engine says only that it failed: "see above".
            causes = self._group.raised(self._log_at, failure.text) if failure.caused else []
            if causes:
                self._log_named = True
                return known("\n  ".join([failure.text, f"In its log ({self._group.log}):", *causes]))
            in_batch = failure.caused and not loading
            return known(failure.text + (self._log(self._group.tail()) if in_batch else ""))
        when = "could not be loaded" if loading else "failed in a batch"
        # It said so itself; its log has the traceback.
        return EngineError(
            f"{self._name} {when}: {failure.error}: {failure.text}{self._log(self._group.tail())}"
        )

    def _ended(self, when: str) -> EngineError:
        how = self._abandon()
        return EngineError(
            f"{self._name}: its process {self.pid} ended ({how}) {'while ' if when == 'loading' else ''}{when}."
            f"{self._log(self._group.tail())}"
        )

    def _clear(self) -> None:
        """Remove the log, unless a reader was sent to it."""
        if not self._log_named:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _log(self, tail: str) -> str:
        self._log_named = True
        return f"\nThe end of its log ({self._group.log}):\n{tail}"

    def _abandon(self) -> str:
        """Kill the child and its descendants; the log stays for now."""
        return self._release(0.5)

    def _release(self, patience_s: float) -> str:
        if self._connection is not None:
            how = self._group.end(patience_s)
            self._connection.close()
            self._connection = None
            os.close(self._lifeline)
            return how
        return self._group.end(0.0)
