"""What a cell will take and whether it can run here: time, memory, and the reason why it will be skipped."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pytest_tokenpower.core.settings import DEFAULT_MIN_ROUNDS, DEFAULT_WARMUP_ROUNDS
from pytest_tokenpower.engines.registry import OPTION_OF, PACKAGES, WHOLE_BATCHES
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.models.architecture import Architecture
from pytest_tokenpower.models.fit import gpus, system_memory
from pytest_tokenpower.models.memory import GIB, RESERVE, cache_of, kv_bytes, weight_bytes, weights_of
from pytest_tokenpower.models.roofline import HOST_SECONDS, Speed, forecast
from pytest_tokenpower.suites.grid import Cell, Suite, Values
from pytest_tokenpower.suites.schema import SETTINGS

SHORTEST_ROUND_S = 0.5
"""A shorter workload is repeated within a round."""

LOAD_S = {"transformers": 15.0}
LOAD_OTHERS_S = 60.0
"""What an engine takes to start, its weights being at hand."""


@dataclass(frozen=True)
class Machine:
    """Where the cells would run: memory of each board in bytes, the memory of the host, and what can be imported.

    ``anything`` is said of engines that need none of it.
    """

    boards: Sequence[int]
    memory: int
    importable: Callable[[str], bool]
    anything: bool = False


@dataclass(frozen=True)
class Estimate:
    """Seconds of a cell's rounds, bytes on each board (None: not known), and why it will not run ("": it will)."""

    seconds: float | None
    board_bytes: int | None
    skipped: str = ""


def this_machine(*, simulated: bool = False) -> Machine:
    """Look at this machine; of simulated engines it needs nothing."""
    return Machine(
        () if simulated else tuple(gpu.total for gpu in gpus()),
        system_memory(),
        cache(lambda package: importlib.util.find_spec(package) is not None),
        anything=simulated,
    )


def load_seconds(adapter: str) -> float:
    """Seconds that an engine takes to start."""
    return LOAD_S.get(adapter, LOAD_OTHERS_S)


def estimate(suite: Suite, cell: Cell, machine: Machine) -> Estimate:
    """Foretell a cell, on boards of an H100's speed."""
    values = cell.values
    adapter = str(suite.engine(values["engine"]).adapter)
    shape = suite.architecture(values["model"])
    formats = _formats(shape, values)
    used = values.get("tensor_parallel", 1) * values.get("pipeline_parallel", 1)
    seconds = size = least = None
    if shape is not None and formats is not None:
        held = weight_bytes(shape, formats[0])
        length = (suite.longest_prompt(cell) or 1024) + values["new_tokens"]
        cache = kv_bytes(shape, length, formats[1])
        size = (held + values["batch"] * cache) // used
        # An engine with pages has sequences wait for room; the others hold the whole batch.
        least = size if adapter == "transformers" else (held + cache) // used
        seconds = _seconds(suite, shape, formats, cell, adapter, used)
    return Estimate(
        seconds,
        size,
        _impossible(suite, shape, cell, adapter)
        or ("" if machine.anything else _skipped(adapter, values, used, least, machine)),
    )


def _seconds(
    suite: Suite, shape: Architecture, formats: tuple[str, str], cell: Cell, adapter: str, used: int
) -> float:
    values = cell.values
    once = forecast(
        shape,
        batch=values["batch"],
        prompt_tokens=suite.longest_prompt(cell) or 1024,
        new_tokens=values["new_tokens"],
        dtype=formats[0],
        kv_dtype=formats[1],
        boards=used,
        speed=Speed(step_seconds=HOST_SECONDS.get(adapter, Speed.step_seconds)),
    ).seconds
    if (rate := getattr(values["arrivals"], "poisson", None)) is not None:
        once = max(once, values["batch"] / rate)
    rounds = DEFAULT_WARMUP_ROUNDS + cell.limits.get("min_rounds", DEFAULT_MIN_ROUNDS)
    return float(rounds * max(once, SHORTEST_ROUND_S))


def _formats(shape: Architecture | None, values: Values) -> tuple[str, str] | None:
    """Return how weights and cache are held; None where that is not known, and the engine has the word."""
    experts = shape is not None and shape.shape.experts is not None
    try:
        return (
            weights_of(values.get("quantization"), values.get("dtype"), experts=experts),
            cache_of(values.get("kv_cache_dtype")),
        )
    except UsageError:
        return None


def _impossible(suite: Suite, shape: Architecture | None, cell: Cell, adapter: str) -> str:
    """Why a cell runs nowhere: what its engine does not take, or its model."""
    values = cell.values
    if adapter in WHOLE_BATCHES and values["arrivals"] != "all-at-once":
        return f"the engine {adapter} takes whole batches, no arrivals"
    known: Any = OPTION_OF.get(adapter)
    asked = [name for name in SETTINGS if values.get(name) not in (None, "auto", "none", 1)]
    if known is not None and (missing := [name for name in asked if name not in known]):
        return f"the engine {adapter} takes no {', '.join(missing)}"
    most = None if shape is None else shape.max_positions
    if most is not None and (longest := suite.longest_prompt(cell)) is not None:
        length = longest + values["new_tokens"]
        if values["prompts"] == "random" and length > most:
            return f"the model takes {most} tokens, and these are {length}"
    return ""


def _skipped(adapter: str, values: Values, used: int, least: int | None, machine: Machine) -> str:
    package = PACKAGES.get(adapter)
    if package is not None and not machine.importable(package):
        return f"the engine {adapter} is not installed (no package {package})"
    if adapter == "openai":
        return ""
    if used > max(len(machine.boards), 1):
        return (
            f"needs {used} boards, there {'is' if len(machine.boards) == 1 else 'are'} {len(machine.boards)}"
        )
    memory = min(machine.boards[:used], default=machine.memory)
    if least is not None and least > memory * (1 - RESERVE):
        return f"does not fit: {least / GIB:.1f} GiB of {memory / GIB:.1f} GiB on each board"
    return ""
