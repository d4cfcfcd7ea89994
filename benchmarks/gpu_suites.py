"""The paper's experiments on real boards: random weights, vLLM and transformers, and the claims table.

python benchmarks/gpu_suites.py run --out results --seconds 540                 on the GPU machine (torch, vLLM)
python benchmarks/gpu_suites.py run --out results --suites e5,e1 --boards 4     each board takes the next suite
python benchmarks/gpu_suites.py run --out results --fake --seconds 120          the simulated board, and no engine
python benchmarks/gpu_suites.py run --out results --plan soak,slo/e1,e2         the first board's suites / the second's
python benchmarks/gpu_suites.py table results                                   the page, once more

Each board (CUDA_VISIBLE_DEVICES) takes suite after suite, its own by the plan and then what others have not begun; when
all have begun they begin again, as further runs. At --seconds all is stopped: what is measured is in the sweeps'
journals, and the same command with --resume goes on with it. gpu_evidence.py runs it over several calls.
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
import tarfile
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu_suites_page import page
from reporting import logger, now

from pytest_tokenpower.core.records import MeasurementRecord
from pytest_tokenpower.suites.build import checkpoint
from pytest_tokenpower.suites.grid import Suite
from pytest_tokenpower.suites.order import visits
from pytest_tokenpower.suites.resume import read_journal

ROOT = Path(__file__).resolve().parent.parent
SUITES = Path(__file__).parent / "gpu_project" / "suites"
PROSE = "\n## What it says beside the paper\n"
ORDER = ("e5", "e1", "e2", "e3")
WHOLE_MACHINE = frozenset({"e4"})
"""Suites that need several boards: they are run alone, before the others."""

ONCE = frozenset({"soak", "weights", "slo"})
"""No further runs of these; ``weights`` is no suite: it looks at what the quantizations make of a 1B's weights."""

SOAK_HOURS = 625 / 3600
WEIGHTS_MODEL = "llama-3.2-1b"

ESTIMATES_S = {
    **{
        "soak": 740,
        "slo": 220,
        "weights": 60,
        "e1": 420,
        "e2": 240,
        "e3": 150,
        "e4": 130,
        "e5": 460,
        "e5b": 190,
    },
    "cpu": 60,
}
"""About how long each takes on an H100, starts included; for the plan that is printed."""

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
        began = time.monotonic()
        self.deadline = began + arguments.seconds
        self.out: Path = arguments.out.resolve()
        self.say = logger(self.out, began)
        self.lock = threading.Lock()

    @property
    def left(self) -> float:
        """Seconds until the end; a file `stop` among the results brings it nearer."""
        if (self.out / "stop").exists():
            self.deadline = min(self.deadline, time.monotonic() + PATIENCE_S)
            (self.out / "stop").unlink(missing_ok=True)
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
    run.add_argument("--plan", help="instead: the suites of each board, boards set apart by /")
    run.add_argument("--resume", action="store_true", help="go on with what is in --out")
    run.add_argument("--soak-hours", type=float, default=SOAK_HOURS)
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
    table = commands.add_parser("table", help="write the page from results")
    table.add_argument(
        "results",
        type=Path,
        nargs="*",
        default=sorted((ROOT / "docs/results/data/h200-suites").glob("*")),
        help="folders, or what gpu_evidence.py has packed (default: the page's own data)",
    )
    table.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "h200-suites.md")
    arguments = parser.parse_args()
    if arguments.command == "weights":
        print(checkpoint(Suite.read(_file(arguments.suite)), arguments.model))
        return 0
    if arguments.command == "table":
        with tempfile.TemporaryDirectory() as scratch:
            folders = [_unpacked(path, Path(scratch) / str(at)) for at, path in enumerate(arguments.results)]
            return conclude(folders, arguments.page)
    return measure(arguments)


