"""What a suite file (``*.energy.toml``) may hold, read and checked: errors name file, line and what is valid."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, inspect

from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.suites.lines import Place, line_of

SUFFIX = ".energy.toml"

Name = Annotated[
    str, Meta(pattern=r"^[^\s:\[\]]+$", description="a name without spaces, colons and brackets")
]
Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1)]
Share = Annotated[
    str,
    Meta(
        pattern=r"^\s*(?=[^%]*[1-9])(\d{1,3}(\.\d*)?|1000|\.\d+)\s*%\s*$",
        description="a share in quotes above 0, such as '3%'",
    ),
]
Positive = Annotated[float, Meta(gt=0)]
Ratio = Annotated[float, Meta(gt=0, description="a number above 0: a ratio of 0.85 is 15 % less")]
# In the order in which people read them: msgspec tells values in that of the alphabet.
Severity = Annotated[Literal["report", "fail"], Meta(description="report, fail")]
Trend = Annotated[Literal["falls", "rises", "flat"], Meta(description="falls, rises, flat")]
Denominator = Literal["token", "prompt_token", "total_token", "response"]


class Arrival(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """When the requests come: so many at a time, or by chance at a rate (requests a second)."""

    concurrency: Count | None = None
    poisson: Positive | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.poisson is None):
            raise ValueError("either concurrency or poisson is wanted")


Arrivals = Annotated[
    Literal["all-at-once"] | Arrival,
    Meta(description='"all-at-once", { concurrency = 8 } or { poisson = 4.0 } (requests a second)'),
]


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
    tokens: (
        Annotated[
            tuple[Annotated[int, Meta(ge=0)], Count],
            Meta(description="two whole numbers, such as [2048, 5120]"),
        ]
        | None
    ) = None
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
    call: Annotated[str, Meta(pattern=r"^[\w.]+:\w+$", description="'module:function'")] | None = None

    def __post_init__(self) -> None:
        if (self.file is None) == (self.call is None):
            raise ValueError("either file or call is wanted")


class LimitsTable(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What ``power_budget`` takes: limits of a cell, and how long it is measured."""

    joules_per_token: Positive | UnsetType = UNSET
    joules_per_prompt_token: Positive | UnsetType = UNSET
    joules_per_total_token: Positive | UnsetType = UNSET
    joules_per_response: Positive | UnsetType = UNSET
    joules: Positive | UnsetType = UNSET
    mean_watts: Positive | UnsetType = UNSET
    peak_watts: Positive | UnsetType = UNSET
    ttft_ms: Positive | UnsetType = UNSET
    tpot_ms: Positive | UnsetType = UNSET
    regression: Share | UnsetType = UNSET
    per: Denominator | UnsetType = UNSET
    min_rounds: Count | UnsetType = UNSET
    max_rounds: Count | UnsetType = UNSET
    max_seconds: Positive | UnsetType = UNSET
    key_ignore: tuple[str, ...] | UnsetType = UNSET
    prefix_cache: bool | UnsetType = UNSET
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
    flat (``within`` so much, else 10 %), perhaps ``until`` a value and ``then`` otherwise.
    """

    name: Text
    figure: Text = "joules_per_token"
    where: Axes = Axes()
    of: Axes | None = None
    to: Axes | None = None
    at_most: Ratio | None = None
    at_least: Ratio | None = None
    along: Axis | None = None
    shape: Trend | None = None
    until: Count | None = None
    then: Trend | None = None
    within: Share | None = None
    paper: str = ""
    severity: Severity = "report"

    def __post_init__(self) -> None:
        ratio, shape = self.of is not None or self.to is not None, self.shape is not None
        if ratio == shape:
            raise ValueError("either a ratio (of, to) or a shape (along, shape) is wanted")
        if ratio and (self.of is None or not (self.at_most or self.at_least)):
            raise ValueError("a ratio wants of, to, and at_most or at_least")
        unread = ("along", "until", "then", "within") if ratio else ("at_most", "at_least")
        if said := [name for name in unread if getattr(self, name) is not None]:
            raise ValueError(f"{' and '.join(said)} is of {'shapes' if ratio else 'ratios'}, not read here")
        if (self.at_least or 0.0) > (self.at_most or math.inf):
            raise ValueError("at_least is above at_most: no figure is as it says")
        if shape and self.along is None:
            raise ValueError("a shape wants along, the axis that it is seen on")
        if (self.until is None) != (self.then is None):
            raise ValueError("until and then go together")
        if self.within is not None and "flat" not in (self.shape, self.then):
            raise ValueError("within says what flat is, and nothing of this claim is flat")

    @property
    def flat_within(self) -> str:
        """By how much what is flat may differ."""
        return (self.within or "10%").strip()


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
        where = line[1] if line else max(1, len(text.splitlines()))
        raise UsageError(f"{file}:{where}: no TOML: {error}") from None
    for place, number in _infinite(tables):
        raise complain(text, file, place, f"{number} is no limit and no rate: valid is a finite number")
    try:
        return msgspec.convert(tables, SuiteFile)
    except msgspec.ValidationError as error:
        raise _complaint(str(error), text, file, tables) from None


def _infinite(found: object, place: Place = ()) -> Iterator[tuple[Place, float]]:
    """Find numbers that are none; options of engines are the engines' business."""
    inside: Iterable[tuple[Any, object]] = ()
    if isinstance(found, float) and not math.isfinite(found):
        yield place, found
    elif isinstance(found, Mapping):
        inside = ((name, each) for name, each in found.items() if name != "options")
    elif isinstance(found, list):
        inside = enumerate(found)
    for part, each in inside:
        yield from _infinite(each, (*place, part))


