"""The meter on a real GPU: what it costs the engine, and the same windows through Zeus, CodeCarbon and polling.

    python benchmarks/gpu_meter.py run --results results.json       on the GPU machine (torch, vLLM; Zeus, CodeCarbon)
    python benchmarks/gpu_meter.py page results.json docs/results/h100-meter.md     its figures; the prose stays

`run` keeps each part in the results as soon as it has it, and goes on where an earlier call stopped. `--fake` tries
the script without a GPU: a simulated board, an engine that sleeps.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu_meter_page import BATCH, DECODE, KINDS, MODES, figures, overhead_line, table_of, ticked_lines
from reporting import Results, now, refresh

from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.windows import RoundWindow
from pytest_tokenpower.meters.adapters.nvml.meter import NvmlMeter
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.collector import Collector
from pytest_tokenpower.runner.rounds import counted_round, executed
from pytest_tokenpower.runner.telemetry import TelemetrySession

Row = dict[str, Any]

COUNTS = {"33 ms": (30, 8), "90 ms": (30, 8), "230 ms": (22, 6), "380 ms": (18, 6), "2.4 s": (4, 2)}
"""Windows with Zeus around them (and as many without), and windows with CodeCarbon around them."""

TICKED = {"33 ms": 12, "90 ms": 12, "230 ms": 12, "380 ms": 10, "2.4 s": 3}
"""Windows of each kind with rest around them, that are held against the counter's ticks."""

