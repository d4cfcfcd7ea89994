"""What a test calls: the `energy` fixture and its windows, and its stand-in where nothing is measured."""

from __future__ import annotations

import inspect
import random
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
    ValuesView,
)
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, ParamSpec, TypeVar, overload
from weakref import ref

from pytest_tokenpower.core.records import MeasurementRecord
from pytest_tokenpower.core.token_ids import count_ran
from pytest_tokenpower.core.token_shapes import OWN_COUNT
from pytest_tokenpower.core.tokens import Items, TokenCount, beside, calls_of, count_tokens, refuse_repeated
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.core.windows import RoundWindow
from pytest_tokenpower.engines.identify import describe_callable
from pytest_tokenpower.engines.phase_marks import (
    joined,
    latencies_of,
    notes_of,
    phases_of,
    tells_more,
    unsound,
)
from pytest_tokenpower.engines.protocol import Generation
from pytest_tokenpower.errors import MeterError, TokenCountError, UsageError
from pytest_tokenpower.runner.checks import (
    declared_config,
    is_benchmark,
    require_local_meter,
    require_workload,
)
from pytest_tokenpower.runner.compare import (
    VARIANTS,
    BlockPlan,
    CompareArgs,
    Comparison,
    Startable,
    Variant,
    annotate_errors,
    blocks_of,
    started,
    started_async,
)
from pytest_tokenpower.runner.coroutines import awaited, blocking, is_pending, name_of, refuse_pending
from pytest_tokenpower.runner.generate_calls import GenerateCalls, generate_calls
from pytest_tokenpower.runner.open_windows import sole_window
from pytest_tokenpower.runner.outcome import Attempt, MeasuredTest, finish
from pytest_tokenpower.runner.result import Result
from pytest_tokenpower.runner.rounds import Measuring, RoundPlan, device_wait, rounds, run, run_async
from pytest_tokenpower.runner.soak import Soak, soak

if TYPE_CHECKING:
    from pytest_tokenpower.core.records import VerdictRecord
    from pytest_tokenpower.core.settings import Limits
    from pytest_tokenpower.core.token_ids import Call
    from pytest_tokenpower.engines.protocol import Engine, EngineIdentity
    from pytest_tokenpower.engines.spec import EngineSpec
    from pytest_tokenpower.runner.session import Session
    from pytest_tokenpower.workloads import Workload
    from pytest_tokenpower.workloads.base import Batch
    from pytest_tokenpower.workloads.quality import Quality, Score


P = ParamSpec("P")

R = TypeVar("R")

Counter = Callable[
    [object, tuple[object, ...], dict[str, object], "Callable[..., object] | None"], "TokenCount | None"
]


