"""Identical code in all recordings that there are, judged by the gate and by four rivals: one table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from gpu_gate_rates_data import TESTS, Measured, Run
from gpu_gate_rates_rules import CI_RUNS, OWN, PLAIN, alternating, joules_ci, judge
from tabulate import tabulate

from pytest_tokenpower.stats.noise import clopper_pearson

HERE = Path(__file__).parent
DATA = HERE.parent / "docs" / "results" / "data"
CI_BUDGET = 0.05
ADDED = 0.04

RULES: tuple[tuple[str, str, float], ...] = (
    *((f"{name}, limit 1 %", name, 0.01) for name in OWN),
    ("medians of rounds apart by 5 %", "median of rounds", 0.05),
    ("Welch on rounds, 5 %", "Welch on rounds", 0.0),
    ("Mann-Whitney on rounds, 5 %", "Mann-Whitney on rounds", 0.0),
)


def side_by_side(measured: Measured) -> str:
    """Return the section: what fails of identical code, and what is found of 4 % that are added to its readings."""
    third = Measured.read(json.loads((DATA / "h200-aa-third.json").read_text(encoding="utf-8")))
    sources = {
        "eight H200s, host-bound": [each for test in TESTS[:2] for each in measured.of(test)],
        "eight H200s, GPU-bound": measured.of(TESTS[2]),
        "two H200s, host-bound, 36 rounds": [each for test in TESTS[:2] for each in third.of(test)],
        "two H200s, GPU-bound": third.of(TESTS[2]),
        "one H100, GPU-bound (8B)": list(_h100()),
        "seven H100s, 1B and 8B, three ways of serving": list(_lab()),
    }
    tables = [_table(sources, added) for added in (0.0, ADDED)]
    return "\n".join(
        [
            "## All recordings, five rules",
            "",
            "Every run of identical code that there is and that has three others of its board: the H200s of this page, "
            "a third hold of two of them, [one H100](h100-error-rates.md), and seven H100s of which the runs are in "
            "the tests (32 processes, four to seven a board; their waiting watts are taken to be 125 W). Runs that "
            "fail, with exact 95 % intervals. `joules ci` compares three runs with three that alternate with them, "
            f"each pair both ways, with a budget of {100 * CI_BUDGET:g} %.",
            "",
            "Identical code:",
            "",
            tables[0],
            "",
            f"{100 * ADDED:g} % of J/token added to the joules of the run that is judged (all of it the GPU's work). "
            "Read it beside the false failures: a rule that fails a third of identical code finds waste, too.",
            "",
            tables[1],
        ]
    )


def _table(sources: Mapping[str, Sequence[Run]], added: float) -> str:
    heads = ["rule", *sources, "all"]
    rows = []
    for title, name, limit in RULES:
        rule = {**PLAIN, **OWN}[name]
        cells = []
        for runs in sources.values():
            # A test's runs are judged against runs of the same test alone.
            found = [
                one.failed
                for mine in _by(runs, lambda run: run.test)
                for one in judge(rule, [run.dearer(added) for run in mine], mine, limit)
            ]
            cells.append((sum(found), len(found)))
        rows.append([title, *_counted(cells)])
    cells = []
    for runs in sources.values():
        pairs = [
            joules_ci([_mean(run) * (1 + added) for run in new], [_mean(run) for run in base], CI_BUDGET)
            for mine in _by(runs, lambda run: (run.test, run.hold, run.board))
            for one, other in alternating(mine, CI_RUNS)
            for new, base in ((one, other), (other, one))
        ]
        cells.append((sum(pairs), len(pairs)))
    rows.append([f"`joules ci`, {100 * CI_BUDGET:g} %", *_counted(cells)])
    return tabulate(rows, heads, tablefmt="github", disable_numparse=True)


def _counted(cells: Sequence[tuple[int, int]]) -> Iterator[str]:
    for hits, of in (*cells, (sum(hits for hits, _ in cells), sum(of for _, of in cells))):
        if not of:
            yield "none"
            continue
        low, high = clopper_pearson(hits, of)
        yield f"{hits} of {of} ({100 * low:.0f} to {100 * high:.0f} %)"


def _by(runs: Sequence[Run], of: Callable[[Run], Any]) -> Iterator[list[Run]]:
    for _, group in groupby(sorted(runs, key=of), key=of):
        yield list(group)


def _mean(run: Run) -> float:
    return float(run.per_token.mean())


def _h100() -> Iterator[Run]:
    from gpu_error_rates_page import Found

    found = Found.read(json.loads((DATA / "h100-error-rates.json").read_text(encoding="utf-8")))
    for number, one in enumerate(found.runs):
        rounds = [each for each in one.measured.rounds if not each.reasons]
        if one.extra == 0:
            yield _run(
                "chat",
                "h100",
                one.process,
                f"2026-11-22T00:{number:02}:00",
                joules=[each.joules or math.nan for each in rounds],
                errors=[each.stderr_joules or 0.0 for each in rounds],
                seconds=[each.seconds for each in rounds],
                celsius=[each.temperature_celsius or math.nan for each in rounds],
                tokens=[each.generated_tokens for each in rounds],
            )


def _lab() -> Iterator[Run]:
    file = HERE.parent / "tests" / "stats" / "data" / "h100_runs.json"
    for number, each in enumerate(json.loads(file.read_text(encoding="utf-8"))):
        if "chat" in each["work"]:
            tokens = 1_000_000
            yield _run(
                each["work"],
                each["board"],
                number,
                each["created"],
                joules=[value * tokens for value in each["joules_per_token"]],
                errors=[0.0 for _ in each["joules_per_token"]],
                seconds=[value * tokens for value in each["seconds_per_token"]],
                celsius=each["celsius"],
                tokens=[tokens for _ in each["joules_per_token"]],
                # Theirs were not stored: what boards of this power limit draw.
                waiting=125.0,
            )


def _run(
    test: str,
    board: str,
    process: int,
    created: str,
    *,
    waiting: float = math.nan,
    **columns: Sequence[float],
) -> Run:
    return Run(
        hold=0,
        board=board,
        role="",
        process=process,
        created=created,
        test=test,
        waste={},
        context_beside=False,
        comparable=True,
        waiting_watts=waiting,
        waiting_celsius=45.0,
        packed={},
        **{name: np.asarray(values, dtype=float) for name, values in columns.items()},
    )
