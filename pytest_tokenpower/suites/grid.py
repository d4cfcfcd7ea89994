"""From a suite file to its cells: the product of the axes, what is added and left out, names, limits."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import msgspec

from pytest_tokenpower.core.settings import DEFAULT_MIN_ROUNDS
from pytest_tokenpower.engines.registry import reference
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.models.architecture import Architecture
from pytest_tokenpower.models.fit import architecture_of
from pytest_tokenpower.models.registry import load_models
from pytest_tokenpower.suites.lines import Place
from pytest_tokenpower.suites.schema import (
    AXES,
    LOAD_AXES,
    WORK_AXES,
    Arrival,
    Axes,
    EngineTable,
    ModelTable,
    SuiteFile,
    complain,
    parse_suite,
)

DEFAULTS: Mapping[str, Any] = {
    "prompts": "random",
    "prompt_tokens": 512,
    "new_tokens": 128,
    "batch": 1,
    "arrivals": "all-at-once",
}
"""Of the work, where a suite does not say."""

MOST_CELLS = 100_000
"""A longer sweep is a mistake in its file, and would not even be listed in any time."""

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One point of the grid.

    ``axes`` are the values as the suite names them, ``values`` those with what a variant stands for; an axis that is
    not named is in neither. ``group`` names the engine that it shares with others.
    """

    axes: Values
    values: Values
    group: str
    name: str
    limits: Values


