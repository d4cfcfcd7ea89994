"""Summaries in Markdown for GitHub: whatever comes from a record stands in a code span or block, and nowhere else.

There GitHub makes no mention, no link, no reference and no markup of it, so that a fork's run cannot ping people or
speak in the project's voice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from pytest_tokenpower.core.shown import shown
from pytest_tokenpower.core.text import interval, plural, readable, short_test_name, signed
from pytest_tokenpower.gate.messages import message, word
from pytest_tokenpower.gate.verdict import FAILING, SEVERITY, against_baseline
from pytest_tokenpower.reporting.costs import cost_of, explained
from pytest_tokenpower.reporting.report import Report, Reported
from pytest_tokenpower.reporting.suites import claim_line, claims_news, claims_table

TITLE = re.compile(r"\w[\w.-]{0,99}", re.ASCII)
"""What a report may be called: nothing that could end the marker of a comment."""

SUMMARY_BYTES = 1024 * 1024 - 1024
"""GitHub refuses a step's summary from 1 MiB on."""

COMMENT_BYTES = 65_000
"""A comment has at most 65 536 characters."""

MOST_NAME = 120

MOST_MESSAGE = 4000

MOST_NAMED = 5

_ORDER = ("failed", *SEVERITY, "measured", "modelled", "estimated", "replayed", "simulated")


def code(text: str) -> str:
    """Show data as a code span that it cannot end; a broken bar stands for a bar, which would end a table's cell."""
    said = shown(" ".join(text.split())).replace("|", "\N{BROKEN BAR}")
    if len(said) > MOST_NAME:
        said = f"{said[: MOST_NAME - 1]}…"
    if not said:
        return "–"
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", said)), default=0))
    pad = " " if "`" in (said[0], said[-1]) else ""
    return f"{ticks}{pad}{said}{pad}{ticks}"


def block(text: str) -> str:
    """Show data as a fenced block, which no line of it can end."""
    said = shown(text[:MOST_MESSAGE])
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", said)), default=0))
    return f"{fence}text\n{said}\n{fence}"


def summary(report: Report, before_bytes: int = 0) -> str:
    """Say what came out, in less than a job summary may have beside the ``before_bytes`` that it has already."""
    return _within(report, SUMMARY_BYTES - before_bytes)


def comment(report: Report) -> str:
    """Say the same for a pull request, after the :func:`marker`."""
    return f"{marker(report.title)}\n{_within(report, COMMENT_BYTES)}"


def marker(title: str) -> str:
    """Return a comment's first line, by which that of an earlier run is found and replaced: one for each title."""
    return f"<!-- pytest-tokenpower{f': {title}' if title else ''} -->"


def _within(report: Report, most_bytes: int) -> str:
    entries = sorted(report, key=lambda each: _ORDER.index(each.kind) if each.kind in _ORDER else -1)
    rows = len(entries)
    text = _summary(report, entries, rows)
    while len(text.encode()) > most_bytes and rows:
        rows //= 2
        text = _summary(report, entries, rows)
    return text


def _summary(report: Report, entries: Sequence[Reported], rows: int) -> str:
    parts = [f"### {headline(report, entries)}{f' ({code(report.title)})' if report.title else ''}"]
    if unreal := [kind for kind in report.provenances if kind != "measured"]:
        parts.append(f"**Not measured on hardware by this run:** {', '.join(map(code, unreal))}.")
    if rows:
        parts.append("\n".join(_table(report, entries[:rows])))
    if rows < len(entries):
        graver = ", none of them graver than these" if rows else ""
        parts.append(f"… and {plural(len(entries) - rows, 'test')} more{graver}: this text may be no longer.")
    parts += [block(said) for each in entries[:rows] if (said := _said(each))]
    if report.claims:
        parts.append(block("\n".join(claims_table(report.claims))))
    scopes = tuple(dict.fromkeys(each.measured.scope for each in entries))
    if lines := explained(report.factors, scopes):
        parts.append(block("\n".join(lines)))
    parts.append("\n".join(_sources(report, entries)))
    return "\n\n".join(part for part in parts if part) + "\n"


