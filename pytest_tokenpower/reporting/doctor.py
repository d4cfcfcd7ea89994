"""The doctor's report as text and JSON: the verdicts first, then what they rest on."""

from __future__ import annotations

import math
import os
import platform
import re
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from pytest_tokenpower import __version__
from pytest_tokenpower.analysis.guards import HEAT_LIMITS
from pytest_tokenpower.analysis.meter_quality import (
    DeviceReport,
    Intervals,
    MeterReport,
    Report,
    span,
    user_id,
)
from pytest_tokenpower.meters.probe_nvml import BoardFacts, CallCost


def exit_code(report: Report, *, allow_model: bool) -> int:
    """0 where energy can be measured as asked, else 1 (see EXIT_CODES)."""
    wanted = report.auto
    if report.only is not None:
        wanted = report.meters[0].name
    elif wanted is None and allow_model:
        wanted = "model"
    return 0 if any(each.name == wanted and each.grade in ("good", "usable") for each in report.meters) else 1


def auto_line(report: Report) -> str:
    """Return what ``--energy-source=auto`` takes on this machine, in one line."""
    if report.only is not None:
        return (
            f"only {report.only} was examined; without --source it is shown what --energy-source=auto takes"
        )
    meter = next((each for each in report.meters if each.name == report.auto), None)
    if meter is None:
        model = next((each for each in report.meters if each.name == "model"), None)
        works = model is not None and model.grade in ("good", "usable")
        instead = "; --energy-source=model would work, as modelled" if works else ""
        return f"--energy-source=auto takes nothing: energy tests are skipped{instead}"
    count = len(meter.devices)
    what = f" ({count} device{'s' if count != 1 else ''})" if count else ""
    but = ", which is not usable: energy tests will be invalid or fail" if meter.grade == "unusable" else ""
    return f"--energy-source=auto takes {meter.name}{what}{but}"


def as_json(report: Report, code: int) -> dict[str, Any]:
    """Return the report as plain values; what is not known is null."""
    plain: dict[str, Any] = _plain(
        {
            "version": 1,
            "tokenpower": __version__,
            "machine": machine(),
            "seconds": report.seconds,
            "source": report.only,
            "meters": [asdict(meter) for meter in report.meters],
            "clock": {
                "readings": len(report.clock.pairs),
                "moved_ns": report.clock.moved_ns,
                "largest_jump_ns": report.clock.largest_jump_ns,
                "stable": report.clock.stable,
            },
            "auto": {"source": report.auto, "text": auto_line(report)},
            "exit_code": code,
        }
    )
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    # JSON has no infinity and no NaN.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def machine() -> dict[str, Any]:
    """Return the machine, as far as a meter cares."""
    return {"system": f"{platform.system()} {platform.release()}", "cores": os.cpu_count(), "user": user_id()}


_NAME = 12

_LABEL = 12

_UNIT = re.compile(r"(\d) ((?:µs|ms|s|W|J|mJ|µJ|MHz|°C|%)(?!\w))")

_NO_BREAK = "\N{NO-BREAK SPACE}"


def render(report: Report, width: int = 100) -> str:
    """Return the whole report, lines of at most ``width`` where words allow it."""
    lines: list[str] = []
    found = [meter for meter in report.meters if meter.grade != "absent"]
    for meter in (*found, *(meter for meter in report.meters if meter.grade == "absent")):
        lines += _wrapped(meter.name.ljust(_NAME), meter.verdict, width)
        lines += _details(meter, width)
    lines += _wrapped("clock".ljust(_NAME), _clock(report), width)
    lines += ["", auto_line(report)]
    return "\n".join(lines)


def _wrapped(head: str, text: str, width: int) -> list[str]:
    # A number and its unit stay on one line.
    lines = textwrap.wrap(
        head + _UNIT.sub(rf"\1{_NO_BREAK}\2", text),
        max(width, 40),
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_NO_BREAK, " ") for line in lines]


