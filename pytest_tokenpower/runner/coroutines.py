"""Asynchronous workloads: what they are, and how a test that is not asynchronous runs one."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from pytest_tokenpower.engines._arrivals import cancel_others
from pytest_tokenpower.errors import UsageError


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
def blocking(fn: Callable[..., Any], *, instead: str = "") -> Iterator[Callable[..., Any]]:
    """Have an asynchronous function called like any other, each time on one event loop; others stay as they are.

    Raises UsageError where an event loop runs already, which says what to write ``instead``.
    """
    if not is_async(fn):
        yield fn
        return
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        loop = asyncio.new_event_loop()
    else:
        raise UsageError(
            f"{name_of(fn)} is asynchronous, and so is this test: "
            + (instead or f"write `await energy.async_run({name_of(fn)}, ...)`")
        )

    def on_the_loop(*args: object, **kwargs: object) -> Any:
        __tracebackhide__ = True
        return loop.run_until_complete(awaited(fn, *args, **kwargs))

    try:
        yield on_the_loop
    finally:
        # As asyncio.Runner does, which Python 3.10 has not.
        loop.run_until_complete(cancel_others())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


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
