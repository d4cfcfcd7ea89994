"""Which meters stand behind `--energy-source`, and how they are opened beside each other."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, cast

from pytest_tokenpower.core.credentials import without_credentials
from pytest_tokenpower.core.types import Scope
from pytest_tokenpower.errors import MeterError, MeterUnavailable, UsageError
from pytest_tokenpower.meters.accelerators import CPU_ALONE, find_accelerator
from pytest_tokenpower.meters.collector import Collector
from pytest_tokenpower.meters.scopes import SCOPES, default_scope
from pytest_tokenpower.meters.types import Device, Meter

if TYPE_CHECKING:
    from pytest_tokenpower.meters.adapters.prometheus import Unit

SOURCES = (
    "auto",
    "nvml",
    "amd",
    "rapl",
    "hwmon",
    "intel",
    "jetson",
    "ipmi",
    "redfish or redfish:URL",
    "prometheus or prometheus:URL",
    "trtllm or trtllm:URL",
    "remote:URL",
    "ray or ray:SOURCE",
    "model",
    "ecologits:PROVIDER/MODEL",
    "simulated",
    "simulated:SCENARIO.json",
    "replay:PATH",
)

MAY_HAVE: Mapping[str, frozenset[Scope]] = {
    "nvml": frozenset({"gpu", "module"}),
    "amd": frozenset({"gpu"}),
    "intel": frozenset({"gpu"}),
    "jetson": frozenset({"module"}),
    "trtllm": frozenset({"gpu"}),
    "simulated": frozenset({"gpu", "module"}),
    "model": frozenset({"cpu"}),
    "rapl": frozenset({"cpu", "dram", "node"}),
    "ipmi": frozenset({"node"}),
    "redfish": frozenset({"node"}),
}
"""The scopes of a source's devices; what is not listed may have any."""

_SIDE_BY_SIDE = frozenset({"nvml", "amd", "intel"})
"""Sources whose devices of one scope are different things: boards of several makers."""

_MADE_AS_THEY_ARE = {
    "amd": "amd.AmdMeter",
    "intel": "intel_gpu.IntelGpuMeter",
    "jetson": "jetson.JetsonMeter",
    "rapl": "rapl.RaplMeter",
    "hwmon": "hwmon.HwmonMeter",
    "ipmi": "ipmi.IpmiMeter",
    "model": "cpu_model.CpuModelMeter",
}
_MADE_WITH_URL = {"trtllm": "trtllm.TrtllmMeter", "redfish": "redfish.RedfishMeter"}
"""The adapters of sources whose meter takes nothing, or a URL."""

_NEXT_PART = re.compile(r",\s*(?=[a-z][\w-]*\s*(?:[:,]|$))")

Extra = Callable[[str], Sequence[Meter] | None]


@dataclass(frozen=True)
class RunningMeters:
    """Running meters; ``notes`` say of each source that could be done without why it did not open."""

    collector: Collector
    devices: Sequence[Device]
    notes: Mapping[str, str] = field(default_factory=dict)


def parts_of(source: str) -> tuple[str, ...]:
    """``"nvml,redfish:https://bmc"`` as its sources; raises UsageError for an empty or a doubled one."""
    parts = tuple(part.strip() for part in _NEXT_PART.split(source))
    for part in parts:
        if not part or part.startswith(",") or part.endswith(",") or parts.count(part) > 1:
            raise UsageError(
                f"--energy-source={without_credentials(source)}: must name sources once each, with a comma between "
                "them, such as nvml,rapl"
            )
        if part.partition(":")[0] == "replay" and len(parts) > 1:
            raise UsageError(
                f"--energy-source={without_credentials(source)}: a replay stands alone, it has all its devices"
            )
    return parts


