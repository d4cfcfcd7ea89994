"""What benchmarks/gpu_phases.py runs: pieces of work, the engines behind one face, and the meter that watches them.

The dry run's engine sleeps, and the power of its simulated board is a known sum of prompt and generated tokens.
"""

from __future__ import annotations

import bisect
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pytest_tokenpower.engines import EngineIdentity, EngineSpec, Generation, Step
from pytest_tokenpower.meters.adapters.nvml.meter import NvmlMeter
from pytest_tokenpower.meters.collector import Collector
from pytest_tokenpower.meters.simulation.library import SimulatedBoards
from pytest_tokenpower.meters.simulation.power_curve import FunctionCurve
from pytest_tokenpower.meters.simulation.scenario import Board, Scenario, numbered_boards
from pytest_tokenpower.meters.types import Device
from pytest_tokenpower.runner.telemetry import TelemetrySession
from pytest_tokenpower.workloads import Batch, FixedShape, Poisson

TOKEN_BUDGET = 65536
"""So that the prompts of 128 requests are prefilled in a single step; parts set a smaller one on the scheduler."""

DECODE_SIZES = [1, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 128]
"""Batches with a CUDA graph; others are padded to the next."""


@dataclass(frozen=True)
class Work:
    """So many prompts of so many tokens, each generating ``new``, so often in one window.

    ``budget`` and ``chunk`` are the scheduler's tokens a step, of all prompts and of one (0: the engine's own);
    ``per_second`` has them arrive by the chance of ``seed``; after each execution there are ``pause_s`` of idling.
    """

    label: str
    batch: int
    prompt: int
    new: int
    repeats: int = 1
    budget: int = 0
    chunk: int = 0
    per_second: float = 0.0
    pause_s: float = 0.0
    seed: int = 1


@cache
def batch_of(batch: int, prompt: int, new: int) -> Batch:
    """Return the same object for the same shape: engines keep what they made ready for it."""
    return FixedShape(batch, prompt, new).to_batch()


def runner(engine: Any, work: Work) -> Callable[[], Generation]:
    """Return the work as a callable, with the scheduler set up for it."""
    batch = batch_of(work.batch, work.prompt, work.new)
    set_budget(engine, work.budget, work.chunk)
    if work.per_second:
        arrivals = Poisson(work.per_second, seed=work.seed)
        return lambda: engine.serve(batch, arrivals)
    return lambda: engine.generate(batch)


def set_budget(engine: Any, tokens: int, chunk: int) -> None:
    """Return the tokens of a step and of one prompt in it, where there is a scheduler: vLLM reads both at every step.

    They stand for max_num_batched_tokens and long_prefill_token_threshold, and spare an engine's start.
    """
    if hasattr(engine, "budget"):
        engine.budget, engine.chunk = tokens or TOKEN_BUDGET, chunk
    elif hasattr(getattr(engine, "llm", None), "llm_engine"):
        scheduler = engine.llm.llm_engine.engine_core.engine_core.scheduler
        scheduler.max_num_scheduled_tokens = tokens or scheduler.scheduler_config.max_num_batched_tokens
        scheduler.scheduler_config.long_prefill_token_threshold = chunk


# --- engines


def import_engine(kind: str) -> None:
    """Do the slow imports, while another process has the GPU: nothing here opens a CUDA context."""
    if kind not in ("vllm-async", "vllm-server"):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if kind.startswith("transformers"):
        import torch
        from transformers import AutoModelForCausalLM  # noqa: F401
    else:
        import torch
        from vllm import LLM, SamplingParams  # noqa: F401
    print(f"{kind}: imported; CUDA initialised: {torch.cuda.is_initialized()}", flush=True)


def start_engine(kind: str, model: Path) -> Any:
    """Start an engine of the project by the name of a process; see PROCESSES in gpu_phases.py."""
    if kind.startswith("transformers"):
        compiled = kind == "transformers-compiled"
        cache = "static" if compiled else "dynamic"
        return EngineSpec(
            "transformers", model, isolated=False, dtype="bfloat16", cache=cache, compile=compiled
        ).load()
    options: dict[str, Any] = {
        "dtype": "bfloat16",
        "max_model_len": 2560,
        "max_num_seqs": 128,
        "max_num_batched_tokens": TOKEN_BUDGET,
        "gpu_memory_utilization": 0.85,
        "seed": 0,
    }
    sizes = DECODE_SIZES if kind == "vllm-bf16" else [1, 8, 32, 128]
    if kind == "vllm-fp8":
        options["quantization"] = "fp8"
    if kind in ("vllm-long", "vllm-arrivals"):
        sizes = [1, 2, 3, 4, 5, 6, 7, 8]
        options |= {"max_model_len": 24576, "max_num_seqs": 8, "max_num_batched_tokens": 16384}
    if kind in ("vllm-async", "vllm-server"):
        # As they are deployed: steps are scheduled ahead. The prompts of a burst fit into one step all the same.
        sizes = [1, 8, 32]
        options |= {"max_num_seqs": 32, "max_num_batched_tokens": 16384}
    if kind.startswith("tp"):
        sizes = [1, 8, 32]
        options |= {
            "tensor_parallel_size": int(kind[2:]),
            "max_model_len": 1024,
            "max_num_seqs": 32,
            "max_num_batched_tokens": 16384,
            "gpu_memory_utilization": 0.6,
        }
    options["compilation_config"] = {
        "mode": 0,
        "cudagraph_mode": "FULL_DECODE_ONLY",
        "cudagraph_capture_sizes": sizes,
    }
    name = kind if kind in ("vllm-async", "vllm-server") else "vllm"
    return EngineSpec(name, model, isolated=False, **options).load()


