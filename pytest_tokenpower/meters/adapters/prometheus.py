"""Prometheus over its HTTP API: GPUs of other nodes through the DCGM exporter, and PDUs through any expression."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from pytest_tokenpower.core.credentials import without_credentials
from pytest_tokenpower.core.types import Fact, Scope
from pytest_tokenpower.errors import MeterError, MeterUnavailable, UsageError
from pytest_tokenpower.meters.adapters._http import checked_url, connect, get_json
from pytest_tokenpower.meters.adapters.no_reading import is_counted, is_watts
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.types import CounterReading, Device, PowerSamples, Reading, Samples

if TYPE_CHECKING:
    import httpx


Labels = tuple[tuple[str, str], ...]
"""The labels of one series, sorted by name."""

UNKNOWN_STEP_S = 15.0
"""Taken for the scrape interval where there are too few samples to see it."""

SLICE_LABELS = ("GPU_I_ID", "GPU_I_PROFILE")
"""DCGM's labels of a MIG slice. The value is the board's all the same, once for each slice."""

_IDENTITY = (
    "UUID",
    "gpu_uuid",
    "outlet",
    "outlet_id",
    "pdu",
    "rack",
    "instance",
    "Hostname",
    "job",
)


LATEST_S = 9e9
"""After the year 2250; its microseconds fit into 64 bits."""


class _Answer(msgspec.Struct):
    metric: dict[str, str]
    values: list[tuple[float, str]] = []


def matrix(result: object) -> dict[Labels, Samples]:
    """Return the series of an answer of type ``matrix``; samples that are no finite number are absent.

    Raises ValueError for what is no such answer.
    """
    series: dict[Labels, Samples] = {}
    for one in msgspec.convert(result, list[_Answer]):
        labels = tuple(sorted(one.metric.items()))
        rows = [(t_s, float(value)) for t_s, value in one.values]
        finite = [(t_s, value) for t_s, value in rows if math.isfinite(value) and 0 < t_s < LATEST_S]
        series[labels] = [(round(t_s * 1000), value) for t_s, value in finite]
    return series


def identity(labels: Labels) -> str:
    """Return a name for a series that stays the same over runs.

    Its board's UUID, else its most telling labels, else all.
    """
    named = dict(labels)
    board = named.get("UUID") or named.get("gpu_uuid")
    if board:
        return board
    told = [named[label] for label in _IDENTITY if label in named]
    rest = [
        value for label, value in labels if label not in (*_IDENTITY, *SLICE_LABELS) and label != "__name__"
    ]
    return "/".join(told + rest) or named.get("__name__", "series")


@dataclass(frozen=True)
class Repeats:
    """The series of one device: ``labels`` are what is read, ``others`` repeat it for slices, pods and the like."""

    labels: Labels
    others: tuple[Labels, ...] = ()

    @property
    def sliced(self) -> bool:
        """Whether the board is cut into MIG slices."""
        return any(dict(each).get(label) for each in (self.labels, *self.others) for label in SLICE_LABELS)


def by_board(history: Mapping[Labels, Samples]) -> dict[str, Repeats]:
    """Return the series of each board. Exporters repeat a board's counter, once for each MIG slice or pod on it.

    Of repeats the one that is newest is read. Raises ValueError where series of one board give different values:
    then they are no repeats, and it is not known what each is of.
    """
    boards: dict[str, list[Labels]] = {}
    for labels in history:
        boards.setdefault(identity(labels), []).append(labels)
    found: dict[str, Repeats] = {}
    for name, several in boards.items():
        newest = max(several, key=lambda labels: (history[labels][-1][0], labels))
        others = tuple(labels for labels in several if labels != newest)
        for labels in others:
            if not _same(history[newest], history[labels]):
                raise ValueError(f"{name} ({differing(newest, labels)})")
        found[name] = Repeats(newest, others)
    return found


def _same(one: Samples, other: Samples) -> bool:
    """Whether two series are one, read at times of their own: each value lies among its neighbours in the other."""
    values = [value for _, value in one]
    for t_ms, value in other:
        if not one[0][0] <= t_ms <= one[-1][0]:
            continue
        later = sum(1 for at_ms, _ in one if at_ms <= t_ms)
        near = values[max(later - 2, 0) : later + 2]
        if near and not min(near) <= value <= max(near):
            return False
    return True


def differing(one: Labels, other: Labels) -> str:
    """Return the labels in which two series differ, with both values."""
    first, second = dict(one), dict(other)
    names: Iterable[str] = sorted(first.keys() | second.keys())
    return ", ".join(
        f"{name}: {first.get(name, 'none')} and {second.get(name, 'none')}"
        for name in names
        if first.get(name) != second.get(name)
    )


def interval_s(rows: Samples, *, scraped: bool) -> float:
    """Seconds between two scrapes; of an expression as its values change, since its times are our own."""
    seen_s = step_s(rows) if scraped else refresh_s(rows)
    return min(max(seen_s or UNKNOWN_STEP_S, 1.0), 60.0)


def refresh_s(rows: Samples) -> float | None:
    """Seconds between two changes of the value; None for fewer than two."""
    return step_s([row for last, row in pairwise(rows) if row[1] != last[1]])


def step_s(rows: Samples) -> float | None:
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

SELECTOR = re.compile(r"\s*[a-zA-Z_:][\w:]*\s*(\{[^{}]*\})?\s*")
"""A metric and its matchers: what gives the scraped samples themselves."""


@dataclass
class _Series:
    """A device's series: ``labels`` are those it is read by, ``repeats`` others that are known to give the same."""

    device_id: str
    labels: Labels
    repeats: tuple[Labels, ...]
    last_ms: int
    last_value: float
    pending: Samples = ()
    seen: set[Labels] = field(default_factory=set)
    fault: str | None = None


