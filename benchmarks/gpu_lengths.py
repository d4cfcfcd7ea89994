"""Answers of another length on a real GPU: bf16 against FP8 with natural ends, both ways, with vLLM in the process.

python benchmarks/gpu_lengths.py run --out results            on the GPU machine (torch, vLLM); 200 s of one board
python benchmarks/gpu_lengths.py run --out results --fake     vLLM on a CPU under the simulated board: a dry run
python benchmarks/gpu_lengths.py page results                 writes docs/results/h200-lengths.md

Random weights have no end of answer of their own. So both variants first answer to the longest, and token ids are drawn
until they end the texts of both well before that, at mean lengths that differ by a few percent; texts that run in
circles are sampled instead (temperature 1, a seed for each request). Then one process after the other has the board,
with an engine of its own and a pytest session for each run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from reporting import driver_of, logger, now, table, versions_line

from pytest_tokenpower.core.records import MeasurementRecord, VerdictRecord, decode_run
from pytest_tokenpower.gate.messages import message
from pytest_tokenpower.models.random_weights import write_random_model

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results" / "h200-lengths.md"
TEST = Path(__file__).parent / "gpu_project" / "test_lengths.py"
PROMPTS = 32
ROOM_BYTES = 20e9
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
DRAWS = 300
"""For each count of ids that end an answer."""

MOST_CUT = 0.2
"""Of all answers, those that may be cut at the longest."""

START_S, SESSION_S = 22.0, 11.0
"""What an engine's start and a session are taken to last, where it is asked whether there is time left."""


@dataclass(frozen=True)
class Session:
    """A run of pytest; ``may_wait`` where it is left out when time is short."""

    label: str
    test: str = "test_chat"
    save: str = ""
    against: str = ""
    twice: bool = False
    may_wait: bool = False

    @property
    def arguments(self) -> list[str]:
        """Pytest's."""
        return [
            f"test_lengths.py::{self.test}",
            *([f"--energy-save={self.save}"] if self.save else []),
            *([f"--energy-baseline=name:{self.against}"] if self.against else []),
        ]


PROCESSES: dict[str, tuple[str, tuple[Session, ...]]] = {
    "first": (
        "bf16",
        (
            *(Session(f"bf16, stored {number}", save="bf16") for number in (1, 2, 3)),
            Session("bf16, one length, stored", "test_fixed", save="bf16-fixed", may_wait=True),
        ),
    ),
    "second": (
        "fp8",
        (
            Session("FP8 against bf16", save="fp8", against="bf16"),
            *(Session(f"FP8, stored {number}", save="fp8") for number in (2, 3)),
            Session("FP8 against bf16, one length", "test_fixed", against="bf16-fixed", may_wait=True),
        ),
    ),
    "third": (
        "bf16",
        (
            Session("bf16 again, against bf16", against="bf16"),
            Session("bf16 against FP8", against="fp8"),
            Session("bf16, prompts prefilled twice, against bf16", against="bf16", twice=True, may_wait=True),
        ),
    ),
}
"""Who has the board, one after the other: the variant, and what is run."""

EXPECTED = {
    "FP8 against bf16": "improved",
    "FP8 against bf16, one length": "improved",
    "bf16 again, against bf16": "passed",
    "bf16 against FP8": "regressed",
    "bf16, prompts prefilled twice, against bf16": "regressed",
}
LATE = "BENCH_IMPORTS_LATE"
"""Set in a process that must not import vLLM before its turn."""

GRACE = 1.2
"""All is ended after so many times --seconds."""

