"""Small pieces of text that several reports need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


def plural(number: int, what: str) -> str:
    """Return the number with its noun: "1 run", "2 runs"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def signed(share: float) -> str:
    """Return a change for people: +6.1 %, and never -0.0 %."""
    return f"{round(100 * share, 1) + 0.0:+.1f} %"


def percent(share: float, digits: int = 3) -> str:
    """Return a share for people: 3 %, 0.35 %, 110 %."""
    return f"{100 * share:.{digits}g} %" if 100 * share < 10.0**digits else f"{100 * share:.0f} %"


def with_interval(change: float, low: float, high: float) -> str:
    """Return a change with its interval, for people: +6.1 % [+4.0, +8.2]."""
    return f"{signed(change)} {interval(low, high)}"


def interval(low: float, high: float) -> str:
    """Return the interval of a change in percent."""
    return f"[{100 * low:+.1f}, {100 * high:+.1f}]"


def listed(names: Sequence[str], most: int) -> str:
    """Return names with commas between them, the first so many and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def table_lines(
    rows: Sequence[Sequence[object]], head: Sequence[str], align: Sequence[str] | None = None
) -> list[str]:
    """Return the lines of a table under its headings, its cells as they are."""
    from tabulate import tabulate

    made = tabulate(
        rows, headers=head, tablefmt="simple", disable_numparse=True, colalign=align if rows else None
    )
    return [line.rstrip() for line in made.splitlines()]


def short_test_name(test: str) -> str:
    """Return what people call a test, on one line: the part of its id after the file and class."""
    _, _, inside = test.partition("::")
    # Parameters may hold what separates a class from its tests.
    path, bracket, parameters = (inside or test).partition("[")
    return " ".join(f"{path.rpartition('::')[2]}{bracket}{parameters}".splitlines())


def names_told_apart(tests: Sequence[str]) -> list[str]:
    """Return the short names of tests; those that tests of several files share begin with their file's."""
    files: dict[str, set[str]] = {}
    for test in tests:
        files.setdefault(short_test_name(test), set()).add(test.partition("::")[0])
    names = []
    for test in tests:
        name = short_test_name(test)
        names.append(name if len(files[name]) == 1 else f"{test.partition('::')[0]}::{name}")
    return names


class EnergyUnit(NamedTuple):
    """A unit of energy that is easy to read: its name, and its size in joules."""

    name: str
    joules: float


def digits(number: float) -> str:
    """Return a number with four digits, also where the last are zeros: 2.000 beside 2.074."""
    text = f"{number:#.4g}"
    return f"{number:.0f}" if "e+" in text else text.rstrip(".")


def readable(unit: str, *figures: float) -> tuple[list[str], str]:
    """Return figures as people read them, and their unit: 0.25 ``J/token`` as 250.0 mJ/token.

    Args:
        unit: The unit of the figures; where it begins with J, the first of them chooses mJ, J or Wh for all.
        figures: What is shown side by side, a test's own first: it has this unit wherever it stands.
    """
    if unit.startswith("s ") and max(figures) < 1:
        return [f"{1e3 * each:.4g}" for each in figures], f"m{unit}"
    if unit != "J" and not unit.startswith("J/"):
        return [f"{each:.4g}" for each in figures], unit
    chosen = energy_unit(figures[0] or max(figures))
    return [digits(each / chosen.joules) for each in figures], f"{chosen.name}{unit[1:]}"


def per_token(joules: float, unit: str = "J/token") -> str:
    """Return joules per token, or another denominator, as people read them: ``250.0 mJ/token``."""
    [text], unit = readable(unit, joules)
    return f"{text} {unit}"


def energy_unit(joules: float) -> EnergyUnit:
    """Choose the unit in which ``joules`` reads as a number from 1 to 1000 or so: µJ, mJ, J or Wh."""
    for unit in (EnergyUnit("µJ", 1e-6), EnergyUnit("mJ", 1e-3), EnergyUnit("J", 1.0)):
        if joules < {"µJ": 1e-3, "mJ": 1.0, "J": 36_000.0}[unit.name]:
            return unit
    return EnergyUnit("Wh", 3600.0)
