"""Windows on the monotonic clock: a round, and the phases inside it."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_tokenpower.core.tokens import TokenCount

PREFILL, DECODE, MIXED, BETWEEN = "prefill", "decode", "mixed", "between steps"


@dataclass(frozen=True)
class PhaseWindow:
    """A step of a round, or a stretch in one phase; ``estimated`` where the marks come from outside the engine.

    ``phase`` is prefill, decode or mixed; tokens are those of the step, None where only the phase is known.
    """

    phase: str
    start_ns: int
    end_ns: int
    estimated: bool = False
    prompt_tokens: int | None = None
    generated_tokens: int | None = None


@dataclass(frozen=True)
class Latency:
    """What a request waited: for its first token from when it was due, and for each further one (None: no such)."""

    first_token_s: float
    per_token_s: float | None


@dataclass(frozen=True)
class RoundWindow:
    """One round as it was run: its window on the monotonic clock, the tokens of all its repeats, its phases.

    ``executions`` are the different token counts that its executions had: one, unless the work varies; empty where
    only their sum is known. Mixed steps are split by coefficients that the rounds of one ``pool`` have in common.
    ``devices`` are those whose energy is the round's, where a recording says so. ``latencies`` are of all its requests.
    ``reasons`` are what makes it invalid already, whatever its meters say.
    """

    start_ns: int
    end_ns: int
    tokens: TokenCount
    repeats: int = 1
    phases: tuple[PhaseWindow, ...] = ()
    executions: frozenset[TokenCount] = frozenset()
    pool: str = ""
    devices: tuple[str, ...] | None = None
    latencies: tuple[Latency, ...] = ()
    reasons: tuple[str, ...] = ()
