"""What a process of benchmarks/gpu_gate_rates.py has: its spec, its turn, its engine, and work with known waste.

Everything that needs no GPU is imported and prepared before its turn comes, so that the next process is ready while
this one measures. BENCH_MODELS names the folder of the models, or is "fake": then nothing needs a GPU.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pytest_tokenpower import Energy, TokenCount

HERE = Path(__file__).parent
SPEC: dict[str, Any] = json.loads((HERE / "spec.json").read_text())
MODELS = os.environ["BENCH_MODELS"]
FAKE = MODELS == "fake"
SHAPES: dict[str, dict[str, Any]] = {
    "host": {"model": "llama-3.2-1b", "batches": [4, 32], "prompt": 64, "memory": 0.3},
    "gpu": {"model": "llama-3.1-8b", "batches": [32], "prompt": 256, "memory": 0.5},
}
TIMES: dict[str, Any] = {"imported": time.time()}


def engine_arguments(kind: str) -> dict[str, Any]:
    """How vLLM is set up: CUDA graphs for decode at the batches that are run, and no compiling."""
    shape = SHAPES[kind]
    largest = max(shape["batches"])
    return {
        "model": os.path.join(MODELS, shape["model"]),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "dtype": "bfloat16",
        "max_model_len": 512,
        "max_num_seqs": largest,
        "max_num_batched_tokens": largest * shape["prompt"],
        "gpu_memory_utilization": shape["memory"],
        "enable_prefix_caching": False,
        "disable_log_stats": False,
        "compilation_config": {
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": shape["batches"],
        },
        "seed": 0,
    }


EARLY = (
    "vllm",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.attention.backends.flash_attn",
    "engine config",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.warmup.kernel_warmup",
    "vllm.v1.worker.gpu_model_runner",
    "vllm.v1.worker.gpu_worker",
)
"""What is imported, and done, before the turn, as far as it touches no GPU: another process is being measured on it.

What does touch it is found out by the first processes, which note it for the others.
"""


def prepare(touches_gpu: Path) -> None:
    """Do all of EARLY that is not known to make a CUDA context."""
    cuda: Any = torch.cuda
    plain = cuda._lazy_init

    def spied() -> None:
        if not cuda.is_initialized():
            TIMES.setdefault("cuda by", traceback.format_stack()[-14:])
        plain()

    cuda._lazy_init = spied
    known = touches_gpu.read_text().splitlines() if touches_gpu.exists() else []
    for step in EARLY:
        if step in known:
            continue
        try:
            if step == "engine config":
                # Its answers are cached: what the model's class can do, the Hub's config, the platform.
                from vllm.engine.arg_utils import EngineArgs

                EngineArgs(**engine_arguments(SPEC["kind"])).create_engine_config()
            else:
                importlib.import_module(step)
        except Exception as error:
            TIMES.setdefault("not early", []).append(repr(error))
        if cuda.is_initialized():
            TIMES["cuda before the turn"] = step
            with touches_gpu.open("a") as file:
                file.write(step + "\n")
            break


if not FAKE:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import torch

    if SPEC["kind"] in SHAPES:
        prepare(Path(MODELS) / "touches-gpu.txt")
        import vllm
    TIMES["ready"] = time.time()


def pytest_sessionstart() -> None:
    """Which package measures, for the log."""
    import pytest_tokenpower

    print(pytest_tokenpower.__file__, flush=True)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End at once: everything is written, and taking an engine apart would cost seconds of the GPU's time."""
    TIMES["ended"] = time.time()
    TIMES["load"] = os.getloadavg()
    (HERE / "times.json").write_text(json.dumps(TIMES))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@pytest.fixture(scope="session")
def turn() -> None:
    """Wait until the process before this one has ended."""
    parent = os.getppid()
    while not (HERE / "go").exists():
        if os.getppid() != parent:
            pytest.exit("the benchmark has ended", returncode=1)
        time.sleep(0.01)
    TIMES["turn"] = time.time()


