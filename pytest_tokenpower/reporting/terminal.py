"""The terminal's energy summary: what measured, the table, and what each verdict rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Protocol

from pytest_tokenpower.core.denominators import PER, denominator, unit_of
from pytest_tokenpower.core.records import UNLIKE_BOARDS, ClaimRecord, MeasurementRecord, PhaseSplit
from pytest_tokenpower.core.text import per_token, short_test_name
from pytest_tokenpower.gate.messages import below_noise, message, word
from pytest_tokenpower.gate.verdict import FAILING, SEVERITY
from pytest_tokenpower.reporting.columns import ESTIMATED, Layout, is_estimated, status, table
from pytest_tokenpower.reporting.costs import explained
from pytest_tokenpower.reporting.junit import scope_label
from pytest_tokenpower.reporting.suites import claims_news

if TYPE_CHECKING:
    from pytest_tokenpower.runner.session import Session


class Reporter(Protocol):
    """What is needed of pytest's terminal reporter."""

    def write_sep(self, sep: str, title: str, **markup: bool) -> None:
        """Write a line across the terminal with a title in it."""
        ...

    def write_line(self, line: str, **markup: bool) -> None:
        """Write a line."""
        ...


LEGEND = "{per}. ±95 %: by this run's rounds alone; what differs between runs is in the interval."

LATENCY = "TTFT, TPOT: time to the first and for each further token, median/p99 of a round's requests."

MOST_PROBLEMS = 10
"""So many files that were skipped are named; the others are only counted."""


def summary(
    reporter: Reporter,
    measurements: Sequence[MeasurementRecord],
    session: Session,
    problems: Mapping[str, str],
    *,
    layout: Layout,
    width: int,
    verbosity: int = 0,
) -> None:
    """Write the energy section, the news in its first line.

    Args:
        reporter: Where it is written.
        measurements: The tests that were measured, in the order of the run.
        session: The run, for the baselines that it compares with.
        problems: The stored files that were skipped, each with the reason.
        layout: Which columns, and in which order the tests.
        width: Columns of the terminal.
        verbosity: pytest's: at -2 (``-qq``) and below the news is all.
    """
    news, grave = headline(measurements, width - 14, session.claims)
    reporter.write_sep("=", f"energy: {news}", **_markup(grave), bold=True)
    if verbosity < -1:
        for measured in measurements:
            if measured.provenance != "measured":
                reporter.write_line(source(measured))
                break
        return
    for line in header(measurements, session):
        reporter.write_line(line)
    reporter.write_line("")
    lines = table(measurements, layout, width)
    for line, kind in lines:
        reporter.write_line(line, **_markup(kind))
    legend = [LEGEND.format(per=_per(measurements))] if "±95 %" in lines[0][0] else []
    legend += [LATENCY] if "TTFT ms" in lines[0][0] or "TPOT ms" in lines[0][0] else []
    for line in (part for each in legend for part in wrap(each, width)) if verbosity >= 0 else ():
        reporter.write_line(line)
    notes = [
        line
        for measured in measurements
        for line in (
            *also_measured(measured),
            *mixed_steps(measured),
            *cached(measured),
            *footnotes(measured),
        )
    ]
    notes += absences(measurements)
    notes += explained(layout.factors, [measured.scope for measured in measurements if measured.figures])
    if any(map(is_estimated, measurements)):
        notes.append(f"{ESTIMATED} estimated: the phases were marked from outside the engine")
    if notes:
        reporter.write_line("")
    for note in notes:
        reporter.write_line(note)
    if below := too_fine(measurements):
        reporter.write_line("")
    for line in below:
        reporter.write_line(line, yellow=True)
    if problems:
        reporter.write_line("")
    for line in skipped(problems):
        reporter.write_line(line, yellow=True)


def _per(measurements: Sequence[MeasurementRecord]) -> str:
    """Return what the tests' joules are divided by, and by which of it those that have another than usual."""
    used = {denominator(measured.key) for measured in measurements}
    if used <= {"token"}:
        return "Per generated token"
    names = [PER[per] if per != "token" else "generated token" for per in PER if per in used]
    return f"Compared per {' or '.join(names)}"


