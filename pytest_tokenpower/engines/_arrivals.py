"""Requests that arrive over time: which are due, and coroutines that submit them on a thread of their own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from pytest_tokenpower.errors import EngineError
from pytest_tokenpower.workloads.arrivals import Arrivals

T = TypeVar("T")

WATCH_S = 0.5
"""Interval at which a waiting call looks whether there is still something to wait for."""


class EventLoop:
    """Runs coroutines from other threads until it is closed."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], dead: Callable[[], Exception | None] = lambda: None) -> T:
        """Return the result of ``work`` or raise what it raises; where ``dead`` gives an error meanwhile, raise that.

        Interrupted, this cancels the work and does not wait for its end.
        """
        future = asyncio.run_coroutine_threadsafe(_watched(work, dead), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self, patience_s: float) -> None:
        """Cancel what runs and end the thread; one that something blocks is left to end with this process."""
        future = asyncio.run_coroutine_threadsafe(cancel_others(), self._loop)
        with suppress(concurrent.futures.TimeoutError):
            future.result(patience_s)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(patience_s)
        if not self._thread.is_alive():
            self._loop.close()


async def cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel these tasks and wait until they have ended."""
    tasks = tuple(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def all_of(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results, in order; where one fails the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await cancel(tasks)


async def _watched(work: Coroutine[Any, Any, T], dead: Callable[[], Exception | None]) -> T:
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=WATCH_S))[0]:
            if (error := dead()) is not None:
                # The work may be about to say so itself, and better.
                await asyncio.wait({task}, timeout=WATCH_S)
                if not task.done():
                    raise error
        return task.result()
    finally:
        await cancel([task])


async def cancel_others() -> None:
    """Cancel every task of this loop but this one, and wait until they have ended."""
    await cancel(task for task in asyncio.all_tasks() if task is not asyncio.current_task())


class Admission:
    """Requests 0 to ``count - 1`` in order: each once its time has come and fewer than the limit are unfinished.

    Raises EngineError for arrivals that could never come to an end.
    """

    def __init__(self, arrivals: Arrivals, count: int) -> None:
        self._due_s = tuple(arrivals.seconds(count))
        self._limit = arrivals.limit
        if len(self._due_s) != count or (self._limit is not None and self._limit < 1):
            raise EngineError(
                f"{arrivals} gives {len(self._due_s)} times for {count} requests and a limit of {self._limit}: there "
                "must be a time for each, and at least one request at a time"
            )
        self._submitted = self._finished = 0

    @property
    def unfinished(self) -> int:
        """Requests that were submitted and have not finished."""
        return self._submitted - self._finished

    @property
    def done(self) -> bool:
        """Tell whether every request has finished."""
        return self._finished == len(self._due_s)

    def finished(self, requests: int) -> None:
        """So many more have finished."""
        self._finished += requests

    def take(self, seconds: float) -> Iterator[int]:
        """Give out the requests to submit now, ``seconds`` after the start; each given out counts as submitted."""
        while (
            self._submitted < len(self._due_s)
            and (self._limit is None or self.unfinished < self._limit)
            and self._due_s[self._submitted] <= seconds
        ):
            self._submitted += 1
            yield self._submitted - 1

    def wait_s(self, seconds: float) -> float | None:
        """Tell how long after ``seconds`` the next request is due: None where only an end of another lets it in."""
        full = self._limit is not None and self.unfinished >= self._limit
        if full or self._submitted == len(self._due_s):
            return None
        return max(self._due_s[self._submitted] - seconds, 0.0)


async def run_admitted(admission: Admission, start: Callable[[int], Coroutine[Any, Any, T]]) -> list[T]:
    """Gather what ``start(index)`` of each request gives, in order; where one fails the others are cancelled."""
    results: dict[int, T] = {}
    running: dict[asyncio.Task[T], int] = {}
    began = time.monotonic()
    try:
        while not admission.done:
            for index in admission.take(time.monotonic() - began):
                running[asyncio.ensure_future(start(index))] = index
            wait_s = admission.wait_s(time.monotonic() - began)
            if not running:
                await asyncio.sleep(wait_s or 0.0)
                continue
            ended, _ = await asyncio.wait(running, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                results[running.pop(task)] = task.result()
            admission.finished(len(ended))
    finally:
        await cancel(running)
    return [results[index] for index in range(len(results))]
