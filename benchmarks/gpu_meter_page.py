"""Figures of docs/results/h100-meter.md: losses, spreads and tables, from the results of gpu_meter.py alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from reporting import table, versions_line

Row = dict[str, Any]

BATCH = 32
DECODE = (BATCH, 32, 264)
"""Requests, prompt tokens, new tokens of a round of the overhead part: nearly all of it is decode, about 2 s."""

KINDS: dict[str, tuple[int, int, int]] = {
    "33 ms": (3, 448, 1),
    "90 ms": (8, 480, 1),
    "230 ms": (20, 496, 1),
    "380 ms": (32, 512, 1),
    "2.4 s": (32, 512, 256),
}
"""Requests, prompt tokens and new tokens of each kind of window: prefills, and a whole round."""

MODES = {
    "sync": "in the tests' process, each step scheduled after the last (the GPU waits for the host)",
    "async": "in the tests' process, steps scheduled ahead",
    "separate": "in a process of its own, steps scheduled ahead (vLLM's default)",
}
"""How the engine runs: vLLM's async_scheduling, and where its core lives."""

SPREADS = {"90 ms": 4.0, "230 ms": 1.5, "380 ms": 1.2}
"""The largest spread of single windows in percent that the project set itself."""


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval by Student's t."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def round_seconds(row: Row) -> float:
    """How long a whole round took."""
    return float(row["seconds"])


def decode_seconds(row: Row) -> float:
    """How long a round decoded: from its second step, when its prompts have been admitted and read, to its last."""
    return float(row["steps_us"][-1] - row["steps_us"][1]) / 1e6


def losses(
    rows: Sequence[Row], seconds: Callable[[Row], float] = round_seconds
) -> tuple[list[float], list[float]]:
    """Loss of tokens/s in percent: of each pair of neighbours, and of each block of four (no drift in it)."""
    rate = [row["tokens"] / seconds(row) for row in rows]
    pairs = []
    for at in range(0, len(rows) - 1, 2):
        off, on = (rate[at + 1], rate[at]) if rows[at]["on"] else (rate[at], rate[at + 1])
        pairs.append(100 * (1 - on / off))
    return pairs, [statistics.fmean(pairs[at : at + 2]) for at in range(0, len(pairs) - 1, 2)]


def poll_excess_us(row: Row, spans: Sequence[Sequence[int]]) -> list[float]:
    """How much longer the engine's steps at each span, and the one after, took than the round's steps usually do."""
    steps: list[int] = row["steps_us"]
    lengths = [after - before for before, after in pairwise(steps)]
    found = []
    for start, end in spans:
        touched = [at for at in range(len(lengths)) if steps[at + 1] > start and steps[at] < end]
        if not touched or touched[0] < 5 or touched[-1] + 2 > len(lengths):
            continue
        chosen = lengths[touched[0] : touched[-1] + 2]
        found.append(sum(chosen) - statistics.fmean(lengths[5:]) * len(chosen))
    return found


def loss_by_steps(rows: Sequence[Row]) -> tuple[float, float, float] | None:
    """Loss in percent from the steps at the polls alone, with its 95 % interval; None where no steps were seen.

    A moment chosen blindly falls into a long step rather than a short one: what the same moments show in the rounds
    without a collector is taken off.
    """
    on = [row for row in rows if row["on"]]
    real = [each for row in on for each in poll_excess_us(row, row["polls_us"])]
    spans = [span for row in on for span in row["polls_us"]]
    blind = [each for row in rows if not row["on"] for each in poll_excess_us(row, spans)]
    if len(real) < 3 or len(blind) < 3:
        return None
    mean, low, _ = interval(real)
    blind_mean, blind_low, _ = interval(blind)
    per_second = len(spans) / sum(row["seconds"] for row in on)
    scale = 100 * per_second / 1e6
    half = scale * math.hypot(mean - low, blind_mean - blind_low)
    loss = scale * (mean - blind_mean)
    return loss, loss - half, loss + half


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def overhead_line(rows: Sequence[Row]) -> str:
    pairs, _ = losses(rows)
    mean, low, high = interval(pairs)
    return f"loss {mean:+.3f} % ({low:+.3f} to {high:+.3f}) over {len(pairs)} pairs"


