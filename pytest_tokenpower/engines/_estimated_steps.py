"""Engine steps worked out from when the chunks of streamed responses arrived. Pure: no clock, no I/O.

What a client sees of a step is a burst of chunks, one of each sequence that was in it. The rules:

- A burst ends where no chunk comes for half of the usual time between two chunks of one response, where a response
  has its next chunk (a sequence gets its tokens once in a step), or where a response begins whose request had not yet
  been sent when the burst began. Chunks of a response that come close together were read late: the earlier ones are
  put back to where the usual pace has them.
- A step ends when the first chunk of its burst arrives: what comes later was on its way while the next step ran. It
  starts where the one before ended, or when the last of the requests that it admitted was sent.
- A prompt is prefilled in the step that its first token comes from. Steps just before it without any first token that
  took much longer than decoding does, while the request was waiting, have had parts of it (chunked prefill): they get
  their share by the time beyond a decode step.

It cannot be known from outside: how long a chunk was under way (all marks are late by that, so the first prefill is
long by it), the time between steps (it counts as the steps'), how the prompts that end in neighbouring steps were cut
among those, and which of a chunk's tokens came from which step where a server sends several at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from statistics import median
from typing import Any

from pytest_tokenpower.engines.protocol import Step

LARGEST_GAP = 0.5
"""A longer pause than this share of the usual time between two chunks of a response ends a burst."""

LATE = 0.25
"""A chunk that comes so soon after the one before of its response, as a share of the usual time between two, shows that
both had been waiting to be read."""

LONG_STEP = 1.5
"""A step without first tokens that takes so many times the median of such steps had a part of a prompt in it."""


@dataclass(frozen=True)
class Trace:
    """One request as its client saw it: when it was sent, and (arrival, tokens) of each chunk, in order.

    Times are on the monotonic clock; chunks without a token do not appear.
    """

    sent_ns: int
    prompt_tokens: int
    chunks: Sequence[tuple[int, int]]


@dataclass
class _Burst:
    end_ns: int
    last_ns: int
    members: set[int] = field(default_factory=set)
    first: list[int] = field(default_factory=list)
    decoded: int = 0
    start_ns: int = 0
    prompt: int = 0

    @property
    def length_ns(self) -> int:
        return self.end_ns - self.start_ns


class EstimatedSteps(Sequence[Step]):
    """The steps behind the responses, worked out when they are first looked at: not while a round is measured."""

    def __init__(self, traces: Sequence[Trace]) -> None:
        self._traces = traces

    @cached_property
    def _steps(self) -> tuple[Step, ...]:
        return estimate_steps(self._traces)

    def __getitem__(self, index: Any) -> Any:
        """Return the step, or steps, at this place."""
        return self._steps[index]

    def __len__(self) -> int:
        """Count the steps."""
        return len(self._steps)


def estimate_steps(traces: Sequence[Trace]) -> tuple[Step, ...]:
    """Estimate the engine's steps, in order and apart; every token of responses and prompts is in one of them.

    The first token of a response belongs to its prefill. A response without chunks has no prefill either.
    """
    bursts = _bursts(traces)
    end_ns = 0
    for burst in bursts:
        burst.start_ns = max([end_ns, *(traces[index].sent_ns for index in burst.first)])
        end_ns = burst.end_ns
    _prefill(bursts, traces)
    return tuple(Step(each.start_ns, each.end_ns, each.prompt, each.decoded) for each in bursts)


def _bursts(traces: Sequence[Trace]) -> list[_Burst]:
    usual_ns = _usual_ns(traces)
    largest_gap = LARGEST_GAP * usual_ns
    chunks = [list(_caught_up(trace, usual_ns)) for trace in traces]
    arrivals = sorted(
        (arrived_ns, index, tokens, nth == 0)
        for index, each in enumerate(chunks)
        for nth, (arrived_ns, tokens) in enumerate(each)
    )
    bursts: list[_Burst] = []
    for arrived_ns, index, tokens, first in arrivals:
        burst = bursts[-1] if bursts else None
        if (
            burst is None
            or arrived_ns - burst.last_ns > largest_gap
            or index in burst.members
            or (first and traces[index].sent_ns >= burst.end_ns)
        ):
            burst = _Burst(arrived_ns, arrived_ns)
            bursts.append(burst)
        burst.last_ns = arrived_ns
        burst.members.add(index)
        burst.decoded += tokens - first
        if first:
            burst.first.append(index)
    return _distinct(bursts)


def _usual_ns(traces: Sequence[Trace]) -> int:
    """Return the usual time between two chunks of a response: the median, or the mean where most were read late."""
    times = [[arrived_ns for arrived_ns, _ in trace.chunks] for trace in traces if len(trace.chunks) > 1]
    if not times:
        return 0
    usual = median(after - before for each in times for before, after in pairwise(each))
    mean = median((each[-1] - each[0]) / (len(each) - 1) for each in times)
    return round(mean if usual < LATE * mean else usual)


def _caught_up(trace: Trace, usual_ns: int) -> Iterator[tuple[int, int]]:
    """Put chunks that were read late back to the pace at which the engine must have sent them; no two at once."""
    before_ns, waiting = trace.sent_ns, list[int]()
    for at, (arrived_ns, tokens) in enumerate(trace.chunks):
        waiting.append(tokens)
        if at + 1 < len(trace.chunks) and trace.chunks[at + 1][0] - arrived_ns <= LATE * usual_ns:
            continue
        end_ns = max(arrived_ns, before_ns + len(waiting))
        pace_ns = max(min(usual_ns, (end_ns - before_ns) // len(waiting)), 1)
        for left, each in zip(reversed(range(len(waiting))), waiting, strict=True):
            yield end_ns - left * pace_ns, each
        before_ns, waiting = end_ns, []


def _distinct(bursts: Sequence[_Burst]) -> list[_Burst]:
    """Bursts of one moment, which no clock tells apart, as one."""
    result: list[_Burst] = []
    for burst in bursts:
        if result and burst.end_ns <= result[-1].end_ns:
            result[-1].decoded += burst.decoded
            result[-1].first += burst.first
            result[-1].members |= burst.members
        else:
            result.append(burst)
    return result


def _prefill(bursts: Sequence[_Burst], traces: Sequence[Trace]) -> None:
    """Give each prompt's tokens to its steps."""
    as_fact = [burst.length_ns for burst in bursts if not burst.first]
    usual_ns = median(as_fact) if as_fact else 0
    for at, burst in enumerate(bursts):
        for index in burst.first:
            trace = traces[index]
            parts, before = [burst], at - 1
            while (
                as_fact
                and before >= 0
                and not bursts[before].first
                and bursts[before].start_ns >= trace.sent_ns
                and bursts[before].length_ns > LONG_STEP * usual_ns
            ):
                parts.insert(0, bursts[before])
                before -= 1
            beyond_ns = [max(each.length_ns - usual_ns, 1) for each in parts]
            total_ns, passed_ns, given = sum(beyond_ns), 0.0, 0
            for part, weight_ns in zip(parts, beyond_ns, strict=True):
                passed_ns += weight_ns
                share = round(trace.prompt_tokens * passed_ns / total_ns) - given
                part.prompt += share
                given += share
