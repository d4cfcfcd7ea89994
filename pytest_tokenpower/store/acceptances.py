"""Acceptances: small committed files that say how far a test may rise, why, and until when.

An acceptance is reviewed with the change that it accepts, as a snapshot is. Git itself says where it begins: at the
commit of a branch's first-parent history that brought the file. Until a run of the test is stored from there on, the
test may rise by what was accepted; from that run on its level begins there, and the usual limit holds again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timezone
from pathlib import Path

import msgspec

from pytest_tokenpower.core.records import VerdictRecord
from pytest_tokenpower.core.settings import fraction
from pytest_tokenpower.errors import HistoryError, UsageError
from pytest_tokenpower.store.committed import committed_file, read_committed, toml_string, write_committed
from pytest_tokenpower.store.git import ACCEPTED_FOLDER, SCAN_S, Repository, merged_by, run_git
from pytest_tokenpower.store.store import COMMIT_LENGTH

_LABEL_COMMIT = re.compile(r"@([0-9a-f]{7,40})$")

_COMMIT = re.compile(r"[0-9a-f]{7,64}")

_PENDING = -1
"""The place of an acceptance that is not on the line yet: before its newest commit."""


class Acceptance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """That ``test`` may rise by ``up_to`` (a share) over its baseline, why, and the last day on which it may.

    ``test`` is a node id from the repository's top level; without its brackets it stands for every parameter.
    ``since`` names an earlier commit at which the accepted level began, for a change that was merged before it was
    accepted: runs from there on count although they regressed, where they rose by no more than ``up_to``.
    """

    test: str
    up_to: float
    reason: str
    expires: date
    since: str = ""

    def covers(self, *names: str) -> bool:
        """Whether it is about a test, under any of its names."""
        return any(name == self.test or name.startswith(f"{self.test}[") for name in names)


def decode_acceptance(text: str, *, source: str) -> Acceptance:
    """Return an acceptance from its TOML.

    Raises:
        UsageError: the text is no acceptance; names ``source`` and what is wrong with it.
    """
    try:
        table = msgspec.toml.decode(text)
        up_to = table.get("up_to")
        if not isinstance(up_to, str):
            raise UsageError('up_to must be a share such as "8%"')
        try:
            table["up_to"] = share(up_to)
        except UsageError as error:
            raise UsageError(f'up_to = "{up_to}" {error}') from None
        found = msgspec.convert(table, Acceptance)
    except (msgspec.DecodeError, UsageError) as error:
        raise UsageError(
            f"{source} is no acceptance ({error}): write it with tokenpower accept, or remove it"
        ) from error
    if not found.test or not found.reason.strip():
        raise UsageError(f"{source}: an acceptance names its test and its reason")
    if found.since and not _COMMIT.fullmatch(found.since):
        raise UsageError(
            f"{source}: since = {found.since!r} is no commit: give its hash, 7 digits of it or more"
        )
    return found


def share(text: str, name: str | None = None) -> float:
    """Return how far a test may rise, 0 % included; raises UsageError that begins with ``name``."""
    return 0.0 if text.strip() in ("0", "0%") else fraction(name, text)


def encode_acceptance(found: Acceptance) -> str:
    """Return the acceptance as the TOML that is committed."""
    lines = [
        "# Written by `tokenpower accept`, reviewed with the change that it accepts.",
        f"test = {toml_string(found.test)}",
        f'up_to = "{100 * found.up_to:.6g}%"',
        f"reason = {toml_string(found.reason)}",
        f"expires = {found.expires.isoformat()}",
    ]
    if found.since:
        lines.append(f"since = {toml_string(found.since)}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class PlacedAcceptance:
    """An acceptance, its file, and where it stands on a line of commits (newest first).

    ``added`` is the place of the commit that brought it (-1: none yet), ``begins`` that of the commit at which the
    accepted level begins. ``current``: the file is in the work tree as it was brought.
    """

    acceptance: Acceptance
    file: str
    added: int
    begins: int
    current: bool


class Acceptances:
    """Which measurements count on a line of commits (newest first), where levels begin, and how far tests may rise."""

    def __init__(self, placed: Iterable[PlacedAcceptance] = (), commits: Sequence[str] = ()) -> None:
        self._placed = tuple(placed)
        self._commits = commits
        self._positions = {commit[:COMMIT_LENGTH]: at for at, commit in enumerate(commits)}
        self._starts: dict[str, int | None] = {}

    @classmethod
    def read(cls, repository: Repository, commits: Sequence[str]) -> Acceptances:
        """Return the acceptances of the work tree, and those that came to a line with its commits.

        Raises:
            UsageError: a file of the work tree is no acceptance.
            StoreError: a file of the work tree cannot be read.
            HistoryError: git cannot say what came to the line.
        """
        came = _brought(repository, commits)
        newest: dict[str, str] = {}
        placed = []
        positions = {commit: at for at, commit in enumerate(commits)}
        here = read_committed(repository, ACCEPTED_FOLDER)
        for commit, file, text in came:
            current = file not in newest and here.get(file) == text
            newest.setdefault(file, text)
            try:
                found = decode_acceptance(text, source=file)
            except UsageError:
                continue  # The runs of its time have refused it.
            added = positions[commit]
            placed.append(
                PlacedAcceptance(found, file, added, _begin(repository, found, added, commits), current)
            )
        for file, text in here.items():
            found = decode_acceptance(text, source=str(repository.top_level / file))
            if newest.get(file) != text:
                begins = _begin(repository, found, _PENDING, commits)
                placed.append(PlacedAcceptance(found, file, _PENDING, begins, current=True))
        return cls(placed, commits)

    def steps(self, test: str) -> tuple[str, ...]:
        """Return the commits of the line at which an accepted level of a test begins, newest first."""
        places = {one.begins for one in self._placed if one.begins >= 0 and one.acceptance.covers(test)}
        return tuple(self._commits[place] for place in sorted(places))

    def level(self, commit: str | None, *names: str) -> int:
        """How many accepted levels of a test, under its names, began after a stored commit: 0 is the present one."""
        position = self._positions.get(commit or "", -1)
        places = {one.begins for one in self._placed if one.begins >= 0 and one.acceptance.covers(*names)}
        return sum(place < position for place in places)

    def counts(self, verdicts: Sequence[VerdictRecord], commit: str | None, *names: str) -> bool:
        """Whether a run's measurement may be a baseline: it did not regress, or its rise was accepted afterwards.

        ``names`` are those of the test.
        """
        nearest = self.nearest(verdicts)
        if nearest is None or nearest.kind != "regressed":
            return True
        place = self._positions.get(commit or "")
        return place is not None and any(
            one.added < place <= one.begins and (nearest.change or 0.0) <= one.acceptance.up_to
            for one in self._placed
            if one.acceptance.covers(*names)
        )

    def regressed(self, verdicts: Sequence[VerdictRecord]) -> bool:
        """Whether the verdict against the nearest baseline on this line is "regressed".

        A run may be judged against a rolling and a pinned baseline at once (main and v1.0): the older one goes on
        failing after the level has been accepted, and must not keep every later run out.
        """
        nearest = self.nearest(verdicts)
        return nearest is not None and nearest.kind == "regressed"

    def allowance(
        self, newest: str | None, *names: str, today: date | None = None
    ) -> PlacedAcceptance | None:
        """Return the acceptance by which a test may rise now, the largest; None where none holds.

        Args:
            newest: the commit of its newest comparable stored run; an acceptance ends with the first run at its level.
            names: the test's names, from the repository's top level.
            today: the day that acceptances expire by (default: today, UTC).
        """
        day = today or datetime.now(timezone.utc).date()
        place = self._positions.get((newest or "")[:COMMIT_LENGTH], len(self._commits))
        holding = [
            one
            for one in self._placed
            if one.current
            and one.acceptance.covers(*names)
            and day <= one.acceptance.expires
            and place > one.begins
        ]
        return max(holding, key=lambda one: one.acceptance.up_to, default=None)

    def nearest(self, verdicts: Sequence[VerdictRecord]) -> VerdictRecord | None:
        """Return the verdict against the baseline that begins nearest on this line; None where none compares."""
        compared = (verdict for verdict in verdicts if verdict.baseline_runs)
        return min(
            compared, key=lambda one: (self._start(one.against), one.kind != "regressed"), default=None
        )

    def _start(self, label: str) -> int:
        """Where on the line a baseline began, by its label (main@1a2b3c4); its end for one that is not on it."""
        if label not in self._starts:
            found = _LABEL_COMMIT.search(label)
            self._starts[label] = None if found is None else self._position_of(found[1])
        position = self._starts[label]
        return len(self._commits) if position is None else position

    def _position_of(self, short: str) -> int | None:
        return next((at for at, commit in enumerate(self._commits) if commit.startswith(short)), None)


def _brought(repository: Repository, commits: Sequence[str]) -> list[tuple[str, str, str]]:
    """Each acceptance that a commit of the line added or changed: commit, file, text; the newest first."""
    if not commits:
        return []
    log = run_git(
        repository.top_level,
        *(
            "log",
            "--first-parent",
            "-m",
            "--no-renames",
            "--diff-filter=AM",
            "--name-only",
            "-z",
            "--format=%x01%H",
        ),
        *(f"--max-count={len(commits)}", commits[0], "--", f":(top){ACCEPTED_FOLDER}"),
        timeout_s=SCAN_S,
        may_fetch=True,
    )
    if log.code != 0:
        raise HistoryError(
            f"{repository.top_level}: what was accepted cannot be read: git log: {log.complaint}"
        )
    known, found = set(commits), []
    for block in log.stdout.split("\x01")[1:]:
        commit, *files = block.split("\0")
        for file in (name.lstrip("\n") for name in files):
            if commit in known and file.endswith(".toml"):
                shown = run_git(repository.top_level, "show", f"{commit}:{file}", may_fetch=True)
                if shown.code != 0:
                    raise HistoryError(
                        f"{repository.top_level}: {file} of {commit[:7]} cannot be read: {shown.complaint}"
                    )
                # As the work tree's texts are read: line ends are the platform's affair.
                found.append((commit, file, shown.stdout.replace("\r\n", "\n")))
    return found


def _begin(repository: Repository, found: Acceptance, added: int, commits: Sequence[str]) -> int:
    """Where the accepted level begins: where it was accepted, or where the earlier commit that it names was merged."""
    if not found.since:
        return added
    named = run_git(
        repository.top_level, "rev-parse", "--verify", "--quiet", f"{found.since}^{{commit}}"
    ).line
    brought = named if named in commits else merged_by(repository, named, commits)
    return max(added, commits.index(brought)) if brought else added


def write_acceptance(repository: Repository, found: Acceptance) -> Path:
    """Write an acceptance into the work tree, over an earlier one of the test; returns its file. Raises StoreError."""
    return write_committed(repository, committed_file(ACCEPTED_FOLDER, found.test), encode_acceptance(found))