class PrometheusMeter:
    """Samples of a Prometheus server, as counters or as points of power, with the times of their scrapes.

    Without ``expression`` the GPUs of the DCGM exporter are read (scope ``gpu``): the energy counter where it is
    exported, else the power; ``matchers`` narrows them (``'Hostname="node7"'``). With ``expression``, any PromQL
    for watts or a counter in joules (``unit``), by default scope ``rack``: each series is one device. A plain
    selector gives the scraped samples themselves; anything else is evaluated once per scrape interval, where a
    value may be one interval old.

    A board that the exporter lists several times, once for each MIG slice or pod on it, is one device: the value is the
    board's in each of them. Where a board goes on under other labels it may be another's by now: its readings are
    faulty from there on.

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
        named = os.environ.get("TOKENPOWER_PROMETHEUS_URL", "") if url is None else url
        self._server = checked_url(named, "Prometheus", "http://prometheus:9090")
        # As it may be shown: in messages, facts and keys.
        self._url = without_credentials(self._server)
        if unit not in ("watts", "joules", "millijoules"):
            raise UsageError(f"Prometheus: unit={unit!r} must be one of watts, joules, millijoules")
        self._expression = expression
        self._unit: Unit = unit
        self._scope: Scope = scope if expression is not None else "gpu"
        self._matchers = matchers
        self._timeout_s = min(timeout_s, 5.0)
        self.poll_interval_s = poll_interval_s
        self._client: httpx.Client | None = None
        self._series: list[_Series] = []
        self._step_s = 0.0

    def open(self, clock: Clock) -> Sequence[Device]:
        """Find the series and their intervals; raises MeterUnavailable with what is missing."""
        if not self._url:
            raise MeterUnavailable("Prometheus: no server is named; set TOKENPOWER_PROMETHEUS_URL")
        self._client = connect(self._server)
        try:
            skew_s = self._skew(clock)
            if abs(skew_s) > MAX_SKEW_S:
                raise MeterError(
                    f"Prometheus: the clock of {self._url} is {skew_s:+.1f} s from this machine's;"
                    " its samples cannot be placed. Set both by NTP"
                )
            history = self._first(clock)
            boards = self._boards(history)
        except MeterError as error:
            self.close()
            raise MeterUnavailable(str(error)) from error
        devices = []
        for repeats in boards:
            samples = history[repeats.labels]
            device = self._device(repeats, samples, skew_s)
            devices.append(device)
            # A point of power holds at its time, so the last one is given on; a counter's may be older than that.
            pending = (samples[-1],) if self._unit == "watts" else ()
            seen = {repeats.labels, *repeats.others}
            self._series.append(
                _Series(device.id, repeats.labels, repeats.others, *samples[-1], pending, seen)
            )
        return devices

    def poll(self, clock: Clock) -> Sequence[Reading]:
        """Every sample scraped since the last poll; a series that has gone or reads zero is a fault."""
        if not self._series:
            raise MeterError("Prometheus: poll before open")
        fresh = self._samples(clock, min(series.last_ms for series in self._series))
        readings = []
        for series in self._series:
            self._relabel(series, fresh)
            reading = self._advance(clock, series, fresh.get(series.labels, ()))
            if series.fault is not None:
                reading = replace(reading or Reading(series.device_id), fault=series.fault, lost=True)
            if reading is not None:
                readings.append(reading)
        return readings

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None
        self._series = []

    def _boards(self, history: Mapping[Labels, Samples]) -> Sequence[Repeats]:
        """Return the series of each device; raises MeterError where one has several that are not the same."""
        if self._expression is None and any(label in self._matchers for label in SLICE_LABELS):
            raise MeterError(
                f"Prometheus: TOKENPOWER_PROMETHEUS_MATCHERS ({self._matchers}) names a MIG slice: the exporter gives"
                " the energy of the whole board for each of its slices, so that of one cannot be measured"
            )
        several = len({identity(labels) for labels in history}) < len(history)
        try:
            boards = by_board(history)
        except ValueError as error:
            names = str(error)
        else:
            if self._expression is None:
                self._check_hosts(boards.values())
            if self._expression is None or not several:
                return tuple(boards.values())
            names = ", ".join(name for name, repeats in boards.items() if repeats.others)
        raise MeterError(
            f"Prometheus: {self._query} gives several series for one device ({names}); aggregate them, as in"
            " max by (UUID), or sum by (outlet)"
        )

    def _check_hosts(self, boards: Iterable[Repeats]) -> None:
        """Raise MeterError where nobody has said whose boards are meant, and a server knows those of many machines."""
        hosts = sorted({host for board in boards if (host := dict(board.labels).get("Hostname"))})
        if self._matchers or len(hosts) < 2:
            return
        shown = ", ".join(hosts[:4]) + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")
        raise MeterError(
            f"Prometheus: {self._query} at {self._url} gives the GPUs of {len(hosts)} machines ({shown}), and which of"
            " them the test uses is not known. Name those of one, "
            f"""TOKENPOWER_PROMETHEUS_MATCHERS='Hostname="{hosts[0]}"', or of several, """
            f"""'Hostname=~"{hosts[0]}|{hosts[1]}"'"""
        )

    def _relabel(self, series: _Series, fresh: Mapping[Labels, Samples]) -> None:
        """Go on with a board that has other labels now: by a known repeat as before, else with a fault from here on."""
        goes_on = any(row[0] > series.last_ms for row in fresh.get(series.labels, ()))
        candidates = fresh.keys() - (series.seen if goes_on else {series.labels})
        board = identity(series.labels)
        newer = [
            labels
            for labels in candidates
            if identity(labels) == board and fresh[labels][-1][0] > series.last_ms
        ]
        if not newer:
            if not goes_on and series.fault is None:
                series.fault = self._successor(series, fresh)
            return
        before = series.labels
        series.labels = max(newer, key=lambda labels: (fresh[labels][-1][0], labels))
        series.seen |= {*newer}
        if series.labels not in series.repeats:
            series.repeats = ()
            series.fault = series.fault or (
                f"Prometheus: {series.device_id} goes on under other labels ({differing(before, series.labels)}): its"
                " exporter or its pod is a new one, and whose energy it is now is not known. Run the tests again"
            )

    def _successor(self, series: _Series, fresh: Mapping[Labels, Samples]) -> str | None:
        """Return why a series that no UUID names is lost: it gives nothing more, and one that was not there does."""
        if {"UUID", "gpu_uuid"} & dict(series.labels).keys():
            return None
        known = {labels for each in self._series for labels in each.seen}
        overdue_ms = series.last_ms + 1500 * self._step_s
        begun = sorted(labels for labels in fresh.keys() - known if fresh[labels][-1][0] > overdue_ms)
        if not begun:
            return None
        return (
            f"Prometheus: {series.device_id} has ended, and a series of other labels has begun "
            f"({differing(series.labels, begun[0])}): whether it is the same is not known. Run the tests again"
        )

    def _advance(self, clock: Clock, series: _Series, fresh: Samples) -> Reading | None:
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
            good = [row for row in rows if is_watts(row[1])]
        else:
            # A value that is repeated was not read anew by the exporter: the time of its scrape is not its.
            before = [(series.last_ms, series.last_value), *rows]
            good = [row for last, row in pairwise(before) if row[1] != last[1]]
            if not all(is_counted(value) and is_counted(value * self._microjoules) for _, value in good):
                series.last_ms = rows[-1][0]
                return Reading(
                    series.device_id, fault=f"Prometheus: {series.device_id} reads nothing {source}"
                )
        series.last_ms, series.last_value = rows[-1]
        if self._unit == "watts" and len(good) < len(rows):
            what = "zero" if any(value == 0 for _, value in rows) else "nothing"
            return Reading(series.device_id, fault=f"Prometheus: {series.device_id} reads {what} {source}")
        if not good:
            return None
        reading = self._reading(clock, series.device_id, good)
        falls = [] if self._unit == "watts" else [(a, b) for (_, a), (_, b) in pairwise(before) if b < a]
        if falls:
            before_j, now_j = (value * self._microjoules / 1e6 for value in falls[0])
            fault = (
                f"Prometheus: the energy counter of {series.device_id} went backwards, from {before_j:.1f} J to "
                f"{now_j:.1f} J: its driver or exporter was restarted {source}"
            )
            reading = replace(reading, fault=fault)
        return reading

    def _first(self, clock: Clock) -> Mapping[Labels, Samples]:
        """Return the last minutes of each series; settles the query, its unit and the scrape interval."""
        now_ms = clock.realtime_ns() // 1_000_000
        if self._expression is not None:
            self._query = self._expression.strip()
            tried = [(self._query, self._unit)]
        else:
            braces = f"{{{self._matchers}}}" if self._matchers else ""
            tried = [(f"{DCGM_ENERGY}{braces}", "millijoules"), (f"{DCGM_POWER}{braces}", "watts")]
        for query, unit in tried:
            self._query, self._unit = query, unit
            self._scraped = SELECTOR.fullmatch(query) is not None
            # For an expression the step is not known yet: scrapes more often than each second are rare.
            self._step_s = 1.0
            history = self._samples(clock, now_ms - LOOK_BACK_S * 1000)
            # A series of before is still in the look-back, but gives nothing now.
            history = {
                labels: rows for labels, rows in history.items() if now_ms - rows[-1][0] < LOOK_BACK_S * 500
            }
            if not history:
                continue
            read = is_watts if unit == "watts" else is_counted
            nothing = {
                identity(labels): rows[-1][1] for labels, rows in history.items() if not read(rows[-1][1])
            }
            if nothing:
                what = "zero" if 0 in nothing.values() else "nothing"
                raise MeterError(
                    f"Prometheus: no meter, {self._query} at {self._url} reads {what} for {', '.join(nothing)}"
                )
            self._step_s = max(interval_s(rows, scraped=self._scraped) for rows in history.values())
            return history
        raise MeterError(
            f"Prometheus: {self._url} has no current samples of {' or '.join(query for query, _ in tried)};"
            " is the exporter scraped? (see Status, Targets, in its web page)"
        )

    def _device(self, repeats: Repeats, samples: Samples, skew_s: float) -> Device:
        labels = repeats.labels
        seen_s = max(refresh_s(samples) or 0.0, interval_s(samples, scraped=self._scraped))
        named = dict(labels)
        name = identity(labels)
        key_facts: dict[str, Fact] = {"series": self._query, "unit": self._unit}
        for label in ("modelName", "DCGM_FI_DRIVER_VERSION"):
            if label in named:
                key_facts[label] = named[label]
        title = named.get("modelName", name)
        if repeats.sliced:
            key_facts["mig"] = "whole board"
            title = f"{title} (whole board, in MIG mode)"
        return Device(
            id=f"prometheus:{name}",
            scope=self._scope,
            name=title,
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

    def _reading(self, clock: Clock, device_id: str, rows: Samples) -> Reading:
        t_ns = clock.from_realtime_us(np.array([t_ms * 1000 for t_ms, _ in rows], dtype=np.int64))
        if self._unit == "watts":
            milliwatts = np.array([round(value * 1000) for _, value in rows], dtype=np.int64)
            return Reading(device_id, power=PowerSamples(t_ns=t_ns, milliwatts=milliwatts, held=False))
        return Reading(
            device_id,
            counters=tuple(
                CounterReading(int(t), int(t), round(value * self._microjoules))
                for t, (_, value) in zip(t_ns, rows, strict=True)
            ),
        )

    @property
    def _microjoules(self) -> int:
        """How many a counter's unit is."""
        return 1_000_000 if self._unit == "joules" else 1_000

    def _skew(self, clock: Clock) -> float:
        """Seconds by which the server's clock is ahead, to within the duration of one request."""
        before_s = clock.realtime_ns() / 1e9
        result = self._get("/api/v1/query", {"query": "time()"})
        after_s = clock.realtime_ns() / 1e9
        try:
            server_s = float(result["result"][0])
            if not 0 < server_s < LATEST_S:
                raise ValueError(f"it says {server_s:g}")
        except (TypeError, ValueError, IndexError, OverflowError) as error:
            raise MeterError(f"Prometheus: {self._url} does not tell its time: {error}") from error
        return min(server_s - before_s, 0.0) + max(server_s - after_s, 0.0)

    def _samples(self, clock: Clock, since_ms: int) -> dict[Labels, Samples]:
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
        try:
            samples = matrix(result["result"])
        except (ValueError, OverflowError) as error:
            raise MeterError(
                f"Prometheus: {self._query} at {self._url} gives what are no series: {error}"
            ) from error
        fresh = {labels: [row for row in rows if row[0] > since_ms] for labels, rows in samples.items()}
        return {labels: rows for labels, rows in fresh.items() if rows}

    def _get(self, path: str, parameters: Mapping[str, str]) -> Mapping[str, Any]:
        if self._client is None:
            raise MeterError("Prometheus: the connection is closed")
        return ask(self._client, self._url, path, parameters, self._timeout_s)


def ask(
    client: httpx.Client, shown: str, path: str, parameters: Mapping[str, str], timeout_s: float
) -> Mapping[str, Any]:
    """Return the data of an answer of Prometheus, which has a list of results; raises MeterError for any other.

    Args:
        client: a client of the server.
        shown: the server's URL without credentials, for messages.
        path: of the API.
        parameters: with the ``query``.
        timeout_s: how long it may take.
    """
    where = f"Prometheus: {shown}{path} ({parameters['query']})"
    answer = get_json(client, path, timeout_s=timeout_s, where=where, parameters=parameters)
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
