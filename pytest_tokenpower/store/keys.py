"""The comparability key: what must be the same before two measurements are compared, and how keys differ."""

from __future__ import annotations

import math
import numbers
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.meters.types import Device

KEY_VERSION = 1
"""What the fields of a key mean; another meaning of the same figure takes another number."""

VARY = "vary"
"""Stands for a token count that differs between the executions of one run."""

LENGTHS = ("prompt_tokens", "generated_tokens")
"""Fields in which runs may differ and still be compared: at equal lengths, from the baseline's own phases."""

PROTECTED = ("schema", "provenance", "scope")
"""Fields that no ignore pattern removes: a modelled joule never meets a measured one, nor a GPU's a node's."""

CACHED_STEP = 5
"""A share of cached prompt tokens is in the key to so many percent: it differs a little from run to run."""

_AXIS = "axis."

_INT64 = range(-(2**63), 2**63)

_LABELS = {
    "schema": "record schema",
    "method": "meter method",
    "engine_version": "engine version",
    "workload": "workload fingerprint",
    "denominator": "joules are per",
    "prompt_tokens": "prompt tokens per execution",
    "cached_prompt_percent": "prompt tokens from a prefix cache, in percent",
    "generated_tokens": "generated tokens per execution",
    "responses": "responses per execution",
}

_ABSENT = {"denominator": "token", "cached_prompt_percent": "none"}
"""What a field stands for that is not in a key."""

_UNITS = {"watts": "W", "mib": "MiB", "gib": "GiB", "bytes": "B", "mhz": "MHz", "celsius": "°C"}

_ACRONYMS = {
    "gpu": "GPU",
    "cpu": "CPU",
    "dram": "DRAM",
    "mig": "MIG",
    "ecc": "ECC",
    "nvml": "NVML",
    "cuda": "CUDA",
}

_DEVICE_FIELD = re.compile(r"(gpu|cpu|dram|module|node|rack)(\d*)\.(.+)")


def make_key(
    *,
    devices: Iterable[Device],
    provenance: str,
    scope: str,
    method: str | None = None,
    engine: str | None = None,
    engine_version: str | None = None,
    model: str | None = None,
    weights: str | None = None,
    axes: Mapping[str, Fact] | None = None,
    workload: str | None = None,
    denominator: str | None = None,
    tokens: Collection[TokenCount] = (),
    cached_share: float = 0.0,
    schema: int = KEY_VERSION,
) -> dict[str, Fact]:
    """Return the flat key of a measurement, in its field names' order, equal to itself after a trip through JSON.

    ``devices`` of one scope that are alike become one group: ``gpu.count``, ``gpu.name``, ``gpu.meter`` and
    ``gpu.`` with each of their key facts; unlike ones become ``gpu1.``, ``gpu2.``. ``method`` is how the energy was
    read (power ring, energy counter, power polling): on short windows each has a bias of its own. ``weights`` says that
    they are none of a trained model (random, dummy), which draw another power. The engine's version is cut to
    major.minor; ``denominator`` is what the joules are divided by, where that is not generated tokens; ``axes``
    (dtype, quantization: what the test or the engine declares) become ``axis.NAME``; ``tokens`` are those of single
    executions of the workload (a count that is not the same in all of them says VARY), and ``cached_share`` of all
    prompt tokens came from a prefix cache. What is None is left out: unknown equals unknown only.
    Raises UsageError for a value that is no Fact.
    """
    fields: dict[str, object] = {
        "schema": schema,
        "provenance": provenance,
        "scope": scope,
        "method": method or None,
        "engine": engine,
        "engine_version": None if engine_version is None else major_minor(engine_version),
        "model": model,
        "weights": weights,
        "workload": workload,
        "denominator": None if denominator == "token" else denominator,
        **{f"{_AXIS}{name}": value for name, value in (axes or {}).items()},
    }
    if tokens:
        fields |= {
            "prompt_tokens": _constant([each.prompt for each in tokens]),
            "generated_tokens": _constant([each.generated for each in tokens]),
            "responses": _constant([each.responses for each in tokens]),
        }
    fields["cached_prompt_percent"] = round(100 * cached_share / CACHED_STEP) * CACHED_STEP or None
    fields |= _device_fields(devices, provenance)
    facts = {canonical_text(name): canonical_fact(value, name) for name, value in fields.items()}
    return {name: facts[name] for name in sorted(facts) if facts[name] is not None}


def _constant(counts: Collection[int]) -> Fact:
    """Return a count that all executions have in common, or that it varies."""
    return next(iter(counts)) if len(set(counts)) == 1 else VARY


def only_lengths(found: Collection[KeyDifference]) -> bool:
    """Whether two keys differ in nothing but the lengths of prompts and answers."""
    return bool(found) and all(each.field in LENGTHS for each in found)


def major_minor(version: str) -> str:
    """``0.26.1.dev3+g12ab`` to ``0.26``; a version that does not begin so stays whole."""
    found = re.match(r"v?(\d+\.\d+)", version)
    return found[1] if found else version


