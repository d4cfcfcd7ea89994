"""Checks of a test's word against the engine's own: that its host is measured, and that it runs as declared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.engines.protocol import EngineIdentity
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.meters.types import Device

LOCAL_METERS = frozenset({"nvml", "amd", "intel", "jetson", "rapl", "hwmon", "ipmi", "cpu-model"})
"""Meters (``Device.meter``) of the machine that the tests run on. Others are named by their user, or added by a hook,
and may be any machine's."""


def require_local_meter(test: str, workload: object, devices: Sequence[Device]) -> None:
    """Raise UsageError where a workload's engine is on another machine, and a device of the figure is on this one.

    Known are executions of ``energy.run``, and methods of our engines. A recording has its own machine.
    """
    while isinstance(workload, partial):
        workload = workload.func
    host = getattr(getattr(workload, "__self__", workload), "remote_host", None)
    if not isinstance(host, str):
        return
    here = sorted(
        {each.meter for each in devices if each.meter in LOCAL_METERS and each.provenance != "replayed"}
    )
    if here:
        raise UsageError(
            f"{test}: the endpoint {host} is another machine, and {', '.join(here)} measures this one: name a meter of "
            "that machine (--energy-source=remote:URL of a tokenpower serve-meter there, prometheus:URL or redfish:URL)"
        )


def is_benchmark(fn: object) -> bool:
    """Whether something is the fixture of pytest-benchmark, or a method of it."""
    return type(getattr(fn, "__self__", fn)).__module__.partition(".")[0] == "pytest_benchmark"


def require_workload(test: str, benchmark: object, args: Sequence[object]) -> None:
    """Raise UsageError where pytest-benchmark is not simply called with a workload."""
    if hasattr(benchmark, "__self__") or not args or not callable(args[0]):
        raise UsageError(
            f"{test}: energy(benchmark, fn, ...) takes the benchmark fixture itself and a workload; for "
            "benchmark.pedantic call energy(fn, ...) first, and then benchmark.pedantic(fn, ...)"
        )


_SPELLINGS = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
    "none": None,
}


def declared_config(declared: Mapping[str, Fact], identity: EngineIdentity | None) -> dict[str, Fact]:
    """Return the engine's own values of the axes that a test declares, for the key.

    Raises UsageError for an axis that the engine does not report, and where it reports something else.
    """
    if declared and identity is None:
        raise UsageError(
            f"energy.declare({_said(declared)}): nothing is known of the engine behind this workload: measure with "
            "energy.run(engine, workload), or energy(llm.generate, ...) with a method of the engine itself"
        )
    axes: dict[str, Fact] = {}
    for name, said in declared.items():
        assert identity is not None
        known = {**identity.facts, **identity.axes}
        if name not in known:
            raise UsageError(
                f"energy.declare({name}={said!r}): the {identity.engine} engine reports no such axis; it reports "
                f"{', '.join(sorted(identity.axes))} and {', '.join(sorted(identity.facts)) or 'no facts'}"
            )
        if _plain(said) != _plain(known[name]):
            raise UsageError(
                f"energy.declare({name}={said!r}): the {identity.engine} engine runs with {name}={known[name]!r}: "
                "correct the test or the engine's options"
            )
        axes[name] = known[name]
    return axes


def _plain(value: Fact) -> Fact:
    if not isinstance(value, str):
        return value
    word = value.lower().removeprefix("torch.")
    return _SPELLINGS.get(word, word)


def _said(declared: Mapping[str, Fact]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in declared.items())
