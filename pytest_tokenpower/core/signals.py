"""An orderly end on SIGTERM and SIGHUP: as after Ctrl-C, what was begun is cleared up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


def interrupt_when_terminated() -> Callable[[], None]:
    """Have the signals that end a process interrupt it instead; returns what undoes this.

    Where somebody else handles a signal, or has it ignored (nohup), that stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    taken = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _interrupt)

    def undo() -> None:
        for number in taken:
            if signal.getsignal(number) is _interrupt:
                signal.signal(number, signal.SIG_DFL)

    return undo


def _interrupt(number: int, _: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(f"ended by {signal.Signals(number).name}")