@dataclass(frozen=True)
class Suite:
    """A suite file with its cells in the file's order."""

    path: Path
    text: str
    table: SuiteFile
    cells: tuple[Cell, ...] = field(default=())

    @classmethod
    def read(cls, path: Path) -> Suite:
        """Read a suite file; raises UsageError that names the file and the line."""
        try:
            data = path.read_bytes()
            text = data.decode("utf-8-sig")
        except OSError as error:
            raise UsageError(f"{path}: this suite cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise UsageError(
                f"{path}:{line}: no TOML: byte {data[error.start]:#04x} is no UTF-8: save the file in UTF-8"
            ) from None
        suite = cls.parse(text, path)
        suite._check_files()
        suite._check_used("prompts", suite.table.prompts)
        return suite

    @classmethod
    def parse(cls, text: str, path: Path) -> Suite:
        """Make the suite of a file's text; raises as :meth:`read`."""
        empty = cls(path, text, parse_suite(text, str(path)))
        return cls(path, text, empty.table, empty._cells())

    @cached_property
    def groups(self) -> Mapping[str, tuple[Cell, ...]]:
        """The cells of each engine, by its name."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(cell.group, []).append(cell)
        return {name: tuple(cells) for name, cells in found.items()}

    def wrong(self, place: Place, what: str) -> UsageError:
        """Return the error for what is wrong at a place of the file."""
        return complain(self.text, str(self.path), place, what)

    def matching(self, *wanted: Axes) -> tuple[Cell, ...]:
        """Return the cells that have one of the values of each axis that is named."""
        return tuple(cell for cell in self.cells if all(matches(cell.values, each) for each in wanted))

    def model(self, name: str) -> ModelTable:
        """Return the model behind a value of the axis: a table of the suite, the registry's, a folder or a hub id."""
        if name in self.table.models:
            return self.table.models[name]
        if name in load_models():
            return ModelTable(random=name)
        if name.startswith((".", "/", "~")):
            return ModelTable(path=name)
        return ModelTable(hub=name)

    def architecture(self, name: str) -> Architecture | None:
        """Return the architecture of a model; None for a hub id or a family that is not known."""
        table = self.model(name)
        if table.random is not None:
            return load_models()[table.random].architecture
        return architecture_of(table.hub or str(self.folder(str(table.path))))

    def engine(self, name: str) -> EngineTable:
        """Return the engine behind a value of the axis, its adapter filled in."""
        table = self.table.engines.get(name, EngineTable())
        return msgspec.structs.replace(table, adapter=table.adapter or name)

    def longest_prompt(self, cell: Cell) -> int | None:
        """Return the most tokens that a prompt of the cell has; None for texts of any length."""
        cut = cell.values.get("prompt_tokens")
        table = self.table.prompts.get(cell.values["prompts"])
        most = None if table is None or table.tokens is None else table.tokens[1] - 1
        return min((each for each in (cut, most) if each is not None), default=None)

    @cached_property
    def _digests(self) -> Mapping[str, str]:
        """The contents of the files beside the suite, as digits; a file that is not there has none."""
        tables = (*self.table.prompts.values(), self.table.quality)
        return {
            each.file: hashlib.sha256(path.read_bytes()).hexdigest()
            for each in tables
            if each is not None and each.file is not None and (path := self.folder(each.file)).is_file()
        }

    @cached_property
    def _checkpoints(self) -> Mapping[str, list[tuple[str, int, int]]]:
        """The files in each model's own folder: names, sizes and times, as weights are too large to read."""
        found = {}
        for name in {cell.values["model"] for cell in self.cells}:
            path = self.model(name).path
            if path is not None and (folder := self.folder(path)).is_dir():
                files = ((each.name, each.stat()) for each in sorted(folder.iterdir()) if each.is_file())
                found[name] = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in files]
        return found

    def fingerprint(self, cell: Cell) -> str:
        """Digits that stay the same as long as the cell is the same work on the same engine."""
        values = cell.values
        prompts, quality = self.table.prompts.get(values["prompts"]), self.table.quality
        files = [each.file or "" for each in (prompts, quality) if each is not None]
        what = [
            dict(values),
            self.model(values["model"]),
            self.engine(values["engine"]),
            self.table.variants.get(values.get("variant", "")),
            prompts,
            *([quality] if quality is not None else []),
            *([self._checkpoints[values["model"]]] if values["model"] in self._checkpoints else []),
            *(self._digests[file] for file in files if file in self._digests),
        ]
        return hashlib.sha256(msgspec.json.encode(what, order="sorted")).hexdigest()[:16]

    def _cells(self) -> tuple[Cell, ...]:
        self._check_names()
        table = self.table
        base = dict(table.axes.given())
        if table.variants and "variant" not in base:
            base["variant"] = tuple(table.variants)
        for axis in ("model", "engine"):
            if axis not in base:
                raise self.wrong(("axes",), f"lacks {axis}")
        grids = [base, *({**base, **each.given()} for each in table.include)]
        count = sum(prod(map(len, grid.values())) for grid in grids)
        if count > MOST_CELLS:
            raise self.wrong(("axes",), f"{count:,} cells are more than a suite may have, {MOST_CELLS:,}")
        # What any of them names is in the names of all cells.
        shown = frozenset(name for grid in grids for name in grid)
        drawn = [each for grid in grids for each in grid.get("arrivals", ()) if isinstance(each, Arrival)]
        if len(set(drawn)) > len({(each.concurrency, each.poisson) for each in drawn}):
            shown |= {"seed"}
        cells: dict[str, Cell] = {}
        excluded, limited = set[int](), set[int]()
        every_point: list[Values] = []
        added = [0] * len(grids)
        for number, values in _points(grids):
            named = tuple(name for name in AXES if values.get(name) is not None)
            axes = {name: values[name] for name in named}
            variant = table.variants.get(axes.get("variant", ""))
            every = axes | (variant.settings() if variant else {})
            every_point.append(every)
            out = {at for at, each in enumerate(table.exclude) if matches(every, each)}
            excluded |= out
            if out:
                continue
            if twice := [name for name in axes if axes[name] != every[name]]:
                place = ("variants", axes["variant"], twice[0])
                raise self.wrong(
                    place, f"is {every[twice[0]]!r}, and the axis {twice[0]} asks for {axes[twice[0]]!r}"
                )
            group, name = _names(axes, shown)
            here = [at for at, each in enumerate(table.budget) if matches(every, each.where)]
            limited.update(here)
            limits = table.limits.given()
            for at in here:
                limits |= table.budget[at].given()
            fewest, most = limits.get("min_rounds", DEFAULT_MIN_ROUNDS), limits.get("max_rounds")
            if most is not None and most < fewest:
                setting = [("budget", at) for at in here if "max_rounds" in table.budget[at].given()]
                raise self.wrong(
                    (*([("limits",), *setting][-1]), "max_rounds"),
                    f"{most} is below min_rounds, which is {fewest}",
                )
            cell = Cell(axes, every, group, name, limits)
            added[number] += cell.name not in cells
            if (other := cells.setdefault(cell.name, cell).axes) != axes:
                axis = next(each for each in AXES if other.get(each) != axes.get(each))
                raise self.wrong(
                    ("axes", axis),
                    f"two cells are called {cell.name}, of {other.get(axis)!r} and of {axes.get(axis)!r}: give one of "
                    "them another name",
                )
        for at, new in enumerate(added[1:]):
            if not new:
                raise self.wrong(
                    ("include", at), "adds nothing: each of its cells is there already, or left out"
                )
        for at in range(len(table.exclude)):
            if at not in excluded:
                why = absent(every_point, table.exclude[at])
                raise self.wrong(("exclude", at), f"leaves out nothing: no cell has these values{why}")
        if not cells:
            raise self.wrong(("axes",), "no cell is left")
        for at, budget in enumerate(table.budget):
            if not budget.given():
                raise self.wrong(("budget", at), "limits nothing: give it a limit")
            if at not in limited:
                why = absent((cell.values for cell in cells.values()), budget.where)
                raise self.wrong(("budget", at), f"limits nothing: no cell has these values{why}")
        for at, objective in enumerate(table.slo):
            if not any(matches(cell.values, objective.where) for cell in cells.values()):
                why = absent((cell.values for cell in cells.values()), objective.where)
                raise self.wrong(("slo", at), f"no cell has these values{why}")
        return tuple(cells.values())

    def _check_names(self) -> None:
        table = self.table
        self._check_lists()
        self._check_used("engine", table.engines)
        self._check_used("model", table.models)
        if "random" in table.prompts:
            raise self.wrong(("prompts", "random"), "is the name of prompts made by chance: take another one")
        limited = (("limits",), table.limits), *((("budget", at), one) for at, one in enumerate(table.budget))
        for where, limits in limited:
            if "quality" in limits.given() and table.quality is None:
                raise self.wrong((*where, "quality"), "nothing is scored: there is no [quality]")
        places = [
            (("axes",), table.axes),
            *((("include", at), each) for at, each in enumerate(table.include)),
        ]
        for place, axes in places:
            for name in axes.given().get("variant", ()):
                if name not in table.variants:
                    valid = ", ".join(table.variants) or "none: there is no [variants.NAME]"
                    raise self.wrong((*place, "variant"), f"{name!r} is no variant; there are {valid}")
            for name in axes.given().get("prompts", ()):
                if name not in ("random", *table.prompts):
                    valid = ", ".join(("random", *table.prompts))
                    raise self.wrong((*place, "prompts"), f"{name!r} is no set of prompts; there are {valid}")
            for name in axes.given().get("engine", ()):
                try:
                    reference(str(self.engine(name).adapter))
                except UsageError as error:
                    at = ("engines", name) if name in table.engines else (*place, "engine")
                    raise self.wrong(at, str(error)) from None
            for name in axes.given().get("model", ()):
                self._check_model(name, (*place, "model"))

    def _check_used(self, axis: str, named: Iterable[str]) -> None:
        axes = (self.table.axes, *self.table.include)
        used = {name for each in axes for name in each.given().get(axis, ())}
        for name in named:
            if name not in used:
                kinds = axis if axis == "prompts" else f"{axis}s"
                there = (
                    f"of {kinds} there are {', '.join(sorted(used))}"
                    if used
                    else f'give it {axis} = "{name}"'
                )
                raise self.wrong((kinds, name), f"no axis names it; {there}")

    def _check_files(self) -> None:
        quality = self.table.quality
        for place, file in (
            *((("prompts", name, "file"), each.file) for name, each in self.table.prompts.items()),
            (("quality", "file"), None if quality is None else quality.file),
        ):
            if file is not None and not self.folder(file).is_file():
                raise self.wrong(place, f"{self.folder(file)}: there is no such file")

    def _check_lists(self) -> None:
        table = self.table
        places: list[tuple[Place, Axes | None]] = [
            (("axes",), table.axes),
            *((("include", at), each) for at, each in enumerate(table.include)),
            *((("exclude", at), each) for at, each in enumerate(table.exclude)),
            *((("budget", at, "where"), each.where) for at, each in enumerate(table.budget)),
            *((("slo", at, "where"), each.where) for at, each in enumerate(table.slo)),
            *(
                (("claim", at, name), getattr(each, name))
                for at, each in enumerate(table.claim)
                for name in ("where", "of", "to")
            ),
        ]
        for place, axes in places:
            for name, values in (axes or Axes()).given().items():
                if not values:
                    raise self.wrong((*place, name), "is an empty list: give it a value, or leave it out")
                if twice := [each for at, each in enumerate(values) if each in values[:at]]:
                    raise self.wrong((*place, name), f"{twice[0]!r} is there twice")

    def _check_model(self, name: str, place: Place) -> None:
        model = self.model(name)
        if model.random is not None and model.random not in load_models():
            place, name = ("models", name, "random"), model.random
            raise self.wrong(place, f"{name!r} is no model of the registry: `tokenpower models` lists them")
        if model.path is not None and not self.folder(model.path).is_dir():
            raise self.wrong(place, f"{self.folder(model.path)}: there is no such folder")
        if model.hub is not None and model.hub.count("/") != 1:
            raise self.wrong(
                place,
                f"{name!r} is no model: give a name of `tokenpower models` (random weights), a folder (./{name}), a "
                f"hub id (owner/name), or a table [models.{name}]",
            )

    def folder(self, path: str) -> Path:
        """Return a path of the suite, from the suite file's own folder."""
        return self.path.parent / Path(path).expanduser()


