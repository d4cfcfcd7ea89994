"""vLLM as users deploy it: its own server, started on a free loopback port and spoken to over HTTP."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from pytest_tokenpower.core import progress
from pytest_tokenpower.core.files import scratch_prefix
from pytest_tokenpower.core.subprocesses import ProcessGroup, inherited_path
from pytest_tokenpower.engines._adapter import needing
from pytest_tokenpower.engines.isolated.engine import PROGRESS_S
from pytest_tokenpower.engines.openai.engine import OpenAIEngine
from pytest_tokenpower.engines.protocol import EngineIdentity, Generation, Timeouts
from pytest_tokenpower.errors import EngineError, UsageError
from pytest_tokenpower.meters.adapters.nvml.devices import visible_gpus
from pytest_tokenpower.models.checkpoint import model_name, require_model
from pytest_tokenpower.workloads.arrivals import Arrivals
from pytest_tokenpower.workloads.base import Batch
from pytest_tokenpower.workloads.tokenizers import decoder_of, tokenizer_of

MODULE = "vllm.entrypoints.openai.api_server"

COMMAND = (
    "import runpy, sys; "
    "from pytest_tokenpower.core.subprocesses import end_with_parent; "
    "end_with_parent(int(sys.argv.pop(1))); "
    f"runpy.run_module({MODULE!r}, run_name='__main__', alter_sys=True)"
)
"""``python -m vllm...api_server``, with the lifeline's descriptor before its arguments: it ends with the tests."""

DEFAULTS: dict[str, Any] = {
    # Otherwise the second round of a batch would skip its prefill.
    "enable_prefix_caching": False,
    # A line for each request is work that has nothing to do with the tokens.
    "disable_uvicorn_access_log": True,
}
"""Arguments of the server unless its caller says otherwise."""

POLL_S = 0.25


