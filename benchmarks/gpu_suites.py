"""The paper's experiments on real boards: random weights, vLLM and transformers, and the claims table.

python benchmarks/gpu_suites.py run --out results --seconds 540                 on the GPU machine (torch, vLLM)
python benchmarks/gpu_suites.py run --out results --suites e5,e1 --boards 4     each board takes the next suite
python benchmarks/gpu_suites.py run --out results --fake --seconds 120          the simulated board, and no engine
python benchmarks/gpu_suites.py table results                                   the claims table once more

Each board (CUDA_VISIBLE_DEVICES) takes suite after suite from one queue, in the order that --suites has; when all have
begun they begin again, as further runs. At --seconds all is stopped: what is measured is in the sweeps' journals.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pytest_tokenpower.core.records import ClaimRecord, MeasurementRecord
from pytest_tokenpower.reporting.suites import claims_table, found
from pytest_tokenpower.suites.build import checkpoint
from pytest_tokenpower.suites.claims import judge_claims, runs_of
from pytest_tokenpower.suites.grid import Suite
from pytest_tokenpower.suites.order import visits
from pytest_tokenpower.suites.resume import read_journal

ROOT = Path(__file__).resolve().parent.parent
SUITES = Path(__file__).parent / "gpu_project" / "suites"
ORDER = ("e5", "e1", "e2", "e3")
WHOLE_MACHINE = frozenset({"e4"})
"""Suites that need several boards: they are run alone, before the others."""

ROOM_BYTES = 40e9
"""What the weights of all suites take, and caches beside them."""

LEAST_S = 75.0
"""With less time left no suite is begun."""

PATIENCE_S = 12.0
"""What an interrupted pytest may take to write its record."""

INI = "[pytest]\nenergy_warmup_rounds = 1\n"


@dataclass(frozen=True)
class Turn:
    """A suite, which time it is run, and on which boards."""

    suite: str
    run: int
    boards: str

    @property
    def name(self) -> str:
        """The folder's name."""
        return f"{self.suite}-run{self.run}"


class Bench:
    """What the boards share: the clock, the log, the folders."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.deadline = time.monotonic() + arguments.seconds
        self.began = time.monotonic()
        self.out: Path = arguments.out.resolve()
        self.lock = threading.Lock()

    def say(self, line: str) -> None:
        """Print a line with the seconds since the beginning, and keep it."""
        with self.lock:
            stamped = f"{time.monotonic() - self.began:6.1f} {line}"
            print(stamped, flush=True)
            with (self.out / "log.txt").open("a") as log:
                log.write(stamped + "\n")

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return float(self.deadline - time.monotonic())

    def environment(self, boards: str) -> dict[str, str]:
        """Make the environment of a process that has these boards."""
        cache = Path(self.arguments.folder) / f"cache-{boards.replace(',', '-')}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        return {
            **kept,
            **(
                {}
                if boards == "none"
                else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": boards}
            ),
            "PYTHONPATH": path,
            "PYTHONUNBUFFERED": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "TOKENPOWER_WEIGHTS": str(Path(self.arguments.folder) / "weights"),
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_USE_FLASHINFER_SAMPLER": "0",
            "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
            "VLLM_RPC_BASE_PATH": str(_made(cache / "rpc")),
            "VLLM_CACHE_ROOT": f"{cache}/vllm",
            "TRITON_CACHE_DIR": f"{cache}/triton",
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
            "XDG_CACHE_HOME": f"{cache}/xdg",
        }


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument(
        "--out", type=Path, required=True, help="journals, records, logs and the table are written here"
    )
    run.add_argument(
        "--suites", default=",".join(ORDER), help=f"of {', '.join(sorted(_known()))}, in this order"
    )
    run.add_argument("--seconds", type=float, default=540.0, help="when to be done, weights included")
    run.add_argument("--boards", type=int, help="how many boards at most (default: all)")
    run.add_argument(
        "--runs", type=int, default=9, help="how often each suite is run at most, as time allows"
    )
    run.add_argument("--folder", type=Path, help="weights and caches (default: in memory, else in /tmp)")
    run.add_argument("--source", default="nvml")
    run.add_argument("--select", default="", help="pytest's -k, such as 'not torchao'")
    run.add_argument("--fake", action="store_true", help="simulated boards and engines")
    weights = commands.add_parser("weights", help="write the weights of a model of a suite")
    weights.add_argument("suite")
    weights.add_argument("model")
    table = commands.add_parser("table")
    table.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "weights":
        print(checkpoint(Suite.read(_file(arguments.suite)), arguments.model))
        return 0
    if arguments.command == "table":
        return conclude(arguments.out.resolve(), print)
    return measure(arguments)


def _known() -> list[str]:
    return [path.name.removesuffix(".energy.toml") for path in SUITES.glob("*.energy.toml")]


def _file(suite: str) -> Path:
    return SUITES / f"{suite}.energy.toml"


def measure(arguments: argparse.Namespace) -> int:
    """Write weights, work the queue off, and conclude."""
    chosen = [name.strip() for name in arguments.suites.split(",")]
    if unknown := set(chosen) - set(_known()):
        raise SystemExit(
            f"there is no suite {', '.join(sorted(unknown))}; there are {', '.join(sorted(_known()))}"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.folder is None:
        roomy = shutil.disk_usage("/dev/shm").free > ROOM_BYTES
        arguments.folder = Path("/dev/shm" if roomy else "/tmp") / "gpu-suites"
    bench = Bench(arguments)
    boards = boards_of(arguments)
    bench.say(f"boards: {', '.join(boards)}; suites: {', '.join(chosen)}; {arguments.seconds:.0f} s")
    with suppress(OSError, subprocess.CalledProcessError):
        told = subprocess.run(["nvidia-smi", "-q"], check=True, capture_output=True, text=True).stdout
        (bench.out / "nvidia-smi.txt").write_text(told)
    if not arguments.fake:
        write_weights(bench, chosen, boards)
    for suite in chosen:
        if suite in WHOLE_MACHINE:
            work(bench, Turn(suite, 1, ",".join(boards)))
    turns: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    for number in range(1, arguments.runs + 1):
        for suite in chosen:
            if suite not in WHOLE_MACHINE:
                turns.put((suite, number))
    threads = [threading.Thread(target=_board, args=(bench, board, turns)) for board in boards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return conclude(bench.out, bench.say)


def boards_of(arguments: argparse.Namespace) -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES is to be for each board."""
    if arguments.fake or arguments.source in ("model", "simulated"):
        return [f"fake-{at}" for at in range(arguments.boards or 1)] if arguments.fake else ["none"]
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    listed = (
        seen.split(",")
        if seen
        else subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
    )
    return listed[: arguments.boards]