def polled(polls: Sequence[Sequence[int]], start_ns: int, end_ns: int, *, edges: bool) -> float | None:
    """Trapezoids over polled power: between the samples inside the window, or joined to its edges; None: no data."""
    import numpy as np

    t = np.array([each[0] for each in polls], dtype=np.float64)
    watts = np.array([each[1] for each in polls], dtype=np.float64) / 1e3
    inside = (t >= start_ns) & (t <= end_ns)
    if edges:
        if len(t) < 2 or t[0] > start_ns or t[-1] < end_ns:
            return None
        times = np.concatenate([[start_ns], t[inside], [end_ns]])
        values = np.interp(times, t, watts)
    else:
        if inside.sum() < 2:
            return 0.0
        times, values = t[inside], watts[inside]
    return float(np.sum((values[1:] + values[:-1]) / 2 * np.diff(times)) / 1e9)


def readings(kind: Row) -> dict[str, tuple[list[float], list[float]]]:
    """Each method's joules over its windows, and what its calls cost on the measured path (ms)."""
    alone = [row for row in kind["rows"] if row["arm"] == "alone"]
    with_zeus = [row for row in kind["rows"] if row["arm"] == "zeus"]
    with_codecarbon = [row for row in kind["rows"] if row["arm"] == "codecarbon"]
    isolated = [*alone, *with_zeus]

    def ring(rows: Sequence[Row]) -> list[float]:
        return [row["joules"] if row["joules"] is not None else math.nan for row in rows]

    def emulated(thin: int, edges: bool) -> list[float]:
        found = [
            polled(kind["polls"][::thin], row["start_ns"], row["end_ns"], edges=edges) for row in isolated
        ]
        return [each for each in found if each is not None]

    return {
        "power ring, alone": (ring(alone), [0.0]),
        "power ring, Zeus around it": (ring(with_zeus), [0.0]),
        "Zeus": ([r["tool_joules"] for r in with_zeus], [r["cost_ms"] for r in with_zeus]),
        "CodeCarbon": ([r["tool_joules"] for r in with_codecarbon], [r["cost_ms"] for r in with_codecarbon]),
        "power ring, CodeCarbon around it": (ring(with_codecarbon), [0.0]),
        "polling 100 ms, samples inside (emulated)": (emulated(1, False), [0.0]),
        "polling 100 ms, joined to the edges (emulated)": (emulated(1, True), [0.0]),
        "polling 1 s, joined to the edges (emulated)": (emulated(10, True), [0.0]),
        "power ring, back to back": (ring([r for r in kind["rows"] if r["arm"] == "back to back"]), [0.0]),
    }


def table_of(name: str, kind: Row) -> list[str]:
    truth, ticks = kind["truth"]["joules"], [row["tick_joules"] for row in kind.get("ticked", [])]
    rested = statistics.fmean(ticks) if ticks else truth
    rows: list[list[object]] = []
    for method, (joules, cost) in readings(kind).items():
        if not joules:
            rows.append([method, 0, "not run", "", "", "", ""])
            continue
        mean = statistics.fmean(joules)
        by = truth if method.endswith("back to back") else rested
        rows.append(
            [
                method,
                len(joules),
                f"{mean:.1f}",
                f"{100 * statistics.stdev(joules) / mean:.1f} %" if len(joules) > 1 and mean else "",
                sum(each == 0 for each in joules),
                f"{100 * (mean / by - 1):+.1f} %",
                f"{statistics.median(cost):.1f}, {max(cost):.1f}" if any(cost) else "0",
            ]
        )
    return [
        f"**{name}**: "
        + (f"{rested:.1f} J by the counter with rest around them, {len(ticks)} windows; " if ticks else "")
        + f"{truth:.2f} J back to back, {kind['truth']['windows']:.0f} windows of {kind['truth']['window_ms']:.1f} ms "
        f"in {kind['truth']['seconds']:.1f} s at {kind['truth']['watts']:.0f} W",
        "",
        *table("method | windows | mean J | SD | zeros | bias | calls on the path, ms (median, worst)", rows),
    ]


