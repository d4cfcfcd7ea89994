"""The page in a real Chromium: quiet, accessible, drawn in every size and colour, and deaf to hostile data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pytest_tokenpower.core.records import Figure, RoundRecord
from pytest_tokenpower.reporting.page import page, soak_page
from pytest_tokenpower.reporting.report import Report
from pytest_tokenpower.suites.soak import SoakBegun, Stretch
from tests.support.browser import chromium, opened
from tests.support.reports import hostile, many, measured, odd, ordinary, report

pytestmark = pytest.mark.slow

WIDE = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path, ordinary())


def written(folder: Path, report: Report) -> Path:
    path = folder / "report.html"
    path.write_text(page(report), "utf-8")
    return path


def open_all(shown: Any) -> None:
    shown.get_by_role("button", name="Open all").click()
    shown.wait_for_function(
        "() => [...document.querySelectorAll('details.test .plot')].every((one) => one.querySelector('canvas'))"
    )


def inked(shown: Any) -> list[bool]:
    """Of each drawing, whether anything was drawn."""
    found: list[bool] = shown.evaluate(
        """() => [...document.querySelectorAll('.plot canvas')].map((canvas) => {
            const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            return data.some((value, at) => at % 4 === 3 && value > 0);
        })"""
    )
    return found


@pytest.mark.parametrize(
    "options", [WIDE, {**WIDE, "color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"]
)
def test_everything_is_drawn_without_a_word_on_the_console(browser: Any, file: Path, options: Any) -> None:
    with opened(browser, file, **options) as found:
        open_all(found.page)
        drawings = inked(found.page)
        # Of five tests each has power and rounds, three have a verdict with an interval; one compares all tests.
        assert len(drawings) == 14
        assert all(drawings)
        assert not found.page.evaluate("document.documentElement.scrollWidth > innerWidth")
        assert found.complaints == []


@pytest.mark.parametrize("options", [WIDE, PHONE], ids=["wide", "phone"])
def test_a_soak_is_drawn_over_its_hours(browser: Any, tmp_path: Path, options: Any) -> None:
    begun = SoakBegun("test_x.py::test_chat", "", "nvml", "2026-11-01T10:00:00+00:00", "measured")
    one = RoundRecord(0, 60.0, 100.0, 1.0, 10, 1000, temperature_celsius=50.0, sm_clock_mhz=1980.0)
    rounds = [
        replace(one, joules=100.0 * (1.05 if at >= 60 else 1.0) + at % 3, limited_shares={"power": 0.1})
        for at in range(120)
    ]
    path = tmp_path / "soak.html"
    path.write_text(
        soak_page(begun, [Stretch(60.0 * at, one) for at, one in enumerate(rounds)], 0.02), "utf-8"
    )
    with opened(browser, path, **options) as found:
        found.page.wait_for_function("() => document.querySelectorAll('.plot canvas').length === 5")
        assert inked(found.page) == [True] * 5
        text = found.page.inner_text("main")
        assert "drift of J/token from beginning to end: +" in text
        assert "step at 1.0" in text
        assert "Verdicts" not in text
        assert not found.page.evaluate("document.documentElement.scrollWidth > innerWidth")
        assert found.complaints == []


@pytest.mark.parametrize(
    "options", [WIDE, {**WIDE, "color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"]
)
def test_axe_finds_nothing_serious(browser: Any, file: Path, options: Any) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python holds axe-core"
    )
    # axe is a script that the page's own policy would not let in.
    with opened(browser, file, **options, bypass_csp=True) as found:
        open_all(found.page)
        violations = axe.Axe().run(found.page).response["violations"]
        assert [(one["id"], one["impact"], one["nodes"][0]["html"][:200]) for one in violations] == []


def test_what_is_missing_is_left_out_of_the_drawings(browser: Any, tmp_path: Path) -> None:
    with opened(browser, written(tmp_path, odd()), **WIDE) as found:
        open_all(found.page)
        # A ceiling without an interval, power of two tests, rounds of one, of two variants and of a restart.
        assert inked(found.page) == [True] * 7
        text = found.page.inner_text("main")
        assert "50000 readings in 12000 steps" in text
        assert "Earlier attempts and restarts are not drawn." in text
        assert "3 of 4 rounds dropped" in text
        assert "No history: no run is stored in /store." in text
        assert "NaN" not in text
        assert "undefined" not in text
        assert found.complaints == []


def test_latencies_stand_beside_joules_where_they_are_known(browser: Any, tmp_path: Path) -> None:
    timed = measured(
        "t.py::timed", figures={"joules_per_token": Figure(1, 0.01), "ttft_p50_seconds": Figure(0.25, 0.01)}
    )
    with opened(browser, written(tmp_path, report(measured(), timed)), **WIDE) as found:
        rows = found.page.locator("#tests table").first.locator("tr").all_inner_texts()
        assert "\tTTFT ms\tchange" in rows[0]
        assert [row.split("\t")[8] for row in rows[1:]] == ["", "250"]
        assert found.complaints == []


def test_hostile_data_is_shown_and_does_nothing(browser: Any, tmp_path: Path) -> None:
    with opened(browser, written(tmp_path, hostile()), **WIDE) as found:
        found.page.on("dialog", lambda dialog: found.complaints.append(dialog.message))
        open_all(found.page)
        assert (
            found.page.evaluate("document.querySelectorAll('main img, main script, main iframe').length") == 0
        )
        assert "<script>alert(1)</script>" in found.page.inner_text("main")
        assert found.complaints == []


def test_the_keyboard_reaches_the_tests_and_zooms(browser: Any, file: Path) -> None:
    with opened(browser, file, **WIDE) as found:
        shown = found.page
        shown.keyboard.press("Tab")
        assert shown.evaluate("document.activeElement.textContent") == "Skip to the tests"
        open_all(shown)
        button = shown.get_by_role("button", name="Zoom in: Power of test_new")
        canvas = shown.locator("#t3 figure", has=button).locator("canvas")
        before = canvas.evaluate("(canvas) => canvas.toDataURL()")
        button.focus()
        shown.keyboard.press("Enter")
        shown.wait_for_timeout(100)
        zoomed = canvas.evaluate("(canvas) => canvas.toDataURL()")
        shown.get_by_role("button", name="Show all: Power of test_new").press("Enter")
        shown.wait_for_timeout(100)
        assert zoomed != before
        assert canvas.evaluate("(canvas) => canvas.toDataURL()") == before


def test_the_filter_hides_other_tests(browser: Any, file: Path) -> None:
    with opened(browser, file, **WIDE) as found:
        found.page.get_by_label("Name contains").fill("fp8")
        assert found.page.get_by_role("status").inner_text() == "1 of 5 shown"
        assert found.page.locator("details.test:visible").count() == 1


def test_it_prints_in_light_colours_with_every_drawing(browser: Any, file: Path) -> None:
    with opened(browser, file, **WIDE, color_scheme="dark") as found:
        found.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert found.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert found.page.locator("details.test[open]").count() == 5
        assert all(inked(found.page))
        assert found.page.pdf().startswith(b"%PDF")
        assert found.complaints == []


def test_200_tests_open_and_draw_only_what_is_opened(browser: Any, tmp_path: Path) -> None:
    with opened(browser, written(tmp_path, many(200)), **WIDE) as found:
        assert found.page.locator("details.test").count() == 200
        # The comparison of all, and the first three that fail.
        found.page.wait_for_function("() => document.querySelectorAll('canvas').length === 13")
        assert found.complaints == []
