"""Claims of suites: which cells they are about, what is found, and the word; exact data in, the right word out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pytest_tokenpower.core.records import (
    ClaimRecord,
    Figure,
    MeasurementRecord,
    PhaseRecord,
    RoundRecord,
    ScopeFigure,
)
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.reporting.suites import claim_line, claims_table
from pytest_tokenpower.suites.claims import judge_claims, runs_of
from pytest_tokenpower.suites.grid import Suite
from pytest_tokenpower.suites.instances import instances

ROOT = Path(__file__).parents[2]
GRID = """\
[axes]
model = "llama-3.1-8b"
engine = "vllm"
batch = [8, 64, 256, 512]

[variants]
bf16 = {}
fp8 = { quantization = "fp8" }
"""
RATIO = '[[claim]]\nname = "c"\nof = { variant = "fp8" }\nto = { variant = "bf16" }\n'


def suite(claims: str, grid: str = GRID) -> Suite:
    return Suite.parse(grid + claims, Path("s.energy.toml"))


def measured(
    name: str,
    joules_per_token: float,
    *,
    prefill: float = 0.2,
    run: int = 1,
    board: str = "GPU-a",
    **changes: object,
) -> MeasurementRecord:
    """Six rounds of 1,000 tokens that scatter by half a percent; ``prefill`` is the prefill's share."""
    rounds = tuple(
        RoundRecord(
            start_ns=number,
            seconds=1.0,
            joules=(joules := 1000 * joules_per_token * (1 + 0.005 * wobble)),
            stderr_joules=joules * 1e-3,
            prompt_tokens=500,
            generated_tokens=1000,
            phases={
                "prefill": PhaseRecord(prefill * joules, 0.1, 0.2),
                "decode": PhaseRecord((1 - prefill) * joules, 0.1, 0.8),
            },
            device_joules={board: joules},
        )
        for number, wobble in enumerate((-1, 1, -0.5, 0.5, 0, 0.2))
    )
    test = f"s.energy.toml::{name}" + (f"@run{run}" if run > 1 else "")
    record = MeasurementRecord(
        test,
        {},
        "measured",
        "gpu",
        "ring",
        rounds,
        True,
        figures={"joules_per_token": Figure(joules_per_token, 1e-3)},
    )
    return replace(record, **changes)


def judged(
    claims: str, joules: Mapping[str, float], *more: MeasurementRecord, grid: str = GRID
) -> tuple[ClaimRecord, ...]:
    found = suite(claims, grid)
    records = [measured(f"llama-3.1-8b-vllm-{name}", value) for name, value in joules.items()]
    return judge_claims(found, runs_of(found, [*records, *more]), "s.energy.toml")


def words(claims: str, joules: Mapping[str, float], *more: MeasurementRecord) -> dict[str, str]:
    return {claim.name: claim.word for claim in judged(claims, joules, *more)}


def test_a_ratio_is_held_against_each_pair_that_is_alike_otherwise() -> None:
    joules = {
        "bf16-b8": 1.0,
        "fp8-b8": 1.1,
        "bf16-b64": 1.0,
        "fp8-b64": 0.86,
        "bf16-b256": 1.0,
        "fp8-b256": 0.7,
    }
    assert words(RATIO + "at_most = 0.85\n", joules) == {
        "c [batch=8]": "refuted",
        "c [batch=64]": "not told",
        "c [batch=256]": "confirmed",
        "c [batch=512]": "not testable here",
    }
    assert words(RATIO + "at_least = 1.08\nwhere = { batch = [8, 64] }\n", joules) == {
        "c [batch=8]": "not told",
        "c [batch=64]": "refuted",
    }


def test_the_ratio_is_that_of_the_figures_with_an_interval_around_it() -> None:
    [claim] = judged(RATIO + "at_most = 0.85\nwhere = { batch = 8 }\n", {"bf16-b8": 2.0, "fp8-b8": 1.0})
    assert claim.ratio == pytest.approx(0.5, rel=1e-6)
    assert claim.low is not None
    assert claim.high is not None
    # One process each, an allowance of 1 % with 2 degrees of freedom a side: 2.78 * sqrt(2) %, and the rounds' own.
    assert 0.5 * math.exp(-0.05) < claim.low < 0.5 * math.exp(-0.0392)
    assert claim.high * claim.low == pytest.approx(0.25)
    assert claim.runs == (1, 1)
    assert claim.notes == (
        "One process each: what processes differ by is not in its rounds; 1 % is allowed for it.",
    )