def _details(meter: MeterReport, width: int) -> list[str]:
    lines: list[str] = []
    for device in meter.devices:
        who = device.device
        lines += _wrapped("  ", f"{who.name} · {who.id} · scope {who.scope}, {who.provenance}", width)
        if len(meter.devices) > 1:
            lines += _wrapped(f"    {'verdict'.ljust(_LABEL)}", device.quality.verdict, width)
        for label, text in _rows(device):
            lines += _wrapped(f"    {label.ljust(_LABEL)}", text, width)
    if meter.calls:
        lines += _wrapped(f"    {'calls'.ljust(_LABEL)}", _calls(meter.calls), width)
    if meter.polls is not None:
        lines += _wrapped(f"    {'collector'.ljust(_LABEL)}", _collector(meter), width)
    for remark in meter.remarks:
        lines += _wrapped("    ! ", remark, width)
    return lines


def _rows(report: DeviceReport) -> Iterator[tuple[str, str]]:
    quality, board = report.quality, report.board
    sound = quality.agreement is None or quality.agreement.sound
    if quality.joules is not None and quality.seconds and sound:
        watts = quality.joules / quality.seconds
        error = quality.stderr_joules or 0.0
        yield (
            "energy",
            f"{quality.joules:.1f} ± {max(error, 0.1):.1f} J in {quality.seconds:.1f} s, {watts:.1f} W"
            f" ({quality.method})",
        )
    if quality.power is not None:
        yield ("ring" if quality.method == "power ring" else "power"), _power(report)
    if quality.counter is not None:
        yield "counter", _counter(report)
    if quality.agreement is not None:
        agreement = quality.agreement
        state = (
            "agree"
            if agreement.sound and agreement.shown
            else "DISAGREE"
            if not agreement.sound
            else "unclear"
        )
        against = "ring" if agreement.ring else "polled power"
        yield (
            "agreement",
            f"counter / {against} = {agreement.ratio:.4f} ± {max(agreement.stderr, 1e-4):.4f}"
            f" over {agreement.readings} readings: {state}",
        )
    if board is not None:
        yield from _board(board)
    shown = (*quality.remarks, *_warnings(report))
    for remark in shown:
        yield "!", remark


def _spread(intervals: Intervals) -> str:
    return (
        f"every {span(intervals.median_ns)} ({span(intervals.shortest_ns)} to {span(intervals.longest_ns)}),"
        f" {intervals.count} in all"
    )


def _power(report: DeviceReport) -> str:
    quality, board = report.quality, report.board
    assert quality.power is not None
    parts = [f"a sample {_spread(quality.power)}"]
    if board is not None and board.ring_kept:
        parts.append(f"{board.ring_kept} kept = {span(board.ring_span_ns or 0)}")
    parts.append(f"{quality.gaps} gaps" if quality.gaps else "no gaps")
    if quality.method != "power ring" and quality.power_changes is not None:
        parts.append(f"value changes every {span(quality.power_changes.median_ns)}")
    if quality.power_step_watts is not None:
        parts.append(f"step {quality.power_step_watts:.3g} W")
    return ", ".join(parts)


def _counter(report: DeviceReport) -> str:
    quality, board = report.quality, report.board
    assert quality.counter is not None
    parts = [f"read {_spread(quality.counter)}"]
    refresh = board.refresh.get("counter") if board is not None else None
    if refresh is not None:
        parts.append(
            f"changes every {span(refresh.period_ns)}"
            if refresh.period_ns is not None
            else f"changed {refresh.changes} times in {span(refresh.watched_ns)}"
        )
    elif quality.counter_changes is not None:
        parts.append(f"value changes every {span(quality.counter_changes.median_ns)}")
    if quality.counter_step_joules is not None:
        parts.append(f"step {_joules(quality.counter_step_joules)}")
    return ", ".join(parts)


def _joules(joules: float) -> str:
    for unit, scale in (("J", 1.0), ("mJ", 1e-3)):
        if joules >= scale:
            return f"{joules / scale:.3g} {unit}"
    return f"{joules * 1e6:.3g} µJ"


