"""Asynchronous workloads: what they are, and how a test that is not asynchronous runs one."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import AsyncIterable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from pytest_tokenpower.engines._arrivals import cancel_others
from pytest_tokenpower.errors import UsageError


def in_event_loop() -> bool:
    """Whether this thread runs an event loop, asyncio's or that of another library (trio)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        # What every such library tells; asyncio itself where a task of it runs.
        sniffio = sys.modules.get("sniffio")
        if sniffio is None:
            return False
        try:
            sniffio.current_async_library()
        except sniffio.AsyncLibraryNotFoundError:
            return False
    return True


def is_async(fn: object) -> bool:
    """Whether calling it gives something to await, or to iterate asynchronously, as far as can be told beforehand."""
    while isinstance(fn, partial):
        fn = fn.func
    return any(
        inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
        for each in (fn, getattr(type(fn), "__call__", None))  # noqa: B004
    )


def is_pending(result: object) -> bool:
    """Whether a result is still to be awaited or iterated."""
    return inspect.isawaitable(result) or isinstance(result, AsyncIterable)


async def awaited(fn: Callable[..., object], *args: object, **kwargs: object) -> Any:
    """One execution to its end: awaited, and a stream read to its last part, as a list.

    Raises UsageError where there is nothing to await.
    """
    __tracebackhide__ = True
    result = fn(*args, **kwargs)
    if not is_pending(result):
        raise UsageError(
            f"energy.async_run({name_of(fn)}): returns nothing to await: write energy({name_of(fn)}, ...)"
        )
    return await _ended(result)


async def settled(fn: Callable[..., object]) -> Any:
    """One execution to its end, awaited where there is something to await."""
    __tracebackhide__ = True
    return await _ended(fn())


async def _ended(result: object) -> Any:
    __tracebackhide__ = True
    if inspect.isawaitable(result):
        result = await result
    return [each async for each in result] if isinstance(result, AsyncIterable) else result


@contextmanager
def blocking(fn: Callable[..., Any], *, instead: str) -> Iterator[Callable[..., Any]]:
    """Have an asynchronous function called like any other, each time on one event loop; others stay as they are.

    One that only turns out to be asynchronous when it is called (a lambda, a decorated function) is run there, too.

    Raises UsageError where an event loop runs already, which says what to write ``instead``.
    """
    known = is_async(fn)
    if known and in_event_loop():
        raise UsageError(f"{name_of(fn)} is asynchronous, and {instead}")
    loop = asyncio.new_event_loop() if known else None

    def execute(*args: object, **kwargs: object) -> Any:
        nonlocal loop
        __tracebackhide__ = True
        if known:
            pending: Coroutine[Any, Any, Any] = awaited(fn, *args, **kwargs)
        else:
            result = fn(*args, **kwargs)
            # A future belongs to another loop.
            if not is_pending(result) or asyncio.isfuture(result) or in_event_loop():
                return result
            pending = _ended(result)
        loop = loop or asyncio.new_event_loop()
        try:
            return loop.run_until_complete(pending)
        except RuntimeError as error:
            if not _missed_trio(error):
                raise
            raise UsageError(
                f"{name_of(fn)} needs trio's event loop, and an asynchronous function is run on asyncio's here: give a "
                f"function that calls trio.run({name_of(fn)}), or `await energy.async_run({name_of(fn)}, ...)` in a "
                "test that runs on trio"
            ) from error

    try:
        yield execute
    finally:
        if loop is not None:
            # As asyncio.Runner does, which Python 3.10 has not.
            loop.run_until_complete(cancel_others())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()


def _missed_trio(error: RuntimeError) -> bool:
    """Whether trio itself has raised this, as it does where it does not run."""
    raised = error.__traceback__
    while raised is not None and raised.tb_next is not None:
        raised = raised.tb_next
    return raised is not None and str(raised.tb_frame.f_globals.get("__name__")).startswith("trio.")


def refuse_pending(result: object) -> None:
    """Raise UsageError for a result that nobody has awaited."""
    if not is_pending(result):
        return
    if inspect.iscoroutine(result):
        result.close()
    raise UsageError(
        f"the workload returned a {type(result).__name__} that nobody has awaited: give energy() the asynchronous "
        "function itself, or write `await energy.async_run(fn, ...)` in an asynchronous test"
    )


def name_of(fn: object) -> str:
    """Return what a workload is called in messages."""
    while isinstance(fn, partial):
        fn = fn.func
    return str(getattr(fn, "__name__", type(fn).__name__))