FAKE_SHARE = {"bf16": 1.0, "fp8": 0.7}
"""What a step of each variant takes on the simulated board, in that of bf16."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--out", type=Path, required=True, help="results.json and the logs are written here")
    run.add_argument(
        "--folder", type=Path, help="weights, caches, project (default: in memory, else in /tmp)"
    )
    run.add_argument("--model", help="of the registry (default: llama-3.1-8b; tiny with --fake)")
    run.add_argument(
        "--seconds",
        type=float,
        default=200.0,
        help="what would end later and may be left out is, weights included",
    )
    run.add_argument("--board", help="CUDA_VISIBLE_DEVICES (default: the first of what is visible)")
    run.add_argument("--source", default="nvml")
    run.add_argument("--rounds", type=int, default=4)
    run.add_argument("--regression", default="5%")
    run.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    run.add_argument("--longest", type=int, default=192, help="tokens of an answer at most")
    run.add_argument(
        "--apart", type=float, nargs=2, default=(0.03, 0.06), help="how far mean lengths shall differ"
    )
    run.add_argument("--seed", type=int, default=0, help="of the draw of the ids that end answers")
    run.add_argument("--fake", action="store_true")
    work = commands.add_parser("work", help="one of the processes; run starts them")
    work.add_argument("name", choices=[*PROCESSES, "texts"])
    work.add_argument("folder", type=Path)
    page = commands.add_parser("page")
    page.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "page":
        results = json.loads((arguments.out / "results.json").read_text())
        PAGE.write_text("\n".join(render(results)) + "\n", encoding="utf-8")
        return 0
    if arguments.command == "work":
        return Worker(arguments.name, arguments.folder).run()
    return measure(arguments)


# ---- the machine: one process after the other


def measure(arguments: argparse.Namespace) -> int:
    """Write weights, start the processes, give each its turn, and keep what they have measured."""
    until = time.time() + arguments.seconds
    last = time.time() + GRACE * arguments.seconds
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    say = logger(out, time.monotonic())
    roomy = Path("/dev/shm").exists() and shutil.disk_usage("/dev/shm").free > ROOM_BYTES
    folder: Path = arguments.folder or Path("/dev/shm" if roomy else "/tmp") / "gpu-lengths"
    project = folder / "project"
    shutil.rmtree(project, ignore_errors=True)
    project.mkdir(parents=True)
    boards = [arguments.board] if arguments.board else os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")
    environment = environment_of(folder, arguments, boards[0])

    name = arguments.model or ("tiny" if arguments.fake else "llama-3.1-8b")
    dtype = "float32" if arguments.fake else "bfloat16"
    model = folder / f"{name}-{dtype}"
    plan = {
        **{"model": os.fspath(model), "until": until, "fake": arguments.fake, "prompt": arguments.prompt},
        **{"longest": arguments.longest, "rounds": arguments.rounds, "name": name, "at": now()},
        **{
            "regression": arguments.regression,
            "command": " ".join(["python benchmarks/gpu_lengths.py", *sys.argv[1:]]),
        },
    }
    (project / "plan.json").write_text(json.dumps(plan))
    source = "simulated:virtual" if arguments.fake else arguments.source
    (project / "pytest.ini").write_text(f"[pytest]\nenergy_source = {source}\nenergy_warmup_rounds = 1\n")
    shutil.copy(TEST, project)
    children: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for each in ("texts", *PROCESSES):
            with (out / f"{each}.txt").open("wb") as log:
                children[each] = subprocess.Popen(
                    [sys.executable, __file__, "work", each, os.fspath(project)],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )

        def wait_for(name: str, path: Path | None = None) -> bool:
            while children[name].poll() is None and not (path and path.exists()):
                if time.time() > last:
                    say(f"{name}: the time is over")
                    return False
                time.sleep(0.05)
            return path.exists() if path else children[name].returncode == 0

        # The processes import torch and vLLM meanwhile.
        write_random_model(model, name, dtype=dtype)
        say(f"weights of {name} are written")
        # FP8's texts are told while bf16 starts: nothing is measured yet.
        (project / "go-texts").touch()
        (project / "go-first").touch()
        ready = wait_for("texts") and wait_for("first", project / "texts-bf16.json")
        if ready:
            texts = {
                each: json.loads((project / f"texts-{each}.json").read_text()) for each in ("bf16", "fp8")
            }
            ends = draw_ends(texts, arguments.longest, arguments.apart, arguments.seed)
            if ends is None:
                say("no token ids end the texts of both variants as --longest and --apart ask for")
                ready = False
            else:
                whole(project / "ends.json", ends)
                say(
                    f"{ends['how']} answers end at {len(ends['ids'])} ids: {ends['mean']}, longest {ends['most']}"
                )
        for each in PROCESSES if ready else ():
            (project / f"go-{each}").touch()
            ended = wait_for(each)
            say(f"{each} {'has ended' if ended else 'FAILED: see its log'}")
            if not ended:
                break
    finally:
        for child in children.values():
            if child.poll() is None:
                child.kill()
            child.wait()
        runs = [json.loads(path.read_text()) for path in sorted(project.glob("run-*.json"))]
        ends_path = project / "ends.json"
        ends = json.loads(ends_path.read_text()) if ends_path.exists() else None
        whole(
            out / "results.json",
            {"plan": plan, "ends": ends, "runs": sorted(runs, key=lambda one: one["began"])},
        )
    for one in runs:
        say(f"{one['label']}: {figure_line(one)}")
    surprises = surprises_of(runs)
    for line in surprises:
        say(f"NOT AS EXPECTED: {line}")
    return 1 if surprises or not ready else 0


def environment_of(folder: Path, arguments: argparse.Namespace, board: str) -> dict[str, str]:
    """Make the processes' environment."""
    cache = folder / "cache"
    (cache / "rpc").mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {
        **kept,
        **(
            {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
            if arguments.fake
            else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": board}
        ),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", "")))),
        "PYTHONUNBUFFERED": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "BENCH_REGRESSION": arguments.regression,
        "BENCH_ROUNDS": str(arguments.rounds),
        "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
        "VLLM_RPC_BASE_PATH": str(cache / "rpc"),
        "VLLM_CACHE_ROOT": f"{cache}/vllm",
        "TRITON_CACHE_DIR": f"{cache}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
        "XDG_CACHE_HOME": f"{cache}/xdg",
    }


def whole(path: Path, value: Any) -> None:
    """Write a JSON file that is there only when it is complete."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, separators=(",", ":")))
    part.replace(path)


# ---- where answers end


def draw_ends(
    texts: Mapping[str, Mapping[str, Sequence[Sequence[int]]]],
    longest: int,
    apart: Sequence[float],
    seed: int,
) -> dict[str, Any] | None:
    """Return ids that end both variants' texts, at mean lengths that differ by ``apart``; None where none do.

    Of the draws that do, and that cut few answers at the longest, it is the one whose longest answers are most nearly
    as many mean lengths long in both variants: how full the batch is differs little. Greedy texts come first; where
    they run in circles the sampled ones are taken.
    """
    lot = np.random.default_rng(seed)
    for how in ("greedy", "sampled"):
        both = [*texts["bf16"][how], *texts["fp8"][how]]
        pool = sorted({token for text in both for token in text})
        row = {token: at for at, token in enumerate(pool)}
        first = np.full((len(pool), len(both)), longest)
        for column, text in enumerate(both):
            for at in range(min(len(text), longest) - 1, -1, -1):
                first[row[text[at]], column] = at + 1
        found: tuple[float, dict[str, Any]] | None = None
        for count in (one for one in COUNTS for _ in range(DRAWS)):
            chosen = lot.choice(len(pool), min(count, len(pool)), replace=False)
            lengths = first[chosen].min(axis=0).reshape(2, -1)
            mean, most, cut = lengths.mean(axis=1), lengths.max(axis=1), (lengths == longest).mean(axis=1)
            if not (
                apart[0] <= abs(mean[1] / mean[0] - 1) <= apart[1]
                and 0.3 * longest <= mean[0] <= 0.7 * longest
                and cut.max() <= MOST_CUT
            ):
                continue
            odd = abs(math.log(most[1] / mean[1] * mean[0] / most[0]))
            if found is None or odd < found[0]:
                ids = sorted(pool[at] for at in chosen)
                found = (
                    odd,
                    {
                        **{"how": how, "ids": ids, "cut": round(cut.max() * lengths.shape[1])},
                        **{
                            name: dict(zip(("bf16", "fp8"), each.tolist(), strict=True))
                            for name, each in (("mean", mean), ("most", most), ("lengths", lengths))
                        },
                    },
                )
        if found is not None:
            return found[1]
    return None


# ---- a process: an engine, and a session of pytest for each run


class Worker:
    """One process: prepared while others have the board, it waits for its turn."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.plan: dict[str, Any] = json.loads((folder / "plan.json").read_text())
        self.variant, self.sessions = PROCESSES.get(name, ("fp8", ()))
        lot = random.Random(0)
        vocabulary = 500 if self.plan["fake"] else 30_000
        self.prompts = [
            {"prompt_token_ids": [lot.randrange(100, vocabulary) for _ in range(self.plan["prompt"])]}
            for _ in range(PROMPTS)
        ]

    def run(self) -> int:
        """Prepare, wait, start the engine, tell the texts, and run the sessions."""
        os.chdir(self.folder)
        sys.path.insert(0, os.fspath(self.folder))
        vllm = self._vllm()
        self._await(f"go-{self.name}")
        began = time.monotonic()
        with self._serving(vllm) as llm:
            self._say(f"{self.variant} started in {time.monotonic() - began:.0f} s")
            if self.name in ("texts", "first"):
                texts = {
                    how: [
                        list(one.outputs[0].token_ids)
                        for one in self._answer(vllm, llm, how, ignore_eos=True)
                    ]
                    for how in ("greedy", "sampled")
                }
                whole(self.folder / f"texts-{self.variant}.json", texts)
            if self.sessions:
                self._await("ends.json")
                self._run_sessions(vllm, llm)
        sys.stdout.flush()
        sys.stderr.flush()
        # Everything is written, and taking an engine apart would cost seconds of the GPU's time.
        os._exit(0)

    def _vllm(self) -> Any:
        """Import it while others have the board, unless that takes hold of the board."""
        if LATE in os.environ:
            self._await(f"go-{self.name}")
        importlib.import_module("pytest")
        vllm = importlib.import_module("vllm")
        if importlib.import_module("torch").cuda.is_initialized() and LATE not in os.environ:
            os.environ[LATE] = "1"
            os.execv(sys.executable, [sys.executable, *sys.argv])
        return vllm

    def _run_sessions(self, vllm: Any, llm: Any) -> None:
        import pytest

        ends = json.loads((self.folder / "ends.json").read_text())
        served: Any = ModuleType("served")
        sys.modules["served"] = served
        half = self.plan["longest"] // 2
        for at, session in enumerate(self.sessions):
            late = time.time() + self._needed(at) > self.plan["until"]
            if session.may_wait and (late or session.against not in {"", *self._stored()}):
                self._say(
                    f"{session.label}: left out, {'the time is short' if late else 'nothing is stored'}"
                )
                continue

            def answer(session: Session = session) -> Any:
                if session.twice:
                    self._answer(vllm, llm, "greedy", ignore_eos=True, max_tokens=1)
                return self._answer(vllm, llm, ends["how"], stop_token_ids=ends["ids"], ignore_eos=True)

            served.answer = answer
            served.answer_fixed = lambda: self._answer(vllm, llm, "greedy", ignore_eos=True, max_tokens=half)
            began = time.time()
            record = self.folder / "record.json"
            record.unlink(missing_ok=True)
            code = pytest.main(
                [
                    *("-q", "-p", "pytest_tokenpower.plugin", "-p", "no:cacheprovider", "-W", "ignore"),
                    *("--show-capture=no", f"--energy-json={record.name}", *session.arguments),
                ]
            )
            if record.exists():
                run = {
                    "label": session.label,
                    "process": self.name,
                    "variant": self.variant,
                    "save": session.save,
                    "exit": int(code),
                }
                run |= {"began": began, "seconds": time.time() - began, "record": record.read_text("utf-8")}
                whole(self.folder / f"run-{self.name}-{at}.json", run)

    def _stored(self) -> set[str]:
        """Names under which runs are stored."""
        return {json.loads(path.read_text())["save"] for path in self.folder.glob("run-*.json")}

    def _needed(self, at: int) -> float:
        """Seconds for this session and all that may not be left out after it."""
        names = list(PROCESSES)
        later = [PROCESSES[name][1] for name in names[names.index(self.name) + 1 :]]
        rest = [*self.sessions[at + 1 :], *(one for sessions in later for one in sessions)]
        return SESSION_S * (1 + sum(not one.may_wait for one in rest)) + START_S * len(later)

    def _answer(self, vllm: Any, llm: Any, how: str, **options: Any) -> list[Any]:
        options = {"max_tokens": self.plan["longest"], "detokenize": False, **options}
        sampling = [
            vllm.SamplingParams(
                **({"temperature": 0} if how == "greedy" else {"temperature": 1.0, "seed": row}), **options
            )
            for row in range(PROMPTS)
        ]
        found: list[Any] = llm.generate(self.prompts, sampling, use_tqdm=False)
        return found

    @contextlib.contextmanager
    def _serving(self, vllm: Any) -> Iterator[Any]:
        length = self.plan["prompt"] + self.plan["longest"]
        options: dict[str, Any] = {
            "max_model_len": length + 16,
            "max_num_seqs": PROMPTS,
            "max_num_batched_tokens": PROMPTS * self.plan["prompt"],
            "skip_tokenizer_init": True,
            "enable_prefix_caching": False,
            "disable_log_stats": False,
            "async_scheduling": False,
            "seed": 0,
        }
        if self.plan["fake"]:
            dtype = {"bf16": "float32", "fp8": "bfloat16"}[self.variant]
            llm = vllm.LLM(self.plan["model"], dtype=dtype, enforce_eager=True, **options)
            yield simulated(llm, FAKE_SHARE[self.variant])
            return
        yield vllm.LLM(
            self.plan["model"],
            dtype="bfloat16",
            gpu_memory_utilization=0.35,
            # Two engines start on the board at a time: what is free is not to be found out by looking.
            kv_cache_memory_bytes=6_000_000_000,
            compilation_config={
                **{"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [PROMPTS]}
            },
            **({"quantization": "fp8"} if self.variant == "fp8" else {}),
            **options,
        )

    def _await(self, name: str) -> None:
        parent = os.getppid()
        while not (self.folder / name).exists():
            if os.getppid() != parent:
                sys.exit(f"{self.name}: the benchmark has ended")
            time.sleep(0.05)

    def _say(self, line: str) -> None:
        print(f"{now()} {line}", flush=True)


def simulated(llm: Any, share: float) -> Any:
    """Let each step pass a virtual time that grows with its tokens, as tests/engines/test_vllm_lengths.py does."""
    from pytest_tokenpower.meters.simulation.virtual_time import VIRTUAL_TIME

    executor = llm.llm_engine.engine_core.engine_core.model_executor
    execute: Callable[..., Any] = executor.execute_model

    def execute_slowly(scheduled: Any, *args: Any, **options: Any) -> Any:
        counts = scheduled.num_scheduled_tokens.values()
        spent = sum((0.0001 if count > 1 else 0.001) * count for count in counts)
        VIRTUAL_TIME.sleep(spent * share)
        return execute(scheduled, *args, **options)

    executor.execute_model = execute_slowly
    virtual = SimpleNamespace(**vars(time) | {"monotonic": lambda: VIRTUAL_TIME.now_ns() / 1e9})
    for module in ("vllm.v1.engine", "vllm.v1.core.sched.scheduler"):
        importlib.import_module(module).time = virtual  # type: ignore[attr-defined]
    return llm


# ---- what was found


def measurement_of(run: Mapping[str, Any]) -> MeasurementRecord:
    """Return what a session has measured."""
    return decode_run(run["record"].encode(), source=run["label"]).measurements[0]


def verdict_of(run: Mapping[str, Any]) -> VerdictRecord | None:
    """Return the verdict against a stored run; None of a run that is only stored."""
    against = measurement_of(run).verdicts
    return against[0] if against and run["label"] in EXPECTED else None


def surprises_of(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which verdicts are not the expected ones, and which runs are missing."""
    found = {run["label"]: verdict_of(run) for run in runs}
    lines = []
    optional = {one.label for _, sessions in PROCESSES.values() for one in sessions if one.may_wait}
    for label, expected in EXPECTED.items():
        if label not in found and label in optional:
            continue
        verdict = found.get(label)
        kind = verdict.kind if verdict is not None else "not run" if label not in found else "no verdict"
        if kind != expected:
            reason = f" ({verdict.reason})" if verdict is not None and verdict.reason else ""
            lines.append(f"{label}: {kind}{reason}, expected {expected}")
    return lines


def figure_line(run: Mapping[str, Any]) -> str:
    """Return a run's figures, for the log."""
    one = measurement_of(run)
    joules, verdict = one.figures.get("joules_per_token"), verdict_of(run)
    kept = [each for each in one.rounds if not each.reasons]
    said = f"{len(kept)} of {len(one.rounds)} rounds, exit {run['exit']}, {run['seconds']:.0f} s"
    if joules is not None:
        said += f", {1e3 * joules.value:.4g} mJ/token"
    if verdict is None:
        return said
    change = "" if verdict.change is None else f" {100 * verdict.change:+.1f} %"
    return f"{said}, {verdict.kind}{change}{f' ({verdict.reason})' if verdict.reason else ''}"


def rows(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the table: a row a session."""
    lines = []
    for run in runs:
        one, verdict = measurement_of(run), verdict_of(run)
        good = [each for each in one.rounds if not each.reasons]
        executions = max(1, sum(each.repeats for each in good))
        tokens = {each.generated_tokens / each.repeats for each in good}
        told = {name: f"{1e3 * figure.value:.4g}" for name, figure in one.figures.items()}
        warm = [each.temperature_celsius for each in good if each.temperature_celsius is not None]
        line = [
            run["label"],
            f"{sum(each.generated_tokens for each in good) / executions:.5g}{'' if len(tokens) < 2 else ' (vary)'}",
            told.get("joules_per_token", ""),
            told.get("prefill_joules_per_token", ""),
            told.get("decode_joules_per_token", ""),
            f"{one.figures['mean_watts'].value:.0f}" if "mean_watts" in one.figures else "",
            f"{sum(warm) / len(warm):.0f}" if warm else "",
        ]
        compared = (verdict.value, verdict.baseline_value, verdict.change) if verdict is not None else ()
        if verdict is not None and compared and None not in compared:
            read = (verdict.value or 0.0) / (verdict.baseline_value or math.nan) - 1
            low, high = verdict.change_low or 0.0, verdict.change_high or 0.0
            line += [f"{100 * read:+.1f} %", f"{100 * (verdict.change or 0.0):+.1f} %"]
            line += [f"{100 * low:+.1f} to {100 * high:+.1f} %"]
        else:
            line += ["", "", ""]
        lines.append([*line, "stored" if verdict is None else verdict.kind.upper()])
    return lines


def render(results: Mapping[str, Any]) -> list[str]:
    """Return the page's lines."""
    plan, ends, runs = results["plan"], results["ends"], results["runs"]
    if not runs:
        raise SystemExit("these results have no run that was measured")
    by = {run["label"]: run for run in runs}
    first = measurement_of(runs[0])
    dropped = sum(bool(each.reasons) for run in runs for each in measurement_of(run).rounds)
    rounds = sum(len(measurement_of(run).rounds) for run in runs)
    mean = ends["mean"]
    how = (
        "greedy" if ends["how"] == "greedy" else "sampled at temperature 1, each request by a seed of its own"
    )
    lines = [
        "# Answers of another length, on an H200",
        "",
        f"Board: {first.key.get('gpu.count')}x {first.key.get('gpu.name')}, power limit "
        f"{first.key.get('gpu.power_limit_watts')} W, driver {driver_of(first.facts)}; {first.provenance} by the "
        f"{first.method}.  ",
        versions_line(decode_run(runs[0]["record"].encode(), source="first run").versions),
        f"Date: {plan['at'][:10]}. Command: `{plan['command']}`.  ",
        f"{plan['name']}'s architecture with random weights; vLLM in the test's process, {PROMPTS} prompts of "
        f"{plan['prompt']} tokens at once, {plan['rounds']} rounds, limit {plan['regression'].replace('%', ' %')}.",
        "",
        "A quantization changes the texts, and with them where they end. Here bf16 and FP8 "
        f'(`quantization="fp8"`) answer the same prompts, {how}, and stop where a text comes to one of '
        f"{len(ends['ids'])} token ids. Random weights have no end of answer, so the ids were drawn, by looking at the "
        f"texts of both: such that their mean lengths lie a few percent apart (bf16 {mean['bf16']:.1f}, "
        f"FP8 {mean['fp8']:.1f} tokens; longest {ends['most']['bf16']} and {ends['most']['fp8']}, of at most "
        f"{plan['longest']}; the runs' own are below), with the batch about equally full. So that the lengths lie "
        "within the gate's tolerance of 10 % is made; what the gate finds is not.",
        "",
        "The verdicts are the gate's own, from runs that it had stored. J/token is in mJ, as read. The change is at "
        'equal lengths where they differ, and at a common GPU temperature; "as read" is neither.',
        "",
        *table(
            "run | tokens generated | J/token | prefill | decode | W | °C | as read | change | 95 % interval | verdict",
            rows(runs),
        ),
        "One board, three processes one after the other (of the stored bf16 runs, of FP8, of the last rows), each with "
        "an engine of its own, and a pytest session for each row. So the stored runs of a variant are of one process: "
        "what processes differ by is not in their spread. "
        + ("No round was refused." if not dropped else f"{dropped} of {rounds} rounds were refused."),
        "",
        "## What it shows",
        "",
    ]
    for label, expected in EXPECTED.items():
        verdict = verdict_of(by[label]) if label in by else None
        if verdict is None:
            lines.append(f"- {label}: was left out, for want of time.")
            continue
        met = "as it should be" if verdict.kind == expected else f"**it should be {expected}**"
        lines.append(f"- {label}: {verdict.kind}, {met}.{truth(label, by)}")
    lines += ["", "What the runs printed:", ""]
    for run in runs:
        if (verdict := verdict_of(run)) is not None:
            failing = verdict.kind == "regressed"
            lines += ["```", message(verdict, run["label"], failing=failing), "```", ""]
    return lines[:-1]


def truth(label: str, by: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what else is known of the change that a run should show."""
    change = {each: verdict.change for each, run in by.items() if (verdict := verdict_of(run)) is not None}
    one_length = change.get("FP8 against bf16, one length")
    if label == "FP8 against bf16" and one_length is not None:
        return f" At one length of all answers, where nothing needs re-expressing, it is {100 * one_length:+.1f} %."
    there = change.get("FP8 against bf16")
    if label == "bf16 against FP8" and there is not None:
        return (
            f" The other way round FP8's {100 * there:+.1f} % would be {100 * (1 / (1 + there) - 1):+.1f} %."
        )
    if label == "bf16, prompts prefilled twice, against bf16":
        stored = [measurement_of(run).figures for each, run in by.items() if each.startswith("bf16, stored")]
        shares = [
            each["prefill_joules_per_token"].value / each["joules_per_token"].value
            for each in stored
            if "prefill_joules_per_token" in each
        ]
        if shares:
            share = sum(shares) / len(shares)
            return f" The prefill's share of the stored runs' energy, once more: {100 * share:+.1f} %."
    return ""


if __name__ == "__main__":
    sys.exit(main())
