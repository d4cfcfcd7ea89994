"""False failures and detection on a real GPU: vLLM in fresh processes, identical or with a known share of waste.

    python benchmarks/gpu_error_rates.py run --results results.json --seconds 560    on the GPU machine
    python benchmarks/gpu_error_rates.py run --results fake.json --fake              a dry run anywhere
    python benchmarks/gpu_error_rates.py page results.json                           writes docs/results

`run` does the most valuable first, writes the results after each process, and goes on where an earlier call stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from reporting import now

from pytest_tokenpower.core.records import RunRecord
from pytest_tokenpower.errors import TokenPowerError
from pytest_tokenpower.runner.child import ChildRun

SEED = 20261122
WASTE = (2, 4, 6, 10)
"""Extra decode steps of 200: +1, +2, +3, +5 %."""

COMPARED = (2, 0, 2, 0, 2, 0, 1, 1, 1)
"""Extra steps of the candidate in energy.compare, process by process."""

WANTED = 8
LATER_START = 18.0
"""What an engine's start is expected to take at most once one was started."""

RESULTS = Path(__file__).parent.parent / "docs" / "results"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--folder", type=Path, default=Path("/tmp/gpu-error-rates"))
    run.add_argument("--results", type=Path, required=True)
    run.add_argument("--seconds", type=float, default=560.0, help="when to be done, counted from the start")
    run.add_argument("--model", default="llama-3.1-8b")
    run.add_argument("--source", default="auto")
    run.add_argument("--synchronous", action="store_true", help="without vLLM's asynchronous scheduling")
    run.add_argument("--fake", action="store_true", help="the simulated board, and no model at all")
    page = commands.add_parser("page")
    page.add_argument("results", type=Path)
    page.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.command == "page":
        from gpu_error_rates_page import Found, picture, render

        found = Found.read(json.loads(arguments.results.read_text()))
        (arguments.output / "h100-error-rates.md").write_text(render(found), encoding="utf-8")
        (arguments.output / "h100-error-rates.svg").write_text(picture(found), encoding="utf-8")
        return 0
    return measure(arguments)


@dataclass
class Costs:
    """What the parts of a process take, in seconds: guesses, then what the last processes took."""

    start: float = 45.0
    run: float = 19.0
    compare_runs: float = 1.35
    known: bool = False

    def of(self, turn: Mapping[str, Any]) -> float:
        """Return what a whole turn takes."""
        compares = turn["compare"] is not None
        return self.start + self.run * (len(turn["runs"]) + self.compare_runs * compares)

    def learn(self, turn: Mapping[str, Any], seconds: float, start: float) -> None:
        """Take the figures of a turn that has ended."""
        # The first start also compiles, and fills the caches of the disk.
        self.start = start if self.known else min(start, LATER_START)
        self.known = True
        self.run = (seconds - start) / (len(turn["runs"]) + self.compare_runs * (turn["compare"] is not None))


def planned(done: Sequence[Mapping[str, Any]], seconds_left: float, costs: Costs) -> dict[str, Any] | None:
    """Return what the next process does after the turns of ``done``.

    A run of identical code, and the rest if time allows.

    The waste and which of the two runs comes first are drawn in a balanced order. None: no time for another run.
    """
    order = random.Random(SEED)
    waste = [each for _ in range(8) for each in order.sample(WASTE, len(WASTE))]
    firsts = [each for _ in range(16) for each in order.sample((True, False), 2)]
    turn: dict[str, Any] = {"runs": [0], "compare": None}
    if costs.of(turn) > seconds_left:
        return None
    share = seconds_left / max(WANTED - len(done), 1)
    wasted = sum(len(each["runs"]) > 1 for each in done)
    pair = [0, waste[wasted]]
    wasteful = turn | {"runs": pair if firsts[wasted] else pair[::-1]}
    if costs.of(wasteful) <= share:
        turn = wasteful
    number = sum(each["compare"] is not None for each in done)
    if number < len(COMPARED) and costs.of(turn | {"compare": 0}) <= share:
        turn = turn | {"compare": COMPARED[number]}
    return turn


