"""The page of benchmarks/gpu_error_rates.py: what the gate makes of its runs, counts and tables, from its results."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any

import msgspec
import numpy as np
from reporting import driver_of, versions_line

from pytest_tokenpower.core.records import MeasurementRecord, RunRecord, VerdictRecord, decode_run
from pytest_tokenpower.gate.noise import MeasuredNoise, analyse
from pytest_tokenpower.gate.verdict import Policy, judge, judge_variants
from pytest_tokenpower.stats.comparison import Blocks, block_differences
from pytest_tokenpower.stats.noise import clopper_pearson
from pytest_tokenpower.stats.planning import failing_share
from pytest_tokenpower.store.baseline import ComparableRuns

SEED = 20261122
NEW_TOKENS = 200
STORED = 5
RESTARTS = 3
MOST_SETS = 60
THRESHOLDS = (0.01, 0.02, 0.03)
COMPARE_THRESHOLD = 0.005
BUDGET_SECONDS = 90.0
MOST_FAILED, LEAST_FOUND = 0.01, 0.95


@dataclass(frozen=True)
class Run:
    """A measurement in process ``process``, its first or second, whose code wasted ``extra`` steps."""

    process: int
    place: int
    extra: int
    measured: MeasurementRecord


@dataclass(frozen=True)
class Restart:
    """An ``energy.compare`` in process ``process``: the blocks' differences, and what its rounds took."""

    process: int
    extra: int
    blocks: Blocks | None
    seconds: float

    @property
    def differences(self) -> tuple[float, ...]:
        """ln(candidate/baseline) of each block."""
        return () if self.blocks is None else tuple(block_differences(self.blocks))


@dataclass(frozen=True)
class Found:
    """Everything that was measured, and what the gate makes of it."""

    raw: Mapping[str, Any]
    runs: tuple[Run, ...]
    restarts: tuple[Restart, ...]
    invalid: tuple[str, ...] = field(default=())

    @property
    def notes(self) -> list[str]:
        """What whoever ran it has written down beside the results."""
        return list(self.raw.get("notes", ()))

    @classmethod
    def read(cls, results: Mapping[str, Any]) -> Found:
        """From what ``run`` wrote."""
        runs, restarts, invalid = [], [], []
        for number, process in enumerate(results["processes"], 1):
            record = decode_run(json.dumps(process["record"]).encode(), source=f"process {number}")
            turn = process["turn"]
            for measured in record.measurements:
                if measured.variants:
                    rounds = [*measured.rounds, *measured.variants["baseline"]]
                    restarts.append(
                        Restart(
                            number, turn["compare"], _blocks(measured), sum(each.seconds for each in rounds)
                        )
                    )
                    continue
                place = int(measured.test[-2])
                extra = turn["runs"][place]
                if not measured.comparable:
                    invalid.append(f"process {number}, +{extra} steps: {'; '.join(measured.reasons)}")
                    continue
                same = msgspec.structs.replace(measured, test="test_detection.py::test_run")
                runs.append(Run(number, place + 1, extra, same))
        return cls(results, tuple(runs), tuple(restarts), tuple(invalid))

    @property
    def failures(self) -> list[str]:
        """The processes that ended before their time, each in a line."""
        return [str(each).splitlines()[0] for each in self.raw["failures"]]

    @cached_property
    def identical(self) -> tuple[Run, ...]:
        """The runs without waste."""
        return tuple(run for run in self.runs if not run.extra)

    @cached_property
    def noise(self) -> MeasuredNoise:
        """The spread of the runs without waste."""
        (found,) = analyse(
            [
                RunRecord(
                    id=str(run.process),
                    created=f"2026-11-22T00:{run.process:02}:00Z",
                    measurements=(run.measured,),
                )
                for run in self.identical
            ],
            threshold=THRESHOLDS[0],
            baseline_runs=STORED,
        )
        if not isinstance(found, MeasuredNoise):
            sys.exit(f"the runs of identical code tell nothing: {found.why}")
        return found

    def change(self, extra: int) -> float:
        """Return the true change of so many extra steps: their share of a round's energy, from its decode phase."""
        shares = [
            run.measured.figures["decode_joules_per_token"].value
            / run.measured.figures["joules_per_token"].value
            for run in self.identical
            if "decode_joules_per_token" in run.measured.figures
        ]
        return extra / (NEW_TOKENS - 1) * float(np.mean(shares)) if shares else extra / NEW_TOKENS

    def verdicts(self, run: Run, threshold: float) -> list[VerdictRecord]:
        """Return the run against each set of five runs without waste of other processes, or many such sets by lot."""
        others = [each.measured for each in self.identical if each.process != run.process]
        sets = list(combinations(others, min(STORED, len(others))))
        if len(sets) > MOST_SETS:
            sets = random.Random(SEED).sample(sets, MOST_SETS)
        return [
            judge(run.measured, ComparableRuns("identical code", each), Policy(threshold)) for each in sets
        ]

    @cached_property
    def judged(self) -> dict[tuple[int, float], list[list[VerdictRecord]]]:
        """Verdicts by waste and threshold, per run."""
        return {
            (extra, threshold): [self.verdicts(run, threshold) for run in self.runs if run.extra == extra]
            for extra in sorted({run.extra for run in self.runs})
            for threshold in THRESHOLDS
        }

    def failed(self, threshold: float, *extras: int) -> Count:
        """Return the runs with so much waste that failed: in most of their verdicts, which share their stored runs."""
        per_run = [verdicts for extra in extras for verdicts in self.judged.get((extra, threshold), [])]
        return Count(
            sum(
                2 * sum(verdict.kind == "regressed" for verdict in verdicts) > len(verdicts)
                for verdicts in per_run
            ),
            len(per_run),
        )

    def foretold(self, change: float, threshold: float) -> tuple[float, float]:
        """Return the share that the rule fails.

        By the measured spread of runs, and by the upper end of its interval.
        """
        noise = self.noise.adjusted or self.noise.raw
        at_spread, at_upper = (
            failing_share(change, sd, STORED, Policy(threshold).of_rule(threshold))
            for sd in (noise.runs.sd, noise.runs.high)
        )
        return at_spread, at_upper

    def compared(self, extra: int) -> list[VerdictRecord]:
        """Return the verdicts of ``energy.compare``, each on restarts of its own, in their order."""
        restarts = [each for each in self.restarts if each.extra == extra and each.differences]
        return [
            compared(restarts[at : at + RESTARTS]) for at in range(0, len(restarts) - RESTARTS + 1, RESTARTS)
        ]