def test_more_runs_make_it_surer_and_need_no_allowance_to_be_told() -> None:
    names = ("bf16-b8", "fp8-b8")
    more = [measured(f"llama-3.1-8b-vllm-{name}", 1.0, run=run) for run in (2, 3) for name in names]
    text = RATIO + "at_most = 1.02\nwhere = { batch = 8 }\n"
    [alone] = judged(text, dict.fromkeys(names, 1.0))
    [pooled] = judged(text, dict.fromkeys(names, 1.0), *more)
    assert pooled.runs == (3, 3)
    assert pooled.notes == ()
    assert pooled.high - 1 < 0.6 * (alone.high - 1)  # type: ignore[operator]


def test_cells_of_different_boards_are_less_sure_and_say_so() -> None:
    text = RATIO + "at_most = 0.97\nwhere = { batch = 8 }\n"
    other = measured("llama-3.1-8b-vllm-fp8-b8", 0.9, board="GPU-b")
    [same] = judged(text, {"bf16-b8": 1.0, "fp8-b8": 0.9})
    [differs] = judged(text, {"bf16-b8": 1.0}, other)
    assert same.word == "confirmed"
    assert "different boards" in differs.notes[0]
    # What boards differ by is no part of what processes do.
    assert differs.notes[1:] == same.notes
    assert differs.high > same.high  # type: ignore[operator]


SHAPE = '[[claim]]\nname = "s"\nalong = "batch"\nwhere = { variant = "bf16" }\n'


@pytest.mark.parametrize(
    ("figures", "word"),
    [
        ((4.0, 2.0, 1.0, 1.0), "confirmed"),
        ((4.0, 2.0, 1.0, 1.3), "refuted"),
        ((4.0, 2.0, 1.0, 0.7), "refuted"),
        ((4.0, 4.4, 1.0, 1.0), "refuted"),
        ((4.0, 4.0, 1.0, 1.0), "not told"),
        ((4.0, 2.0, 1.0, 1.1), "not told"),
    ],
)
def test_a_shape_holds_where_all_its_parts_do(figures: tuple[float, ...], word: str) -> None:
    text = SHAPE + 'shape = "falls"\nuntil = 256\nthen = "flat"\nwithin = "10%"\n'
    joules = {f"bf16-b{batch}": value for batch, value in zip((8, 64, 256, 512), figures, strict=True)}
    [claim] = judged(text, joules)
    assert claim.word == word
    assert claim.says == "falls until batch 256, then flat within 10%"
    assert [value for _, value in claim.points] == pytest.approx(figures, rel=1e-3)
    assert claim.ratio == pytest.approx(figures[2] / figures[0], rel=1e-6)
    if word == "refuted":
        assert claim.reason.startswith("batch ")


def test_a_shape_with_a_hole_cannot_be_told() -> None:
    [claim] = judged(SHAPE + 'shape = "rises"\n', {"bf16-b8": 1.0, "bf16-b64": 2.0, "bf16-b512": 3.0})
    assert (claim.word, claim.reason) == ("not testable here", "not measured: llama-3.1-8b-vllm-bf16-b256")


def test_measured_and_other_figures_are_not_compared() -> None:
    other = measured("llama-3.1-8b-vllm-fp8-b8", 0.5, provenance="modelled")
    [claim] = judged(RATIO + "at_most = 0.85\nwhere = { batch = 8 }\n", {"bf16-b8": 1.0}, other)
    assert (claim.word, claim.reason) == (
        "not testable here",
        "measured and modelled figures are not compared",
    )


def test_what_is_not_to_be_trusted_is_no_evidence() -> None:
    bad = measured("llama-3.1-8b-vllm-fp8-b8", 0.5, comparable=False)
    [claim] = judged(RATIO + "at_most = 0.85\nwhere = { batch = 8 }\n", {"bf16-b8": 1.0}, bad)
    assert claim.word == "not testable here"


def test_figures_of_phases_and_quotients_can_be_claimed() -> None:
    text = SHAPE + 'figure = "prefill_joules / joules"\nshape = "rises"\n'
    records = [
        measured(f"llama-3.1-8b-vllm-bf16-b{batch}", 1.0, prefill=share)
        for batch, share in ((8, 0.1), (64, 0.2), (256, 0.4), (512, 0.6))
    ]
    [claim] = judged(text, {}, *records)
    assert claim.word == "confirmed"
    assert [value for _, value in claim.points] == pytest.approx([0.1, 0.2, 0.4, 0.6])
    [claim] = judged(text.replace("prefill_joules /", "power_imbalance /"), {}, *records)
    assert claim.reason == "llama-3.1-8b-vllm-bf16-b8 has no power_imbalance"


def test_a_figure_itself_can_be_limited_such_as_the_share_of_a_node() -> None:
    text = '[[claim]]\nname = "n"\nfigure = "share_of_node"\nof = { batch = 8, variant = "bf16" }\nat_least = 0.6\n'
    node = ScopeFigure("node", joules_per_token=Figure(1.25, 0.01))
    [claim] = judged(text, {}, measured("llama-3.1-8b-vllm-bf16-b8", 1.0, other_scopes=(node,)))
    assert claim.word == "confirmed"
    assert claim.ratio == pytest.approx(0.8)
    [claim] = judged(text, {"bf16-b8": 1.0})
    assert claim.reason == "no energy of the node was measured along with llama-3.1-8b-vllm-bf16-b8"


