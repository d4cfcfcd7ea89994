"""Prefill and decode against ground truths, vLLM against transformers, and two GPUs, on real boards.

    python benchmarks/gpu_phases.py run --results results.json          one GPU (torch, vLLM, transformers)
    python benchmarks/gpu_phases.py run --tp2 --results results.json    two GPUs: tensor parallel 2 beside 1
    python benchmarks/gpu_phases.py page results.json... > docs/results/h100-phases.md

Each engine has a process of its own; they import while the weights are written and run one after another. Every part
is in the results as soon as it is measured, and a later call goes on where one stopped; the raw readings and all steps
of each process are beside them as recordings. `--fake` tries it all without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu_phases_engines import FakeEngine, Work, import_engine, runner, start_engine, start_meter
from gpu_phases_page import render
from gpu_phases_works import (
    arrival_works,
    burst_works,
    chunked_works,
    long_works,
    mixed_works,
    small,
    spaced_works,
)
from reporting import Results, now

from pytest_tokenpower.analysis.calibration import track_of
from pytest_tokenpower.analysis.replay import recorded_windows
from pytest_tokenpower.analysis.tracks import EnergyTrack, window_energy
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.windows import RoundWindow
from pytest_tokenpower.engines import Generation
from pytest_tokenpower.engines.phase_marks import phases_of
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.recording import write_recording
from pytest_tokenpower.meters.types import Device
from pytest_tokenpower.runner.rounds import counted_round, executed

Row = dict[str, Any]

PROCESSES = {
    "vllm-bf16": 175.0,
    "vllm-long": 380.0,
    "vllm-arrivals": 340.0,
    "vllm-async": 95.0,
    "vllm-server": 110.0,
    "vllm-fp8": 55.0,
    "transformers": 80.0,
    "transformers-compiled": 75.0,
    "tp1": 45.0,
    "tp2": 60.0,
}
"""The processes in their order, with the seconds that are kept for each while those before it may still begin parts."""

BATCHES = (1, 8, 32, 128)
CHUNK_SIZES = (512, 256)
"""Tokens a prefill step, the largest first whose power stays below the limit."""

BELOW_LIMIT = 0.92

GRACE_S = 20.0
"""After the end no part begins; one that runs may go on for so long."""

IDLE_NS = 20_000_000
"""A longer gap between two steps is no work of the host but waiting for a request."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "engine"):
        one = commands.add_parser(name)
        one.add_argument("--results", type=Path, required=True)
        one.add_argument("--model", type=Path, default=Path("/tmp/gpu-gate/model"))
        one.add_argument("--fake", action="store_true")
        one.add_argument("--seconds", type=float, default=450.0, help="when to begin nothing more")
        if name == "run":
            one.add_argument("--tp2", action="store_true")
            one.add_argument("--only", nargs="+", choices=list(PROCESSES))
        else:
            one.add_argument("kind", choices=list(PROCESSES))
    page = commands.add_parser("page")
    page.add_argument("results", type=Path, nargs="+")
    arguments = parser.parse_args()
    match arguments.command:
        case "run":
            run(arguments)
        case "engine":
            Child(arguments).run()
        case "page":
            print(render([json.loads(path.read_text()) for path in arguments.results]))


# --- the parent: processes one after another


def run(arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    deadline = began + arguments.seconds
    kinds = arguments.only or [kind for kind in PROCESSES if kind.startswith("tp") == arguments.tp2]
    results = Results(arguments.results)
    results.keep("began", results.parts.get("began") or now())
    children = {kind: start_child(arguments, kind) for kind in kinds}
    codes = {}
    try:
        if not arguments.fake:
            from pytest_tokenpower.models import write_random_model

            write_random_model(arguments.model, "llama-3.1-8b")
        print(f"{time.monotonic() - began:.0f} s: model written", flush=True)
        for at, (kind, child) in enumerate(children.items()):
            scale = 0.03 if arguments.fake else 1.0
            # The compiled engine gets what is left.
            kept = [PROCESSES[later] for later in kinds[at + 1 :] if later != "transformers-compiled"]
            until = deadline - scale * sum(kept)
            if time.monotonic() > until - scale * 25:
                print(f"no time for {kind}", flush=True)
                continue
            try:
                child.communicate(f"{until}\n", timeout=max(deadline + GRACE_S - time.monotonic(), 1))
            except subprocess.TimeoutExpired:
                print(f"{kind}: out of time", flush=True)
            end(child)
            codes[kind] = child.returncode
            print(f"{time.monotonic() - began:.0f} s: {kind} ended with {child.returncode}", flush=True)
    finally:
        for child in children.values():
            end(child)
    results = Results(arguments.results)
    results.keep("seconds", results.parts.get("seconds", 0.0) + time.monotonic() - began)
    print(render([results.parts]), flush=True)
    sys.exit(max((abs(code) for code in codes.values()), default=1))


def start_child(arguments: argparse.Namespace, kind: str) -> subprocess.Popen[str]:
    options = [kind, f"--results={arguments.results}", f"--model={arguments.model}"]
    options += ["--fake"] * arguments.fake
    command = [sys.executable, __file__, "engine", *options]
    # vLLM has workers of its own, which must go with it.
    return subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)


