"""A batch as vLLM's requests, vLLM's outputs as a generation, and phases from its own request metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pytest_tokenpower.core.windows import Latency
from pytest_tokenpower.engines._adapter import check_batch, check_counts, check_steps, with_cached
from pytest_tokenpower.engines.protocol import Generation, Step
from pytest_tokenpower.workloads.base import Batch


@dataclass(frozen=True)
class RequestPhases:
    """Times at which a batch was prefilled and decoded, in nanoseconds of the monotonic clock.

    The prefill runs from the first request's scheduling to the last one's first token, the decode from there to
    the last token. With ``mixed`` some request decoded while another was still prefilled, so that energy of the
    prefill window is not the prefill's alone.
    """

    prefill_start_ns: int
    prefill_end_ns: int
    decode_end_ns: int
    mixed: bool

    @property
    def prefill(self) -> tuple[int, int]:
        """Start and end of the prefill window."""
        return self.prefill_start_ns, self.prefill_end_ns

    @property
    def decode(self) -> tuple[int, int]:
        """Start and end of the decode window; empty where one token was generated."""
        return self.prefill_end_ns, self.decode_end_ns


@dataclass(frozen=True)
class _Times:
    """Seconds at which a request was scheduled, and had its first token and its last one; its tokens.

    Of the prompt those that were computed, 0 where that is not known.
    """

    scheduled: float
    first: float
    last: float
    generated: int
    prompt: int


def steps_from_request_metrics(outputs: object) -> RequestPhases | None:
    """Read the phases off what ``LLM.generate`` returned; None where any request lacks its times.

    Read are ``metrics.scheduled_ts``, ``first_token_ts`` and ``last_token_ts`` (``time.monotonic()`` seconds of the
    engine's process; one clock for the processes of a Linux host). vLLM leaves ``metrics`` None unless
    ``disable_log_stats=False``. A request that had more than one token before the last first token makes it mixed.
    """
    times = _times(outputs)
    if not times:
        return None
    start = min(each.scheduled for each in times)
    boundary = max(each.first for each in times)
    end = max(each.last for each in times)
    # Requests of one prefill step share one timestamp, and the engine's next step ends later. A first token before
    # the boundary means a later prefill step, in which that request decoded, unless it was finished by then.
    mixed = any(each.first < boundary and each.generated > 1 for each in times)
    return RequestPhases(round(start * 1e9), round(boundary * 1e9), round(end * 1e9), mixed)


def stretches_from_request_metrics(outputs: object) -> tuple[Step, ...]:
    """Cut a batch whose prefills and decodes overlap into stretches between the ends of its prefills.

    vLLM in a process of its own begins with the first request that reaches it, so that this is how it works off most
    batches. A stretch ends where prompts have got their first token, and has all tokens of those prompts. Behind the
    last of these ends every step decodes one token for each request: that tells how many a request had by then, which
    are dealt out evenly over the stretches since its own first. Estimates: a prompt in chunks counts where it ends.
    Empty where any request lacks its times or its prompt, has several completions, or where there is no such decoding.
    """
    times = _times(outputs)
    boundary = max((each.first for each in times), default=0.0)
    paces = [
        (each.last - boundary) / (each.generated - 1)
        for each in times
        if each.first == boundary and each.generated > 1
    ]
    if not paces or min(paces) <= 0 or not all(each.prompt for each in times):
        return ()
    edges = [
        min(each.scheduled for each in times),
        *sorted({each.first for each in times}),
        max(each.last for each in times),
    ]
    prompts, decoded = [0] * (len(edges) - 1), [0] * (len(edges) - 1)
    for each in times:
        own = edges.index(each.first, 1)  # the number of the first stretch in which it decodes
        prompts[own - 1] += each.prompt
        among = sum(edge < each.last for edge in edges[own:-2])
        count = each.generated - 1
        # Each stretch has at least one step.
        before = min(max(count - round((each.last - boundary) / min(paces)), among), count) if among else 0
        for at in range(among):
            decoded[own + at] += before * (at + 1) // among - before * at // among
        decoded[-1] += count - before
    return tuple(
        Step(round(start * 1e9), round(end * 1e9), prompts[at], decoded[at])
        for at, (start, end) in enumerate(pairwise(edges))
    )


def lack_of_times(outputs: object) -> bool:
    """Tell whether these are outputs of vLLM without the times that tell the phases."""
    each = _each(outputs)
    alike = all(hasattr(one, "metrics") and hasattr(one, "outputs") for one in each)
    return bool(each) and alike and not _times(each)


def has_metrics(outputs: object) -> bool:
    """Tell whether these are outputs of vLLM with request metrics, which may tell phases and latencies."""
    each = _each(outputs)
    return bool(each) and getattr(each[0], "metrics", None) is not None


def _each(outputs: object) -> tuple[object, ...]:
    if not isinstance(outputs, Sequence) or isinstance(outputs, str | bytes):
        return (outputs,)
    return tuple(outputs)


def _times(outputs: object) -> list[_Times]:
    times = []
    for output in _each(outputs):
        metrics: Any = getattr(output, "metrics", None)
        scheduled = _seconds(metrics, "scheduled_ts")
        first = _seconds(metrics, "first_token_ts")
        last = _seconds(metrics, "last_token_ts")
        if scheduled is None or first is None or last is None or not scheduled <= first <= last:
            return []
        completions = [len(completion.token_ids) for completion in getattr(output, "outputs", ())]
        # What the prefix cache held was not computed; the last token always is.
        prompt = len(getattr(output, "prompt_token_ids", None) or ()) if len(completions) == 1 else 0
        prompt = min(prompt, max(prompt - (getattr(output, "num_cached_tokens", None) or 0), 1))
        times.append(_Times(scheduled, first, last, sum(completions), prompt))
    return times


def _seconds(metrics: Any, name: str) -> float | None:
    """Read a time of the metrics; vLLM leaves it 0 where it was not taken."""
    value = getattr(metrics, name, None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value > 0 else None


@dataclass(frozen=True)
class Requests:
    """A batch made ready: ``prompts`` as ``LLM.generate`` takes them, ``inputs`` as the engines below it do."""

    batch: Batch
    prompts: Sequence[Any]
    inputs: Sequence[Any]
    sampling: Any


def requests_of(batch: Batch, config: Any) -> Requests:
    """Make a batch ready for an engine with this ``VllmConfig``; raises EngineError for one that it could not run."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    check_batch(
        batch,
        engine="vLLM",
        vocab_size=_vocab_size(config),
        max_positions=config.model_config.max_model_len,
    )
    # No min_tokens: it changes the logits.
    sampling = SamplingParams(
        temperature=0,
        max_tokens=batch.new_tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    prompts = [{"prompt_token_ids": list(prompt)} for prompt in batch.prompts]
    # With their type vLLM takes them as they are; without it they would go through its renderer once more.
    return Requests(batch, prompts, [{"type": "token", **prompt} for prompt in prompts], sampling)


def generation_of(
    batch: Batch, outputs: Sequence[Any], steps: Sequence[Step] | None, *, exact: bool
) -> Generation:
    """Make a generation of ``RequestOutput``s in the batch's order; ``steps`` is None where they are not known.

    Raises EngineError unless the outputs and the steps account for all of the batch that no prefix cache held.
    """
    tokens = with_cached(batch, (output.num_cached_tokens for output in outputs))
    token_ids = tuple(tuple(output.outputs[0].token_ids) for output in outputs)
    check_counts(batch, token_ids, engine="vLLM")
    if steps is not None:
        check_steps(batch, steps, engine="vLLM", cached=tokens.cached_prompt)
    return Generation(
        token_ids=token_ids,
        tokens=tokens,
        steps=tuple(steps or ()),
        steps_exact=exact,
        latencies=latencies_from_request_metrics(outputs),
    )


def latencies_from_request_metrics(outputs: object) -> tuple[Latency, ...]:
    """Read the latencies off what ``LLM.generate`` returned; empty where any request lacks its own."""
    found = [latency_of(output) for output in _each(outputs)]
    return tuple(each for each in found if each is not None) if all(found) else ()


def latency_of(output: Any) -> Latency | None:
    """Read what a request waited from when it was queued; None where vLLM does not tell, or for several completions."""
    metrics = getattr(output, "metrics", None)
    queued, first, last = (
        _seconds(metrics, name) for name in ("queued_ts", "first_token_ts", "last_token_ts")
    )
    completions: Sequence[Any] = getattr(output, "outputs", ())
    if (
        queued is None
        or first is None
        or last is None
        or not queued <= first <= last
        or len(completions) != 1
    ):
        return None
    further = len(completions[0].token_ids) - 1
    return Latency(first - queued, (last - first) / further if further else None)


def _vocab_size(config: Any) -> int | None:
    try:
        return int(config.model_config.get_vocab_size())
    except (AttributeError, TypeError):
        return None