def meters_for(source: str) -> Sequence[Meter]:
    """Return the meters of one source by name; raises UsageError that lists the valid names."""
    name, _, argument = source.partition(":")
    if name == "nvml" and not argument:
        from pytest_tokenpower.meters.adapters.nvml.meter import NvmlMeter

        return [NvmlMeter(visible=os.environ.get("CUDA_VISIBLE_DEVICES"))]
    if name in _MADE_AS_THEY_ARE and not argument:
        return [_meter(_MADE_AS_THEY_ARE[name])()]
    if name in _MADE_WITH_URL:
        return [_meter(_MADE_WITH_URL[name])(argument or None)]
    if name == "prometheus":
        return [_prometheus(argument or None)]
    if name == "remote":
        from pytest_tokenpower.meters.adapters.served import HttpTransport
        from pytest_tokenpower.meters.remote import RemoteMeter

        transport = HttpTransport(argument or None)
        return [RemoteMeter(transport.name, transport)]
    if name == "ray":
        from pytest_tokenpower.meters.adapters.ray_nodes import ray_meters

        return ray_meters(argument or "auto", start)
    if name == "simulated":
        from pytest_tokenpower.meters.adapters.nvml.library import load_nvml

        # The simulated boards speak through it.
        load_nvml()
        from pytest_tokenpower.meters.adapters.nvml.meter import NvmlMeter
        from pytest_tokenpower.meters.simulation.library import SimulatedBoards
        from pytest_tokenpower.meters.simulation.scenario import Board, Scenario, load_scenario

        if argument == "virtual":
            # Without noise its ring would stand still, which no board's does, and what stands still is mistrusted.
            boards = SimulatedBoards(Scenario(clock="virtual", boards=(Board(ring_noise_share=0.005),)))
        else:
            boards = SimulatedBoards(load_scenario(argument)) if argument else SimulatedBoards()
        meter = NvmlMeter(boards, provenance="simulated", clock=boards.clock)
        if argument == "virtual":
            # As rarely as a ring of 2.36 s allows: on this time nobody comes late, and days are to pass.
            meter.poll_interval_s = 2.0
        return [meter]
    if name in ("replay", "ecologits"):
        raise UsageError(
            f"--energy-source={without_credentials(source)}: that measures nothing, and is for pytest alone; here "
            "something has to measure"
        )
    raise UsageError(
        f"--energy-source={without_credentials(source)}: the valid sources are {', '.join(SOURCES)}, or several with a "
        "comma between them"
    )


def _meter(place: str) -> Callable[..., Meter]:
    """Import a meter's class; only the source that is asked for is."""
    module, _, name = place.partition(".")
    made: Callable[..., Meter] = getattr(import_module(f"pytest_tokenpower.meters.adapters.{module}"), name)
    return made


def _prometheus(url: str | None) -> Meter:
    """Return the GPUs of the DCGM exporter, or what TOKENPOWER_PROMETHEUS_QUERY (_UNIT, _SCOPE) says."""
    from pytest_tokenpower.meters.adapters.prometheus import PrometheusMeter

    env = os.environ
    query = env.get("TOKENPOWER_PROMETHEUS_QUERY")
    if query is None:
        return PrometheusMeter(url, matchers=env.get("TOKENPOWER_PROMETHEUS_MATCHERS", ""))
    named = env.get("TOKENPOWER_PROMETHEUS_SCOPE", "rack")
    scope = next((scope for scope in SCOPES if scope == named), None)
    if scope is None:
        raise UsageError(f"TOKENPOWER_PROMETHEUS_SCOPE={named}: must be one of {', '.join(SCOPES)}")
    # The meter checks the unit.
    unit = cast("Unit", env.get("TOKENPOWER_PROMETHEUS_UNIT", "watts"))
    return PrometheusMeter(url, query, unit=unit, scope=scope)


def check(source: str, extra: Extra = lambda source: None) -> None:
    """Raise UsageError for a source that nobody knows, or whose file is wrong; opens no meter.

    A cluster is not asked: a process joins one only once, and a test may be about to.
    """
    if extra(source) is None:
        for part in parts_of(source):
            if part != "auto" and part.partition(":")[0] != "ray" and extra(part) is None:
                meters_for(part)


def begin(source: str, scope: Scope | None = None, extra: Extra = lambda source: None) -> RunningMeters:
    """Open the meters of a source, or of several with commas between them, and begin to collect.

    ``extra`` gives the meters of a source that others add. ``auto`` takes the best real meter of ``scope``. A
    source that the figure does not need may fail to open, which is noted: one without devices of the scope that
    was asked for (None: of GPUs, where a source may have them, else of CPUs). For the scope node all are needed.
    Raises MeterUnavailable with the reason of each, and UsageError where two sources measure the same scope.
    """
    own = extra(source)
    if own is not None:
        collector = Collector(own)
        return RunningMeters(collector, collector.start())
    parts = parts_of(source)
    collector = Collector(())
    found: dict[str, list[Device]] = {}
    notes: dict[str, str] = {}
    try:
        for part in parts:
            try:
                found[part] = _open(collector, part, scope, extra)
            except MeterError as error:
                if _needed(part, parts, scope):
                    raise
                notes[without_credentials(part)] = without_credentials(str(error))
            except ValueError as error:
                # The timeline has one row of samples a device.
                raise UsageError(f"--energy-source={without_credentials(source)}: {error}") from None
        _once_each(source, found)
    except BaseException:
        collector.stop()
        raise
    return RunningMeters(collector, [device for devices in found.values() for device in devices], notes)