def matches(values: Values, wanted: Axes) -> bool:
    """Tell whether these values of axes are among those that are wanted."""
    return all(values.get(name) in among for name, among in wanted.given().items())


def absent(points: Iterable[Values], *wanted: Axes) -> str:
    """Say which value none of the points has, and which there are, after a complaint; empty where each is there."""
    for name, among in ((name, among) for axes in wanted for name, among in axes.given().items()):
        known = list(dict.fromkeys(values[name] for values in points if values.get(name) is not None))
        if not set(known) & set(among):
            asked = f": none has {name} = {' or '.join(map(_written, among))}"
            return (
                f"{asked}; valid: {', '.join(map(_written, known))}" if known else f"{asked}, or any {name}"
            )
    return ""


def _written(value: Any) -> str:
    """Return a value as a suite file has it."""
    if not isinstance(value, Arrival):
        return f'"{value}"' if isinstance(value, str) else str(value)
    named = ((name, getattr(value, name)) for name in value.__struct_fields__)
    return f"{{ {', '.join(f'{name} = {each}' for name, each in named if each)} }}"


def _points(grids: Sequence[Mapping[str, tuple[Any, ...]]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every point of each grid, under the grid's number."""
    for number, grid in enumerate(grids):
        names = [name for name in AXES if name in grid]
        for point in product(*(grid[name] for name in names)):
            values = dict(zip(names, point, strict=True))
            # Text has the length that it has, unless it is to be cut.
            own = {"prompt_tokens": None} if values.get("prompts", "random") != "random" else {}
            yield number, {**DEFAULTS, **own, **values}


def _names(axes: Values, shown: frozenset[str]) -> tuple[str, str]:
    """Return the names of the engine and of the cell: the values of all axes that the suite names."""
    load, work = (
        [_label(name, axes[name], seeded="seed" in shown) for name in names if name in axes and name in shown]
        for names in (LOAD_AXES, WORK_AXES)
    )
    return "-".join(load), "-".join([*load, *work])


_PREFIX = {
    "kv_cache_dtype": "kv-",
    "tensor_parallel": "tp",
    "pipeline_parallel": "pp",
    "prompt_tokens": "in",
    "new_tokens": "out",
    "batch": "b",
}


def _label(axis: str, value: Any, *, seeded: bool) -> str:
    if isinstance(value, Arrival):
        drawn = f"s{value.seed}" if seeded else ""
        value = f"c{value.concurrency}" if value.concurrency else f"rate{value.poisson:g}{drawn}"
    elif axis == "model":
        name = Path(value).name
        # A folder that is only pointed at has no name ("."), and one of dots would be none.
        value = name if name.strip(".") else "model"
    return _PREFIX.get(axis, "") + re.sub(r"[^\w.+-]", "_", str(value))
