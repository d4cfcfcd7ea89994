"""Prometheus over its HTTP API: GPUs of other nodes through the DCGM exporter, and PDUs through any expression."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import numpy as np

from pytest_tokenpower.core.types import Fact, Scope
from pytest_tokenpower.errors import MeterError, MeterUnavailable, UsageError
from pytest_tokenpower.telemetry.clock import Clock
from pytest_tokenpower.telemetry.meters._http import get_json
from pytest_tokenpower.telemetry.types import CounterReading, Device, PowerSamples, Reading

if TYPE_CHECKING:
    import httpx


Labels = tuple[tuple[str, str], ...]
"""The labels of one series, sorted by name."""

Rows = Sequence[tuple[int, float]]
"""Samples of one series in the order of time: (realtime milliseconds, value)."""

UNKNOWN_STEP_S = 15.0
"""Taken for the scrape interval where there are too few samples to see it."""

_IDENTITY = (
    "UUID",
    "gpu_uuid",
    "GPU_I_ID",
    "outlet",
    "outlet_id",
    "pdu",
    "rack",
    "instance",
    "Hostname",
    "job",
)


def matrix(result: Sequence[Mapping[str, Any]]) -> dict[Labels, Rows]:
    """The series of an answer of type ``matrix``; samples that are no finite number are absent."""
    series: dict[Labels, Rows] = {}
    for one in result:
        labels = tuple(sorted(one["metric"].items()))
        rows = [(round(float(t_s) * 1000), float(value)) for t_s, value in one["values"]]
        series[labels] = [row for row in rows if math.isfinite(row[1])]
    return series


def identity(labels: Labels) -> str:
    """A name for a series that stays the same over runs: its most telling labels, else all."""
    named = dict(labels)
    if "UUID" in named:
        return named["UUID"] + (f"/{named['GPU_I_ID']}" if named.get("GPU_I_ID") else "")
    told = [named[label] for label in _IDENTITY if label in named]
    rest = [value for label, value in labels if label not in _IDENTITY and label != "__name__"]
    return "/".join(told + rest) or named.get("__name__", "series")


def interval_s(rows: Rows, *, scraped: bool) -> float:
    """Seconds between two scrapes; of an expression as its values change, since its times are our own."""
    seen_s = step_s(rows) if scraped else refresh_s(rows)
    return min(max(seen_s or UNKNOWN_STEP_S, 1.0), 60.0)


def refresh_s(rows: Rows) -> float | None:
    """Seconds between two changes of the value; None for fewer than two."""
    return step_s([row for last, row in pairwise(rows) if row[1] != last[1]])


def step_s(rows: Rows) -> float | None:
    """Seconds between two samples; None for fewer than two."""
    if len(rows) < 2:
        return None
    return float(np.median(np.diff([t_ms for t_ms, _ in rows]))) / 1000


Unit = Literal["watts", "joules", "millijoules"]

DCGM_ENERGY = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
"""Counter in millijoules since the driver was loaded (DCGM field 156)."""

DCGM_POWER = "DCGM_FI_DEV_POWER_USAGE"
"""Power in watts (DCGM field 155)."""

LOOK_BACK_S = 300
"""How far back the scrape interval is sought; also Prometheus' own limit for calling a series alive."""

MAX_SKEW_S = 1.0
"""Samples carry the Prometheus server's clock; further from ours than this they cannot be placed."""

_SELECTOR = re.compile(r"\s*[a-zA-Z_:][\w:]*\s*(\{[^{}]*\})?\s*")


@dataclass
class _Series:
    device_id: str
    last_ms: int
    last_value: float
    pending: Rows = ()