def coverage(rows: Sequence[Row], truth: float) -> tuple[float, float, float, float] | None:
    """SD and stated standard error in percent, and shares of the 95 % intervals that hold the truth and the mean."""
    good = [row for row in rows if row["joules"] is not None and row["stderr"] is not None]
    if len(good) < 3:
        return None
    joules = [row["joules"] for row in good]
    mean = statistics.fmean(joules)

    def held(value: float) -> float:
        return statistics.fmean(abs(row["joules"] - value) <= 1.96 * row["stderr"] for row in good)

    stated = statistics.fmean(row["stderr"] for row in good)
    return 100 * statistics.stdev(joules) / mean, 100 * stated / mean, held(truth), held(mean)


def figures(parts: Row) -> dict[str, list[str]]:
    """Return the lines of each place of the page; what was not measured is empty, or said to be missing."""
    kinds = {name: kind for name, kind in parts.get("windows", {}).items() if "truth" in kind}
    tools = [f"{name}: {state}  " for name, state in parts.get("tools", {}).items()]
    return {
        "environment": environment(parts),
        "goals": goals(parts),
        "collector": [*overhead(parts), *collector(parts)],
        "windows": [*tools, "", *(line for name, kind in kinds.items() for line in table_of(name, kind))],
        "ticked": ticked_lines(kinds) or ["Not run."],
        "pooled": pooled_lines(kinds),
        "spread": spread(kinds),
        **{
            part: ["```", parts.get(part, {"text": "not run"})["text"].rstrip(), "```"]
            for part in ("doctor idle", "doctor load")
        },
    }


def environment(parts: Row) -> list[str]:
    if "environment" not in parts:
        return []
    board, versions = parts["environment"]["device"], parts["environment"]["versions"]
    return [
        f"Board: {board['model']}, {board['memory_gib']} GiB, power limit {board['power_limit_watts']} W. Driver "
        f"{board['driver']}. Provenance: {parts['environment']['provenance']}.  ",
        versions_line(versions),
        f"Date: {parts['began'][:10]}. Command: `python benchmarks/gpu_meter.py run --results results.json "
        f"--modes {' '.join(parts.get('modes', []))}` ({parts.get('seconds', 0):.0f} s).  ",
    ]


def goals(parts: Row) -> list[str]:
    rows: list[list[object]] = []
    for mode, title in MODES.items():
        measured = parts.get(f"overhead {mode}", [])
        if len(measured) < 8:
            rows.append([f"loss of tokens/s at most 0.1 %, engine {title}", "not run", ""])
            continue
        found = {"decode": interval(losses(measured, decode_seconds)[0])} if measured[0]["steps_us"] else {}
        found["whole rounds"] = interval(losses(measured)[0])
        if (by_steps := loss_by_steps(measured)) is not None:
            found["steps at the polls"] = by_steps
        for name, one in found.items():
            rows.append(
                [f"loss of tokens/s at most 0.1 %, engine {title}: {name}", _percent(one), _at_most(one)]
            )
        cpu = _cpu_share(measured)
        rows.append(
            [
                f"collector at most 1 % of one core, engine {title}",
                f"{cpu:.2f} %",
                "met" if cpu <= 1 else "missed",
            ]
        )
    for kind, limit in SPREADS.items():
        alone = [r for r in parts.get("windows", {}).get(kind, {}).get("rows", []) if r["arm"] == "alone"]
        joules = [row["joules"] for row in alone if row["joules"] is not None]
        if len(joules) > 2:
            found_percent = 100 * statistics.stdev(joules) / statistics.fmean(joules)
            rows.append(
                [
                    f"single windows of {kind} spread by at most {limit:g} %",
                    f"{found_percent:.2f} % of {len(joules)}",
                    "met" if found_percent <= limit else "missed",
                ]
            )
    return table("goal | measured | ", rows)


def pairs_wanted(spread: float, limit: float = 0.1) -> float:
    """How many pairs of this standard deviation have a 95 % interval that reaches from zero to the limit."""
    return (1.96 * spread / limit) ** 2


def _at_most(found: tuple[float, float, float], limit: float = 0.1) -> str:
    if found[2] <= limit:
        return "met"
    return "missed" if found[1] > limit else "not shown: the interval is too wide"


