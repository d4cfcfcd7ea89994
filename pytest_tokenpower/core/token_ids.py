"""Token ids that a transformers model returned: where the prompt ends in them, and where each sequence does.

The ids alone do not say either. The prompt is cut off where the result is seen to begin with it. The end of a sequence
comes from the settings of the call, or of the one model within reach where generate() was called out of sight, and
must agree with the ids.
"""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from pytest_tokenpower.errors import TokenCountError

Rows = list[list[int]]

_INTEGER = re.compile(r"\bu?int\d+\b")

_CALL_IT = (
    "have generate() called by the fixture, energy(model.generate, **inputs), or return "
    "pytest_tokenpower.TokenCount(prompt=..., generated=...)"
)


# The arguments of generate() that tell where prompts end in its ids, and where sequences do.
SETTINGS = frozenset(
    {"inputs", "input_ids", "attention_mask", "decoder_input_ids", "inputs_embeds", "generation_config"}
    | {"eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id"}
    | {"stopping_criteria", "stop_strings"}
)

# How many positions of the prompt a cache held that was given to generate(), noted when the call began.
CACHED = "cached positions"

# How its sequences end, as it was when the call ended: a configuration may be changed before they are counted.
ENDS = "ends"

# Tables of integers that are no ids.
_NO_IDS = re.compile(r"mask|position|token_type|labels|decoder_")

_DEPTH = 3


