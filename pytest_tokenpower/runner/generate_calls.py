"""What transformers' generate() was called with while a workload ran, wherever in it: ids alone do not tell."""

from __future__ import annotations

import functools
import inspect
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from types import CodeType, FrameType, MethodType
from typing import Any

from pytest_tokenpower.core.token_ids import CACHED, ENDS, SETTINGS, Call
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.errors import TokenCountError

_FIRST_STEP = "_prepare_generation_config"
"""What each generate() calls on its model first (transformers 4.40 to 5)."""


@dataclass(frozen=True)
class _Ran:
    """A call that has ended: the method, its arguments without what counts nothing, and the ids that it returned."""

    method: Callable[..., Any]
    args: tuple[Any, ...]
    settings: Mapping[str, Any]
    ids: Any

    @cached_property
    def seen(self) -> tuple[Any, Call]:
        """Its ids with the call, looked through once: a block asks for all of them with each result that it counts."""
        return self.ids, Call.of(self.method, self.args, self.settings)


class GenerateCalls:
    """The calls of each execution that has not been counted yet, in the order of the executions."""

    def __init__(self) -> None:
        self._now: list[_Ran | None] = []
        self._ended: deque[tuple[object, list[_Ran | None]]] = deque()
        # The last result that calls stood behind, and whether one came back without any.
        self._made: object = None
        self._repeated = False
        # Whether calls are still noted: what has wrapped ours meanwhile keeps it, and would have it hold ids for ever.
        self.open = True

    def noting(self, execute: Callable[[], Any], *, awaited: bool = False) -> Callable[[], Any]:
        """Return the same execution, or the same to be awaited, whose calls are kept until it is counted."""
        if _mixin() is None:
            return execute

        def noted() -> Any:
            __tracebackhide__ = True
            self._now = []
            return self._keep(execute())

        async def noted_async() -> Any:
            __tracebackhide__ = True
            self._now = []
            return self._keep(await execute())

        return noted_async if awaited else noted

    def of(self, result: object) -> tuple[tuple[Any, Call], ...]:
        """Return what the next execution to be counted called, ``result`` being what it returned.

        Nothing where a call was not seen: the others are not all that its energy is of. Raises TokenCountError where
        an execution returned what an earlier one had generated.
        """
        if self._repeated:
            raise TokenCountError(
                "an execution called no generate() and returned the very result of the one before (from a cache?): its "
                "energy is of no tokens: have each execution generate anew"
            )
        while self._ended:
            ended, calls = self._ended.popleft()
            if ended is result:
                seen = [each for each in calls if each is not None]
                told = seen if len(seen) == len(calls) else []
                return tuple(each.seen for each in told)
        return ()

    def so_far(self) -> Call | None:
        """Return a call that has seen all those that were noted, nobody having asked for them by executions.

        None where there are none, or one was not seen: the others are not all that the energy is of.
        """
        seen = [one.seen for one in self._now if one is not None]
        return Call((), {}, tuple(seen)) if seen and len(seen) == len(self._now) else None

    def forget(self) -> None:
        """Let go of what was noted: models and ids on a device."""
        self._now = []

    def add(
        self, method: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        """Note a call that has ended."""
        settings = {name: value for name, value in kwargs.items() if name in SETTINGS or name == CACHED}
        with suppress(TokenCountError):  # told when it is counted, not in the middle of somebody's work
            settings[ENDS] = Call.of(method, args, settings).ends
        if (embeds := settings.get("inputs_embeds")) is not None:
            # Their number is all that counts; their values would fill the device's memory.
            settings["inputs_embeds"] = embeds.new_empty((*embeds.shape[:2], 0))
        self._now.append(_Ran(method, args, settings, getattr(result, "sequences", result)))

    def add_unseen(self) -> None:
        """Note that a call ran of which nothing is known."""
        self._now.append(None)

    def _keep(self, result: object) -> object:
        self._ended.append((result, self._now))
        if self._now:
            self._made = result
        elif result is self._made and not isinstance(result, TokenCount | None):
            self._repeated = True
        return result


@contextmanager
def generate_calls() -> Iterator[GenerateCalls]:
    """Note the calls of transformers' generate() until the end of this context, if a program has loaded it."""
    calls = GenerateCalls()
    mixin = _mixin()
    if mixin is None:
        yield calls
        return
    original = mixin.generate
    code = getattr(inspect.unwrap(original), "__code__", None)

    @functools.wraps(original)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        cached = _positions_in(kwargs.get("past_key_values"))  # before it grows
        result = original(self, *args, **kwargs)
        # An assistant drafts with a generate() of its own, in that of its model: its tokens are no answer.
        if calls.open and not _runs(code, inspect.currentframe()):
            calls.add(MethodType(original, self), args, {**kwargs, CACHED: cached}, result)
        return result

    own = getattr(generate, "__code__", None)
    prepare: Any = getattr(mixin, _FIRST_STEP, None)

    def prepared(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        # A method that was kept from before (g = model.generate) comes by here without us.
        if calls.open and not _runs(own, inspect.currentframe()):
            calls.add_unseen()
        return prepare(self, *args, **kwargs)

    ours = {"generate": generate, **({_FIRST_STEP: prepared} if prepare is not None else {})}
    before = {name: getattr(mixin, name) for name in ours}
    for name, each in ours.items():
        setattr(mixin, name, each)
    try:
        yield calls
    finally:
        calls.open = False
        for name, each in ours.items():
            if getattr(mixin, name) is each:
                setattr(mixin, name, before[name])


def _runs(code: CodeType | None, frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False


def _positions_in(cache: Any) -> int | None:
    """Return how many positions a cache holds; None: it does not say."""
    if cache is None:
        return 0
    try:
        return int(cache.get_seq_length())
    except Exception:  # whatever is wrong with it is generate()'s to say
        return None


def _mixin() -> Any:
    return getattr(sys.modules.get("transformers.generation.utils"), "GenerationMixin", None)
