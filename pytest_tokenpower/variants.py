"""What a test asks of ``energy.compare``, checked: two variants, a limit, restarts, names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from pytest_tokenpower.errors import EngineError, TokenCountError, UsageError
from pytest_tokenpower.settings import fraction


class Startable(Protocol):
    """A variant that is started anew for each restart: an engine in a process of its own with its workload."""

    def start(self) -> AbstractContextManager[Callable[[], object]]:
        """Start it; the context gives the callable that runs one execution, and ends the process when left."""
        ...


@dataclass(frozen=True)
class Asked:
    """The arguments of a comparison; ``at_least`` and ``at_most`` are fractions, and at most one of them is given.

    ``fresh`` tells variants that are started anew for each restart from callables of this process.
    """

    at_least: float | None
    at_most: float | None
    restarts: int
    fresh: bool
    names: tuple[str, str] | None

    @classmethod
    def of(
        cls,
        test: str,
        baseline: object,
        candidate: object,
        at_least: float | str | None,
        at_most: float | str | None,
        restarts: int,
        names: tuple[str, str] | None,
    ) -> Asked:
        """Raises UsageError that names the test and the argument."""
        saving, cost = _share(test, "at_least", at_least), _share(test, "at_most", at_most)
        if saving is not None and cost is not None:
            raise UsageError(
                f"{test}: energy.compare() has one limit: at_least, what the candidate must save, or at_most, what it "
                "may cost more"
            )
        if saving is not None and saving >= 1:
            raise UsageError(f"{test}: energy.compare(at_least={at_least!r}): must be below 100 %")
        for name, variant in (("baseline", baseline), ("candidate", candidate)):
            if not callable(variant) and not hasattr(variant, "start"):
                raise UsageError(
                    f"{test}: energy.compare({name}={variant!r}): must be a callable, or an engine to start"
                )
            if hasattr(variant, "workload"):
                raise UsageError(
                    f"{test}: energy.compare({name}=EngineSpec(...)): an engine alone has nothing to do: give "
                    "EngineSpec(...).workload(FixedShape(...))"
                )
        if not isinstance(restarts, int) or isinstance(restarts, bool) or restarts < 1:
            raise UsageError(
                f"{test}: energy.compare(restarts={restarts!r}): must be an integer of at least 1"
            )
        fresh = hasattr(baseline, "start") and hasattr(candidate, "start")
        if restarts > 1 and not fresh:
            raise UsageError(
                f"{test}: energy.compare(restarts={restarts}) starts each variant anew, which needs engines in "
                "processes of their own; callables of this process have one restart"
            )
        called = names_of(baseline, candidate) if names is None else _two_names(test, names)
        return cls(saving, cost, restarts, fresh, called)


@contextmanager
def told_of(arm: str, names: tuple[str, str] | None) -> Iterator[None]:
    """Have an error of an engine, or of counting its tokens, begin with the variant that it is of."""
    name = f" ({names[arm == 'candidate']})" if names else ""
    try:
        yield
    except (EngineError, TokenCountError, UsageError) as error:
        kind = next(each for each in (EngineError, TokenCountError, UsageError) if isinstance(error, each))
        raise kind(f"energy.compare, the {arm}{name}: {error}") from error


def started(variant: Callable[[], object] | Startable, stack: ExitStack) -> Callable[[], object]:
    """What runs one execution of a variant; one that has to be started ends with ``stack``."""
    return stack.enter_context(variant.start()) if hasattr(variant, "start") else variant


def names_of(baseline: object, candidate: object) -> tuple[str, str] | None:
    """What two variants are called where that tells them apart: callables by their names, engines by what differs.

    None where nothing does: lambdas, or two closures of one function.
    """
    names = tuple(_describe(one, other) for one, other in ((baseline, candidate), (candidate, baseline)))
    return (names[0], names[1]) if all(names) and names[0] != names[1] else None


def _describe(variant: object, other: object) -> str:
    spec, beside = getattr(variant, "spec", None), getattr(other, "spec", None)
    if spec is None or beside is None:
        called = str(getattr(getattr(variant, "func", variant), "__name__", ""))
        return "" if called == "<lambda>" else called
    if spec.engine != beside.engine:
        return str(spec.engine)
    if spec.model != beside.model:
        return str(os.path.basename(os.path.normpath(spec.model)))
    # An option that only the other one sets is this one's default.
    names = sorted({*spec.options, *beside.options})
    return ", ".join(
        f"{name}={spec.options.get(name, 'default')}"
        for name in names
        if spec.options.get(name, "default") != beside.options.get(name, "default")
    )


def _two_names(test: str, names: object) -> tuple[str, str]:
    if not isinstance(names, (tuple, list)) or [type(name) for name in names] != [str, str] or not all(names):
        raise UsageError(
            f"{test}: energy.compare(names={names!r}): must be two names, the baseline's and the candidate's"
        )
    return names[0], names[1]


def _share(test: str, name: str, value: float | str | None) -> float | None:
    if value is None:
        return None
    try:
        return fraction(None, value)
    except UsageError as error:
        raise UsageError(f"{test}: energy.compare({name}={value!r}): {error}") from None
