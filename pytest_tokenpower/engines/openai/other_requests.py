"""Requests of others on a server that several use: told by its own token counter, where it has one."""

from __future__ import annotations

import re
import time

from pytest_tokenpower.engines.openai.client import Client
from pytest_tokenpower.errors import EngineError

_GENERATED = re.compile(rb"^vllm:generation_tokens_total(?:\{[^}]*\})? (\S+)", re.MULTILINE)

_LAG_S = 2.0
"""vLLM counts a step after it has sent the step's tokens."""


class OtherRequests:
    """Holds what vLLM says that it has generated (``/metrics``) against what it has generated for us."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._ours = 0
        self._seen = self._generated()

    @property
    def told(self) -> bool:
        """Whether the server tells at all."""
        return self._seen is not None

    def generated(self, tokens: int) -> None:
        """Count tokens that were generated for us."""
        self._ours += tokens

    def reason(self) -> str:
        """Return what is wrong with the time since this was asked last; "" where nothing is, or the server is silent.

        Asked when a round has closed: it takes a request of its own.
        """
        if self._seen is None:
            return ""
        until = time.monotonic() + _LAG_S
        while True:
            try:
                now = self._generated()
            except EngineError as error:
                return f"whether others used the server is not known: {error}"
            if now is not None and now >= self._seen + self._ours:
                break
            if time.monotonic() > until:
                self._seen, self._ours = now, 0
                return "the server counts fewer tokens than it has sent: it was restarted, or several answer here"
            time.sleep(0.02)
        others, self._seen, self._ours = now - self._seen - self._ours, now, 0
        return (
            f"the server generated {others:.0f} tokens for others meanwhile, whose energy is in it"
            if others
            else ""
        )

    def _generated(self) -> float | None:
        answer = self._client.get("/metrics")
        found = _GENERATED.findall(answer.body) if answer.status == 200 else []
        return sum(map(float, found)) if found else None
