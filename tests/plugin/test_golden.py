"""A whole run to the letter: what a person reads and what is stored, beside this file; a change of either is seen."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pytest_tokenpower.meters.simulation.virtual_time import VIRTUAL_TIME
from tests.support.projects import Project

GOLDEN = Path(__file__).with_name("golden")

TESTS = """
@pytest.mark.power_budget(min_rounds=3, max_rounds=3, joules_per_token=1)
def test_call(energy):
    energy(generate, 0.3, prompt=500)

def test_blocks(energy):
    for _ in range(2):
        with energy.measure() as window:
            window.count(generate(0.25))

@quick
@pytest.mark.power_budget(mean_watts=200)
def test_over(energy):
    energy(generate, 0.3)

@pytest.mark.power_budget(min_rounds=4, max_rounds=4)
def test_variants(energy):
    energy.compare(baseline=lambda: generate(0.3), candidate=lambda: generate(0.2), at_least="20%")
"""

# What is of the day, of the machine or of what is installed there.
VARYING = ("id", "created", "digest", "host", "versions", "command")


def held(name: str, text: str) -> None:
    """Compare with the file; where it is not there, write it and fail."""
    path = GOLDEN / name
    if not path.exists():
        path.write_text(text)
        pytest.fail(f"{path} was written: look at it, and commit it")
    assert text == path.read_text(), f"if the change is meant, delete {path} and run this test twice"


def told(value: Any) -> Any:
    """Round floats to what neither another version of numpy nor the end of a poll changes."""
    if isinstance(value, dict):
        return {name: told(each) for name, each in value.items() if name not in VARYING}
    if isinstance(value, list):
        return [told(each) for each in value]
    return float(f"{value:.2g}") if isinstance(value, float) else value


def test_a_run_is_reported_and_stored_as_it_was(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VIRTUAL_TIME, "_now_ns", 1_000_000_000_777)
    # The order of variants is drawn.
    monkeypatch.setattr("random.Random.choice", lambda self, variants: variants[0])
    project.tests(TESTS)
    result = project.run("--energy-json=run.json", "--no-header", "-q")
    lines = [re.sub(r" in [\d.]+s\b", " in #s", line.rstrip()) for line in result.outlines]
    held("report.txt", "\n".join(lines) + "\n")
    record = told(json.loads((project.path / "run.json").read_bytes()))
    held("record.json", json.dumps(record, indent=1) + "\n")
