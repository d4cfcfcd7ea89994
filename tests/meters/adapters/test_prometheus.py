"""Prometheus: against a server on loopback that plays its API, and against a real one where it is installed."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from pytest_tokenpower.errors import MeterError, MeterUnavailable, UsageError
from pytest_tokenpower.meters.adapters.prometheus import PrometheusMeter, identity, matrix, refresh_s, step_s
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.types import CounterReading, Reading
from tests.support.loopback import Request, serving
from tests.support.prometheus import needs_prometheus, prometheus

ENERGY = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
POWER = "DCGM_FI_DEV_POWER_USAGE"
START_S = 1_763_800_000


class Store:
    """Samples by query, a time that the test moves, and the API that reads them."""

    def __init__(self) -> None:
        self.now_s = float(START_S)
        self.skew_s = 0.0
        self.series: dict[str, list[tuple[dict[str, str], list[tuple[float, float]]]]] = {}
        self.reply: bytes | None = None
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.clock = Clock(
            monotonic_ns=lambda: round((self.now_s - START_S + 1000) * 1e9),
            realtime_ns=lambda: round(self.now_s * 1e9),
        )

    def add(self, query: str, labels: dict[str, str], rows: list[tuple[float, float]]) -> None:
        self.series.setdefault(query, []).append((labels, rows))

    def answer(self, request: Request) -> None:
        url = urlsplit(request.path)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.asked.append((url.path, asked))
        if self.reply is not None:
            request.answer(200, self.reply)
            return
        query = asked["query"]
        if query == "time()":
            at = self.now_s + self.skew_s
            self.send(request, {"resultType": "scalar", "result": [at, str(at)]})
            return
        if url.path == "/api/v1/query":
            query, _, span = query.removesuffix("s]").rpartition("[")
            low_s, high_s = self.now_s - float(span), self.now_s
        else:
            low_s, high_s = float(asked["start"]), float(asked["end"])
        if query not in self.series and query.startswith("bad"):
            request.answer(
                400,
                json.dumps({"status": "error", "errorType": "bad_data", "error": "parse error"}).encode(),
            )
            return
        if url.path == "/api/v1/query":
            result = [
                {"metric": labels, "values": kept}
                for labels, rows in self.series.get(query, [])
                if (kept := [[t_s, str(value)] for t_s, value in rows if low_s <= t_s <= high_s])
            ]
        else:
            result = [
                {"metric": labels, "values": self.evaluated(rows, low_s, high_s, float(asked["step"]))}
                for labels, rows in self.series.get(query, [])
            ]
        self.send(request, {"resultType": "matrix", "result": result})

    def evaluated(
        self, rows: list[tuple[float, float]], low_s: float, high_s: float, step: float
    ) -> list[Any]:
        """Return what query_range gives: the last sample at each step."""
        values = []
        at_s = low_s
        while at_s <= high_s:
            known = [value for t_s, value in rows if t_s <= at_s]
            if known:
                values.append([at_s, str(known[-1])])
            at_s += step
        return values

    def send(self, request: Request, data: object) -> None:
        request.answer(200, json.dumps({"status": "success", "data": data}).encode())


@contextmanager
def reading(store: Store, *arguments: Any, **options: Any) -> Iterator[PrometheusMeter]:
    with serving(store.answer) as url:
        meter = PrometheusMeter(url, *arguments, **options)
        try:
            yield meter
        finally:
            meter.close()


def gpu(index: int) -> dict[str, str]:
    return {
        "__name__": ENERGY,
        "UUID": f"GPU-{index}",
        "gpu": str(index),
        "modelName": "NVIDIA H100 80GB HBM3",
        "Hostname": "node7",
        "instance": "node7:9400",
        "DCGM_FI_DRIVER_VERSION": "580.159",
    }


def scrapes(first_s: float, last_s: float, every_s: float) -> list[float]:
    count = int((last_s - first_s) // every_s)
    return [first_s + every_s * index for index in range(count + 1)]


def test_dcgm_energy_counters_come_with_the_times_of_their_scrapes() -> None:
    store = Store()
    rows = [(t_s, (t_s - START_S + 10_000) * 500_000) for t_s in scrapes(START_S - 100.25, START_S + 60, 10)]
    for index in (0, 1):
        store.add(ENERGY, gpu(index), rows)
    with reading(store) as meter:
        devices = meter.open(store.clock)
        assert [(device.id, device.scope, device.provenance) for device in devices] == [
            ("prometheus:GPU-0", "gpu", "measured"),
            ("prometheus:GPU-1", "gpu", "measured"),
        ]
        assert devices[0].name == "NVIDIA H100 80GB HBM3"
        assert devices[0].key_facts["unit"] == "millijoules"
        assert (devices[0].facts["refresh_ms"], devices[0].facts["resolution_ms"]) == (10_000.0, 20_000.0)
        assert devices[0].counter_tick_ns == 10_000_000_000
        assert meter.poll(store.clock) == []
        store.now_s += 25.0
        first, second = meter.poll(store.clock)
        assert (first.device_id, second.device_id) == ("prometheus:GPU-0", "prometheus:GPU-1")
        # Scraped 9.75 and 19.75 s after the start, which is 1000 s on the monotonic clock.
        assert [counter.t0_ns for counter in first.counters] == [1_009_750_000_000, 1_019_750_000_000]
        assert [counter.t1_ns for counter in first.counters] == [1_009_750_000_000, 1_019_750_000_000]
        assert [counter.microjoules for counter in first.counters] == [
            round((10_000 + after_s) * 500_000) * 1000 for after_s in (9.75, 19.75)
        ]
        store.now_s += 5.0
        assert [len(one.counters) for one in meter.poll(store.clock)] == [1, 1]
        assert meter.poll(store.clock) == []


def test_a_counter_that_begins_anew_is_said() -> None:
    store = Store()
    times = scrapes(START_S - 100, START_S + 60, 10)
    store.add(
        ENERGY, gpu(0), [(t_s, 9e9 + 1e6 * t_s - (9e9 + 1e6 * START_S) * (t_s > START_S)) for t_s in times]
    )
    with reading(store) as meter:
        meter.open(store.clock)
        store.now_s += 5
        assert meter.poll(store.clock) == []
        store.now_s += 30
        [reading_] = meter.poll(store.clock)
        assert len(reading_.counters) == 3
        assert re.search(
            r"the energy counter of prometheus:GPU-0 went backwards, from [\d.]+ J to 10000.0 J",
            reading_.fault or "",
        )
        store.now_s += 20
        assert [one.fault for one in meter.poll(store.clock)] == [None]


def test_values_that_the_exporter_repeats_are_no_new_readings() -> None:
    """A scrape each 10 s of an exporter that collects each 30 s: the resolution is the exporter's."""
    store = Store()
    rows = [
        (t_s, 1e9 + (t_s - START_S + 300) // 30 * 15e6) for t_s in scrapes(START_S - 300, START_S + 90, 10)
    ]
    store.add(ENERGY, gpu(0), rows)
    with reading(store) as meter:
        (device,) = meter.open(store.clock)
        assert (device.facts["refresh_ms"], device.facts["resolution_ms"]) == (30_000.0, 60_000.0)
        store.now_s += 65.0
        (reading_,) = meter.poll(store.clock)
        assert [counter.t1_ns // 10**9 for counter in reading_.counters] == [1030, 1060]


def test_power_where_there_is_no_energy_and_matchers() -> None:
    store = Store()
    query = f'{POWER}{{Hostname="node7"}}'
    labels = {**gpu(0), "__name__": POWER}
    store.add(query, labels, [(t_s, 412.5) for t_s in scrapes(START_S - 60, START_S + 20, 5)])
    with reading(store, matchers='Hostname="node7"') as meter:
        (device,) = meter.open(store.clock)
        assert device.key_facts["unit"] == "watts"
        (first,) = meter.poll(store.clock)
        assert first.power is not None
        assert first.power.t_ns.tolist() == [1_000_000_000_000]  # the last point before the start
        store.now_s += 11
        (second,) = meter.poll(store.clock)
        assert second.power is not None
        assert second.power.held is False
        assert second.power.milliwatts.tolist() == [412_500, 412_500]
        assert second.power.t_ns.tolist() == [1_005_000_000_000, 1_010_000_000_000]


def test_an_expression_for_a_pdu() -> None:
    store = Store()
    expression = "sum by (pdu) (pdu_outlet_watts)"
    rows = [(t_s, 3000.0 + t_s % 7) for t_s in scrapes(START_S - 300, START_S + 60, 15)]
    store.add(expression, {"pdu": "a3"}, rows)
    with reading(store, expression) as meter:
        (device,) = meter.open(store.clock)
        assert (device.id, device.scope) == ("prometheus:a3", "rack")
        assert (device.facts["refresh_ms"], device.facts["resolution_ms"]) == (15_000.0, 30_000.0)
        store.now_s += 31
        (reading_,) = meter.poll(store.clock)
        assert reading_.power is not None
        # The point of before, and one at each step of 15 s.
        assert reading_.power.t_ns.tolist() == [1_000 * 10**9, 1_005 * 10**9, 1_020 * 10**9]
        assert store.asked[-1][0] == "/api/v1/query_range"
        assert store.asked[-1][1]["step"] == "15.000"


@pytest.mark.parametrize(("unit", "scale"), [("joules", 10**6), ("millijoules", 10**3)])
def test_an_expression_may_be_a_counter(unit: Any, scale: int) -> None:
    store = Store()
    store.add(
        "node_energy_total", {"instance": "n1"}, [(t_s, t_s) for t_s in scrapes(START_S - 9, START_S + 9, 1)]
    )
    with reading(store, "node_energy_total", unit=unit, scope="node") as meter:
        (device,) = meter.open(store.clock)
        assert device.scope == "node"
        store.now_s += 1
        (reading_,) = meter.poll(store.clock)
        assert reading_.counters[0].microjoules == (START_S + 1) * scale


def slices(*numbers: int, pod: str = "") -> list[dict[str, str]]:
    own = {"exported_pod": pod} if pod else {}
    return [{**gpu(0), "GPU_I_PROFILE": "2g.20gb", "GPU_I_ID": str(each), **own} for each in numbers]


def counted(first_s: float, last_s: float, every_s: float = 1) -> list[tuple[float, float]]:
    """Return a board of 300 W, as its exporter counts it in millijoules."""
    return [(t_s, 1e9 + (t_s - START_S) * 300_000) for t_s in scrapes(first_s, last_s, every_s)]


@pytest.mark.parametrize("metric", [ENERGY, POWER])
@pytest.mark.parametrize("pods", [False, True])
def test_a_board_that_is_listed_for_each_slice_or_pod_is_measured_once(metric: str, pods: bool) -> None:
    store = Store()
    rows = (
        counted(START_S - 60, START_S + 60)
        if metric == ENERGY
        else [(t, 300.0) for t, _ in counted(START_S - 60, START_S + 60)]
    )
    listed = [{**gpu(0), "exported_pod": name} for name in ("a", "b")] if pods else slices(3, 5, 6)
    for labels in listed:
        store.add(metric, {**labels, "__name__": metric}, rows)
    with reading(store) as meter:
        (device,) = meter.open(store.clock)
        assert device.id == "prometheus:GPU-0"
        assert device.name.endswith("(whole board, in MIG mode)") is not pods
        assert device.key_facts.get("mig") == (None if pods else "whole board")
        store.now_s += 5
        (read,) = meter.poll(store.clock)
        assert read.fault is None
        if metric == ENERGY:
            assert read.counters[-1].microjoules - read.counters[0].microjoules == 4 * 300_000_000


def test_a_slice_by_itself_and_series_that_differ_are_refused() -> None:
    store = Store()
    store.add(f'{ENERGY}{{GPU_I_ID="3"}}', slices(3)[0], counted(START_S - 60, START_S))
    with (
        reading(store, matchers='GPU_I_ID="3"') as meter,
        pytest.raises(MeterUnavailable, match="names a MIG slice"),
    ):
        meter.open(store.clock)
    for number, labels in enumerate(slices(3, 5)):
        rows = [(t_s, value + number * 1e9) for t_s, value in counted(START_S - 60, START_S)]
        store.add(ENERGY, labels, rows)
    refused = pytest.raises(MeterUnavailable, match=r"several series for one device \(GPU-0 \(GPU_I_ID: ")
    with reading(store) as meter, refused:
        meter.open(store.clock)


@pytest.mark.parametrize("overlap", [0, 2])
def test_a_board_that_goes_on_under_other_labels_is_faulty_from_the_next_poll_on(overlap: int) -> None:
    store = Store()
    store.add(ENERGY, gpu(0), counted(START_S - 60, START_S + 10 + overlap))
    store.add(ENERGY, {**gpu(0), "instance": "10.0.0.9:9400"}, counted(START_S + 11, START_S + 60))
    with reading(store) as meter:
        meter.open(store.clock)
        store.now_s += 9
        assert meter.poll(store.clock)[0].fault is None
        for _ in range(3):
            store.now_s += 5
            (read,) = meter.poll(store.clock)
            assert "under other labels (instance: node7:9400 and 10.0.0.9:9400)" in (read.fault or "")
            assert read.counters


@pytest.mark.parametrize("expression", ["pdu_watts", "sum by (pod) (pdu_watts)"])
def test_a_series_without_a_uuid_that_goes_on_under_other_labels_is_faulty_soon(expression: str) -> None:
    """Nothing tells that the two are one; waiting until the first is dead for certain would take minutes."""
    store = Store()
    ends = START_S + 30
    store.add(expression, {"pod": "a"}, [(t_s, 3000 + t_s % 7) for t_s in scrapes(START_S - 300, ends, 15)])
    store.add(expression, {"pod": "b"}, [(t_s, 3000 + t_s % 7) for t_s in scrapes(ends + 15, ends + 300, 15)])
    with reading(store, expression) as meter:
        meter.open(store.clock)
        faults = []
        for _ in range(6):
            store.now_s += 15
            # query_range goes on with the last value of a series that a stale marker has not ended.
            store.series[expression] = [
                each for each in store.series[expression] if each[0]["pod"] == "b" or store.now_s < ends + 15
            ]
            (read,) = meter.poll(store.clock) or [Reading("none")]
            faults.append(read.fault)
        assert faults[:2] == [None, None]
        assert "has ended, and a series of other labels has begun (pod: a and b)" in (faults[-3] or "")
        assert "has ended" in (faults[-1] or "")


def test_a_series_that_begins_beside_harms_none_that_goes_on() -> None:
    store = Store()
    store.add(
        "pdu_watts", {"pod": "a"}, [(t_s, 3000 + t_s % 7) for t_s in scrapes(START_S - 300, START_S + 90, 15)]
    )
    store.add(
        "pdu_watts", {"pod": "b"}, [(t_s, 3000 + t_s % 7) for t_s in scrapes(START_S + 13, START_S + 90, 15)]
    )
    with reading(store, "pdu_watts") as meter:
        meter.open(store.clock)
        for _ in range(80):
            store.now_s += 1
            assert all(read.fault is None for read in meter.poll(store.clock))


def test_a_repeat_that_ends_is_followed_by_another() -> None:
    store = Store()
    for labels, end_s in zip(slices(3, 5), (START_S + 5, START_S + 60), strict=True):
        store.add(ENERGY, labels, counted(START_S - 60, end_s))
    with reading(store) as meter:
        meter.open(store.clock)
        for _ in range(4):
            store.now_s += 4
            (read,) = meter.poll(store.clock)
            assert read.fault is None
            assert read.counters


@pytest.mark.parametrize("blank", [0x7FFFFFFFFFFFFFF0, 140737488355328.0, 2**63 - 1, 2**64 - 1, -1])
def test_blanks_of_dcgm_are_no_readings(blank: float) -> None:
    store = Store()
    store.add(ENERGY, gpu(0), [*counted(START_S - 60, START_S), (START_S + 1, float(blank))])
    with reading(store) as meter:
        meter.open(store.clock)
        store.now_s += 2
        assert "reads nothing" in (meter.poll(store.clock)[0].fault or "")
    dead = Store()
    dead.add(ENERGY, gpu(0), [(t_s, float(blank)) for t_s in scrapes(START_S - 60, START_S, 1)])
    with reading(dead) as meter, pytest.raises(MeterUnavailable, match="reads nothing for GPU-0"):
        meter.open(dead.clock)


def test_credentials_are_used_and_never_shown() -> None:
    store = Store()
    store.add(ENERGY, gpu(0), counted(START_S - 60, START_S))
    sent: list[tuple[str, str | None]] = []

    def answer(request: Request) -> None:
        sent.append((request.path, request.headers.get("Authorization")))
        store.answer(request)

    with serving(answer) as url:
        meter = PrometheusMeter(f"{url.replace('://', '://bob:s3cret%70w@')}?token=t0ken")
        (device,) = meter.open(store.clock)
        store.now_s += 400
        fault = meter.poll(store.clock)[0].fault
        meter.close()
    assert all("token=t0ken" in path and authorization for path, authorization in sent)
    assert device.facts["url"] == f"{url}?token=***"
    assert not re.search("s3cret|bob|t0ken", f"{device} {fault}")
    with pytest.raises(MeterUnavailable) as refused:
        PrometheusMeter("http://bob:s3cret@127.0.0.1:9").open(Clock())
    assert "s3cret" not in str(refused.value)
    for broken in (
        "http://bob:s3/cret@host",
        "http://bob:s3cret@[host",
        "http://bob:s3cret@",
        "ftp://a:s3cret@b",
    ):
        with pytest.raises(UsageError, match="must look like") as refused_url:
            PrometheusMeter(broken)
        assert not re.search("s3|cret", str(refused_url.value))


def test_a_redirect_to_another_host_is_not_followed() -> None:
    asked: list[str] = []

    def elsewhere(request: Request) -> None:
        asked.append(request.path)
        request.answer(200, b"{}")

    store = Store()
    store.add(ENERGY, gpu(0), counted(START_S - 60, START_S))
    with serving(elsewhere) as other:

        def answer(request: Request) -> None:
            request.answer(302, Location=other + request.path)

        def moved(request: Request) -> None:
            if not request.path.startswith("/moved"):
                request.answer(307, Location="/moved" + request.path)
                return
            request.path = request.path.removeprefix("/moved")
            store.answer(request)

        def loop(request: Request) -> None:
            request.answer(302, Location=request.path)

        with serving(answer) as url, pytest.raises(MeterUnavailable, match=rf"another host \({other}\)"):
            PrometheusMeter(url.replace("://", "://bob:s3cret@")).open(store.clock)
        with serving(moved) as url:
            meter = PrometheusMeter(url)
            assert len(meter.open(store.clock)) == 1
            meter.close()
        with serving(loop) as url, pytest.raises(MeterUnavailable, match="redirects more than 5 times"):
            PrometheusMeter(url).open(store.clock)
    assert asked == []


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "data",
    [
        DEEP,
        b'{"resultType": "matrix", "result": %b}' % DEEP,
        b'{"resultType": "matrix", "result": [1]}',
        b'{"resultType": "matrix", "result": [{"metric": [], "values": []}]}',
        b'{"resultType": "matrix", "result": [{"metric": {"a": 1}, "values": []}]}',
        b'{"resultType": "matrix", "result": [{"metric": {"a": "b"}, "values": [[1, "x"]]}]}',
        b'{"resultType": "matrix", "result": [{"metric": {"a": "b"}, "values": [["now", "1"]]}]}',
        b'{"resultType": "matrix", "result": {"a": 1}}',
        b'{"resultType": "scalar", "result": []}',
        b'"all"',
    ],
    ids=range(10),
)
def test_json_of_the_wrong_shape_is_an_error_of_the_meter(data: bytes) -> None:
    store = Store()
    store.add(ENERGY, gpu(0), counted(START_S - 60, START_S))
    with reading(store) as meter:
        meter.open(store.clock)
        store.reply = b'{"status": "success", "data": %b}' % data
        with pytest.raises(MeterError, match="Prometheus: "):
            meter.poll(store.clock)
    with reading(store) as meter, pytest.raises(MeterUnavailable, match="Prometheus: "):
        meter.open(store.clock)


def test_a_series_that_stops_is_an_error_and_the_others_go_on() -> None:
    store = Store()
    store.add(ENERGY, gpu(0), [(t_s, t_s) for t_s in scrapes(START_S - 50, START_S, 5)])
    store.add(ENERGY, gpu(1), [(t_s, t_s) for t_s in scrapes(START_S - 50, START_S + 100, 5)])
    with reading(store) as meter:
        meter.open(store.clock)
        store.now_s += 20
        gone, other = meter.poll(store.clock)
        assert "prometheus:GPU-0 has had no sample for 20 s" in (gone.fault or "")
        assert other.device_id == "prometheus:GPU-1"
        assert len(other.counters) == 4


def test_zero_is_no_reading() -> None:
    store = Store()
    rows = [(t_s, 0.0 if t_s > START_S else 300.0) for t_s in scrapes(START_S - 50, START_S + 50, 5)]
    store.add("pdu", {"outlet": "7"}, rows)
    with reading(store, "pdu") as meter:
        meter.open(store.clock)
        meter.poll(store.clock)
        store.now_s += 6
        (reading_,) = meter.poll(store.clock)
        assert reading_.power is None
        assert "prometheus:7 reads zero" in (reading_.fault or "")
    zero = pytest.raises(MeterUnavailable, match=r"no meter, pdu .* reads zero for 7")
    with reading(store, "pdu") as meter, zero:
        meter.open(store.clock)


def test_boards_of_several_machines_are_taken_only_where_they_are_named() -> None:
    store = Store()
    named = f'{ENERGY}{{Hostname=~"node7|node8"}}'
    for index, host in enumerate(("node7", "node7", "node8")):
        for query in (ENERGY, named):
            store.add(query, {**gpu(index), "Hostname": host}, counted(START_S - 60, START_S))
    said = r"the GPUs of 2 machines \(node7, node8\).*MATCHERS='Hostname=\"node7\"'"
    with reading(store) as meter, pytest.raises(MeterUnavailable, match=said):
        meter.open(store.clock)
    with reading(store, matchers='Hostname=~"node7|node8"') as meter:
        assert len(meter.open(store.clock)) == 3


def test_what_cannot_be_opened_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENPOWER_PROMETHEUS_URL", raising=False)
    with pytest.raises(MeterUnavailable, match="set TOKENPOWER_PROMETHEUS_URL"):
        PrometheusMeter().open(Clock())
    with pytest.raises(UsageError, match="must look like http"):
        PrometheusMeter("prometheus:9090")
    with pytest.raises(UsageError, match="must be one of watts, joules"):
        PrometheusMeter("http://p", "x", unit="kWh")  # type: ignore[arg-type]
    with pytest.raises(MeterError, match="poll before open"):
        PrometheusMeter("http://p").poll(Clock())


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (None, rf"no current samples of {ENERGY} or {POWER}; is the exporter scraped"),
        ("bad(", "bad_data: parse error"),
        ("old", "no current samples of old"),
        ("twice", r"several series for one device .*aggregate"),
    ],
)
def test_queries_that_give_nothing_to_measure(expression: str | None, message: str) -> None:
    store = Store()
    store.add("old", {"outlet": "1"}, [(START_S - 290, 5.0), (START_S - 280, 5.0)])
    for job in ("a", "b"):
        store.add("twice", {"UUID": "GPU-0", "job": job}, [(START_S - 1, 5.0)])
    with reading(store, expression) as meter, pytest.raises(MeterUnavailable, match=message):
        meter.open(store.clock)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"<html>a proxy</html>", "status 200, the answer is not Prometheus' JSON"),
        (b'{"status": "success"}', "the answer has no result"),
    ],
)
def test_servers_that_are_not_prometheus(reply: bytes, message: str) -> None:
    store = Store()
    store.reply = reply
    with reading(store) as meter, pytest.raises(MeterUnavailable, match=message):
        meter.open(store.clock)


