"""`tokenpower models`: the model registry, and what of it fits this machine or another."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytest_tokenpower.core.text import table_lines
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.models.architecture import WEIGHT_BITS, dtype_name
from pytest_tokenpower.models.fit import gpus, system_memory
from pytest_tokenpower.models.memory import (
    CONTEXT_TOKENS,
    GIB,
    RESERVE,
    kv_bytes,
    kv_bytes_per_token,
    minimum_gpus,
    needed_bytes,
    parallel_sizes,
    weight_bytes,
)
from pytest_tokenpower.models.registry import MODELS_VARIABLE, Model, find_model, load_models


@dataclass(frozen=True)
class _Machine:
    """Memory of one device, bytes, how many of them there are (None: not said), and what they are."""

    memory: int
    count: int | None
    text: str
    cpu: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, which machine, which dtype."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="one model in detail (a name or a hub id)")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON; sizes in bytes")
    parser.add_argument(
        "--memory",
        type=_gibibytes,
        metavar="GIB",
        help="judge for GPUs with this much memory each (default: this machine's GPUs, else its own memory)",
    )
    parser.add_argument(
        "--dtype",
        metavar="DTYPE",
        help=f"of the weights: {', '.join(WEIGHT_BITS)} (default: each model's own)",
    )
    parser.add_argument(
        "--file", metavar="PATH", help=f"a TOML file of further models (default: {MODELS_VARIABLE}'s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the list or the model. Raises UsageError for an unknown model or dtype, or a file that is wrong."""
    dtype = None if arguments.dtype is None else dtype_name(arguments.dtype)
    machine = _machine(arguments.memory)
    if arguments.name is not None:
        model = find_model(arguments.name, arguments.file)
        facts = _facts(model, machine, dtype)
        if dtype is not None and facts["weight_bytes"] is None:
            weight_bytes(model.architecture, dtype)  # says why not
        print(json.dumps(facts, indent=1) if arguments.json else "\n".join(_one(model, facts, machine)))
        return 0
    rows = [_facts(model, machine, dtype) for model in load_models(arguments.file).values()]
    if arguments.json:
        print(json.dumps({"device_memory_bytes": machine.memory, "models": rows}, indent=1))
    else:
        print(_table(rows, machine))
    return 0