@dataclass(frozen=True)
class Count:
    """So many of so many."""

    hits: int
    of: int

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95 % interval of the share (Clopper and Pearson)."""
        return clopper_pearson(self.hits, self.of)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.hits} of {self.of} (95 %: {100 * low:.0f} to {100 * high:.0f} %)"

    def goal(self, limit: float, *, at_most: bool) -> str:
        """Whether the interval lies on the right side of the limit, on the wrong one, or on both."""
        low, high = self.interval
        if (high <= limit) if at_most else (low >= limit):
            return "met"
        return "MISSED" if (low > limit if at_most else high < limit) else "not shown"


def runs_to_show(limit: float) -> int:
    """How many runs without exception have a 95 % interval (two-sided) that ends within ``limit`` of all or none."""
    return math.ceil(math.log(0.025) / math.log1p(-limit))


def _blocks(measured: MeasurementRecord) -> Blocks | None:
    """Return the ABBA blocks; one with a dropped round is left out."""
    variants = [(1.0, each) for each in measured.rounds]
    variants += [(0.0, each) for each in measured.variants["baseline"]]
    ordered = sorted(variants, key=lambda pair: pair[1].start_ns)
    blocks = [ordered[at : at + 4] for at in range(0, len(ordered) - 3, 4)]
    kept = [each for each in blocks if all(not one.reasons and one.joules is not None for _, one in each)]
    if not kept:
        return None
    return Blocks(
        np.array([[(one.joules or 0.0) / one.generated_tokens for _, one in each] for each in kept]),
        np.array([[which for which, _ in each] for each in kept]),
    )


def compared(restarts: Sequence[Restart]) -> VerdictRecord:
    """Return the plugin's verdict on restarts in fresh processes."""
    blocks = [each.blocks for each in restarts if each.blocks is not None]
    return judge_variants(blocks, Policy(COMPARE_THRESHOLD), at_most=COMPARE_THRESHOLD)


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def signed(share: float | None) -> str:
    return f"{100 * (share or 0.0):+.2f} %"


