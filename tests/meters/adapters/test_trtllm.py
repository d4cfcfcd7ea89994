"""The energy of a remote trtllm-serve, whose /energy_metrics is played on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pytest_tokenpower.errors import MeterError, MeterUnavailable, UsageError
from pytest_tokenpower.meters.adapters.trtllm import TrtllmMeter
from pytest_tokenpower.meters.clock import Clock
from tests.support.loopback import Request, serving


class Server:
    """Answers as TensorRT-LLM's server does; ``status`` and ``document`` are what is asked for next."""

    def __init__(self) -> None:
        self.status = 200
        self.document: Any = {"total_energy_j": 1234.5678, "query_time": 5.5}

    def answer(self, request: Request) -> None:
        if not request.path.startswith("/energy_metrics"):
            request.answer(404)
            return
        request.answer(self.status, json.dumps(self.document).encode())


@contextmanager
def metering(server: Server) -> Iterator[tuple[TrtllmMeter, str]]:
    with serving(server.answer) as url:
        meter = TrtllmMeter(url)
        try:
            yield meter, url
        finally:
            meter.close()


def test_the_counter_of_the_server() -> None:
    server = Server()
    with metering(server) as (meter, url):
        (device,) = meter.open(Clock())
        host = url.partition("://")[2]
        assert (device.id, device.scope) == (f"trtllm:{host}", "gpu")
        assert device.key_facts == {"interface": "trtllm-serve", "server": host}
        assert not device.slow
        server.document = {"total_energy_j": 1300.0, "query_time": 6.5}
        (reading,) = meter.poll(Clock())
        assert reading.counters[0].microjoules == 1_300_000_000
        assert reading.counters[0].t0_ns <= reading.counters[0].t1_ns
        server.document = {"total_energy_j": 1.0}
        with pytest.raises(MeterError, match="went from 1300 to 1 J: the server was started anew"):
            meter.poll(Clock())
        server.document = {"total_energy_j": 2.0}
        assert meter.poll(Clock())[0].counters[0].microjoules == 2_000_000


@pytest.mark.parametrize(
    ("status", "document", "said"),
    [
        (
            503,
            {"error": "Energy monitoring is not available"},
            "Energy monitoring is not available; start the server",
        ),
        (503, None, "status 503: Service Unavailable; start the server with enable_energy_metrics: true"),
        (404, None, "the server is no trtllm-serve, or older"),
        (200, [], "has no total_energy_j"),
        (200, {"total_energy_j": "5"}, "has no total_energy_j"),
        (200, {"total_energy_j": -1}, "has no total_energy_j"),
        (200, {"total_energy_j": True}, "has no total_energy_j"),
        (200, {"total_energy_j": None}, "has no total_energy_j"),
    ],
)
def test_answers_that_are_no_energy(status: int, document: Any, said: str) -> None:
    server = Server()
    with metering(server) as (meter, _):
        meter.open(Clock())
        server.status, server.document = status, document
        with pytest.raises(MeterError, match=said):
            meter.poll(Clock())
    with metering(server) as (meter, _), pytest.raises(MeterUnavailable, match=said):
        meter.open(Clock())


def test_how_a_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENPOWER_TRTLLM_URL", raising=False)
    with pytest.raises(MeterUnavailable, match="set TOKENPOWER_TRTLLM_URL"):
        TrtllmMeter().open(Clock())
    with pytest.raises(UsageError, match="must look like"):
        TrtllmMeter("server:8000")
    monkeypatch.setenv("TOKENPOWER_TRTLLM_URL", "http://bob:s3cret@127.0.0.1:9")
    with pytest.raises(MeterUnavailable, match=r"http://127\.0\.0\.1:9/energy_metrics") as refused:
        TrtllmMeter().open(Clock())
    assert "s3cret" not in str(refused.value)