def canonical_text(text: str) -> str:
    """Text that UTF-8 can hold: lone surrogates (from undecodable file names) are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def canonical_fact(value: object, field: str) -> Fact:
    """``value`` as a Fact that equals itself after a trip through JSON.

    Whole floats become integers; what JSON or 64 bits cannot hold (nan, inf, huge integers) becomes text.
    Raises UsageError that names ``field`` for anything but text, numbers, booleans and None.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return canonical_text(value)
    if isinstance(value, numbers.Integral):
        whole = int(value)
        return whole if whole in _INT64 else str(whole)
    if isinstance(value, numbers.Real):
        number = float(value)
        if not math.isfinite(number):
            return str(number)
        return canonical_fact(int(number), field) if number.is_integer() and abs(number) < 2**53 else number
    raise UsageError(f"key field {field!r}: {value!r} is neither text, number, boolean nor None")


def _device_fields(devices: Iterable[Device], provenance: str) -> dict[str, Fact]:
    groups: Counter[tuple[str, tuple[tuple[str, Fact], ...]]] = Counter()
    for device in devices:
        facts = {
            **{name: canonical_fact(value, name) for name, value in device.key_facts.items()},
            "name": device.name,
            "meter": device.meter,
            "provenance": None if device.provenance == provenance else device.provenance,
        }
        groups[device.scope, tuple(sorted((k, v) for k, v in facts.items() if v is not None))] += 1
    kinds = Counter(scope for scope, _ in groups)
    numbers_used: Counter[str] = Counter()
    fields: dict[str, Fact] = {}
    for (scope, known), count in sorted(groups.items(), key=repr):
        numbers_used[scope] += 1
        prefix = scope if kinds[scope] == 1 else f"{scope}{numbers_used[scope]}"
        fields[f"{prefix}.count"] = count
        fields |= {f"{prefix}.{name}": value for name, value in known}
    return fields


def ignoring(key: Mapping[str, Fact], names: Iterable[str]) -> dict[str, Fact]:
    """``key`` without the fields that a name or shell pattern (``gpu.*``) in ``names`` matches.

    An axis is matched with and without its ``axis.``. A pattern never removes the :data:`PROTECTED` fields;
    naming one of them is a UsageError.
    """
    patterns = (names,) if isinstance(names, str) else tuple(names)
    for pattern in patterns:
        if not pattern or _protected(pattern):
            raise UsageError(
                f"{pattern!r} cannot be left out of the comparison: {', '.join(PROTECTED)} must always agree"
            )
    if not patterns:
        return dict(key)
    return {name: value for name, value in key.items() if not _matches(name, patterns) or _protected(name)}


def _protected(name: str) -> bool:
    return name in PROTECTED or (_DEVICE_FIELD.fullmatch(name) is not None and name.endswith(".provenance"))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    spellings = (name, name.removeprefix(_AXIS))
    return any(fnmatchcase(spelling, pattern) for pattern in patterns for spelling in spellings)


@dataclass(frozen=True)
class KeyDifference:
    """One field that differs; a side that does not have it is None."""

    field: str
    here: Fact
    there: Fact

    def __str__(self) -> str:
        unit = _unit(self.field)
        # An engine that is not quantized has no such axis, no more than a test that does not declare it.
        absent = "none declared" if self.field.startswith(_AXIS) else _ABSENT.get(self.field, "unknown")
        here, there = (absent if side is None else _show(side, unit) for side in (self.here, self.there))
        return f"{label(self.field)}: {here} here, {there} there"


def differences(here: Mapping[str, Fact], there: Mapping[str, Fact]) -> tuple[KeyDifference, ...]:
    """Where two keys differ, in the order of the field names; empty if the measurements are comparable."""
    if here == there and _kinds(here) == _kinds(there):
        return ()
    return tuple(
        KeyDifference(name, here.get(name), there.get(name))
        for name in sorted({*here, *there})
        if not _same(here.get(name), there.get(name))
    )


def describe(found: Iterable[KeyDifference]) -> str:
    """Return the differences as a sentence: ``GPU model: NVIDIA H100 here, NVIDIA A100 there; dtype: ...``."""
    # A board's name is in the key twice: as what it is called, and among its meter's facts.
    return "; ".join(dict.fromkeys(map(str, found)))


def stated(key: Mapping[str, Fact]) -> str:
    """Return the key as people read it: ``GPU memory 80 GiB, GPU model NVIDIA H100, ...``."""
    parts = (f"{label(field)} {_show(value, _unit(field))}" for field, value in key.items())
    return ", ".join(dict.fromkeys(parts))


def label(field: str) -> str:
    """Return what a key field is called in front of people: ``gpu.power_limit_watts`` is the GPU power limit."""
    if field in _LABELS:
        return _LABELS[field]
    device = _DEVICE_FIELD.fullmatch(field)
    if device is None:
        return field.removeprefix(_AXIS)
    scope, number, fact = device.groups()
    owner = _ACRONYMS.get(scope, scope) + (f" {number}" if number else "")
    if fact == "count":
        return f"number of {owner}s" if not number else f"number of devices like {owner}"
    words = "model" if fact == "name" else fact
    parts = [_ACRONYMS.get(word, word) for word in words.split("_") if word not in _UNITS]
    return " ".join([owner, *parts])


def _unit(field: str) -> str:
    return _UNITS.get(field.rsplit("_", 1)[-1], "") if _DEVICE_FIELD.fullmatch(field) else ""


def _show(value: Fact, unit: str) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value} {unit}" if unit and not isinstance(value, str) else str(value)


def _same(here: Fact, there: Fact) -> bool:
    return here == there and isinstance(here, bool) == isinstance(there, bool)


def _kinds(key: Mapping[str, Fact]) -> set[str]:
    return {name for name, value in key.items() if isinstance(value, bool)}