def complain(text: str, file: str, place: Place, what: str) -> UsageError:
    """Return the error for what is wrong at a place of a suite file, such as ``("claim", 0, "of")``."""
    shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    return UsageError(f"{file}:{line_of(text, place)}: {shown or 'the file'}: {what}")


def _complaint(message: str, text: str, file: str, tables: Mapping[str, Any]) -> UsageError:
    what, _, path = message.partition(" - at `")
    wrong_name = path.startswith("key`")
    place: Place = ()
    for name, number, _any in re.findall(r"\.([^.\[\]`]+)|\[(\d+)\]|(\[\.\.\.\])", path):
        place += (name if name else int(number) if number else _offending(place, tables),)
    if wrong_name:
        name = _offending(place, tables)
        return complain(text, file, (*place, name), "a name is without spaces, colons and brackets")
    if unknown := re.search(r"unknown field `(.+?)`", what):
        valid = ", ".join(_fields(place))
        return complain(text, file, (*place, unknown[1]), f"there is no such field; valid are {valid}")
    if missing := re.search(r"missing required field `(.+?)`", what):
        return complain(text, file, place, f"lacks {missing[1]}")
    found: Any = tables
    for part in place:
        found = found[part] if isinstance(part, int) else found.get(part, {})
    # What a table says of itself in its own words needs no list of its fields.
    valid = _valid(_type_at(place)) if what.startswith(("Expected", "Invalid")) else ""
    said = f"{found!r}: " if isinstance(found, str | int | float) else ""
    plain = what.replace("`", "'").replace(" | null", "")
    plain = re.sub(
        r"^Expected '(.+?)'( of length \d+)?, got .+$", lambda m: f"is no {_kinds(m[1])}{m[2] or ''}", plain
    )
    plain = re.sub(r"^Expected 'float' > 0\.0$", "must be above 0", plain)
    plain = re.sub(r"^Expected '(?:int|float)' >= (\d+)(?:\.0)?$", r"must be at least \1", plain)
    plain = re.sub(r"^Expected 'str' of length >= 1$", "must not be empty", plain)
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


def _offending(place: Place, tables: Mapping[str, Any]) -> str:
    """Find the key of a table that msgspec calls ``[...]``: the first name that is none."""
    found: Any = tables
    for part in place:
        found = found[part]
    return str(next((name for name in found if re.search(r"[\s:\[\]]", name)), next(iter(found))))


def _type_at(place: Place) -> inspect.Type:
    """Return what may stand at a place; what may hold it, where nothing may stand there."""
    at: inspect.Type = inspect.type_info(SuiteFile)
    for part in place:
        for each in _choices(at):
            if isinstance(each, inspect.StructType):
                at = next((field.type for field in each.fields if field.name == part), at)
            elif isinstance(each, inspect.DictType):
                at = each.value_type
            elif isinstance(each, inspect.VarTupleType) and isinstance(part, int):
                at = each.item_type
            elif isinstance(each, inspect.TupleType) and isinstance(part, int):
                at = each.item_types[min(part, len(each.item_types) - 1)]
    return at


def _choices(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    """Return the types in a union, its notes left out."""
    if isinstance(kind, inspect.Metadata):
        return _choices(kind.type)
    if isinstance(kind, inspect.UnionType):
        return tuple(each for one in kind.types for each in _choices(one))
    return (kind,)


def _fields(place: Place) -> tuple[str, ...]:
    """Return the fields that are valid in the table at a place."""
    tables = (each for each in _choices(_type_at(place)) if isinstance(each, inspect.StructType))
    return tuple(field.name for table in tables for field in table.fields)


def _valid(kind: inspect.Type) -> str:
    """Say what values are valid; empty where the words of the complaint say it."""
    if isinstance(kind, inspect.Metadata):
        return str((kind.extra_json_schema or {}).get("description") or _valid(kind.type))
    if isinstance(kind, inspect.UnionType):
        words = [_valid(each) for each in kind.types if not isinstance(each, inspect.VarTupleType)]
        listed = [", or a list of them"] * any(isinstance(each, inspect.VarTupleType) for each in kind.types)
        return " or ".join(each for each in words if each) + "".join(listed)
    if isinstance(kind, inspect.LiteralType):
        return ", ".join(map(str, kind.values))
    if isinstance(kind, inspect.IntType):
        return "a whole number" + (f" of at least {kind.ge}" if kind.ge is not None else "")
    if isinstance(kind, inspect.FloatType):
        return "a number" + (" above 0" if kind.gt == 0 else "")
    if isinstance(kind, inspect.StrType):
        return "a text"
    if isinstance(kind, inspect.BoolType):
        return "true, false"
    if isinstance(kind, inspect.VarTupleType):
        return f"a list, each {_valid(kind.item_type)}"
    if isinstance(kind, inspect.StructType):
        return f"a table of {', '.join(field.name for field in kind.fields)}"
    return ""
