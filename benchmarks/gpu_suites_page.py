"""docs/results/h200-suites.md, from what gpu_suites.py measured: claims, figures, the SLO's points, and the soak."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reporting import table, versions_line

from pytest_tokenpower.core.records import ClaimRecord, MeasurementRecord
from pytest_tokenpower.reporting.suites import found, objective_lines, soak_lines
from pytest_tokenpower.suites.claims import judge_claims, runs_of
from pytest_tokenpower.suites.grid import Suite
from pytest_tokenpower.suites.objectives import judge_objectives
from pytest_tokenpower.suites.soak import read_soak, summarise

Suites = Mapping[str, tuple[Suite, Sequence[MeasurementRecord]]]

TITLES = {
    "e1": "E1: model scale, engines, a mixture of experts",
    "e2": "E2: batch",
    "e3": "E3: context",
    "e4": "E4: parallelism",
    "e5": "E5: quantization by batch",
    "e5b": "E5: FP8 at batch 1, and INT8 by torchao",
    "slo": "Joules at an SLO",
}

AXES = ("model", "engine", "variant", "prompt_tokens", "batch", "arrivals")


def page(folders: Sequence[Path], suites: Suites) -> str:
    """Return the whole page."""
    machines = [
        json.loads(path.read_text()) for folder in folders for path in sorted(folder.glob("machine*.json"))
    ]
    cards = "H200" if any("H200" in str(one.get("boards")) for one in machines) else "H100"
    lines = [f"# The paper's experiments on {cards}s", "", *_head(machines), ""]
    lines += _claims(suites)
    for name in sorted(suites, key=lambda each: (*TITLES,).index(each) if each in TITLES else 99):
        suite, measured = suites[name]
        lines += [f"## {TITLES.get(name, name)}", "", *_figures(suite, measured)]
        for outcome in judge_objectives(suite, runs_of(suite, measured)):
            lines += [*_fenced(objective_lines(outcome)), ""]
    for folder in folders:
        for path in sorted(folder.glob("weights-run*/weights.json")):
            lines += ["## What the quantizations hold", "", *_weights(json.loads(path.read_text()))]
        for path in sorted(folder.glob("soak-run*/soak.jsonl")):
            lines += _soak(path)
    return "\n".join(lines).rstrip() + "\n"


def _head(machines: Sequence[Mapping[str, Any]]) -> list[str]:
    boards = dict.fromkeys(board for one in machines for board in one.get("boards", ()))
    dates = dict.fromkeys(str(one["at"])[:10] for one in machines)
    commands = dict.fromkeys(str(one["command"]) for one in machines)
    return [
        f"Boards: {'; '.join(boards) or 'unknown'}; measured by the power ring.  ",
        versions_line(machines[0]["versions"] if machines else {}),
        f"Date: {', '.join(dates)}. Command: {', '.join(f'`{each}`' for each in commands)}.  ",
        "Random weights of the models' true shapes, greedy generation of a fixed length, a fresh process for each",
        "engine, one warm-up round and up to five rounds a cell. J / token is everything in a round's window over its",
        "generated tokens, prefill included. `python benchmarks/gpu_suites.py table` writes the tables from",
        "`docs/results/data/h200-suites`, the sweeps' journals.",
    ]


def _claims(suites: Suites) -> list[str]:
    """Return one table of all claims: what was published beside what was found."""
    judged: list[tuple[str, ClaimRecord]] = []
    for name, (suite, measured) in suites.items():
        judged += [(name, one) for one in judge_claims(suite, runs_of(suite, measured), name)]
    rows = [
        [
            name.upper(),
            one.name,
            one.says,
            one.paper,
            found(one),
            "+".join(map(str, one.runs)),
            f"{one.word}{f': {one.reason}' if one.reason else ''}",
        ]
        for name, one in judged
    ]
    notes = dict.fromkeys(note for _, one in judged for note in one.notes)
    told = [
        "## Claims",
        "",
        "Ratios with 95 % intervals, adjusted over all claims of a suite; of a shape the last point's, or until's, "
        "to the first's.",
        "Runs: fresh processes of each side. ML.ENERGY's figures (v3 data, FP8 against bf16) stand beside the paper's. "
        + " ".join(notes),
        "",
    ]
    return [*told, *table("suite | claim | says | published | found | runs | word", rows)]


def _figures(suite: Suite, measured: Sequence[MeasurementRecord]) -> list[str]:
    """Return a suite's figures, a row a cell; of several runs the mean, and how far they lie apart."""
    by_cell: dict[str, list[MeasurementRecord]] = {}
    for one in measured:
        by_cell.setdefault(one.test.rpartition("::")[2], []).append(one)
    cells = [cell for cell in suite.cells if cell.name in by_cell]
    axes = [axis for axis in AXES if len({str(cell.values.get(axis)) for cell in suite.cells}) > 1]
    rows: list[list[object]] = []
    for cell in cells:
        runs = by_cell[cell.name]
        values = [run.figures["joules_per_token"].value for run in runs if "joules_per_token" in run.figures]
        if not values:
            continue
        apart = f"{100 * (max(values) / min(values) - 1):.1f} %" if len(values) > 1 else ""
        good = [part for run in runs for part in run.rounds if not part.reasons]
        rows.append(
            [
                *(_value(cell.values.get(axis)) for axis in axes),
                f"{statistics.fmean(values):.4g}",
                _relative(runs),
                *(
                    _figure(runs, name, scale)
                    for name, scale in (
                        ("joules_per_prompt_token", 1e3),
                        ("decode_joules_per_token", 1),
                        ("tokens_per_second", 1),
                    )
                ),
                _mean([(part.joules or math.nan) / part.seconds for part in good], ".0f"),
                _mean([part.temperature_celsius for part in good], ".1f"),
                _mean([part.sm_clock_mhz for part in good], ".0f"),
                len(good),
                len(values),
                apart,
            ]
        )
    head = [
        *axes,
        *("J / token", "± 95 %", "prefill, mJ / prompt token", "decode, J / token", "tokens/s"),
        *("W", "°C", "SM MHz", "rounds", "runs", "runs apart"),
    ]
    missing = [cell.name for cell in suite.cells if cell.name not in by_cell]
    told = [f"Not measured: {', '.join(missing)}.", ""] if missing else []
    return [*table(" | ".join(head), rows), *told]