def _unpacked(path: Path, scratch: Path) -> Path:
    if path.is_dir():
        return path
    with tarfile.open(path) as packed:
        packed.extractall(scratch, filter="data")
    return scratch


def _known() -> list[str]:
    return [*(path.name.removesuffix(".energy.toml") for path in SUITES.glob("*.energy.toml")), "weights"]


def _file(suite: str) -> Path:
    return SUITES / f"{suite}.energy.toml"


def measure(arguments: argparse.Namespace) -> int:
    """Write weights, work the queue off, and conclude."""
    lists = [part.split(",") for part in (arguments.plan or arguments.suites).split("/")]
    chosen = [name for names in lists for name in names]
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
    for at, names in enumerate(lists):
        told = [f"{name} {ESTIMATES_S[name]} s" for name in names]
        total = sum(ESTIMATES_S[name] for name in names)
        bench.say(f"plan, board {boards[at % len(boards)]}: {', '.join(told)}; {total} s with what is loaded")
    keep_machine(bench)
    if not arguments.fake:
        write_weights(bench, chosen, boards)
    for suite in chosen:
        if suite in WHOLE_MACHINE:
            work(bench, Turn(suite, 1, ",".join(boards)))
    own: dict[str, list[tuple[str, int]]] = {board: [] for board in boards}
    for at, names in enumerate(lists):
        own[boards[at % len(boards)]] += [(name, 1) for name in names if name not in WHOLE_MACHINE]
    further = [
        (suite, number)
        for number in range(2, arguments.runs + 1)
        for suite in chosen
        if suite not in WHOLE_MACHINE | ONCE
    ]
    if not arguments.plan:  # one list for all
        further, own = [*own[boards[0]], *further], {board: [] for board in boards}
    threads = [threading.Thread(target=_board, args=(bench, board, own, further)) for board in boards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return conclude([bench.out], bench.out / "h200-suites.md")


def keep_machine(bench: Bench) -> None:
    """Keep what the page's head tells: boards, versions, date, command."""
    facts: dict[str, Any] = {
        "at": now(),
        "command": f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}",
        "versions": {"python": ".".join(map(str, sys.version_info[:3]))},
        "boards": [],
    }
    for name in ("pytest-tokenpower", "torch", "transformers", "vllm", "torchao", "bitsandbytes"):
        with suppress(metadata.PackageNotFoundError):
            facts["versions"][name] = metadata.version(name)
    with suppress(OSError, subprocess.CalledProcessError):
        query = "--query-gpu=name,power.limit,driver_version"
        told = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        for line in dict.fromkeys(told):
            name, limit, driver = (part.strip() for part in line.split(","))
            facts["boards"].append(f"{told.count(line)}x {name}, power limit {limit}, driver {driver}")
        detail = subprocess.run(["nvidia-smi", "-q"], check=True, capture_output=True, text=True).stdout
        (bench.out / "nvidia-smi.txt").write_text(detail)
    (bench.out / f"machine-{time.time_ns()}.json").write_text(json.dumps(facts, indent=1))


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
        suite = Suite.read(_file("e1" if name == "weights" else name))
        of = [WEIGHTS_MODEL] if name == "weights" else [cell.values["model"] for cell in suite.cells]
        for model in dict.fromkeys(of):
            table, shape = suite.model(model), suite.architecture(model)
            if table.random is not None and table.weights and shape is not None:
                wanted[table.random] = ("e1" if name == "weights" else name, model)
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


def _board(
    bench: Bench, board: str, own: dict[str, list[tuple[str, int]]], further: list[tuple[str, int]]
) -> None:
    """Work a board's own list off, then what others have not begun (of theirs the last), then further runs."""
    while bench.left > (2 * PATIENCE_S if bench.arguments.fake else LEAST_S):
        with bench.lock:
            others = max(own.values(), key=len)
            if own[board]:
                suite, number = own[board].pop(0)
            elif others and others[-1][0] != "soak":
                suite, number = others.pop()
            elif further:
                suite, number = further.pop(0)
            else:
                return
        turn = Turn(suite, number, board)
        if not (bench.arguments.resume and (bench.out / turn.name / "ended").exists()):
            work(bench, turn)


