"""Which requirements of the code under test differ between two trees, and what pip can install of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

_FOR_PIP = re.compile(r"(?:.*requirements.*|constraints.*)\.(?:txt|in)")

_PROJECT = frozenset({"pyproject.toml", "setup.py", "setup.cfg"})

_LOCKS = re.compile(r".*\.lock|pylock.*\.toml|Pipfile|environment\.ya?ml|conda-lock\.ya?ml")


@dataclass(frozen=True)
class Differing:
    """The requirement files that differ, by what can be done about it: relative to the top of both trees.

    ``install`` are the arguments with which pip installs what the other tree asks for; ``locked`` are files that pip
    does not read.
    """

    files: tuple[str, ...] = ()
    install: tuple[str, ...] = ()
    locked: tuple[str, ...] = ()


def differing_requirements(
    changed: Iterable[str], here: Path, there: Path, places: Iterable[Path]
) -> Differing:
    """Return what of ``changed`` says what is installed for the code in ``places``, and how ``there`` gets it.

    Args:
        changed: the files that differ between the two trees, relative to their tops.
        here: the top of the candidate's tree.
        there: the top of the baseline's tree.
        places: the folders, relative to the top, that the code and its tests are in: files in them and in the
            folders above count, as does a folder of requirement files beside them.
    """
    folders = {folder for place in places for folder in (place, *place.parents)} | {Path()}
    files, install, locked = [], [], []
    for file in sorted(changed):
        path = PurePosixPath(file)
        folder = path.parent.parent if path.parent.name == "requirements" else path.parent
        if Path(folder) not in folders:
            continue
        if _LOCKS.fullmatch(path.name):
            locked.append(file)
        elif path.parent.name == "requirements" or _FOR_PIP.fullmatch(path.name):
            files.append(file)
            if (there / file).is_file():
                install += ["-c" if path.name.startswith("constraints") else "-r", file]
        elif path.name in _PROJECT and _asks_for(here / file) != _asks_for(there / file):
            files.append(file)
            where = str(path.parent)
            if any((there / path.parent / name).is_file() for name in _PROJECT) and where not in install:
                install += ["-e", where if where == "." else f"./{where}"]
    return Differing(tuple(files), tuple(install), tuple(locked))


def _asks_for(path: Path) -> Any:
    """Return what of a project's file bears on what is installed; the whole text where that cannot be told."""
    if not path.is_file():
        return None
    text = path.read_text("utf-8", "replace")
    if path.name != "pyproject.toml":
        return text
    try:
        table = msgspec.toml.decode(text)
    except msgspec.DecodeError:
        return text
    project, tools = table.get("project", {}), table.get("tool", {})
    return (
        table.get("build-system"),
        table.get("dependency-groups"),
        [
            project.get(name)
            for name in ("dependencies", "optional-dependencies", "requires-python", "dynamic")
        ],
        [tools.get(name) for name in ("poetry", "pdm", "uv", "hatch", "setuptools", "pixi")],
    )
