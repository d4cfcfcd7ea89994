"""What a suite file (``*.energy.toml``) may hold, read and checked: errors name file, line and what is valid."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from pytest_tokenpower.errors import UsageError

SUFFIX = ".energy.toml"

Name = Annotated[
    str, Meta(pattern=r"^[^\s:\[\]]+$", description="a name without spaces, colons and brackets")
]
Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1)]
Share = Annotated[
    str, Meta(pattern=r"^\s*(\d+(\.\d*)?|\.\d+)\s*%\s*$", description="a share in percent, such as '3%'")
]
Positive = Annotated[float, Meta(gt=0)]
Severity = Literal["report", "fail"]
Trend = Literal["falls", "rises", "flat"]


class Arrival(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """When the requests come: so many at a time, or by chance at a rate (requests a second)."""

    concurrency: Count | None = None
    poisson: Positive | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.poisson is None):
            raise ValueError("either concurrency or poisson is wanted")


Arrivals = Literal["all-at-once"] | Arrival


class Axes(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Values of axes, one or a list each: of the grid, of what is added to it or left out, or that a claim is about.

    The axes down to ``pipeline_parallel`` make the engine, the others are the work that it is given.
    """

    model: Text | tuple[Text, ...] | None = None
    engine: Text | tuple[Text, ...] | None = None
    variant: Name | tuple[Name, ...] | None = None
    dtype: Text | tuple[Text, ...] | None = None
    quantization: Text | tuple[Text, ...] | None = None
    kv_cache_dtype: Text | tuple[Text, ...] | None = None
    tensor_parallel: Count | tuple[Count, ...] | None = None
    pipeline_parallel: Count | tuple[Count, ...] | None = None
    prompts: Name | tuple[Name, ...] | None = None
    prompt_tokens: Count | tuple[Count, ...] | None = None
    new_tokens: Count | tuple[Count, ...] | None = None
    batch: Count | tuple[Count, ...] | None = None
    arrivals: Arrivals | tuple[Arrivals, ...] | None = None

    def given(self) -> dict[str, tuple[Any, ...]]:
        """Return the values of each axis that is named, as a tuple."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {
            name: value if isinstance(value, tuple) else (value,)
            for name, value in values.items()
            if value is not None
        }


AXES: tuple[str, ...] = Axes.__struct_fields__
LOAD_AXES = AXES[: AXES.index("prompts")]
"""Cells that have these in common share a loaded engine."""

WORK_AXES = AXES[len(LOAD_AXES) :]

SETTINGS = LOAD_AXES[LOAD_AXES.index("dtype") :]
"""What an engine is told, and reports of itself."""

Axis = Literal["batch", "prompt_tokens", "new_tokens", "tensor_parallel", "pipeline_parallel"]


class ModelTable(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A model by a name of one's own: one of the three."""

    random: Text | None = None
    """A model of the registry (``tokenpower models``), with random weights."""
    path: Text | None = None
    """A folder with a checkpoint, from the suite file's own folder."""
    hub: Text | None = None
    """A hub id."""
    seed: int = 0
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    weights: bool = True
    """False writes the configuration alone, for an engine that makes weights up (vLLM's load_format = "dummy")."""

    def __post_init__(self) -> None:
        if sum(each is not None for each in (self.random, self.path, self.hub)) != 1:
            raise ValueError("one of random, path and hub is wanted")


