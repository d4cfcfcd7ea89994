"""`tokenpower demo`: its story without inference, and what it refuses."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

from pytest_tokenpower.cli import main


@pytest.fixture
def no_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no process import what real inference takes."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("torch", "transformers", "vllm"):
        (blocked / f"{name}.py").write_text(f"raise ImportError('there is no {name} here')\n")
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("PYTHONPATH", str(blocked), prepend=os.pathsep)


@pytest.mark.slow
def test_the_simulated_demo_tells_the_whole_story_without_any_engine(
    no_engines: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--simulated", f"--keep={tmp_path}"]) == 0
    said = capfd.readouterr().out
    assert said.startswith("Energy source: a SIMULATED board: no figure of what follows is measured\n")
    steps = re.findall(r"^\[(\d)/5\] \d+ s(, about \d+ s left)?: \S+ \S+", said, re.MULTILINE)
    # How long the rest takes is known as soon as one run has ended.
    assert [(number, bool(left)) for number, left in steps] == [(str(at), at > 1) for at in range(1, 6)]
    assert "\nREGRESSED +6.2 % (limit 3 %): test_chat_energy takes " in said
    assert said.count("SIMULATED, not measured") == 5
    assert "The unchanged branch passed (exit 0)." in said
    assert "failed its build, as it should (exit 1)." in said
    page = tmp_path / "energy.html"
    assert said.endswith(f"The page of the last run, to open in a browser: {page}\n")
    assert "REGRESSED" in page.read_text()


@pytest.mark.slow
def test_of_a_demo_that_is_not_kept_the_page_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert main(["demo", "--simulated"]) == 0
    [page] = (path for path in tmp_path.glob("tokenpower-demo-*/**/*") if path.is_file())
    assert f"The page of the last run, to open in a browser: {page}\n" in capfd.readouterr().out
    assert "REGRESSED" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--simulated", "--source=nvml"], "--simulated brings its own source"),
        (["--simulated", "--runs=0"], "--runs=0: must be at least 1"),
    ],
)
def test_what_cannot_be_played_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *arguments]) == 4
    assert says in capsys.readouterr().err
