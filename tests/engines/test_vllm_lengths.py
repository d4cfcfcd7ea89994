"""Answers of another length on a real vLLM: two dtypes whose greedy text ends elsewhere, compared at equal lengths.

Each step lets a virtual time pass that grows with its tokens, so that what is to be found is known on any machine.
"""

from __future__ import annotations

import gc
import importlib
import os
import random
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pytest_tokenpower.core.records import MeasurementRecord, decode_run
from pytest_tokenpower.meters.simulation.virtual_time import VIRTUAL_TIME
from pytest_tokenpower.models import write_random_model
from tests.support.contract import prompts

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its dependencies' own
    vllm = pytest.importorskip("vllm")

pytestmark = [pytest.mark.real_engine, pytest.mark.filterwarnings("ignore")]

PROMPTS = prompts(8, 24)
LONGEST = 48
SECONDS = {"prefill": 0.0005, "decode": 0.003}
"""A token of each, at 300 W."""

TEST = """
import pytest
import served

@pytest.mark.power_budget(regression="15%", min_rounds=3, max_rounds=3)
def test_chat(energy):
    energy(served.answer)
"""


@contextmanager
def serving(model: Path, dtype: str, slower: dict[str, float]) -> Iterator[Any]:
    """Run a vLLM on the virtual time; ``slower["by"]`` says how many times as long its steps take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        llm = vllm.LLM(
            model=str(model),
            dtype=dtype,
            max_model_len=256,
            max_num_seqs=len(PROMPTS),
            max_num_batched_tokens=512,
            enforce_eager=True,
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            disable_log_stats=False,
            async_scheduling=False,
        )
        executor = llm.llm_engine.engine_core.engine_core.model_executor
        execute = executor.execute_model

        def execute_slowly(scheduled: Any, *args: Any, **options: Any) -> Any:
            counts = scheduled.num_scheduled_tokens.values()
            spent = sum(SECONDS["prefill" if count > 1 else "decode"] * count for count in counts)
            VIRTUAL_TIME.sleep(spent * slower["by"])
            return execute(scheduled, *args, **options)

        patch.setattr(executor, "execute_model", execute_slowly)
        virtual = SimpleNamespace(**vars(time) | {"monotonic": lambda: VIRTUAL_TIME.now_ns() / 1e9})
        for module in ("vllm.v1.engine", "vllm.v1.core.sched.scheduler"):
            patch.setattr(importlib.import_module(module), "time", virtual)  # where it stamps requests
        try:
            yield llm
        finally:
            llm.llm_engine.engine_core.shutdown()
            del llm, executor
            gc.collect()
            vllm.distributed.cleanup_dist_env_and_memory()


def answers(llm: Any, **options: Any) -> list[Any]:
    sampling = vllm.SamplingParams(temperature=0, max_tokens=LONGEST, detokenize=False, **options)
    requests = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    found: list[Any] = llm.generate(requests, sampling, use_tqdm=False)
    return found


def ended(texts: Sequence[Sequence[int]], ends: frozenset[int]) -> int:
    """Return how many tokens greedy texts have where these ids end them."""
    return sum(next((at + 1 for at, one in enumerate(text) if one in ends), len(text)) for text in texts)


def ends_between(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> frozenset[int]:
    """Return ids that end the texts naturally, those of one model a little later than the other's."""
    draw = random.Random(0)
    for _ in range(1000):
        ends = frozenset(draw.sample(range(512), 8))
        mine, other = ended(first, ends), ended(second, ends)
        if 0.02 <= abs(other / mine - 1) <= 0.08 and mine < 0.95 * LONGEST * len(PROMPTS):
            return ends
    raise AssertionError("no ids end the texts of both models at lengths that differ a little")


@pytest.fixture(autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    # A tiny model gains nothing by threads, and on a busy machine they wait for each other.
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", str(tmp_path_factory.mktemp("rpc")))


def test_a_known_change_is_found_and_identical_work_passes(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_random_model(models / "tiny-float32", "tiny", dtype="float32")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nenergy_source = simulated:virtual\nenergy_warmup_rounds = 1\n"
    )
    (tmp_path / "test_chat.py").write_text(TEST)
    served = ModuleType("served")
    monkeypatch.setitem(sys.modules, "served", served)
    slower = {"by": 1.0}

    def run(*arguments: str) -> MeasurementRecord:
        # Not pytester's: it would forget what vLLM has imported meanwhile.
        pytest.main(["-q", "-W", "ignore", "-p", "no:cacheprovider", "--energy-json=run.json", *arguments])
        return decode_run(Path("run.json").read_bytes(), source="run.json").measurements[0]

    with serving(model, "bfloat16", slower) as llm:
        other = [one.outputs[0].token_ids for one in answers(llm, ignore_eos=True)]
    with serving(model, "float32", slower) as llm:
        ends = ends_between([one.outputs[0].token_ids for one in answers(llm, ignore_eos=True)], other)
        served.answer = lambda: answers(llm, stop_token_ids=sorted(ends))  # type: ignore[attr-defined]
        for _ in range(3):
            before = run("--energy-save=before")
    with serving(model, "bfloat16", slower) as llm:
        served.answer = lambda: answers(llm, stop_token_ids=sorted(ends))  # type: ignore[attr-defined]
        same = run("--energy-baseline=name:before")
        slower["by"] = 1.3
        dearer = run("--energy-baseline=name:before")

    # bfloat16 and float32, compared with float32
    tokens = [one.rounds[0].generated_tokens for one in (before, same, dearer)]
    assert tokens[0] != tokens[1] == tokens[2]
    verdicts = [one.verdicts[0] for one in (same, dearer)]
    kinds, changes = [one.kind for one in verdicts], [one.change for one in verdicts]
    assert kinds == ["passed", "regressed"]
    assert changes == pytest.approx([0.0, 0.3], abs=0.02)