def start(source: str) -> tuple[Collector, Sequence[Device]]:
    """Open a source's meters and begin to collect; raises as :func:`begin`."""
    started = begin(source)
    return started.collector, started.devices


def _open(collector: Collector, part: str, scope: Scope | None, extra: Extra) -> list[Device]:
    meters = extra(part)
    if meters is None and part == "auto":
        return _auto(collector, scope)
    chosen = meters_for(part) if meters is None else meters
    return [device for meter in chosen for device in collector.add(meter)]


def _needed(part: str, parts: Sequence[str], scope: Scope | None) -> bool:
    """Whether the figure may rest on a source that did not open."""
    if len(parts) == 1 or scope == "node":
        return True

    may_have = {each: MAY_HAVE.get(each.partition(":")[0], frozenset(SCOPES)) for each in parts}
    wanted = default_scope(frozenset[Scope]().union(*may_have.values())) if scope is None else scope
    return wanted in may_have[part]


def _once_each(source: str, found: Mapping[str, Sequence[Device]]) -> None:
    """Raise UsageError where one scope would be counted twice."""
    for scope in SCOPES:
        owners = [part for part, devices in found.items() if any(each.scope == scope for each in devices)]
        places = [{each.facts.get("node") for each in found[part] if each.scope == scope} for part in owners]
        everywhere = set().union(*places)
        apart = None not in everywhere and sum(map(len, places)) == len(everywhere)
        if len(owners) > 1 and not apart and not _SIDE_BY_SIDE.issuperset(owners):
            several = " and ".join(without_credentials(owner) for owner in owners)
            raise UsageError(
                f"--energy-source={without_credentials(source)}: {several} all measure the scope {scope}, which would "
                "be counted twice: name one of them"
            )


def _auto(collector: Collector, scope: Scope | None) -> list[Device]:
    """Return the best real meter of a scope; for the scope node whatever measures the machine or parts of it."""
    reasons: list[str] = []
    devices: list[Device] = []
    if scope in (None, "gpu", "module", "node"):
        devices += _first(collector, _gpu_sources(scope), reasons)
    if scope in (None, "gpu") and (devices or scope is None) and (board := find_accelerator()) is not None:
        own = [each for each in reasons if each.startswith(f"{board.source}: ")]
        # A display card beside it may have a meter that works.
        if own or not devices:
            raise MeterUnavailable(
                f"this machine has a GPU ({board.name}) whose energy cannot be measured. "
                f"{''.join(f'{each}. ' for each in own)}{board.remedy}. {CPU_ALONE}"
            )
    if scope in ("cpu", "dram", "node") or (scope is None and not devices):
        devices += _first(collector, ("rapl",) if scope in (None, "dram") else ("rapl", "hwmon"), reasons)
    if scope == "node" and not any(device.scope == "node" for device in devices):
        named = ("redfish",) if os.environ.get("TOKENPOWER_REDFISH_URL") else ()
        devices += _first(collector, (*named, "ipmi", *_hwmon_of_the_node()), reasons)
    if not devices:
        raise MeterUnavailable(
            "no energy meter on this machine. To try without one: --energy-source=simulated, or model for joules "
            "modelled from CPU time. What was looked for: " + "; ".join(reasons)
            if scope is None
            else f"no meter for --energy-scope={scope} on this machine. "
            + ("; ".join(reasons) or "Name it: --energy-source=prometheus:URL")
        )
    return devices


def _first(collector: Collector, names: Iterable[str], reasons: list[str]) -> Sequence[Device]:
    for name in names:
        try:
            [meter] = meters_for(name)
            return collector.add(meter)
        except MeterError as error:
            reasons.append(f"{name}: {error}")
    return ()


def _gpu_sources(scope: Scope | None) -> tuple[str, ...]:
    """Return the sources of GPUs, or of modules that hold one, in the order in which they are tried."""
    if scope == "module":
        return ("nvml", "jetson")
    return ("nvml", "amd", "intel") if scope == "gpu" else ("nvml", "amd", "intel", "jetson")


def _hwmon_of_the_node() -> tuple[str, ...]:
    """hwmon, where all it has is the machine's own power meter: its CPUs would be RAPL's once more."""
    from pytest_tokenpower.meters.adapters.hwmon import HwmonMeter
    from pytest_tokenpower.meters.clock import Clock

    meter = HwmonMeter()
    try:
        devices = meter.open(Clock())
    except MeterError:
        return ()
    meter.close()
    return ("hwmon",) if all(device.scope == "node" for device in devices) else ()
