"""Which meters stand behind `--energy-source`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pytest_tokenpower.errors import MeterUnavailable, UsageError
from pytest_tokenpower.telemetry.collector import Collector
from pytest_tokenpower.telemetry.values import Device, Meter

SOURCES = ("auto", "nvml", "rapl", "model", "simulated", "simulated:SCENARIO.json", "replay:PATH")


def meters_for(source: str) -> Sequence[Meter]:
    """The meters of a source by name; raises UsageError that lists the valid names."""
    name, _, argument = source.partition(":")
    if name == "nvml" and not argument:
        from pytest_tokenpower.telemetry.meters.nvml import NvmlMeter

        return [NvmlMeter(visible=os.environ.get("CUDA_VISIBLE_DEVICES"))]
    if name == "rapl" and not argument:
        from pytest_tokenpower.telemetry.meters.rapl import RaplMeter

        return [RaplMeter()]
    if name == "model" and not argument:
        from pytest_tokenpower.telemetry.meters.cpu_model import CpuModelMeter

        return [CpuModelMeter()]
    if name == "simulated":
        from pytest_tokenpower.telemetry.meters.nvml import NvmlMeter
        from pytest_tokenpower.telemetry.meters.simulated import SimulatedBoards
        from pytest_tokenpower.telemetry.meters.simulated_scenario import load_scenario

        boards = SimulatedBoards(load_scenario(argument)) if argument else SimulatedBoards()
        return [NvmlMeter(boards, provenance="simulated")]
    raise UsageError(f"--energy-source={source}: the valid sources are {', '.join(SOURCES)}")


def start(source: str, meters: Sequence[Meter] | None = None) -> tuple[Collector, Sequence[Device]]:
    """Open the source's meters (or those given for it) and begin to collect.

    ``auto`` takes the best real meter: NVML, then RAPL. Raises MeterUnavailable with the reason of each.
    """
    if source != "auto" or meters is not None:
        collector = Collector(meters if meters is not None else meters_for(source))
        return collector, collector.start()
    reasons = []
    for candidate in ("nvml", "rapl"):
        collector = Collector(meters_for(candidate))
        try:
            return collector, collector.start()
        except MeterUnavailable as error:
            reasons.append(f"{candidate}: {error}")
    raise MeterUnavailable("no energy meter on this machine. " + "; ".join(reasons))
