"""`run` of benchmarks/gpu_gate_rates.py: fresh vLLM processes on several boards at a time, each board its own queue."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reporting import logger, now

PROJECT = Path(__file__).parent / "gpu_project" / "rates"
TEST_OF = {"host": "test_host_bound.py", "gpu": "test_gpu_bound.py", "calibrate": "test_calibrate.py"}
MODELS = ("llama-3.2-1b", "llama-3.1-8b")
HOST_WASTE: tuple[dict[str, float], ...] = (
    {"steps": 0.4},
    {"sleep_ms": 1.0},
    {"steps": 0.8},
    {"gemms": 1},
    {"steps": 1.6},
)
GPU_WASTE: tuple[dict[str, float], ...] = ({"steps": 1.0}, {"steps": 2.0}, {"steps": 4.0})
CALIBRATION_S = 28.0
"""What a calibration takes that is ready to go: about 20 s of windows, and the meter's delay after each test."""

MOST_FAILURES = 4
POLL_S = 0.02
# As vLLM was set up in earlier runs that worked, should it not start as conftest.py sets it up.
PLAIN_ENGINE: dict[str, Any] = {"async_scheduling": False}


def add_arguments(run: argparse.ArgumentParser) -> None:
    """Declare the options of ``run``."""
    run.add_argument(
        "--out", type=Path, required=True, help="one tar a board, and machine.json, are written here"
    )
    run.add_argument("--folder", type=Path, default=Path("/dev/shm/gpu-gate-rates"))
    run.add_argument("--seconds", type=float, default=520.0, help="when to be done, counted from --began")
    run.add_argument(
        "--began", type=float, default=None, help="Unix time at which the seconds began (default: now)"
    )
    run.add_argument("--seed", type=int, default=13)
    run.add_argument("--wasted", type=int, default=2, help="how many of eight tests have waste")
    run.add_argument("--source", default="nvml")
    run.add_argument("--boards", type=int, default=None, help="how many boards (default: all that there are)")
    run.add_argument(
        "--roles", type=Path, help="a JSON of UUID to role: those boards take the other role now"
    )
    run.add_argument("--fake", action="store_true", help="the simulated board, and no model at all")


@dataclass(frozen=True)
class Turn:
    """What one process is to run: a kind of test file, and the waste of its tests by their names."""

    kind: str
    waste: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def turns(role: str, board: int, seed: int, wasted: int) -> Iterator[Turn]:
    """Return the endless queue of a board.

    Of five processes four are of its role, of eight tests ``wasted`` have waste.

    Everything is drawn in balanced blocks, so that waste and identical code are mixed however far the queue gets.
    """
    lot = random.Random(f"{seed}/{board}/{role}")
    other = {"host": "gpu", "gpu": "host"}[role]
    wastes = {
        name: _waste(name, board, seed, wasted, lot)
        for name in ("test_batch_4", "test_batch_32", "test_chat")
    }
    while True:
        kinds = [role] * 4
        # Never first: the board's first process finds everything cold.
        kinds.insert(lot.randrange(1, 5), other)
        for kind in kinds:
            tests = ("test_chat",) if kind == "gpu" else ("test_batch_4", "test_batch_32")
            found = {name: next(wastes[name]) for name in tests} if kind == role else {}
            yield Turn(kind, {name: each for name, each in found.items() if each})


def _waste(
    test: str, board: int, seed: int, wasted: int, lot: random.Random
) -> Iterator[Mapping[str, float]]:
    kinds = GPU_WASTE if test == "test_chat" else HOST_WASTE
    at = 2 * board + (test == "test_batch_32") + seed
    while True:
        block: list[Mapping[str, float]] = [{}] * (8 - wasted)
        block += [kinds[(at + each) % len(kinds)] for each in range(wasted)]
        at += wasted
        yield from lot.sample(block, len(block))


