"""Suites for people: cells and claims as tables, rows for files, and a sweep as it runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_tokenpower.core.records import NOT_MEASURED, ClaimRecord, MeasurementRecord
from pytest_tokenpower.core.text import (
    digits,
    energy_unit,
    per_token,
    percent,
    plural,
    readable,
    short_test_name,
    table_lines,
    with_interval,
)
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.suites.pareto import AGAINST, MAIN, having, not_beaten, strengths
from pytest_tokenpower.suites.schema import SUFFIX

if TYPE_CHECKING:
    from pytest_tokenpower.suites.objectives import Outcome
    from pytest_tokenpower.suites.progress import Progress
    from pytest_tokenpower.suites.soak import Soaked


def claims_news(claims: Sequence[ClaimRecord]) -> list[str]:
    """Count the claims that fail the run, as its headline says it; empty where none does."""
    count = sum(claim.fails for claim in claims)
    return [f"{plural(count, 'claim')} REFUTED"] if count else []


def claims_table(claims: Sequence[ClaimRecord]) -> list[str]:
    """Each claim with what was found; below it what is to be known of them."""
    names = claim_names(claims)
    rows = [
        [
            name,
            claim.says,
            found(claim),
            claim.paper,
            claim.word.upper() if claim.word == "refuted" else claim.word,
        ]
        for name, claim in zip(names, claims, strict=True)
    ]
    head = ["claim", "says", "found [95 %]", "paper", "word"]
    used = [at for at in range(len(head)) if at != 3 or any(row[3] for row in rows)]
    lines = table_lines([[row[at] for at in used] for row in rows], [head[at] for at in used])
    notes = [
        f"{name}: {claim.word}: {claim.reason}"
        for name, claim in zip(names, claims, strict=True)
        if claim.reason and not claim.reason.startswith(NOT_MEASURED)
    ]
    if lacking := sum(claim.reason.startswith(NOT_MEASURED) for claim in claims):
        notes.append(f"{plural(lacking, 'claim')} not testable here, as not all their cells were measured")
    return [
        *lines,
        *([""] if notes else []),
        *notes,
        *dict.fromkeys(note for claim in claims for note in claim.notes),
    ]


def claim_names(claims: Sequence[ClaimRecord]) -> list[str]:
    """Return the claims' names, those of several suites after their file's."""
    paths = {claim.suite for claim in claims}
    files = {path: path.rpartition("/")[2].removesuffix(SUFFIX) for path in paths}
    files = files if len(set(files.values())) == len(paths) else {path: path for path in paths}
    return [f"{files[claim.suite]}: {claim.name}" if len(paths) > 1 else claim.name for claim in claims]


def found(claim: ClaimRecord) -> str:
    """Return the ratio with its interval; of a shape the last point's, or until's, to the first's."""
    if claim.ratio is None or claim.low is None or claim.high is None:
        return ""
    return f"{claim.ratio:.3g} [{claim.low:.3g}, {claim.high:.3g}]"


def claim_line(claim: ClaimRecord) -> str:
    """Return what became of a claim, the news first."""
    parts = [f"{claim.word.upper()}: {claim.name} ({claim.figure} {claim.says})"]
    if text := found(claim):
        parts.append(f"found {text}")
    if claim.reason:
        parts.append(claim.reason)
    if claim.paper:
        parts.append(f"published: {claim.paper}")
    return "; ".join(parts)


def cell_rows(measurements: Sequence[MeasurementRecord]) -> list[dict[str, object]]:
    """One flat row a cell: its values, its figures with their standard errors, and how it was judged."""
    return [
        {
            "cell": short_test_name(one.test),
            **{
                name.removeprefix("cell."): value
                for name, value in one.facts.items()
                if name.startswith("cell.")
            },
            "provenance": one.provenance,
            "rounds": sum(not each.reasons for each in one.rounds),
            **{
                name: number
                for figure, found in one.figures.items()
                for name, number in ((figure, found.value), (f"{figure}_stderr", found.stderr))
            },
            "verdict": "; ".join(verdict.kind for verdict in one.verdicts)
            or ("failed" if one.reasons else "measured"),
            "reasons": "; ".join(one.reasons),
        }
        for one in measurements
    ]