def start_meter(engine: Any) -> tuple[TelemetrySession, tuple[Device, ...]]:
    """Start the meter on the engine's GPUs, as the plugin has it, and all boards that it sees."""
    boards = getattr(engine, "boards", None)
    if boards is None:
        meter = NvmlMeter(visible=os.environ.get("CUDA_VISIBLE_DEVICES"))
    else:
        meter = NvmlMeter(boards, provenance="simulated", clock=boards.clock)
    collector = Collector([meter])
    devices = tuple(collector.start())
    return TelemetrySession(collector, devices).on_gpus(engine.device_ids), devices


# --- the dry run


class LivePower:
    """A power that is set as time goes, and its integral over any time so far."""

    def __init__(self, watts: float) -> None:
        self._lock = threading.Lock()
        self._t, self._joules, self._watts = [0.0], [0.0], [watts]
        self.start_ns: int | None = None

    def set(self, watts: float) -> None:
        """From now on."""
        if self.start_ns is None:
            return
        now = (time.monotonic_ns() - self.start_ns) / 1e9
        with self._lock:
            joules = self._joules[-1] + self._watts[-1] * (now - self._t[-1])
            self._t.append(now)
            self._joules.append(joules)
            self._watts.append(watts)

    def joules(self, second: float) -> float:
        """Cumulative energy at a second since the boards' start."""
        with self._lock:
            at = max(bisect.bisect_right(self._t, second) - 1, 0)
            return self._joules[at] + self._watts[at] * (second - self._t[at])


class FakeEngine:
    """Schedules as vLLM does, sleeps for its steps, and draws so many joules per token on simulated boards."""

    PROMPT_S, PROMPT_J = 1e-4, 0.06
    GENERATED_S, GENERATED_J = 4e-4, 0.16
    IDLE_W, GAP_S = 150.0, 2e-4

    def __init__(self, boards: int) -> None:
        self.budget, self.chunk = TOKEN_BUDGET, 0
        self._power = LivePower(self.IDLE_W)
        board = Board(power=FunctionCurve(cumulative_joules=self._power.joules), ring_noise_share=0.02)
        # A board that no engine uses stands beside two of them.
        self.boards = SimulatedBoards(Scenario(boards=numbered_boards(max(boards, 1), board)))
        self._power.start_ns = self.boards.start_ns
        self.device_ids = tuple(board.uuid for board in self.boards.scenario.boards)[: max(boards, 1)]

    @property
    def identity(self) -> EngineIdentity:
        """Nothing real."""
        return EngineIdentity("fake", "0", "none", {"dtype": "bfloat16", "quantization": None})

    def generate(self, batch: Batch) -> Generation:
        """All requests at once."""
        return self._run(batch, [0.0] * len(batch.prompts))

    def serve(self, batch: Batch, arrivals: Any) -> Generation:
        """Run requests as they arrive."""
        return self._run(batch, arrivals.seconds(len(batch.prompts)))

    def close(self) -> None:
        """Nothing is open."""

    def _run(self, batch: Batch, due: Sequence[float]) -> Generation:
        left = [len(prompt) for prompt in batch.prompts]
        made = [0] * len(left)
        steps: list[Step] = []
        began = time.monotonic()
        while min(made) < batch.new_tokens:
            here = [at for at, t in enumerate(due) if t <= time.monotonic() - began]
            ready = [at for at in here if made[at] < batch.new_tokens]
            if not ready:
                time.sleep(1e-3)
                continue
            decoding = [at for at in ready if not left[at]]
            budget, prompt = self.budget - len(decoding), 0
            finished = []
            for at in ready:
                if left[at] and budget:
                    part = min(left[at], budget, self.chunk or left[at])
                    left[at] -= part
                    budget -= part
                    prompt += part
                    if not left[at]:
                        finished.append(at)
            steps.append(self._step(prompt, len(decoding)))
            for at in [*decoding, *finished]:
                made[at] += 1
            time.sleep(self.GAP_S)
        ids = tuple((0,) * batch.new_tokens for _ in batch.prompts)
        return Generation(ids, batch.tokens, tuple(steps))

    def _step(self, prompt: int, generated: int) -> Step:
        seconds = prompt * self.PROMPT_S + generated * self.GENERATED_S
        joules = prompt * self.PROMPT_J + generated * self.GENERATED_J
        start_ns = time.monotonic_ns()
        self._power.set(joules / seconds)
        end_ns = start_ns + int(seconds * 1e9)
        # A sleeper wakes up late: the last of it is spent awake.
        time.sleep(max(0.0, seconds - 1.5e-3))
        while time.monotonic_ns() < end_ns:
            pass
        self._power.set(self.IDLE_W)
        return Step(start_ns, time.monotonic_ns(), prompt, generated)