class Process:
    """A pytest process that imports what it needs and waits for its turn."""

    def __init__(self, board: Board, number: int, turn: Turn, engine: Mapping[str, Any]) -> None:
        self.turn, self.number = turn, number
        self.name = f"{number:02}-{turn.kind}"
        self.folder = board.folder / self.name
        self.folder.mkdir(parents=True)
        self.spec = {
            **{"board": board.index, "uuid": board.uuid, "role": board.role, "number": number},
            **{"kind": turn.kind, "waste": turn.waste, "engine": engine, "started": time.time()},
        }
        (self.folder / "spec.json").write_text(json.dumps(self.spec))
        (self.folder / "pytest.ini").write_text("[pytest]\n")
        for name in ("conftest.py", TEST_OF[turn.kind]):
            shutil.copy(PROJECT / name, self.folder)
        self._log = (self.folder / "log.txt").open("wb")
        command = [
            *(sys.executable, "-m", "pytest", "-p", "pytest_tokenpower.plugin", "-p", "no:cacheprovider"),
            *("-s", "-q", "--show-capture=no", f"--energy-source={board.source}"),
            *("--energy-json=record.json", "--energy-record=recording.jsonl", TEST_OF[turn.kind]),
        ]
        self._child = subprocess.Popen(
            command,
            cwd=self.folder,
            env=board.environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def go(self) -> None:
        """Its turn has come."""
        (self.folder / "go").touch()

    def ended(self, until: float) -> bool:
        """Wait for its end; at ``until``, a monotonic time, it is ended. Says whether it ended by itself."""
        while self._child.poll() is None and time.monotonic() < until:
            time.sleep(POLL_S)
        in_time = self._child.poll() is not None
        self.kill()
        return in_time

    def kill(self) -> None:
        """End it and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        self._log.close()

    @property
    def measured(self) -> bool:
        """Whether its record is there, and tells of anything."""
        record = self.folder / "record.json"
        return record.exists() and bool(json.loads(record.read_text())["measurements"])

    def tail(self) -> str:
        """Return the end of what it printed."""
        return (self.folder / "log.txt").read_text("utf-8", "replace")[-3000:]


@dataclass
class Board:
    """A board, its queue, and what its processes have taken so far."""

    index: int
    uuid: str
    role: str
    folder: Path
    out: Path
    source: str
    environment: Mapping[str, str]
    deadline: float
    seed: int
    wasted: int
    say: Any
    seconds: dict[str, float] = field(default_factory=dict)
    failures: int = 0
    engine: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Calibrate, run the queue until there is just time to calibrate once more, and do that."""
        number = 0
        queue = turns(self.role, self.index, self.seed, self.wasted)
        calibration = Process(self, number, Turn("calibrate"), {})
        waiting: Process | None = self._next(queue, number + 1)
        self._measure(calibration)
        number += 1
        last = Process(self, 99, Turn("calibrate"), {})
        while waiting is not None:
            left = self.deadline - time.monotonic() - CALIBRATION_S
            if left < self._expected(waiting.turn.kind) or self.failures >= MOST_FAILURES:
                break
            number += 1
            current, waiting = waiting, self._next(queue, number)
            ok = self._measure(current)
            if not ok and not self.engine:
                self.engine = PLAIN_ENGINE
                waiting.kill()
                waiting = self._again(waiting)
        if waiting is not None:
            waiting.kill()
        self._measure(last)

    def _next(self, queue: Iterator[Turn], number: int) -> Process:
        return Process(self, number, next(queue), self.engine)

    def _again(self, process: Process) -> Process:
        shutil.rmtree(process.folder)
        return Process(self, process.number, process.turn, self.engine)

    def _expected(self, kind: str) -> float:
        # Before any is known: a first start, which fills the caches of the disk, has taken 45 s.
        return 1.1 * self.seconds.get(kind, max(self.seconds.values(), default=40.0)) + 2.0

    def _measure(self, process: Process) -> bool:
        began = time.monotonic()
        process.go()
        # The last calibration may take all that is left; others leave it its time.
        reserve = 0.0 if process.number == 99 else CALIBRATION_S
        in_time = process.ended(self.deadline - reserve)
        seconds = time.monotonic() - began
        ok = in_time and process.measured
        if ok:
            self.seconds[process.turn.kind] = seconds
        else:
            self.failures += 1
        self._keep(process, {"seconds": seconds, "in_time": in_time, "at": now()})
        waste = {name: dict(each) for name, each in process.turn.waste.items()}
        self.say(
            f"{self.index} {process.name} {seconds:5.1f} s "
            f"{'' if ok else 'FAILED ' if in_time else 'CUT '}{waste or ''} "
            + (_figures(process.folder / "record.json") if process.measured else process.tail()[-600:])
        )
        shutil.rmtree(process.folder, ignore_errors=True)
        return ok

    def _keep(self, process: Process, end: Mapping[str, Any]) -> None:
        """Append what it left to the board's tar, which is whole after each process."""
        with tarfile.open(self.out / f"board-{self.index}.tar", "a") as tar:
            for name in ("record.json", "recording.jsonl", "log.txt", "times.json", "spec.json"):
                path = process.folder / name
                if not path.exists():
                    continue
                data = path.read_bytes()
                if name == "spec.json":
                    data = json.dumps({**process.spec, **end}).encode()
                packed = gzip.compress(data, 9, mtime=0)
                info = tarfile.TarInfo(f"board-{self.index}/{process.name}/{name}.gz")
                info.size, info.mtime = len(packed), int(time.time())
                tar.addfile(info, io.BytesIO(packed))


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _figures(path: Path) -> str:
    found = []
    for each in json.loads(path.read_text())["measurements"]:
        rounds = each["rounds"]
        joules, seconds = (sum(one.get(name) or 0.0 for one in rounds) for name in ("joules", "seconds"))
        tokens = sum(one["generated_tokens"] for one in rounds)
        celsius = [one["temperature_celsius"] for one in rounds if one.get("temperature_celsius")]
        bad = sum(bool(one.get("reasons")) for one in rounds)
        name = each["test"].partition("::")[2].removeprefix("test_")
        found.append(
            f"{name} {joules / max(tokens, 1):.5g} J {joules / max(seconds, 1e-9):.0f} W"
            + (f" {sum(celsius) / len(celsius):.0f} °C" if celsius else "")
            + (f" BAD {bad}/{len(rounds)}" if bad else "")
        )
    return "; ".join(found)


def boards_of(fake: bool, limit: int | None) -> list[tuple[str, str]]:
    """Index in CUDA's PCI order and UUID of each board."""
    if fake:
        return [(str(at), f"fake-{at}") for at in range(limit or 2)]
    listed = subprocess.run(
        ["nvidia-smi", "--query-gpu=index,uuid,pci.bus_id", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    rows = sorted(([cell.strip() for cell in line.split(",")] for line in listed), key=lambda row: row[2])
    return [(str(at), row[1]) for at, row in enumerate(rows)][:limit]


def roles_of(uuids: Sequence[str], before: Mapping[str, str]) -> list[str]:
    """Half of the boards mostly run the host-bound tests, half the GPU-bound one; the other of what they did before."""
    other = {"host": "gpu", "gpu": "host"}
    return [
        other[before[uuid]] if uuid in before else ("host", "gpu")[at % 2] for at, uuid in enumerate(uuids)
    ]


def measure(arguments: argparse.Namespace) -> int:
    """Run the queues of all boards until the time is over."""
    began = time.monotonic() - (time.time() - arguments.began if arguments.began else 0.0)
    arguments.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(arguments.folder, ignore_errors=True)
    models = arguments.folder / "models"
    models.mkdir(parents=True)
    if not arguments.fake:
        from pytest_tokenpower.models.registry import architecture

        for name in MODELS:
            (models / name).mkdir()
            (models / name / "config.json").write_text(json.dumps(architecture(name).hub_config("bfloat16")))
    say = logger(arguments.out, began)
    found = boards_of(arguments.fake, arguments.boards)
    before = json.loads(arguments.roles.read_text()) if arguments.roles else {}
    roles = roles_of([uuid for _, uuid in found], before)
    import pytest_tokenpower

    machine = {
        **{"at": now(), "seed": arguments.seed, "seconds": arguments.seconds, "argv": sys.argv[1:]},
        "package": pytest_tokenpower.__file__,
        "boards": [
            {"index": index, "uuid": uuid, "role": role}
            for (index, uuid), role in zip(found, roles, strict=True)
        ],
        **{"cpus": os.cpu_count(), "load": os.getloadavg(), "python": sys.version},
        **{"smi": "" if arguments.fake else _said("nvidia-smi", "-q"), "lscpu": _said("lscpu")},
    }
    (arguments.out / "machine.json").write_text(json.dumps(machine))
    say(
        f"{len(found)} boards: {', '.join(f'{uuid} {role}' for (_, uuid), role in zip(found, roles, strict=True))}"
    )
    threads = []
    for (index, uuid), role in zip(found, roles, strict=True):
        cache = arguments.folder / f"cache-{index}"
        environment = {
            **os.environ,
            **{"BENCH_MODELS": "fake" if arguments.fake else os.fspath(models), "PYTHONUNBUFFERED": "1"},
            **{"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": index},
            **{
                "HF_HUB_OFFLINE": "1",
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
                "VLLM_LOGGING_LEVEL": "WARNING",
            },
            **{"VLLM_CACHE_ROOT": f"{cache}/vllm", "TRITON_CACHE_DIR": f"{cache}/triton"},
            **{"TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor", "XDG_CACHE_HOME": f"{cache}/xdg"},
        }
        board = Board(
            index=int(index),
            uuid=uuid,
            role=role,
            folder=arguments.folder / f"board-{index}",
            out=arguments.out,
            source="simulated" if arguments.fake else arguments.source,
            environment=environment,
            deadline=began + arguments.seconds,
            seed=arguments.seed,
            wasted=arguments.wasted,
            say=say,
        )
        threads.append(threading.Thread(target=_guarded, args=(board, say)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    say("done")
    return 0


def _guarded(board: Board, say: Any) -> None:
    try:
        board.run()
    except Exception as error:
        say(f"{board.index} ended: {error!r}")
