"""Coroutines on a thread of their own: results, errors, an end that is noticed, and what is cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from pytest_tokenpower.engines import _arrivals as event_loop
from pytest_tokenpower.engines._arrivals import EventLoop, all_of


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop("test-loop")
    yield loop
    loop.close(10.0)
    assert "test-loop" not in [thread.name for thread in threading.enumerate()]


async def give(value: int) -> int:
    return value


async def fail() -> int:
    raise ValueError("it failed")


def test_results_and_errors_come_back(loop: EventLoop) -> None:
    assert loop.run(give(3)) == 3
    assert loop.run(all_of(give(value) for value in range(4))) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="it failed"):
        loop.run(fail())


def test_one_that_fails_takes_the_others_along(loop: EventLoop) -> None:
    ended: list[str] = []

    async def wait() -> int:
        try:
            await asyncio.sleep(600)
        finally:
            ended.append("cancelled")
        return 0

    with pytest.raises(ValueError, match="it failed"):
        loop.run(all_of([wait(), fail()]))
    assert ended == ["cancelled"]


def test_nobody_waits_for_an_answer_that_will_not_come(
    loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_loop, "WATCH_S", 0.01)
    ended: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            ended.append("cancelled")

    with pytest.raises(RuntimeError, match="it is gone"):
        loop.run(wait(), lambda: RuntimeError("it is gone"))
    assert ended == ["cancelled"]


def test_what_still_runs_is_cancelled_by_close() -> None:
    loop, ended = EventLoop("test-closing"), threading.Event()

    async def start() -> asyncio.Task[None]:
        async def wait() -> None:
            try:
                await asyncio.sleep(600)
            finally:
                ended.set()

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        return task

    task = loop.run(start())
    loop.close(10.0)
    assert ended.is_set()
    assert task.cancelled()
