"""`tokenpower compare A prometheus:URL`: a stored baseline beside what a service has taken; no verdict."""

from __future__ import annotations

import argparse
import math
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

from pytest_tokenpower.analysis.service_range import ServiceFigure, service_figure
from pytest_tokenpower.core.denominators import denominator, figure_per, unit_of
from pytest_tokenpower.core.records import MeasurementRecord
from pytest_tokenpower.core.text import plural, with_interval
from pytest_tokenpower.errors import MeterError, UsageError
from pytest_tokenpower.gate.compare import measurements_of
from pytest_tokenpower.meters.adapters.prometheus import DCGM_ENERGY
from pytest_tokenpower.meters.adapters.prometheus_range import Archive, by_device, label_values
from pytest_tokenpower.store.access import StoreContext, choose_test
from pytest_tokenpower.store.baseline import Baseline

PREFIX = "prometheus:"

TOKENS = {"token": "vllm:generation_tokens_total", "prompt_token": "vllm:prompt_tokens_total"}
"""vLLM's counters, by what a test is compared by."""

UNITS = {"joules": 1.0, "millijoules": 1e-3}

LONGEST_S = 732 * 86_400
"""It is read six hours at a time: of more, nobody would wait for the end."""

OPTIONS = ("test", "since", "until", "energy", "unit", "tokens")
"""Of a service alone."""

_SPAN = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is read of the Prometheus."""
    group = parser.add_argument_group(
        "B is a service (prometheus:URL)",
        "its J/token over a range of time beside A's, without a verdict: idle time and other work are in it",
    )
    group.add_argument("--test", metavar="TEST", help="the test of A that stands for the service")
    group.add_argument(
        "--since",
        metavar="TIME",
        help="an ISO 8601 time, or how long ago: 24h, 7d (default: 1h)",
    )
    group.add_argument("--until", metavar="TIME", help="the same, for the end (default: now)")
    group.add_argument(
        "--energy",
        metavar="METRIC",
        help=f"the boards' energy counter, with matchers (default: {DCGM_ENERGY})",
    )
    group.add_argument("--unit", choices=tuple(UNITS), help=f"its unit (millijoules for {DCGM_ENERGY})")
    group.add_argument(
        "--tokens",
        metavar="METRIC",
        help="the servers' token counter, with matchers (default: vLLM's, of what A is compared by)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print both figures and what differs between them; 0, as unlike things are not judged."""
    now = time.time()
    since, until = arguments.since or "1h", arguments.until or "0s"
    metric = arguments.energy or DCGM_ENERGY
    unit = arguments.unit or ("millijoules" if metric.partition("{")[0].strip() == DCGM_ENERGY else None)
    if unit is None:
        raise UsageError(f"--unit: name what {metric} counts, {' or '.join(UNITS)}")
    start, end = (moment(text, now) for text in (since, until))
    if end <= start:
        raise UsageError(f"--since={since} is not before --until={until}")
    if end - start > LONGEST_S:
        raise UsageError(f"--since={since}: a range is at most {LONGEST_S / 86_400:.0f} days long")
    place = StoreContext.of(arguments)
    baseline = place.runs(arguments.baseline, arguments.baseline_runs)
    test, measured = chosen(baseline, arguments.test or "")
    per = denominator(measured[0].key)
    tokens = arguments.tokens or TOKENS.get(per)
    if tokens is None:
        raise UsageError(
            f"--tokens: name the counter of the service for {unit_of(figure_per(per))}, the figure of {test}"
        )
    archive = Archive(arguments.candidate.removeprefix(PREFIX))
    try:
        energy = archive.counters(metric, start, end)
        made = archive.counters(tokens, start, end)
        found = service_figure(
            by_device(energy, metric),
            {repr(labels): rows for labels, rows in made.items()},
            UNITS[unit],
        )
    except ValueError as error:
        raise MeterError(f"Prometheus: {archive.shown}, {metric} and {tokens}: {error}") from error
    finally:
        archive.close()
    told = {
        "gpu.name": label_values(energy, "modelName"),
        "gpu.count": (str(len(by_device(energy, metric))),),
        "model": label_values(made, "model_name"),
    }
    print("\n".join(as_text(found, archive.shown, (metric, tokens), baseline, test, measured, told)))
    return 0