def render(found: Found) -> str:
    """Return the page for docs/results."""
    first = found.identical[0].measured
    record = found.raw["processes"][0]["record"]
    key, noise = first.key, found.noise
    processes = found.raw["processes"]
    asynchronous = sum(bool(each["turn"].get("engine", {}).get("async_scheduling")) for each in processes)
    seconds = [sum(one.seconds for one in run.measured.rounds) for run in found.identical]
    rounds = {len(run.measured.rounds) for run in found.identical}
    verdict_seconds = (STORED + 1) * float(np.mean(seconds))
    wasteful = len(found.runs) - len(found.identical)
    sets = max(len(verdicts) for verdicts in found.judged[0, THRESHOLDS[0]])
    lines = [
        "# Error rates of the gate on a real GPU",
        "",
        f"Board: {key.get('gpu.count')}x {key.get('gpu.name')}, power limit {key.get('gpu.power_limit_watts')} W, "
        f"driver {driver_of(first.facts)}; {first.provenance} by the {first.method}.  ",
        versions_line(record["versions"]),
        f"Date: {processes[0]['at'][:10]}. Command: `{found.raw['command']}`, then `... page`.  ",
        "Llama 3.1 8B's architecture with random weights (normal, 0.02), bf16, vLLM in the test's process, CUDA graphs "
        f"for decode, asynchronous scheduling in {asynchronous} of {len(processes)} processes; 32 prompts of 32 "
        f"tokens, {NEW_TOKENS} new tokens each. Waste is decode steps that are run and not handed out: a known share "
        "of a round's energy, from the decode phase of the runs without waste.",
        "",
        f"{len(processes)} fresh processes on one board, one after the other: {len(found.identical)} runs of identical "
        f"code, {wasteful} with waste in the same processes (before or after the other, in a balanced order by lot), "
        f"{len(found.restarts)} restarts of `energy.compare`. A run is never judged against one of its own process. "
        "All verdicts are by the functions of the plugin, by what it believes by default. So few runs bound no rate "
        "at 1 %: the counts come with exact 95 % intervals (Clopper and Pearson), and beside them stands what the rule "
        "foretells for normal runs of the measured spread, which is a model and no count.",
        "",
        "![Share of runs failed against the true change](h100-error-rates.svg)",
        "",
        "## Goals",
        "",
        *(f"- {goal}" for goal in goals(found, verdict_seconds)),
        "",
        *_fell_short(found),
        "## Identical code",
        "",
        f"{noise.runs} runs of {' or '.join(map(str, sorted(rounds)))} rounds, {noise.value:.4g} J/token. "
        f"Rounds: SD {percent(noise.raw.round_sd or 0, 2)}, lag-1 {noise.raw.lag1 or 0:.2f}; the meter's own error "
        f"{percent(noise.meter_error, 2)} a round. Run-to-run SD {_spread(noise.raw.runs)} as read"
        + (
            f", {_spread(noise.adjusted.runs)} at one GPU temperature"
            if noise.adjusted
            else f"; {noise.refusal}"
        )
        + f". By `tokenpower noise` this machine can hold {percent(noise.holds, 2)} "
        f"({percent(noise.holds_surely, 2)} with 95 % confidence) against {STORED} stored runs.",
        "",
        f"## Stored mode: each run against {STORED} stored runs of identical code",
        "",
        f"A run is judged against {sets} sets of {STORED} runs of identical code from other processes ("
        + ("drawn by lot" if sets == MOST_SETS else "all there are")
        + "). The sets overlap: they show how far a verdict hangs on the choice of the stored runs, and are no "
        "evidence beyond the runs themselves.",
        "",
        "| process | run | waste | true change | J/token | °C | W | change found: median (range) | "
        + " | ".join(f"sets that fail it at {100 * limit:g} %" for limit in THRESHOLDS)
        + " |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | " + " | ".join("---" for _ in THRESHOLDS) + " |",
        *(_run_row(found, run) for run in sorted(found.runs, key=lambda run: (run.process, run.place))),
        "",
        "Runs that failed, each counted once, by most of its sets. The runs of a row are of separate processes but "
        "share the stored runs: intervals that allowed for it would be wider.",
        "",
        "| waste | true change | "
        + " | ".join(f"failed at {100 * limit:g} % | foretold" for limit in THRESHOLDS)
        + " |",
        "| --- | --- | " + " | ".join("--- | ---" for _ in THRESHOLDS) + " |",
        *(_detection_row(found, extra) for extra in sorted({run.extra for run in found.runs})),
        "",
        f"Foretold: at the measured spread (at the upper end of its 95 % interval). A verdict takes "
        f"{verdict_seconds:.0f} GPU-seconds of measured rounds ({STORED} stored runs and the new one), of which "
        f"{np.mean(seconds):.0f} are the new run's; starting the engine and warming up are not in it.",
        "",
        f"## energy.compare: {RESTARTS} restarts, limit {percent(COMPARE_THRESHOLD)}",
        "",
        "A restart is three ABBA blocks in a fresh process, both arms on its one engine.",
        "",
        "| process | waste | true change | change found | its blocks | GPU-seconds |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_restart_row(found, each) for each in found.restarts),
        "",
        "| waste | true change | restarts | change found | 95 % interval | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_compare_row(found, extra) for extra in sorted({each.extra for each in found.restarts})),
    ]
    if found.invalid or found.failures:
        lines += ["", "Not counted:", "", *(f"- {why}" for why in (*found.invalid, *found.failures))]
    return "\n".join(lines) + "\n"


