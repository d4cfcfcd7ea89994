"""What the plugin adds to every start of pytest, in milliseconds, against the goal of 10.

Runs ``pytest --version`` and a run of one empty test with and without the plugin, alternately and without any other
plugin, and prints the median of the differences between neighbours. A start is CPU time (user and system), which is
all that it is on an idle machine, and what a busy one leaves alone. Bytecode is warm: the first pair is thrown away.
A bare ``pytest --version`` of pytest 9 loads no plugin at all.

    python benchmarks/import_cost.py [PAIRS]
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

GOAL_MS = 10.0
PAIRS = 40


def seconds(arguments: Sequence[str], folder: Path) -> float:
    """Return the CPU time of one start of pytest; raises CalledProcessError where it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPYCACHEPREFIX": str(folder / "bytecode"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def differences_ms(arguments: Sequence[str], pairs: int, folder: Path) -> tuple[list[float], float]:
    """With the plugin less without it, in each pair of neighbours, and the median without it."""
    found, plain = [], []
    for pair in range(pairs + 1):
        took = {}
        for on in (True, False) if pair % 2 else (False, True):
            took[on] = seconds(["-p", "pytest_tokenpower.plugin", *arguments] if on else arguments, folder)
        if pair:
            found.append(1e3 * (took[True] - took[False]))
            plain.append(1e3 * took[False])
    return found, statistics.median(plain)


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else PAIRS
    print(f"{pairs} pairs, goal: {GOAL_MS:.0f} ms on top of plain pytest")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "test_nothing.py").write_text("def test_nothing():\n    pass\n")
        for arguments in (["--version"], ["test_nothing.py"]):
            found, plain = differences_ms(arguments, pairs, folder)
            low, median, high = statistics.quantiles(found, n=4)
            print(
                f"pytest {' '.join(arguments):16} {plain:6.0f} ms, with the plugin {median:+5.1f} ms "
                f"(half of the pairs: {low:+.1f} to {high:+.1f}): {'within' if median <= GOAL_MS else 'ABOVE'} the goal"
            )


if __name__ == "__main__":
    main()
