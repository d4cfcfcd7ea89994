"""What a run of pytest without energy tests has of the plugin: its options, and nothing that watches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MOST_MODULES = 16
"""Room for what every run has: options, the marker, errors, the registry of engines."""

BODY = """
import sys

def test_plain():
    pass

def test_last():
    print(*sorted(name for name in sys.modules if name.startswith("pytest_tokenpower")))
"""


@pytest.mark.parametrize("measures", [False, True])
def test_a_run_without_energy_tests_imports_what_it_needs(tmp_path: Path, measures: bool) -> None:
    wish = "def test_energy(energy):\n    energy(lambda: 1)\n" if measures else ""
    (tmp_path / "test_some.py").write_text(wish + BODY)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-s", "-q", "-p", "no:cacheprovider", "test_some.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    [loaded] = [
        line.split() for line in run.stdout.splitlines() if "pytest_tokenpower.plugin" in line.split()
    ]
    assert ("pytest_tokenpower.plugin.watching" in loaded) is measures
    if not measures:
        assert len(loaded) <= MOST_MODULES, loaded