def _board(board: BoardFacts) -> Iterator[tuple[str, str]]:
    names = {"usage": "average (PowerUsage)", "instant": "instant (186)", "average": "average (185)"}
    refreshed = [
        f"{text} {'no change seen' if refresh.period_ns is None else f'every {span(refresh.period_ns)}'}"
        for name, text in names.items()
        if (refresh := board.refresh.get(name)) is not None
    ]
    if refreshed:
        yield "refresh", ", ".join(refreshed)
    state = []
    if board.watts is not None:
        state.append(f"{board.watts:.0f} W now")
    if board.limit_watts is not None:
        default = "" if board.default_limit_watts is None else f" (default {board.default_limit_watts:.0f} W)"
        state.append(f"limit {board.limit_watts:.0f} W{default}")
    if board.temperature_celsius is not None:
        state.append(f"{board.temperature_celsius:.0f} °C")
    if board.sm_clock_mhz is not None:
        state.append(f"SM {board.sm_clock_mhz:.0f} MHz")
    if board.memory_clock_mhz is not None:
        state.append(f"memory {board.memory_clock_mhz:.0f} MHz")
    for text, value in (("MIG", board.mig), ("persistence mode", board.persistence)):
        state.append(f"{text} {'unknown' if value is None else 'on' if value else 'off'}")
    yield "board", ", ".join(state)
    if board.reasons is not None:
        yield "clocks held", ", ".join(board.reasons) or "by nothing"
    yield "processes", _processes(board)


def _processes(board: BoardFacts) -> str:
    if board.processes is None:
        return "not told"
    hidden = " (this is a container: others may be hidden from it)" if board.processes_hidden else ""
    words = {"own": "ours", "foreign": "FOREIGN", "unknown": "of another PID namespace, maybe ours"}
    listed = ", ".join(f"pid {process.pid} {words[process.owner]}" for process in board.processes)
    return (listed or "none") + hidden


def _warnings(report: DeviceReport) -> Iterator[str]:
    quality, board = report.quality, report.board
    foreign = set(quality.foreign_pids)
    if board is not None:
        foreign |= {process.pid for process in board.processes or () if process.owner == "foreign"}
    if foreign:
        pids = ", ".join(map(str, sorted(foreign)))
        yield f"another process uses the GPU (pid {pids}): rounds beside it are dropped; stop it, or use another GPU"
    hot = [
        f"{name.replace('_', ' ')} {100 * share:.0f} %"
        for name, share in quality.limited.items()
        if name in HEAT_LIMITS
    ]
    if hot:
        yield f"slowed down by heat or by the power supply during the trial: {', '.join(hot)} of the time"
    if board is None:
        return
    if board.persistence is False:
        yield "persistence mode is off, so the counter may restart: sudo nvidia-smi -pm 1"
    if (
        board.limit_watts is not None
        and board.default_limit_watts is not None
        and board.limit_watts < board.default_limit_watts
    ):
        yield "the power limit is below the default: results are compared only with the same limit"
    failed = {call: why for call, why in board.unread.items() if why != "Not Supported"}
    if failed:
        yield "could not be read: " + ", ".join(f"{call} ({why})" for call, why in failed.items())
    unsupported = sorted(board.unread.keys() - failed.keys())
    if unsupported:
        yield "not offered by this board: " + ", ".join(unsupported)


def _calls(calls: tuple[CallCost, ...]) -> str:
    slowest = sorted(calls, key=lambda call: -call.median_ns)
    listed = [
        f"{call.call.removeprefix('nvmlDevice')} {span(call.median_ns)} ({span(call.percentile99_ns)})"
        for call in slowest
    ]
    return "median (99 %) of each: " + ", ".join(listed)


def _collector(meter: MeterReport) -> str:
    polls = meter.polls
    assert polls is not None
    share = "" if meter.cpu_share is None else f"{100 * meter.cpu_share:.2f} % of one core, "
    return (
        f"{share}{polls.count} polls of {span(polls.median_ns)} (99 %: {span(polls.percentile99_ns)},"
        f" longest {span(polls.longest_ns)}), {polls.failed or 'none'} failed"
    )


def _clock(report: Report) -> str:
    clock = report.clock
    text = (
        f"realtime moved {clock.moved_ns / 1e6:+.2f} ms against monotonic,"
        f" {clock.largest_jump_ns / 1e6:.2f} ms at most at once"
    )
    if clock.stable:
        return f"stable: {text}"
    return f"STEPPED: {text}: rounds in a step are dropped; let NTP settle first (chronyc tracking)"