def _gibibytes(text: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: GiB of one GPU are wanted, such as 80")
    return int(value * GIB)


def _machine(memory: int | None) -> _Machine:
    if memory is not None:
        return _Machine(memory, None, f"GPUs with {memory / GIB:.4g} GiB each")
    found = gpus()
    if not found:
        size = system_memory()
        return _Machine(size, 1, f"this machine: no GPU, {size / GIB:.1f} GiB of memory", cpu=True)
    least = min(gpu.total for gpu in found)
    names = ", ".join(dict.fromkeys(gpu.name for gpu in found))
    return _Machine(least, len(found), f"this machine: {len(found)}× {names}, {least / GIB:.1f} GiB each")


def _facts(model: Model, machine: _Machine, dtype: str | None) -> dict[str, Any]:
    """Return what is known of the model, and what it needs; None where a dtype does not apply to it."""
    architecture, shape = model.architecture, model.architecture.shape
    chosen = dtype or model.dtype
    try:
        weights = weight_bytes(architecture, chosen) + 2 * model.other
    except UsageError:
        weights = None
    wanted = None
    if weights is not None and machine.cpu:
        whole = needed_bytes(architecture, 1, chosen, model.other)
        wanted = 1 if whole <= machine.memory * (1 - RESERVE) else None
    elif weights is not None:
        wanted = minimum_gpus(architecture, machine.memory, chosen, model.other)
    return {
        "name": model.name,
        "hub": model.hub,
        "model_type": shape.family,
        "parameters": architecture.parameters + model.other,
        "active_parameters": architecture.active_parameters + model.other,
        "dtype": chosen,
        "weight_bytes": weights,
        "kv_bytes_per_token": kv_bytes_per_token(architecture),
        "max_positions": architecture.max_positions,
        "minimum_devices": wanted,
        "fits": wanted is not None and (machine.count is None or wanted <= machine.count),
    }


def _table(rows: Sequence[dict[str, Any]], machine: _Machine) -> str:
    head = ["model", "parameters", "active", "weights", "GiB", "KV KiB/token", "context", _column(machine)]
    lines = [
        [
            row["name"],
            _billions(row["parameters"]),
            "" if row["active_parameters"] == row["parameters"] else _billions(row["active_parameters"]),
            row["dtype"],
            "" if row["weight_bytes"] is None else f"{row['weight_bytes'] / GIB:.1f}",
            f"{row['kv_bytes_per_token'] / 1024:.1f}",
            row["max_positions"] or "",
            _verdict(row, machine),
        ]
        for row in rows
    ]
    align = ("left", "right", "right", "left", "right", "right", "right", "right")
    table = "\n".join(table_lines(lines, head, align))
    beside = (
        f"weights, {CONTEXT_TOKENS} tokens of KV cache in bf16, and {RESERVE:.0%} of the memory kept free"
    )
    return f"{machine.text}; fits: {beside}\n\n{table}"


def _column(machine: _Machine) -> str:
    return "fits" if machine.cpu else "GPUs"


def _verdict(row: dict[str, Any], machine: _Machine) -> str:
    if row["weight_bytes"] is None:
        return f"no {row['dtype']}"
    if machine.cpu:
        return "yes" if row["fits"] else "no"
    if row["minimum_devices"] is None:
        return "none"
    return str(row["minimum_devices"]) if row["fits"] else f"{row['minimum_devices']} of {machine.count}"


def _one(model: Model, facts: dict[str, Any], machine: _Machine) -> list[str]:
    architecture, shape = model.architecture, model.architecture.shape
    lines = [model.name]

    def say(label: str, text: str) -> None:
        if text:
            lines.append(f"  {label:<12} {text}")

    say("hub", model.hub or "")
    say("parameters", f"{facts['parameters']:,}")
    if facts["active_parameters"] != facts["parameters"]:
        experts = shape.experts
        share = "" if experts is None else f" ({experts.per_token} of {experts.count} experts a token)"
        say("active", f"{facts['active_parameters']:,}{share}")
    say("outside", f"{model.other:,} of them are not the decoder's" if model.other else "")
    say("layers", f"{shape.layers}, hidden size {shape.hidden}, vocabulary {shape.vocab}")
    if shape.latent is None:
        say("attention", f"{shape.heads} heads of {shape.head_dim}, {shape.kv_heads} for keys and values")
    else:
        say("attention", f"{shape.heads} heads, latent: {shape.latent.cached} values cached in a layer")
    windows = sorted({window for window in shape.windows if window is not None})
    if windows and windows[0] < (architecture.max_positions or math.inf):
        slides = sum(window is not None for window in shape.windows)
        say("windows", f"{slides} of {shape.layers} layers reach back {windows[0]} tokens")
    for dtype in dict.fromkeys((model.dtype, "bf16", "fp8", "int4")):
        size = _gib(weight_bytes(architecture, dtype) + 2 * model.other)
        say("weights" if dtype == model.dtype else "", f"{size} in {dtype}")
    longest = architecture.max_positions or CONTEXT_TOKENS
    say(
        "KV cache",
        f"{facts['kv_bytes_per_token'] / 1024:.1f} KiB a token in bf16, "
        f"{_gib(kv_bytes(architecture, longest))} for {longest} tokens",
    )
    say("parallel", "tensor parallel over " + ", ".join(str(size) for size in parallel_sizes(architecture)))
    say("fits", _fits(facts, machine))
    say("source", model.source)
    say("note", model.note)
    return lines


def _fits(facts: dict[str, Any], machine: _Machine) -> str:
    where, dtype, wanted = machine.text, facts["dtype"], facts["minimum_devices"]
    if machine.cpu:
        return f"{'yes' if facts['fits'] else 'no'}, in {dtype}; {where}"
    if wanted is None:
        return f"no number of GPUs that it divides by is enough, in {dtype}; {where}"
    few = "" if facts["fits"] else f", of which there are {machine.count}"
    return f"on {wanted} GPU{'s' if wanted > 1 else ''}{few}, in {dtype}; {where}"


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