@dataclass
class Engine:
    """An engine in this process; ``step`` is changed where each of its steps is to waste something."""

    llm: Any
    step: Callable[..., Any] | None
    side: dict[str, Any] = field(default_factory=dict)

    def waste(self, waste: Mapping[str, float]) -> None:
        """Have each step of the engine sleep for so many ms, or run so many GEMMs of 32 rows beside its own work."""
        if self.step is None:
            return
        plain = self.step
        milliseconds, gemms = waste.get("sleep_ms", 0.0), int(waste.get("gemms", 0))
        if gemms:
            self._operands()
        core = self.llm.llm_engine

        def step(*args: Any, **kwargs: Any) -> Any:
            for at in range(gemms):
                torch.mm(self.side["rows"], self.side["matrices"][at], out=self.side["into"])
            if milliseconds:
                time.sleep(milliseconds / 1e3)
            return plain(*args, **kwargs)

        core.step = step if gemms or milliseconds else plain

    def _operands(self) -> None:
        if not self.side:
            make = torch.Generator("cuda")
            make.manual_seed(0)
            size: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16, "generator": make}
            self.side["matrices"] = [torch.randn(8192, 8192, **size) for _ in range(2)]
            self.side["rows"] = torch.randn(32, 8192, **size)
            self.side["into"] = torch.empty(32, 8192, device="cuda", dtype=torch.bfloat16)


@pytest.fixture(scope="session")
def engine(turn: None) -> Engine:
    """Return a fresh engine of this process's kind, with random weights, after one batch of each size."""
    if FAKE:
        return Engine(None, None)
    kind = SPEC["kind"]
    llm = vllm.LLM(**{**engine_arguments(kind), **SPEC.get("engine", {})})
    TIMES["engine"] = time.time()
    llm.apply_model(randomise)
    TIMES["uuid"] = str(torch.cuda.get_device_properties(0).uuid)
    TIMES["async scheduling"] = bool(llm.llm_engine.vllm_config.scheduler_config.async_scheduling)
    made = Engine(llm, llm.llm_engine.step)
    for batch in SHAPES[kind]["batches"]:
        Work(made, batch, SHAPES[kind]["prompt"], 8, {})()
    TIMES["warm"] = time.time()
    return made


def randomise(model: Any) -> None:
    """Draw normal weights, the same in each process: vLLM's own dummy weights are near zero and draw less power."""
    generator = torch.Generator(next(model.parameters()).device)
    generator.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0.0, 0.02, generator=generator)
        else:
            parameter.data.fill_(1.0)


class Work:
    """A batch of prompts, ``new`` tokens each; ``waste`` gives extra decode steps a batch, sleep and GEMMs a step.

    Extra steps are run and not handed out; a broken number of them is spread over the batches.
    """

    def __init__(self, engine: Engine, batch: int, prompt: int, new: int, waste: Mapping[str, float]) -> None:
        self._engine = engine
        self._shape = (batch, prompt, new)
        self._steps = waste.get("steps", 0.0)
        self._owed = 0.0
        self._fake_seconds = 0.0005 * (1 + batch / 32)
        self._sleep = waste.get("sleep_ms", 0.0) / 1e3
        self.prompts = [
            {"prompt_token_ids": [100 + (7919 * (row * prompt + at)) % 30_000 for at in range(prompt)]}
            for row in range(batch)
        ]
        engine.waste(waste)

    def __call__(self) -> Any:
        """Run it once; returns what can be counted."""
        batch, prompt, new = self._shape
        self._owed += self._steps
        extra = int(self._owed + 1e-9)
        self._owed -= extra
        if FAKE:
            time.sleep((self._fake_seconds + self._sleep) * (new + extra))
            return TokenCount(batch * prompt, batch * new, batch)
        sampling = vllm.SamplingParams(
            temperature=0, max_tokens=new + extra, ignore_eos=True, detokenize=False
        )
        outputs = self._engine.llm.generate(self.prompts, sampling, use_tqdm=False)
        for output in outputs:
            output.outputs[0].token_ids = list(output.outputs[0].token_ids)[:new]
            # The waste is hidden from what counts tokens, too: it holds the ids against these.
            output.metrics.num_generation_tokens = new
        return outputs


@pytest.fixture
def work(engine: Engine, request: pytest.FixtureRequest) -> Callable[[int, int, int], Work]:
    """Return the work of this test, with the waste that the spec has for it."""
    waste: dict[str, float] = SPEC["waste"].get(request.node.name, {})
    return lambda batch, prompt, new: Work(engine, batch, prompt, new, waste)


def waiting(energy: Energy, windows: int, seconds: float = 0.5) -> None:
    """Windows in which the board waits, its context up: a "token" is a window."""
    for _ in range(windows):
        with energy.measure() as window:
            time.sleep(seconds)
            window.tokens(prompt=1, generated=1)


@pytest.fixture
def wait() -> Callable[..., None]:
    """Return the windows of waiting."""
    return waiting
