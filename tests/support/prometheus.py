"""A real Prometheus on loopback, where Debian's package is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LISTENING = re.compile(r'"Listening on" address=127\.0\.0\.1:(\d+)')

needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus to run")


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """Return the URL of a Prometheus that scrapes ``target`` each second; its log is ``folder/log``."""
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        "scrape_configs:\n"
        f"  - {{job_name: dcgm, static_configs: [{{targets: ['{target.removeprefix('http://')}']}}]}}\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        # It takes a port that is free and tells which: one that is looked for beforehand may be somebody's by then.
        while not (found := LISTENING.search((folder / "log").read_text())):
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{found[1]}"
    finally:
        process.kill()
        process.wait()
