"""Two variants in one test: ABBA blocks with a random first variant, and what their differences say."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import msgspec
import numpy as np

from pytest_tokenpower.analysis.rounds import LARGEST_FLAGGED_SHARE, denominator_of, gated, unknown_figure
from pytest_tokenpower.core.denominators import figure_per
from pytest_tokenpower.core.progress import warmup_progress
from pytest_tokenpower.core.records import OTHER_VARIANT, RoundRecord, VerdictRecord
from pytest_tokenpower.core.settings import fraction
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.windows import PhaseWindow, RoundWindow
from pytest_tokenpower.errors import EngineError, TokenCountError, UsageError
from pytest_tokenpower.gate.equal_lengths import unlike_lengths
from pytest_tokenpower.gate.verdict import Policy, judge_variants
from pytest_tokenpower.runner.coroutines import blocking, settled
from pytest_tokenpower.runner.rounds import (
    MOST_ROUNDS,
    MOST_SECONDS,
    Measuring,
    RoundEvaluator,
    counted_round,
    quick_enough,
    repeats_for,
)
from pytest_tokenpower.stats.comparison import Blocks, block_differences
from pytest_tokenpower.stats.pace import Waiting
from pytest_tokenpower.stats.runs import summarise_blocks
from pytest_tokenpower.stats.scatter import DEFAULT_NOISE


class Startable(Protocol):
    """A variant that is started anew for each restart: an engine in a process of its own with its workload."""

    def start(self) -> AbstractContextManager[Callable[[], object]]:
        """Start it; the context gives the callable that runs one execution, and ends the process when left."""
        ...


@dataclass(frozen=True)
class CompareArgs:
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
    ) -> CompareArgs:
        """Raise UsageError that names the test and the argument."""
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
def annotate_errors(variant: str, names: tuple[str, str] | None) -> Iterator[None]:
    """Have an error of an engine, or of counting its tokens, begin with the variant that it is of."""
    name = f" ({names[variant == 'candidate']})" if names else ""
    try:
        yield
    except (EngineError, TokenCountError, UsageError) as error:
        kind = next(each for each in (EngineError, TokenCountError, UsageError) if isinstance(error, each))
        raise kind(f"energy.compare, the {variant}{name}: {error}") from error


def started(variant: Callable[[], object] | Startable, stack: ExitStack) -> Callable[[], object]:
    """Return what runs one execution of a variant; one that has to be started ends with ``stack``."""
    running: AbstractContextManager[Callable[[], object]] = (
        variant.start()
        if hasattr(variant, "start")
        else blocking(variant, instead="so is this test: write `await energy.async_compare(...)`")
    )
    return stack.enter_context(running)


def started_async(variant: Callable[[], object] | Startable, stack: ExitStack) -> Callable[[], Any]:
    """Return the same to be awaited; an engine of a process of its own is waited for with the loop standing still."""
    if not hasattr(variant, "start"):
        return partial(settled, variant)
    return partial(settled, stack.enter_context(variant.start()))


def names_of(baseline: object, candidate: object) -> tuple[str, str] | None:
    """Return what two variants are called: callables by their names, engines by what differs.

    None where nothing tells them apart: lambdas, or two closures of one function.
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


Variant = Literal["baseline", "candidate"]

VARIANTS: tuple[Variant, Variant] = ("baseline", "candidate")


@dataclass(frozen=True)
class BlockPlan:
    """How many ABBA blocks a restart has: ``min_blocks`` always, more while precision asks and time allows."""

    warmup_rounds: int
    min_blocks: int
    max_blocks: int
    max_seconds: float
    per: str | None = None


@dataclass(frozen=True)
class Block:
    """Four rounds in the order lead, other, other, lead: a linear drift falls out of their difference."""

    variants: tuple[Variant, ...]
    windows: tuple[RoundWindow, ...]


