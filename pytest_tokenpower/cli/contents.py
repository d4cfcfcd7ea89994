"""`tokenpower list`: what the store holds."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_tokenpower.cli.store_access import add_storage
from pytest_tokenpower.core.text import plural, table_lines
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import StoreError, UsageError
from pytest_tokenpower.store.access import StoreContext, when
from pytest_tokenpower.store.store import StoredFile


@dataclass
class StoredTest:
    """The runs of one test on one kind of board, newest first."""

    test: str
    board: str
    entries: list[StoredFile] = field(default_factory=list)
    invalid: int = 0

    @property
    def commits(self) -> list[str]:
        """The commits that were measured, newest first."""
        return list(dict.fromkeys(entry.commit[:7] for entry in self.entries if entry.commit))

    @property
    def names(self) -> list[str]:
        """The names under which runs were saved."""
        return sorted({entry.name for entry in self.entries if entry.name})

    @property
    def states(self) -> Counter[str]:
        """How many runs were made of a clean tree, of one with changes, and outside git."""
        return Counter(entry.state for entry in self.entries)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which tests, and how they are shown."""
    parser.add_argument(
        "test", metavar="TEST", nargs="?", default="", help="only tests whose ids hold this text"
    )
    parser.add_argument("--json", action="store_true", help="the same as one JSON object")
    add_storage(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the tests with what is stored of each."""
    place = StoreContext.of(arguments)
    entries = place.entries()
    found = [one for one in collect(place, entries) if arguments.test in one.test]
    if not found:
        raise UsageError(f"no stored test is called like {arguments.test!r}")
    if arguments.json:
        print(
            json.dumps({"store": str(place.store.path), "tests": [as_json(one) for one in found]}, indent=1)
        )
        return 0
    rows = [
        [one.test, one.board, str(len(one.entries)), _commits(one), _dates(one), _remarks(one)]
        for one in found
    ]
    columns = ["test", "board", "runs", "commits, newest first", "dates (UTC)", "remarks"]
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    print(f"{plural(len(entries), 'run')} in {place.store.path}\n")
    print("\n".join(table_lines(rows, columns)))
    for problem in place.store.problems:
        print(f"Left out: {problem.path}: {problem.reason}")
    return 0


def collect(place: StoreContext, entries: tuple[StoredFile, ...]) -> list[StoredTest]:
    """Return what is stored of each test on each kind of board, by test and board."""
    found: dict[tuple[str, str], StoredTest] = {}
    for entry in entries:
        try:
            contents = place.store.contents(entry)
        except StoreError:
            continue  # Named in store.problems.
        for test, inside in contents.measurements.items():
            board = board_of(inside.key)
            one = found.setdefault((test, board), StoredTest(test, board))
            one.entries.append(entry)
            one.invalid += not inside.comparable
    return [found[which] for which in sorted(found)]


def board_of(key: Mapping[str, Fact]) -> str:
    """Return the devices of a key in words: 2x NVIDIA H100."""
    parts = []
    for name, value in key.items():
        if name.endswith(".name"):
            count = key.get(f"{name.removesuffix('name')}count")
            parts.append(f"{count}x {value}" if isinstance(count, int) and count > 1 else str(value))
    provenance = key.get("provenance")
    known = ", ".join(parts) or "unknown"
    return known if provenance in (None, "measured") else f"{known} ({provenance})"


def as_json(one: StoredTest) -> dict[str, object]:
    """Return what ``--json`` prints of a test."""
    return {
        "test": one.test,
        "board": one.board,
        "runs": [
            {
                "id": entry.id8,
                "created": entry.created,
                "commit": entry.commit,
                "state": entry.state,
                "name": entry.name,
            }
            for entry in one.entries
        ],
        "invalid": one.invalid,
    }


def _commits(one: StoredTest) -> str:
    commits = one.commits
    more = f" +{len(commits) - 3}" if len(commits) > 3 else ""
    return " ".join(commits[:3]) + more


def _dates(one: StoredTest) -> str:
    first, last = when(one.entries[-1].created)[:10], when(one.entries[0].created)[:10]
    return last if first == last else f"{first} to {last}"


def _remarks(one: StoredTest) -> str:
    parts = [f"saved as {', '.join(one.names)}"] if one.names else []
    if one.states["dirty"]:
        parts.append(f"{one.states['dirty']} with uncommitted changes")
    if one.states["nogit"]:
        parts.append(f"{one.states['nogit']} outside git")
    if one.invalid:
        parts.append(f"{one.invalid} invalid")
    return "; ".join(parts)
