"""The words of a verdict, made of its numbers and notes: the news first, then what it rests on, then the next step."""

from __future__ import annotations

import math

from pytest_tokenpower.core.denominators import PER, unit_of
from pytest_tokenpower.core.figures import FIGURES
from pytest_tokenpower.core.records import OTHER_VARIANT, ChangeRecord, VerdictRecord
from pytest_tokenpower.core.text import percent, plural, readable, short_test_name, signed
from pytest_tokenpower.gate.verdict import FAILING, PARTS

MOSTLY = 0.75
"""The share of a change that one of two causes must carry to be called the cause."""


def word(kind: str, *, failing: bool = False) -> str:
    """Return a verdict's word as it is shown: what fails a test is in capitals."""
    return kind.upper() if failing or kind in FAILING else kind


def message(verdict: VerdictRecord, test: str, *, failing: bool = False) -> str:
    """Say a verdict in full: a headline with the news, and indented lines.

    Args:
        verdict: what was decided.
        test: the test's id, of which people see the name.
        failing: the verdict fails the test, by the settings if not by its kind.
    """
    said = word(verdict.kind, failing=failing)
    name = short_test_name(test)
    if verdict.value is None and (verdict.reason or verdict.change is None):
        headline = f"{said}: {name}: {_without_figure(verdict)}"
        lines = list(verdict.notes)
    elif verdict.against == OTHER_VARIANT:
        headline = f"{_news(said, verdict)}: {name}: {_variants(verdict)}"
        lines = list(verdict.notes)
    elif verdict.against in FIGURES:
        headline = _ceiling(said, verdict, name)
        lines = list(verdict.notes)
    else:
        figures = f"{name} {_stored(verdict)}"
        lines = _stored_lines(verdict)
        headline = f"{_news(said, verdict)}: {figures}"
        if verdict.reason:
            headline = f"{said}: {name}: the comparison is not to be trusted: {verdict.reason}."
            lines.insert(0, figures)
    if verdict.undecided:
        lines.append(f"Not decided: {verdict.undecided}.")
    if verdict.next_step and verdict.kind == "regressed":
        lines += f"Next: {verdict.next_step}".splitlines()
    return "\n".join([headline, *(f"  {line}" for line in lines)])


def _news(said: str, verdict: VerdictRecord) -> str:
    """Return the verdict's word with its figures, for whoever reads no further."""
    if verdict.kind == "invalid" or verdict.change is None:
        return said
    limit = "" if verdict.threshold is None else f" (limit {percent(verdict.threshold)})"
    return f"{said} {signed(verdict.change)}{limit}"


def _without_figure(verdict: VerdictRecord) -> str:
    if verdict.kind == "no baseline":
        return f"nothing to compare with on {verdict.against}: {verdict.reason}"
    return verdict.reason


def _stored(verdict: VerdictRecord) -> str:
    (ours, theirs), unit = readable(
        unit_of(verdict.figure), verdict.value or 0.0, verdict.baseline_value or 0.0
    )
    runs = plural(len(verdict.baseline_runs), "run")
    return f"takes {ours} {unit}; {verdict.against} took {theirs} ({runs})."


def _stored_lines(verdict: VerdictRecord) -> list[str]:
    lines = []
    said = [intervals(verdict) + _p(verdict)]
    if verdict.decided_by == "work":
        said.append("decided by work")
    # The figures are as read; the change that is judged is at one GPU temperature, and may be another one.
    if verdict.raw_change is not None and abs(verdict.raw_change - (verdict.change or 0.0)) >= 5e-4:
        said.append(f"at the same GPU temperature ({signed(verdict.raw_change)} as read)")
    lines.append(f"{', '.join(said)}.")
    if anatomy := _anatomy(verdict):
        lines.append(anatomy)
    lines += verdict.notes
    if verdict.runs > 1:
        lines.append(f"Over {verdict.runs} runs of this code, each in a fresh process.")
    if verdict.kind == "doubtful":
        lines.append("Doubtful: to be restarted in a fresh process when all tests have run.")
    if below_noise(verdict) and not verdict.undecided:
        lines.append(
            f"The limit is below the noise: {_among(verdict)}rises under {percent(verdict.noise_floor or 0.0, 2)} "
            "cannot be told."
        )
    if verdict.provisional and verdict.kind != "inconclusive":
        lines.append(
            "Provisional: fewer than three occasions of this test are stored, so that its own noise is not known."
        )
    return lines


def intervals(verdict: VerdictRecord) -> str:
    """Return a change and its two parts, where they are known, each with its 95 % interval."""
    total = ChangeRecord(verdict.change or 0.0, verdict.change_low or 0.0, verdict.change_high or 0.0)
    parts = _parts(verdict)
    return f"{_with_interval(total)}{parts} (95 % interval{'s' if parts else ''})"


def _parts(verdict: VerdictRecord) -> str:
    if verdict.work is None or verdict.pace is None:
        return ""
    return f": work {_with_interval(verdict.work)}, pace {_with_interval(verdict.pace)}"


def _with_interval(change: ChangeRecord) -> str:
    # What is said of 0 must agree with what is printed: a bound is not rounded across it.
    low, high = (_outwards(bound, side) for bound, side in ((change.low, -1), (change.high, 1)))
    return f"{signed(change.change)} [{low}, {high}]"