@pytest.mark.parametrize(
    ("claim", "line", "words"),
    [
        (RATIO + 'at_most = 1\nfigure = "jouls"\n', 14, "'jouls' is no figure; there are joules_per_token,"),
        (RATIO.replace("fp8", "fp9") + "at_most = 1\n", 9, "no two cells of the grid"),
        (SHAPE + 'shape = "falls"\nuntil = 100\nthen = "flat"\n', 9, "the grid has no 3 cells along batch"),
        (SHAPE + 'shape = "falls"\nuntil = 512\nthen = "flat"\n', 9, "the grid has no 3 cells along batch"),
        (SHAPE.replace("bf16", "x") + 'shape = "falls"\n', 9, "the grid has no 2 cells along batch"),
    ],
)
def test_a_claim_that_no_cell_can_tell_is_a_mistake_of_the_file(claim: str, line: int, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        instances(suite(claim))
    assert str(caught.value).startswith(f"s.energy.toml:{line}: claim[0]")
    assert words in str(caught.value)


def test_two_cells_on_one_side_are_a_mistake_of_the_file() -> None:
    claim = '[[claim]]\nname = "c"\nof = { batch = [8, 64] }\nto = { batch = 256 }\nat_most = 1\n'
    with pytest.raises(UsageError, match="name the axis in which they differ"):
        instances(suite(claim))


@given(st.lists(st.floats(0.5, 2.0), min_size=4, max_size=4), st.floats(0.5, 2.0))
def test_words_and_intervals_agree(values: list[float], limit: float) -> None:
    joules = {f"{variant}-b8": value for variant, value in zip(("bf16", "fp8"), values[:2], strict=True)}
    joules |= {f"{variant}-b64": value for variant, value in zip(("bf16", "fp8"), values[2:], strict=True)}
    for claim in judged(RATIO + f"at_most = {limit}\nwhere = {{ batch = [8, 64] }}\n", joules):
        assert claim.low is not None
        assert claim.high is not None
        if claim.word == "confirmed":
            assert claim.high < limit
        elif claim.word == "refuted":
            assert claim.low > limit
        else:
            assert claim.word == "not told"


def test_identical_cells_are_told_apart_in_few_suites_of_twenty_claims() -> None:
    """Holm over the suite: at a scatter as believed one in twenty suites at most says a word too many."""
    import random

    grid = GRID.replace("[8, 64, 256, 512]", str(list(range(1, 21))))
    found, lot, wrong = suite(RATIO + "at_most = 1\n", grid), random.Random(5), 0
    for _ in range(60):
        records = [measured(cell.name, math.exp(lot.gauss(0, 0.01))) for cell in found.cells]
        claims = judge_claims(found, runs_of(found, records), "s")
        assert len(claims) == 20
        wrong += any(claim.word != "not told" for claim in claims)
    # 3 of 60 are expected at most; 9 and more would have a chance of 0.3 %.
    assert wrong < 9


def test_the_table_shows_the_published_figure_and_says_what_refutes() -> None:
    claims = judged(
        RATIO
        + 'at_most = 0.85\nwhere = { batch = [8, 64, 256] }\npaper = "-30 %"\n'
        + SHAPE
        + 'shape = "rises"\n',
        {
            "bf16-b8": 1.0,
            "fp8-b8": 0.7,
            "bf16-b64": 1.0,
            "fp8-b64": 1.2,
            "bf16-b256": 1.0,
            "bf16-b512": 2.0,
            "fp8-b256": 0.85,
        },
    )
    text = "\n".join(claims_table(claims))
    assert "paper" in text
    assert "-30 %" in text
    assert "REFUTED" in text
    line = claim_line(claims[1])
    assert line == "REFUTED: c [batch=64] (joules_per_token ≤ 0.85); found 1.2 [1.15, 1.25]; published: -30 %"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples" / "suites").glob("*.toml")), ids=lambda path: path.name
)
def test_every_claim_of_the_examples_is_about_cells(path: Path) -> None:
    found = Suite.read(path)
    assert found.table.claim
    assert instances(found)


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "benchmarks" / "gpu_project" / "suites").glob("*.toml")),
    ids=lambda path: path.name,
)
def test_every_claim_of_the_benchmarks_is_about_cells(path: Path) -> None:
    suite = Suite.read(path)
    # What is soaked claims nothing.
    assert instances(suite) if suite.table.claim else path.name == "soak.energy.toml"