def _value(value: object) -> object:
    poisson = getattr(value, "poisson", None)
    return "" if value is None else value if poisson is None else f"{poisson:g} / s"


def _relative(runs: Sequence[MeasurementRecord]) -> str:
    figure = runs[0].figures["joules_per_token"]
    return "" if figure.stderr is None else f"{196 * figure.stderr / figure.value:.1f} %"


def _figure(runs: Sequence[MeasurementRecord], name: str, scale: float) -> str:
    values = [scale * run.figures[name].value for run in runs if name in run.figures]
    return f"{statistics.fmean(values):.4g}" if values else ""


def _mean(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return format(statistics.fmean(known), form) if known else ""


def _weights(variants: Mapping[str, Mapping[str, Any]]) -> list[str]:
    told = [
        "GB of a 1B model's weights by dtype, as the loaded vLLM engine holds them; the embedding stays as it is.",
        "vLLM's `int8_per_channel_weight_only` is for experts alone: linear layers stay bf16, so it does not",
        "quantise a dense model at all.",
        "",
    ]
    rows = [
        [name, ", ".join(f"{dtype} {size}" for dtype, size in held.items())]
        for name, held in variants.items()
    ]
    return [*told, *table("variant | GB", rows)]


def _soak(path: Path) -> list[str]:
    begun, stretches, _ = read_soak(path.read_bytes())
    if not stretches:
        return []
    name = "?" if begun is None else begun.test.rpartition("::")[2]
    source = "?" if begun is None else begun.source
    return [
        "## A soak at the power limit",
        "",
        *_fenced(soak_lines(name, source, summarise(stretches), None)),
        "",
    ]


def _fenced(lines: Sequence[str]) -> list[str]:
    return ["```text", *lines, "```"]
