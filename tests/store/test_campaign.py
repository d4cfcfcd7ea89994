"""The safety campaign, in small: it finds nothing, and it would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).parents[2] / "benchmarks" / "safety_campaign.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or not CAMPAIGN.exists(), reason="needs Linux, and the benchmarks"
    ),
]


def test_nothing_is_lost_torn_or_changed() -> None:
    arguments = (
        "--kills=8",
        "--writers=4",
        "--each=5",
        "--corruptions=80",
        "--full=20",
        "--small=2",
        "--pushers=3",
    )
    done = subprocess.run(
        [sys.executable, str(CAMPAIGN), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    assert [row[1] for row in rows] == ["20", "80", "20", rows[3][1], "7", "3", "8"]
    assert all(row[2:6] == ["0"] * 4 for row in rows)


BROKEN = {
    "torn": (
        "campaign.store_module.publish = lambda folder, file, data: (folder / file).write_bytes(data)",
        "campaign.full_disk(folder, 10).torn",
    ),
    "lost": (
        "campaign.store_module.publish = lambda folder, file, data: None",
        "campaign.writers(folder, 2, 2).lost",
    ),
    "silent": (
        "from pytest_tokenpower.core import records; records.is_damaged = lambda data: False; "
        "campaign.store_module.is_damaged = lambda data: False",
        "campaign.corruptions(folder, 200).silent",
    ),
}


@pytest.mark.parametrize("which", ["torn", "lost", "silent"])
def test_a_store_that_is_not_safe_is_found_out(which: str, tmp_path: Path) -> None:
    broken, part = BROKEN[which]
    code = (
        f"import sys; sys.path.insert(0, {str(CAMPAIGN.parent)!r}); import safety_campaign as campaign; "
        f"from pathlib import Path; folder = Path({str(tmp_path)!r}); {broken}; found = {part}; "
        "print('found', found)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    last = done.stdout.splitlines()[-1].split()
    assert last[0] == "found"
    assert int(last[1]) > 0
