"""Where the code under test is imported from, so that a run of another commit imports that commit's code.

An editable install, a path file or a copy that was installed from the work tree would have the baseline's run measure
the candidate's code. Its places are therefore looked for first in the baseline's tree, and what was imported from the
candidate's all the same is found by asking the run.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

from pytest_tokenpower.core.text import listed

_INSTALLED = frozenset({"site-packages", "dist-packages", "node_modules"})


def import_roots(top: Path) -> tuple[Path, ...]:
    """Return the folders of a work tree that code is imported from in this process, relative to its top.

    Those on the import path, those that hold what is imported already, and the projects that are installed from here.
    """
    top = Path(os.path.realpath(top))
    candidates = [Path(os.path.realpath(each)) for each in sys.path if each and Path(each).is_dir()]
    candidates += [root for name, module in list(sys.modules.items()) if (root := _root_of(name, module))]
    for each in installed_from(top):
        candidates += [each.project / "src", each.project]
    inside = [root.relative_to(top) for root in candidates if _is_source(root, top)]
    return tuple(dict.fromkeys(inside))


def foreign_modules(top: Path) -> dict[str, str]:
    """Return the modules of this process that come from a work tree: their files, by their names.

    Also those of a copy that was installed from it. What else is installed into an environment inside the tree is not
    of the tree.
    """
    top = Path(os.path.realpath(top))
    copies = {path for each in installed_from(top) for path in each.copies}
    found = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str):
            continue
        path = Path(os.path.realpath(file))
        if path in copies or _is_source(path, top):
            found[name] = str(path)
    return found


@dataclass(frozen=True)
class Installed:
    """A distribution that was installed from a work tree: the project's folder, and the files that hold its code."""

    project: Path
    copies: frozenset[Path]


def installed_from(top: Path) -> list[Installed]:
    """Return the distributions that were installed from a folder or file of a work tree, as pip and uv record it."""
    found = []
    for distribution in metadata.distributions():
        try:
            record = json.loads(distribution.read_text("direct_url.json") or "{}")
            url = urlsplit(record.get("url", ""))
        except (ValueError, AttributeError, OSError):
            continue
        place = Path(os.path.realpath(unquote(url.path))) if url.scheme == "file" else None
        if place is not None and place.is_relative_to(top):
            # The modules of an editable install are its import hook; only what was compiled is the project's code.
            editable = record.get("dir_info", {}).get("editable", False)
            kinds = (".so", ".pyd") if editable else (".py", ".so", ".pyd")
            files = (file for file in distribution.files or () if file.suffix in kinds)
            copies = frozenset(Path(os.path.realpath(str(file.locate()))) for file in files)
            found.append(Installed(place, copies))
    return found


def _root_of(name: str, module: ModuleType) -> Path | None:
    """Return the folder of the import path that a module was found in; None where its file is not called like it."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or name == "__main__":
        return None
    path = Path(os.path.realpath(file))
    place = path.parent if path.name.startswith("__init__.") else path.with_name(path.name.partition(".")[0])
    for part in reversed(name.split(".")):
        if place.name != part:
            return None
        place = place.parent
    return place


def _is_source(path: Path, top: Path) -> bool:
    if not path.is_relative_to(top):
        return False
    inside = path.relative_to(top)
    if _INSTALLED.intersection(inside.parts):
        return False
    return not any((folder / "pyvenv.cfg").exists() for folder in _between(path, top))


def _between(path: Path, top: Path) -> Iterator[Path]:
    for folder in (path, *path.parents):
        if folder == top:
            return
        yield folder


def shown(modules: Mapping[str, str]) -> str:
    """Return some of the modules, with their files, for people."""
    tops = {name: file for name, file in modules.items() if name.rpartition(".")[0] not in modules}
    return listed([f"{name} ({file})" for name, file in sorted(tops.items())], 3)
