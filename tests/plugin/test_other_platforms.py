"""Windows and macOS, imitated: the plugin loads there, energy tests skip with a reason, other tests pass."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

OTHER_PLATFORM = Path(__file__).parents[1] / "support" / "other_platform.py"
PLUGINS_OF_THE_MACHINE = (
    "cacheprovider",
    "anyio",
    "hypothesispytest",
    "platformdirs",
    "rerunfailures",
    "xdist",
)

both = pytest.mark.parametrize("platform", ["win32", "darwin"])

TESTS = """
import pytest


@pytest.mark.power_budget(joules_per_token=1, regression="3%")
def test_energy(energy):
    raise AssertionError("there is no meter: the workload must not run")


def test_plain():
    pass
"""


def run(platform: str, command: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command on an imitated platform."""
    return subprocess.run(
        [sys.executable, str(OTHER_PLATFORM), platform, command, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def run_pytest(platform: str, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a folder, without the plugins that happen to be installed."""
    # On Windows pytest's capturing of descriptors looks at the console.
    alone = (part for name in PLUGINS_OF_THE_MACHINE for part in ("-p", f"no:{name}"))
    return run(platform, "pytest", "-rs", "--capture=sys", *alone, *arguments, cwd=cwd)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project with an energy test and a plain one."""
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    (tmp_path / "test_it.py").write_text(TESTS)
    return tmp_path


@both
def test_no_module_needs_what_the_platform_lacks(platform: str, tmp_path: Path) -> None:
    done = run(platform, "import", cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr


@both
def test_the_imitation_is_blind_to_unix(platform: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import os, sys\n"
        "import pytest\n"
        "def test_it():\n"
        f"    assert sys.platform == {platform!r}\n"
        "    assert not hasattr(os, 'sched_getaffinity')\n"
        "    with pytest.raises(FileNotFoundError):\n"
        "        open('/proc/self/stat')\n"
        "    if sys.platform == 'win32':\n"
        "        with pytest.raises(ModuleNotFoundError):\n"
        "            import fcntl\n"
        "        assert not hasattr(os, 'fork')\n"
    )
    done = run_pytest(platform, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@both
def test_energy_tests_skip_with_a_reason_and_others_pass(platform: str, project: Path) -> None:
    done = run_pytest(platform, project)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "1 passed, 1 skipped" in output
    assert "no energy meter on this machine" in output
    assert f"this is {platform}" in output


@both
def test_required_hardware_fails_the_test_there_too(platform: str, project: Path) -> None:
    done = run_pytest(platform, project, "-o", "energy_require_hardware=true")
    assert done.returncode == 1
    assert "no energy meter on this machine" in done.stdout


@both
def test_the_cpu_time_model_skips_too(platform: str, project: Path) -> None:
    done = run_pytest(platform, project, "--energy-source=model")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        f"CPU model: reads the CPU clocks of processes, which needs Linux, and this is {platform}"
        in done.stdout
    )


@both
def test_the_doctor_says_of_each_meter_why_it_is_not_there(platform: str, tmp_path: Path) -> None:
    done = run(platform, "tokenpower", "doctor", "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    meters = {meter["name"]: meter for meter in json.loads(done.stdout)["meters"]}
    assert meters.keys() >= {"nvml", "amd", "rapl", "hwmon", "ipmi", "model"}
    for name, meter in meters.items():
        assert not meter["devices"]
        assert meter["verdict"].startswith("not available"), name