def end(child: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


# --- a child: one engine, and its parts by their value


@dataclass(frozen=True)
class MeasuredTest:
    """One window of a work: when each of its executions ran (ns), and what the plugin's round is."""

    work: Work
    executions: tuple[tuple[int, int], ...]
    window: RoundWindow


class Child:
    """One engine's process; see the parts at the end of :meth:`run`."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.kind: str = arguments.kind
        self.fake: bool = arguments.fake
        self.model: Path = arguments.model
        self._path: Path = arguments.results
        self._began = time.monotonic()
        self._kept: list[tuple[str, MeasuredTest]] = []
        self._until = 0.0
        self.engine: Any = None
        self._tracks: dict[str, EnergyTrack | None] = {}

    def run(self) -> None:
        """Import, wait for the word, start the engine, and run the parts."""
        if not self.fake:
            import_engine(self.kind)
        line = sys.stdin.readline()
        if not line:
            return
        self._until, self._began = float(line), time.monotonic()
        self.results = Results(self._path)
        boards = 2 if self.kind == "tp2" else 1
        self.engine = FakeEngine(boards) if self.fake else start_engine(self.kind, self.model)
        self.telemetry, self.boards = start_meter(self.engine)
        self.say("engine ready")
        self.results.keep(f"{self.kind} environment", self.environment())
        self.warm_up()
        try:
            if self.kind == "vllm-bf16":
                self.part("chunked", 32, self.chunked)
                self.part("burst", 36, lambda: self.measure(burst_works(self.fake)))
                self.table()
                self.part("mixed", 66, lambda: self.measure(mixed_works(self.fake)))
                self.part("spaced", 18, lambda: self.measure(spaced_works(self.fake)))
            elif self.kind == "vllm-long":
                seconds = {"alone": 60, "decode": 64, "Poisson": 120, "all at once": 60}
                for name, works in long_works(self.fake).items():
                    self.part(name, seconds[name], lambda works=works: self.measure(works))  # type: ignore[misc]
            elif self.kind == "vllm-arrivals":
                seconds = {"decode": 60, "arrivals": 220}
                for name, works in arrival_works(self.fake).items():
                    self.part(name, seconds[name], lambda works=works: self.measure(works))  # type: ignore[misc]
            elif self.kind in ("vllm-async", "vllm-server"):
                self.table((32, 8))
                self.part("burst", 40, lambda: self.measure(burst_works(self.fake)))
            elif self.kind.startswith("tp"):
                self.table((32, 1), prompt=512, new=256)
            else:
                self.table((32, 8, 1, 128) if self.kind == "transformers-compiled" else BATCHES)
        finally:
            self.telemetry.collector.stop()
        self.say("done")
        sys.stdout.flush()
        # The parent ends what is left of this session; to shut an engine down properly takes seconds of a GPU.
        os._exit(0)

    def part(self, name: str, seconds: float, measure: Callable[[], list[Row]]) -> None:
        """Measure a part unless it is there already, or would not end in time."""
        key = f"{self.kind} {name}"
        left = self._until - time.monotonic()
        if key in self.results.parts:
            return
        if left < seconds * (0.05 if self.fake else 1):
            self.say(f"no time for {name}: {left:.0f} s left of {seconds:.0f}")
            return
        began = time.monotonic()
        rows = measure()
        self.results.keep(key, {"at": now(), "seconds": time.monotonic() - began, "rounds": rows})
        self.record()
        watts = [row["joules"] / row["seconds"] for row in rows if row["joules"]]
        flagged = sorted({reason for row in rows for reason in row["reasons"]})
        self.say(f"{name}: {len(rows)} rounds, {min(watts):.0f} to {max(watts):.0f} W {flagged or ''}")

    # --- parts

    def warm_up(self) -> None:
        """Run a quarter of a minute of the work that is measured first, so that the board is warm."""
        work = small(Work("warm-up", 8, 2048, 193), self.fake)
        if self.kind not in ("vllm-bf16", "vllm-long", "vllm-arrivals"):
            return
        execute = runner(self.engine, work)
        began = time.monotonic()
        while time.monotonic() - began < (0.3 if self.fake else 10.0):
            execute()
        self.say(f"warm after {time.monotonic() - began:.1f} s")

    def chunked(self) -> list[Row]:
        """Prefill in steps that stay below the power limit: whole rounds, and prefills alone back to back."""
        limit = self.telemetry.devices[0].key_facts.get("power_limit_watts")
        tried = []
        works: tuple[Work, Work] | None = None
        for tokens in CHUNK_SIZES:
            works = chunked_works(tokens, self.fake)
            for _ in range(2):
                taken = self.take(replace(works[1], label=f"trial {tokens}", repeats=2))
            [record] = self.telemetry.assess([taken.window])
            if record.joules is None:
                continue
            tried.append([tokens, record.joules / record.seconds])
            if isinstance(limit, (int, float)) and tried[-1][1] < BELOW_LIMIT * limit:
                break
        assert works is not None
        whole, alone = works
        self.results.keep(f"{self.kind} chunk trials", tried)
        self.say(f"chunk trials: {tried}")
        return self.measure([whole, alone, alone, whole, whole, alone])

    def table(self, batches: Sequence[int] = BATCHES, prompt: int = 512, new: int = 128) -> None:
        """Run the same work at each batch size."""
        for batch in batches:
            work = small(Work(f"batch {batch}", batch, prompt, new), self.fake)
            cost = {"transformers-compiled": 40, "transformers": 20}.get(self.kind, 16)

            def measure(work: Work = work) -> list[Row]:
                execute = runner(self.engine, work)
                # The first compiles or fills caches; the last tells how long one takes.
                trials = {"transformers-compiled": 3, "transformers": 1}.get(self.kind, 2)
                seconds = [timed(execute) for _ in range(trials)]
                repeats = max(1, round(1.3 / seconds[-1]))
                self.say(f"{work.label}: warm-up {', '.join(f'{each:.2f}' for each in seconds)} s")
                count = 2 if self.fake else 4 if seconds[-1] < 2.5 else 3
                return self.measure([replace(work, repeats=1 if self.fake else repeats)] * count)

            self.part(work.label, cost, measure)

    # --- measuring

    def take(self, work: Work) -> MeasuredTest:
        """One window, as the plugin runs a round."""
        execute = runner(self.engine, work)
        executions: list[tuple[int, int]] = []

        def once() -> Generation:
            start_ns = time.monotonic_ns()
            generation = execute()
            executions.append((start_ns, time.monotonic_ns()))
            if work.pause_s:
                time.sleep(work.pause_s)
            return generation

        window = counted_round(executed(once, work.repeats, self.telemetry), tokens_of, phases_of)
        return MeasuredTest(work, tuple(executions), window)

    def measure(self, order: Sequence[Work]) -> list[Row]:
        """Windows of the works in this order, with what the plugin says of them; the rounds of a work together."""
        taken = [self.take(work) for work in order]
        self._kept += [(one.work.label, one) for one in taken]
        self.telemetry.assess([taken[-1].window])
        timeline = self.telemetry.collector.timeline
        self._tracks = {device.id: track_of(timeline, device) for device in self.boards}
        rows: dict[int, Row] = {}
        for label in dict.fromkeys(work.label for work in order):
            mine = [at for at, one in enumerate(taken) if one.work.label == label]
            records = self.telemetry.assess([taken[at].window for at in mine])
            for at, record in zip(mine, records, strict=True):
                rows[at] = {
                    "label": label,
                    "work": {name: value for name, value in asdict(taken[at].work).items() if value},
                    "joules": record.joules,
                    "stderr": record.stderr_joules,
                    "seconds": record.seconds,
                    "tokens": [record.prompt_tokens, record.generated_tokens, record.responses],
                    "phases": {
                        name: [phase.joules, phase.stderr_joules, phase.seconds]
                        for name, phase in record.phases.items()
                    },
                    "devices": record.device_joules,
                    "celsius": record.temperature_celsius,
                    "mhz": record.sm_clock_mhz,
                    "peak": record.peak_watts,
                    "limited": record.limited_shares,
                    "reasons": list(record.reasons),
                    **self.accounts(taken[at]),
                }
        return [rows[at] for at in range(len(taken))]

    def accounts(self, one: MeasuredTest) -> Row:
        """Where the rest of a window went: gaps after steps of each kind, and outside of all steps (J and s)."""
        steps = one.window.phases
        gaps: dict[str, list[tuple[int, int]]] = {}
        outside = []
        for start_ns, end_ns in one.executions:
            inside = [step for step in steps if start_ns <= step.start_ns and step.end_ns <= end_ns]
            if not inside:
                continue
            outside += [(start_ns, inside[0].start_ns), (inside[-1].end_ns, end_ns)]
            for step, following in pairwise(inside):
                gap = step.end_ns, following.start_ns
                if gap[1] - gap[0] > IDLE_NS:
                    outside.append(gap)
                else:
                    gaps.setdefault(step.phase, []).append(gap)
        edges = [one.window.start_ns, *(t for each in one.executions for t in each), one.window.end_ns]
        pauses = list(zip(edges[::2], edges[1::2], strict=True))
        kinds = {
            kind: [step for step in steps if step.phase == kind] for kind in ("prefill", "decode", "mixed")
        }
        row: Row = {
            "gaps": {kind: self.energy(each) for kind, each in gaps.items()},
            "outside": self.energy(outside),
            "pauses": self.energy(pauses),
            "steps": {
                kind: [len(each), sum(step.end_ns - step.start_ns for step in each) / 1e9]
                for kind, each in kinds.items()
                if each
            },
            "others": {
                device.id: self.energy([(one.window.start_ns, one.window.end_ns)], (device,))[0]
                for device in self.boards
                if device not in self.telemetry.devices_in_use([one.window])
            },
        }
        if kinds["mixed"]:
            # Prompt and generated tokens, µs, and J of each step, for any other way of splitting.
            joules = self.energies([(step.start_ns, step.end_ns) for step in steps])
            row["each_step"] = [
                [
                    step.prompt_tokens,
                    step.generated_tokens,
                    (step.end_ns - step.start_ns) // 1000,
                    round(each, 3),
                ]
                for step, each in zip(steps, joules, strict=True)
            ]
        return row

    def energies(
        self, spans: Sequence[tuple[int, int]], devices: Sequence[Device] | None = None
    ) -> list[float]:
        """Joules of each span, over the engine's boards unless others are named."""
        starts, ends = (np.array([span[at] for span in spans], dtype=np.int64) for at in (0, 1))
        used = self.telemetry.devices_in_use([]) if devices is None else devices
        tracks = [self._tracks[device.id] for device in used]
        columns = [window_energy(track, starts, ends).joules for track in tracks if track is not None]
        return [float(value) for value in np.sum(columns, axis=0)]

    def energy(
        self, spans: Sequence[tuple[int, int]], devices: Sequence[Device] | None = None
    ) -> list[float]:
        """Joules and seconds of all spans together."""
        spans = [span for span in spans if span[1] > span[0]]
        if not spans:
            return [0.0, 0.0]
        return [sum(self.energies(spans, devices)), sum(end - start for start, end in spans) / 1e9]

    # --- what is kept

    def record(self) -> None:
        """Write the raw readings and all steps so far."""
        folder = self._path.parent
        name = f"{self._path.stem}-{self.kind}.jsonl.gz"
        ids = [device.id for device in self.telemetry.devices_in_use([])]
        windows = [
            row
            for at, (label, one) in enumerate(self._kept)
            for row in recorded_windows(f"{at:03d} {label}", [one.window], ids)
        ]
        timeline = self.telemetry.collector.timeline
        write_recording(folder / name, timeline, windows, realtime_offset_ns=Clock().offset_ns)

    def environment(self) -> Row:
        """Boards, versions, and what the engine says of itself."""
        identity = self.engine.identity
        versions = {"python": sys.version.split()[0]}
        for name in ("nvidia-ml-py", "torch", "transformers", "vllm"):
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        return {
            "at": now(),
            "started_in_s": time.monotonic() - self._began,
            "devices": [
                {
                    "id": device.id,
                    "name": device.name,
                    "used": device in self.telemetry.devices_in_use([]),
                    **device.key_facts,
                    "driver": device.facts.get("driver"),
                }
                for device in self.boards
            ],
            "provenance": self.telemetry.provenance,
            "versions": versions,
            "engine": identity.engine,
            "version": identity.version,
            "model": identity.model,
            "axes": dict(identity.axes),
            "facts": dict(identity.facts),
        }

    def say(self, text: str) -> None:
        """To whoever watches the run."""
        print(f"{time.monotonic() - self._began:6.1f} s {self.kind}: {text}", flush=True)


def tokens_of(result: object) -> TokenCount:
    assert isinstance(result, Generation)
    return result.tokens


def timed(execute: Callable[[], object]) -> float:
    began = time.monotonic()
    execute()
    return time.monotonic() - began


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