@pytest.mark.parametrize("skew_s", [-7.0, 3.0])
def test_a_server_on_another_time_is_refused(skew_s: float) -> None:
    store = Store()
    store.skew_s = skew_s
    with reading(store) as meter, pytest.raises(MeterUnavailable, match=rf"is \{skew_s:+.1f} s from"):
        meter.open(store.clock)


def test_series() -> None:
    labels = (("UUID", "GPU-1"), ("instance", "a:1"))
    assert matrix([{"metric": dict(labels), "values": [[1.0005, "2"], [2, "NaN"], [3, "+Inf"]]}]) == {
        labels: [(1000, 2.0)]
    }
    assert identity(labels) == "GPU-1"
    assert identity((("GPU_I_ID", "3"), ("UUID", "GPU-1"))) == "GPU-1"
    assert identity((("__name__", "pdu"), ("instance", "a:1"), ("phase", "L1"))) == "a:1/L1"
    assert identity((("__name__", "pdu"),)) == "pdu"
    assert identity(()) == "series"
    assert step_s([(0, 1.0)]) is None
    assert step_s([(0, 1.0), (1000, 1.0), (2000, 1.0), (9000, 1.0)]) == 1.0
    assert refresh_s([(0, 1.0), (1000, 1.0), (2000, 2.0), (5000, 2.0), (6000, 3.0)]) == 4.0


