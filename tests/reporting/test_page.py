"""The page as text: it loads nothing, its script alone reads the data, and 200 tests stay under 3 MB."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pytest_tokenpower.core.records import ChangeRecord, ClaimRecord, RoundRecord
from pytest_tokenpower.reporting.page import page, script_safe, soak_page
from pytest_tokenpower.reporting.page.content import content
from pytest_tokenpower.reporting.report import Report
from pytest_tokenpower.suites.soak import SoakBegun, Stretch
from tests.support.reports import HOSTILE, embedding, hostile, many, measured, ordinary, report, run, verdict


class Elements(HTMLParser):
    """The elements of a page, each with its attributes and the text directly inside it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self.found.append((f"/{tag}", {}, ""))

    def handle_data(self, data: str) -> None:
        if self.found:
            tag, attributes, before = self.found[-1]
            self.found[-1] = (tag, attributes, before + data)

    def texts(self, tag: str, **attributes: str) -> list[str]:
        return [
            text for name, found, text in self.found if name == tag and attributes.items() <= found.items()
        ]


def carried(text: str) -> Any:
    [data] = Elements(text).texts("script", type="application/json")
    return json.loads(data)


def test_the_page_loads_nothing_and_runs_only_what_its_policy_names() -> None:
    elements = Elements(page(ordinary()))
    assert not [
        (tag, attributes)
        for tag, attributes, _ in elements.found
        if attributes.keys() & {"src", "srcset", "action"}
    ]
    assert [attributes["href"] for _, attributes, _ in elements.found if "href" in attributes] == ["#tests"]
    assert not [name for _, attributes, _ in elements.found for name in attributes if name.startswith("on")]
    [policy] = [
        attributes["content"] or ""
        for tag, attributes, _ in elements.found
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; base-uri 'none'; form-action 'none';")
    assert "unsafe" not in policy
    blocks = elements.texts("style") + [
        text for tag, attributes, text in elements.found if tag == "script" and "type" not in attributes
    ]
    digests = [base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks]
    assert sorted(re.findall(r"'sha256-([^']+)'", policy)) == sorted(digests)


def test_no_text_of_a_record_becomes_markup() -> None:
    text = page(hostile())
    assert {tag for tag, _, _ in Elements(text).found} == {
        tag for tag, _, _ in Elements(page(ordinary())).found
    }
    assert "</script><script>alert" not in text
    [test] = carried(text)["tests"]
    assert test["id"] == HOSTILE
    assert "{{policy}}" in test["method"]


@given(st.text())
def test_json_in_a_script_element_neither_ends_it_nor_changes(text: str) -> None:
    safe = script_safe(json.dumps(text, ensure_ascii=False))
    assert not set(safe) & set("<>&\u2028\u2029")
    assert json.loads(safe) == text


def test_intervals_are_drawn_against_the_limit_and_the_budget() -> None:
    by_name = {test["name"]: test for test in content(ordinary())["tests"]}
    [regressed] = by_name["test_chat[fp8]"]["verdicts"]
    [row] = regressed["rows"]
    assert (row["name"], row["interval"], row["limit"]) == ("total", [0.061, 0.047, 0.075], 0.03)
    [budget] = by_name["test_budget"]["verdicts"]
    assert budget["budget"]
    assert [(row["name"], row["limit"]) for row in budget["rows"]] == [("joules_per_token", 0.0)]
    assert by_name["test_new"]["verdicts"][0]["rows"] == []


def test_dropped_rounds_keep_their_reason_and_place() -> None:
    [test] = content(report(measured()))["tests"]
    assert test["rounds"]["reasons"] == ["GPU-0: another process used the GPU (pid 7)"]
    assert [at for at, reasons in enumerate(test["rounds"]["dropped"]) if reasons] == [2]
    # The curve begins half a second before the first round.
    assert test["power"]["rounds"][:3] == [[500, 2500, False], [2500, 4500, False], [4500, 6500, True]]


def test_what_was_not_measured_says_so() -> None:
    found = content(report(measured(provenance="simulated"), measured("t.py::other")))
    assert found["provenances"] == ("simulated", "measured")
    assert [test["provenance"] for test in found["tests"]] == ["simulated", "measured"]
    # Without a verdict a test is shown by how its figure came about.
    assert [test["word"] for test in found["tests"]] == ["simulated", "measured"]


def test_a_page_of_200_tests_is_under_3_mb_and_says_what_it_put_together() -> None:
    text = page(many(200))
    assert len(text.encode()) < 3_000_000
    curve = carried(text)["tests"][0]["power"]["devices"][0]
    assert curve["readings"] == 6000
    assert 200 <= len(curve["ends_ms"]) <= 300
    assert len(curve["low"]) == len(curve["high"]) == len(curve["mean"]) == len(curve["ends_ms"])


def test_a_few_tests_are_drawn_reading_by_reading() -> None:
    [curve] = content(report(measured()))["tests"][0]["power"]["devices"]
    assert len(curve["mean"]) == curve["readings"] == 1000
    assert "low" not in curve


def test_a_run_without_measurements_has_a_page() -> None:
    assert carried(page(Report((run(),))))["tests"] == []


def test_the_parts_of_a_change_are_drawn_where_a_record_has_them() -> None:
    work, pace = ChangeRecord(0.05, 0.04, 0.06), ChangeRecord(-0.03, -0.05, 0)
    divided = replace(verdict("regressed", 0.02), work=work, pace=pace)
    [test] = content(report(measured(verdicts=(divided, verdict("passed", 0.001)))))["tests"]
    assert [(row["name"], row["interval"][0], row["limit"]) for row in test["verdicts"][0]["rows"]] == [
        ("total", 0.02, 0.03), ("work", 0.05, 0.03), ("pace", -0.03, None),
    ]  # fmt: skip
    assert [row["name"] for row in test["verdicts"][1]["rows"]] == ["total"]


def test_what_generates_nothing_is_drawn_per_prompt_token() -> None:
    [test] = content(report(embedding()))["tests"]
    assert test["unit"] == "J/prompt token"
    assert test["main"][0] == pytest.approx(0.4025, abs=0.002)
    assert test["rounds"]["per_unit"] == [0.4, 0.401, 0.402, 0.403, 0.404, 0.405]


def test_claims_of_suites_are_on_the_page() -> None:
    claim = ClaimRecord(
        "suite.toml", "fp8 saves", "<= 0.8", "refuted", "joules_per_token", 0.9, 0.85, 0.95, paper="0.7"
    )
    one = run(measured(), claims=(claim,))
    on_page = content(Report((one,)))
    assert on_page["claims"] == [["fp8 saves", "<= 0.8", "0.9 [0.85, 0.95]", "0.7", "refuted", ""]]
    assert on_page["claims_news"] == []
    failing = run(measured(), claims=(claim, msgspec.structs.replace(claim, severity="fail")))
    assert content(Report((failing,)))["claims_news"] == ["1 claim REFUTED"]


def test_a_soak_has_a_page_with_its_course_and_what_was_found() -> None:
    begun = SoakBegun(
        "test_x.py::test_chat", "0123456789abcdef", "nvml", "2026-11-01T10:00:00+00:00", "measured"
    )
    rounds = [
        RoundRecord(
            at * 60_000_000_000, 60.0, 100.0 * (1.05 if at >= 60 else 1.0) * (1 + 0.001 * (at % 3)), 1.0, 10, 1000,
            temperature_celsius=50.0 + at / 10, sm_clock_mhz=None if at == 3 else 1980.0,
            limited_shares={"power": 0.25, "thermal": 0.0}, reasons=("x",) if at == 4 else (),
        )
        for at in range(120)
    ]  # fmt: skip
    text = soak_page(begun, [Stretch(60.0 * at, one) for at, one in enumerate(rounds)], 0.02)
    data = carried(text)
    soak = data["soak"]
    assert data["tests"] == []
    assert data["provenances"] == ["measured"]
    assert soak["joules"][3:6] == [pytest.approx(0.1), None, pytest.approx(0.1002)]
    assert soak["watts"][0] == pytest.approx(100 / 60, rel=1e-5)
    assert soak["mhz"][2:5] == [1980, None, 1980]
    assert soak["limited"] == {"power": [25.0] * 120}
    assert soak["steps"] == [pytest.approx(1.0, abs=0.1)]
    assert soak["said"][0].startswith("drift of J/token from beginning to end: +")
    assert "1 stretch dropped by guards" in soak["said"]
    assert len(soak["rows"]) == 12


def test_a_hostile_name_of_a_soak_is_no_markup() -> None:
    begun = SoakBegun(HOSTILE, HOSTILE, HOSTILE, "2026-11-01T10:00:00+00:00", "simulated")
    text = soak_page(begun, [], None)
    assert carried(text)["soak"]["test"] == HOSTILE
    assert [tag for tag, _, _ in Elements(text).found] == [
        tag for tag, _, _ in Elements(page(ordinary())).found
    ]