def headline(
    measurements: Sequence[MeasurementRecord], width: int, claims: Sequence[ClaimRecord] = ()
) -> tuple[str, str | None]:
    """Return the news in at most ``width`` characters, the gravest first, and the verdict that colours it."""
    kinds = list(map(status, measurements))
    order = [*SEVERITY[:3], "failed", *SEVERITY[3:], "measured"]
    counts = {kind: kinds.count(kind) for kind in sorted(set(kinds), key=order.index)}
    refuted = claims_news(claims)
    news = ", ".join([*refuted, *(f"{count} {word(kind)}" for kind, count in counts.items())])
    if len(news) > width:
        # The gravest is said, however narrow the terminal.
        shown = max(news.rfind(",", 0, max(width, 0)), news.find(","))
        news = news[:shown] + ", …" if shown > 0 else news
    return news, "failed" if refuted else next(iter(counts), None)


def _markup(kind: str | None) -> dict[str, bool]:
    if kind in FAILING or kind == "failed":
        return {"red": True}
    if kind in ("inconclusive", "no baseline", "doubtful"):
        return {"yellow": True}
    return {"green": True} if kind == "improved" else {}


def header(measurements: Sequence[MeasurementRecord], session: Session) -> list[str]:
    """Return what measured, and what it is compared with. A figure that was not measured says so first."""
    # A test that failed within its first round read nothing; it has no way of measuring to show beside the others'.
    read = [measured for measured in measurements if measured.method] or measurements
    lines = list(dict.fromkeys(map(source, read)))
    lines += dict.fromkeys(
        f"unlike boards in one run: {each.facts[UNLIKE_BOARDS]}"
        for each in read
        if UNLIKE_BOARDS in each.facts
    )
    if session.baselines:
        lines.append(f"baseline {', '.join(baseline.label for baseline in session.baselines)}")
        lines += [
            f"baseline {baseline.label}: {baseline.note}" for baseline in session.baselines if baseline.note
        ]
    return lines


def source(measured: MeasurementRecord) -> str:
    """Say what measured a test; what did not measure says so first."""
    names = [
        f"{count}x {measured.key.get(field.removesuffix('count') + 'name')}"
        for field, count in measured.key.items()
        if field.endswith(".count")
    ]
    honest = "" if measured.provenance == "measured" else f"{measured.provenance.upper()}, not measured: "
    scope = f"energy of {measured.scope}" if "+" in measured.scope else f"{measured.scope} energy"
    return f"{honest}{', '.join(filter(None, (*names, measured.method)))} ({scope})"


def mixed_steps(measured: MeasurementRecord) -> list[str]:
    """How the phases came out of steps that prefilled and decoded at once, or why they did not."""
    split = measured.phase_split
    if split is None:
        return []
    name = short_test_name(measured.test)
    if split.mixed_share is None:
        return [f"{name}: prefill and decode not told apart: {split.reason}"]
    much = f"{100 * split.mixed_share:.2g} % of the steps' energy"
    if split.reason and not _told(measured):
        return [f"{name}: prefill and decode not told apart, {much} being in mixed steps: {split.reason}"]
    return [f"{name}: prefill and decode: {much} was in mixed steps, {division(measured, split)}"]


def division(measured: MeasurementRecord, split: PhaseSplit) -> str:
    """How the energy of mixed steps was divided."""
    if not split.reason:
        return "divided by least squares"
    if not _told(measured):
        return f"not told apart: {split.reason}"
    return f"which is in the errors, as it may be of either: {split.reason}"


def _told(measured: MeasurementRecord) -> bool:
    return any({"prefill", "decode"} & one.phases.keys() for one in measured.rounds)


def cached(measured: MeasurementRecord) -> list[str]:
    """How much of the prompts came from a prefix cache and is in no figure; what to do where it was not asked for."""
    prompts = sum(one.prompt_tokens for one in measured.rounds)
    held = sum(one.cached_prompt_tokens for one in measured.rounds)
    if not held:
        return []
    name = short_test_name(measured.test)
    said = f"{name}: {100 * held / prompts:.0f} % of the prompt tokens came from a prefix cache and were not prefilled"
    if measured.facts.get("prefix_cache.asked_for"):
        return [f"{said}, as asked for"]
    return [
        f"{said}: switch it off for rounds that do all of their work (vLLM: enable_prefix_caching=False), or say "
        "power_budget(prefix_cache=True) where it is meant"
    ]


