"""One open window a board: two at once would each be charged with the energy of both."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.runner.coroutines import in_event_loop

_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class _Asked:
    """The tests that asked for a board, and the thread that does; None where an event loop may go on with it."""

    tests: list[str]
    thread: int | None


_open: dict[str, _Asked] = {}
"""For each board under measurement in this process, who asked for it: more than one is refused."""


@contextmanager
def sole_window(test: str, boards: frozenset[str]) -> Iterator[None]:
    """Hold boards for one measurement; another meanwhile is refused, and so is the first where that went unseen.

    Args:
        test: the test that measures.
        boards: ids of the devices that it measures.

    Raises:
        UsageError: another measurement of a board is open, or was asked for while this one was.
    """
    asked = _Asked([test], None if in_event_loop() else threading.get_ident())
    with _lock:
        holders = [_open[board] for board in boards if board in _open]
        for holder in holders:
            holder.tests.append(test)
        if not holders:
            _open.update(dict.fromkeys(boards, asked))
    if holders:
        raise UsageError(_overlap(test, holders[0].tests[0]))
    try:
        yield
    finally:
        with _lock:
            for board in boards:
                if _open.get(board) is asked:
                    del _open[board]
    if len(asked.tests) > 1:
        raise UsageError(_overlap(asked.tests[1], test))


_held: dict[str, tuple[str, int]] = {}
"""Who keeps a board for itself for longer than a window, and in which thread."""


@contextmanager
def own_boards(test: str, boards: frozenset[str], *, waits_for_threads: bool) -> Iterator[None]:
    """Keep boards for a test or a script's block, with or without open windows.

    What it leaves open goes with it where nothing runs on in it: a generator of this thread that nobody resumes.

    Args:
        test: the test that measures.
        boards: ids of the devices that it measures.
        waits_for_threads: who keeps a board in another thread lets it go without this one's help.

    Raises:
        UsageError: a board is kept already, by one that would be waited for without end.
    """
    me = threading.get_ident()
    with _lock:
        for holder, thread in (_held[board] for board in boards if board in _held):
            if thread == me or not waits_for_threads:
                raise UsageError(
                    f"{test}: the board is kept by {holder} until that ends: measure there with what it has (a test's "
                    "energy fixture, or the measure() block itself)"
                )
        _held.update(dict.fromkeys(boards, (test, me)))
        before = dict(_open)
    try:
        yield
    finally:
        with _lock:
            for board in boards:
                _held.pop(board, None)
                if (left := _open.get(board)) is not before.get(board) and left and left.thread == me:
                    del _open[board]


def _overlap(test: str, holder: str) -> str:
    return (
        f"{test}: a measurement began while another of the same board was open (by {holder}); each would be charged "
        "with the energy of both: put one energy.measure() block around all of it, or have the other end before (wait "
        "for its thread or task)"
    )