def headline(report: Report, entries: Sequence[Reported]) -> str:
    """How many tests came out how, the gravest first, after the claims that fail the run."""
    counts = Counter(each.kind for each in entries)
    known = [f"{counts[kind]} {word(kind)}" for kind in _ORDER if counts[kind]]
    other = sum(count for kind, count in counts.items() if kind not in _ORDER)
    found = [*claims_news(report.claims), *known, *([f"{other} other"] if other else [])]
    return f"Energy per token: {', '.join(found) or 'no test measured'}"


def _figures(entries: Sequence[Reported]) -> tuple[list[str], str]:
    """Return the figures, "" where there is none, in the unit that they share; each with its own where they differ."""
    found = [None if each.figure is None else readable(each.unit, each.figure.value) for each in entries]
    units = {one[1] for one in found if one}
    unit = units.pop() if len(units) == 1 else ""
    return ["" if one is None else one[0][0] if unit else f"{one[0][0]} {one[1]}" for one in found], unit


def _table(report: Report, entries: Sequence[Reported]) -> list[str]:
    factors = report.factors
    shown, unit = _figures(entries)
    heads = ["test", unit or "figure", "±95 %", "change", "95 % interval", "verdict"]
    heads += [f"{code(factors.currency)}/Mtok"] if factors.priced else []
    heads += ["gCO2e/Mtok"] if factors.carbon is not None else []
    lines = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    for each, text in zip(entries, shown, strict=True):
        measured, figure = each.measured, each.figure
        compared = against_baseline(measured.verdicts)
        changed = compared is not None and compared.change is not None
        cost = cost_of(measured, factors)
        cells = [
            code(short_test_name(measured.test)),
            text,
            "" if figure is None else f"{196 * figure.stderr / figure.value:.1f} %",
            signed(compared.change or 0.0) if compared is not None and changed else "",
            interval(compared.change_low or 0.0, compared.change_high or 0.0)
            if compared is not None and changed
            else "",
            f"**{word(each.kind)}**" if each.kind in FAILING else code(each.kind),
        ]
        if factors.priced:
            cells.append("" if cost is None or cost.money is None else f"{cost.money:.3g}")
        if factors.carbon is not None:
            cells.append("" if cost is None or cost.grams is None else f"{cost.grams:.3g}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _said(each: Reported) -> str:
    """Return the messages of the verdicts that did not simply pass."""
    return "\n".join(
        message(verdict, each.measured.test, failing=verdict.kind in FAILING)
        for verdict in each.measured.verdicts
        if verdict.kind not in ("passed", "improved") or verdict.accepted
    )


def _sources(report: Report, entries: Sequence[Reported]) -> list[str]:
    how = dict.fromkeys(
        (each.measured.method or "nothing", each.measured.scope, each.measured.provenance) for each in entries
    )
    lines = [
        f"- {code(f'{provenance}: {method}, {scope} energy')}"
        for method, scope, provenance in list(how)[:MOST_NAMED]
    ]
    for run in report.runs[:MOST_NAMED]:
        commit = "outside git" if run.commit is None else f"commit {run.commit[:12]}"
        changed = ", with uncommitted changes" if run.dirty else ""
        lines.append(f"- {code(f'run {run.id[:8]}, {commit}{changed}, {run.created}')}")
    return lines


def annotation(report: Report) -> str:
    """One workflow command for the whole run: an error where a test fails, else a notice."""
    entries = list(report)
    failing = [_short(each) for each in entries if each.failing]
    failing += [claim_line(claim) for claim in report.claims if claim.fails]
    said = "; ".join(failing[:MOST_NAMED])
    if len(failing) > MOST_NAMED:
        said += f"; and {len(failing) - MOST_NAMED} more"
    title = headline(report, entries)
    level = "error" if failing else "notice"
    return f"::{level} title={_property(title)}::{_data(said or title)}\n"


def _short(each: Reported) -> str:
    """Return the news of a failing test in one line."""
    gravest = min(each.measured.verdicts, key=lambda verdict: SEVERITY.index(verdict.kind))
    return message(gravest, each.measured.test, failing=True).splitlines()[0][:300]


def _data(text: str) -> str:
    return shown(" ".join(text.split())).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