@dataclass(frozen=True)
class Prompt:
    """Ids that a model was given, and which of them are no padding, where a mask says so."""

    rows: Rows
    mask: Rows | None = None

    def begins(self, rows: Rows) -> bool:
        """Whether every row begins with its prompt; each prompt may have several rows."""
        each, rest = divmod(len(rows), len(self.rows))
        return (
            not rest
            and self.width > 0
            and all(row[: self.width] == self.rows[at // each] for at, row in enumerate(rows))
        )

    @property
    def width(self) -> int:
        """The positions of a row, padding included."""
        return len(self.rows[0])

    def tokens(self, ends: Ends) -> int:
        """Return the tokens without padding, told by the mask or, as transformers does, by the padding id."""
        if self.mask is not None:
            return sum(map(sum, self.mask))
        pads = ends.pad is not None and ends.pad not in ends.ids
        return sum(not pads or token != ends.pad for row in self.rows for token in row)


@dataclass(frozen=True)
class Ends:
    """How a model ends a sequence.

    ``told``: these are the settings of the call itself. Otherwise they are a model's own, and generate() was called
    out of sight, perhaps with others.
    """

    ids: frozenset[int]
    pad: int | None
    start: int | None = None
    criteria: bool = False
    told: bool = False
    encoder_decoder: bool = False


@dataclass(frozen=True)
class Call:
    """What was called with what, through partials and wrappers.

    ``ran``: the ids and the calls of the generate() that were seen to run in it.
    """

    layers: tuple[Any, ...]
    arguments: Mapping[str, Any]
    ran: tuple[tuple[Any, Call], ...] = ()

    @classmethod
    def of(cls, fn: Callable[..., Any] | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """See through ``functools.partial``, bound methods and ``__wrapped__``, and name the arguments."""
        args, kwargs = tuple(args), dict(kwargs)
        while isinstance(fn, partial):
            args, kwargs, fn = (*fn.args, *args), {**fn.keywords, **kwargs}, fn.func
        arguments: dict[str, Any] = {}
        try:
            if fn is None:
                raise ValueError
            signature = inspect.signature(fn)
            for name, value in signature.bind_partial(*args, **kwargs).arguments.items():
                if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                    arguments |= value
                else:
                    arguments[name] = value
        except (TypeError, ValueError):
            arguments = {f"argument {at}": value for at, value in enumerate(args)} | kwargs
        layers: list[Any] = []
        while fn is not None and not any(fn is layer for layer in layers):
            if isinstance(fn, partial):
                arguments = {**fn.keywords, **arguments}
                arguments |= {f"partial {at}": value for at, value in enumerate(fn.args)}
            layers.append(fn)
            fn = fn.func if isinstance(fn, partial) else getattr(fn, "__wrapped__", None)
        return cls(tuple(layers), arguments)

    @cached_property
    def model(self) -> Any:
        """The model whose generate() was called, None where something else was."""
        if not any(getattr(layer, "__name__", "") == "generate" for layer in self.layers):
            return None
        owners = (getattr(layer, "__self__", None) for layer in self.layers)
        return next((owner for owner in owners if _is_model(owner)), None)

    @cached_property
    def within_reach(self) -> tuple[Any, ...]:
        """What the called code can see: its arguments, closure, globals by name, and the object that it belongs to."""
        return tuple(_reach([*self.layers, *self.arguments.values()], _DEPTH))

    @cached_property
    def made(self) -> list[Rows]:
        """The sequences that each call was seen to generate."""
        return [one._returned(ids) for ids, one in self.ran]

    def _returned(self, ids: Any) -> Rows:
        # Kept with the call: a block asks for them with each result that it counts, and reading a device takes time.
        if "returned" not in self.__dict__:
            self.__dict__["returned"] = _rows(ids) or []
        return self.__dict__["returned"]  # type: ignore[no-any-return]

    @property
    def prompts(self) -> Iterator[list[Prompt]]:
        """The prompts that may stand before the result, those of the nearest origin first."""
        named = {name: value for name, value in self.arguments.items() if not _NO_IDS.search(name)}
        mask = self.arguments.get("attention_mask")
        yield list(_prompts({**named, "attention_mask": mask}, _DEPTH))
        yield [prompt for value in self.within_reach for prompt in _prompts(value, _DEPTH)]

    @property
    def ends(self) -> Ends:
        """How the sequences end.

        Raises:
            TokenCountError: No model, or several that differ, are within reach.
        """
        if isinstance(known := self.arguments.get(ENDS), Ends):
            return known
        if self.model is not None:
            return _ends(self.model, self.arguments, told=True)
        models = [one for one in self.within_reach if _is_model(one)]
        found = {_ends(model, {}, told=False) for model in models}
        if len(found) != 1:
            how_many = "several models that differ in it" if found else "no model"
            raise TokenCountError(
                f"where a sequence of token ids ends is up to its model, and {how_many} is within reach: {_CALL_IT}"
            )
        return found.pop()


def whole(value: Any) -> int | None:
    """Return an integer of any library's type, its scalar arrays too; None for anything else, True and 1.0 among it."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).removeprefix("torch.") == "bool":
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def array_kind(value: Any) -> str | None:
    """Name an array of any library in a sentence; None: it is no array."""
    if isinstance(value, type) or not all(
        hasattr(value, name) for name in ("ndim", "dtype", "shape", "tolist")
    ):
        return None
    return f"an array of {value.dtype} with {value.ndim} dimension{'s' if value.ndim != 1 else ''}"


def is_id_table(value: Any) -> bool:
    """Whether a value may be token ids [sequences, tokens]: integers in two dimensions, or rows of integers."""
    return _rows(value) is not None


def count_generated(value: Any, call: Call) -> tuple[int, int, int]:
    """Count prompt tokens, generated tokens and sequences of what generate() returned.

    Raises:
        TokenCountError: The result is not seen to begin with a prompt, or where its sequences end cannot be known.
    """
    rows = _rows(value) or []
    if call.model is not None and call.ends.encoder_decoder:
        return _encoder_decoder(rows, call, call.ends)
    if call.model is not None and (embeds := call.arguments.get("inputs_embeds")) is not None:
        return _embedded(rows, embeds, call)
    for whole, cut in ((rows, None), *_uncut(value)):
        for prompts in call.prompts:
            seen = [each for each in prompts if each.begins(whole) and cut in (None, each.width)]
            if len({prompt.width for prompt in seen}) > 1:
                raise TokenCountError(f"the result begins with prompts of several lengths: {_CALL_IT}")
            if seen:
                prompt = next((each for each in seen if each.mask is not None), seen[0])
                ends = _ends_for(call, whole)
                new = [row[prompt.width :] for row in whole]
                return prompt.tokens(ends), sum(_lengths(new, ends)), len(new)
    if call.model is None and any(_is_model(one) for one in call.within_reach) and call.ends.encoder_decoder:
        return _encoder_decoder(rows, call, call.ends)
    raise TokenCountError(
        "where the prompts end in token ids cannot be told: they do not begin with ids that the workload was called "
        f"with: {_CALL_IT}"
    )


def count_ran(call: Call) -> tuple[int, int, int, int]:
    """Count as :func:`count_generated` what all calls of generate() returned that were seen to run.

    The fourth number are the prompt tokens that were in a cache that the call was given.
    """
    each = [(*count_generated(ids, ran), _cached(ran)) for ids, ran in call.ran]
    prompts, generated, sequences, cached = zip(*each, strict=True)
    return sum(prompts), sum(generated), sum(sequences), sum(cached)


def _cached(call: Call) -> int:
    held = call.arguments.get(CACHED, 0)
    if held is None:
        raise TokenCountError(
            "the past_key_values that generate() was given do not say how much of the prompt they held: return "
            "pytest_tokenpower.TokenCount(prompt=..., generated=..., cached_prompt=...)"
        )
    given = next(iter(next(call.prompts)), None)
    # Ids that are no more than the cache held are those behind it.
    if call.ends.encoder_decoder or given is None or not 0 < held < given.width:
        return 0
    rows, mask = ([row[:held] for row in table] if table else None for table in (given.rows, given.mask))
    return Prompt(rows or [], mask).tokens(call.ends)


def ran_of(value: Any, call: Call) -> frozenset[int]:
    """Return which of the seen calls of generate() ids are of: each row a whole sequence of one, or its new ids."""
    for at, (ids, _) in enumerate(call.ran):
        if value is ids:
            return frozenset({at})
    found: set[int] = set()
    for row in _rows(value) or [flat_ids(value) or []]:
        of = {at for at, rows in enumerate(call.made) if any(_begins_or_ends(row, made) for made in rows)}
        if not row or not of:
            return frozenset()
        found |= of
    return frozenset(found)


def _begins_or_ends(row: list[int], made: list[int]) -> bool:
    """Whether a row is the beginning of a sequence, or its end, with more or less padding or no end-of-sequence."""
    if row[: len(made)] == made[: len(row)] and len(set(row[len(made) :])) < 2:
        return True
    for end in range(len(made), len(row) - 1, -1):
        if row == made[end - len(row) : end]:
            return True
        if end < len(made) and made[end] != made[-1]:
            return False
    return False


def count_pipeline_record(ids: Any, call: Call, path: tuple[Hashable, ...]) -> tuple[int, int]:
    """Count prompt and generated tokens of a sequence that a transformers pipeline returned as ids.

    Raises:
        TokenCountError: It is not seen to begin with the ids of the text that the pipeline was called with.
    """
    pipeline = next((one for one in call.within_reach if _is_pipeline(one)), None)
    texts = next((value for value in call.arguments.values() if _is_text(value)), None)
    row = flat_ids(ids)
    if pipeline is None or texts is None or row is None or not path:
        raise TokenCountError(
            "where the prompt ends in generated_token_ids cannot be told: have the pipeline called by the fixture, "
            "energy(pipeline, texts, return_tensors=True), or return "
            "pytest_tokenpower.TokenCount(prompt=..., generated=...)"
        )
    text = texts if isinstance(texts, str) else texts[path[0]]
    prompt = flat_ids(pipeline.tokenizer(text)["input_ids"]) or []
    settings = {**(getattr(pipeline, "_forward_params", None) or {}), **call.arguments}
    settings.setdefault("generation_config", getattr(pipeline, "generation_config", None))
    ends = _ends(pipeline.model, settings, told=True)
    # In a batch a shorter prompt is padded on its left.
    pads = 0
    while pads < len(row) and row[pads] == ends.pad and row[pads : pads + len(prompt)] != prompt:
        pads += 1
    if not prompt or row[pads : pads + len(prompt)] != prompt:
        raise TokenCountError(
            f"generated_token_ids do not begin with the ids of the text: {_CALL_IT.partition(', or ')[2]}"
        )
    new = row[pads + len(prompt) :]
    return len(prompt), _length(new, ends)


def _ends_for(call: Call, rows: Rows) -> Ends:
    # Of a single sequence all is real, wherever it ends; of several the shorter are padded.
    if len(rows) == 1 and call.model is None:
        try:
            return call.ends
        except TokenCountError:
            return Ends(frozenset(), None)
    return call.ends


def _encoder_decoder(rows: Rows, call: Call, ends: Ends) -> tuple[int, int, int]:
    """Count where an encoder read the prompt: the result begins with what the decoder was given to start with."""
    given = call.arguments.get("decoder_input_ids")
    start = (
        Prompt(_rows(given) or [])
        if given is not None
        else Prompt([[ends.start if ends.start is not None else -1]])
    )
    if not start.rows or not (start.begins(rows) if len(rows) % len(start.rows) == 0 else False):
        raise TokenCountError(
            f"the result does not begin with the model's decoder_start_token_id ({ends.start}): {_CALL_IT}"
        )
    new = [row[start.width :] for row in rows]
    if (embeds := call.arguments.get("inputs_embeds")) is not None:
        return _positions(embeds, call), sum(_lengths(new, ends)), len(rows)
    for prompts in call.prompts:
        sources = [each for each in prompts if len(rows) % len(each.rows) == 0 and each.rows != rows]
        if len(sources) > 1:
            raise TokenCountError(
                f"which of {len(sources)} tables of ids the encoder read cannot be told: {_CALL_IT}"
            )
        if sources:
            return sources[0].tokens(ends), sum(_lengths(new, ends)), len(rows)
    raise TokenCountError(f"the prompt of the encoder is no table of token ids: {_CALL_IT}")


def _embedded(rows: Rows, embeds: Any, call: Call) -> tuple[int, int, int]:
    """Given embeddings for a prompt, generate() returns new ids alone; given ids too, those first."""
    given = [one for one in map(call.arguments.get, ("input_ids", "inputs")) if one is not None]
    if given:
        ids = [Prompt(each) for each in map(_rows, given) if each is not None]
        if len(ids) != 1 or not ids[0].begins(rows):
            raise TokenCountError(
                f"given input_ids and inputs_embeds, where new ids begin cannot be told: {_CALL_IT}"
            )
        rows = [row[ids[0].width :] for row in rows]
    return _positions(embeds, call), sum(_lengths(rows, call.ends)), len(rows)


def _positions(embeds: Any, call: Call) -> int:
    mask = _mask(call.arguments.get("attention_mask"))
    return sum(map(sum, mask)) if mask is not None else int(embeds.shape[0] * embeds.shape[1])


def _lengths(rows: Rows, ends: Ends) -> list[int]:
    """How many tokens of each row were generated, up to and with its end; what follows is padding."""
    if len(rows) == 1:
        return [len(rows[0])]
    if ends.told:
        return [_length(row, ends) for row in rows]
    return _lengths_out_of_sight(rows, ends)


def _length(row: list[int], ends: Ends) -> int:
    """How many tokens of a row were generated, by the settings of its own call."""
    if not ends.ids:
        if ends.criteria:
            raise TokenCountError(
                "stopping criteria without an end-of-sequence id leave no trace in the ids: return "
                "pytest_tokenpower.TokenCount(prompt=..., generated=...)"
            )
        return len(row)
    end = next((at for at, token in enumerate(row) if token in ends.ids), None)
    if end is None:
        # Only stopping criteria can have ended it; what they ended is padded, and no model generates padding.
        return len(row) - _padding(row, ends.pad) if ends.criteria else len(row)
    tail = set(row[end + 1 :])
    # Beam search pads with the end-of-sequence id where the padding id is 0.
    if tail and tail != {ends.pad} and (len(tail) > 1 or not tail <= ends.ids or ends.criteria):
        raise TokenCountError(
            f"tokens follow the end-of-sequence id {row[end]}, so that it ended nothing: pass the eos_token_id that is "
            f"in force to generate(), or {_CALL_IT.partition(', or ')[2]}"
        )
    if ends.criteria and ends.pad in ends.ids:
        raise TokenCountError(
            "the padding id is an end-of-sequence id, so that what stopping criteria ended cannot be told from it: "
            "give generate() a pad_token_id of its own"
        )
    return end + 1


def _lengths_out_of_sight(rows: Rows, ends: Ends) -> list[int]:
    """Return the same where generate() was called with settings that nobody saw: only what the ids confirm."""
    unsure = TokenCountError(
        "generate() was called out of sight, and the ids do not tell where its sequences end (it may have been given "
        f"another eos_token_id, or the padding is itself an end): {_CALL_IT}"
    )
    if not ends.ids:
        raise unsure
    lengths, followed = [], False
    for row in rows:
        end = next((at for at, token in enumerate(row) if token in ends.ids), None)
        tail = [] if end is None else row[end + 1 :]
        if not tail:
            lengths.append(len(row) - (0 if end is not None else _padding(row, ends.pad)))
        elif all(token == ends.pad for token in tail):
            if ends.pad in ends.ids:
                raise unsure
            lengths.append(len(row) - len(tail))
        elif len(set(tail)) == 1:
            raise unsure
        else:
            followed = True
    if followed:
        # Generation went on behind that id: it was switched off, and nothing was padded.
        if any(_padding(row, ends.pad) for row in rows):
            raise unsure
        return [len(row) for row in rows]
    if max(lengths) < len(rows[0]):
        raise unsure
    return lengths


def _padding(row: list[int], pad: int | None) -> int:
    return next((at for at, token in enumerate(reversed(row)) if token != pad), len(row))


def _uncut(value: Any) -> Iterator[tuple[Rows, int]]:
    """Return the table that a result is a view of, ``out[:, width:]``, and the column at which the view begins."""
    rows = list(value) if isinstance(value, list | tuple) else None
    first = rows[0] if rows else value
    if not hasattr(first, "untyped_storage"):
        return
    tables = rows if rows is not None else [value]
    offset, size = first.storage_offset(), first.untyped_storage().nbytes() // first.element_size()
    if rows is not None and len({one.untyped_storage().data_ptr() for one in tables}) > 1:
        return
    count = len(tables) if rows is not None else value.shape[0]
    if not count or size % count or first.stride()[-1] != 1:
        return
    width = size // count
    columns = {one.storage_offset() % width for one in tables} | {width - one.shape[-1] for one in tables}
    if len(columns) != 1 or offset >= width or (rows is None and value.stride(0) != width):
        return
    yield first.as_strided((count, width), (width, 1), 0).tolist(), offset


def _ends(model: Any, arguments: Mapping[str, Any], *, told: bool) -> Ends:
    """Return the settings in force, looked up as transformers does: the call, the given config, the model's own."""
    given, own = arguments.get("generation_config"), getattr(model, "generation_config", None)
    config = getattr(model, "config", None)

    def setting(name: str) -> frozenset[int]:
        if name in arguments:
            return _ids(arguments[name])
        for origin in (given, own if own is not None else config):
            if (value := getattr(origin, name, None)) is not None:
                return _ids(value)
        return frozenset()

    ids = setting("eos_token_id")
    pads = setting("pad_token_id")
    start = setting("decoder_start_token_id") or setting("bos_token_id")
    if not pads and ids:
        # transformers pads with the first of them.
        first = arguments.get("eos_token_id", getattr(given, "eos_token_id", None))
        first = getattr(own if own is not None else config, "eos_token_id", None) if first is None else first
        pads = frozenset(list(_each_id(first))[:1])
    stops = [arguments.get("stop_strings"), *(getattr(one, "stop_strings", None) for one in (given, own))]
    return Ends(
        ids=ids,
        pad=next(iter(pads), None),
        start=next(iter(start), None),
        criteria=_end_rows(arguments.get("stopping_criteria")) or any(stops),
        told=told,
        encoder_decoder=getattr(config, "is_encoder_decoder", False) is True,
    )


# transformers' own, which end all sequences at once: nothing is padded for them.
_END_ALL = frozenset({"MaxLengthCriteria", "MaxTimeCriteria"})


def _end_rows(criteria: Any) -> bool:
    """Whether stopping criteria may end one sequence before another."""
    each = criteria if isinstance(criteria, Iterable) else (criteria,)
    return criteria is not None and any(type(one).__name__ not in _END_ALL for one in each)


def _ids(value: Any) -> frozenset[int]:
    return frozenset(_each_id(value))


def _each_id(value: Any) -> Iterator[int]:
    value = value.tolist() if hasattr(value, "tolist") else value
    for one in value if isinstance(value, Sequence | set | frozenset) else (value,):
        if (number := whole(one)) is not None and number >= 0:
            yield number


def _rows(value: Any) -> Rows | None:
    """Rows of ids: a table of integers, or a list of equally long rows of integers."""
    if array_kind(value) is not None:
        if value.ndim != 2 or not _INTEGER.search(str(value.dtype)):
            return None
        rows: Rows = value.tolist()
        return rows if rows else None
    if not isinstance(value, list | tuple) or not value:
        return None
    flat = [flat_ids(one) for one in value]
    found = [one for one in flat if one]
    return found if len(found) == len(value) and len({len(one) for one in found}) == 1 else None


def _mask(value: Any) -> Rows | None:
    """Rows of ones and zeros, of whatever type says so."""
    if array_kind(value) is None or value.ndim != 2:
        return _rows(value)
    rows = value.tolist()
    told = all(one in (0, 1) for row in rows for one in row)
    return [[int(one) for one in row] for row in rows] if told else None


def flat_ids(value: Any) -> list[int] | None:
    """Return a sequence of integers as ids; None: it is something else."""
    if array_kind(value) is not None:
        if value.ndim != 1 or not _INTEGER.search(str(value.dtype)):
            return None
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return None
    ids = [whole(one) for one in value]
    return None if None in ids else ids  # type: ignore[return-value]


def _prompts(value: Any, depth: int) -> Iterator[Prompt]:
    """Return the tables of ids in a value, each with the mask that stands beside it."""
    if (rows := _rows(value)) is not None:
        yield Prompt(rows)
    elif depth and isinstance(value, Mapping):
        mask = _mask(value.get("attention_mask"))
        for name, one in value.items():
            if isinstance(name, str) and _NO_IDS.search(name):
                continue
            for prompt in _prompts(one, depth - 1):
                fits = mask is not None and [len(row) for row in mask] == [len(row) for row in prompt.rows]
                yield Prompt(prompt.rows, mask if prompt.mask is None and fits else prompt.mask)
    elif depth and isinstance(value, list | tuple):
        for one in value:
            yield from _prompts(one, depth - 1)


def _reach(values: Sequence[Any], depth: int) -> Iterator[Any]:
    seen: set[int] = set()
    level = list(values)
    for _ in range(depth + 1):
        following: list[Any] = []
        for value in level:
            if id(value) in seen or isinstance(value, ModuleType | type | str | int | float) or value is None:
                continue
            seen.add(id(value))
            yield value
            following += _neighbours(value)
        level = following


def _neighbours(value: Any) -> list[Any]:
    """Return what code or an object has at hand; models and arrays are not looked into."""
    if _is_model(value) or array_kind(value) is not None:
        return []
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, FunctionType):
        cells = []
        for cell in value.__closure__ or ():
            try:
                cells.append(cell.cell_contents)
            except ValueError:  # not yet bound
                continue
        names = {name for code in _codes(value.__code__) for name in code.co_names}
        used = [value.__globals__[name] for name in sorted(names) if name in value.__globals__]
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        wrapped = [value.__wrapped__] if hasattr(value, "__wrapped__") else []
        return [*cells, *used, *defaults, *wrapped]
    if _is_pipeline(value):
        return [value.model]
    try:
        members = list(vars(value).values())
    except TypeError:
        return []
    called = vars(type(value)).get("__call__")
    return [*members, called] if isinstance(called, FunctionType) else members


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _is_model(value: Any) -> bool:
    # A pipeline has a generation_config too, and calls its model with it.
    return (
        not isinstance(value, type | ModuleType)
        and callable(getattr(value, "generate", None))
        and (_has(value, "generation_config") or _has(value, "config"))
    )


def _is_pipeline(value: Any) -> bool:
    return (
        not isinstance(value, type | ModuleType)
        and callable(value)
        and callable(getattr(value, "tokenizer", None))
        and _is_model(getattr(value, "model", None))
    )


def _has(value: Any, name: str) -> bool:
    return getattr(value, name, None) is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(one, str) for one in value)
    )
