"""Cells that no other beats: which way a figure is good, what is doubted, and the table of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.reporting.suites import frontier
from pytest_tokenpower.suites.pareto import more_is_better, not_dominated, usual_figures

COLUMNS = ("joules_per_token", "tokens_per_second", "ttft_p90_seconds")


def row(cell: str, joules: float, rate: float, wait: float, reasons: str = "") -> dict[str, object]:
    return {"cell": cell, "reasons": reasons, **dict(zip(COLUMNS, (joules, rate, wait), strict=True))}


ROWS: list[dict[str, object]] = [
    row("a", 1.0, 10.0, 1.0),
    row("b", 2.0, 20.0, 2.0),
    row("c", 3.0, 15.0, 0.5),
    row("hot", 0.1, 99.0, 0.1, "the board was throttled"),
    {"cell": "d", "reasons": "it failed"},
]


def named(*figures: str) -> list[str]:
    return [line.split()[0] for line in frontier(ROWS, figures)[2:]]


def test_the_table_is_of_what_no_other_beats_and_none_doubts() -> None:
    assert frontier(ROWS, ["tokens_per_second"])[0].startswith("no other cell is as good in all (2 of 3)")
    assert named("tokens_per_second") == ["a", "b"]
    # Of a latency less is better.
    assert named("ttft_p90_seconds") == ["a", "c"]
    assert named("tokens_per_second", "ttft_p90_seconds") == ["a", "b", "c"]


def test_the_table_has_the_unit_that_a_run_shows() -> None:
    head, _, line = frontier([row("a", 0.0368, 10.0, 1.0)], ["tokens_per_second"])
    assert (head.split()[-2:], line.split()) == (["mJ/token", "tok/s"], ["a", "36.80", "10"])
    apart = [{**ROWS[0], COLUMNS[1]: None}, {**ROWS[1], COLUMNS[2]: None}]
    assert frontier(apart, COLUMNS[1:])[0].split()[-3] == "J/token", "no cell has both figures"


def test_a_figure_of_no_cell_is_a_mistake_that_names_those_there_are() -> None:
    with pytest.raises(
        UsageError, match=r"--pareto=x: no good .* there are joules_per_token, tokens_per_second, ttft"
    ):
        frontier(ROWS, ["x"])


def test_a_figure_that_only_some_cells_have_is_not_weighed_unasked() -> None:
    assert usual_figures(ROWS) == ("tokens_per_second", "ttft_p90_seconds")
    without = {"cell": "e", "joules_per_token": 4.0, "tokens_per_second": 1.0}
    assert usual_figures([*ROWS, without]) == ("tokens_per_second",)
    assert usual_figures(ROWS[-1:]) == ()


@pytest.mark.parametrize(
    ("figure", "up"),
    [
        ("tokens_per_second", True),
        ("responses", True),
        ("ttft_p90_seconds", False),
        ("tpot_p50_seconds", False),
        ("prefill_joules_per_token", False),
        ("peak_watts", False),
    ],
)
def test_units_say_which_way_a_figure_is_good(figure: str, up: bool) -> None:
    assert more_is_better(figure) is up


@given(st.lists(st.tuples(*[st.integers(1, 4).map(float)] * 3), max_size=12))
def test_it_is_what_comparing_each_with_each_finds(points: list[tuple[float, float, float]]) -> None:
    rows = [row(str(at), *point) for at, point in enumerate(points)]

    def beats(one: tuple[float, float, float], other: tuple[float, float, float]) -> bool:
        return one != other and one[0] <= other[0] and one[1] >= other[1] and one[2] <= other[2]

    expected = {str(at) for at, here in enumerate(points) if not any(beats(there, here) for there in points)}
    assert {each["cell"] for each in not_dominated(rows, COLUMNS)} == expected
