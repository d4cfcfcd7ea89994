"""IPMI DCMI: the power of the whole machine as its BMC sees it, through the ipmitool program."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from pytest_tokenpower.core.credentials import shown_command
from pytest_tokenpower.errors import MeterError, MeterUnavailable
from pytest_tokenpower.meters.adapters.no_reading import is_watts
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.types import Device, PowerSamples, Reading

BMC_RESOLUTION_MS = 60_000.0
"""Windows shorter than this are not resolved by a BMC: it averages slowly and reads late.

One GH200's BMC answered 515 W fifteen times, a second apart, while its GPU went from 396 to 680 W.
"""

_PERMISSION = (
    "give your group the device: sudo chgrp $(id -gn) /dev/ipmi0 && sudo chmod g+rw /dev/ipmi0"
    ' (to keep it: KERNEL=="ipmi[0-9]*", GROUP="<group>", MODE="0660" in /etc/udev/rules.d/90-ipmi.rules)'
)


@dataclass(frozen=True)
class DcmiPower:
    """What ``ipmitool dcmi power reading`` printed.

    ``active`` is what the BMC says of its state. Some say "deactivated" and read all the same: the reading decides.
    """

    watts: int
    active: bool


class IpmiMeter:
    """``ipmitool dcmi power reading`` once a second: the instantaneous reading, as points, scope ``node``.

    ``command`` is the program and the options before ``dcmi``: ``("sudo", "-n", "ipmitool")``, or
    ``("ipmitool", "-I", "lanplus", "-H", host, "-U", user, "-E")`` for another machine's BMC.
    A call that takes longer than ``timeout_s`` (at most 5 s) is killed and reported.
    """

    name = "ipmi"
    poll_interval_s = 1.0

    def __init__(self, command: Sequence[str] = ("ipmitool",), timeout_s: float = 4.0) -> None:
        self._command = (*command, "dcmi", "power", "reading")
        self._timeout_s = min(timeout_s, 5.0)
        self._stuck: subprocess.Popen[str] | None = None

    def open(self, clock: Clock) -> Sequence[Device]:
        """Take a first reading; raises MeterUnavailable with what to do."""
        try:
            power = self._read()
        except MeterError as error:
            raise MeterUnavailable(str(error)) from error
        return [
            Device(
                id="ipmi-dcmi",
                scope="node",
                name="BMC power reading (IPMI DCMI)",
                meter=self.name,
                provenance="measured",
                key_facts={"interface": "ipmi-dcmi"},
                facts={
                    # The "sampling period" that is printed is that of the statistics: since they were last reset.
                    "resolution_ms": BMC_RESOLUTION_MS,
                    "refresh_ms": self.poll_interval_s * 1e3,
                    "state": "activated" if power.active else "deactivated, and reads",
                    "command": self._shown,
                },
                latency_s=self._timeout_s,
            )
        ]

    def poll(self, clock: Clock) -> Sequence[Reading]:
        """One point; raises MeterError."""
        t0_ns = clock.monotonic_ns()
        power = self._read()
        t1_ns = clock.monotonic_ns()
        return [Reading("ipmi-dcmi", power=PowerSamples.point(t0_ns, t1_ns, power.watts * 1000))]

    def close(self) -> None:
        """Let go of a command that would not die."""
        if self._stuck is not None:
            self._stuck.poll()
            self._stuck = None

    def _read(self) -> DcmiPower:
        output = self._run()
        try:
            power = parse_dcmi(output)
        except ValueError as error:
            raise MeterError(f"IPMI: {error} in the output of `{self._shown}`: {_line(output)}") from error
        if is_watts(power.watts):
            return power
        what = f"reads {power.watts} W, which is no reading"
        if not power.active:
            what += (
                ", and says that power measurement is not active; switch it on in the BMC's settings"
                " (power management, DCMI)"
            )
        raise MeterError(f"IPMI: `{self._shown}` {what}")

    @property
    def _shown(self) -> str:
        return shown_command(self._command)

    def _run(self) -> str:
        if self._stuck is not None:
            if self._stuck.poll() is None:
                raise MeterError(f"IPMI: an earlier `{self._shown}` still hangs (process {self._stuck.pid})")
            self._stuck = None
        try:
            # Its own session, so that what it started ends with it.
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env={**os.environ, "LC_ALL": "C"},
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise MeterError(
                f"IPMI: there is no program {self._command[0]}: install ipmitool, or give its path"
            ) from error
        except OSError as error:
            raise MeterError(f"IPMI: {self._command[0]} cannot be started: {error.strerror}") from error
        try:
            output, complaint = process.communicate(timeout=self._timeout_s)
        except subprocess.TimeoutExpired as error:
            self._kill(process)
            raise MeterError(
                f"IPMI: `{self._shown}` gave no answer within {self._timeout_s:g} s and was killed"
                " (a BMC that is busy or hangs: ipmitool mc reset cold restarts it)"
            ) from error
        if process.returncode != 0:
            raise MeterError(
                f"IPMI: `{self._shown}` failed with status {process.returncode}:"
                f" {_line(complaint or output)}{_remedy(complaint + output)}"
            )
        return output

    def _kill(self, process: subprocess.Popen[str]) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        try:
            process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            # In the kernel, waiting for the BMC: it cannot be killed, so it is not waited for.
            self._stuck = process


def parse_dcmi(output: str) -> DcmiPower:
    """Read the output of ``ipmitool dcmi power reading``; raises ValueError that says what is missing."""
    reading = re.search(r"^\s*Instantaneous power reading\s*:\s*(-?\d+)\s*Watts", output, re.MULTILINE)
    state = re.search(r"^\s*Power reading state is\s*:\s*(\w+)", output, re.MULTILINE)
    active = state is None or state[1].lower() == "activated"
    if reading is None:
        if not active:
            return DcmiPower(0, active=False)
        raise ValueError("no 'Instantaneous power reading'")
    return DcmiPower(int(reading[1]), active)


def _remedy(complaint: str) -> str:
    if "Invalid command" in complaint:
        return "; this BMC tells no power by DCMI: try --energy-source=redfish:https://BMC"
    if "Permission denied" in complaint:
        return f"; {_PERMISSION}"
    if "Could not open device" in complaint:
        # ipmitool reports only the last path that it tried, which hides a refused one.
        if os.path.exists("/dev/ipmi0") and not os.access("/dev/ipmi0", os.R_OK | os.W_OK):
            return f"; /dev/ipmi0 may not be opened: {_PERMISSION}"
        return "; is there a BMC? sudo modprobe ipmi_devintf ipmi_si makes /dev/ipmi0"
    return ""


def _line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:200] if lines else "no output"