class Window:
    """An open window of ``energy.measure()``: say what was generated in it before it closes.

    ``calls`` are those of transformers' generate() in it. Once ids of some of them are counted, all are.
    """

    def __init__(self, energy: Energy | None, calls: GenerateCalls | None = None) -> None:
        self._energy = energy
        self._open = True
        self._tokens: TokenCount | None = None
        self._results: list[Callable[[], object]] = []
        self._calls = calls
        self._of: set[int] = set()

    @property
    def counted(self) -> bool:
        """Whether tokens were counted in it."""
        return self._tokens is not None or bool(self._of)

    def tokens(self, *, prompt: int, generated: int, responses: int = 1, cached_prompt: int = 0) -> None:
        """Add the tokens of what ran in this window."""

        def said(energy: Energy) -> TokenCount:
            try:
                return TokenCount(prompt, generated, responses, cached_prompt)
            except ValueError as error:
                raise UsageError(f"{energy._test}: {error}") from None

        self._add(None, said)

    def count(self, result: object) -> None:
        """Add the tokens of a result: anything that ``energy(fn)`` can count."""
        self._add(result, lambda energy: energy._counted_in(self, result))

    def of_calls(self, result: object) -> bool:
        """Whether a result is ids of calls that were seen: these are counted when the window closes."""
        seen = self._calls.so_far() if self._calls is not None else None
        of = calls_of(result, seen) if seen is not None else ()
        self._of.update(of)
        return bool(of)

    def total(self) -> TokenCount | None:
        """Return all that was counted, with all calls of generate() where ids of some were."""
        if not self._of or self._calls is None:
            return self._tokens
        seen = self._calls.so_far()
        if seen is None:
            raise TokenCountError(
                "in an energy.measure() block generate() was called out of sight beside calls that were seen (through "
                f"a method that was kept from before): count {OWN_COUNT} of all"
            )
        if self._tokens is not None and len(self._of) < len(seen.ran):
            raise TokenCountError(beside(len(self._of), len(seen.ran)))
        ran = TokenCount(*count_ran(seen))
        return ran if self._tokens is None else self._tokens + ran

    def forget(self) -> None:
        """Let go of the calls: a test may keep the window, and free the model."""
        if self._calls is not None:
            self._calls.forget()

    def _add(self, result: object, count: Callable[[Energy], TokenCount | None]) -> None:
        if self._energy is None:
            return
        with self._energy._refusing():
            if not self._open:
                raise UsageError(
                    f"{self._energy._test}: tokens were counted when their energy.measure() block had ended: count "
                    "them inside it"
                )
            tokens = count(self._energy)
        if tokens is not None:
            self._tokens = tokens if self._tokens is None else self._tokens + tokens
        self._results.append(_held(result))


def _held(result: object) -> Callable[[], object]:
    """Hold a counted result until its block ends: what tells nothing more only as long as the test itself does.

    Its tensors would stay on the GPU, those in a list too. What names its request is small, and may come twice.
    """
    names = ("id", "request_id", "response_id")
    if tells_more(result) or any(hasattr(result, name) for name in names):
        return lambda: result
    with suppress(TypeError):
        return ref(result)
    items = _items_in(result)
    if any(map(_goes, items)) and not (isinstance(result, Mapping) and any(name in result for name in names)):
        held = [_held(item) for item in items]
        return lambda: Items(each() for each in held)
    return lambda: result


def _items_in(value: object) -> Sequence[object]:
    values = value.values() if isinstance(value, Mapping) else value
    return list(values) if isinstance(values, ValuesView | list | tuple | set | frozenset) else ()


def _goes(item: object) -> bool:
    """Whether something in it can be let go of: numbers and words are held by nobody else."""
    with suppress(TypeError):
        return ref(item)() is item
    return any(map(_goes, _items_in(item)))


class Words(NamedTuple):
    """What is said of misuse, in the words of whoever measures: a test."""

    ended: str = (
        "a measurement began when the test's body had ended, as its fixtures were torn down: its figures would be in "
        "no verdict; measure in the test, or before it"
    )
    twice: str = (
        "energy() was called twice in one test; a test has one measurement: parametrize the test, or put both calls "
        "into one function (with pytest-benchmark: energy(benchmark, fn, ...))"
    )
    awaited: str = "so is this test: write `await energy.async_run({name}, ...)`"
    uncounted: str = (
        "nothing says what was read and generated in the energy.measure() block: call window.count(result) or "
        "window.tokens(prompt=..., generated=...) inside it"
    )
    empty: str = "energy.result: nothing has been measured yet"


