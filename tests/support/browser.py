"""A real headless Chromium, where there is one; everything else about a page is tested without it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

# Chromium's own calls home are no part of a test, and a machine without a network refuses them, many at a time.
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@dataclass
class Opened:
    """A page in the browser, and everything that should not have happened while it was open."""

    page: Any
    complaints: list[str] = field(default_factory=list)


@contextmanager
def chromium() -> Iterator[Any]:
    """Return a browser; skips the test with the reason where there is none, and fails it where one is asked for."""
    if os.environ.get("CHROMIUM_REQUIRED"):
        import axe_playwright_python.sync_playwright  # noqa: F401
        import playwright.sync_api as playwright
    else:
        playwright = pytest.importorskip(
            "playwright.sync_api", reason="playwright (group browser) drives the browser"
        )
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        missing = pytest.fail if os.environ.get("CHROMIUM_REQUIRED") else pytest.skip
        missing("there is no Chromium here: apt install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(QUIET))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, file: Path, **options: Any) -> Iterator[Opened]:
    """Open a file; whatever the page writes to the console, throws or asks the network for is a complaint."""
    context = browser.new_context(**options)
    found = Opened(context.new_page())
    found.page.on("console", lambda message: found.complaints.append(f"{message.type}: {message.text}"))
    found.page.on("pageerror", lambda error: found.complaints.append(f"thrown: {error}"))
    found.page.on(
        "request",
        lambda request: None if request.url.startswith("file:") else found.complaints.append(request.url),
    )
    try:
        found.page.goto(file.as_uri())
        yield found
    finally:
        context.close()
