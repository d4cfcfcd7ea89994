"""IPMI DCMI through a script that plays ipmitool."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from pytest_tokenpower.errors import MeterError, MeterUnavailable
from pytest_tokenpower.meters.adapters.ipmi import DcmiPower, IpmiMeter, parse_dcmi
from pytest_tokenpower.meters.clock import Clock

# The layout of ipmitool 1.8.19 (lib/ipmi_dcmi.c).
OUTPUT = """
    Instantaneous power reading:                   245 Watts
    Minimum during sampling period:                  1 Watts
    Maximum during sampling period:                498 Watts
    Average power reading over sample period:      240 Watts
    IPMI timestamp:                           Sat Nov 22 19:41:00 2025
    Sampling period:                          00000001 Seconds.
    Power reading state is:                   activated

"""


def tool(folder: Path, script: str) -> tuple[str, ...]:
    path = folder / "ipmitool.py"
    path.write_text(script)
    return (sys.executable, "-S", str(path))


def printing(folder: Path, output: str) -> tuple[str, ...]:
    return tool(folder, f"import sys\nassert sys.argv[1:] == ['dcmi', 'power', 'reading']\nprint({output!r})")


def test_output_of_ipmitool() -> None:
    assert parse_dcmi(OUTPUT) == DcmiPower(watts=245, active=True)
    assert parse_dcmi(OUTPUT.replace("activated", "deactivated")) == DcmiPower(245, active=False)
    assert parse_dcmi("    Instantaneous power reading:  12 Watts\n") == DcmiPower(12, active=True)
    assert parse_dcmi("    Power reading state is:  deactivated\n").active is False
    with pytest.raises(ValueError, match="Instantaneous"):
        parse_dcmi("")


def test_reading(tmp_path: Path) -> None:
    meter = IpmiMeter(printing(tmp_path, OUTPUT))
    clock = Clock()
    (device,) = meter.open(clock)
    assert (device.id, device.scope, device.provenance) == ("ipmi-dcmi", "node", "measured")
    assert (device.facts["resolution_ms"], device.facts["refresh_ms"]) == (60_000.0, 1000.0)
    before_ns = clock.monotonic_ns()
    (reading,) = meter.poll(clock)
    assert reading.power is not None
    assert reading.power.milliwatts.tolist() == [245_000]
    assert reading.power.held is False
    assert before_ns <= reading.power.t_ns[0] <= clock.monotonic_ns()
    meter.close()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            OUTPUT.replace(" activated", " deactivated").replace(" 245 ", " 0 "),
            "reads 0 W, .* power measurement is not active; switch it on",
        ),
        ("    Power reading state is:  deactivated\n", "power measurement is not active; switch it on"),
        (OUTPUT.replace(" 245 ", " 65535 "), "reads 65535 W, which is no reading"),
        (OUTPUT.replace(" 245 ", " -1 "), "reads -1 W, which is no reading"),
        (OUTPUT.replace(" 245 ", " 0 "), "reads 0 W, which is no reading"),
        ("garbled\nmore", "no 'Instantaneous power reading' in the output of .*: garbled"),
        ("", "no output"),
    ],
)
def test_output_that_is_no_reading(tmp_path: Path, output: str, message: str) -> None:
    with pytest.raises(MeterUnavailable, match=message):
        IpmiMeter(printing(tmp_path, output)).open(Clock())


@pytest.mark.parametrize(
    "period", ["00000001 Seconds", "00123893 Seconds", "00000005 Minutes", "00000002 Days"]
)
@pytest.mark.parametrize("state", ["activated", "deactivated"])
def test_neither_the_period_of_statistics_nor_the_state_decides(
    tmp_path: Path, period: str, state: str
) -> None:
    output = OUTPUT.replace("00000001 Seconds", period).replace(" activated", f" {state}")
    meter = IpmiMeter(printing(tmp_path, output))
    (device,) = meter.open(Clock())
    assert device.facts["resolution_ms"] == 60_000.0
    assert str(device.facts["state"]).startswith(state)
    (reading,) = meter.poll(Clock())
    assert reading.power is not None
    assert reading.power.milliwatts.tolist() == [245_000]


def test_a_password_of_the_command_is_not_shown(tmp_path: Path) -> None:
    command = tool(tmp_path, f"print({OUTPUT!r})")
    (device,) = IpmiMeter((*command, "-U", "me", "-P", "s3cret", "-ks3cret")).open(Clock())
    assert str(device.facts["command"]).endswith("-U me -P *** -k*** dcmi power reading")
    failing = tool(tmp_path, "import sys\nsys.exit('no')")
    with pytest.raises(MeterUnavailable) as refused:
        IpmiMeter((*failing, "-P", "s3cret")).open(Clock())
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("complaint", "message"),
    [
        (
            "Could not open device at /dev/ipmi0 or /dev/ipmi/0 or /dev/ipmidev/0: No such file or directory",
            "status 1: Could not open device .*modprobe ipmi_devintf",
        ),
        (
            "Could not open device at /dev/ipmi0 or /dev/ipmi/0 or /dev/ipmidev/0: Permission denied",
            r"sudo chgrp \$\(id -gn\) /dev/ipmi0 .*udev",
        ),
        (
            "DCMI request failed because: Invalid command (c1)",
            r"Invalid command \(c1\); this BMC .* try --energy-source=redfish",
        ),
    ],
)
def test_complaints_are_passed_on_with_a_remedy(tmp_path: Path, complaint: str, message: str) -> None:
    command = tool(tmp_path, f"import sys\nsys.exit({complaint!r})")
    with pytest.raises(MeterUnavailable, match=message):
        IpmiMeter(command).open(Clock())


def test_no_ipmitool() -> None:
    with pytest.raises(MeterUnavailable, match="no program no-such-ipmitool: install ipmitool"):
        IpmiMeter(("no-such-ipmitool",)).open(Clock())


def test_a_hanging_tool_is_killed_with_its_children(tmp_path: Path) -> None:
    """The child would hold the pipes open for a minute; the poll ends at its limit."""
    pids = tmp_path / "pids"
    command = tool(
        tmp_path,
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pids)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)\n",
    )
    meter = IpmiMeter(command, timeout_s=0.8)
    # On a busy machine the tool itself may not have started within its limit.
    while not pids.exists():
        with pytest.raises(MeterError, match=r"no answer within 0.8 s and was killed"):
            meter.poll(Clock())
    child = Path(f"/proc/{pids.read_text()}/stat")
    deadline = time.monotonic() + 60
    while child.exists() and ") Z " not in child.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not child.exists() or ") Z " in child.read_text()
    meter.close()


def test_timeout_is_at_most_five_seconds() -> None:
    assert IpmiMeter(timeout_s=60)._timeout_s == 5.0
