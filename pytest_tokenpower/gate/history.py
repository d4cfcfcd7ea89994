"""A test's stored figures along the first-parent history, with change points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from pytest_tokenpower.analysis.rounds import log_errors, log_joules_per_token
from pytest_tokenpower.core.denominators import denominator, figure_per
from pytest_tokenpower.core.records import MeasurementRecord
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import StoreError, UsageError
from pytest_tokenpower.gate.verdict import gravest
from pytest_tokenpower.stats.changepoints import ChangePoint, change_points
from pytest_tokenpower.stats.runs import summarise_runs
from pytest_tokenpower.stats.types import RunSummary
from pytest_tokenpower.store.acceptances import Acceptances
from pytest_tokenpower.store.access import StoreContext, choose_test
from pytest_tokenpower.store.git import first_parents
from pytest_tokenpower.store.keys import differences
from pytest_tokenpower.store.renames import EarlierNames
from pytest_tokenpower.store.store import COMMIT_LENGTH, Contents, StoredFile

LEAST_CHANGE = 0.005
"""Smaller steps are not named: a driver or a warmer room makes them."""


@dataclass(frozen=True)
class StoredPoint:
    """One run of the test."""

    entry: StoredFile
    run_id: str
    commit: str | None
    measurement: MeasurementRecord
    summary: RunSummary
    verdict: str

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the figure by the spread of the run's own rounds."""
        half = 1.96 * math.sqrt(self.summary.squared_error)
        return math.exp(self.summary.location - half), math.exp(self.summary.location + half)

    @property
    def value(self) -> float:
        """The run's joules per unit of what it is compared by."""
        return math.exp(self.summary.location)


@dataclass(frozen=True)
class Series:
    """The runs under one key, oldest first, and the steps in them."""

    key: Mapping[str, Fact]
    points: tuple[StoredPoint, ...]
    changes: tuple[ChangePoint, ...]

    @property
    def figure(self) -> str:
        """The figure that its runs are compared by."""
        return figure_per(denominator(self.key))

    def levels(self) -> list[float]:
        """Return each point's level: the median between two steps, which a stray run does not move."""
        edges = [0, *(change.index for change in self.changes), len(self.points)]
        found: list[float] = []
        for start, stop in pairwise(edges):
            middle = median(point.summary.location for point in self.points[start:stop])
            found += [math.exp(middle)] * (stop - start)
        return found


@dataclass(frozen=True)
class History:
    """A test's stored runs. ``commits`` is the line they are on, newest first; empty outside git."""

    test: str
    line: str
    commits: tuple[str, ...]
    series: tuple[Series, ...]
    invalid: int

    def suspects(self, series: Series, change: ChangePoint) -> tuple[str, ...]:
        """Return the commits that a step may be due to, oldest first.

        Empty between runs of one commit or outside git.
        """
        before, after = (series.points[at].commit for at in (change.index - 1, change.index))
        if before is None or after is None or before == after or not self.commits:
            return ()
        return tuple(reversed(self.commits[self.commits.index(after) : self.commits.index(before)]))


@dataclass(frozen=True)
class Line:
    """The stored runs along a line of commits, newest first, and what was accepted on it."""

    name: str
    commits: tuple[str, ...]
    entries: tuple[StoredFile, ...]
    accepted: Acceptances | None
    names: EarlierNames


def read_line(place: StoreContext, ref: str | None, limit: int) -> Line:
    """Read which of the newest ``limit`` runs lie on the line of ``ref``; raises StoreError where none does."""
    name, commits, entries = _first_parent_commits(place, ref)
    accepted = Acceptances.read(place.needs_repository(), commits) if commits else None
    tip = commits[0] if commits else None
    return Line(name, commits, entries[:limit], accepted, EarlierNames.read(place.repository, tip))