class PrometheusMeter:
    """Samples of a Prometheus server, as counters or as points of power, with the times of their scrapes.

    Without ``expression`` the GPUs of the DCGM exporter are read (scope ``gpu``): the energy counter where it is
    exported, else the power; ``matchers`` narrows them (``'Hostname="node7"'``). With ``expression``, any PromQL
    for watts or a counter in joules (``unit``), by default scope ``rack``: each series is one device. A plain
    selector gives the scraped samples themselves; anything else is evaluated once per scrape interval, where a
    value may be one interval old.

    Windows are limited by the scrape interval and by the exporter's own: dcgm-exporter collects every 30 s
    unless it is told otherwise. Both are seen in how often values change, which is written to the facts.

    The URL comes from TOKENPOWER_PROMETHEUS_URL where it is not given. No request takes longer than ``timeout_s``.
    """

    name = "prometheus"

    def __init__(
        self,
        url: str | None = None,
        expression: str | None = None,
        *,
        unit: Unit = "watts",
        scope: Scope = "rack",
        matchers: str = "",
        timeout_s: float = 4.0,
        poll_interval_s: float = 1.0,
    ) -> None:
        self._url = (os.environ.get("TOKENPOWER_PROMETHEUS_URL", "") if url is None else url).rstrip("/")
        if self._url and urlsplit(self._url).scheme not in ("http", "https"):
            raise UsageError(f"Prometheus: the URL must look like http://prometheus:9090, not {self._url!r}")
        if unit not in ("watts", "joules", "millijoules"):
            raise UsageError(f"Prometheus: unit={unit!r} must be one of watts, joules, millijoules")
        self._expression = expression
        self._unit: Unit = unit
        self._scope: Scope = scope if expression is not None else "gpu"
        self._matchers = matchers
        self._timeout_s = min(timeout_s, 5.0)
        self.poll_interval_s = poll_interval_s
        self._client: httpx.Client | None = None
        self._series: dict[Labels, _Series] = {}
        self._step_s = 0.0

    def open(self, clock: Clock) -> Sequence[Device]:
        """Find the series and their intervals; raises MeterUnavailable with what is missing."""
        if not self._url:
            raise MeterUnavailable("Prometheus: no server is named; set TOKENPOWER_PROMETHEUS_URL")
        import httpx

        self._client = httpx.Client(base_url=self._url, trust_env=False, follow_redirects=True)
        try:
            skew_s = self._skew(clock)
            if abs(skew_s) > MAX_SKEW_S:
                raise MeterError(
                    f"Prometheus: the clock of {self._url} is {skew_s:+.1f} s from this machine's;"
                    " its samples cannot be placed. Set both by NTP"
                )
            history = self._first(clock)
        except MeterError as error:
            self.close()
            raise MeterUnavailable(str(error)) from error
        devices = [self._device(labels, samples, skew_s) for labels, samples in history.items()]
        if len({device.id for device in devices}) < len(devices):
            self.close()
            raise MeterUnavailable(
                f"Prometheus: {self._query} gives several series for one device"
                f" ({', '.join(sorted(device.id for device in devices))}); aggregate them, as in sum by (outlet)"
            )
        for device, (labels, samples) in zip(devices, history.items(), strict=True):
            # A point of power holds at its time, so the last one is given on; a counter's may be older than that.
            last = samples[-1]
            pending = (last,) if self._unit == "watts" else ()
            self._series[labels] = _Series(device.id, *last, pending)
        return devices

    def poll(self, clock: Clock) -> Sequence[Reading]:
        """Every sample scraped since the last poll; a series that has gone or reads zero is a fault."""
        if not self._series:
            raise MeterError("Prometheus: poll before open")
        fresh = self._samples(clock, min(series.last_ms for series in self._series.values()))
        readings = []
        for labels, series in self._series.items():
            reading = self._advance(clock, series, fresh.get(labels, ()))
            if reading is not None:
                readings.append(reading)
        return readings

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None
        self._series = {}

    def _advance(self, clock: Clock, series: _Series, fresh: Rows) -> Reading | None:
        rows = [*series.pending, *(row for row in fresh if row[0] > series.last_ms)]
        series.pending = ()
        source = f"({self._query} at {self._url})"
        if not rows:
            age_s = clock.realtime_ns() / 1e9 - series.last_ms / 1e3
            if age_s <= max(3 * self._step_s, 5.0):
                return None
            fault = f"Prometheus: {series.device_id} has had no sample for {age_s:.0f} s {source}"
            return Reading(series.device_id, fault=fault)
        if self._unit == "watts":
            good = [row for row in rows if row[1] > 0]
        else:
            # A value that is repeated was not read anew by the exporter: the time of its scrape is not its.
            before = [(series.last_ms, series.last_value), *rows]
            good = [row for last, row in pairwise(before) if row[1] != last[1]]
        series.last_ms, series.last_value = rows[-1]
        if self._unit == "watts" and len(good) < len(rows):
            return Reading(series.device_id, fault=f"Prometheus: {series.device_id} reads zero {source}")
        return self._reading(clock, series.device_id, good) if good else None

    def _first(self, clock: Clock) -> Mapping[Labels, Rows]:
        """The last minutes of each series; settles the query, its unit and the scrape interval."""
        now_ms = clock.realtime_ns() // 1_000_000
        if self._expression is not None:
            self._query = self._expression.strip()
            tried = [(self._query, self._unit)]
        else:
            braces = f"{{{self._matchers}}}" if self._matchers else ""
            tried = [(f"{DCGM_ENERGY}{braces}", "millijoules"), (f"{DCGM_POWER}{braces}", "watts")]
        for query, unit in tried:
            self._query, self._unit = query, unit
            self._scraped = _SELECTOR.fullmatch(query) is not None
            # For an expression the step is not known yet: scrapes more often than each second are rare.
            self._step_s = 1.0
            history = self._samples(clock, now_ms - LOOK_BACK_S * 1000)
            # A series of before is still in the look-back, but gives nothing now.
            history = {
                labels: rows for labels, rows in history.items() if now_ms - rows[-1][0] < LOOK_BACK_S * 500
            }
            if not history:
                continue
            zero = [identity(labels) for labels, rows in history.items() if not rows[-1][1] > 0]
            if zero:
                raise MeterError(
                    f"Prometheus: no meter, {self._query} at {self._url} reads zero for {', '.join(zero)}"
                )
            self._step_s = max(interval_s(rows, scraped=self._scraped) for rows in history.values())
            return history
        raise MeterError(
            f"Prometheus: {self._url} has no current samples of {' or '.join(query for query, _ in tried)};"
            " is the exporter scraped? (see Status, Targets, in its web page)"
        )

    def _device(self, labels: Labels, samples: Rows, skew_s: float) -> Device:
        seen_s = max(refresh_s(samples) or 0.0, interval_s(samples, scraped=self._scraped))
        named = dict(labels)
        name = identity(labels)
        key_facts: dict[str, Fact] = {"series": self._query, "unit": self._unit}
        for label in ("modelName", "DCGM_FI_DRIVER_VERSION"):
            if label in named:
                key_facts[label] = named[label]
        return Device(
            id=f"prometheus:{name}",
            scope=self._scope,
            name=named.get("modelName", name),
            meter=self.name,
            provenance="measured",
            key_facts=key_facts,
            facts={
                # A value may be one refresh old at either end of a window.
                "resolution_ms": 2000 * seen_s,
                "refresh_ms": 1000 * seen_s,
                "clock_skew_ms": round(1000 * skew_s),
                "url": self._url,
                "labels": ", ".join(f"{label}={value}" for label, value in labels),
            },
            counter_tick_ns=0 if self._unit == "watts" else round(1e9 * seen_s),
            # Up to one refresh until the exporter sees it, one until it is scraped, and the request itself.
            latency_s=2 * seen_s + self._timeout_s,
        )

    def _reading(self, clock: Clock, device_id: str, rows: Rows) -> Reading:
        t_ns = clock.from_realtime_us(np.array([t_ms * 1000 for t_ms, _ in rows], dtype=np.int64))
        if self._unit == "watts":
            milliwatts = np.array([round(value * 1000) for _, value in rows], dtype=np.int64)
            return Reading(device_id, power=PowerSamples(t_ns=t_ns, milliwatts=milliwatts, held=False))
        scale = 1_000_000 if self._unit == "joules" else 1_000
        return Reading(
            device_id,
            counters=tuple(
                CounterReading(int(t), int(t), round(value * scale))
                for t, (_, value) in zip(t_ns, rows, strict=True)
            ),
        )

    def _skew(self, clock: Clock) -> float:
        """Seconds by which the server's clock is ahead, to within the duration of one request."""
        before_s = clock.realtime_ns() / 1e9
        result = self._get("/api/v1/query", {"query": "time()"})
        after_s = clock.realtime_ns() / 1e9
        server_s = float(result["result"][0])
        return min(server_s - before_s, 0.0) + max(server_s - after_s, 0.0)

    def _samples(self, clock: Clock, since_ms: int) -> dict[Labels, Rows]:
        """``{labels: [(milliseconds, value), ...]}`` after ``since_ms``, ascending."""
        now_ms = clock.realtime_ns() // 1_000_000
        if self._scraped:
            # A range selector at one moment gives the scraped samples; query_range would give its own times.
            seconds = max(math.ceil((now_ms - since_ms) / 1000), 1) + 1
            result = self._get("/api/v1/query", {"query": f"{self._query}[{seconds}s]"})
        else:
            step_ms = max(round(self._step_s * 1000), 1000)
            start_ms = (since_ms // step_ms + 1) * step_ms
            if start_ms > now_ms:
                return {}
            result = self._get(
                "/api/v1/query_range",
                {
                    "query": self._query,
                    "start": f"{start_ms / 1000:.3f}",
                    "end": f"{now_ms / 1000:.3f}",
                    "step": f"{step_ms / 1000:.3f}",
                },
            )
        if result.get("resultType") != "matrix":
            raise MeterError(
                f"Prometheus: {self._query} gives a {result.get('resultType')}; it must give series"
            )
        samples = matrix(result["result"])
        fresh = {labels: [row for row in rows if row[0] > since_ms] for labels, rows in samples.items()}
        return {labels: rows for labels, rows in fresh.items() if rows}

    def _get(self, path: str, parameters: Mapping[str, str]) -> Mapping[str, Any]:
        if self._client is None:
            raise MeterError("Prometheus: the connection is closed")
        where = f"Prometheus: {self._url}{path} ({parameters['query']})"
        answer = get_json(self._client, path, timeout_s=self._timeout_s, where=where, parameters=parameters)
        document = answer.document
        if not isinstance(document, dict) or "status" not in document:
            raise MeterError(f"{where}: status {answer.status}, the answer is not Prometheus' JSON")
        if document["status"] != "success":
            reason = f"{document.get('errorType', 'error')}: {document.get('error', 'no reason')}"
            raise MeterError(f"{where}: {reason}")
        data = document.get("data")
        if not isinstance(data, dict) or not isinstance(data.get("result"), list):
            raise MeterError(f"{where}: the answer has no result")
        return data
