"""`tokenpower doctor`: what can be measured on this machine and how well, with a verdict per meter."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
from typing import Any

from pytest_tokenpower.analysis.meter_quality import report_of
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.meters.probe import Candidate, try_meters
from pytest_tokenpower.meters.sources import meters_for
from pytest_tokenpower.meters.types import Meter
from pytest_tokenpower.reporting.doctor import as_json, exit_code

EXIT_CODES = """\
exit codes:
  0     the meter that --energy-source=auto would take is good, or usable within the limit that is named
  1     there is no real meter, or the one that auto would take failed its checks
  2, 4  a mistake in the arguments
With --source the exit code is that source's: naming a modelled or simulated one accepts it. --allow-model
gives 0 where no real meter is found and the CPU-time model works; it does not excuse a meter that fails.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.epilog = EXIT_CODES
    parser.add_argument("--json", action="store_true", help="the same facts as one JSON object")
    parser.add_argument(
        "--source",
        metavar="SOURCE",
        help=f"examine only one of {', '.join(SUBJECTS)}, simulated, simulated:SCENARIO.json (default: the machine's)",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=10.0,
        metavar="S",
        help="how long to collect, all meters at once (default: 10, which makes 15 in all; slow meters want more)",
    )
    parser.add_argument(
        "--allow-model",
        action="store_true",
        help="exit with 0 where there is no real meter and the CPU-time model works",
    )


def run(arguments: argparse.Namespace) -> int:
    """Examine and print; returns the exit code. Raises UsageError for an unknown source or a broken scenario."""
    from pytest_tokenpower.reporting.doctor import render

    source: str | None = arguments.source
    trials, clock = try_meters(subjects_of(source), arguments.seconds)
    report = report_of(trials, clock, arguments.seconds, source)
    code = exit_code(report, allow_model=arguments.allow_model)
    if arguments.json:
        print(json.dumps(as_json(report, code), indent=1))
    else:
        print(render(report, width=min(shutil.get_terminal_size((100, 24)).columns, 120)))
    return code


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} must be seconds between 1 and 3600")
    return seconds


def _pynvml() -> Any:
    from pytest_tokenpower.meters.adapters.nvml.library import load_nvml

    return load_nvml()


def _nvml(library: Any) -> Meter:
    from pytest_tokenpower.meters.adapters.nvml.meter import NvmlMeter

    return NvmlMeter(library, visible=os.environ.get("CUDA_VISIBLE_DEVICES"))


SUBJECTS = (
    "nvml", "amd", "intel", "jetson", "rapl", "hwmon", "ipmi", "redfish", "prometheus", "trtllm", "model"
)  # fmt: skip
"""The meters of a machine, in the order in which they are shown."""


def subjects_of(source: str | None) -> list[Candidate]:
    """Return the meters to try: all of the machine's, or one source's; raises UsageError that lists the valid ones."""
    if source is None:
        return [_subject(name) for name in SUBJECTS]
    if source in SUBJECTS:
        return [_subject(source)]
    name, colon, scenario = source.partition(":")
    if name != "simulated" or (colon and not scenario):
        raise UsageError(
            f"--source={source}: the valid sources are {', '.join(SUBJECTS)}, simulated, simulated:SCENARIO.json"
        )
    # The simulated boards speak through it.
    _pynvml()
    from pytest_tokenpower.meters.adapters.nvml.meter import NvmlMeter
    from pytest_tokenpower.meters.simulation.library import SimulatedBoards
    from pytest_tokenpower.meters.simulation.scenario import Scenario, load_scenario

    played = load_scenario(scenario) if scenario else Scenario()
    return [
        Candidate(
            "simulated", lambda nvml: NvmlMeter(nvml, provenance="simulated"), lambda: SimulatedBoards(played)
        )
    ]


def _subject(name: str) -> Candidate:
    if name == "nvml":
        return Candidate(name, _nvml, _pynvml)
    return Candidate(name, lambda _: meters_for(name)[0])
