"""TokenCount, the denominator, and how it is read off what a workload returns. Ids are counted, never words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_tokenpower.errors import TokenCountError


@dataclass(frozen=True)
class TokenCount:
    """Tokens of one execution of a workload.

    Return this from a workload whose result the plugin cannot count itself. ``prompt`` tokens were read (prefill),
    ``generated`` tokens were written (decode); ``responses`` is how many sequences were generated, for joules per
    response.
    """

    prompt: int
    generated: int
    responses: int = 1

    def __post_init__(self) -> None:
        for name in ("prompt", "generated", "responses"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"TokenCount({name}={value!r}): must be an integer of at least 0")

    def __add__(self, other: TokenCount) -> TokenCount:
        return TokenCount(
            self.prompt + other.prompt, self.generated + other.generated, self.responses + other.responses
        )


def count_tokens(
    result: object,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    fn: Callable[..., Any] | None = None,
) -> TokenCount:
    """Tokens of one execution, read off its result (and, for transformers, off the prompt it was called with).

    Known results: TokenCount; anything with a TokenCount in ``.tokens`` (our engines' Generation); vLLM
    RequestOutputs; an OpenAI completion's ``usage``; transformers' ``generate`` output; sequences of these.
    Raises TokenCountError that says what to return instead, also where nothing was generated.
    """
    count = _count(result, args, dict(kwargs or {}), fn)
    if count is None and _sequences(result) is not None:
        raise TokenCountError(
            f"where the prompts end in {_kind(result)} of token ids cannot be told without them: have generate() "
            "called by the fixture, energy(model.generate, **inputs), or return "
            "pytest_tokenpower.TokenCount(prompt=..., generated=...)"
        )
    if count is None:
        raise TokenCountError(
            f"the tokens of {_kind(result)} cannot be counted: return vLLM RequestOutputs, transformers' generate() "
            "output, an OpenAI completion (with .usage), or pytest_tokenpower.TokenCount(prompt=..., generated=...)"
        )
    if count.generated == 0:
        raise TokenCountError(
            f"the workload generated no tokens ({count.prompt} prompt tokens): joules per token needs at least one; "
            "return a TokenCount with what it generated"
        )
    return count


def _count(
    result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], fn: Callable[..., Any] | None
) -> TokenCount | None:
    if isinstance(result, TokenCount):
        return result
    if isinstance(getattr(result, "tokens", None), TokenCount):
        count: TokenCount = result.tokens
        return count
    if (usage := _usage(result)) is not None:
        return usage
    if hasattr(result, "prompt_token_ids") and hasattr(result, "outputs"):
        return TokenCount(
            prompt=len(result.prompt_token_ids or ()),
            generated=sum(len(output.token_ids) for output in result.outputs),
            responses=len(result.outputs),
        )
    if (sequences := _sequences(result)) is not None:
        return _transformers(sequences, args, kwargs, fn)
    if isinstance(result, Sequence) and not isinstance(result, (str, bytes)) and result:
        parts = [_count(part, args, kwargs, fn) for part in result]
        known = [part for part in parts if part is not None]
        if len(known) == len(parts):
            return sum(known[1:], known[0])
    return None


def _usage(result: Any) -> TokenCount | None:
    usage = result.get("usage") if isinstance(result, Mapping) else getattr(result, "usage", None)
    if usage is None:
        return None
    prompt, generated = (
        usage.get(name) if isinstance(usage, Mapping) else getattr(usage, name, None)
        for name in ("prompt_tokens", "completion_tokens")
    )
    if not isinstance(prompt, int) or not isinstance(generated, int):
        return None
    choices = result.get("choices") if isinstance(result, Mapping) else getattr(result, "choices", None)
    return TokenCount(prompt, generated, responses=len(choices) if choices else 1)


def _sequences(result: Any) -> Any:
    """A two-dimensional tensor of token ids, bare or as ``sequences`` of transformers' generate output."""
    tensor = getattr(result, "sequences", result)
    if getattr(tensor, "ndim", None) == 2 and hasattr(tensor, "tolist") and hasattr(tensor, "shape"):
        return tensor
    return None


def _transformers(
    sequences: Any, args: tuple[Any, ...], kwargs: dict[str, Any], fn: Callable[..., Any] | None
) -> TokenCount | None:
    """Decoder-only ``generate``: each row is the (padded) prompt and then what was generated, up to end-of-sequence."""
    prompt = next(
        (p for p in (kwargs.get("input_ids"), kwargs.get("inputs"), *args[:1]) if p is not None), None
    )
    if prompt is None or getattr(prompt, "ndim", None) != 2:
        return None
    mask = kwargs.get("attention_mask")
    prompt_tokens = int(mask.sum()) if mask is not None else int(prompt.shape[0] * prompt.shape[1])
    repeat = int(sequences.shape[0]) // int(prompt.shape[0])
    rows = sequences[:, int(prompt.shape[1]) :].tolist()
    ends = _end_ids(kwargs, fn)
    generated = sum(next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in rows)
    return TokenCount(prompt_tokens * max(repeat, 1), generated, responses=len(rows))


def _end_ids(kwargs: dict[str, Any], fn: Callable[..., Any] | None) -> set[int]:
    # What follows end-of-sequence is padding. Where it is switched off (eos_token_id=None) all rows count whole.
    if "eos_token_id" in kwargs:
        ids = kwargs["eos_token_id"]
    else:
        config = kwargs.get("generation_config") or getattr(
            getattr(fn, "__self__", None), "generation_config", None
        )
        ids = getattr(config, "eos_token_id", None)
    if ids is None:
        return set()
    return {ids} if isinstance(ids, int) else set(ids)


def _kind(result: object) -> str:
    if result is None:
        return "None"
    name = type(result).__name__
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    members = f" of {type(result[0]).__name__}" if isinstance(result, (list, tuple)) and result else ""
    return f"{article} {name}{members}"
