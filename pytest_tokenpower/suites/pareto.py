"""Cells that no other cell beats in all figures at once. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

JOULES = "joules_per_token"

USUAL = ("tokens_per_second", "ttft_p90_seconds")
"""What is weighed against joules per token unless a user names figures."""

Row = Mapping[str, object]
"""A cell's figures by name, with what else is known of it."""


def more_is_better(figure: str) -> bool:
    """Tell which way a figure is good: rates and counts up; joules, watts and seconds down."""
    return figure.endswith("_per_second") or not any(unit in figure for unit in ("joule", "watt", "second"))


def trusted(rows: Sequence[Row], figures: Sequence[str]) -> list[Row]:
    """Return the rows that have all the figures and no reason to doubt them."""
    return [
        row
        for row in rows
        if not row.get("reasons") and all(isinstance(row.get(figure), float) for figure in figures)
    ]


def usual_figures(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return those of the usual figures that every trusted cell has: a missing one would hide its cell."""
    known = trusted(rows, (JOULES,))
    return tuple(
        figure for figure in USUAL if known and all(isinstance(row.get(figure), float) for row in known)
    )


def not_dominated(rows: Sequence[Row], figures: Sequence[str]) -> list[Row]:
    """Return the trusted rows than which none is as good in all figures and better in one, best first figure first."""

    def point(row: Row) -> tuple[float, ...]:
        return tuple(
            -float(str(row[figure])) if more_is_better(figure) else float(str(row[figure]))
            for figure in figures
        )

    best: list[tuple[tuple[float, ...], Row]] = []
    # What dominates a point sorts before it, and is itself kept or dominated by one that is.
    for here, row in sorted(((point(row), row) for row in trusted(rows, figures)), key=lambda each: each[0]):
        if not any(
            there != here and all(a <= b for a, b in zip(there, here, strict=True)) for there, _ in best
        ):
            best.append((here, row))
    return [row for _, row in best]