def _spread(spread: Any) -> str:
    return f"{percent(spread.sd, 2)} (95 %: {percent(spread.low, 2)} to {percent(spread.high, 2)})"


def _run_row(found: Found, run: Run) -> str:
    figures = run.measured.figures
    celsius = [one.temperature_celsius for one in run.measured.rounds if one.temperature_celsius is not None]
    at = [each for each in found.runs if each.extra == run.extra].index(run)
    verdicts = {limit: found.judged[run.extra, limit][at] for limit in THRESHOLDS}
    changes = [verdict.change or 0.0 for verdict in verdicts[THRESHOLDS[0]]]
    failing = " | ".join(
        f"{sum(verdict.kind == 'regressed' for verdict in each)} of {len(each)}" for each in verdicts.values()
    )
    return (
        f"| {run.process} | {('first', 'second')[run.place - 1]} | +{run.extra} steps | "
        f"{signed(found.change(run.extra))} | {figures['joules_per_token'].value:.5f} | "
        + (f"{np.mean(celsius):.1f}" if celsius else "")
        + f" | {figures['mean_watts'].value:.0f} | {signed(float(np.median(changes)))} ({signed(min(changes))} to "
        f"{signed(max(changes))}) | {failing} |"
    )


def _detection_row(found: Found, extra: int) -> str:
    change = found.change(extra)
    cells = [f"{found.failed(limit, extra)} | {_foretold(found, change, limit)}" for limit in THRESHOLDS]
    return f"| +{extra} steps | {signed(change)} | {' | '.join(cells)} |"


def _foretold(found: Found, change: float, limit: float) -> str:
    at_spread, at_upper = found.foretold(change, limit)
    return f"{percent(at_spread)} ({percent(at_upper)})"


def _restart_row(found: Found, one: Restart) -> str:
    blocks = ", ".join(signed(math.expm1(each)) for each in one.differences)
    mean = signed(math.expm1(float(np.mean(one.differences)))) if one.differences else ""
    return (
        f"| {one.process} | +{one.extra} steps | {signed(found.change(one.extra))} | {mean} | {blocks} | "
        f"{one.seconds:.0f} |"
    )


def _compare_row(found: Found, extra: int) -> str:
    restarts = [each for each in found.restarts if each.extra == extra and each.differences]
    if not restarts:
        return f"| +{extra} steps | {signed(found.change(extra))} | 0 |  |  |  |"
    verdict = compared(restarts)
    return (
        f"| +{extra} steps | {signed(found.change(extra))} | {len(restarts)} | {signed(verdict.change)} | "
        f"{signed(verdict.change_low)} to {signed(verdict.change_high)} | {verdict.kind} |"
    )


def goals(found: Found, verdict_seconds: float) -> Iterator[str]:
    """Return what was promised for an H100, each with its figure."""
    limit = THRESHOLDS[0]
    stored = f"stored mode, limit {percent(limit, 0)}"
    failed = found.failed(limit, 0)
    yield (
        f"{failed.goal(MOST_FAILED, at_most=True)}: {stored}: identical code fails in at most "
        f"{percent(MOST_FAILED, 0)}: {failed} runs failed; foretold {_foretold(found, 0.0, limit)}"
    )
    extras = sorted({run.extra for run in found.runs})
    if 4 in extras:
        hits = found.failed(limit, 4)
        more = found.failed(limit, *(extra for extra in extras if extra >= 4))
        yield (
            f"{hits.goal(LEAST_FOUND, at_most=False)}: {stored}: {signed(found.change(4))} is found in at least "
            f"{percent(LEAST_FOUND, 0)}: {hits} runs, of those with that much waste or more {more}; foretold "
            f"{_foretold(found, found.change(4), limit)}"
        )
    yield _within("stored mode", verdict_seconds)
    compare = f"energy.compare, limit {percent(COMPARE_THRESHOLD)}, {RESTARTS} restarts"
    for extra in (0, 2):
        verdicts = found.compared(extra)
        what = (
            f"{signed(found.change(extra))} is found in at least {percent(LEAST_FOUND, 0)}"
            if extra
            else f"identical code fails in at most {percent(MOST_FAILED, 0)}"
        )
        restarts = [each for each in found.restarts if each.extra == extra and each.differences]
        if not verdicts:
            yield f"not shown: {compare}: {what}: {len(restarts)} of the {RESTARTS} restarts of a verdict"
            continue
        failing = Count(sum(verdict.kind == "regressed" for verdict in verdicts), len(verdicts))
        goal = failing.goal(LEAST_FOUND if extra else MOST_FAILED, at_most=not extra)
        yield f"{goal}: {compare}: {what}: {failing} verdicts failed"
        yield _within(
            f"energy.compare, +{extra} steps", RESTARTS * float(np.mean([each.seconds for each in restarts]))
        )