def command_of(bench: Bench, turn: Turn) -> list[str]:
    """Return what a turn is run by, in its folder."""
    arguments = bench.arguments
    source = "simulated" if arguments.fake else arguments.source
    given = ("-p", "pytest_tokenpower.plugin", "--energy-storage=store")
    if turn.suite == "weights":
        tool = str(Path(__file__).with_name("gpu_weights.py"))
        return [sys.executable, tool, str(_file("e5")), WEIGHTS_MODEL, "--out", "weights.json"]
    if turn.suite == "soak":
        return [
            *(sys.executable, "-m", "pytest_tokenpower", "soak", "soak.energy.toml", "--out", "soak.jsonl"),
            *("--hours", str(arguments.soak_hours), "--source", source),
            *(("--simulated-engines",) if arguments.fake else ()),
            *(("--resume",) if (bench.out / turn.name / "soak.jsonl").exists() else ()),
            *("--", *given),
        ]
    return [
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *given),
        *("-v", "-rA", "--show-capture=no", "--energy-json=record.json", f"--energy-source={source}"),
        *(("--energy-simulated-engines",) if arguments.fake else ()),
        *(("--energy-resume",) if arguments.resume else ()),
        *(("-k", arguments.select) if arguments.select else ()),
        f"{turn.suite}.energy.toml",
    ]


def work(bench: Bench, turn: Turn) -> None:
    """Run a turn; interrupt it when the time is over."""
    folder = bench.out / turn.name
    folder.mkdir(parents=True, exist_ok=True)
    if turn.suite == "weights" and bench.arguments.fake:
        return
    if turn.suite != "weights":
        (folder / f"{turn.suite}.energy.toml").write_text(seeded(turn), "utf-8")
    (folder / "pytest.ini").write_text(INI)
    command = command_of(bench, turn)
    bench.say(f"board {turn.boards}: {turn.name} begins, {bench.left:.0f} s left")
    (folder / "turn.json").write_text(
        json.dumps({"boards": turn.boards, "at": time.time(), "command": command})
    )
    began = time.monotonic()
    with (folder / "log.txt").open("ab") as log:
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
            lines = [line for line in _lines(folder) if ("%]" in line and "::" in line) or " of 10" in line]
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
    if not cut:
        (folder / "ended").write_text(str(child.returncode))
    if child.returncode:
        for line in _lines(folder)[-12:]:
            bench.say(f"  {turn.boards} {line[:200]}")
    bench.say(
        f"board {turn.boards}: {turn.name} {'CUT' if cut else 'ended'} after {time.monotonic() - began:.0f} s with "
        f"{len(measurements_of(folder))} cells"
    )


def _lines(folder: Path) -> list[str]:
    return (folder / "log.txt").read_text("utf-8", "replace").splitlines()


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


def conclude(folders: Sequence[Path], out: Path) -> int:
    """Write the page, claims and figures of every suite over all its runs, above what people wrote below."""
    turns: dict[str, list[MeasurementRecord]] = {}
    for folder in folders:
        for turn in sorted(folder.glob("*-run*")):
            if (measured := measurements_of(turn)) and not turn.name.startswith("soak"):
                turns.setdefault(turn.name.rpartition("-run")[0], []).extend(measured)
    suites = {name: (Suite.read(_file(name)), measured) for name, measured in turns.items()}
    before = out.read_text("utf-8") if out.exists() else ""
    _, heading, prose = before.partition(PROSE)
    out.write_text(page(folders, suites) + heading + prose, "utf-8")
    print(f"{out}: {sum(map(len, turns.values()))} measurements")
    return 0 if turns else 1


if __name__ == "__main__":
    raise SystemExit(main())