def blocks_of(
    execute: dict[Variant, Callable[[], Any]],
    count: Callable[[Variant, object], TokenCount],
    phases: Callable[[object], Sequence[PhaseWindow]],
    plan: BlockPlan,
    *,
    bench: RoundEvaluator,
    order: random.Random,
    names: tuple[str, str] | None = None,
) -> Measuring[tuple[Block, ...]]:
    """Warm both variants up, then run ABBA blocks of one restart, each with a first variant drawn from ``order``.

    The warm-up goes on while a variant still gets faster; a drift of both falls out of the blocks. It stops on
    precision, never on the difference itself. ``names`` are what the variants are called where one fails.
    """
    __tracebackhide__ = True
    clock = bench.clock

    def run(variant: Variant, repeats: int) -> Measuring[RoundWindow]:
        __tracebackhide__ = True
        with annotate_errors(variant, names):
            ran = yield execute[variant], repeats
            return counted_round(ran, partial(count, variant), phases)

    seconds: dict[Variant, list[float]] = {variant: [] for variant in VARIANTS}
    began = clock.seconds()
    tell = warmup_progress()
    while (done := len(seconds["candidate"])) < max(plan.warmup_rounds, 1) or not (
        done >= MOST_ROUNDS
        or clock.seconds() - began > MOST_SECONDS
        or all(map(quick_enough, seconds.values()))
    ):
        tell(done, clock.seconds())
        for variant in VARIANTS:
            window = yield from run(variant, 1)
            seconds[variant].append((window.end_ns - window.start_ns) / 1e9)
    repeats = {variant: repeats_for(min(seconds[variant]), bench) for variant in VARIANTS}
    blocks: list[Block] = []
    began = clock.seconds()
    while len(blocks) < plan.max_blocks:
        lead = order.choice(VARIANTS)
        other = VARIANTS[1 - VARIANTS.index(lead)]
        variants = (lead, other, other, lead)
        windows = []
        for variant in variants:
            window = yield from run(variant, repeats[variant])
            windows.append(replace(window, pool=variant))
        blocks.append(Block(variants, tuple(windows)))
        if bench.failed_for_good(windows[0].start_ns):
            break
        if len(blocks) < plan.min_blocks:
            continue
        if clock.seconds() - began > plan.max_seconds:
            break
        records = bench.assess([window for block in blocks for window in block.windows])
        found = kept_blocks(blocks, records, plan.per or denominator_of(records))
        if found is not None and len(found.joules_per_token) >= plan.min_blocks:
            (summary,) = summarise_blocks([block_differences(found)])
            if summary.squared_error <= (DEFAULT_NOISE.interleaved.sd / 2) ** 2:
                break
    return tuple(blocks)


@dataclass(frozen=True)
class Comparison:
    """What ``energy.compare`` ran: the blocks of each restart, the bound that was asked for, the variants' names.

    ``fresh`` tells variants that were started anew for each restart from callables of this process. ``names`` are of
    the baseline and the candidate.
    """

    restarts: tuple[tuple[Block, ...], ...]
    at_least: float | None = None
    at_most: float | None = None
    fresh: bool = False
    names: tuple[str, str] | None = None

    def after(self, earlier: Comparison) -> Comparison:
        """Return this one with what ``earlier``, a try of the same test, ran: more restarts, or blocks of the one."""
        if self.fresh:
            return replace(self, restarts=(*earlier.restarts, *self.restarts))
        blocks = tuple(block for each in (*earlier.restarts, *self.restarts) for block in each)
        return replace(self, restarts=(blocks,))

    @property
    def windows(self) -> tuple[RoundWindow, ...]:
        """All rounds of both variants in the order in which they ran."""
        return tuple(w for blocks in self.restarts for block in blocks for w in block.windows)

    def of_variant(self, variant: Variant, records: Sequence[RoundRecord]) -> tuple[RoundRecord, ...]:
        """Return the records of one variant's rounds; ``records`` are of all windows, in their order."""
        variants = [each for blocks in self.restarts for block in blocks for each in block.variants]
        return tuple(record for each, record in zip(variants, records, strict=True) if each == variant)

    def judge(
        self, records: Sequence[RoundRecord], per: str, policy: Policy, waiting: Waiting | None = None
    ) -> VerdictRecord:
        """Return the verdict over all restarts.

        Args:
            records: as for :meth:`of_variant`.
            per: their denominator.
            policy: what it is judged by.
            waiting: the waiting watts of the board.
        """
        found = []
        rest = list(records)
        for blocks in self.restarts:
            size = sum(len(block.windows) for block in blocks)
            found.append(kept_blocks(blocks, rest[:size], per))
            rest = rest[size:]
        kept = [each for each in found if each is not None]
        total = sum(len(blocks) for blocks in self.restarts)
        dropped = total - sum(len(each.joules_per_token) for each in kept)
        if not kept or dropped > LARGEST_FLAGGED_SHARE * total:
            causes = dict.fromkeys(reason for record in records for reason in record.reasons)
            if unknown := unknown_figure(records, per):
                causes.setdefault(unknown)
            return VerdictRecord(
                "invalid",
                OTHER_VARIANT,
                reason=f"{dropped} of {total} ABBA blocks could not be measured: {'; '.join(causes)}",
            )
        verdict = judge_variants(
            kept,
            policy,
            at_least=self.at_least,
            at_most=self.at_most,
            names=self.names,
            waiting=waiting,
        )
        baseline, candidate = (self.of_variant(variant, records) for variant in VARIANTS)
        notes = (*verdict.notes, *unlike_lengths(baseline, candidate, per, self.names))
        return msgspec.structs.replace(verdict, figure=figure_per(per), notes=notes)


def kept_blocks(blocks: Sequence[Block], records: Sequence[RoundRecord], per: str) -> Blocks | None:
    """Return the blocks of one restart of which all four rounds are good; None where there is none.

    ``records`` are of all the blocks' windows, in their order; ``per`` is their denominator.
    """
    joules, seconds, candidate = [], [], []
    for number, block in enumerate(blocks):
        parts = gated(records[4 * number : 4 * number + 4], per)
        if len(parts) == len(block.variants):
            joules.append([each.joules / each.units for each in parts])
            seconds.append([each.seconds / each.units for each in parts])
            candidate.append([float(variant == "candidate") for variant in block.variants])
    if not joules:
        return None
    return Blocks(np.array(joules), np.array(candidate), np.array(seconds))