_RESULTS = {
    MAIN: "J/token",
    "prefill_joules_per_token": "prefill",
    "decode_joules_per_token": "decode",
    "mean_watts": "W",
    **AGAINST,
}


def results_table(measurements: Sequence[MeasurementRecord]) -> list[str]:
    """Return the cells in the order of their names, in the units of a run's own table."""
    if not measurements:
        return ["nothing was measured"]
    rows = sorted(cell_rows(measurements), key=lambda row: _natural(str(row["cell"])))
    used = [name for name in _RESULTS if any(name in row for row in rows)]
    unit = energy_unit(max((each for row in rows if isinstance(each := row.get(MAIN), float)), default=1.0))
    trades = {cell: strong for cell, *_, strong in trade_offs(measurements)}
    last = ["verdict", *(["not beaten in J/token and"] if trades else [])]

    def shown(name: str, value: object) -> str:
        if name.endswith("joules_per_token") and isinstance(value, float):
            return digits(value / unit.joules)
        return _short(value)

    return table_lines(
        [
            [
                row["cell"],
                *(shown(name, row.get(name)) for name in used),
                row["verdict"],
                *([trades.get(str(row["cell"]), "")] if trades else []),
            ]
            for row in rows
        ],
        ["cell", *(_RESULTS[name].replace("J/", f"{unit.name}/") for name in used), *last],
        ["left", *["right"] * len(used), *["left"] * len(last)],
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort b8 before b64."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else ""


def frontier(measurements: Sequence[MeasurementRecord], figures: Sequence[str]) -> list[str]:
    """Name the cells that no other beats in joules per token and all these figures at once (Pareto).

    Raises UsageError for a figure that no cell has.
    """
    for figure in figures:
        if not having(measurements, (MAIN, figure)):
            valid = ", ".join(sorted({name for one in measurements for name in one.figures})) or "no figures"
            raise UsageError(f"--pareto={figure}: no good measurement of a cell has it; there are {valid}")
    columns = (MAIN, *figures)
    best, known = not_beaten(measurements, figures), having(measurements, columns)
    energies, unit = (
        readable("J/token", *(one.figures[MAIN].value for one in best)) if best else ([], "J/token")
    )
    return table_lines(
        [
            [short_test_name(one.test), energy, *(_short(one.figures[name].value) for name in figures)]
            for one, energy in zip(best, energies, strict=True)
        ],
        [
            f"no other cell is as good in all ({len(best)} of {len(known)})",
            unit,
            *(_RESULTS.get(name, name) for name in figures),
        ],
    )


def trade_offs(measurements: Sequence[MeasurementRecord]) -> list[list[str]]:
    """Return a row for each cell: its name, J/token, the figures of AGAINST, and those in which no other beats it.

    Empty where no two cells compete.
    """
    strong = strengths(measurements)
    if not any(strong.values()):
        return []
    return [
        [
            short_test_name(one.test),
            *(_short(one.figures[name].value) if name in one.figures else "" for name in (MAIN, *AGAINST)),
            ", ".join(AGAINST[name] for name in strong[one.test]),
        ]
        for one in sorted(measurements, key=lambda one: _natural(short_test_name(one.test)))
        if one.test in strong
    ]


def duration(seconds: float) -> str:
    """Return a time for people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def live_table(progress: Progress, now: float, *, rows: int, width: int) -> list[str]:
    """Return what a terminal shows of a sweep: how far it is, and the cells around the one that is running."""
    left = progress.seconds_left(now)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in progress.outcomes.items())
    head = f"{len(progress.ended)} of {len(progress.steps)} cells{f' ({counts})' if counts else ''}, "
    head += f"{duration(now - progress.began)}" + (f", about {duration(left)} left" if left else "")
    names = [step.cell for step in progress.steps]
    at = names.index(progress.running) if progress.running in names else len(progress.ended)
    first = max(0, min(at - rows * 3 // 4, len(names) - rows))
    longest = max(map(len, names), default=0)
    lines = [head[:width]]
    for step in progress.steps[first : first + max(rows, 1)]:
        event = progress.ended.get(step.cell)
        if event is not None:
            joules = event.figures.get(MAIN)
            what = (
                f"{per_token(joules)}  {event.outcome}"
                if joules is not None
                else f"{event.outcome} {event.reason}"
            )
        elif step.cell == progress.running:
            what = "running"
        else:
            what = step.foretold.skipped and f"will be skipped, {step.foretold.skipped}"
        lines.append(f"  {step.cell:<{longest}}  {what}"[:width].rstrip())
    return lines


def objective_lines(outcome: Outcome) -> list[str]:
    """Return the operating points of an SLO, the cheapest first, under what was found."""
    names = [
        f"{name.partition('_')[0].upper()} p{outcome.objective.percentile}" for name, _ in outcome.limits
    ]
    limits = [f"{name} ≤ {1e3 * limit:g} ms" for name, (_, limit) in zip(names, outcome.limits, strict=True)]
    said = f"SLO {outcome.objective.name} ({', '.join(limits)}): "
    if outcome.best is not None:
        best = outcome.best
        said += f"cheapest is {best.cell.name}, {per_token(best.joules_per_token)}"
    else:
        known = [point for point in outcome.points if point.holds is not None]
        said += "no cell holds it" if known else "no latency was measured"
    words = {True: "holds", False: "too slow", None: "not known"}
    rows = [
        [
            point.cell.name,
            f"{point.joules_per_token:.4g}",
            *("" if each is None else f"{1e3 * each.value:.4g}" for each in point.latencies),
            words[point.holds],
        ]
        for point in outcome.points
    ]
    head = ["cell", "J/token", *(f"{name}, ms" for name in names), ""]
    if not rows:
        return [said]
    return [said, *table_lines(rows, head)]


def drift_line(found: Soaked, limit: float | None) -> str:
    """Say how a soak's joules per token, or other unit, drifted."""
    if found.drift is None:
        return f"too short to tell a drift of {found.unit}"
    change = found.drift.change
    line = f"drift of {found.unit} from beginning to end: {with_interval(change.change, *change.change_interval())}"
    return line + (f", limit {percent(limit)}" if limit is not None else "")


def soak_lines(cell: str, source: str, found: Soaked, limit: float | None) -> list[str]:
    """Return a soak over its hours, and what drifted or stepped."""
    head, rows = soak_rows(found)
    said = soak_words(found, limit)
    return [
        f"{cell}: {found.hours:.3g} h of continuous work, --source {source}",
        *said,
        "",
        *table_lines(rows, head),
    ]


def soak_words(found: Soaked, limit: float | None) -> list[str]:
    """Say what drifted, stepped and was dropped."""
    lines = [drift_line(found, limit)] if found.drift is not None else []
    lines += [
        f"step at {hour:.2f} h: {with_interval(step.change, *step.change_interval())}"
        for hour, step in found.steps
    ] or ["no step of 1 % and more"]
    if found.dropped:
        lines.append(f"{found.dropped} stretch{'es' if found.dropped > 1 else ''} dropped by guards")
    return lines


def soak_rows(found: Soaked) -> tuple[list[str], list[list[object]]]:
    """Return the heads of a soak's parts, and a row for each."""
    limits = list(
        dict.fromkeys(name for part in found.parts for name, share in part.limited.items() if share > 0)
    )
    rows: list[list[object]] = [
        [
            f"{part.hour:.2f}",
            f"{part.joules_per_unit:.4g}",
            f"{part.watts:.0f}",
            "" if part.celsius is None else f"{part.celsius:.1f}",
            "" if part.sm_clock_mhz is None else f"{part.sm_clock_mhz:.0f}",
            "" if part.memory_gib is None else f"{part.memory_gib:.1f}",
            *(f"{100 * part.limited.get(name, 0.0):.0f} %" for name in limits),
            part.dropped or "",
        ]
        for part in found.parts
    ]
    head = [
        "from, h",
        found.unit,
        "W",
        "°C",
        "SM MHz",
        "GiB",
        *(f"{name} limit" for name in limits),
        "dropped",
    ]
    return head, rows
