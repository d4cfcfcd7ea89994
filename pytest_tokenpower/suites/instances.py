"""Which cells each claim of a suite is about. Pure, and light: every collection of a suite asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

from pytest_tokenpower.core.figures import FIGURES
from pytest_tokenpower.core.types import Scope
from pytest_tokenpower.suites.grid import Cell, Suite, absent
from pytest_tokenpower.suites.schema import Claim

SHARE = "share_of_"
"""``share_of_node``: the figure's own scope as a share of another that was measured along with it."""


@dataclass(frozen=True)
class Instance:
    """A claim about certain cells: of a ratio the two, of a shape those along the axis."""

    claim: Claim
    label: str
    cells: tuple[Cell, ...]
    says: str = field(default="")


def instances(suite: Suite) -> tuple[Instance, ...]:
    """Every claim with the cells that it is about; raises UsageError for one that no cell of the suite can tell."""
    return tuple(each for at, claim in enumerate(suite.table.claim) for each in _instances(suite, at, claim))


def _instances(suite: Suite, at: int, claim: Claim) -> list[Instance]:
    for name in terms_of(claim.figure):
        if name not in FIGURES and name.removeprefix(SHARE) not in get_args(Scope):
            valid = ", ".join((*FIGURES, f"{SHARE}node"))
            raise suite.wrong(
                ("claim", at, "figure"),
                f"{name!r} is no figure; there are {valid}, and quotients of them ('a / b')",
            )
        if name == "quality" and suite.table.quality is None:
            raise suite.wrong(("claim", at, "figure"), "nothing is scored: there is no [quality]")
    return _ratios(suite, at, claim) if claim.shape is None else _shapes(suite, at, claim)


def terms_of(figure: str) -> list[str]:
    """Return the one or two figures of ``a / b``."""
    return [part.strip() for part in figure.split("/", 1)]


def _ratios(suite: Suite, at: int, claim: Claim) -> list[Instance]:
    wanted = [(name, axes) for name, axes in (("of", claim.of), ("to", claim.to)) if axes is not None]
    named = {name for _, axes in wanted for name in axes.given()}
    if claim.to is None:
        cells = suite.matching(claim.where, *(axes for _, axes in wanted))
        if not cells:
            raise suite.wrong(("claim", at), f"no cell of the grid is as of has it{_why(suite, claim)}")
        return [Instance(claim, _label(claim, cell, cells, set()), (cell,), _limit(claim)) for cell in cells]
    sides: list[dict[tuple[object, ...], Cell]] = []
    for field_, axes in wanted:
        found: dict[tuple[object, ...], Cell] = {}
        for cell in suite.matching(claim.where, axes):
            rest = _rest(cell, named)
            if rest in found:
                raise suite.wrong(
                    ("claim", at, field_),
                    f"both {found[rest].name} and {cell.name} are meant: name the axis in which they differ",
                )
            found[rest] = cell
        sides.append(found)
    pairs = [(sides[0][rest], sides[1][rest]) for rest in sides[0] if rest in sides[1]]
    if pairs and all(of is to for of, to in pairs):
        raise suite.wrong(("claim", at), f"of and to are the same cell, {pairs[0][0].name}")
    if not pairs:
        raise suite.wrong(
            ("claim", at),
            f"no two cells of the grid are as of and to have it, and alike otherwise{_why(suite, claim)}",
        )
    return [
        Instance(claim, _label(claim, pair[0], [first for first, _ in pairs], named), pair, _limit(claim))
        for pair in pairs
    ]


def _shapes(suite: Suite, at: int, claim: Claim) -> list[Instance]:
    axis = str(claim.along)
    lines: dict[tuple[object, ...], list[Cell]] = {}
    for cell in suite.matching(claim.where):
        if axis in cell.values:
            lines.setdefault(_rest(cell, {axis}), []).append(cell)
    least = 2 if claim.until is None else 3
    found = []
    for cells in lines.values():
        cells.sort(key=lambda cell: int(cell.values[axis]))
        if len(cells) < least or (claim.until is not None and not _has(cells, axis, claim.until)):
            continue
        firsts = [each[0] for each in lines.values()]
        found.append(Instance(claim, _label(claim, cells[0], firsts, {axis}), tuple(cells), _limit(claim)))
    if not found:
        raise suite.wrong(
            ("claim", at), f"the grid has no {least} cells along {axis} for it{_why(suite, claim)}"
        )
    return found


def _why(suite: Suite, claim: Claim) -> str:
    """Name the values that no cell has, and a turn that is none."""
    points = [cell.values for cell in suite.cells]
    if why := absent(points, *(axes for axes in (claim.where, claim.of, claim.to) if axes is not None)):
        return why
    if claim.until is not None:
        return f", one of them between the first and the last with {claim.along} = {claim.until}"
    return ""


def _has(cells: Sequence[Cell], axis: str, value: int) -> bool:
    """Tell whether the value is one of the axis, and neither its first nor its last."""
    return value in [cell.values[axis] for cell in cells[1:-1]]


def _rest(cell: Cell, named: set[str]) -> tuple[object, ...]:
    """Return what two cells must have in common: all that the suite varies, but for the axes that the claim names."""
    given = {name: value for name, value in cell.axes.items() if name not in named}
    # A variant that is named by its settings, or the other way round.
    if "variant" in given and named & (set(cell.values) - set(cell.axes)):
        del given["variant"]
    return tuple(sorted((name, repr(value)) for name, value in given.items()))


def _label(claim: Claim, cell: Cell, among: Sequence[Cell], named: set[str]) -> str:
    """Return the claim's name, with the values that tell it from the others of that name."""
    differing = [
        f"{name}={value if isinstance(value, str | int) else repr(value)}"
        for name, value in cell.axes.items()
        if name not in named and len({repr(other.axes.get(name)) for other in among}) > 1
    ]
    return f"{claim.name} [{', '.join(differing)}]" if differing else claim.name


def _limit(claim: Claim) -> str:
    if claim.shape is None:
        parts = [f"≤ {claim.at_most:g}"] if claim.at_most is not None else []
        return " and ".join(parts + ([f"≥ {claim.at_least:g}"] if claim.at_least is not None else []))

    def trend(kind: str) -> str:
        return f"flat within {claim.flat_within}" if kind == "flat" else kind

    first = trend(str(claim.shape))
    along = str(claim.along)
    if claim.until is None:
        return f"{first} along {along}"
    return f"{first} until {along} {claim.until}, then {trend(str(claim.then))}"