def collect(place: StoreContext, test: str, line: Line) -> History:
    """Read a test's runs under all its names.

    Raises UsageError for one that is not stored or not the only one of its kind.
    """
    readable = []
    for entry in line.entries:
        with suppress(StoreError):  # Named in store.problems.
            readable.append((entry, place.store.contents(entry)))
    try:
        chosen = _choose(place, test, line, readable)
    except UsageError as error:
        raise UsageError(f"{error}{place.store.left_out}") from error
    found: list[tuple[StoredFile, MeasurementRecord]] = []
    invalid = 0
    for entry, contents in reversed(readable):
        name = line.names.held(contents.commit, chosen, contents.measurements)
        if name is None:
            continue
        inside = contents.measurements[name]
        try:
            measurement = place.store.measurement(entry, name)
        except StoreError:
            continue
        if inside.comparable and log_joules_per_token(measurement.rounds, denominator(measurement.key)):
            found.append((entry, measurement))
        else:
            invalid += 1
    if not found:
        raise UsageError(
            f"{chosen} has {invalid} stored measurements and no level: they are invalid, or compare two variants "
            "within the test; tokenpower show --test says which"
        )
    return History(chosen, line.name, line.commits, _by_key(place, chosen, found, line.accepted), invalid)


def _choose(
    place: StoreContext, text: str, line: Line, readable: Sequence[tuple[StoredFile, Contents]]
) -> str:
    """Return the latest name of the test that is meant."""
    tests = {test: None for _, contents in readable for test in contents.measurements}  # The newest first.
    if text in tests:
        return text
    if "::" in text and place.repository is not None:
        here = place.in_repository(text)
        if any(line.names.held(found.commit, here, found.measurements) for _, found in readable):
            return here
    for test in [test for test in tests if text in test]:
        earlier = {name for _, contents in readable for name in line.names.at(contents.commit, test)}
        tests = {each: None for each in tests if each not in earlier}
    return choose_test(text, tests)


def _first_parent_commits(
    place: StoreContext, ref: str | None
) -> tuple[str, tuple[str, ...], tuple[StoredFile, ...]]:
    """Return what the line is called, its commits, and the clean runs on it, newest first."""
    entries = place.entries()
    if ref is None and (place.repository is None or place.repository.head is None):
        return "by time", (), entries
    found, commits = first_parents(place.needs_repository(), ref or "HEAD")
    order = {commit[:COMMIT_LENGTH]: position for position, commit in enumerate(commits)}
    ours = [entry for entry in entries if entry.commit in order and entry.state == "clean"]
    if not ours:
        raise StoreError(
            f"none of the {len(entries)} runs in {place.store.path} is a clean run on the history of {found.name}: "
            "name another branch with --ref=REF, or save runs with pytest --energy-autosave"
        )
    ours.sort(key=lambda entry: order[entry.commit or ""])
    name = place.repository.branch if ref is None and place.repository else None
    return name or found.name, commits, tuple(ours)


def _by_key(
    place: StoreContext,
    test: str,
    found: Sequence[tuple[StoredFile, MeasurementRecord]],
    accepted: Acceptances | None,
) -> tuple[Series, ...]:
    """Return the measurements by key, the key of the newest run first."""
    summaries = summarise_runs(
        [log_joules_per_token(measured.rounds, denominator(measured.key)) for _, measured in found],
        meter_errors_per_run=[
            log_errors(measured.rounds, denominator(measured.key)) for _, measured in found
        ],
    )
    groups: list[tuple[Mapping[str, Fact], list[StoredPoint]]] = []
    for (entry, measured), summary in zip(found, summaries, strict=True):
        contents = place.store.contents(entry)
        point = StoredPoint(
            entry,
            contents.run_id,
            contents.commit,
            measured,
            summary,
            _verdict(measured, test, entry, accepted),
        )
        group = next((points for key, points in groups if not differences(key, measured.key)), None)
        if group is None:
            groups.append((measured.key, group := []))
        group.append(point)
    groups.sort(key=lambda group: group[1][-1].entry.created, reverse=True)
    return tuple(
        Series(
            key,
            tuple(points),
            change_points([point.summary for point in points], least=math.log1p(LEAST_CHANGE)),
        )
        for key, points in groups
    )


def _verdict(measured: MeasurementRecord, test: str, entry: StoredFile, accepted: Acceptances | None) -> str:
    verdict = gravest(measured.verdicts)
    kind = verdict.kind if verdict else ""
    if accepted is None or not accepted.regressed(measured.verdicts):
        return kind
    counts = accepted.counts(measured.verdicts, entry.commit, test, measured.test)
    return f"{kind}, {'accepted' if counts else 'not accepted'}"