def _outwards(bound: float, side: int) -> str:
    rounded = round(100 * bound, 1)
    if rounded == 0 and bound * side < 0:
        return f"{100 * bound:+.2g}"
    return f"{rounded + 0.0:+.1f}"


def _among(verdict: VerdictRecord) -> str:
    return f"among {verdict.family} comparisons " if verdict.family > 1 else ""


def below_noise(verdict: VerdictRecord) -> bool:
    """Tell whether the limit is finer than the smallest rise that fails, as far as the printed figures show it."""
    limit, floor = verdict.threshold or 0.0, verdict.noise_floor or 0.0
    return 0 < limit < floor and percent(limit, 2) != percent(floor, 2)


def _p(verdict: VerdictRecord) -> str:
    # The p is that of an increase.
    if verdict.p_value is None or verdict.p_value >= 1 or verdict.kind == "improved":
        return ""
    return f", one-sided p {f'= {verdict.p_value:.2g}' if verdict.p_value >= 1e-4 else '< 0.0001'}"


def _anatomy(verdict: VerdictRecord) -> str:
    """Prefill or decode, power or speed: where the change comes from."""
    changes = verdict.changes
    phases = [f"{name.partition('_')[0]} {signed(changes[name])}" for name in PARTS if name in changes]
    engine = []
    if "mean_watts" in changes and "tokens_per_second" in changes:
        engine.append(
            f"power {verdict.means['mean_watts']:.0f} W ({signed(changes['mean_watts'])}), "
            f"{verdict.means['tokens_per_second']:.4g} tok/s ({signed(changes['tokens_per_second'])}): "
            f"{_power_or_speed(verdict)}"
        )
    parts = [", ".join(phases)] if phases else []
    return "; ".join([*parts, *engine]) + "." if parts or engine else ""


def _power_or_speed(verdict: VerdictRecord) -> str:
    """With ln J/token = ln W - ln tok/s: which of the two carries the change, where its own interval shows it."""
    power, speed = (math.log1p(verdict.changes[name]) for name in ("mean_watts", "tokens_per_second"))
    total = power - speed
    if abs(total) < 0.005:
        return "no change"
    share = power / total
    hotter, slower = ("hotter", "slower") if total > 0 else ("cooler", "faster")
    needed = (["mean_watts"] if share >= 1 - MOSTLY else []) + (
        ["tokens_per_second"] if share <= MOSTLY else []
    )
    if not set(needed) <= set(verdict.shown):
        return "neither is shown to be the cause"
    if share > MOSTLY:
        return f"{hotter}, not {slower}"
    if share < 1 - MOSTLY:
        return f"{slower}, not {hotter}"
    return f"{hotter} and {slower}"


def _ceiling(said: str, verdict: VerdictRecord, name: str) -> str:
    if verdict.against == "quality":
        relation = "is below" if verdict.kind == "below floor" else "is not below"
        return (
            f"{said} {verdict.value:.4g} (limit {verdict.threshold:g}): {name}: quality {relation} its floor."
        )
    relation = {"over budget": "exceeds", "passed": "stays within"}.get(verdict.kind, "cannot be told from")
    denominated = verdict.against.removeprefix("joules_per_") in PER
    unit = unit_of(verdict.against) if denominated else FIGURES[verdict.against]
    limit, interval = verdict.threshold or 0.0, ""
    bounds = [limit * (1 + share) for share in (verdict.change_low, verdict.change_high) if share is not None]
    (value, shown, *between), unit = readable(unit, verdict.value or 0.0, limit, *bounds)
    if len(between) == 2:
        interval = f" (95 % interval {between[0]} to {between[1]})"
    return (
        f"{said} {value} {unit} (limit {_plain(shown)}): {name}: {verdict.against} "
        f"{relation} its budget{interval}."
    )


def _plain(digits: str) -> str:
    """Write a limit as people do, without the zeros of a figure that was measured."""
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _of_figure(verdict: VerdictRecord) -> str:
    """Return what is compared, where it is not joules per generated token."""
    return "" if verdict.figure == "joules_per_token" else f" {unit_of(verdict.figure)}"


def _variants(verdict: VerdictRecord) -> str:
    change, low, high = verdict.change or 0.0, verdict.change_low or 0.0, verdict.change_high or 0.0
    saves = change < 0
    against, candidate = (
        (f" against {verdict.names[0]}", verdict.names[1]) if verdict.names else ("", "the candidate")
    )
    bound = 100 * abs(verdict.threshold or 0.0)
    limit = (
        f"it must save at least {bound:g} %"
        if (verdict.threshold or 0.0) < 0
        else f"it may cost at most {bound:g} % more"
    )
    return (
        f"{candidate} {'saves' if saves else 'costs'} {100 * abs(change):.1f} % ± {50 * (high - low):.1f}"
        f"{'' if saves else ' more'}{_of_figure(verdict)}{against} "
        f"(95 % interval {100 * low:+.1f} to {100 * high:+.1f} %{_parts(verdict)}; "
        f"{verdict.blocks} ABBA blocks in {plural(verdict.runs, 'restart')}); {limit}."
    )
