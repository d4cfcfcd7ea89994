"""The page of benchmarks/gpu_gate_rates.py, from what it has packed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_gate_rates_all import side_by_side
from gpu_gate_rates_data import NAMES, PIECES, TESTS, Floats, Measured, Run
from gpu_gate_rates_rules import (
    CI_RUNS,
    COMPARED_RUNS,
    OWN,
    PLAIN,
    STORED,
    Interval,
    Outcome,
    ReplayedGate,
    Rule,
    across_boards,
    alternating,
    joules_ci,
    joules_compare,
    judge,
)
from gpu_gate_rates_spread import (
    FORETOLD_BY,
    between_boards,
    by_board,
    pace_slope,
    run_values,
    temperature_slope,
    waiting_slope,
    within_boards,
)
from gpu_gate_rates_truth import Truth, truth
from reporting import driver_of, versions_line
from tabulate import tabulate

from pytest_tokenpower.stats.noise import clopper_pearson

LIMITS = (0.01, 0.03)
MEDIAN_LIMIT = 0.05
ADDED = (0.01, 0.02, 0.04, 0.06)
WATTS = (0.0, 90.0, 110.0, 125.0, 140.0, 160.0)
BUDGETS = (0.01, 0.02, 0.03, 0.05)
HOST, GPU = TESTS[:2], TESTS[2:]
NOTES = Path(__file__).parent / "gpu_gate_rates_notes.md"
"""What whoever made the runs has to say of them."""


def render(measured: Measured, *, everything: bool) -> str:
    """Return the whole page; ``everything``: with what is told of these holds alone, and all other recordings."""
    outcomes = {
        (name, limit): {test: _judged(rule, measured, test, limit) for test in TESTS}
        for name, rule in {**PLAIN, **OWN}.items()
        for limit in ((*LIMITS, MEDIAN_LIMIT) if name == "median of rounds" else LIMITS)
    }
    sections = [
        _head(measured),
        _goals(measured, outcomes),
        *([NOTES.read_text(encoding="utf-8").strip()] if everything else []),
        _spreads(measured),
        _rules(measured, outcomes),
        _wastes(measured, outcomes),
        _added(measured),
        _coverage(measured, outcomes),
        _ci(measured),
        *([side_by_side(measured)] if everything else []),
        _boards(measured),
        _across(measured),
        *([_beside(measured)] if everything else []),
    ]
    return "\n\n".join(sections) + "\n"


Outcomes = Mapping[tuple[str, float], Mapping[str, tuple[list[Outcome], list[Outcome]]]]


def _judged(rule: Rule, measured: Measured, test: str, limit: float) -> tuple[list[Outcome], list[Outcome]]:
    identical = measured.of(test)
    return (
        judge(rule, identical, identical, limit),
        judge(rule, measured.of(test, identical=False), identical, limit),
    )


def _percent(share: float, digits: int = 2, sign: bool = False) -> str:
    return f"{100 * share:{'+' if sign else ''}.{digits}f} %"


def _count(hits: int, of: int) -> str:
    if not of:
        return "none"
    low, high = clopper_pearson(hits, of)
    return f"{hits} of {of} ({100 * low:.0f} to {100 * high:.0f} %)"


def _failed(outcomes: Sequence[Outcome]) -> str:
    return _count(sum(each.failed for each in outcomes), len(outcomes))


def _table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _head(measured: Measured) -> str:
    holds = measured.raw["holds"]
    board = holds[0]["boards"][0]
    model = next(iter(board["processes"][0]["tests"]))["key"]["gpu.model"]
    identical = {test: len(measured.of(test)) for test in TESTS}
    wasteful = {test: len(measured.of(test, identical=False)) for test in TESTS}
    return "\n".join(
        [
            "# Identical code and known waste on eight boards",
            "",
            '"The gate" here is the plugin as stored mode has it ([how a verdict is made](../verdict.md)): each run is '
            "given to it as a record, with the stored runs' records.",
            "",
            f"Boards: {' and '.join(str(len(each['boards'])) for each in holds)} {model} of two hosts "
            f"({holds[0]['cpus']} CPUs each), power limit 700 W, driver {driver_of(board['facts'])}; all boards of a "
            "host at a time.  ",
            versions_line(board["versions"]).replace("  ", "").strip() + "  ",
            f"Date: {' and '.join(each['at'] for each in holds)}. Command: `python benchmarks/gpu_gate_rates.py run`, "
            "then `pack` and `judge`.  ",
            "Llama 3.2 1B (host-bound) and Llama 3.1 8B (GPU-bound), random weights (normal, 0.02), bf16, vLLM in the "
            "test's process, CUDA graphs for decode, asynchronous scheduling, prefix cache off. A process is fresh: it "
            "starts an engine, waits (5 windows of 0.5 s), runs its tests (12 rounds each of the 1B ones, 10 of the 8B "
            "one), and waits again (3 windows). The next process imports meanwhile, as neighbours on a busy host do.",
            "",
            f"{measured.processes} processes: {sum(identical.values())} runs of identical code and "
            f"{sum(wasteful.values())} with known waste, mixed by lot: "
            + ", ".join(f"{NAMES[test]}: {identical[test]} and {wasteful[test]}" for test in TESTS)
            + ". A run is judged against sets of five runs of identical code on its board from other processes (all "
            "sets or 6 by lot; four or three runs where the board has no more), and counted once, by most of its "
            "sets. Counts come with exact 95 % intervals (Clopper and Pearson). The sets overlap, and the two tests of "
            "a 1B process share it: intervals that allowed for it would be wider.",
        ]
    )


def _goals(measured: Measured, outcomes: Outcomes) -> str:
    lines = ["## Goals", ""]
    for name in OWN:
        at = outcomes[name, 0.01]
        host = [each for test in HOST for each in at[test][0]]
        gpu = [each for test in GPU for each in at[test][0]]
        lines += [
            f"- {_met(host, 0.01, most=True)}: {name}, limit 1 %, host-bound: identical code fails in at most 1 %: "
            + _failed(host),
            f"- {_met(gpu, 0.01, most=True)}: {name}, limit 1 %, GPU-bound: identical code fails in at most 1 %: "
            + _failed(gpu),
        ]
        found = [each for test in HOST for each in _with_added(measured, test, OWN[name], 0.04)]
        lines.append(
            f"- {_met(found, 0.95, most=False)}: {name}, limit 1 %, host-bound: +4 % of J/token in the GPU's work is "
            f"found in at least 95 %, added to the readings of identical code: {_failed(found)}"
        )
        wasteful = [each for each in at["test_chat"][1] if each.run.waste.get("steps", 0) >= 2]
        lines.append(
            f"- {_met(wasteful, 0.95, most=False)}: {name}, limit 1 %, GPU-bound: +1.9 and +3.7 % for real: "
            + _failed(wasteful)
        )
    count, spreads = between_boards(measured, "test_chat", _mean, "both")
    left = next(each for each in spreads if each.what == FORETOLD_BY)
    lines.append(
        f"- {'met' if left.sd <= 0.005 else 'MISSED'}: over {count} boards of one model the SD that a calibration "
        f"leaves is at most 0.5 %: {_percent(spreads[0].sd)} become {_percent(left.sd)} "
        f"({left.what}, slope 1, as the gate subtracts it)"
    )
    return "\n".join(lines)


def _met(outcomes: Sequence[Outcome], limit: float, *, most: bool) -> str:
    if not outcomes:
        return "not shown"
    low, high = clopper_pearson(sum(each.failed for each in outcomes), len(outcomes))
    if (high <= limit) if most else (low >= limit):
        return "met"
    return "MISSED" if (low > limit if most else high < limit) else "not shown"


def _mean(run: Run) -> float:
    return float(run.per_token.mean())


def _active(run: Run) -> float:
    return float(run.active_per_token().mean())


def _raw(run: Run) -> Floats:
    return run.per_token


def _paced(run: Run) -> Floats:
    return run.active_per_token()


def _error_of_rounds(runs: Sequence[Run], values: Callable[[Run], Floats]) -> float:
    scale = float(np.mean([_mean(each) for each in runs]))
    return float(np.sqrt(np.mean([values(each).var(ddof=1) / len(each.joules) for each in runs]))) / scale


def _spreads(measured: Measured) -> str:
    rows, watts = [], []
    for test in TESTS:
        runs = measured.of(test)
        values = [
            str(within_boards(run_values(runs, pace=pace, temperature=temperature)))
            for pace, temperature in ((False, False), (False, True), (True, False), (True, True))
        ]
        slope = temperature_slope(runs, lambda run: run.per_token, clipped=False)
        rows.append(
            [
                NAMES[test],
                len(runs),
                f"{np.mean([_mean(each) for each in runs]):.4g}",
                *values,
                f"{_percent(_error_of_rounds(runs, _raw))} / {_percent(_error_of_rounds(runs, _paced))}",
                f"{pace_slope(runs):.0f} W",
                _percent(slope / np.mean([_mean(each) for each in runs]), 2, sign=True),
            ]
        )
        fixed = [within_boards(run_values(runs, pace=True, watts=each)) for each in WATTS]
        watts.append([NAMES[test], *(_percent(each.sd) for each in fixed)])
    first = [each.first_watts for each in measured.waitings]
    return "\n".join(
        [
            "## Identical code: how far runs scatter",
            "",
            "SD between runs of one board, pooled over the boards, as a share of J/token, with its exact 95 % "
            "interval. Pace takes out the joules of waiting, by the waiting watts of the process's own windows; "
            "temperature reduces to one, by the slope pooled within runs (clipped to 0 to 0.4 % per °C). By the "
            "rounds alone: what the rounds' scatter within runs makes of a run's mean, were they independent.",
            "",
            _table(
                rows,
                [
                    *("test", "runs", "J/token", "as read", "one temperature", "one pace", "both"),
                    *("by the rounds alone: as read / one pace", "slope of pace within runs"),
                    "slope per °C within runs",
                ],
            ),
            "",
            "The same at one pace by fixed waiting watts:",
            "",
            _table(watts, ["watts", *(f"{each:.0f}" for each in WATTS)]),
            "",
            f"Waiting with the engine up, by process: {min(first):.0f} to {max(first):.0f} W before the tests (mean "
            f"{np.mean(first):.1f}), {waiting_slope(measured.waitings):.2f} W more per °C from before to after them.",
        ]
    )


def _rules(measured: Measured, outcomes: Outcomes) -> str:
    rows = []
    for (name, limit), at in outcomes.items():
        host = [each for test in HOST for each in at[test][0]]
        gpu = [each for test in GPU for each in at[test][0]]
        rows.append(
            [
                name,
                _percent(limit, 0),
                _failed(host),
                _percent(float(np.mean([each.share for each in host])), 1),
                _failed(gpu),
                _percent(float(np.mean([each.share for each in gpu])), 1),
            ]
        )
    words = []
    for name in OWN:
        for test in TESTS:
            found = Counter(
                f"{each.word} by {each.part}" for one in outcomes[name, 0.01][test][0] for each in one.judged
            )
            said = ", ".join(
                f"{word} {_percent(count / found.total(), 0)}" for word, count in found.most_common()
            )
            words.append(f"- {name}, {NAMES[test]}: {said}")
    return "\n".join(
        [
            "## Identical code: what fails by which rule",
            "",
            '"Sets" is the share of all sets of stored runs that fail a run. Rules on rounds take the rounds of the '
            "five stored runs together, one-sided at 5 %, and want a change above the limit.",
            "",
            _table(rows, ["rule", "limit", "host-bound: failed", "sets", "GPU-bound: failed", "sets"]),
            "",
            "What the gate says of identical code at a limit of 1 %:",
            "",
            *words,
        ]
    )


def _waste_name(waste: Mapping[str, float]) -> str:
    [(kind, amount)] = waste.items()
    return {
        "steps": f"+{amount:g} decode steps a batch",
        "sleep_ms": f"{amount:g} ms of sleep a step",
        "gemms": f"{amount:g} GEMM a step beside it",
    }[kind]


def _wastes(measured: Measured, outcomes: Outcomes) -> str:
    names = [("median of rounds", MEDIAN_LIMIT), ("Welch on rounds", 0.01), *((name, 0.01) for name in OWN)]
    rows = []
    for test in TESTS:
        kinds = sorted(
            {tuple(sorted(each.waste.items())) for each in measured.of(test, identical=False)},
            key=lambda each: (each[0][0] != "steps", each),
        )
        for kind in kinds:
            waste = dict(kind)
            true = truth(measured, test, waste)
            mine = {
                name: [each for each in outcomes[name][test][1] if dict(each.run.waste) == waste]
                for name in names
            }
            gate = mine[names[-1]]
            rows.append(
                [
                    NAMES[test],
                    _waste_name(waste),
                    _parts(true),
                    *(_found([_middle(each, part) for each in gate]) for part in ("total", "work", "pace")),
                    *(f"{sum(one.failed for one in mine[name])} of {len(mine[name])}" for name in names),
                ]
            )
    return "\n".join(
        [
            "## Known waste",
            "",
            "The true change of extra decode steps is their share of a round's energy, split by the waiting watts. "
            "Sleep is given as if it came on top of each step, a GEMM (8192 x 8192 by 32 rows) as if it ran while the "
            "board waits: neither is exact. Found: mean of the runs, each at the median of its sets, and their SD.",
            "",
            _table(
                rows,
                [
                    *("test", "waste", "true: total = work + pace", "found: total", "work", "pace"),
                    *(f"{name}, {_percent(limit, 0)}" for name, limit in names),
                ],
            ),
        ]
    )


def _parts(true: Truth) -> str:
    mark = "" if true.exact else "about "
    return f"{mark}{_percent(true.total, 1, True)} = {100 * true.work:+.1f} {100 * true.pace:+.1f}"


def _middle(outcome: Outcome, part: str) -> float:
    found = [getattr(each, part) for each in outcome.judged]
    return float(np.median([each[0] for each in found if each is not None]))


def _found(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):+.1f}{spread}"


def _with_added(measured: Measured, test: str, rule: Rule, added: float) -> list[Outcome]:
    identical = measured.of(test)
    return judge(rule, [each.dearer(added) for each in identical], identical, 0.01)


def _added(measured: Measured) -> str:
    rows = []
    for name, rule in {**PLAIN, **OWN}.items():
        for added in ADDED:
            host = [each for test in HOST for each in _with_added(measured, test, rule, added)]
            gpu = [each for test in GPU for each in _with_added(measured, test, rule, added)]
            rows.append([name, _percent(added, 0, True), _failed(host), _failed(gpu)])
    return "\n".join(
        [
            "## Waste added to the readings of identical code",
            "",
            "The noise is real, the effect is not: so many percent of J/token are added to the joules of each run, its "
            "seconds stay (all of it is work of the GPU). Limit 1 %. Read it beside the false failures above: a rule "
            "that fails a third of identical code finds waste too.",
            "",
            _table(rows, ["rule", "added", "host-bound: found", "GPU-bound: found"]),
        ]
    )


def _coverage(measured: Measured, outcomes: Outcomes) -> str:
    rows = []
    for name in OWN:
        for tests, which in ((HOST, "host-bound"), (GPU, "GPU-bound")):
            for part in ("total", "work", "pace"):
                cells = []
                for wasteful in (False, True):
                    held = [
                        _covers(each, part, measured, test)
                        for test in tests
                        for each in outcomes[name, 0.01][test][wasteful]
                        if not wasteful or "steps" in each.run.waste
                    ]
                    # Of a run's sets, which overlap, the share that hold the truth; a run counts once.
                    cells.append(_count(sum(each >= 0.5 for each in held), len(held)))
                    cells.append(_percent(float(np.mean(held)), 1))
                widths = [
                    (found[2] - found[1]) / 2
                    for test in tests
                    for each in outcomes[name, 0.01][test][0]
                    for one in each.judged
                    if (found := getattr(one, part)) is not None
                ]
                rows.append([name, which, part, *cells, f"± {100 * np.median(widths):.1f} %"])
    return "\n".join(
        [
            "## Coverage of the 95 % intervals",
            "",
            "By how many runs the true change lies inside, in most of their sets and over all sets; waste: extra "
            "decode steps only, whose truth is known. The half-width is the median of identical code.",
            "",
            _table(rows, ["rule", "test", "part", "identical code", "sets", "waste", "sets", "half-width"]),
        ]
    )


def _covers(outcome: Outcome, part: str, measured: Measured, test: str) -> float:
    waste = outcome.run.waste
    true = getattr(truth(measured, test, waste), part) if waste else 0.0
    found: list[Interval] = [each for one in outcome.judged if (each := getattr(one, part)) is not None]
    return float(np.mean([low <= true <= high for _, low, high in found]))


def _ci(measured: Measured) -> str:
    rows = []
    rules: Sequence[tuple[str, Callable[[Sequence[float], Sequence[float], float], bool], int]] = (
        ("`joules ci` 0.8.0: medians, budget, ranges apart", joules_ci, CI_RUNS),
        ("medians, budget, Mann-Whitney on runs below 5 %", joules_compare, COMPARED_RUNS),
    )
    for name, rule, each_side in rules:
        for budget in BUDGETS:
            cells = []
            for tests in (HOST, GPU):
                for added in (0.0, 0.04):
                    pairs = [
                        rule([_mean(one) * (1 + added) for one in new], [_mean(one) for one in base], budget)
                        for test in tests
                        for board in by_board(measured.of(test))
                        for new, base in _both_ways(alternating(board, each_side))
                    ]
                    cells.append(_count(sum(pairs), len(pairs)))
            rows.append([name, f"{each_side} + {each_side}", _percent(budget, 0), *cells])
    return "\n".join(
        [
            "## The rule of `joules ci`, on the same runs",
            "",
            "Base and candidate alternate in time, three runs a side by default; it fails where the medians differ by "
            "more than the budget and the ranges do not overlap. (Version 0.8.0 of PyPI's landauer-gap; Mann and "
            "Whitney's test is in its `joules compare`, whose two-sided p cannot fall below 10 % with three runs a "
            "side, so that five stand here.) Its own unit is the joules of the whole command; here it is given J/token "
            "of the measured rounds, which is kinder. Runs of identical code, each pair of sides taken both ways; "
            '"+4 %" is added to the candidate\'s readings.',
            "",
            _table(
                rows,
                [
                    *("rule", "runs", "budget", "host-bound: identical", "host-bound: +4 %"),
                    *("GPU-bound: identical", "GPU-bound: +4 %"),
                ],
            ),
        ]
    )


def _both_ways(pairs: Sequence[tuple[list[Run], list[Run]]]) -> Iterator[tuple[list[Run], list[Run]]]:
    for new, base in pairs:
        yield new, base
        yield base, new


def _boards(measured: Measured) -> str:
    boards = []
    for board in by_board(measured.runs):
        key = (board[0].hold, board[0].board)
        pieces = [
            " / ".join(
                f"{each.joules:.4g} J ({each.watts:.0f} W, {each.celsius:.0f} °C)"
                for each in measured.calibrations
                if (each.hold, each.board) == key and each.piece == piece
            )
            for piece in PIECES
        ]
        mine = {
            test: [one for one in board if one.test == test and one.identical and one.comparable]
            for test in TESTS
        }
        boards.append(
            [
                f"{key[0]}: {key[1][4:12]}",
                *(
                    f"{np.mean([_mean(each) for each in mine[test]]):.4g} ({len(mine[test])})"
                    for test in TESTS
                ),
                *pieces,
            ]
        )
    rows = []
    for test, what, value in (
        ("test_chat", "total", _mean),
        ("test_chat", "work", _active),
        ("test_batch_4", "work", _active),
        ("test_batch_32", "work", _active),
    ):
        for when in ("first", "last", "both") if (test, what) == ("test_chat", "total") else ("both",):
            _, spreads = between_boards(measured, test, value, when)
            nothing, *calibrated = spreads
            for each in calibrated:
                if each.what.startswith("waiting"):
                    continue
                rows.append(
                    [
                        f"{NAMES[test]}, {what}",
                        when,
                        each.what,
                        _percent(nothing.sd),
                        _percent(each.sd),
                        f"{each.correlation:.2f}",
                        f"{each.slope:.1f}",
                        _percent(each.fitted_sd or 0.0),
                    ]
                )
    return "\n".join(
        [
            "## Boards",
            "",
            "Mean J/token of identical code (runs), then what a piece of fixed work took, before / after all "
            "processes: an 8192³ matmul, 40 GEMMs of 32 rows by 8192 x 8192 in a CUDA graph, a copy of 1 GiB, a "
            "window of waiting (1 s cold, 0.5 s right after the matmuls).",
            "",
            _table(boards, ["hold: board", *NAMES.values(), *PIECES]),
            "",
            "SD between the boards of ln(J/token), and what is left when ln(J) of the piece is subtracted (slope 1), "
            'or foretold by a line through the other boards (each board left out in turn). "Work" is without the '
            "joules of waiting. Four boards of each test have three or four runs only.",
            "",
            _table(
                rows,
                [
                    "test",
                    "calibrated",
                    "by",
                    "boards differ by",
                    "left, slope 1",
                    "correlation",
                    "slope",
                    "left, line",
                ],
            ),
        ]
    )


def _across(measured: Measured) -> str:
    pieces = {
        board: {
            piece: float(
                np.mean(
                    [one.joules for one in measured.calibrations if (one.board, one.piece) == (board, piece)]
                )
            )
            for piece in ("matmul", "gemms")
        }
        for board in {each.board for each in measured.runs}
    }
    rows = []
    for test in TESTS:
        groups = by_board(measured.of(test))
        for name, calibrated in (("not calibrated", None), ("calibrated", pieces)):
            for limit in LIMITS:
                judged: list[ReplayedGate] = []
                for here in groups:
                    for there in groups:
                        if here is there or len(there) < 3:
                            continue
                        stored = there[-STORED:][::-1]
                        rule = partial(across_boards, calibrated=calibrated)
                        judged += [rule(each, stored, limit) for each in (here[0], here[-1])]
                held = [each.total[1] <= 0 <= each.total[2] for each in judged if each.total is not None]
                half = [(each.total[2] - each.total[1]) / 2 for each in judged if each.total is not None]
                rows.append(
                    [
                        NAMES[test],
                        name,
                        _percent(limit, 0),
                        f"{sum(each.failed for each in judged)} of {len(judged)}",
                        f"{sum(each.word == 'passed' for each in judged)}",
                        f"{sum(held)} of {len(held)}",
                        f"± {100 * np.median(half):.1f} %",
                    ]
                )
    return "\n".join(
        [
            "## A run against stored runs of another board",
            "",
            "Identical code: two runs of each board against the newest five runs of each other board, by the gate's "
            "rule. All pairs of eight boards: they are far from independent, so that no interval is given. 24 of the "
            "56 pairs share host and hour.",
            "",
            _table(
                rows, ["test", "boards", "limit", "failed", "passed", "0 in the 95 % interval", "half-width"]
            ),
        ]
    )


def _beside(measured: Measured) -> str:
    rows = []
    for test in TESTS:
        cells = []
        for beside in (True, False):
            runs = [each for each in measured.of(test) if each.hold == 2 and each.context_beside == beside]
            groups = [board for board in by_board(runs) if len(board) >= 2]
            flat = [each for board in groups for each in board]
            cells += [
                str(len(flat)),
                str(within_boards(run_values(flat))),
                str(within_boards(run_values(flat, pace=True))),
            ]
        rows.append([NAMES[test], *cells])
    return "\n".join(
        [
            "## A context of another process beside the test",
            "",
            "In the first hold, and until the ninth process of each board in the second, the next process had made a "
            "CUDA context (idle, no work) on the board while this one was measured: torchao, which transformers "
            "imports, asks the GPU what it is. From then on nothing touched the board. SDs between runs of identical "
            "code in the second hold:",
            "",
            _table(
                rows, ["test", "beside: runs", "as read", "one pace", "alone: runs", "as read", "one pace"]
            ),
        ]
    )