def moment(text: str, now: float) -> float:
    """Return a time in seconds since 1970, from ISO 8601 (of this machine's zone where it names none) or "24h" ago."""
    if match := _SPAN.fullmatch(text.strip()):
        return now - float(match[1]) * _SECONDS[match[2]]
    try:
        # Python 3.10 does not read the Z.
        return datetime.fromisoformat(text.strip().replace("Z", "+00:00")).timestamp()
    except ValueError:
        raise UsageError(
            f"{text}: must be a time such as 2026-11-21T08:00Z, or how long ago, such as 24h or 7d"
        ) from None


def chosen(baseline: Baseline, text: str) -> tuple[str, list[MeasurementRecord]]:
    """Return the test that stands for the service, with its comparable measurements."""
    tests = {test: measured for test, (_, measured) in measurements_of(baseline).items()}
    if not text and len(tests) > 1:
        raise UsageError(
            f"{baseline.label} holds {len(tests)} tests: name the one that stands for the service with --test"
        )
    test = choose_test(text, tests)
    return test, tests[test][: baseline.limit_runs]


def as_text(
    found: ServiceFigure,
    server: str,
    queries: tuple[str, str],
    baseline: Baseline,
    test: str,
    measured: Sequence[MeasurementRecord],
    told: Mapping[str, tuple[str, ...]],
) -> list[str]:
    """Return both figures, the difference, and what is unlike.

    Args:
        found: of the service.
        server: the Prometheus.
        queries: the energy and the token counter.
        baseline: where the measurements are from.
        test: whose they are.
        measured: the measurements.
        told: what the service's labels say of fields of the key.
    """
    per = denominator(measured[0].key)
    figure, unit = figure_per(per), unit_of(figure_per(per))
    values = [one.figures[figure] for one in measured]
    value = statistics.fmean(each.value for each in values)
    error = (
        statistics.stdev(each.value for each in values) / math.sqrt(len(values))
        if len(values) > 1
        else values[0].stderr
    )
    here = found.joules_per_token
    share = math.hypot(found.stderr / here, error / value)
    change = here / value - 1
    half = 1.96 * share * here / value
    first, last = (datetime.fromtimestamp(ms / 1000, timezone.utc) for ms in (found.start_ms, found.end_ms))
    resets = found.joules.resets + found.tokens.resets
    lines = [
        f"service   {here:.4g} ± {1.96 * found.stderr:.2g} {unit}  measured by {server}",
        f"          {first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S} UTC: {found.joules.value:.5g} J, "
        f"{found.tokens.value:.0f} tokens, {found.joules.value / found.seconds:.4g} W, "
        f"{found.tokens.value / found.seconds:.4g} tok/s",
        f"          {queries[0]} over {queries[1]}; ±95 % from scrape intervals"
        + (f" and {plural(resets, 'reset')} of counters" if resets else ""),
        f"baseline  {value:.4g} ± {1.96 * error:.2g} {unit}  {measured[0].provenance}, {test}",
        f"          {plural(len(measured), 'run')} of {baseline.label}, scope {measured[0].scope}",
        f"The service takes {with_interval(change, change - half, change + half)} for a token.",
        "",
        "No verdict: these are not the same thing. The service's figure has its idle time in it, its own lengths, "
        "batches and pauses, and every board of the query; the test's has fixed work and no idle time.",
    ]
    key = measured[0].key
    for name, there in told.items():
        mine = key.get(name, 1 if name == "gpu.count" else None)
        if mine is not None and there and there != (str(mine),):
            lines.append(f"Unlike in {name}: the service has {', '.join(there)}, the test {mine}.")
    if measured[0].scope != "gpu":
        lines.append(f"Unlike in scope: the test's figure is of the {measured[0].scope}.")
    if measured[0].provenance != "measured":
        lines.append(f"The test's figure is {measured[0].provenance}.")
    return lines
