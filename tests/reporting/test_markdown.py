"""Summaries for GitHub: what they say, that data stays data, and that they fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.reporting.markdown import (
    COMMENT_BYTES,
    MOST_MESSAGE,
    SUMMARY_BYTES,
    annotation,
    block,
    code,
    comment,
    marker,
    summary,
)
from pytest_tokenpower.reporting.report import Report
from tests.support.reports import embedding, hostile, many, measured, ordinary, report, run, verdict

markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py reads the Markdown")

PARSER = markdown_it.MarkdownIt("commonmark").enable("table")

ORDINARY = """\
### Energy per token: 1 INVALID, 1 REGRESSED, 1 OVER BUDGET, 1 no baseline, 1 passed

| test | J/token | ±95 % | change | 95 % interval | verdict | `EUR`/Mtok | gCO2e/Mtok |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| `test_hot` |  |  |  |  | **INVALID** |  |  |
| `test_chat[fp8]` | 1.041 | 0.5 % | +6.1 % | [+4.7, +7.5] | **REGRESSED** | 0.104 | 132 |
| `test_budget` | 1.001 | 0.5 % |  |  | **OVER BUDGET** | 0.1 | 127 |
| `test_new` | 1.001 | 0.5 % |  |  | `no baseline` | 0.1 | 127 |
| `test_chat[bf16]` | 1.001 | 0.5 % | +0.3 % | [-1.1, +1.7] | `passed` | 0.1 | 127 |

```text
INVALID: test_hot: too hot
```

```text
REGRESSED +6.1 % (limit 3 %): test_chat[fp8] takes 265.2 mJ/token; main@1a2b3c4 took 250.0 (2 runs).
  +6.1 % [+4.7, +7.5] (95 % interval).
```

```text
OVER BUDGET 1.000 J/token (limit 0.9): test_budget: joules_per_token exceeds its budget (95 % interval 0.9450 to 1.035).
```

```text
no baseline: test_new: nothing to compare with on main: none
```

```text
Mtok: a million generated tokens.
Price: 0.3 EUR/kWh, as configured (energy_price).
Carbon: 380 gCO2e/kWh, as configured (carbon_intensity).
PUE: 1.2, as configured (energy_pue).
Missing from it, as only gpu energy was measured: CPUs, memory, fans and the rest of the node.
```

- `measured: power ring, gpu energy`
- `run 85adb6cb, commit 289df321df86, 2026-11-28T03:42:00.000000Z`
"""


def leaves(tokens: Sequence[object]) -> Iterator[tuple[str, str]]:
    for token in tokens:
        children = getattr(token, "children", None)
        if children is None:
            yield token.type, token.content  # type: ignore[attr-defined]
        else:
            yield from leaves(children)


def test_a_summary_says_the_gravest_first_and_what_it_rests_on() -> None:
    assert summary(ordinary()) == ORDINARY
    titled = comment(replace(ordinary(), title="energy-gate"))
    headline, rest = ORDINARY.split("\n", 1)
    assert titled == f"<!-- pytest-tokenpower: energy-gate -->\n{headline} (`energy-gate`)\n{rest}"


def test_what_was_not_measured_says_so_first() -> None:
    lines = summary(report(measured(provenance="simulated"))).splitlines()
    assert lines[0] == "### Energy per token: 1 simulated"
    assert lines[2] == "**Not measured on hardware by this run:** `simulated`."


@pytest.mark.parametrize("render", [summary, comment])
def test_hostile_text_is_in_code_and_nowhere_else(render: object) -> None:
    found = list(leaves(PARSER.parse(render(hostile()))))  # type: ignore[operator]
    kinds = {kind for kind, _ in found}
    assert not kinds & {"link_open", "image", "html_inline", "hr", "code_block"}
    assert [content for kind, content in found if kind == "html_block"] in ([], [f"{marker('')}\n"])
    outside = [content for kind, content in found if kind == "text"]
    assert outside
    for content in outside:
        for trace in ("@", "evil", "alert", "#1", "Title", "\u202e", "\x1b"):
            assert trace not in content
    inside = " ".join(content for kind, content in found if kind in ("code_inline", "fence"))
    assert "@everyone" in inside
    assert not set("\u202e\u2028\x1b") & set(inside)


@given(st.text(), st.text())
def test_a_code_span_holds_any_text_also_in_a_table(one: str, other: str) -> None:
    tokens = PARSER.parse(f"| a | b |\n| --- | --- |\n| {code(one)} | {code(other)} |\n")
    cells = [token for token in tokens if token.type == "inline"][2:]
    assert len(cells) == 2
    for cell in cells:
        [child] = cell.children
        assert child.type == "code_inline" or cell.content == "–"


@given(st.text(alphabet=st.sampled_from("`~a \n\r\t#>|"), max_size=60))
def test_a_block_holds_any_text(text: str) -> None:
    [token] = PARSER.parse(block(text))
    assert token.type == "fence"


@pytest.mark.slow
@pytest.mark.parametrize(("render", "most"), [(summary, SUMMARY_BYTES), (comment, COMMENT_BYTES)])
def test_however_many_tests_it_fits(render: object, most: int) -> None:
    note = "x" * 900
    tests = [
        measured(f"t.py::test[{at}]", rounds=3, verdicts=(verdict("regressed", 0.06 + at * 1e-4, note),))
        for at in range(1500)
    ]
    text = render(Report((run(*tests),)))  # type: ignore[operator]
    assert most / 4 < len(text.encode()) <= most + len(marker("")) + 1
    assert "none of them graver than these: this text may be no longer." in text


def test_what_a_step_has_said_before_takes_room() -> None:
    assert len(summary(many(200), SUMMARY_BYTES - 5000).encode()) <= 5000


def test_an_annotation_is_one_line_of_one_command() -> None:
    for each in (ordinary(), hostile(), many(30), report()):
        line, end = annotation(each).split("\n")
        assert end == ""
        assert line.isprintable()
    assert annotation(many(30)).startswith(
        "::error title=Energy per token%3A 4 REGRESSED%2C 26 passed::REGRESSED"
    )
    assert annotation(report(measured())).startswith("::notice title=Energy per token%3A 1 measured::")
    assert "; and 18 more" in annotation(many(200))


def test_a_long_message_is_cut() -> None:
    assert len(block("x" * 100_000)) < MOST_MESSAGE + 20


def test_each_figure_has_its_unit_where_they_differ() -> None:
    text = summary(report(measured(), embedding()))
    assert "| test | figure | ±95 % |" in text
    assert "| `test_embed` | 402.5 mJ/prompt token |" in text
    assert "| `test_chat[bf16]` | 1.001 J/token |" in text
    assert "| test | mJ/prompt token | ±95 % |" in summary(report(embedding()))
