"""TokenCount, the denominator, and how it is read off what a workload returns. Ids are counted, never words."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence, Set, ValuesView
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pytest_tokenpower.core.token_ids import Call, whole
from pytest_tokenpower.core.token_shapes import (
    MOST_TOKENS,
    OWN_COUNT,
    RETURN,
    SHAPES,
    Event,
    Part,
    Ran,
    Silent,
    Tally,
    Usage,
    kind,
    refusal,
    seen,
)
from pytest_tokenpower.errors import TokenCountError

Path = tuple[Hashable, ...]


@dataclass(frozen=True)
class TokenCount:
    """Tokens of one execution of a workload.

    Return this from a workload whose result the plugin cannot count itself. Counts may be of any integer type.

    Args:
        prompt: Tokens of the prompts, cached ones included; a prompt counts once, however many sequences follow it.
        generated: Tokens that were written (decode); 0 for work without any, as embedding, reranking or prefill.
        responses: How many sequences, vectors or scores came back, for joules per response.
        cached_prompt: How many of the prompt tokens came from a prefix cache and were not computed.
    """

    prompt: int
    generated: int
    responses: int = 1
    cached_prompt: int = 0

    def __post_init__(self) -> None:
        for name in ("prompt", "generated", "responses", "cached_prompt"):
            value = getattr(self, name)
            number = value if type(value) is int else whole(value)
            if number is None or number < 0:
                raise ValueError(f"TokenCount({name}={value!r}): must be an integer of at least 0")
            if number > MOST_TOKENS:
                raise ValueError(f"TokenCount({name}={value!r}): more than any execution has")
            if number is not value:
                object.__setattr__(self, name, number)
        if self.cached_prompt > self.prompt:
            raise ValueError(
                f"TokenCount(cached_prompt={self.cached_prompt}): more than the {self.prompt} prompt tokens"
            )

    def __add__(self, other: TokenCount) -> TokenCount:
        return TokenCount(
            self.prompt + other.prompt,
            self.generated + other.generated,
            self.responses + other.responses,
            self.cached_prompt + other.cached_prompt,
        )


def count_tokens(
    result: object,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    fn: Callable[..., Any] | None = None,
    ran: tuple[tuple[Any, Call], ...] = (),
) -> TokenCount:
    """Count the tokens of one execution from its result; docs/token-counts.md lists the shapes.

    What repeats itself, as the outputs of a stream, is grouped by request and counted once. A count of 0 generated
    tokens is returned where prompt tokens or responses are known.

    Args:
        result: What the workload returned.
        args: What it was called with: transformers' output begins with the prompt.
        kwargs: As ``args``.
        fn: What was called: a transformers model knows where its sequences end.
        ran: The calls of transformers' generate() that were seen to run in it, each after the ids that it returned.

    Raises:
        TokenCountError: The count is not known; the message says which item is to blame and what to return.
    """
    call = replace(Call.of(fn, args, kwargs or {}), ran=ran)
    total = TokenCount(0, 0, 0)
    requests: dict[Hashable, list[tuple[Path, Part]]] = {}
    last: dict[Path, tuple[Path, Part]] = {}
    opened: list[tuple[Path, Silent]] = []
    own: list[Path] = []
    for path, found in _found(result, call, ()):
        if isinstance(found, TokenCount):
            total += found
            own.append(path)
        else:
            # Pieces without an id are of one stream where they stand in one list.
            piece = isinstance(found, Silent | Event) or (isinstance(found, Usage) and found.piece)
            apart = ("stream", path[:-1]) if piece else (path,)
            key = (type(found), found.request) if found.request is not None else apart
            requests.setdefault(key, []).append((path, found))
            last[path[:-1]] = path, found
            if isinstance(found, Silent) and found.stream is not None:
                opened.append((path, found))
    ended = {(Usage, found.stream) for _, found in opened} & requests.keys()
    broken = [(path, found) for path, found in last.values() if isinstance(found, Silent)]
    broken += [(path, found) for path, found in opened if (Usage, found.stream) not in ended]
    if broken:
        raise TokenCountError(_located(result, [broken[0][0]], broken[0][1].lack))
    of = {at for parts in requests.values() for _, part in parts if isinstance(part, Ran) for at in part.of}
    if own and of and len(of) < len(ran):
        raise TokenCountError(_located(result, own, beside(len(of), len(ran))))
    _refuse_streams_told_twice(result, requests)
    for parts in requests.values():
        each = {found.source: found for _, found in parts}
        try:
            tally = parts[0][1].merged(list(each.values()))
        except TokenCountError as error:
            raise TokenCountError(_located(result, [path for path, _ in parts], str(error))) from None
        if tally is not None:
            total += _counted(result, parts[0][0], tally)
    if not (total.prompt or total.generated or total.responses):
        raise TokenCountError(f"{kind(result)} says that nothing was read and nothing generated: {RETURN}")
    return total


def _refuse_streams_told_twice(result: object, requests: dict[Hashable, list[tuple[Path, Part]]]) -> None:
    """Leave streams, whose starts alone have ids, once; raise where another result is of the same request."""
    streams: dict[str, frozenset[int]] = {}
    for key, parts in [*requests.items()]:
        named = next((part.stream for _, part in parts if isinstance(part, Event) and part.stream), None)
        if named is None:
            continue
        events = frozenset(part.source for _, part in parts)
        if (Usage, named) in requests or streams.get(named, events) != events:
            why = f"another result has its id, {named!r}: give each request an id of its own, or return {OWN_COUNT}"
            raise TokenCountError(_located(result, [path for path, _ in parts], why))
        if named in streams:
            del requests[key]
        streams[named] = events


def beside(counted: int, ran: int) -> str:
    """Say why counts of somebody's own beside the ids of some calls of generate() do not add up."""
    return (
        f"{ran} calls of generate() ran, and ids of {counted} of them are beside a count of your own, which may be of "
        f"the others or not: give the ids of all of them, or one {OWN_COUNT} of all"
    )


