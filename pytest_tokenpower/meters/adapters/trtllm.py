"""A remote trtllm-serve: the energy of the GPUs that it serves from, as it counts them itself (``/energy_metrics``)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pytest_tokenpower.core.credentials import without_credentials
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import MeterError, MeterUnavailable
from pytest_tokenpower.meters.adapters._http import checked_url, connect, get_json
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.types import CounterReading, Device, Reading

if TYPE_CHECKING:
    import httpx

COUNTER_TICK_NS = 100_000_000
"""The server reads NVML's counters when it is asked, which change that often."""


class TrtllmMeter:
    """``total_energy_j`` of trtllm-serve, started with ``enable_energy_metrics: true`` in its ``--config`` file.

    The counter holds all GPUs of the server since it has started. What it reads are the GPUs of its own node: for a
    server over several nodes it multiplies them by its world size. Each answer is taken in the server's own loop, so it
    is asked once a second. The server does not say what its GPUs are: only figures of one address are compared.
    Untried on hardware.

    The URL comes from TOKENPOWER_TRTLLM_URL where it is not given. No request takes longer than ``timeout_s``.
    """

    name = "trtllm"
    poll_interval_s = 1.0

    def __init__(self, url: str | None = None, *, timeout_s: float = 4.0) -> None:
        named = os.environ.get("TOKENPOWER_TRTLLM_URL", "") if url is None else url
        self._server = checked_url(named, "trtllm-serve", "http://server:8000")
        self._url = without_credentials(self._server)
        self._timeout_s = min(timeout_s, 5.0)
        self._client: httpx.Client | None = None
        self._id = ""
        self._last_uj = 0

    def open(self, clock: Clock) -> Sequence[Device]:
        """Ask for the counter once; raises MeterUnavailable with what to do."""
        if not self._server:
            raise MeterUnavailable("trtllm-serve: no server is named; set TOKENPOWER_TRTLLM_URL")
        self._client = connect(self._server)
        try:
            self._last_uj = self._microjoules()
        except MeterError as error:
            self.close()
            raise MeterUnavailable(str(error)) from error
        parts = urlsplit(self._url)
        self._id = f"trtllm:{parts.netloc}"
        key_facts: dict[str, Fact] = {"interface": "trtllm-serve", "server": parts.netloc}
        return [
            Device(
                id=self._id,
                scope="gpu",
                name=f"GPUs of trtllm-serve at {parts.netloc}",
                meter=self.name,
                provenance="measured",
                key_facts=key_facts,
                facts={
                    "resolution_ms": 2e3 * self.poll_interval_s,
                    "refresh_ms": 1e3 * self.poll_interval_s,
                    "url": self._url,
                },
                counter_tick_ns=COUNTER_TICK_NS,
                latency_s=self._timeout_s,
            )
        ]

    def poll(self, clock: Clock) -> Sequence[Reading]:
        """One reading of the counter; raises MeterError, also where it falls."""
        t0_ns = clock.monotonic_ns()
        now_uj = self._microjoules()
        t1_ns = clock.monotonic_ns()
        before_uj, self._last_uj = self._last_uj, now_uj
        if now_uj < before_uj:
            raise MeterError(
                f"trtllm-serve: the energy of {self._url} went from {before_uj / 1e6:g} to {now_uj / 1e6:g} J: the"
                " server was started anew"
            )
        return [Reading(self._id, counters=(CounterReading(t0_ns, t1_ns, now_uj),))]

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _microjoules(self) -> int:
        if self._client is None:
            raise MeterError("trtllm-serve: poll before open")
        where = f"trtllm-serve: {self._url}/energy_metrics"
        answer = get_json(self._client, "/energy_metrics", timeout_s=self._timeout_s, where=where)
        document = answer.document if isinstance(answer.document, dict) else {}
        if answer.status == 404:
            raise MeterError(
                f"{where}: status 404: the server is no trtllm-serve, or older than its energy metrics (2026)"
            )
        if answer.status != 200:
            raise MeterError(
                f"{where}: status {answer.status}: {document.get('error') or answer.reason}; start the server with"
                " enable_energy_metrics: true in its --config file, on a machine with NVML"
            )
        joules = document.get("total_energy_j")
        if isinstance(joules, bool) or not isinstance(joules, int | float) or not 0 <= joules < 1e12:
            raise MeterError(f"{where}: the answer has no total_energy_j that is an energy")
        return round(joules * 1e6)