class Energy:
    """The `energy` fixture: measures the joules of a workload and has them judged at the end of the test.

    ``energy(fn, *args, **kwargs)`` runs warm-up and measured rounds of a callable and returns its last result;
    ``with energy.measure() as window:`` measures code that is no callable, each window being one round.
    """

    _words = Words()

    def __init__(
        self,
        test: str,
        budget: Limits,
        session: Session,
        counter: Counter,
        earlier: tuple[Attempt, ...] = (),
        soak: Soak | None = None,
    ) -> None:
        self._test = test
        self._earlier = earlier
        self._budget = budget
        self._session = session
        self._counter = counter
        self._telemetry = session.telemetry()
        self._windows: list[RoundWindow] = []
        self._identity: EngineIdentity | None = None
        self._declared: dict[str, Fact] = {}
        self._workload: str | None = None
        self._notes: dict[str, Fact] = {}
        self._facts: dict[str, Fact] = {}
        self._score: Score | None = None
        self._soak = soak
        self._soaked: VerdictRecord | None = None
        self._called = False
        self._comparison: Comparison | None = None
        self._entered = False
        self._ended = False
        self._open = 0
        self._refusals: list[str] = []
        self._refused_before = 0
        self._result: tuple[object, Result] | None = None
        self._replayed = session.replayed(test)

    @overload
    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...

    @overload
    def __call__(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...

    def __call__(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run ``fn(*args, **kwargs)`` in rounds under measurement.

        Args:
            fn: the workload. An asynchronous function runs on an event loop of its own; in an asynchronous test see
                :meth:`async_run`. ``energy(benchmark, fn, ...)`` has pytest-benchmark time it after that.
            args: what ``fn`` is called with.
            kwargs: the same, by name.

        Returns:
            What ``fn`` returned last.

        Raises:
            TokenCountError: the tokens of a result cannot be counted.
            UsageError: the test measures already, or ``fn`` cannot be called.
            Exception: whatever ``fn`` raises.
        """
        # An error of the workload is shown as the test's own, without the frames that measured it.
        __tracebackhide__ = True
        if is_benchmark(fn):
            with self._refusing():
                require_workload(self._test, fn, args)
            self(*args, **kwargs)
            return fn(*args, **kwargs)
        how = self._words.awaited.format(name=name_of(fn))
        with self._refusing(), blocking(fn, instead=how) as execute, self._measuring(fn):
            if self._replayed is not None:
                self._windows.extend(self._replayed)
                return execute(*args, **kwargs)
            with generate_calls() as calls:
                work = calls.noting(partial(execute, *args, **kwargs))

                def count(result: object) -> TokenCount:
                    return self._counted(result, args, kwargs, fn, calls.of(result))

                if self._soak is not None:
                    # Rounds from before it are judged with these, or written to a recording at the end.
                    forget = not self._earlier and self._session.settings.record is None
                    soak(work, count, self._soak, self._telemetry, forget=forget)
                    self._facts["soak"], self._soaked = self._soak.ended()
                return self._keep(*run(self._rounds(work, count), lambda: self._telemetry))

    @overload
    async def async_run(self, fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R: ...

    @overload
    async def async_run(
        self, fn: Callable[P, AsyncIterator[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> list[R]: ...

    async def async_run(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run ``await fn(*args, **kwargs)`` in rounds as ``energy(fn, ...)`` does, on the event loop of the test.

        Between the rounds, while readings are awaited, the loop stands still.

        Args:
            fn: the workload; an asynchronous stream that it returns is read to its end and counted as a list.
            args: what ``fn`` is called with.
            kwargs: the same, by name.

        Returns:
            What ``fn`` returned last.

        Raises:
            TokenCountError: the tokens of a result cannot be counted.
            UsageError: the test measures already, or ``fn`` cannot be called.
        """
        __tracebackhide__ = True
        with self._refusing(), self._measuring(fn):
            self._refuse_soak("energy.async_run()")
            if self._replayed is not None:
                self._windows.extend(self._replayed)
                return await awaited(fn, *args, **kwargs)
            with generate_calls() as calls:
                work = calls.noting(partial(awaited, fn, *args, **kwargs), awaited=True)

                def count(result: object) -> TokenCount:
                    return self._counted(result, args, kwargs, fn, calls.of(result))

                return self._keep(*await run_async(self._rounds(work, count), lambda: self._telemetry))

    def _rounds(
        self, execute: Callable[[], Any], count: Callable[[object], TokenCount]
    ) -> Measuring[tuple[object, tuple[RoundWindow, ...]]]:
        return rounds(execute, count, phases_of, self._plan, self._telemetry)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Remember what is refused: a test that catches the error has not measured what it was to measure."""
        try:
            if self._ended:
                raise UsageError(f"{self._test}: {self._words.ended}")
            yield
        except (UsageError, TokenCountError, MeterError) as error:
            self._refusals.append(str(error))
            raise

    @contextmanager
    def _window(self) -> Iterator[None]:
        with sole_window(self._test, self.boards):
            self._open += 1
            try:
                yield
            finally:
                self._open -= 1

    @contextmanager
    def _measuring(self, fn: Callable[..., object]) -> Iterator[None]:
        """Return the measurement of one workload, for which the boards are its own."""
        if self._entered:
            raise UsageError(f"{self._test}: energy() and energy.measure() in one test: use one of them")
        if is_pending(fn):
            if inspect.iscoroutine(fn):
                fn.close()
            raise UsageError(
                f"{self._test}: energy({type(fn).__name__}): that can be awaited once, and each round is a call: give "
                "the function and its arguments, energy(fn, ...)"
            )
        if not callable(fn):
            raise UsageError(
                f"{self._test}: energy({type(fn).__name__}): what it measures is called; an engine is measured by "
                "energy.run(engine, workload)"
            )
        with self._window():
            if self._called:
                raise UsageError(f"{self._test}: {self._words.twice}")
            self._called = True
            require_local_meter(self._test, fn, self._telemetry.devices)
            self._identity = describe_callable(fn)
            declared_config(self._declared, self._identity)
            yield

    def _refuse_soak(self, what: str) -> None:
        if self._soak is not None:
            raise UsageError(
                f"{self._test}: {what} cannot be soaked: a soak repeats the work of energy(fn, ...) or energy.run(...)"
            )

    @property
    def _plan(self) -> RoundPlan:
        budget, warmup = self._budget, self._session.settings.warmup_rounds
        if self._telemetry.slow:
            # A slow meter has a single figure for all of it: one round that is as long as it takes.
            return RoundPlan(warmup, 1, 1, budget.max_seconds, budget.per)
        return RoundPlan(warmup, budget.min_rounds, budget.max_rounds, budget.max_seconds, budget.per)

    def _keep(self, last: object, windows: Sequence[RoundWindow]) -> object:
        self._windows.extend(windows)
        self._notes = notes_of(last)
        return last

    def run(
        self, engine: Engine | EngineSpec, workload: Workload | Batch, *, quality: Quality | None = None
    ) -> Generation:
        """Run a workload of pytest_tokenpower.workloads on an engine in rounds.

        Phases come from the engine's steps, and the GPUs that are measured are those that it says it uses.

        Args:
            engine: a running engine, or an EngineSpec that is started before and closed after it. Of its configuration
                what :meth:`declare` names enters the key.
            workload: what it is given; its fingerprint enters the key.
            quality: called with the running engine after all rounds; it gives the score for :meth:`quality`.

        Returns:
            What the engine generated last.

        Raises:
            EngineError: the engine does not start, or fails.
            TokenCountError: it did less or more than the workload asks for.
        """
        __tracebackhide__ = True
        from pytest_tokenpower.engines.execution import Execution
        from pytest_tokenpower.engines.spec import EngineSpec

        with ExitStack() as stack:
            stack.enter_context(self._refusing())
            if self.used:
                raise UsageError(
                    f"{self._test}: energy.run() is a measurement of its own: use it once, and alone"
                )
            running = stack.enter_context(engine.start()) if isinstance(engine, EngineSpec) else engine
            execution = Execution(running, workload)
            if execution.device_ids is not None:
                self._telemetry = self._telemetry.on_gpus(execution.device_ids)
            self._workload = execution.fingerprint
            generation = self(execution)
            if quality is not None:
                self.quality(quality(running))
            return generation

    def quality(self, score: Score | float) -> None:
        """Have the score of the answers stand beside the joules: more is better, at least 0.

        ``power_budget(quality=...)`` is its floor. A ``Score`` also says what it is of, and its standard error.
        Raises UsageError for what is no score, and for a second one.
        """
        from pytest_tokenpower.workloads.quality import Score

        with self._refusing():
            if self._score is not None:
                raise UsageError(f"{self._test}: energy.quality() was called twice: a test has one score")
            try:
                self._score = Score.of(score)
            except UsageError as error:
                raise UsageError(f"{self._test}: energy.quality: {error}") from None

    def declare(self, **axes: Fact) -> None:
        """Have parts of the engine's configuration enter the key: ``energy.declare(quantization="fp8")``.

        Named are axes or facts that the engine reports (dtype, quantization, kv_cache_dtype, tensor_parallel, ...).
        The key gets the engine's own values; another value than the test's is an error, here or once the engine is
        known. What is not declared is recorded, and runs are compared whatever it is.
        """
        if self._entered:
            raise UsageError(f"{self._test}: energy.declare() comes before the measurement")
        self._declared |= axes
        if self._identity is not None:
            declared_config(self._declared, self._identity)

    def note(self, **facts: Fact) -> None:
        """Have facts recorded along with the measurement; they are not compared."""
        self._facts |= facts

    @contextmanager
    def measure(self) -> Iterator[Window]:
        """Measure what runs inside the ``with`` block, as one round; the block may be entered again for more.

        Nothing is warmed up and nothing is repeated: a single window stands for a single round. Raises
        TokenCountError when the block ends without tokens having been counted.
        """
        with self._refusing(), generate_calls() as calls:
            if self._called:
                raise UsageError(f"{self._test}: energy() and energy.measure() in one test: use one of them")
            self._refuse_soak("energy.measure()")
            declared_config(self._declared, None)
            self._entered = True
            window, now_ns = Window(self, calls), self._telemetry.clock.monotonic_ns
            if (wait := device_wait()) is not None:
                wait()
            with self._window():
                start_ns = now_ns()
                try:
                    yield window
                except GeneratorExit:
                    self._refusals.append(
                        f"{self._test}: an energy.measure() block was begun and never ended"
                    )
                    raise
                if (wait := device_wait()) is not None:
                    wait()
                end_ns = now_ns()
            self._close(window, start_ns, end_ns)

    def _close(self, window: Window, start_ns: int, end_ns: int) -> None:
        window._open = False
        if self._replayed is not None:
            self._windows.append(self._next_replayed(self._replayed))
            return
        with self._named():
            tokens = window.total()
        if tokens is None or not any((tokens.prompt, tokens.generated, tokens.responses)):
            raise TokenCountError(f"{self._test}: {self._words.uncounted}")
        results = [held() for held in window._results]
        try:
            refuse_repeated(results)
        except TokenCountError as error:
            raise TokenCountError(f"{self._test}: in one energy.measure() block {error}") from None
        window.forget()
        # Requests that ran at a time tell their phases together.
        phases = joined([phases_of(result) for result in results]) or phases_of(results)
        reasons = tuple(dict.fromkeys(reason for result in results for reason in unsound([result])))
        latencies = latencies_of(results)
        self._windows.append(
            RoundWindow(start_ns, end_ns, tokens, 1, phases, reasons=reasons, latencies=latencies)
        )

    def compare(
        self,
        *,
        baseline: Callable[[], object] | Startable,
        candidate: Callable[[], object] | Startable,
        at_least: float | str | None = None,
        at_most: float | str | None = None,
        restarts: int = 1,
        names: tuple[str, str] | None = None,
    ) -> None:
        """Measure two variants against each other in this test, in ABBA blocks; no stored baseline is needed.

        The test fails where the candidate surely does not hold what is asked of it.

        Args:
            baseline: a callable whose result can be counted, or an engine that is started in a process of its own
                (``Startable``), anew for each of the restarts.
            candidate: the same, of what is to be judged.
            at_least: the share that the candidate must save, such as "20%".
            at_most: the share that it may cost more, such as "1%" (default: the test's regression limit).
            restarts: how often engines are started anew.
            names: what the verdict calls them, ("bf16", "FP8"): "FP8 saves 32.4 %"; by default callables by their own
                names, and engines by the options in which they differ.

        Raises:
            UsageError: the test measures already, or the arguments do not go together.
            TokenCountError: the tokens of a result cannot be counted.
        """
        __tracebackhide__ = True
        comparing = self._comparing(started, baseline, candidate, at_least, at_most, restarts, names)
        run(comparing, lambda: self._telemetry)

    async def async_compare(
        self,
        *,
        baseline: Callable[[], object] | Startable,
        candidate: Callable[[], object] | Startable,
        at_least: float | str | None = None,
        at_most: float | str | None = None,
        restarts: int = 1,
        names: tuple[str, str] | None = None,
    ) -> None:
        """Compare as :meth:`compare` does, on the event loop of an asynchronous test; either variant may be awaited."""
        __tracebackhide__ = True
        comparing = self._comparing(started_async, baseline, candidate, at_least, at_most, restarts, names)
        await run_async(comparing, lambda: self._telemetry)

    def _comparing(
        self,
        start: Callable[[Callable[[], object] | Startable, ExitStack], Callable[[], object]],
        baseline: Callable[[], object] | Startable,
        candidate: Callable[[], object] | Startable,
        at_least: float | str | None,
        at_most: float | str | None,
        restarts: int,
        names: tuple[str, str] | None,
    ) -> Measuring[None]:
        __tracebackhide__ = True
        with self._refusing(), self._window(), generate_calls() as calls:
            if self.used:
                raise UsageError(
                    f"{self._test}: energy.compare() is a measurement of its own: use it once, and alone"
                )
            if self._replayed is not None:
                raise UsageError(
                    f"{self._test}: energy.compare() cannot be replayed: it needs both variants running"
                )
            self._refuse_soak("energy.compare()")
            self._entered = True
            asked = CompareArgs.of(self._test, baseline, candidate, at_least, at_most, restarts, names)
            limit = self._budget.regression or self._session.settings.regression
            budget, order = self._budget, random.Random()
            given = dict(zip(VARIANTS, (baseline, candidate), strict=True))
            plan = BlockPlan(
                self._session.settings.warmup_rounds,
                max(2, budget.min_rounds // 2),
                max(2, budget.max_rounds // 2),
                budget.max_seconds,
                budget.per,
            )
            called: dict[Variant, Callable[[], object]] = {}

            def count(variant: Variant, result: object) -> TokenCount:
                return self._counted(result, fn=called[variant], ran=calls.of(result))

            finished = []
            for _ in range(asked.restarts):
                with ExitStack() as stack:
                    running: dict[Variant, Callable[[], object]] = {}
                    for name, variant in given.items():
                        with annotate_errors(name, asked.names):
                            running[name] = start(variant, stack)
                        # Not what awaits it: prompts and settings are found in the callable itself.
                        called[name] = variant if callable(variant) else running[name]
                    for variant in running.values():
                        require_local_meter(self._test, variant, self._telemetry.devices)
                    self._identity = describe_callable(running["candidate"])
                    declared_config(self._declared, self._identity)
                    used = [getattr(variant, "device_ids", None) for variant in running.values()]
                    running = {
                        name: calls.noting(each, awaited=start is started_async)
                        for name, each in running.items()
                    }
                    if None not in used:
                        self._telemetry = self._telemetry.on_gpus(
                            sorted({gpu for each in used for gpu in each or ()})
                        )
                    finished.append(
                        (
                            yield from blocks_of(
                                running,
                                count,
                                phases_of,
                                plan,
                                bench=self._telemetry,
                                order=order,
                                names=asked.names,
                            )
                        )
                    )
            self._comparison = Comparison(
                tuple(finished),
                asked.at_least,
                None if asked.at_least else asked.at_most or limit,
                fresh=asked.fresh,
                names=asked.names,
            )
            self._windows.extend(self._comparison.windows)

    def _next_replayed(self, recorded: Sequence[RoundWindow]) -> RoundWindow:
        if len(self._windows) == len(recorded):
            raise UsageError(
                f"{self._test}: the recording has {len(recorded)} windows of this test, and energy.measure() was "
                "entered once more"
            )
        return recorded[len(self._windows)]

    def _counted(
        self,
        result: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
        fn: Callable[..., object] | None = None,
        ran: tuple[tuple[Any, Call], ...] = (),
    ) -> TokenCount:
        """Count a result as the hook of the test's folder does, or as its shape says."""
        kwargs = dict(kwargs or {})
        with self._named():
            counted = self._hooked(result, args, kwargs, fn)
            given = result if counted is None else counted
            # A Generation says itself what it holds; seeing through what was called takes time, which a soak has not.
            called = () if isinstance(given, Generation) else (args, kwargs, fn, ran)
            tokens = count_tokens(given, *called)
            self._refuse_cached(result, tokens)
            return tokens

    def _counted_in(self, window: Window, result: object) -> TokenCount | None:
        """Count a result of a window; None: it is ids of calls, which the window counts when it closes."""
        with self._named():
            if (counted := self._hooked(result, (), {}, None)) is None and window.of_calls(result):
                return None
            tokens = count_tokens(result if counted is None else counted)
            self._refuse_cached(result, tokens)
            return tokens

    def _refuse_cached(self, result: object, tokens: TokenCount) -> None:
        if tokens.cached_prompt and isinstance(result, Generation) and not self._budget.prefix_cache:
            raise TokenCountError(
                f"{tokens.cached_prompt} of {tokens.prompt} prompt tokens came from the engine's prefix cache and "
                "were not prefilled: switch it off (vLLM: enable_prefix_caching=False, a server's "
                "--no-enable-prefix-caching; SGLang: disable_radix_cache=True), or say "
                "power_budget(prefix_cache=True) where it is meant"
            )

    def _hooked(
        self,
        result: object,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        fn: Callable[..., object] | None,
    ) -> TokenCount | None:
        refuse_pending(result)
        counted = self._counter(result, args, kwargs, fn)
        if counted is not None and not isinstance(counted, TokenCount):
            raise UsageError(
                f"the hook pytest_tokenpower_count_tokens returned {counted!r}: it must return a TokenCount, or "
                "None for what it does not know"
            )
        return counted

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except (TokenCountError, UsageError) as error:
            raise type(error)(f"{self._test}: {error}") from None

    @property
    def result(self) -> Result:
        """What has been measured so far: ``energy.result.joules_per_token``, with its standard error.

        Raises UsageError before the measurement, and inside an open window.
        """
        if self._open:
            raise UsageError(
                f"{self._test}: energy.result was read while a window is open: read it after the block"
            )
        if not self._windows:
            raise UsageError(f"{self._test}: {self._words.empty}")
        state = (len(self._windows), len(self._refusals))
        if self._result is None or self._result[0] != state:
            found = Result.of(
                finish(self._taken(self.attempts[-1:]), self._budget, self._session, judged=False)
            )
            reasons = (*found.reasons, *self._refusals[:1])
            self._result = state, replace(found, reasons=reasons, figures={} if reasons else found.figures)
        return self._result[1]

    @property
    def refusal(self) -> str:
        """What was refused first, whether or not the test saw it; empty where nothing was."""
        if self._open:
            return (
                f"{self._test}: a window is still open at the test's end: end it in the test (wait for its thread or "
                "task; a fixture around the test ends it too late)"
            )
        return self._refusals[0] if self._refusals else ""

    @property
    def refused_late(self) -> str:
        """What was refused when the test's body had ended; empty where nothing was."""
        return "; ".join(self._refusals[self._refused_before :]) if self._ended else ""

    @property
    def boards(self) -> frozenset[str]:
        """The devices whose energy is measured: one measurement at a time has them."""
        return frozenset(device.id for device in self._telemetry.devices)

    @property
    def gpu_ids(self) -> tuple[str, ...]:
        """The GPUs that are measured: nobody else may be measured on them meanwhile."""
        return tuple(
            device.gpu_id
            for device in self._telemetry.devices
            # Simulated and replayed boards are each run's own.
            if device.gpu_id is not None and device.provenance == "measured"
        )

    @property
    def used(self) -> bool:
        """Whether the test began to measure; a workload that raises may have left no round."""
        return self._called or self._entered

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """The rounds of this try of the test and of the earlier ones that are judged with them."""
        # A replay would give the same rounds once more.
        earlier = self._earlier if self._replayed is None else ()
        return (*earlier, Attempt(tuple(self._windows), self._comparison))

    def end_body(self) -> None:
        """Refuse to measure from here on: the test's body has ended."""
        self._ended, self._refused_before = True, len(self._refusals)

    def finish(self, *, failed: bool) -> MeasurementRecord:
        """Give the test's measurement with its verdicts; none where the test ``failed`` by itself."""
        self._session.keep(self._test, self._windows, self._telemetry)
        attempts = self.attempts[-1:] if failed else self.attempts
        return finish(self._taken(attempts), self._budget, self._session, failed=failed)

    def _taken(self, attempts: tuple[Attempt, ...]) -> MeasuredTest:
        return MeasuredTest(
            test=self._test,
            telemetry=self._telemetry,
            attempts=attempts,
            repeated=self._called,
            identity=self._identity,
            declared=self._declared,
            workload=self._workload,
            notes={**self._notes, **self._facts},
            score=self._score,
            soaked=self._soaked,
        )


class DisabledEnergy:
    """The fixture under --energy-disable: workloads run once, nothing is measured."""

    def __init__(self, skip: Callable[[str], NoReturn]) -> None:
        self._skip = skip

    def __call__(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run ``fn`` once, or as often as pytest-benchmark does."""
        __tracebackhide__ = True
        if is_benchmark(fn):
            require_workload("--energy-disable", fn, args)
        with blocking(fn, instead=Words().awaited.format(name=name_of(fn))) as execute:
            return execute(*args, **kwargs)

    async def async_run(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run ``fn`` once."""
        __tracebackhide__ = True
        return await awaited(fn, *args, **kwargs)

    @property
    def result(self) -> NoReturn:
        """Skip the rest of the test: there is no figure to look at."""
        self._skip("energy.result: nothing is measured (--energy-disable)")

    def run(
        self, engine: Engine | EngineSpec, workload: Workload | Batch, *, quality: Quality | None = None
    ) -> Generation:
        """Run the workload once."""
        __tracebackhide__ = True
        from pytest_tokenpower.engines.execution import Execution
        from pytest_tokenpower.engines.spec import EngineSpec

        with ExitStack() as stack:
            running = stack.enter_context(engine.start()) if isinstance(engine, EngineSpec) else engine
            return Execution(running, workload)()

    def compare(
        self,
        *,
        baseline: Callable[[], object] | Startable,
        candidate: Callable[[], object] | Startable,
        **_: object,
    ) -> None:
        """Run each variant once."""
        __tracebackhide__ = True
        for variant in (baseline, candidate):
            with ExitStack() as stack:
                started(variant, stack)()

    async def async_compare(
        self,
        *,
        baseline: Callable[[], object] | Startable,
        candidate: Callable[[], object] | Startable,
        **_: object,
    ) -> None:
        """Run each variant once."""
        __tracebackhide__ = True
        for variant in (baseline, candidate):
            with ExitStack() as stack:
                await started_async(variant, stack)()

    def declare(self, **axes: Fact) -> None:
        """Nothing is compared."""

    def note(self, **facts: Fact) -> None:
        """Nothing is recorded."""

    def quality(self, score: Score | float) -> None:
        """Nothing is judged."""

    @contextmanager
    def measure(self) -> Iterator[Window]:
        """Run the block."""
        yield Window(None)