def calls_of(result: Any, call: Call) -> frozenset[int]:
    """Return which of the seen calls of generate() a result is of, all of it; none where something else is in it."""
    if (part := seen(result, call)) is not None:
        return part.of
    items = result.values() if isinstance(result, Mapping) else result
    if isinstance(items, str | bytes) or not isinstance(items, Sequence | Set | ValuesView):
        return frozenset()
    each = [calls_of(item, call) for item in items]
    return frozenset[int]().union(*each) if all(each) else frozenset()


class Items(tuple[object, ...]):
    """What is left of a list that was counted: the items that still exist, None for the others."""

    __slots__ = ()

    @property
    def identity(self) -> Hashable:
        """The same for the same list, where all of it is there."""
        return id(self) if any(item is None for item in self) else tuple(map(id, self))


def refuse_repeated(results: Sequence[object]) -> None:
    """Raise TokenCountError where results that were counted one by one hold an object, or a request, twice."""
    objects: set[Hashable] = set()
    requests: set[tuple[type, Hashable]] = set()
    for result in results:
        if result is None or isinstance(result, TokenCount | str | bytes | int | float):
            continue  # what is said once more is meant
        own: set[tuple[type, Hashable]] = set()
        with suppress(TokenCountError):  # a hook has counted it, which knows more
            for _, found in _found(result, Call.of(None, (), {}), ()):
                if isinstance(found, Part) and not isinstance(found, Silent) and found.request is not None:
                    own.add((type(found), found.request))
        identity = result.identity if isinstance(result, Items) else id(result)
        if identity in objects or own & requests:
            named = f" (request {next(iter(own & requests))[1]!r})" if own & requests else ""
            raise TokenCountError(f"{kind(result)} was counted twice{named}: count each result once")
        objects.add(identity)
        requests |= own


def _found(
    result: Any, call: Call, path: Path, outer: object = None
) -> Iterator[tuple[Path, Part | TokenCount]]:
    """Return what each object of a result says, with the way to it."""
    outer = result if outer is None else outer
    if isinstance(result, TokenCount):
        yield path, result
        return
    if isinstance(tokens := getattr(result, "tokens", None), TokenCount):
        yield path, tokens
        return
    try:
        if call.ran and (ran := seen(result, call)) is not None:
            yield path, ran
            return
        if (why := refusal(result)) is not None:
            raise TokenCountError(why)
        for shape in SHAPES:
            if shape.fits(result):
                for part in shape.read(result, call, path):
                    yield path, part
                return
    except TokenCountError as error:
        raise TokenCountError(_located(outer, [path], str(error))) from None
    if isinstance(result, Mapping):
        inner: Iterator[tuple[Hashable, Any]] = iter(result.items())
    elif isinstance(result, Sequence | Set | ValuesView):
        inner = iter(enumerate(result))
    else:
        inner = iter(())
    if isinstance(result, str | bytes) or not (items := list(inner)):
        empty = " (it is empty)" if isinstance(result, Sequence | Mapping) and not result else ""
        raise TokenCountError(
            _located(outer, [path], f"the tokens of {kind(result)} cannot be counted{empty}: {RETURN}")
        )
    for key, value in items:
        yield from _found(value, call, (*path, key), outer)


def _counted(result: object, path: Path, tally: Tally) -> TokenCount:
    if not tally.prompt:
        raise TokenCountError(
            _located(
                result,
                [path],
                f"it says that its prompt has 0 tokens, which no request has: return {OWN_COUNT}",
            )
        )
    try:
        return TokenCount(tally.prompt, tally.generated, tally.responses, tally.cached)
    except ValueError as error:
        raise TokenCountError(_located(result, [path], f"{error}: {RETURN}")) from None


def _located(result: object, paths: Sequence[Path], why: str) -> str:
    items = ["".join(f"[{key!r}]" for key in path) for path in paths if path]
    if not items:
        return why
    shown = ", ".join(items[:4]) + (f" and {len(items) - 4} more" if len(items) > 4 else "")
    return f"item{'s' if len(items) > 1 else ''} {shown} of {kind(result)}: {why}"