def write_weights(bench: Bench, chosen: Sequence[str], boards: Sequence[str]) -> None:
    """Write the weights that the suites need, the largest first, a model a board at a time."""
    wanted: dict[str, tuple[str, str]] = {}
    sizes: dict[str, int] = {}
    for name in chosen:
        suite = Suite.read(_file(name))
        for model in dict.fromkeys(cell.values["model"] for cell in suite.cells):
            table, shape = suite.model(model), suite.architecture(model)
            if table.random is not None and table.weights and shape is not None:
                wanted[table.random] = (name, model)
                sizes[table.random] = shape.parameters
    models: queue.SimpleQueue[str] = queue.SimpleQueue()
    for model in sorted(wanted, key=lambda each: -sizes[each]):
        models.put(model)

    def write(board: str) -> None:
        with suppress(queue.Empty):
            while True:
                model = models.get_nowait()
                began = time.monotonic()
                command = [sys.executable, __file__, "weights", *wanted[model]]
                done = subprocess.run(
                    command, env=bench.environment(board), capture_output=True, text=True, check=False
                )
                said = "" if done.returncode == 0 else done.stderr[-600:]
                bench.say(f"weights of {model}: {time.monotonic() - began:.0f} s {said}")

    threads = [threading.Thread(target=write, args=(board,)) for board in boards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _board(bench: Bench, board: str, turns: queue.SimpleQueue[tuple[str, int]]) -> None:
    with suppress(queue.Empty):
        while bench.left > (2 * PATIENCE_S if bench.arguments.fake else LEAST_S):
            work(bench, Turn(*turns.get_nowait(), board))


def work(bench: Bench, turn: Turn) -> None:
    """Run pytest on a suite; interrupt it when the time is over."""
    arguments = bench.arguments
    folder = bench.out / turn.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{turn.suite}.energy.toml").write_text(seeded(turn), "utf-8")
    (folder / "pytest.ini").write_text(INI)
    command = [
        *(sys.executable, "-m", "pytest", "-p", "pytest_tokenpower.plugin", "-p", "no:cacheprovider"),
        *("-v", "-rA", "--show-capture=no", "--energy-storage=store", "--energy-json=record.json"),
        f"--energy-source={'simulated' if arguments.fake else arguments.source}",
        *(("--energy-simulated-engines",) if arguments.fake else ()),
        *(("-k", arguments.select) if arguments.select else ()),
        f"{turn.suite}.energy.toml",
    ]
    bench.say(f"board {turn.boards}: {turn.name} begins, {bench.left:.0f} s left")
    (folder / "turn.json").write_text(
        json.dumps({"boards": turn.boards, "at": time.time(), "command": command})
    )
    began = time.monotonic()
    with (folder / "log.txt").open("wb") as log:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=bench.environment("none" if turn.boards.startswith("fake") else turn.boards),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        cut = False
        told = 0
        while child.poll() is None:
            time.sleep(0.2)
            lines = [
                line
                for line in (folder / "log.txt").read_text("utf-8", "replace").splitlines()
                if "%]" in line and "::" in line
            ]
            for line in lines[told:]:
                bench.say(f"  {turn.boards} {line[:150]}")
            told = len(lines)
            if not cut and bench.left < PATIENCE_S:
                cut = True
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGINT)
            if bench.left < 0:
                break
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    shutil.rmtree(folder / "store" / "runs", ignore_errors=True)
    measured = len(measurements_of(folder))
    bench.say(
        f"board {turn.boards}: {turn.name} {'CUT' if cut else 'ended'} after {time.monotonic() - began:.0f} s with "
        f"{measured} cells"
    )