def footnotes(measured: MeasurementRecord) -> list[str]:
    """Every verdict that needs words: what did not simply pass."""
    name = short_test_name(measured.test)
    lines = []
    for verdict in measured.verdicts:
        # What failed the test stands in pytest's own section of failures.
        plain = verdict.kind == "passed" and not verdict.provisional and not verdict.accepted
        if verdict.kind in FAILING or plain:
            continue
        lines.append(message(verdict, measured.test))
    dropped = [one for one in measured.rounds if one.reasons]
    if dropped and measured.comparable:
        causes = dict.fromkeys(reason for one in dropped for reason in one.reasons)
        lines.append(f"{name}: {len(dropped)} of {len(measured.rounds)} rounds dropped: {'; '.join(causes)}")
    return lines


def too_fine(measurements: Sequence[MeasurementRecord]) -> list[str]:
    """Return the tests, also those that passed, whose limit is finer than what their comparison can tell."""
    lines = []
    for measured in measurements:
        found = [
            (verdict.noise_floor or 0.0, verdict.threshold or 0.0)
            for verdict in measured.verdicts
            if below_noise(verdict)
        ]
        if found:
            floor, limit = max(found)
            lines.append(
                f"{short_test_name(measured.test)}: warning: the limit of {100 * limit:.3g} % is below the "
                f"noise: rises under {100 * floor:.2g} % cannot be told"
            )
    if lines:
        lines.append("`tokenpower noise -- PYTEST ARGUMENTS` measures which limit this machine can hold.")
    return lines


def also_measured(measured: MeasurementRecord) -> list[str]:
    """Return the other scopes' J/token.

    A slow meter's says what it is taken over, a modelled one that it is modelled.
    """
    parts = []
    for scope in measured.other_scopes:
        figure, name = scope.compared(measured.key)
        if figure is None:
            continue
        words = [scope.provenance] if scope.provenance not in measured.provenance.split("+") else []
        if (error := 196 * figure.stderr / figure.value) >= 1:
            words.append(f"±{error:.0f} %")
        if scope.span_seconds is not None and scope.share_in_rounds is not None:
            words.append(
                f"over {scope.span_seconds:.0f} s, {100 * scope.share_in_rounds:.0f} % of it in rounds"
            )
        said = per_token(figure.value, unit_of(name))
        parts.append(f"{scope.scope} {said}" + (f" ({', '.join(words)})" if words else ""))
    return [f"{short_test_name(measured.test)}: also measured: {', '.join(parts)}"] if parts else []


def absences(measurements: Sequence[MeasurementRecord]) -> list[str]:
    """Return what was not measured along with the figures, with the reason; once for all tests of which it is true."""
    tests: dict[tuple[str, str], list[str]] = {}
    for measured in measurements:
        for scope in measured.other_scopes:
            figure, name = scope.compared(measured.key)
            if figure is None:
                label, reason = (
                    scope_label(scope, measured),
                    scope.reason or f"its {unit_of(name)} is not known",
                )
                tests.setdefault((label, reason), []).append(short_test_name(measured.test))
    return [
        f"{'all tests' if len(names) == len(measurements) > 1 else ', '.join(names)}: not measured: {what}: {reason}"
        for (what, reason), names in tests.items()
    ]


def skipped(problems: Mapping[str, str]) -> list[str]:
    """Return the stored files that were left out: how many, and which."""
    if not problems:
        return []
    lines = [f"{len(problems)} stored file{'s' if len(problems) > 1 else ''} skipped:"]
    lines += [f"  {path}: {reason}" for path, reason in sorted(problems.items())[:MOST_PROBLEMS]]
    if len(problems) > MOST_PROBLEMS:
        lines.append(f"  and {len(problems) - MOST_PROBLEMS} more")
    return lines
