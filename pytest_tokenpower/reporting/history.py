"""A test's history as text: the plot of each key, its steps with their commits, the newest runs."""

from __future__ import annotations

from pytest_tokenpower.core.denominators import unit_of
from pytest_tokenpower.core.text import digits, plural, table_lines, with_interval
from pytest_tokenpower.gate.history import LEAST_CHANGE, History, Series
from pytest_tokenpower.reporting.plot import Point, letter, render
from pytest_tokenpower.stats.changepoints import FEWEST_RUNS, ChangePoint
from pytest_tokenpower.store.access import StoreContext, when
from pytest_tokenpower.store.git import subjects
from pytest_tokenpower.store.keys import differences, label

_LISTED_RUNS = 10

_LISTED_COMMITS = 3


def as_text(history: History, place: StoreContext) -> list[str]:
    """Return the plot of each key, its steps with their commits, and the newest runs."""
    lines = [history.test]
    for series in history.series:
        lines += ["", *_heading(history, series), "", *_plot(series), "", *_changes(history, series, place)]
        lines += ["", *_table(series)]
    if history.invalid:
        lines += ["", f"{plural(history.invalid, 'invalid measurement')} left out."]
    problems = place.store.problems
    if problems:
        lines += ["", f"{plural(len(problems), 'stored file')} skipped, the first: {problems[0].path}"]
    return lines


def _heading(history: History, series: Series) -> list[str]:
    first, last = series.points[0], series.points[-1]
    commits = len({point.commit for point in series.points if point.commit})
    lines = [
        f"{plural(len(series.points), 'run')}"
        + (f" of {plural(commits, 'commit')} on {history.line}" if commits else "")
        + f", {when(first.entry.created)[:10]} to {when(last.entry.created)[:10]}"
    ]
    provenance = last.measurement.provenance
    names = [str(value) for field, value in series.key.items() if field.endswith(".name")]
    what = [*names, *([f"{series.key['engine']}"] if series.key.get("engine") else [])]
    if provenance != "measured":
        what.insert(0, f"{provenance.upper()}, not measured")
    if what:
        lines.append(" · ".join(what))
    other = [each for each in history.series if each is not series]
    for difference in differences(series.key, other[0].key)[:4] if other else ():
        lines.append(f"  {label(difference.field)}: {difference.here}")
    return lines


def _plot(series: Series) -> list[str]:
    points = [
        Point(point.value, *point.interval(), level)
        for point, level in zip(series.points, series.levels(), strict=True)
    ]
    ends = [
        (point.commit or "")[:7] or when(point.entry.created)[:10]
        for point in (series.points[0], series.points[-1])
    ]
    drawn = render(
        points, [change.index for change in series.changes], *(ends if len(points) > 1 else (ends[0], ""))
    )
    return [unit_of(series.figure), *drawn]


def _changes(history: History, series: Series, place: StoreContext) -> list[str]:
    if not series.changes:
        return [
            f"No change of {100 * LEAST_CHANGE:g} % or more that {FEWEST_RUNS} runs on both sides tell from the noise."
        ]
    levels = series.levels()
    lines = []
    for number, change in enumerate(series.changes):
        lines.append(
            f"{letter(number)}  {with_interval(change.change, *change.change_interval())}  "
            f"{digits(levels[change.index - 1])} -> {digits(levels[change.index])} {unit_of(series.figure)}"
        )
        lines += _suspects(history, series, change, place)
    return lines


def _suspects(history: History, series: Series, change: ChangePoint, place: StoreContext) -> list[str]:
    commits = history.suspects(series, change)
    point = series.points[change.index]
    if not commits:
        same = point.commit is not None and point.commit == series.points[change.index - 1].commit
        where = f"between two runs of commit {(point.commit or '')[:7]}: not the code" if same else ""
        return [f"   at the run of {when(point.entry.created)}{', ' + where if where else ''}"]
    assert place.repository is not None
    names = subjects(place.repository, commits[:_LISTED_COMMITS])
    lines = [f"   {commit[:7]} {names.get(commit, '')}"[:78].rstrip() for commit in commits[:_LISTED_COMMITS]]
    if len(commits) > 1:
        lines.insert(0, f"   one of {len(commits)} commits, {commits[0][:7]} to {commits[-1][:7]}:")
    if len(commits) > _LISTED_COMMITS:
        lines.append(
            f"   and {len(commits) - _LISTED_COMMITS} more; measure one in between to narrow it down"
        )
    return lines


def _table(series: Series) -> list[str]:
    rows = []
    for point in reversed(series.points[-_LISTED_RUNS:]):
        low, high = point.interval()
        value = point.value
        rows.append(
            [
                point.entry.id8,
                (point.commit or "")[:7],
                when(point.entry.created),
                digits(value),
                f"{100 * (high - low) / 2 / value:.1f} %",
                point.verdict,
            ]
        )
    columns = ("run", "commit", "time (UTC)", unit_of(series.figure), "±95 %", "verdict")
    return table_lines(rows, columns, ("left", "left", "left", "right", "right", "left"))