class VllmServer:
    """``VllmServer("folder or hub id", **arguments of vLLM's server)``: started, waited for, and ended by ``close``.

    Arguments are written as in Python: ``max_model_len=4096`` is ``--max-model-len 4096``, False is ``--no-...``, a
    mapping is JSON, a None leaves vLLM's default. A model without a tokenizer is served without one. The server answers
    to a key of its own, so that nobody else's requests are measured, and runs with VLLM_SERVER_DEV_MODE=1, which makes
    it tell its configuration. Everything else is as in :class:`~pytest_tokenpower.engines.openai.engine.OpenAIEngine`.

    Raises EngineError, with the end of the server's log, where it does not come up within ``timeouts.start_s``, and
    where it ends in a batch. ``silence_s`` and ``request_fields`` are the client's.
    """

    remote_host: str | None = None

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        timeouts: Timeouts | None = None,
        env: Mapping[str, str] | None = None,
        silence_s: float = 120.0,
        request_fields: Mapping[str, Any] | None = None,
        **server_args: Any,
    ) -> None:
        name = require_model(model)
        with needing("vllm-server", "vllm"):
            if importlib.util.find_spec("vllm") is None:
                raise ImportError("No module named 'vllm'")
        for taken in ("host", "port", "api_key", "uds"):
            if taken in server_args:
                raise UsageError(
                    f"vllm-server: {taken}= is its own to choose: it listens on a free loopback port"
                )
        self._timeouts = timeouts or Timeouts()
        self._name = f"vllm-server engine of {model_name(name)}"
        self._engine: OpenAIEngine | None = None
        self._folder = Path(tempfile.mkdtemp(prefix=scratch_prefix("server")))
        encode = tokenizer_of(name)
        arguments = {**DEFAULTS, "skip_tokenizer_init": encode is None or None, **server_args}
        key, self._port = secrets.token_urlsafe(24), _free_port()
        lifeline, self._lifeline = os.pipe()
        try:
            self._group = ProcessGroup(
                [
                    *(sys.executable, "-c", COMMAND, str(lifeline)),
                    *("--model", name, "--host", "127.0.0.1", "--port", str(self._port)),
                    *command_line(arguments),
                ],
                log=self._folder / "log.txt",
                pass_fds=(lifeline,),
                env={**_environment(), "VLLM_API_KEY": key, **(env or {})},
            )
        except OSError as error:
            os.close(self._lifeline)
            raise EngineError(f"{self._name}: its process cannot be started: {error}") from error
        finally:
            os.close(lifeline)
        self._open = True
        try:
            self._await()
            self._engine = OpenAIEngine(
                str(server_args.get("served_model_name", name)),
                base_url=f"http://127.0.0.1:{self._port}/v1",
                api_key=key,
                request_fields=request_fields,
                server_pid=self._group.pid,
                silence_s=silence_s,
                timeouts=self._timeouts,
                shared=False,
            )
            if encode is not None:
                self.encode, self.decode = encode, decoder_of(name)
            told = self._engine.identity
            # Its own to choose, and always the same.
            facts = {fact: value for fact, value in told.facts.items() if fact != "endpoint"}
            self._identity = replace(told, facts=facts)
            self._device_ids = self._engine.device_ids
            if self._device_ids is None:
                self._device_ids = self._visible_gpus(env)
        except EngineError as error:
            self._fail(error)
        except BaseException:
            self._release(0.0)
            raise

    @property
    def identity(self) -> EngineIdentity:
        """Identity that the server tells, from its own configuration."""
        return self._identity

    @property
    def device_ids(self) -> Sequence[str] | None:
        """UUIDs of the GPUs that the server computes on; empty for a CPU; None where it cannot be known."""
        return self._device_ids

    @property
    def pid(self) -> int:
        """The server, which leads the process group of all that it starts."""
        return self._group.pid

    def generate(self, batch: Batch) -> Generation:
        """Run all prompts at once; raises EngineError, with the end of the log where the server is to blame."""
        return self._run("generate", batch)

    def serve(self, batch: Batch, arrivals: Arrivals) -> Generation:
        """Run the prompts as they arrive; raises as :meth:`generate`."""
        return self._run("serve", batch, arrivals)

    def close(self) -> None:
        """End the server, by force where it does not follow, and all that it has started; safe to call twice."""
        if not self._open:
            return
        self._group.interrupt()
        self._release(self._timeouts.close_s)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, method: str, batch: Batch, *arguments: Any) -> Generation:
        if not self._open or self._engine is None:
            raise EngineError(f"{self._name}: {method}() after close(), or after its process ended")
        try:
            result: Generation = getattr(self._engine, method)(batch, *arguments)
        except EngineError as error:
            # Where a worker dies the server answers to the last, and ends a little later.
            if not self._dead():
                raise
            self._fail(error)
        return result

    def _dead(self) -> bool:
        """Tell whether the server can do no more work: its process has ended, or vLLM says that its engine core has."""
        return self._group.exited() or not self._healthy()

    def _await(self) -> None:
        began = told = time.monotonic()
        while not self._healthy():
            seconds = time.monotonic() - began
            if self._group.exited():
                # vLLM itself is there: what its server is built of may not be.
                absent = re.findall(r"ModuleNotFoundError: No module named '([^']+)'", self._group.tail())
                why = (
                    f": {absent[-1]} is not installed: pip install 'pytest-tokenpower[vllm]'"
                    if absent
                    else ""
                )
                raise EngineError(f"{self._name}: its process ended while starting{why}")
            if seconds > self._timeouts.start_s:
                raise EngineError(
                    f"{self._name}: starting took more than {self._timeouts.start_s:g} s, so it was ended"
                )
            if time.monotonic() - told > PROGRESS_S:
                told = time.monotonic()
                progress.report_progress(f"{self._name}: starting ... {seconds:.0f} s")
            time.sleep(POLL_S)
        progress.report_progress(f"{self._name}: started in {time.monotonic() - began:.0f} s")

    def _healthy(self) -> bool:
        # httpx would read the certificates of the world for each question.
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5.0)
        try:
            # vLLM binds its port long before it answers.
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _fail(self, error: EngineError) -> NoReturn:
        """End the server and raise the error with the end of its log."""
        ended = f" (process {self.pid}: {how})" if (how := self._release(0.5)) else ""
        raise EngineError(
            f"{error}{ended}\nThe end of its log ({self._group.log}):\n{self._group.tail()}"
        ) from None

    def _release(self, patience_s: float) -> str:
        if not self._open:
            return ""
        self._open = False
        if self._engine is not None:
            self._engine.close()
        how = self._group.end(patience_s)
        os.close(self._lifeline)
        return how

    def _visible_gpus(self, env: Mapping[str, str] | None) -> tuple[str, ...] | None:
        """Take the first of the visible GPUs, as vLLM does, where NVML's process numbers are of no use."""
        assert self._engine is not None
        server = self._engine.server
        if server.device != "cuda":
            return None
        visible = {**os.environ, **(env or {})}.get("CUDA_VISIBLE_DEVICES")
        seen = visible_gpus(visible)
        return None if seen is None or len(seen) < server.gpus else seen[: server.gpus]


def command_line(arguments: Mapping[str, Any]) -> list[str]:
    """Options of vLLM's server from Python's names and values."""
    line: list[str] = []
    for name, value in arguments.items():
        option = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            line.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, Mapping):
            line += [f"--{option}", json.dumps(value)]
        elif isinstance(value, (list, tuple)):
            line += [f"--{option}", *map(str, value)]
        else:
            line += [f"--{option}", os.fspath(value) if isinstance(value, os.PathLike) else str(value)]
    return line


def _environment() -> dict[str, str]:
    env = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "PYTHONUNBUFFERED": "1"}
    # Of an engine in the tests' own process; a server's is always in another.
    env.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    env["PYTHONPATH"] = inherited_path()
    return env


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
