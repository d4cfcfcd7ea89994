"""Redfish against the published responses of four BMCs, served on loopback."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pytest_tokenpower.errors import MeterError, MeterUnavailable, UsageError
from pytest_tokenpower.meters.adapters import redfish
from pytest_tokenpower.meters.adapters.redfish import RedfishMeter
from pytest_tokenpower.meters.clock import Clock
from tests.support.loopback import Request, self_signed, serving

DATA = Path(__file__).parents[2] / "data" / "redfish"
TOKEN = base64.b64encode(b"monitor:secret").decode()

Resources = dict[str, Any]


def bmc(name: str) -> Resources:
    resources: Resources = json.loads((DATA / f"{name}.json").read_text())
    return resources


@contextmanager
def serve(resources: Resources) -> Iterator[str]:
    """Return a BMC that wants basic authentication; a resource may be bytes or a status."""

    def answer(request: Request) -> None:
        resource = resources.get(request.path, 404)
        if request.headers.get("Authorization") != f"Basic {TOKEN}":
            request.answer(401)
        elif isinstance(resource, int):
            request.answer(resource)
        elif isinstance(resource, bytes):
            request.answer(200, resource)
        else:
            request.answer(200, json.dumps(resource).encode(), **{"Content-Type": "application/json"})

    with serving(answer) as url:
        yield url


@contextmanager
def opened(meter: RedfishMeter) -> Iterator[RedfishMeter]:
    try:
        yield meter
    finally:
        meter.close()


def monitor(url: str, **options: Any) -> RedfishMeter:
    return RedfishMeter(url, "monitor", "secret", **options)


@pytest.mark.parametrize(
    ("sensor", "watts"),
    [
        ({"Reading": 412.5}, 412.5),
        ({"Reading": 412.5, "ReadingUnits": "W"}, 412.5),
        ({"Reading": 0.4125, "ReadingUnits": "kW"}, None),
        ({"Reading": "412"}, None),
        ({"Reading": None}, None),
    ],
)
def test_watts_are_watts(sensor: dict[str, Any], watts: float | None) -> None:
    assert redfish._watts({"PowerWatts": sensor}, "PowerWatts") == watts


@pytest.mark.parametrize(
    ("name", "device_id", "model", "schema", "milliwatts"),
    [
        ("dell_r650", "System.Embedded.1", "Dell Inc. PowerEdge R650", "PowerConsumedWatts", 396_000),
        ("hpe_dl380a_gen11", "1", "HPE ProLiant DL380a Gen11", "PowerConsumedWatts", 565_000),
        # Seven chassis, a GPU's and a CPU's among them: only the whole machine's is the node.
        ("supermicro_gb300", "Chassis_0", "Supermicro GB NVL", "PowerWatts", 1_349_264),
    ],
)
def test_published_responses(name: str, device_id: str, model: str, schema: str, milliwatts: int) -> None:
    clock = Clock()
    with serve(bmc(name)) as url, opened(monitor(url)) as meter:
        (device,) = meter.open(clock)
        assert (device.id, device.scope, device.provenance) == (f"redfish:{device_id}", "node", "measured")
        assert device.key_facts == {"interface": "redfish", "schema": schema, "model": model}
        assert (device.facts["resolution_ms"], device.facts["refresh_ms"]) == (60_000.0, 1000.0)
        before_ns = clock.monotonic_ns()
        (reading,) = meter.poll(clock)
        assert reading.device_id == device.id
        assert reading.power is not None
        assert reading.power.milliwatts.tolist() == [milliwatts]
        assert reading.power.held is False
        assert before_ns <= reading.power.t_ns[0] <= clock.monotonic_ns()


def test_without_tls_no_certificates_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent.pem"))
    with serve(bmc("dell_r650")) as url, opened(monitor(url)) as meter:
        assert meter.open(Clock())


def test_a_bmc_that_reports_zero_is_no_meter() -> None:
    zero = pytest.raises(MeterUnavailable, match=r"no meter, .*/redfish/v1/Chassis/1/Power: 0 W")
    with serve(bmc("supermicro_x10")) as url, opened(monitor(url)) as meter, zero:
        meter.open(Clock())


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URL", "USER", "PASSWORD", "CHASSIS", "CA"):
        monkeypatch.delenv(f"TOKENPOWER_REDFISH_{name}", raising=False)
    with pytest.raises(MeterUnavailable, match="set TOKENPOWER_REDFISH_URL"):
        RedfishMeter().open(Clock())
    with serve(bmc("supermicro_gb300")) as url:
        monkeypatch.setenv("TOKENPOWER_REDFISH_URL", url + "/")
        monkeypatch.setenv("TOKENPOWER_REDFISH_USER", "monitor")
        monkeypatch.setenv("TOKENPOWER_REDFISH_PASSWORD", "secret")
        monkeypatch.setenv("TOKENPOWER_REDFISH_CHASSIS", "HGX_GPU_0")
        with opened(RedfishMeter()) as meter:
            (device,) = meter.open(Clock())
            assert device.id == "redfish:HGX_GPU_0"
        absent = pytest.raises(MeterUnavailable, match="no chassis 'Rack_9'; there are: BMC_0, Chassis_0")
        with opened(RedfishMeter(chassis="Rack_9")) as meter, absent:
            meter.open(Clock())


def test_several_machines_need_a_choice() -> None:
    resources = bmc("dell_r650")
    other = json.loads(json.dumps(resources).replace("System.Embedded.1", "System.Modular.2"))
    members = resources["/redfish/v1/Chassis"]["Members"] + other["/redfish/v1/Chassis"]["Members"]
    resources = {**other, **resources, "/redfish/v1/Chassis": {"Members": members}}
    with (
        serve(resources) as url,
        opened(monitor(url)) as meter,
        pytest.raises(MeterUnavailable, match=r"several machines.*System.Embedded.1/Power, System.Modular.2"),
    ):
        meter.open(Clock())


def test_wrong_password_is_said_and_the_password_is_not() -> None:
    denied = pytest.raises(MeterUnavailable, match="401, user 'monitor' may not read")
    with (
        serve(bmc("dell_r650")) as url,
        opened(RedfishMeter(url, "monitor", "guess")) as meter,
        denied as caught,
    ):
        meter.open(Clock())
    assert "guess" not in str(caught.value)
    with pytest.raises(UsageError, match="leave user and password out") as refused:
        RedfishMeter("https://monitor:guess@bmc")
    assert "guess" not in str(refused.value)
    for url in (
        "https://bmc?password=guess",
        "https://bmc/#guess@x",
        "https://m:gu/guess@bmc",
        "https://m:guess@b:x",
    ):
        with pytest.raises(UsageError) as refused:
            RedfishMeter(url)
        assert "guess" not in str(refused.value)
    with pytest.raises(UsageError, match="must look like"):
        RedfishMeter("bmc.example.org")


@pytest.mark.parametrize(
    ("resource", "message"),
    [
        (503, r"/Power: status 503 Service Unavailable"),
        (404, r"/Power: status 404"),
        (b"<html>", "not a Redfish resource"),
        (b"[]", "not a Redfish resource"),
        ({"PowerControl": []}, "reads nothing as PowerConsumedWatts"),
        ({"PowerControl": [{"PowerConsumedWatts": None}]}, "reads nothing"),
        ({"PowerControl": [{"PowerConsumedWatts": "396"}]}, "reads nothing"),
        ({"PowerControl": [{"PowerConsumedWatts": 0}]}, "reads 0 W"),
        ({"PowerControl": [{"PowerConsumedWatts": 65535}]}, "reads 65535 W"),
        ({"PowerControl": [{"PowerConsumedWatts": -1}]}, "reads -1 W"),
        ({"PowerControl": {"PowerConsumedWatts": 5}}, "reads nothing"),
        ({"PowerControl": [5, None]}, "reads nothing"),
        (b'{"PowerControl": [{"PowerConsumedWatts": NaN}]}', "not a Redfish resource"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, "nested too deeply", id="deep"),
        pytest.param(b'{"PowerControl": ' + b"[" * 100_000, "nested too deeply", id="deep and cut off"),
    ],
)
def test_faults_of_a_poll_are_named(resource: Any, message: str) -> None:
    resources = bmc("dell_r650")
    with serve(resources) as url, opened(monitor(url)) as meter:
        meter.open(Clock())
        meter.poll(Clock())
        resources["/redfish/v1/Chassis/System.Embedded.1/Power"] = resource
        with pytest.raises(MeterError, match=message):
            meter.poll(Clock())


@pytest.mark.parametrize(
    "resource",
    [
        {},
        {"Members": 5},
        {"Members": [5, None, {"@odata.id": 7}, {"@odata.id": "/redfish/v1/Chassis/x"}]},
        {"Members": [{"@odata.id": "/redfish/v1/Chassis/odd"}]},
    ],
)
def test_resources_of_the_wrong_shape_are_no_meter(resource: Any) -> None:
    odd = {"Links": [1], "ChassisType": {}, "Power": "/p", "EnvironmentMetrics": {"@odata.id": 3}}
    with (
        serve({"/redfish/v1/Chassis": resource, "/redfish/v1/Chassis/odd": odd}) as url,
        opened(monitor(url)) as meter,
        pytest.raises(MeterUnavailable, match=r"^Redfish: "),
    ):
        meter.open(Clock())


@pytest.mark.parametrize("by", ["link", "redirect"])
def test_another_host_is_never_asked_with_our_password(by: str) -> None:
    asked: list[str] = []

    def elsewhere(request: Request) -> None:
        asked.append(request.headers.get("Authorization") or "")
        request.answer(200, b"{}")

    with serving(elsewhere) as other:
        if by == "link":
            resources: Resources = {
                "/redfish/v1/Chassis": {"Members": [{"@odata.id": f"{other}/redfish/v1/Chassis/1"}]}
            }
            server = serve(resources)
        else:
            server = serving(lambda request: request.answer(301, Location=f"{other}{request.path}"))
        refused = pytest.raises(MeterUnavailable, match=r"leads to another host .* is not followed")
        with server as url, opened(monitor(url)) as meter, refused:
            meter.open(Clock())
    assert asked == []


def test_a_bmc_that_hangs_or_trickles_is_given_up() -> None:
    resources = bmc("dell_r650")
    over = threading.Event()
    mode = "well"

    def answer(request: Request) -> None:
        if mode == "hang":
            over.wait(60)
        elif mode == "trickle":
            request.handler.send_response(200)
            request.handler.end_headers()
            while not over.wait(0.05):
                request.handler.wfile.write(b" ")
        elif request.path in resources:
            request.answer(200, json.dumps(resources[request.path]).encode())
        else:
            request.answer(404)

    try:
        with serving(answer) as url, opened(RedfishMeter(url, timeout_s=0.6)) as meter:
            meter.open(Clock())
            mode = "hang"
            with pytest.raises(MeterError, match=r"no answer within 0.3 s"):
                meter.poll(Clock())
            mode = "trickle"
            with pytest.raises(MeterError, match=r"took longer than 0.6 s"):
                meter.poll(Clock())
            over.set()
    finally:
        over.set()


def test_a_bmc_that_is_off() -> None:
    with serve({}) as url:
        pass
    with opened(monitor(url)) as meter:
        with pytest.raises(MeterUnavailable, match=r"GET http://127.0.0.1:\d+/redfish/v1/Chassis: .*refused"):
            meter.open(Clock())
        with pytest.raises(MeterError, match="poll before open"):
            meter.poll(Clock())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate")
def test_certificates_are_checked(tmp_path: Path) -> None:
    certificate, context = self_signed(tmp_path)
    resources = bmc("hpe_dl380a_gen11")

    def answer(request: Request) -> None:
        if request.path in resources:
            request.answer(200, json.dumps(resources[request.path]).encode())
        else:
            request.answer(404)

    with serving(answer, context) as url:
        untrusted = pytest.raises(MeterUnavailable, match=r"CERTIFICATE_VERIFY_FAILED.*TOKENPOWER_REDFISH_CA")
        with opened(RedfishMeter(url)) as meter, untrusted:
            meter.open(Clock())
        with opened(RedfishMeter(url, ca=str(certificate))) as meter:
            (device,) = meter.open(Clock())
            assert device.facts["tls_verified"] is True
            meter.poll(Clock())
        with opened(RedfishMeter(url, verify=False)) as meter:
            (device,) = meter.open(Clock())
            assert device.facts["tls_verified"] is False
        with pytest.raises(MeterUnavailable, match="no certificates can be read from"):
            RedfishMeter(url, ca=str(tmp_path / "absent.pem")).open(Clock())