def _cpu_share(rows: Sequence[Row]) -> float:
    on = [row for row in rows if row["on"]]
    return float(100 * sum(row["cpu_s"] for row in on) / sum(row["seconds"] for row in on))


def _poll_cpu_ms(rows: Sequence[Row]) -> float:
    on = [row for row in rows if row["on"]]
    return float(1e3 * sum(row["cpu_s"] for row in on) / sum(len(row["polls_us"]) for row in on))


def _poll_pace_s(rows: Sequence[Row]) -> float:
    """From the start of a poll to the start of the next."""
    starts = [[start for start, _ in row.get("polls_us", ())] for row in rows]
    return float(
        statistics.median((after - before) / 1e6 for each in starts for before, after in pairwise(each))
    )


def overhead(parts: Row) -> list[str]:
    rows: list[list[object]] = []
    lines: list[str] = []
    for mode, title in MODES.items():
        measured = parts.get(f"overhead {mode}", [])
        if len(measured) < 8:
            continue
        pairs, blocks = losses(measured)
        rates = [
            statistics.fmean(row["tokens"] / row["seconds"] for row in measured if row["on"] is on)
            for on in (False, True)
        ]
        steps = loss_by_steps(measured)
        rows.append(
            [
                title,
                len(pairs),
                *(f"{rate:.0f}" for rate in rates),
                _percent(interval(losses(measured, decode_seconds)[0])) if steps else "not seen",
                f"{_percent(interval(pairs))}, {pairs_wanted(statistics.stdev(pairs)):.0f} pairs wanted",
                _percent(interval(blocks)),
                _percent(steps) if steps else "not seen",
                f"{_cpu_share(measured):.2f} %",
            ]
        )
        lines += pace(title, measured)
    head = (
        "engine | pairs | tok/s without | tok/s with | loss in decode | loss in whole rounds | whole rounds, by blocks "
        "of two pairs | loss by steps at the polls | collector's CPU, of one core"
    )
    return [*table(head, rows), *lines]


def pace(title: str, rows: Sequence[Row]) -> list[str]:
    """How long the engine's steps and the collector's polls take."""
    steps_us = [after - before for row in rows for before, after in pairwise(row["steps_us"][4:])]
    if not steps_us:
        return []
    polls = [(end - start) / 1e3 for row in rows for start, end in row.get("polls_us", ())] or [0.0]
    centiles = statistics.quantiles(steps_us, n=100)
    line = (
        f"Engine {title}: a step takes {centiles[49] / 1e3:.1f} ms (5 % to 95 %: {centiles[4] / 1e3:.1f} to "
        f"{centiles[94] / 1e3:.1f}, 99 %: {centiles[98] / 1e3:.1f}); a poll {statistics.median(polls):.1f} ms, "
        f"at most {max(polls):.1f}. Pairs differ by {_spread(losses(rows)[0]):.2f} % (SD) in whole rounds and "
        f"by {_spread(losses(rows, decode_seconds)[0]):.2f} % in decode."
    )
    if len(polls) > 1:
        cpu_ms, pace_s = _poll_cpu_ms(rows), _poll_pace_s(rows)
        line += (
            f" A poll takes {cpu_ms:.1f} ms of CPU; at one in {pace_s:.2f} s, the collector's pace, that is "
            f"{cpu_ms / pace_s / 10:.2f} % of one core."
        )
    return [line, ""]


def collector(parts: Row) -> list[str]:
    if "collector" not in parts:
        return []
    one = parts["collector"]
    return [
        f"Over {one['seconds']:.0f} s of the windows below the collector took "
        f"{100 * one['cpu_s'] / one['seconds']:.2f} % of one core: {one['polls']} polls of {one['poll_ms']:.1f} ms "
        f"(longest {one['longest_poll_ms']:.1f} ms). A window's two clock readings take "
        f"{one['two_clock_readings_us']:.2f} µs."
    ]


