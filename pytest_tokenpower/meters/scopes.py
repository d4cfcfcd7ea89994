"""Scopes: which devices' joules make the figure, what that figure is called, and what else is measured."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pytest_tokenpower.core.types import Scope
from pytest_tokenpower.errors import MeterUnavailable
from pytest_tokenpower.meters.types import Device

SCOPES: tuple[Scope, ...] = ("gpu", "cpu", "node", "dram", "rack", "module")
"""All scopes; where none is asked for, the first of them that is measured makes the figure."""

PARTS: tuple[Scope, ...] = ("gpu", "cpu", "dram")
"""What a node consists of, but for the rest of it, which has no meter of its own."""


@dataclass(frozen=True)
class Choice:
    """``devices`` make the figure, called ``label`` in the key; ``others`` are measured along with them."""

    label: str
    devices: tuple[Device, ...]
    others: tuple[Device, ...] = ()


def default_scope(measured: Collection[Scope]) -> Scope:
    """Return the scope of the figure where none is asked for; raises ValueError where nothing is measured."""
    for scope in SCOPES:
        if scope in measured:
            return scope
    raise ValueError("no scope is measured")


def choose(devices: Sequence[Device], scope: Scope | None = None) -> Choice:
    """Return the devices of a scope (None: gpu where there is one, else cpu, else what there is).

    A node without a meter of its own is the sum of its parts, at least two of them, and is called by them:
    ``gpu+cpu, without dram and other``. Where every GPU is on a module that is measured, the modules stand for all
    those parts: ``module, without other``. Raises MeterUnavailable where the scope has no device.
    """
    measured = {device.scope for device in devices}
    if not devices:
        return Choice("", ())
    wanted = default_scope(measured) if scope is None else scope
    label: str = wanted
    counted: tuple[Scope, ...] = (wanted,)
    if wanted not in measured:
        modular = _on_modules(devices)
        counted = ("module",) if modular else tuple(part for part in PARTS if part in measured)
        if wanted != "node" or (len(counted) < 2 and not modular):
            raise MeterUnavailable(
                f"--energy-scope={wanted}: no meter of this run measures it, only "
                f"{', '.join(sorted(measured))}; {_REMEDIES[wanted]}"
            )
        absent = [part for part in PARTS if part not in counted and not modular]
        label = f"{'+'.join(counted)}, without {_listed([*absent, 'other'])}"
    return Choice(
        label,
        tuple(device for device in devices if device.scope in counted),
        tuple(device for device in devices if device.scope not in counted),
    )


def _on_modules(devices: Sequence[Device]) -> bool:
    """Whether the modules that are measured hold every GPU that is."""
    gpus = {device.id for device in devices if device.scope == "gpu"}
    return bool(gpus) and gpus == {device.gpu_id for device in devices if device.scope == "module"}


_REMEDIES: dict[Scope, str] = {
    "gpu": "--energy-source=nvml or amd does",
    "cpu": "--energy-source=rapl or hwmon does",
    "dram": "--energy-source=rapl does on machines with a counter for it",
    "module": "--energy-source=nvml does on boards that are a module with their CPU (Grace Hopper)",
    "node": "a node's meter (ipmi, redfish, hwmon) or two of its parts (nvml,rapl) would do",
    "rack": "--energy-source=prometheus does with TOKENPOWER_PROMETHEUS_QUERY",
}


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
