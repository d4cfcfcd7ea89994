"""Which cells no other beats: by hand, and as a property."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pytest_tokenpower.core.records import Figure, MeasurementRecord
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.reporting.suites import frontier, results_table, trade_offs
from pytest_tokenpower.suites.pareto import not_beaten, strengths, usual_figures


def cell(
    name: str, joules: float, *, stderr: float = 0.0, work: int = 512, **figures: float
) -> MeasurementRecord:
    return MeasurementRecord(
        f"s.energy.toml::{name}",
        {},
        "measured",
        "gpu",
        "power ring",
        (),
        comparable=True,
        facts={"suite.file": "s.energy.toml", "cell.prompt_tokens": work},
        figures={
            "joules_per_token": Figure(joules, stderr),
            **{figure: Figure(value, stderr) for figure, value in figures.items()},
        },
    )


def names(cells: tuple[MeasurementRecord, ...]) -> list[str]:
    return [each.test.rpartition("::")[2] for each in cells]


def test_more_tokens_a_second_and_less_time_to_the_first_are_better() -> None:
    cells = [
        cell("slow", 1.0, tokens_per_second=10.0, ttft_p90_seconds=0.9),
        cell("fast", 2.0, tokens_per_second=20.0, ttft_p90_seconds=0.1),
        cell("bad", 3.0, tokens_per_second=15.0, ttft_p90_seconds=0.5),
    ]
    assert names(not_beaten(cells, ["tokens_per_second"])) == ["slow", "fast"]
    assert names(not_beaten(cells, ["ttft_p90_seconds"])) == ["slow", "fast"]
    assert strengths(cells)["s.energy.toml::bad"] == ()


def test_a_saving_that_is_bought_with_worse_answers_is_on_the_frontier_beside_what_it_was_bought_from() -> (
    None
):
    cells = [cell("bf16", 2.0, quality=0.9), cell("int4", 1.0, quality=0.6), cell("int8", 2.5, quality=0.9)]
    assert names(not_beaten(cells, ["quality"])) == ["int4", "bf16"]
    assert [row[0] for row in trade_offs(cells) if row[-1] == "quality"] == ["bf16", "int4"]
    assert results_table(cells)[0].split("  ")[-1].strip() == "not beaten in J/token and"


def test_cells_of_other_work_provenance_or_run_do_not_compete() -> None:
    long = cell("long", 9.0, work=8192, tokens_per_second=1.0)
    short = cell("short", 1.0, tokens_per_second=10.0)
    assert names(not_beaten([long, short], ["tokens_per_second"])) == ["short", "long"]
    assert trade_offs([long, short]) == []
    again = cell("short@run2", 0.5, tokens_per_second=20.0)
    assert names(not_beaten([short, again], ["tokens_per_second"])) == ["short"]


def test_the_first_good_run_of_a_cell_stands_for_it_wherever_the_suite_lies() -> None:
    doubtful = replace(cell("a", 1.0), figures={}, reasons=("throttled",), comparable=False)
    cells = [doubtful, cell("b", 2.0, quality=0.9), cell("a@run2", 1.0, quality=0.6)]
    assert strengths(cells) == {"s.energy.toml::a@run2": ("quality",), "s.energy.toml::b": ("quality",)}
    assert [row[0] for row in trade_offs(cells)] == ["a@run2", "b"]
    assert strengths([doubtful]) == {"s.energy.toml::a": ()}
    folder = [replace(each, test=f"exp@run/{each.test}") for each in cells[1:]]
    assert len(not_beaten(folder, ["quality"])) == 2


def test_what_differs_by_no_more_than_its_error_does_not_beat() -> None:
    alike = [cell("a", 1.00, stderr=0.1, quality=0.9), cell("b", 1.05, stderr=0.1, quality=0.9)]
    assert names(not_beaten(alike, ["quality"])) == ["a", "b"]
    apart = [cell("a", 1.00, stderr=0.1, quality=0.9), cell("b", 1.50, stderr=0.1, quality=0.9)]
    assert names(not_beaten(apart, ["quality"])) == ["a"]


def test_several_figures_are_weighed_at_once_and_unasked_those_that_every_cell_has() -> None:
    cells = [
        cell("slow", 1.0, tokens_per_second=10.0, quality=0.5),
        cell("fast", 2.0, tokens_per_second=20.0, quality=0.5),
        cell("good", 3.0, tokens_per_second=15.0, quality=0.9),
    ]
    assert names(not_beaten(cells, ["tokens_per_second", "quality"])) == ["slow", "fast", "good"]
    assert usual_figures(cells) == ("tokens_per_second", "quality")
    assert usual_figures([*cells, cell("none", 1.0, tokens_per_second=1.0)]) == ("tokens_per_second",)
    assert usual_figures([]) == ()
    assert frontier(cells, ["quality"])[0].startswith("no other cell is as good in all (2 of 3)")


def test_a_figure_that_no_cell_has_is_a_mistake() -> None:
    assert frontier([cell("a", 1.0, seconds=2.0)], ["seconds"])[2].split() == ["a", "1.000", "2"]
    with pytest.raises(
        UsageError,
        match=r"--pareto=x: no good .* there are joules_per_token, seconds",
    ):
        frontier([cell("a", 1.0, seconds=2.0)], ["x"])


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12))
def test_whatever_is_left_out_is_beaten_by_something_that_is_not(points: list[tuple[int, int]]) -> None:
    cells = [cell(str(at), float(joules), quality=float(score)) for at, (joules, score) in enumerate(points)]
    kept = {int(name) for name in names(not_beaten(cells, ["quality"]))}
    assert kept
    for at, (joules, score) in enumerate(points):
        beaten = any(
            points[other][0] <= joules and points[other][1] >= score and points[other] != (joules, score)
            for other in kept
        )
        assert beaten == (at not in kept)