class EngineTable(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An engine by a name of one's own: the adapter behind it (by default of that name), and its options."""

    adapter: Text | None = None
    options: dict[str, Any] = {}
    env: dict[str, str] = {}
    isolated: bool = True


class Variant(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Settings of an engine that go together, under one name; ``options`` are the adapter's own."""

    dtype: Text | None = None
    quantization: Text | None = None
    kv_cache_dtype: Text | None = None
    tensor_parallel: Count | None = None
    pipeline_parallel: Count | None = None
    options: dict[str, Any] = {}

    def settings(self) -> dict[str, Any]:
        """Return the settings that it names."""
        return {name: value for name in SETTINGS if (value := getattr(self, name)) is not None}


class PromptTable(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Prompts from a file beside the suite or from a data set of the hub; the axis batch says how many of them."""

    file: Text | None = None
    hub: Text | None = None
    split: Text = "train"
    subset: Text | None = None
    tokens: tuple[Annotated[int, Meta(ge=0)], Count] | None = None
    """Only prompts of that many tokens, from the first number to below the second."""

    def __post_init__(self) -> None:
        if (self.file is None) == (self.hub is None):
            raise ValueError("either file or hub is wanted")
        if self.tokens is not None and self.tokens[0] >= self.tokens[1]:
            raise ValueError("tokens wants the least length and one above the longest")


class QualityTable(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the answers of each engine are scored, once it is loaded: on a file beside the suite, or by a callable.

    ``call`` is ``module:function``, which is given the running engine and returns the score.
    """

    file: Text | None = None
    score: Literal["exact-match", "likelihood"] = "exact-match"
    new_tokens: Count = 16
    limit: Count | None = None
    call: Annotated[str, Meta(pattern=r"^[\w.]+:\w+$")] | None = None

    def __post_init__(self) -> None:
        if (self.file is None) == (self.call is None):
            raise ValueError("either file or call is wanted")


class LimitsTable(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What ``power_budget`` takes: limits of a cell, and how long it is measured."""

    joules_per_token: Positive | UnsetType = UNSET
    joules_per_response: Positive | UnsetType = UNSET
    joules: Positive | UnsetType = UNSET
    mean_watts: Positive | UnsetType = UNSET
    peak_watts: Positive | UnsetType = UNSET
    ttft_ms: Positive | UnsetType = UNSET
    tpot_ms: Positive | UnsetType = UNSET
    regression: Share | UnsetType = UNSET
    min_rounds: Count | UnsetType = UNSET
    max_rounds: Count | UnsetType = UNSET
    max_seconds: Positive | UnsetType = UNSET
    key_ignore: tuple[str, ...] | UnsetType = UNSET
    quality: Positive | UnsetType = UNSET

    def given(self) -> dict[str, Any]:
        """Return the limits that are named."""
        values = {name: getattr(self, name) for name in LimitsTable.__struct_fields__}
        return {name: value for name, value in values.items() if value is not UNSET}


class Budget(LimitsTable, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Limits of the cells that ``where`` tells; a later one overrides an earlier one."""

    where: Axes = Axes()


class Claim(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What is held against the cells.

    Either a ratio, of the cells ``of`` to those of ``to`` that are like them otherwise, with ``at_most`` or
    ``at_least`` (without ``to`` these limit the figure itself); or a shape: along an axis the figure falls, rises or is
    flat (``within`` so much), perhaps ``until`` a value and ``then`` otherwise.
    """

    name: Text
    figure: Text = "joules_per_token"
    where: Axes = Axes()
    of: Axes | None = None
    to: Axes | None = None
    at_most: Positive | None = None
    at_least: Positive | None = None
    along: Axis | None = None
    shape: Trend | None = None
    until: Count | None = None
    then: Trend | None = None
    within: Share = "10%"
    paper: str = ""
    severity: Severity = "report"

    def __post_init__(self) -> None:
        ratio, shape = self.of is not None or self.to is not None, self.shape is not None
        if ratio == shape:
            raise ValueError("either a ratio (of, to) or a shape (along, shape) is wanted")
        if ratio and (self.of is None or not (self.at_most or self.at_least)):
            raise ValueError("a ratio wants of, to, and at_most or at_least")
        unread = ("along", "until", "then") if ratio else ("at_most", "at_least")
        if said := [name for name in unread if getattr(self, name) is not None]:
            raise ValueError(f"{' and '.join(said)} is of {'shapes' if ratio else 'ratios'}, not read here")
        if math.inf in (self.at_most, self.at_least):
            raise ValueError("inf is no limit")
        if (self.at_least or 0.0) > (self.at_most or math.inf):
            raise ValueError("at_least is above at_most: no figure is as it says")
        if shape and self.along is None:
            raise ValueError("a shape wants along, the axis that it is seen on")
        if (self.until is None) != (self.then is None):
            raise ValueError("until and then go together")


class Objective(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Latencies that are to be held: of the cells that hold them the one of the fewest joules per token is named."""

    name: Text
    where: Axes = Axes()
    ttft_ms: Positive | None = None
    tpot_ms: Positive | None = None
    percentile: Literal[50, 90, 99] = 90

    def __post_init__(self) -> None:
        if self.ttft_ms is None and self.tpot_ms is None:
            raise ValueError("ttft_ms or tpot_ms is wanted")


class Head(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the suite is run.

    ``runs`` fresh processes measure each cell, in turn; ``run_scatter`` is what one process is believed to differ from
    another by (standard deviation), where they are too few to tell.
    """

    title: str = ""
    seed: int = 0
    runs: Count = 1
    run_scatter: Share = "1%"


class SuiteFile(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A suite: a grid of cells, each measured as a test, and claims about them."""

    axes: Axes
    suite: Head = Head()
    models: dict[Name, ModelTable] = {}
    engines: dict[Name, EngineTable] = {}
    variants: dict[Name, Variant] = {}
    prompts: dict[Name, PromptTable] = {}
    include: tuple[Axes, ...] = ()
    exclude: tuple[Axes, ...] = ()
    limits: LimitsTable = LimitsTable()
    budget: tuple[Budget, ...] = ()
    claim: tuple[Claim, ...] = ()
    slo: tuple[Objective, ...] = ()
    quality: QualityTable | None = None


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of suite files, for editors."""
    schema = msgspec.json.schema(SuiteFile)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Suite of pytest-tokenpower (*{SUFFIX})",
        **schema,
    }


def parse_suite(text: str, file: str) -> SuiteFile:
    """Return the suite in a text; raises UsageError that names ``file``, the line, and what is valid there."""
    try:
        tables = msgspec.toml.decode(text)
    except msgspec.DecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        raise UsageError(f"{file}:{line[1] if line else 1}: no TOML: {error}") from None
    try:
        return msgspec.convert(tables, SuiteFile)
    except msgspec.ValidationError as error:
        raise _complaint(str(error), text, file, tables) from None


def complain(text: str, file: str, place: Sequence[str | int], what: str) -> UsageError:
    """Return the error for what is wrong at a place of a suite file, such as ``("claim", 0, "of")``."""
    shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    return UsageError(f"{file}:{line_of(text, place)}: {shown or 'the file'}: {what}")


def _complaint(message: str, text: str, file: str, tables: Mapping[str, Any]) -> UsageError:
    what, _, path = message.partition(" - at `")
    wrong_name = path.startswith("key`")
    place: list[str | int] = []
    for name, number, _any in re.findall(r"\.([^.\[\]`]+)|\[(\d+)\]|(\[\.\.\.\])", path):
        place.append(name if name else int(number) if number else _offending(place, tables))
    if wrong_name:
        name = _offending(place, tables)
        return complain(text, file, [*place, name], "a name is without spaces, colons and brackets")
    if unknown := re.search(r"unknown field `(.+?)`", what):
        valid = ", ".join(_fields(place))
        return complain(text, file, [*place, unknown[1]], f"there is no such field; valid are {valid}")
    if missing := re.search(r"missing required field `(.+?)`", what):
        return complain(text, file, place, f"lacks {missing[1]}")
    found: Any = tables
    for part in place:
        found = found[part] if isinstance(part, int) else found.get(part, {})
    valid = _VALID.get(str(next((part for part in reversed(place) if isinstance(part, str)), "")), "")
    said = f"{found!r}: " if isinstance(found, str | int | float) else ""
    plain = what.replace("`", "'").replace(" | null", "")
    plain = re.sub(
        r"^Expected '(.+?)'( of length \d+)?, got .+$", lambda m: f"is no {_kinds(m[1])}{m[2] or ''}", plain
    )
    plain = re.sub(r"^Expected 'float' > 0\.0$", "must be above 0", plain)
    plain = re.sub(r"^Expected '(?:int|float)' >= (\d+)(?:\.0)?$", r"must be at least \1", plain)
    plain = re.sub(r"^Invalid enum value .+$", "is none of the values", plain)
    plain = re.sub(r"^Expected 'str' matching regex .+$", "is not written as it must be", plain)
    return complain(text, file, place, f"{said}{plain}{'; valid: ' + valid if valid else ''}")


_WORDS = {
    "int": "whole number",
    "float": "number",
    "str": "text",
    "bool": "true or false",
    "array": "list",
    "object": "table",
}


def _kinds(types: str) -> str:
    return " or ".join(dict.fromkeys(_WORDS.get(each, each) for each in types.split(" | ")))


def _offending(place: Sequence[str | int], tables: Mapping[str, Any]) -> str:
    """Find the key of a table that msgspec calls ``[...]``: the first name that is none."""
    found: Any = tables
    for part in place:
        found = found[part]
    return str(next((name for name in found if re.search(r"[\s:\[\]]", name)), next(iter(found))))


def _fields(place: Sequence[str | int]) -> tuple[str, ...]:
    """Return the fields that are valid in the table at a place."""
    at: Any = SuiteFile
    for part in place:
        if isinstance(part, int):
            continue
        known = {field.name: field.type for field in msgspec.structs.fields(at)} if _is_struct(at) else {}
        at = known.get(part, at)
        at = next((each for each in (at, *_parts(at)) if _is_struct(each)), at)
    return tuple(field.name for field in msgspec.structs.fields(at)) if _is_struct(at) else ()


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Struct)


def _parts(kind: Any) -> tuple[Any, ...]:
    """Return the types inside a union, a tuple or a mapping, however deep."""
    inside = get_args(kind)
    return (*inside, *(part for each in inside for part in _parts(each)))


_COUNTS = "a whole number of at least 1, or a list of them"
_VALID: Mapping[str, str] = {
    **dict.fromkeys(
        ("batch", "prompt_tokens", "new_tokens", "tensor_parallel", "pipeline_parallel"), _COUNTS
    ),
    **dict.fromkeys(
        ("min_rounds", "max_rounds", "runs", "until", "concurrency"), "a whole number of at least 1"
    ),
    **dict.fromkeys(("model", "engine", "variant", "dtype", "quantization"), "a text, or a list of texts"),
    "arrivals": '"all-at-once", { concurrency = 8 }, { poisson = 4.0 } (requests a second), or a list of them',
    "severity": ", ".join(get_args(Severity)),
    **dict.fromkeys(("shape", "then"), ", ".join(get_args(Trend))),
    "along": ", ".join(get_args(Axis)),
    "score": "exact-match, likelihood",
    "call": "'module:function'",
    "percentile": "50, 90, 99",
    "tokens": "two whole numbers, such as [2048, 5120]",
    **dict.fromkeys(("regression", "within", "run_scatter"), "a share in quotes, such as '3%'"),
    **dict.fromkeys(("at_most", "at_least"), "a number above 0: a ratio of 0.85 is 15 % less"),
}

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""^\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")


def line_of(text: str, place: Sequence[str | int]) -> int:
    """Return the line of a value in a TOML text, from 1; that of what it is in, where it is not found."""
    wanted = list(place)
    counts: dict[tuple[str, ...], int] = {}
    at: tuple[str | int, ...] = ()
    best, depth = 1, 0
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            names = _names(header[2])
            at = tuple(names)
            if header[1] == "[[":
                counts[tuple(names)] = counts.get(tuple(names), -1) + 1
                at = (*names, counts[tuple(names)])
            found = at
        elif key := _KEY.match(line):
            found = (*at, *_names(key[1]))
        else:
            continue
        common = 0
        while common < min(len(found), len(wanted)) and found[common] == wanted[common]:
            common += 1
        if common == len(found) and common > depth:
            best, depth = number, common
    return best


def _names(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in re.findall(r'"[^"]*"|\'[^\']*\'|[\w-]+', dotted)]
