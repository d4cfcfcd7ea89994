"""An engine in a process of its own: the contract over the pipe, and every way in which that process can end."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pytest_tokenpower.core import progress
from pytest_tokenpower.core.subprocesses import group_members
from pytest_tokenpower.engines import Timeouts
from pytest_tokenpower.engines.execution import Execution
from pytest_tokenpower.engines.isolated.engine import IsolatedEngine
from pytest_tokenpower.engines.protocol import Engine
from pytest_tokenpower.engines.spec import EngineSpec
from pytest_tokenpower.errors import EngineError, UsageError
from pytest_tokenpower.workloads import FixedShape, Poisson, PromptSet
from pytest_tokenpower.workloads.base import Batch
from tests.support.contract import ClosingContract, EngineContract, check_bookkeeping, prompts

FAULTY = "tests.support.faulty:make"
BATCH = Batch(prompts(3, 24), 6)
SHORT = Timeouts(start_s=20, batch_s=0.5, close_s=5)


class TestIsolated(EngineContract):
    @classmethod
    def make(cls, models: Path) -> Engine:
        return IsolatedEngine(FAULTY, models / "tiny", step_s=0.001)


class TestIsolatedClosing(ClosingContract):
    @classmethod
    def make(cls, models: Path) -> Engine:
        return IsolatedEngine(FAULTY, models / "tiny", step_s=0.001)


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (
            "crash",
            r"its process \d+ ended \(signal SIGKILL\) during a batch\.\nThe end of its log .*\nbatch 2 of tiny",
        ),
        (
            "hang",
            r"a batch took more than 0\.5 s, so it was ended .*\nThe end of its log .*\nbatch 2 of tiny",
        ),
    ],
)
def test_an_engine_that_dies_in_a_batch_is_gone_with_its_children(
    tmp_path: Path, fault: str, complaint: str
) -> None:
    child = tmp_path / "child"
    engine = IsolatedEngine(FAULTY, "tiny", timeouts=SHORT, fault=fault, at=2, step_s=0.001, child=str(child))
    own, other = map(int, child.read_text().split())
    assert own == engine.pid
    assert running(own)
    assert running(other)
    check_bookkeeping(BATCH, engine.generate(BATCH))
    with pytest.raises(EngineError, match=f"(?s){FAULTY} engine of tiny: {complaint}"):
        engine.generate(BATCH)
    assert not running(own)
    assert not running(other)
    assert group_members(own) == ()
    with pytest.raises(EngineError, match="after its process ended"):
        engine.generate(BATCH)
    engine.close()


def test_closing_ends_what_the_engine_has_started(tmp_path: Path) -> None:
    child = tmp_path / "child"
    engine = IsolatedEngine(FAULTY, "tiny", child=str(child))
    own, other = map(int, child.read_text().split())
    engine.close()
    assert not running(own)
    assert not running(other)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("load", r"could not be loaded: RuntimeError: the weights do not fit\n.*weights are being read"),
        ("load crash", r"its process \d+ ended \(signal SIGSEGV\) while loading\.\n.*weights are being read"),
        ("load hang", r"loading took more than 2 s, so it was ended .*waiting for a port"),
    ],
)
def test_an_engine_that_cannot_be_loaded(fault: str, complaint: str) -> None:
    with pytest.raises(EngineError, match=f"(?s){complaint}"):
        IsolatedEngine(FAULTY, "tiny", timeouts=Timeouts(start_s=2), fault=fault)


def test_an_exception_in_a_batch_comes_with_the_log_and_the_engine_lives_on() -> None:
    engine = IsolatedEngine(FAULTY, "tiny", fault="raise", step_s=0.001)
    with pytest.raises(
        EngineError, match=r"(?s)failed in a batch: RuntimeError: CUDA error.*Traceback"
    ) as found:
        engine.generate(BATCH)
    assert "batch 1 of tiny" in str(found.value)
    check_bookkeeping(BATCH, engine.generate(BATCH))
    engine.close()


def test_refusals_come_through_in_their_own_words() -> None:
    engine = EngineSpec(FAULTY, "tiny", fault="refuse").load()
    with pytest.raises(EngineError, match=r"^stub: the batch failed$"):
        engine.generate(BATCH)
    engine.close()
    engine = EngineSpec(FAULTY, "tiny", fault="ask", step_s=0.001).load()
    with pytest.raises(UsageError, match=r"which only its own process can be asked: isolated=False"):
        engine.generate(BATCH)
    engine.close()


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    child = tmp_path / "child"
    pid = os.fork()
    if pid == 0:
        # Ends without a word, as a killed test run does; it must not come back into pytest.
        try:
            IsolatedEngine(FAULTY, "tiny", child=str(child))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    own, other = map(int, child.read_text().split())
    until = time.monotonic() + 10
    while (running(own) or running(other)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not running(own)
    assert not running(other)


def test_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_tokenpower.engines.isolated.engine.PROGRESS_S", 0.05)
    lines: list[str] = []
    hide = progress.show_on(lines.append)
    with EngineSpec(FAULTY, "some/tiny").start():
        pass
    hide()
    assert lines[0] == f"{FAULTY} engine of tiny: loading ... 0 s"
    assert lines[-1].startswith(f"{FAULTY} engine of tiny: loaded in ")


def test_texts_and_arrivals_reach_an_engine_that_knows_them() -> None:
    work = PromptSet(("three small words", "two words"), 4, arrivals=Poisson(100.0, seed=3))
    with EngineSpec("tests.support.faulty:ServingEngine", "tiny", step_s=0.001).start() as engine:
        run = Execution(engine, work)
        assert run.batch.prompts == ((8, 8, 8), (6, 8))
        check_bookkeeping(run.batch, run())
    with EngineSpec(FAULTY, "tiny").start() as engine:
        with pytest.raises(
            UsageError, match=r"takes whole batches, and Poisson\(per_second=100.0, seed=3\) needs"
        ):
            Execution(engine, work)
        texts = Execution(engine, PromptSet(("ab",), 4))
        assert texts.batch.prompts == ((100, 101),)
        assert texts.fingerprint.endswith("-bytes")


def test_in_this_process_where_it_is_asked_for() -> None:
    spec = EngineSpec(FAULTY, "tiny", isolated=False, step_s=0.0, budget=16)
    with spec.start() as engine:
        assert type(engine).__name__ == "FaultyEngine"
        generation = Execution(engine, FixedShape(2, 8, 3, vocab=500))()
        assert generation.tokens.prompt == 16
    with pytest.raises(EngineError, match="after close"):
        engine.generate(BATCH)


@pytest.mark.parametrize(
    ("engine", "error", "complaint"),
    [
        ("vlm", UsageError, r"engine 'vlm': use one of vllm, transformers"),
        ("tests.support.faulty:absent", EngineError, "tests.support.faulty:absent' cannot be imported"),
        ("no_such_module:Engine", EngineError, "No module named 'no_such_module'"),
    ],
)
def test_engines_that_there_are_not(engine: str, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        EngineSpec(engine, "tiny").load()