GAP_S = 0.15
"""Pause before each round of the overhead part: the collector starts and stops inside it."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "engine", "doctor"):
        one = commands.add_parser(name)
        one.add_argument("--fake", action="store_true")
        if name == "doctor":
            continue
        one.add_argument("--results", type=Path, required=True)
        one.add_argument("--copy", type=Path, default=Path("/tmp/gpu-meter-results.json"))
        one.add_argument("--recording", type=Path)
        one.add_argument("--model", type=Path, default=Path("/tmp/gpu-gate/model"))
        one.add_argument("--seconds", type=float, default=380.0, help="when to begin nothing more")
        one.add_argument("--pairs", type=int, default=20)
        one.add_argument("--modes", nargs="+", default=["async", "separate"], choices=list(MODES))
    page = commands.add_parser("page")
    page.add_argument("results", type=Path)
    page.add_argument("page", type=Path)
    arguments = parser.parse_args()
    match arguments.command:
        case "run":
            run(arguments)
        case "engine":
            engine_parts(arguments)
        case "doctor":
            print(json.dumps(doctor(arguments.fake)))
        case "page":
            refresh(arguments.page, figures(json.loads(arguments.results.read_text())))


# --- the parts, in the order in which they run


def run(arguments: argparse.Namespace) -> None:
    """Doctor on the idle board while the engine's process imports; then the engine's parts, mode by mode."""
    began = time.monotonic()
    results = Results(arguments.results, arguments.copy)
    results.keep("began", results.parts.get("began") or now())
    modes = [*results.parts.get("modes", []), *arguments.modes]
    results.keep("modes", [mode for mode in MODES if mode in modes])
    code = 0
    for at, mode in enumerate(arguments.modes):
        left = arguments.seconds - (time.monotonic() - began)
        if at and left < (5 if arguments.fake else 90):
            print(f"no time for the engine {MODES[mode]}", flush=True)
            break
        child = start_engine(arguments, mode, left)
        try:
            results = Results(arguments.results, arguments.copy)
            if "doctor idle" not in results.parts:
                results.keep("doctor idle", doctor_command(arguments.fake))
                say(began, results.parts["doctor idle"]["text"])
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.communicate("go\n", timeout=left + 20)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        code = code or child.returncode
    results = Results(arguments.results, arguments.copy)
    results.keep("seconds", results.parts.get("seconds", 0.0) + time.monotonic() - began)
    print("\n".join(line for part in figures(results.parts).values() for line in part)[:6000], flush=True)
    sys.exit(code)


def start_engine(arguments: argparse.Namespace, mode: str, seconds: float) -> subprocess.Popen[str]:
    options = [f"--results={arguments.results}", f"--copy={arguments.copy}", f"--model={arguments.model}"]
    options += [f"--seconds={seconds}", f"--pairs={arguments.pairs}", f"--modes={mode}"]
    options += [f"--recording={arguments.recording}"] if arguments.recording else []
    options += ["--fake"] * arguments.fake
    return subprocess.Popen([sys.executable, __file__, "engine", *options], stdin=subprocess.PIPE, text=True)


def run_doctor(fake: bool) -> Row:
    """Text and --json of one trial, in a process of its own."""
    command = [sys.executable, __file__, "doctor", *(["--fake"] * fake)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"at": now(), "text": done.stderr[-2000:], "json": None}
    found: Row = json.loads(done.stdout)
    return {"at": now(), **found}


def doctor_command(fake: bool) -> Row:
    """Return the command as a person runs it."""
    options = ["--source=simulated", "--seconds=1"] * fake
    command = [sys.executable, "-m", "pytest_tokenpower", "doctor", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"at": now(), "text": done.stdout + done.stderr, "exit": done.returncode}


def doctor(fake: bool) -> Row:
    """Run the doctor: what `tokenpower doctor` and `tokenpower doctor --json` print, of one trial."""
    from pytest_tokenpower.analysis.meter_quality import report_of
    from pytest_tokenpower.cli.doctor import subjects_of
    from pytest_tokenpower.meters.probe import try_meters
    from pytest_tokenpower.reporting.doctor import as_json, exit_code
    from pytest_tokenpower.reporting.doctor import render as text_of

    source, seconds = ("simulated", 1.0) if fake else (None, 10.0)
    trials, clock = try_meters(subjects_of(source), seconds)
    report = report_of(trials, clock, seconds, source)
    code = exit_code(report, allow_model=False)
    return {"text": text_of(report, width=100), "json": as_json(report, code), "exit": code}


def engine_parts(arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    [mode] = arguments.modes
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if mode == "separate" else "0"
    load = import_fake() if arguments.fake else import_vllm(mode)
    say(began, "imported")
    sys.stdin.readline()
    results = Results(arguments.results, arguments.copy)
    llm = load(arguments.model)
    say(began, f"engine ready: {MODES[mode]}")
    deadline = began + arguments.seconds
    rng = random.Random(mode)
    results.keep("environment", environment(arguments.fake))
    part = f"overhead {mode}"
    if len(results.parts.get(part, [])) < 4 * (arguments.pairs // 2):
        reserved = (
            0 if mode == "separate" else still_needed_s(results.parts) * (0.02 if arguments.fake else 1)
        )
        overhead(results, part, llm, arguments, deadline - reserved, rng)
        if results.parts.get(part):
            say(began, f"{part}: {len(results.parts[part])} rounds; {overhead_line(results.parts[part])}")
    if mode == "separate":
        return
    if "doctor load" not in results.parts and time.monotonic() < deadline - 15 * (not arguments.fake):
        results.keep("doctor load", doctor_under_load(llm, arguments.fake))
        say(began, results.parts["doctor load"]["text"])
    windows(results, llm, arguments, deadline, rng, began)


def still_needed_s(parts: Row) -> float:
    """Seconds to keep for what comes after the overhead part; less where an earlier call had most windows."""
    return 17.0 * ("doctor load" not in parts) + 120.0 * (not parts.get("windows"))


def doctor_under_load(llm: Any, fake: bool) -> Row:
    found: list[Row] = []
    thread = threading.Thread(target=lambda: found.append(run_doctor(fake)))
    thread.start()
    execute = workload(llm, DECODE)
    while thread.is_alive():
        execute()
    return found[0]


class StampedMeter(NvmlMeter):
    """The meter that the plugin takes on a GPU; it also notes when each poll was."""

    def __init__(self, nvml: Any = None, **options: Any) -> None:
        super().__init__(nvml, **options)
        self.polls: list[tuple[int, int]] = []

    def poll(self, clock: Any) -> Any:
        """As the meter polls."""
        start_ns = time.monotonic_ns()
        readings = super().poll(clock)
        self.polls.append((start_ns, time.monotonic_ns()))
        return readings


def start_meter(fake: bool) -> tuple[TelemetrySession, StampedMeter]:
    """Start the collector as `--energy-source=auto` starts it."""
    if fake:
        meter = StampedMeter(sys.modules["pynvml"], provenance="simulated")
    else:
        meter = StampedMeter(visible=os.environ.get("CUDA_VISIBLE_DEVICES"))
    collector = Collector([meter])
    return TelemetrySession(collector, collector.start()), meter


def collector_cpu_s() -> float:
    """CPU time of the collector's thread so far."""
    [thread] = [each for each in threading.enumerate() if each.name == "tokenpower-nvml"]
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def overhead(
    results: Results, part: str, llm: Any, arguments: argparse.Namespace, deadline: float, rng: random.Random
) -> None:
    """Run rounds with and without the collector, in blocks off-on-on-off or on-off-off-on, which one by lot."""
    execute = workload(llm, (BATCH, 32, 8) if arguments.fake else DECODE)
    steps = record_steps(llm)
    for _ in range(1 if arguments.fake else 3):
        execute()
    rows: list[Row] = results.parts.get(part, [])
    rows = rows[: len(rows) // 4 * 4]
    telemetry: TelemetrySession | None = None
    meter: StampedMeter | None = None
    while len(rows) < 4 * (arguments.pairs // 2) and time.monotonic() < deadline - 10:
        lead = rng.random() < 0.5
        for at, on in enumerate((lead, not lead, not lead, lead)):
            ended = time.monotonic()
            if on and telemetry is None:
                telemetry, meter = start_meter(arguments.fake)
            elif not on and telemetry is not None:
                telemetry.collector.stop()
                telemetry = meter = None
            time.sleep(max(0.0, ended + GAP_S - time.monotonic()))
            steps.clear()
            cpu_s = collector_cpu_s() if on else 0.0
            window = measure(execute)
            row = {
                "block": len(rows) // 4 if at == 0 else rows[-1]["block"],
                "on": on,
                "seconds": (window.end_ns - window.start_ns) / 1e9,
                "tokens": window.tokens.generated,
                "steps_us": [(t - window.start_ns) // 1000 for t in steps],
            }
            if on:
                assert meter is not None
                row["cpu_s"] = collector_cpu_s() - cpu_s
                row["polls_us"] = [
                    [(t0 - window.start_ns) // 1000, (t1 - window.start_ns) // 1000]
                    for t0, t1 in meter.polls
                    if t1 > window.start_ns and t0 < window.end_ns
                ]
            rows.append(row)
        results.keep(part, rows)
    if telemetry is not None:
        telemetry.collector.stop()


def record_steps(llm: Any) -> list[int]:
    """Note the end of each engine step, in both variants alike; stays empty where the steps are in another process."""
    stamps: list[int] = []
    if os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0":
        step = llm.llm_engine.step

        def stamped(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            stamps.append(time.monotonic_ns())
            return result

        llm.llm_engine.step = stamped
    return stamps


def measure(execute: Callable[[], TokenCount]) -> RoundWindow:
    """One window as the plugin runs a round: two clock readings, and a wait for the GPU before the second."""
    return counted_round(executed(execute, 1, Clock()), lambda result: result, lambda _: ())  # type: ignore[return-value,arg-type]


def workload(llm: Any, shape: tuple[int, int, int]) -> Callable[[], TokenCount]:
    """So many requests of so many random prompt tokens, each generating so many."""
    requests, prompt, new = shape
    rng = random.Random(0)
    prompts = [
        {"prompt_token_ids": [rng.randrange(100, 30_000) for _ in range(prompt)]} for _ in range(requests)
    ]
    sampling = llm.sampling(new)

    def execute() -> TokenCount:
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        generated = sum(len(output.outputs[0].token_ids) for output in outputs)
        assert generated == requests * new
        return TokenCount(requests * prompt, generated, requests)

    return execute


def windows(
    results: Results,
    llm: Any,
    arguments: argparse.Namespace,
    deadline: float,
    rng: random.Random,
    began: float,
) -> None:
    """Each kind of window: with tools and without, back to back as the truth, and with rest around it."""
    found: Row = results.parts.get("windows", {})
    if all(found.get(kind, {}).get("ticked") for kind in KINDS):
        return
    telemetry, meter = start_meter(arguments.fake)
    [device] = telemetry.devices
    library: Any = sys.modules["pynvml"]
    handle = library.nvmlDeviceGetHandleByUUID(device.id)

    def counter() -> int:
        return int(library.nvmlDeviceGetTotalEnergyConsumption(handle))

    power = Poller(lambda: library.nvmlDeviceGetPowerUsage(handle))
    tools = {"zeus": start_zeus(arguments.fake), "codecarbon": start_codecarbon()}
    names = {"Zeus": describe(tools["zeus"]), "CodeCarbon": describe(tools["codecarbon"])}
    results.keep("tools", names)
    say(began, f"tools: {names}")
    cpu_s, since = collector_cpu_s(), time.monotonic()
    kept: list[tuple[str, Row, RoundWindow]] = []
    for kind, shape in KINDS.items():
        if time.monotonic() > deadline - 30 * (not arguments.fake):
            break
        execute = workload(llm, shape)
        one: Row = found.setdefault(kind, {})
        if one.get("ticked"):
            continue
        for _ in range(2):
            execute()
        power.taken()
        if "truth" not in one:
            measured = with_tools(execute, kind, tools, rng, arguments.fake)
            one["polls"] = power.taken()
            one["rows"] = assessed(telemetry, measured)
            results.keep("windows", found)
            usual_s = statistics.median(
                (w.end_ns - w.start_ns) / 1e9 for row, w in measured if row["arm"] == "alone"
            )
            one["truth"], repeats = back_to_back(execute, counter, usual_s, 0.6 if arguments.fake else 5.1)
            measured += [({"arm": "back to back"}, window) for window in repeats]
            one["rows"] = assessed(telemetry, measured)
            kept += [(kind, *each) for each in measured]
        ticked = by_ticks(execute, counter, 2 if arguments.fake else TICKED[kind], rng)
        one["ticked"] = assessed(telemetry, ticked)
        kept += [(kind, *each) for each in ticked]
        results.keep("windows", found)
        if arguments.recording:
            keep_recording(arguments.recording, telemetry, kept)
        say(began, "\n".join([*table_of(kind, one), *ticked_lines({kind: one})]))
    results.keep(
        "collector",
        {
            "seconds": time.monotonic() - since,
            "cpu_s": collector_cpu_s() - cpu_s,
            "polls": len(meter.polls),
            "poll_ms": statistics.median((t1 - t0) / 1e6 for t0, t1 in meter.polls),
            "longest_poll_ms": max((t1 - t0) / 1e6 for t0, t1 in meter.polls),
            "two_clock_readings_us": clock_cost_us(),
        },
    )
    power.stop()
    telemetry.collector.stop()


def with_tools(
    execute: Callable[[], TokenCount], kind: str, tools: Row, rng: random.Random, fake: bool
) -> list[tuple[Row, RoundWindow]]:
    """Windows alone and with Zeus by lot, then some with CodeCarbon."""
    with_zeus, with_codecarbon = (2, 1) if fake else COUNTS[kind]
    variants = ["alone", "zeus"] * with_zeus
    rng.shuffle(variants)
    variants += ["codecarbon"] * with_codecarbon
    rows: list[tuple[Row, RoundWindow]] = []
    for variant in variants:
        tool = tools.get(variant)
        if isinstance(tool, str):
            continue
        # Where a window falls between the ticks of the meters is a matter of chance.
        time.sleep(rng.uniform(0.02, 0.12))
        if tool is None:
            rows.append(({"arm": variant}, measure(execute)))
            continue
        before = time.perf_counter()
        tool.begin()
        opened = time.perf_counter()
        window = measure(execute)
        closed = time.perf_counter()
        joules = tool.end()
        cost = time.perf_counter() - closed + opened - before
        rows.append(({"arm": variant, "tool_joules": joules, "cost_ms": 1e3 * cost}, window))
    return rows


def assessed(telemetry: TelemetrySession, measured: Sequence[tuple[Row, RoundWindow]]) -> list[Row]:
    """Return the rows with what the plugin says of their windows."""
    records = telemetry.assess([window for _, window in measured])
    return [
        {
            **row,
            "start_ns": window.start_ns,
            "end_ns": window.end_ns,
            "joules": record.joules,
            "stderr": record.stderr_joules,
            "reasons": list(record.reasons),
            "celsius": record.temperature_celsius,
        }
        for (row, window), record in zip(measured, records, strict=True)
    ]


def by_ticks(
    execute: Callable[[], TokenCount], counter: Callable[[], int], count: int, rng: random.Random
) -> list[tuple[Row, RoundWindow]]:
    """Windows with rest around them, each with its joules by the energy counter alone.

    Both ticks that are subtracted lie in the rest, where power is flat; what was drawn between them and the window's
    edges is the power between the neighbouring ticks.
    """
    rows = []
    for _ in range(count):
        time.sleep(rng.uniform(0.1, 0.2))
        before = [next_tick(counter) for _ in range(2)]
        # Anywhere in the counter's 100 ms: what it makes of a short window may depend on where in a tick that is.
        time.sleep(rng.uniform(0.0, 0.1))
        window = measure(execute)
        after = [next_tick(counter) for _ in range(3)]
        # The counter may lag by some milliseconds: a tick that close to the window is not taken.
        at = 0 if after[0][0] > window.end_ns + 15_000_000 else 1
        joules = (after[at][1] - before[-1][1]) / 1e3
        joules -= _watts(before[-2], before[-1]) * (window.start_ns - before[-1][0]) / 1e9
        joules -= _watts(after[at], after[at + 1]) * (after[at][0] - window.end_ns) / 1e9
        rows.append(({"arm": "ticks", "tick_joules": joules, "ticks": [*before, *after]}, window))
    return rows


def _watts(first: tuple[int, int], second: tuple[int, int]) -> float:
    return 1e6 * (second[1] - first[1]) / (second[0] - first[0])


def keep_recording(
    path: Path, telemetry: TelemetrySession, kept: Sequence[tuple[str, Row, RoundWindow]]
) -> None:
    from pytest_tokenpower.meters.recording import RecordedWindow, write_recording

    recorded = [
        RecordedWindow(
            f"{kind} {row['arm']}",
            window.start_ns,
            window.end_ns,
            prompt_tokens=window.tokens.prompt,
            generated_tokens=window.tokens.generated,
        )
        for kind, row, window in kept
    ]
    write_recording(path, telemetry.collector.timeline, recorded, realtime_offset_ns=Clock().offset_ns)


def back_to_back(
    execute: Callable[[], TokenCount], counter: Callable[[], int], usual_s: float, least_s: float
) -> tuple[Row, list[RoundWindow]]:
    """Measure the truth: whole windows one after another for over five seconds, by the energy counter alone.

    The counter's ticks are watched around the start of two windows far apart; in between nothing reads it. Its value
    at a window's start is interpolated between the two ticks around that.
    """
    skip, count = math.ceil(0.5 / usual_s), math.ceil(least_s / usual_s)
    began_ns = time.monotonic_ns()
    targets = [began_ns + int(1e9 * usual_s * each) for each in (skip, skip + count)]
    ticks: list[list[tuple[int, int]]] = [[], []]
    starts: list[int] = []
    done = threading.Event()

    def watch() -> None:
        for target, seen in zip(targets, ticks, strict=True):
            time.sleep(max(0.0, (target - time.monotonic_ns()) / 1e9 - 0.22))
            # Until a window has begun between two ticks: rounds of seconds may come later than planned.
            while len(seen) < 4 or not any(seen[0][0] <= each <= seen[-1][0] for each in starts):
                seen.append(next_tick(counter))
        done.set()

    thread = threading.Thread(target=watch)
    thread.start()
    repeats = []
    while not done.is_set():
        starts.append(time.monotonic_ns())
        repeats.append(measure(execute))
    thread.join()
    edges = []
    for target, seen in zip(targets, ticks, strict=True):
        inside = [at for at, w in enumerate(repeats) if seen[0][0] <= w.start_ns <= seen[-1][0]]
        at = min(inside, key=lambda each: abs(repeats[each].start_ns - target))
        edges.append((at, _between(seen, repeats[at].start_ns)))
    (first, start_joules), (last, end_joules) = edges
    kept = repeats[first:last]
    seconds = (repeats[last].start_ns - repeats[first].start_ns) / 1e9
    mean_s = statistics.fmean((each.end_ns - each.start_ns) / 1e9 for each in kept)
    watts = (end_joules - start_joules) / seconds
    truth = {"joules": watts * mean_s, "watts": watts, "window_ms": 1e3 * mean_s}
    return truth | {"windows": len(kept), "seconds": seconds}, kept


def _between(ticks: Sequence[tuple[int, int]], at_ns: int) -> float:
    """Return the counter's joules at a moment, on the line between the ticks around it."""
    for (t0, first), (t1, second) in pairwise(ticks):
        if t0 <= at_ns <= t1:
            return (first + (second - first) * (at_ns - t0) / (t1 - t0)) / 1e3
    raise AssertionError("no ticks around the moment")


def next_tick(counter: Callable[[], int]) -> tuple[int, int]:
    """When the counter changes next (monotonic ns), and what it then shows (mJ)."""
    shown = counter()
    while True:
        before = time.monotonic_ns()
        value = counter()
        if value != shown:
            return (before + time.monotonic_ns()) // 2, value
        time.sleep(0.0005)


class Poller(threading.Thread):
    """Reads the board's power every 100 ms, as tools do that poll."""

    def __init__(self, read: Callable[[], int]) -> None:
        super().__init__(daemon=True)
        self._read, self._over = read, threading.Event()
        self._rows: list[tuple[int, int]] = []
        self.start()

    def run(self) -> None:
        """Poll until stopped."""
        at = time.monotonic()
        while not self._over.wait(max(0.0, at - time.monotonic())):
            milliwatts = self._read()
            self._rows.append((time.monotonic_ns(), milliwatts))
            at += 0.1

    def taken(self) -> list[tuple[int, int]]:
        """Return what was read since the last call."""
        rows, self._rows = self._rows, []
        return rows

    def stop(self) -> None:
        """End the thread."""
        self._over.set()


class Zeus:
    """The real ZeusMonitor, on the GPU alone."""

    def __init__(self, fake: bool) -> None:
        from zeus.monitor import ZeusMonitor

        self._monitor = ZeusMonitor(gpu_indices=[0], cpu_indices=[])
        self._sync = not fake
        self.begin()
        self.end()

    def begin(self) -> None:
        """Open a window."""
        self._monitor.begin_window("window", sync_execution=self._sync)

    def end(self) -> float:
        """Close it; joules of the GPU."""
        return float(self._monitor.end_window("window", sync_execution=self._sync).total_energy)


class CodeCarbon:
    """The real tracker, offline, one task a window; CPU and memory are given, so that only the GPU is read."""

    def __init__(self) -> None:
        from codecarbon import OfflineEmissionsTracker

        self._tracker = OfflineEmissionsTracker(
            country_iso_code="USA",
            measure_power_secs=1,
            save_to_file=False,
            log_level="error",
            force_cpu_power=100,
            force_ram_power=10,
            gpu_ids=[0],
        )
        self.begin()
        time.sleep(0.1)
        self.end()
        if not any(type(each).__name__ == "GPU" for each in self._tracker._hardware):
            raise RuntimeError("it found no GPU (it looks for nvidia-smi)")

    def begin(self) -> None:
        """Open a window."""
        self._tracker.start_task()

    def end(self) -> float:
        """Close it; joules of the GPU."""
        return float(self._tracker.stop_task().gpu_energy * 3.6e6)


def start_zeus(fake: bool) -> Zeus | str:
    try:
        return Zeus(fake)
    except Exception as error:
        return f"not run: {type(error).__name__}: {error}"


def start_codecarbon() -> CodeCarbon | str:
    try:
        return CodeCarbon()
    except Exception as error:
        return f"not run: {type(error).__name__}: {error}"


def describe(tool: Zeus | CodeCarbon | str) -> str:
    return tool if isinstance(tool, str) else version_of(type(tool).__name__.lower())


# --- the engine


def import_vllm(mode: str) -> Callable[[Path], Any]:
    from vllm import LLM, SamplingParams

    def load(folder: Path) -> Any:
        from pytest_tokenpower.models import write_random_model

        began = time.monotonic()
        model = write_random_model(folder, "llama-3.1-8b")
        say(began, "model written")
        llm = LLM(
            model=str(model),
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_num_seqs=BATCH,
            max_model_len=1024,
            max_num_batched_tokens=16384,
            gpu_memory_utilization=0.6,
            enable_prefix_caching=False,
            disable_log_stats=False,
            async_scheduling=mode != "sync",
            seed=0,
            compilation_config={
                "mode": 0,
                "cudagraph_mode": "FULL_DECODE_ONLY",
                "cudagraph_capture_sizes": [BATCH],
            },
        )
        llm.sampling = lambda new: SamplingParams(
            temperature=0, max_tokens=new, ignore_eos=True, detokenize=False
        )
        return llm

    return load


def import_fake() -> Callable[[Path], Any]:
    from pytest_tokenpower.meters.simulation.library import SimulatedBoards

    boards: Any = SimulatedBoards()
    boards.nvmlInit()
    # What Zeus and CodeCarbon ask besides, and the simulated boards do not answer.
    boards.nvmlDeviceGetArchitecture = lambda _: boards.NVML_DEVICE_ARCH_HOPPER
    boards.nvmlDeviceGetUtilizationRates = lambda _: SimpleNamespace(gpu=100)
    boards.nvmlDeviceGetComputeMode = lambda _: 0
    boards.nvmlDeviceGetGraphicsRunningProcesses = lambda _: []
    sys.modules["pynvml"] = boards
    with contextlib.suppress(ImportError):
        from codecarbon.core import gpu

        gpu.is_nvidia_system = lambda: True

    class Engine:
        def step(self) -> None:
            time.sleep(0.004)

    class Fake:
        llm_engine = Engine()

        def sampling(self, new: int) -> int:
            return new

        def generate(self, prompts: Sequence[Row], new: int, use_tqdm: bool) -> list[Any]:
            time.sleep(2e-5 * sum(len(each["prompt_token_ids"]) for each in prompts))
            for _ in range(min(new, 20)):
                self.llm_engine.step()
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[0] * new)]) for _ in prompts]

    return lambda _: Fake()


def environment(fake: bool) -> Row:
    telemetry, _ = start_meter(fake)
    [device] = telemetry.devices
    telemetry.collector.stop()
    names = ("pytest-tokenpower", "vllm", "torch", "nvidia-ml-py", "numpy", "zeus", "codecarbon")
    return {
        "device": {**device.key_facts, **device.facts},
        "provenance": device.provenance,
        "cpus": os.cpu_count(),
        "versions": {"python": sys.version.split()[0], **{name: version_of(name) for name in names}},
    }


def version_of(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        module = sys.modules.get(name.replace("-", "_"))
        return str(getattr(module, "__version__", "from the checkout" if module else "not installed"))


def clock_cost_us() -> float:
    began = time.perf_counter_ns()
    for _ in range(10_000):
        time.monotonic_ns()
        time.monotonic_ns()
    return (time.perf_counter_ns() - began) / 10_000 / 1e3


def say(began: float, text: str) -> None:
    print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    main()
