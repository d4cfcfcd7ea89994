"""Draw the rooms of the package and which of them import which, from the code: ``python docs/draw_architecture.py``.

The picture is the mermaid block between the two markers in docs/architecture.md. Rooms stand in the order of the layers
that import-linter checks. ``--check`` changes nothing and exits with 1 where the picture is not that of the code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import grimp

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = "pytest_tokenpower"
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- drawn by docs/draw_architecture.py: begin -->"
END = "<!-- drawn by docs/draw_architecture.py: end -->"

Rooms = Mapping[str, Sequence[str]]
"""The rooms that each room imports."""


def rooms_of(package: str) -> dict[str, tuple[str, ...]]:
    """Find the rooms of a package, folders and loose modules alike, and what each imports."""
    graph = grimp.build_graph(package)
    rooms = sorted(graph.find_children(package))
    for room in rooms:
        graph.squash_module(room)
    return {
        room.rpartition(".")[2]: tuple(
            sorted(
                other.rpartition(".")[2]
                for other in graph.find_modules_directly_imported_by(room)
                if other in rooms and other != room
            )
        )
        for room in rooms
    }


def layers_of(pyproject: Path) -> list[list[str]]:
    """Read the layers of the import contract, the highest first; empty without such a contract."""
    tool = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("tool", {})
    for contract in tool.get("importlinter", {}).get("contracts", []):
        if contract["type"] == "layers":
            return [
                [name.strip().rpartition(".")[2] for name in layer.split("|")] for layer in contract["layers"]
            ]
    return []


def without_detours(rooms: Rooms) -> dict[str, tuple[str, ...]]:
    """Leave out an arrow where a longer way leads to the same room, so that the picture stays readable.

    Rooms must not import in a circle; import-linter sees to that.
    """

    def reach(room: str) -> set[str]:
        return {other for direct in rooms.get(room, ()) for other in (direct, *reach(direct))}

    return {
        room: tuple(
            direct
            for direct in imported
            if not any(direct in reach(other) for other in imported if other != direct)
        )
        for room, imported in rooms.items()
    }


def circle_of(rooms: Rooms) -> list[str]:
    """Find rooms that import each other in a circle; empty where there are none."""
    done: set[str] = set()

    def visit(room: str, way: list[str]) -> list[str]:
        if room in way:
            return way[way.index(room) :]
        if room in done:
            return []
        for other in rooms.get(room, ()):
            if circle := visit(other, [*way, room]):
                return circle
        done.add(room)
        return []

    return next((circle for room in rooms if (circle := visit(room, []))), [])


def draw(rooms: Rooms, layers: Sequence[Sequence[str]]) -> str:
    """Write rooms and their imports as a mermaid flowchart, the highest layer on top.

    A room that imports nothing and is imported by nothing is left out.
    """
    alone = {room for room in rooms if not rooms[room]} - {other for each in rooms.values() for other in each}
    order = [room for layer in layers for room in layer if room in rooms]
    order += sorted(set(rooms) - set(order))
    arrows = without_detours(rooms)
    lines = ["```mermaid", "flowchart TD"]
    lines += [f"    {room}" for room in order if room not in alone]
    lines += [f"    {room} --> {other}" for room in order for other in sorted(arrows[room], key=order.index)]
    return "\n".join([*lines, "```"])


def table(rooms: Rooms, layers: Sequence[Sequence[str]]) -> str:
    """Write every import between rooms as a Markdown table."""
    order = [room for layer in layers for room in layer if room in rooms]
    order += sorted(set(rooms) - set(order))
    lines = ["| room | imports |", "| --- | --- |"]
    lines += [f"| `{room}` | {', '.join(f'`{other}`' for other in rooms[room]) or '-'} |" for room in order]
    return "\n".join(lines)


def redrawn(page: str, picture: str) -> str:
    """Put a picture between the page's markers; raises ValueError where they are missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{picture}\n\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """Redraw the picture, or check it; the exit code is 1 where the check fails."""
    parser = argparse.ArgumentParser(description="Draw docs/architecture.md's picture from the code.")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if it is out of date"
    )
    check = parser.parse_args(argv).check
    rooms = rooms_of(PACKAGE)
    if circle := circle_of(rooms):
        print(f"Rooms import each other in a circle: {' -> '.join([*circle, circle[0]])}", file=sys.stderr)
        return 1
    layers = layers_of(ROOT / "pyproject.toml")
    page = PAGE.read_text(encoding="utf-8")
    new = redrawn(page, f"{draw(rooms, layers)}\n\n{table(rooms, layers)}")
    if new == page:
        return 0
    if check:
        print(
            f"{PAGE.relative_to(ROOT)} does not show the imports of the code: run python docs/draw_architecture.py",
            file=sys.stderr,
        )
        return 1
    PAGE.write_text(new, encoding="utf-8")
    print(f"Redrew {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
