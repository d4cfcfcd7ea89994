"""Blessings: a person's word that a change in energy is accepted, and what that does to the baseline of a line.

A run that was judged regressed is stored and is no baseline, or the regression would soften the next comparison by
itself. Blessing its commit makes its level the new one: from then on runs before that commit do not count.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from pytest_tokenpower.core.records import VerdictRecord
from pytest_tokenpower.errors import StoreError
from pytest_tokenpower.store.store import COMMIT_LENGTH, publish

VERSION = 1


FOLDER = "blessings"


_FILE = re.compile(r"\d{8}T\d{6}\.\d{6}Z_[0-9a-f]{12}_[0-9a-f]{8}\.json", re.ASCII)


_LABEL_COMMIT = re.compile(r"@([0-9a-f]{7,40})$")


class Blessing(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="tokenpower-blessing"):
    """That the level of ``tests`` at ``commit`` is accepted, by whom, why and when (ISO 8601, UTC).

    ``later_runs`` are, per test, the ids of runs of later commits that had been judged regressed before the
    blessing and, judged again, are no worse than the blessed level.
    """

    id: str
    created: str
    commit: str
    tests: tuple[str, ...]
    reason: str
    author: str = ""
    later_runs: dict[str, tuple[str, ...]] = {}
    version: int = VERSION


_decoder = msgspec.json.Decoder(Blessing)


def new_blessing(
    commit: str,
    tests: Sequence[str],
    reason: str,
    author: str,
    later_runs: Mapping[str, Sequence[str]],
) -> Blessing:
    """A blessing given now."""
    return Blessing(
        id=uuid.uuid4().hex,
        created=datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        commit=commit,
        tests=tuple(tests),
        reason=reason,
        author=author,
        later_runs={test: tuple(runs) for test, runs in later_runs.items() if runs},
    )


def is_blessing_file(file: str) -> bool:
    """Whether a file's name is that of a blessing."""
    return _FILE.fullmatch(file) is not None


def write_blessing(store: Path, blessing: Blessing) -> Path:
    """Add a blessing to the store at ``store``; nothing stored is changed. Raises StoreError."""
    moment = datetime.fromisoformat(blessing.created.replace("Z", "+00:00"))
    file = f"{moment:%Y%m%dT%H%M%S.%fZ}_{blessing.commit[:COMMIT_LENGTH]}_{blessing.id[:8]}.json"
    folder = store / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        publish(folder, file, msgspec.json.encode(blessing) + b"\n")
    except OSError as error:
        raise StoreError(
            f"{folder}: the store cannot be written ({error.strerror or error}): make the folder writable, or name "
            "another one with --storage=PATH"
        ) from error
    return folder / file


def decode_blessing(data: bytes, *, source: str) -> Blessing:
    """A blessing from its JSON; raises StoreError that names ``source``."""
    try:
        blessing = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise StoreError(f"{source}: not a blessing of pytest-tokenpower ({error})") from error
    if blessing.version != VERSION:
        raise StoreError(
            f"{source}: written in version {blessing.version} of blessings, this pytest-tokenpower reads {VERSION}"
        )
    return blessing


def read_blessings(store: Path) -> tuple[Blessing, ...]:
    """Every blessing of the store at ``store``, oldest first; none where nothing was blessed.

    Raises StoreError for a file that is not readable: which runs count must not depend on luck.
    """
    folder = store / FOLDER
    try:
        files = sorted(file for file in os.listdir(folder) if is_blessing_file(file))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise StoreError(f"{folder}: the blessings cannot be read ({error.strerror})") from error
    found = []
    for file in files:
        path = folder / file
        try:
            found.append(decode_blessing(path.read_bytes(), source=str(path)))
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    return tuple(found)


class Accepted:
    """Which measurements count on a line of commits (newest first), by their verdicts and the blessings."""

    def __init__(self, blessings: Iterable[Blessing] = (), commits: Sequence[str] = ()) -> None:
        self._positions = {commit[:COMMIT_LENGTH]: at for at, commit in enumerate(commits)}
        self._blessed: dict[str, set[str]] = {}
        self._runs: dict[str, set[str]] = {}
        self._levels: dict[str, int] = {}
        self._starts: dict[str, int | None] = {}
        self._commits = commits
        for blessing in blessings:
            commit = blessing.commit[:COMMIT_LENGTH]
            position = self._positions.get(commit)
            if position is None:
                continue  # Given on another line of history.
            for test in blessing.tests:
                self._blessed.setdefault(test, set()).add(commit)
                self._levels[test] = min(position, self._levels.get(test, position))
                self._runs.setdefault(test, set()).update(blessing.later_runs.get(test, ()))

    def before_level(self, test: str, commit: str | None) -> bool:
        """Whether a stored commit lies before the newest blessed level of a test."""
        level = self._levels.get(test)
        return level is not None and self._positions.get(commit or "", level) > level

    def counts(self, test: str, verdicts: Sequence[VerdictRecord], run_id: str, commit: str | None) -> bool:
        """Whether a run's measurement may be a baseline: it did not regress, or its commit or run is blessed."""
        return (
            not self.regressed(verdicts)
            or (commit or "") in self._blessed.get(test, ())
            or run_id in self._runs.get(test, ())
        )

    def regressed(self, verdicts: Sequence[VerdictRecord]) -> bool:
        """Whether the verdict against the nearest baseline on this line is "regressed".

        A run may be judged against a rolling and a pinned baseline at once (main and v1.0): the older one goes on
        failing after the level has been accepted, and must not keep every later run out.
        """
        compared = (verdict for verdict in verdicts if verdict.baseline_runs)
        nearest = min(
            compared, key=lambda one: (self._start(one.against), one.kind != "regressed"), default=None
        )
        return nearest is not None and nearest.kind == "regressed"

    def _start(self, label: str) -> int:
        """Where on the line a baseline began, by its label (main@1a2b3c4); its end for one that is not on it."""
        if label not in self._starts:
            found = _LABEL_COMMIT.search(label)
            self._starts[label] = None if found is None else self._position_of(found[1])
        position = self._starts[label]
        return len(self._commits) if position is None else position

    def _position_of(self, short: str) -> int | None:
        return next((at for at, commit in enumerate(self._commits) if commit.startswith(short)), None)