def ticked_lines(kinds: dict[str, Row]) -> list[str]:
    found: list[list[object]] = []
    for name, kind in kinds.items():
        rows = [row for row in kind.get("ticked", []) if row["joules"] is not None]
        if len(rows) < 2:
            continue
        off = [100 * (row["joules"] / row["tick_joules"] - 1) for row in rows]
        held = statistics.fmean(
            abs(row["joules"] - row["tick_joules"]) <= 1.96 * row["stderr"] for row in rows
        )
        stated = statistics.fmean(100 * row["stderr"] / row["joules"] for row in rows)
        mean, low, high = interval(off)
        counted = statistics.fmean(row["tick_joules"] for row in rows)
        found.append(
            [
                name,
                len(rows),
                f"{counted:.1f}",
                f"{mean:+.1f} % ({low:+.1f} to {high:+.1f})",
                f"{statistics.stdev(off):.1f} %",
                f"{stated:.1f} %",
                f"{held:.0%}",
            ]
        )
    head = (
        "window | windows | counter, mean J | ring less counter (95 % interval) | SD of the difference | "
        "ring's stated error | 95 % interval holds the counter's"
    )
    return table(head, found) if found else []


def _percent(found: tuple[float, float, float]) -> str:
    return f"{found[0]:+.3f} % ({found[1]:+.3f} to {found[2]:+.3f})"


def pooled_lines(kinds: dict[str, Row]) -> list[str]:
    """How many of all intervals hold: after a rest the mean of the window's row, and the counter's figure."""
    from scipy.stats import binomtest

    own, counted = [], []
    for kind in kinds.values():
        for variant in ("alone", "zeus", "codecarbon"):
            rows = [row for row in kind["rows"] if row["arm"] == variant and row["joules"] is not None]
            if len(rows) > 2:
                mean, n = statistics.fmean(row["joules"] for row in rows), len(rows)
                # A window pulls its row's mean towards itself.
                pull = math.sqrt(n / (n - 1))
                own += [abs(row["joules"] - mean) * pull <= 1.96 * row["stderr"] for row in rows]
        ticked = [row for row in kind.get("ticked", []) if row["joules"] is not None]
        counted += [abs(row["joules"] - row["tick_joules"]) <= 1.96 * row["stderr"] for row in ticked]
    lines = []
    for found, what in (
        (own, "the mean of their row"),
        (counted, "the counter's figure for the same window"),
    ):
        if found:
            low, high = binomtest(sum(found), len(found)).proportion_ci(method="exact")
            lines += [
                f"With rest around them, {sum(found)} of {len(found)} stated 95 % intervals hold {what}: "
                f"{sum(found) / len(found):.0%} (95 % interval {low:.0%} to {high:.0%}).  "
            ]
    return [*lines, ""] if lines else []


def spread(kinds: dict[str, Row]) -> list[str]:
    rows: list[list[object]] = []
    for name, kind in kinds.items():
        for variant in ("alone", "zeus", "codecarbon", "back to back"):
            windows = [row for row in kind["rows"] if row["arm"] == variant]
            found = coverage(windows, kind["truth"]["joules"])
            if found is None:
                continue
            lasted = [(row["end_ns"] - row["start_ns"]) / 1e6 for row in windows]
            joules = [row["joules"] for row in windows]
            watts = [1e3 * energy / each for energy, each in zip(joules, lasted, strict=True)]
            rows.append(
                [
                    name,
                    variant,
                    len(windows),
                    f"{statistics.fmean(lasted):.1f}",
                    f"{100 * statistics.stdev(lasted) / statistics.fmean(lasted):.1f} %",
                    f"{statistics.fmean(watts):.0f}",
                    f"{100 * statistics.stdev(watts) / statistics.fmean(watts):.1f} %",
                    f"{found[0]:.1f} %",
                    f"{statistics.correlation(lasted, joules):+.2f}",
                    f"{found[1]:.1f} %",
                    f"{found[3]:.0%}",
                    f"{found[2]:.0%}" if variant == "back to back" else "",
                    sum(bool(row["reasons"]) for row in windows),
                ]
            )
    head = (
        "window | around it | windows | mean ms | duration, SD | mean W | watts, SD | SD | energy with duration, "
        "correlation | stated standard error | holds the mean | holds the counter's, back to back | flagged"
    )
    return table(head, rows)