def _within(text: str, seconds: float) -> str:
    met = "met" if seconds <= BUDGET_SECONDS else "MISSED"
    return f"{met}: {text}: {seconds:.0f} GPU-seconds of measured rounds a verdict (at most {BUDGET_SECONDS:.0f})"


def _fell_short(found: Found) -> list[str]:
    limit = THRESHOLDS[0]
    said = []
    if found.failed(limit, 0).goal(MOST_FAILED, at_most=True) == "not shown":
        said.append(
            f"No rate is shown by counting: that would take {runs_to_show(MOST_FAILED)} runs of identical code without "
            f"a failure for the {percent(MOST_FAILED, 0)}, and {runs_to_show(1 - LEAST_FOUND)} wasteful runs that all "
            f"fail for the {percent(LEAST_FOUND, 0)}. What speaks for them is the spread of these runs, if runs are "
            "normal, and the simulation of the rule at such spreads (gate-error-rates.md)."
        )
    said += found.notes
    return ["## What fell short", "", *(f"- {each}" for each in said), ""] if said else []


def picture(found: Found) -> str:
    """Return the counts with their intervals, on the curves that the measured spread foretells, as SVG."""
    width, height, left, top, most = 420, 260, 46, 20, 0.06
    colours = dict(zip(THRESHOLDS, ("#0b3d66", "#1f6fb2", "#9ec5e8"), strict=True))
    total = top + height + 66 + 18 * (len(colours) + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 30} {total}" font-family="sans-serif" '
        'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]

    def x(change: float) -> float:
        return left + width * change / most

    def y(share: float) -> float:
        return top + height * (1 - share)

    for share in (0, 25, 50, 75, 100):
        parts.append(f'<path d="M{left} {y(share / 100):.1f}h{width}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y(share / 100) + 4:.1f}" text-anchor="end">{share}</text>')
    for tick in range(7):
        parts.append(
            f'<text x="{x(tick / 100):.1f}" y="{top + height + 16}" text-anchor="middle">+{tick}</text>'
        )
    changes = np.linspace(0, most, 121)
    for place, (threshold, colour) in enumerate(colours.items()):
        curves = zip(*(found.foretold(float(change), threshold) for change in changes), strict=True)
        for curve, dashes in zip(curves, ("", ' stroke-dasharray="4 4"'), strict=True):
            points = " ".join(
                f"{x(change):.1f},{y(share):.1f}" for change, share in zip(changes, curve, strict=True)
            )
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}/>'
            )
        for extra in sorted({run.extra for run in found.runs}):
            count = found.failed(threshold, extra)
            low, high = count.interval
            # Side by side, or the intervals of the limits would hide one another.
            middle = x(found.change(extra)) + 5 * (place - 1)
            parts.append(
                f'<path d="M{middle:.1f} {y(low):.1f}V{y(high):.1f}" stroke="{colour}" stroke-opacity="0.6"/>'
            )
            parts.append(
                f'<circle cx="{middle:.1f}" cy="{y(count.hits / count.of):.1f}" r="4" fill="{colour}" stroke="white"/>'
            )
    line = top + height + 34
    parts.append(f'<text x="{left}" y="{line}">% of runs that fail, against the true change in %</text>')
    for threshold, colour in colours.items():
        line += 18
        parts.append(f'<path d="M{left} {line - 4}h22" stroke="{colour}" stroke-width="3"/>')
        parts.append(
            f'<text x="{left + 30}" y="{line}">limit {100 * threshold:g} %, {STORED} stored runs</text>'
        )
    line += 18
    parts.append(
        f'<text x="{left}" y="{line}">points: counted, with exact 95 % intervals; curves: foretold from the</text>'
    )
    parts.append(
        f'<text x="{left}" y="{line + 16}">measured spread (dashed: from the upper end of its interval)</text>'
    )
    return "\n".join([*parts, "</svg>"]) + "\n"