@needs_prometheus
def test_a_real_prometheus(tmp_path: Path) -> None:
    """It scrapes a target on loopback each second; the counter runs at 400 W of realtime."""
    zero_s = time.time()

    def metrics(request: Request) -> None:
        millijoules = 1e9 + (time.time() - zero_s) * 400_000
        text = (
            f"# TYPE {ENERGY} counter\n"
            f'{ENERGY}{{gpu="0",UUID="GPU-9",modelName="NVIDIA H100"}} {millijoules:.0f}\n'
            f'# TYPE pdu_watts gauge\npdu_watts{{outlet="1"}} 150.5\npdu_watts{{outlet="2"}} 250\n'
        )
        request.answer(200, text.encode(), **{"Content-Type": "text/plain; version=0.0.4"})

    with serving(metrics) as target, prometheus(tmp_path, target) as url:
        clock = Clock()
        counters = PrometheusMeter(url)
        outlets = PrometheusMeter(url, "sum(pdu_watts)")
        try:
            reason = wait_until_open(counters, clock)
            assert reason is None, f"{reason}\n{(tmp_path / 'log').read_text()}"
            found: list[CounterReading] = []
            deadline = time.monotonic() + 20
            while len(found) < 3 and time.monotonic() < deadline:
                time.sleep(0.2)
                for one in counters.poll(clock):
                    assert one.device_id == "prometheus:GPU-9"
                    found += one.counters
            assert len(found) >= 3
            for counter in found:
                wall_s = (counter.t1_ns + clock.offset_ns) / 1e9
                # Scraped at that time, give or take the scrape itself.
                expected_uj = (1e6 + (wall_s - zero_s) * 400) * 1e6
                assert abs(counter.microjoules - expected_uj) < 400e6
            assert all(later.t1_ns > earlier.t1_ns for earlier, later in pairwise(found))
            assert wait_until_open(outlets, clock) is None
            (total,) = [one.power for one in outlets.poll(clock) if one.power is not None]
            assert set(total.milliwatts.tolist()) == {400_500}
            assert wait_until_open(PrometheusMeter(url, "sum("), clock, 0.0) is not None
        finally:
            counters.close()
            outlets.close()


def wait_until_open(meter: PrometheusMeter, clock: Clock, patience_s: float = 30.0) -> str | None:
    """None when it opened; else why it did not within the time."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            meter.open(clock)
        except MeterUnavailable as error:
            if time.monotonic() > deadline:
                return str(error)
            time.sleep(0.3)
        else:
            return None
