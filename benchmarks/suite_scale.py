"""Suites at scale: collection of the paper's set and of 10,000 cells, and a sweep that is killed again and again.

python benchmarks/suite_scale.py            prints seconds; exit code 1 where a goal is missed
python benchmarks/suite_scale.py --kills 10

Goals: --collect-only of examples/suites under 2 s (pytest's own count), of 10,000 cells under 10 s, and of a killed and
resumed sweep no cell measured twice, none lost, and one table, whatever the moments of the kills.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pytest_tokenpower.suites.resume import read_journal

ROOT = Path(__file__).resolve().parent.parent


OTHERS = ("cacheprovider", "hypothesispytest", "anyio", "platformdirs", "rerunfailures", "xdist")
"""Plugins that may be installed, and whose own time is not asked for here."""

PYTEST = [
    sys.executable,
    "-m",
    "pytest",
    "--color=no",
    *(part for name in OTHERS for part in ("-p", f"no:{name}")),
]
SIMULATED = ["--energy-source=simulated", "--energy-simulated-engines"]
CELLS = """\
[axes]
model = ["llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b", "qwen3-8b"]
engine = ["vllm", "sglang"]
batch = {batches}
prompt_tokens = {lengths}
new_tokens = [64, 128, 256, 512, 1024]

[[claim]]
name = "falls"
along = "batch"
shape = "falls"
"""
KILLED = """\
[axes]
model = "llama-3.1-8b"
engine = ["vllm", "transformers"]
batch = {batches}

[limits]
min_rounds = 8
max_rounds = 8
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    missed = []
    for name, seconds, goal in (
        ("examples/suites, --collect-only", collect(ROOT / "examples" / "suites"), 2.0),
        ("10,000 cells, --collect-only", ten_thousand(), 10.0),
    ):
        print(f"{name}: {seconds:.2f} s (goal: under {goal:g} s)", flush=True)
        missed += [name] * (seconds >= goal)
    missed += killed(arguments.kills, random.Random(arguments.seed))
    for each in missed:
        print(f"MISSED: {each}")
    return int(bool(missed))


def collect(folder: Path) -> float:
    """Seconds that pytest says collection has taken; the process is ended by its end alone."""
    done = subprocess.run(
        [*PYTEST, "--collect-only", "-q", str(folder)], capture_output=True, text=True, check=True, cwd=folder
    )
    found = re.search(r"tests collected in ([0-9.]+)s", done.stdout)
    assert found is not None, done.stdout[-500:]
    return float(found[1])


def ten_thousand() -> float:
    """Collect 4 x 2 x 25 x 10 x 5 cells."""
    with tempfile.TemporaryDirectory() as name:
        text = CELLS.format(batches=list(range(1, 26)), lengths=[100 * at for at in range(1, 11)])
        (Path(name) / "large.energy.toml").write_text(text)
        (Path(name) / "pytest.ini").write_text("[pytest]\n")
        return collect(Path(name))


def killed(kills: int, lot: random.Random) -> list[str]:
    """Kill a sweep at random moments and resume it each time; say what is wrong in the end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "killed.energy.toml").write_text(KILLED.format(batches=list(range(1, 51))))
        (folder / "pytest.ini").write_text("[pytest]\n")
        command = [*PYTEST, *SIMULATED, "--energy-resume", "--energy-json=record.json", "-q"]
        done: list[tuple[str, ...]] = [()]
        for _ in range(kills):
            child = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, start_new_session=True)
            # Some before the first cell, some between, some within.
            time.sleep(lot.uniform(2.0, 7.0))
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            done.append(finished(folder))
            print(f"killed with {len(done[-1])} of 100 cells finished", flush=True)
        wrong = [
            "a finished cell was lost, or measured again"
            for before, after in pairwise(done)
            if after[: len(before)] != before
        ]
        tables = []
        for _ in range(2):
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            measured = json.loads((folder / "record.json").read_text())["measurements"]
            tables.append(
                sorted((one["test"], one["figures"]["joules_per_token"]["value"]) for one in measured)
            )
        lines = finished(folder)
        print(f"after {kills} kills: {len(lines)} cells, each once: {len(set(lines)) == len(lines) == 100}")
        if not len(set(lines)) == len(lines) == 100:
            wrong.append("a cell was measured twice, or is missing")
        if tables[0] != tables[1] or len(tables[0]) != 100:
            wrong.append("the table is not the same")
        return wrong


def finished(folder: Path) -> tuple[str, ...]:
    """Return the cells of the journal, a line each."""
    paths = [path for path in folder.glob(".tokenpower/sweeps/killed-*.jsonl") if "previous" not in path.name]
    if not paths:
        return ()
    journal = read_journal(paths[0].read_bytes())
    lines = paths[0].read_bytes()[: journal.good_bytes].splitlines()[1:]
    return tuple(json.loads(line)["measurement"]["test"] for line in lines)


if __name__ == "__main__":
    raise SystemExit(main())
