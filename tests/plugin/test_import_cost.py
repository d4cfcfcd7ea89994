"""What every pytest run pays for the plugin: nothing heavy is imported before an energy test needs it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.support.projects import ALONE

HEAVY = frozenset(
    ["numpy", "scipy", "pynvml", "torch", "msgspec", "tabulate", "httpx", "vllm", "transformers"]
)


def imported(pytester: pytest.Pytester, *arguments: str) -> set[str]:
    """Return what a run of pytest imports."""
    result = pytester.run(sys.executable, "-X", "importtime", "-m", "pytest", *ALONE, *arguments)
    assert result.ret == 0
    return set(re.findall(r"^import time:.*\|\s+([\w.]+)$", result.stderr.str(), re.MULTILINE))


@pytest.fixture
def plain(pytester: pytest.Pytester) -> Path:
    """Return a project that has a budget and no energy test."""
    return pytester.makepyfile(
        "import pytest\n\n@pytest.mark.power_budget(joules=3, regression='2%')\ndef test_it():\n    pytest.skip()\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["--version", "--version"], ["--help"], ["-q"], ["-q", "--energy-source=nvml"]],
    ids=" ".join,
)
def test_without_energy_tests_nothing_heavy_is_imported(
    pytester: pytest.Pytester, plain: Path, arguments: list[str]
) -> None:
    modules = imported(pytester, *arguments)
    assert not {module.partition(".")[0] for module in modules} & HEAVY
    # A bare --version loads no plugin at all since pytest 9.
    bare = arguments == ["--version"] and pytest.version_tuple >= (9,)
    assert ("pytest_tokenpower.plugin.options" in modules) is not bare


def test_an_energy_test_imports_no_engine(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import sys, time\n\n"
        "def test_it(energy):\n"
        "    with energy.measure() as window:\n"
        "        time.sleep(0.15)\n"
        "        window.tokens(prompt=0, generated=1)\n"
        "    assert 'numpy' in sys.modules\n"
        "    assert not {'torch', 'vllm', 'transformers', 'httpx'} & set(sys.modules)\n"
    )
    result = pytester.runpytest_subprocess("--energy-source=simulated", *ALONE)
    result.assert_outcomes(passed=1)
