"""Projects of energy tests to run pytest in, over the simulated board."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_tokenpower.core.records import RunRecord, decode_run

INI = """
[pytest]
addopts = --strict-markers --strict-config -p no:cacheprovider -p no:hypothesispytest -p no:anyio -p no:platformdirs
    -p no:asyncio -p no:benchmark -p no:check -p no:html -p no:metadata -p no:pytest_cov
filterwarnings = error
energy_source = {source}
energy_warmup_rounds = 1
{more}
"""

WORKLOADS = '''
import time

import pytest
from pytest_tokenpower import TokenCount
from pytest_tokenpower.meters.simulation.virtual_time import VIRTUAL_TIME

sleep = {sleep}
quick = pytest.mark.power_budget(min_rounds=2, max_rounds=2)


def generate(seconds=0.02, prompt=0, generated=1000, responses=1):
    """A model: its boards draw 300 W for as long as it takes."""
    sleep(seconds)
    return TokenCount(prompt, generated, responses)
'''

# Plugins that happen to be installed take longer to start than pytest, in each process that a test starts.
ALONE = tuple(
    part
    for name in ("cacheprovider", "hypothesispytest", "rerunfailures", "anyio", "platformdirs")
    for part in ("-p", f"no:{name}")
)

# Imported by the first energy test of a run; pytester would forget them after each run, and numpy does not
# survive that.
LATE_IMPORTS = (
    "pytest_tokenpower.reporting.junit",
    "pytest_tokenpower.reporting.terminal",
    "pytest_tokenpower.runner.session",
    "pytest_tokenpower.runner.fixture",
    "pytest_tokenpower.meters.adapters.cpu_model",
    "pytest_tokenpower.meters.simulation.library",
    "pytest_tokenpower.stats.temperature",
    "scipy.optimize",
    "httpcore",  # what pytester forgets, httpx holds on to: its errors would be foreign ones
    "tabulate",
)


class Project:
    """A folder of tests; runs of pytest in it have the simulated board on virtual time, unless they say otherwise."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.path = pytester.path
        self._source = "simulated:virtual"
        self.ini()
        self.file("workloads.py", WORKLOADS.format(sleep="VIRTUAL_TIME.sleep"))

    def on_machine_time(self) -> None:
        """Have the board live on the time that engines of other processes and real work take."""
        self._source = "simulated"
        self.ini()
        self.file("workloads.py", WORKLOADS.format(sleep="time.sleep"))

    def ini(self, *lines: str) -> None:
        """Write the ini file anew, with further lines."""
        self.file("pytest.ini", INI.format(source=self._source, more="\n".join(lines)))

    def file(self, name: str, text: str) -> Path:
        """Write a file of the project."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def tests(self, text: str, file: str = "test_energy.py") -> Path:
        """Write a test file that has what workloads.py offers."""
        head = "import time\n\nimport pytest\n\nfrom pytest_tokenpower import TokenCount\nfrom workloads import *\n\n"
        return self.file(file, head + text)

    def run(self, *arguments: str) -> pytest.RunResult:
        """Run pytest on the project in this process."""
        return self.pytester.runpytest_inprocess(*arguments)

    def measure(self, *arguments: str) -> tuple[pytest.RunResult, RunRecord]:
        """Run pytest and read the record of the run."""
        path = self.path / "run.json"
        result = self.run(f"--energy-json={path}", *arguments)
        return result, decode_run(path.read_bytes(), source=str(path))
