"""The processes that vLLM starts for an engine: how they are started, which they are, and that they end."""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from typing import Any

from pytest_tokenpower.engines._adapter import environment_kept

_START_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"


def spawning() -> AbstractContextManager[None]:
    """Have vLLM spawn its processes, as its own server does: to fork beside other threads may hang the child."""
    return environment_kept(**{_START_METHOD: os.environ.get(_START_METHOD, "spawn")})


def processes_of(client: Any) -> list[Any]:
    """List the engine cores of an ``EngineCoreClient`` and all that they have started, as ``psutil.Process``."""
    psutil = importlib.import_module("psutil")  # vLLM needs it itself
    manager = getattr(getattr(client, "resources", None), "engine_manager", None)
    found: list[Any] = []
    for process in getattr(manager, "processes", ()):
        with suppress(psutil.Error):
            core = psutil.Process(process.pid)
            found += [core, *core.children(recursive=True)]
    return found


def end_context(client: Any, patience_s: float) -> None:
    """End the ZeroMQ context that vLLM leaves to the garbage collector, which would warn of it in some later test."""
    context = getattr(getattr(client, "resources", None), "ctx", None)
    if context is not None:
        # It waits for sockets that are still open, and then goes on waiting without us.
        thread = threading.Thread(target=context.term, daemon=True)
        thread.start()
        thread.join(patience_s)


def running(process: Any) -> bool:
    """Tell whether it still does anything; one that has ended may stay in the process table for want of a parent."""
    psutil = importlib.import_module("psutil")
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def end(processes: Iterable[Any], patience_s: float) -> None:
    """Wait so long for these processes to end, then kill those that have not."""
    psutil = importlib.import_module("psutil")
    alive = _wait(processes, patience_s)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    _wait(alive, patience_s)


def _wait(processes: Iterable[Any], patience_s: float) -> list[Any]:
    until = time.monotonic() + patience_s
    while (alive := [process for process in processes if running(process)]) and time.monotonic() < until:
        time.sleep(0.05)
    return alive
