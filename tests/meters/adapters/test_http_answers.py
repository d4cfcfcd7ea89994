"""Whatever a server answers, a meter that speaks HTTP says so in a MeterError."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pytest_tokenpower.errors import MeterError
from pytest_tokenpower.meters.adapters.prometheus import PrometheusMeter
from pytest_tokenpower.meters.adapters.redfish import RedfishMeter
from pytest_tokenpower.meters.adapters.served import HttpTransport
from pytest_tokenpower.meters.adapters.trtllm import TrtllmMeter
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.remote import RemoteMeter
from pytest_tokenpower.meters.timeline import Timeline
from pytest_tokenpower.meters.types import Meter

URL = "http://server:9"

METERS: dict[str, Callable[[], Meter]] = {
    "prometheus": lambda: PrometheusMeter(URL),
    "expression": lambda: PrometheusMeter(URL, "sum(x)", unit="joules"),
    "redfish": lambda: RedfishMeter(URL, "user", "s3cret"),
    "trtllm": lambda: TrtllmMeter(URL),
    "served": lambda: RemoteMeter("remote", HttpTransport(URL)),
}

NAMES = (
    *("status", "data", "result", "resultType", "metric", "values", "value", "errorType", "error"),
    *(
        "Members",
        "@odata.id",
        "Links",
        "ContainedBy",
        "ChassisType",
        "EnvironmentMetrics",
        "Power",
        "PowerWatts",
    ),
    *("Reading", "PowerControl", "PowerConsumedWatts", "Id", "Model", "UUID", "gpu", "total_energy_j"),
)

WORDS = (
    "success",
    "matrix",
    "scalar",
    "/redfish/v1/Chassis/1",
    "http://elsewhere/x",
    "GPU-1",
    "1",
    "nan",
    "1e999",
)

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(WORDS),
    st.text(max_size=5),
    st.sampled_from((0, -1, 1e308, 10**400, -(10**400), 2**63, 1_700_000_000)),
    st.floats(allow_nan=False, allow_infinity=False),
)

DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=20,
)

BODIES = st.one_of(
    DOCUMENTS,
    st.sampled_from(
        (b"", b"[" * 100_000, b'{"a":' * 5000, b"\xff\xfe", b"NaN", b'{"total_energy_j": 1e999}')
    ),
)


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENPOWER_METER_TOKEN", "of the service")


def _answering(monkeypatch: pytest.MonkeyPatch, bodies: list[Any], statuses: list[int]) -> None:
    asked = iter(range(10**6))

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.host == "server"
        at = next(asked)
        body = bodies[at % len(bodies)]
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.Response(statuses[at % len(statuses)], content=content)

    _answered_by(monkeypatch, answer)


def _answered_by(monkeypatch: pytest.MonkeyPatch, answer: Callable[[httpx.Request], httpx.Response]) -> None:
    plain = httpx.Client
    monkeypatch.setattr(
        httpx, "Client", lambda **options: plain(**options, transport=httpx.MockTransport(answer))
    )


PROMETHEUS_TIME = {"status": "success", "data": {"resultType": "scalar", "result": ["nan", "nan"]}}
CHASSIS = {
    "Members": [{"@odata.id": "/redfish/v1/Chassis/1"}],
    "EnvironmentMetrics": {"@odata.id": "/x"},
    "PowerWatts": {"Reading": 10**400},
}


@pytest.mark.parametrize("which", METERS)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(BODIES, min_size=1, max_size=4), st.lists(st.sampled_from((200, 200, 200, 404, 500)), min_size=1)
)
@example([PROMETHEUS_TIME], [200])
@example([CHASSIS], [200])
@example([{"total_energy_j": 10**400}], [200])
def test_no_answer_is_anything_but_a_reading_or_a_meter_error(
    which: str, bodies: list[Any], statuses: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patching:
        _answering(patching, bodies, statuses)
        meter = METERS[which]()
        _use(meter)


def _use(meter: Meter) -> None:
    timeline = Timeline()
    with contextlib.closing(meter), contextlib.suppress(MeterError):
        for device in meter.open(Clock()):
            timeline.add_device(device)
        for _ in range(2):
            with contextlib.suppress(MeterError):
                for reading in meter.poll(Clock()):
                    timeline.append(reading)


@pytest.mark.parametrize("which", METERS)
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e300", "9e18", "1e14", str(10**400), "x", "1"])
@pytest.mark.parametrize("later_s", [0, 1e300])
def test_no_value_of_a_right_answer_breaks_a_meter(
    which: str, value: str, later_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        now_s = time.time()
        number = value if value[-1].isdecimal() and value != "nan" else f'"{value}"'
        if request.url.path.startswith("/api"):
            if request.url.params["query"] == "time()":
                result = f'"scalar", "result": [{now_s}, "{now_s}"]'
            else:
                rows = f'[{now_s - 2}, "1"], [{now_s + later_s}, "{value}"]'
                result = f'"matrix", "result": [{{"metric": {{"UUID": "GPU-1"}}, "values": [{rows}]}}]'
            return httpx.Response(200, text=f'{{"status": "success", "data": {{"resultType": {result}}}}}')
        one = "/redfish/v1/Chassis/1"
        return httpx.Response(
            200,
            text=f'{{"total_energy_j": {number}, "Members": [{{"@odata.id": "{one}"}}], "Id": "1", '
            f'"EnvironmentMetrics": {{"@odata.id": "{one}"}}, "PowerWatts": {{"Reading": {number}}}}}',
        )

    _answered_by(monkeypatch, answer)
    _use(METERS[which]())


HELLO = {
    "feed": "a",
    "host": "h",
    "devices": [{"id": "GPU-1", "scope": "gpu", "name": "b", "meter": "nvml", "provenance": "measured"}],
    "cursor": {},
}


@pytest.mark.parametrize(
    "piece",
    [
        {"power": {"GPU-1": {"t_ns": "AAAA", "milliwatts": "AAAA", "held": True}}},
        {"power": {"GPU-1": {"t_ns": "AAAAAAAAAAA=", "milliwatts": "", "held": True}}},
        {"power": {"GPU-1": {"t_ns": "not base64", "milliwatts": "", "held": True}}},
        {"counters": {"GPU-1": [{"t0_ns": 10**30, "t1_ns": 10**31, "microjoules": 10**32}]}},
        {"more": True},
    ],
)
def test_no_piece_of_a_service_breaks_its_reader(piece: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        documents: dict[str, object] = {
            "/v1/now": time.monotonic_ns(),
            "/v1/hello": HELLO,
            "/v1/piece": {"feed": "a", "cursor": {}, **dict(piece)},  # type: ignore[call-overload]
        }
        return httpx.Response(200, text=json.dumps(documents[request.url.path]))

    _answered_by(monkeypatch, answer)
    meter = RemoteMeter("remote", HttpTransport(URL))
    meter.open(Clock())
    # What is a reading and does not fit into a timeline is the collector's, which notes it as a fault.
    with contextlib.suppress(MeterError):
        meter.poll(Clock())