def seeded(turn: Turn) -> str:
    """Give the suite's text a seed: another for each run, and such that the file's first engine comes first.

    The others are held against it, and the time may be over before all have had their turn.
    """
    text = _file(turn.suite).read_text("utf-8")
    for seed in range(1000 * turn.run, 1000 * turn.run + 500):
        candidate = f"[suite]\nseed = {seed}\n{text}"
        suite = Suite.parse(candidate, _file(turn.suite))
        order = [visit.group for visit in visits(suite)]
        if order[0] == suite.cells[0].group and order[-1] == suite.cells[-1].group:
            return candidate
    raise SystemExit(f"{turn.suite}: no seed has its first engine come first")


def measurements_of(folder: Path) -> list[MeasurementRecord]:
    """Return what a turn has measured, from its journal."""
    return [
        finished.measurement
        for path in sorted((folder / "store" / "sweeps").glob("*.jsonl"))
        for finished in read_journal(path.read_bytes()).finished.values()
    ]


def conclude(out: Path, say: Any) -> int:
    """Judge the claims of every suite over all its runs; print them and keep them."""
    turns: dict[str, list[Path]] = {}
    for folder in sorted(out.glob("*-run*")):
        turns.setdefault(folder.name.rpartition("-run")[0], []).append(folder)
    claims: list[ClaimRecord] = []
    cells: list[Mapping[str, Any]] = []
    for name, folders in turns.items():
        suite = Suite.read(_file(name))
        measured = [one for folder in folders for one in measurements_of(folder)]
        cells += [_row(name, one) for one in measured]
        if measured:
            claims += judge_claims(suite, runs_of(suite, measured), name)
    (out / "cells.json").write_text(json.dumps(cells, indent=1))
    (out / "claims.json").write_text(
        json.dumps(
            [{field: getattr(one, field) for field in one.__struct_fields__} for one in claims], indent=1
        )
    )
    lines = claims_table(claims) if claims else ["nothing was measured"]
    (out / "claims.md").write_text(markdown(claims), "utf-8")
    for line in lines:
        say(line)
    return 0 if claims else 1


def markdown(claims: Sequence[ClaimRecord]) -> str:
    """Return the claims as a table of Markdown."""
    rows = [
        f"| {one.suite} | {one.name} | {one.figure} {one.says} | {found(one)} | {'+'.join(map(str, one.runs))} | "
        f"{one.paper} | {one.word}{f': {one.reason}' if one.reason else ''} |"
        for one in claims
    ]
    head = [
        "| suite | claim | says | found [95 %] | runs | published | word |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *rows, ""])


def _row(suite: str, one: MeasurementRecord) -> dict[str, Any]:
    good = [part for part in one.rounds if not part.reasons]
    warm = [part.temperature_celsius for part in good if part.temperature_celsius is not None]
    return {
        "suite": suite,
        "cell": one.test.rpartition("::")[2],
        **{
            name.removeprefix("cell."): value for name, value in one.facts.items() if name.startswith("cell.")
        },
        **{name: figure.value for name, figure in one.figures.items()},
        "stderr": one.figures["joules_per_token"].stderr if "joules_per_token" in one.figures else None,
        "celsius": sum(warm) / len(warm) if warm else None,
        "rounds": len(good),
        "boards": sorted({name for part in one.rounds for name in part.device_joules}),
        "weights": one.facts.get("engine.weights"),
        "engine_version": one.facts.get("engine_version"),
    }


if __name__ == "__main__":
    raise SystemExit(main())
