"""Requests of others on a server that several use: told by its own token counter, where it has one."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass

from pytest_tokenpower.engines.openai.client import Client
from pytest_tokenpower.errors import EngineError

_GENERATED = re.compile(rb"^vllm:generation_tokens_total(?:\{[^}]*\})? (\S+)", re.MULTILINE)

_LAG_S = 2.0
"""vLLM counts a step after it has sent the step's tokens."""


@dataclass
class _Count:
    """What a server had generated when it was last looked at, and what it has generated for this process since.

    ``unknown``: it did not answer after a batch of ours that failed, of which nobody knows how much was generated.
    """

    seen: float = 0.0
    ours: int = 0
    unknown: bool = False


_COUNTS: defaultdict[str, _Count] = defaultdict(_Count)
"""One for each server, whichever engines of this process speak to it: they are no others to each other."""


class OtherRequests:
    """Holds what vLLM says that it has generated (``/metrics``) against what it has generated for us.

    Attributes:
        told: whether the server tells at all.
    """

    def __init__(self, client: Client, server: str) -> None:
        self._client, self._count = client, _COUNTS[server]
        seen = self._generated()
        self.told = seen is not None
        if seen is not None:
            self._count.seen, self._count.ours, self._count.unknown = seen, 0, False

    def failed(self) -> None:
        """Begin anew after a batch of ours that failed midway: what the server generated for it was for nobody else."""
        if not self.told:
            return
        until, before, now = time.monotonic() + _LAG_S, None, None
        with suppress(EngineError):
            now = self._generated()
            # It goes on with what was under way until it sees that nobody waits for it.
            while now != before and time.monotonic() < until:
                time.sleep(_LAG_S / 20)
                before, now = now, self._generated()
        self._count.unknown = now is None
        if now is not None:
            self._count.seen, self._count.ours = now, 0

    def generated(self, tokens: int) -> None:
        """Count tokens that were generated for us."""
        self._count.ours += tokens

    def reason(self) -> str:
        """Return what is wrong with the time since this was asked last; "" where nothing is, or the server is silent.

        Asked when a round has closed: it takes a request of its own. What cannot be told now is in the next answer.
        """
        if not self.told:
            return ""
        count, until = self._count, time.monotonic() + _LAG_S
        due = 0.0 if count.unknown else count.seen + count.ours
        while True:
            try:
                now = self._generated()
            except EngineError as error:
                return f"whether others used the server is not known: {error}"
            if now is not None and now >= due:
                break
            if time.monotonic() > until:
                if now is None:
                    return "whether others used the server is not known: its /metrics no longer says"
                count.seen, count.ours = now, 0
                return "the server counts fewer tokens than it has sent: it was restarted, or several answer here"
            time.sleep(0.02)
        unknown, count.seen, count.ours, count.unknown = count.unknown, now, 0, False
        if unknown:
            return "whether others used the server is not known: it did not answer after a batch that failed"
        return (
            f"the server generated {now - due:.0f} tokens for others meanwhile, whose energy is in it"
            if now > due
            else ""
        )

    def _generated(self) -> float | None:
        answer = self._client.get("/metrics")
        found = _GENERATED.findall(answer.body) if answer.status == 200 else []
        return sum(map(float, found)) if found else None
