"""Measuring without pytest, in a script or a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import get_args

from pytest_tokenpower.core.settings import (
    DEFAULT_MAX_ROUNDS,
    DEFAULT_MAX_SECONDS,
    DEFAULT_MIN_ROUNDS,
    DEFAULT_WARMUP_ROUNDS,
    Limits,
    Settings,
)
from pytest_tokenpower.core.types import Scope
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.runner.fixture import Energy, Window, Words
from pytest_tokenpower.runner.generate_calls import GenerateCalls, generate_calls
from pytest_tokenpower.runner.locks import hold_devices
from pytest_tokenpower.runner.open_windows import own_boards, sole_window
from pytest_tokenpower.runner.result import Result
from pytest_tokenpower.runner.rounds import device_wait
from pytest_tokenpower.runner.session import Session

NAME = "measure()"


class Measurement(Energy):
    """What ``measure()`` gives: all that the `energy` fixture offers, or the tokens of the block itself."""

    _words = Words(
        ended="its block has ended: measure and count inside it",
        twice=(
            "it was called twice, and a block has one measurement: enter measure() once more for another, or put both "
            "calls into one function"
        ),
        awaited=(
            "an event loop runs here already: write `await m.async_run({name}, ...)`, with `m` as `with measure() as "
            "m` gives it"
        ),
        uncounted=(
            "nothing says what was read and generated in the block: call m.count(result) or m.tokens(prompt=..., "
            "generated=...) inside it, with `m` as `with measure() as m` gives it"
        ),
        empty="there is no result: nothing has been measured yet, or what was to be was cut short",
    )

    def __init__(self, session: Session, limits: Limits, calls: GenerateCalls) -> None:
        super().__init__(NAME, limits, session, lambda *_: None)
        self._calls = calls
        self._block = Window(self, calls)
        self._final: Result | None = None

    @contextmanager
    def _window(self) -> Iterator[None]:
        self._calls.open = False  # from now on they are the window's
        with super()._window():
            yield

    def tokens(self, *, prompt: int, generated: int, responses: int = 1, cached_prompt: int = 0) -> None:
        """Add the tokens of what ran in this block."""
        self._block.tokens(
            prompt=prompt, generated=generated, responses=responses, cached_prompt=cached_prompt
        )

    def count(self, result: object) -> None:
        """Add the tokens of a result: anything that ``energy(fn)`` can count."""
        self._block.count(result)

    @property
    def result(self) -> Result:
        """What was measured: of all windows so far, or in the end of the whole block."""
        return super().result if self._final is None else self._final

    @cached_property
    def boards(self) -> frozenset[str]:
        """Its own: the block around it holds the devices."""
        return frozenset({f"{NAME} {id(self)}"})

    @property
    def devices(self) -> frozenset[str]:
        """The devices that the block holds."""
        return super().boards

    def end(self, start_ns: int, end_ns: int) -> None:
        """Evaluate what was measured between two clock readings, for as long as the meters run."""
        with self._refusing():
            if self._open:
                raise UsageError(self.refusal)
            if not self.used:
                self._entered = True
                self._close(self._block, start_ns, end_ns)
            elif self._block.counted:
                raise UsageError(
                    f"{NAME}: tokens were counted for the whole block, and windows were measured in it: use one of both"
                )
        self._final = self.result
        self._ended = True


@contextmanager
def measure(
    source: str = "auto",
    *,
    scope: Scope | None = None,
    warmup_rounds: int = DEFAULT_WARMUP_ROUNDS,
    min_rounds: int = DEFAULT_MIN_ROUNDS,
    max_rounds: int = DEFAULT_MAX_ROUNDS,
    max_seconds: float = DEFAULT_MAX_SECONDS,
) -> Iterator[Measurement]:
    """Measure in a script or notebook what the `energy` fixture measures in a test.

    ``with measure() as m:`` takes the block as one window, whose tokens ``m.count(result)`` or ``m.tokens(...)`` says;
    ``m(fn, ...)``, ``await m.async_run(fn, ...)``, ``m.run(engine, workload)`` and ``with m.measure() as window:`` are
    those of the fixture. The figures are in ``m.result``.

    Args:
        source: what measures, as ``--energy-source``.
        scope: whose energy the figures are of, as ``--energy-scope``.
        warmup_rounds: rounds of ``m(fn)`` before the measured ones.
        min_rounds: measured rounds of ``m(fn)`` at least.
        max_rounds: and at most.
        max_seconds: no further rounds after so long.

    Raises:
        MeterError: nothing can measure here.
        UsageError: an argument is malformed, or what the block measures is not to be measured so.
        TokenCountError: nothing says how many tokens the block generated.
    """
    if source.partition(":")[0] == "replay":
        raise UsageError(f"{NAME}: a recording holds the windows of tests: replay it with pytest")
    if scope is not None and scope not in get_args(Scope):
        raise UsageError(f"{NAME}: scope={scope!r}: must be one of {', '.join(get_args(Scope))}")
    numbers = all(isinstance(each, int) for each in (warmup_rounds, min_rounds, max_rounds))
    if (
        not (numbers and isinstance(max_seconds, int | float))
        or not 1 <= min_rounds <= max_rounds
        or warmup_rounds < 0
        or not 0 < max_seconds < float("inf")
    ):
        raise UsageError(
            f"{NAME}: rounds are at least one, max_rounds not below min_rounds, and max_seconds a positive number"
        )
    session = Session(Settings(source=source, scope=scope, warmup_rounds=warmup_rounds), Path.cwd())
    limits = Limits(min_rounds=min_rounds, max_rounds=max_rounds, max_seconds=max_seconds)
    try:
        with generate_calls() as calls:
            measuring, now_ns = Measurement(session, limits, calls), session.telemetry().clock.monotonic_ns
            with (
                sole_window(NAME, measuring.devices),
                own_boards(NAME, measuring.devices, waits_for_threads=False),
                hold_devices(measuring.gpu_ids),
            ):
                if (wait := device_wait()) is not None:
                    wait()
                start_ns = now_ns()
                yield measuring
                if (wait := device_wait()) is not None:
                    wait()
                end_ns = now_ns()
        measuring.end(start_ns, end_ns)
    finally:
        session.close()
