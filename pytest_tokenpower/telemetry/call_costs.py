"""What the calls of a library cost: which ones a meter makes, with which arguments, and how long each takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

COST_CALLS = 200
COST_S = 0.5
"""Each call is repeated this often, or for this long."""

_NEVER_AGAIN = ("nvmlInit", "nvmlInitWithFlags", "nvmlShutdown")
"""Calls that count their callers: they are not repeated."""


@dataclass(frozen=True)
class CallCost:
    """How long one call of NVML takes, back to back, on one board; ``error`` where it failed at last."""

    call: str
    count: int
    median_ns: float
    percentile99_ns: float
    error: str | None = None


class CallLog:
    """Stands before the `pynvml` module: remembers each function's last arguments, and the call that is under way."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.calls: dict[str, tuple[Any, ...]] = {}
        self.pending: str | None = None

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._library, name)
        if not name.startswith("nvml") or isinstance(value, (int, type)) or not callable(value):
            return value

        def call(*arguments: Any) -> Any:
            self.calls[name] = arguments
            self.pending = name
            try:
                return value(*arguments)
            finally:
                self.pending = None

        self.__dict__[name] = call
        return call


def call_costs(
    library: Any, calls: Mapping[str, tuple[Any, ...]], handle: Any, now_ns: Callable[[], int]
) -> tuple[CallCost, ...]:
    """The cost of each function of ``calls`` with its arguments; those that count their callers are left out.

    Calls on a device go to ``handle``: the one that they were made with ended with its nvmlShutdown.
    """
    return tuple(
        _cost(
            getattr(library, call),
            call,
            (handle, *arguments[1:]) if call.startswith("nvmlDevice") and arguments else arguments,
            now_ns,
        )
        for call, arguments in calls.items()
        if call not in _NEVER_AGAIN
    )


def _cost(
    function: Callable[..., Any], call: str, arguments: tuple[Any, ...], now_ns: Callable[[], int]
) -> CallCost:
    """Repeat a call, back to back; one that fails costs time too, and its last error is kept."""
    costs: list[int] = []
    error: str | None = None
    start_ns = now_ns()
    while len(costs) < COST_CALLS and now_ns() - start_ns < COST_S * 1e9:
        before_ns = now_ns()
        try:
            function(*arguments)
            error = None
        except Exception as failure:
            error = error_text(failure)
        costs.append(now_ns() - before_ns)
    return CallCost(call, len(costs), float(median(costs)), float(np.percentile(costs, 99)), error)


def error_text(error: BaseException) -> str:
    """What an error says, or its class where it says nothing."""
    return str(error) or type(error).__name__