def measure(arguments: argparse.Namespace) -> int:
    deadline = time.monotonic() + arguments.seconds
    results: dict[str, Any] = {"processes": [], "failures": []}
    if arguments.results.exists():
        results = json.loads(arguments.results.read_text())
    results["command"] = "python benchmarks/gpu_error_rates.py run"
    shutil.rmtree(arguments.folder, ignore_errors=True)
    os.environ["BENCH_MODEL"] = "fake" if arguments.fake else os.fspath(_model(arguments))
    engine: dict[str, Any] = {"async_scheduling": not arguments.synchronous}
    costs = Costs(2.0, 4.0) if arguments.fake else Costs()
    source = "simulated" if arguments.fake else arguments.source
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        started = 0

        def start() -> Waiting:
            nonlocal started
            started += 1
            folder = arguments.folder / f"process-{started:02}"
            return Waiting.start((first, second)[started % 2], folder, source, deadline)

        waiting = start()
        while True:
            number = len(results["processes"])
            turn = planned(
                [each["turn"] for each in results["processes"]], deadline - time.monotonic(), costs
            )
            if turn is None or len(results["failures"]) >= 3:
                waiting.go({"runs": [], "compare": None})
                break
            turn["engine"] = engine
            began = time.monotonic()
            waiting.go(turn)
            # Imported while this one's engine starts, it is ready when this one has ended.
            following = start()
            try:
                record = waiting.record.result()
            except TokenPowerError as error:
                print(f"--- failed: {error}", flush=True)
                results["failures"].append(
                    str(error).splitlines()[0].replace(f" in {waiting.folder}", "").strip(":")
                )
                # The first thing to doubt, as in-process engines seldom run with it.
                engine = {"async_scheduling": False}
            else:
                seconds = time.monotonic() - began
                costs.learn(turn, seconds, waiting.start_seconds() + 2.0)
                results["processes"].append(
                    {
                        "turn": turn,
                        "seconds": seconds,
                        "start_seconds": waiting.start_seconds(),
                        "at": now(),
                        "record": msgspec.to_builtins(record),
                    }
                )
                print(f"[{number + 1}] {seconds:.0f} s, {_said(turn, record)}", flush=True)
            arguments.results.write_text(json.dumps(results))
            waiting = following
    print(
        f"{len(results['processes'])} processes, {len(results['failures'])} failures, "
        f"{deadline - time.monotonic():.0f} s left",
        flush=True,
    )
    return 0 if results["processes"] else 1


def _model(arguments: argparse.Namespace) -> Path:
    """Return a folder with the model's config alone: its weights are made on the GPU."""
    from pytest_tokenpower.models.registry import architecture

    folder: Path = arguments.folder / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(architecture(arguments.model).hub_config("bfloat16")))
    return folder


@dataclass
class Waiting:
    """A pytest process that imports what it needs and waits for its turn."""

    folder: Path
    record: Future[RunRecord]

    @classmethod
    def start(cls, pool: ThreadPoolExecutor, folder: Path, source: str, deadline: float) -> Waiting:
        """Start it; it is ended at the deadline."""
        folder.mkdir(parents=True)
        test = Path(__file__).parent / "gpu_project" / "test_detection.py"
        shutil.copy(test, folder)
        (folder / "pytest.ini").write_text("[pytest]\n")
        known = any(point.name == "tokenpower" for point in metadata.entry_points(group="pytest11"))
        plugin = [] if known else ["-p", "pytest_tokenpower.plugin"]
        child = ChildRun(folder, [*plugin, "-q", f"--energy-source={source}"])
        return cls(
            folder,
            pool.submit(
                child.run, folder / "record.json", folder.name, timeout_s=deadline - time.monotonic()
            ),
        )

    def go(self, turn: Mapping[str, Any]) -> None:
        """Give it its turn, at once and whole."""
        scratch = self.folder / "turn.json.new"
        scratch.write_text(json.dumps(turn))
        scratch.rename(self.folder / "turn.json")

    def start_seconds(self) -> float:
        """How long its engine took to start."""
        path = self.folder / "started.json"
        return float(json.loads(path.read_text())) if path.exists() else 0.0


def _said(turn: Mapping[str, Any], record: RunRecord) -> str:
    parts = []
    for measured in record.measurements:
        what = (
            f"compare +{turn['compare']}" if measured.variants else f"+{turn['runs'][int(measured.test[-2])]}"
        )
        found = measured.figures.get("joules_per_token")
        figure = f"{found.value:.5f}" if found else f"no figure ({'; '.join(measured.reasons)})"
        celsius = [each.temperature_celsius for each in measured.rounds if each.temperature_celsius]
        parts.append(
            f"{what}: {figure} J/token, {sum(each.seconds for each in measured.rounds):.0f} s"
            + (f", {np.mean(celsius):.0f} °C" if celsius else "")
            + "".join(f", {100 * (verdict.change or 0):+.2f} %" for verdict in measured.verdicts)
        )
    return "; ".join(parts)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
