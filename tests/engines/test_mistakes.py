"""Mistakes of somebody who tests an engine for the first time, and interruptions: what is said, and what is left."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, SimpleNamespace

import pytest

from pytest_tokenpower.core.subprocesses import ProcessGroup, group_members
from pytest_tokenpower.engines._adapter import cannot_load, check_batch
from pytest_tokenpower.engines.execution import Execution
from pytest_tokenpower.engines.isolated.engine import IsolatedEngine
from pytest_tokenpower.engines.registry import start
from pytest_tokenpower.engines.spec import EngineSpec
from pytest_tokenpower.errors import EngineError, UsageError
from pytest_tokenpower.models.checkpoint import model_name, require_model, weights_name
from pytest_tokenpower.runner.compare import CompareArgs
from pytest_tokenpower.workloads import FixedShape, GivenBatch, Poisson, PromptSet
from pytest_tokenpower.workloads.base import Batch
from tests.support.contract import prompts
from tests.support.projects import Project
from tests.support.stub import StubEngine

FAULTY = "tests.support.faulty:FaultyEngine"
BATCH = Batch(prompts(2, 12), 6)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Interrupted(BaseException):
    pass


def interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise Interrupted


def test_no_batch_is_answered_with_an_interrupted_ones_answer() -> None:
    """As pytest-timeout does it: the test ends, and the next one has the engine of the same fixture."""
    engine = IsolatedEngine(FAULTY, "tiny", step_s=0.2)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Interrupted):
            engine.generate(BATCH)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert group_members(engine.pid) == ()
    with pytest.raises(EngineError, match="was interrupted"):
        engine.generate(Batch(prompts(2, 12), 6))
    engine.close()


@pytest.mark.parametrize("isolated", [False, True])
def test_an_option_that_the_engine_does_not_have(isolated: bool) -> None:
    with pytest.raises(UsageError) as found:
        EngineSpec(FAULTY, "tiny", isolated=isolated, quantisation="fp8").load()
    assert str(found.value) == (
        f"engine {FAULTY!r}: got an unexpected keyword argument 'quantisation'; its options are budget, step_s, fault, "
        "at, quantization, weights, devices, child"
    )


def test_a_type_error_of_the_engine_itself_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ownengine.py").write_text(
        "def wrong(model):\n    return len(5)\ndef none(model):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EngineError, match=r"could not be loaded: TypeError: object of type 'int' has no len"):
        EngineSpec("ownengine:wrong", "tiny").load()
    with pytest.raises(EngineError, match="engine 'mine', ownengine:absent, cannot be imported"):
        start("ownengine:absent", "tiny", {}, called="mine")
    with pytest.raises(
        UsageError, match=r"engine 'ownengine:none': its factory gives a NoneType, and an engine"
    ):
        EngineSpec("ownengine:none", "tiny", isolated=False).load()


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (lambda: EngineSpec(None, "tiny"), "engine None: use one of vllm, transformers"),  # type: ignore[arg-type]
        (lambda: EngineSpec("vllm", None), r"EngineSpec\('vllm', None\): the model is"),  # type: ignore[arg-type]
        (lambda: EngineSpec("vllm", "tiny", timeouts=5), r"timeouts=5\): give Timeouts\(start_s"),  # type: ignore[arg-type]
        (lambda: EngineSpec("vllm", "tiny", env={"A": 1}), "values of the environment are text"),  # type: ignore[dict-item]
        (
            lambda: EngineSpec(FAULTY, "tiny", fault=lambda: 0).load(),
            "cannot be sent to its process: .*pickle",
        ),
        (lambda: Poisson("8"), r"Poisson\(per_second='8'\): must be a positive number"),  # type: ignore[arg-type]
        (lambda: PromptSet.read("a.csv", new_tokens=4, limit=-1), r"limit=-1\): must be an integer"),
        (
            lambda: Execution(StubEngine(), GivenBatch([[5]], 2, arrivals=8)),  # type: ignore[arg-type]
            r"GivenBatch\(arrivals=8\): give AllAtOnce\(\)",
        ),
    ],
)
def test_values_of_the_wrong_kind(spec: Callable[[], object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        spec()


def test_a_model_of_the_registry_is_not_a_folder_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        EngineError, match=r"write_random_model\(folder, 'llama-3.1-8b'\).*'meta-llama/Llama-3.1-8B'"
    ):
        require_model("llama-3.1-8b")
    assert require_model("gpt2") == "gpt2"
    (tmp_path / "llama-3.1-8b").mkdir()
    assert require_model("llama-3.1-8b") == "llama-3.1-8b"
    (tmp_path / "llama.gguf").write_bytes(b"GGUF")
    for name in (str(tmp_path / "llama.gguf"), "llama.gguf"):
        with pytest.raises(EngineError, match=r"llama\.gguf: is a file, and a model is a folder"):
            require_model(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert require_model("~/llama-3.1-8b") == str(tmp_path / "llama-3.1-8b")


def test_what_an_engine_would_not_load_comes_with_its_options(tmp_path: Path) -> None:
    options = {"quantization": "fp8", "dtype": None, "tensor_parallel_size": 2}
    said = str(cannot_load(str(tmp_path), "vLLM", options, RuntimeError("no such kernel")))
    assert (
        said
        == f"{tmp_path}: vLLM cannot load it: no such kernel\n  with quantization='fp8', tensor_parallel_size=2"
    )
    said = str(cannot_load("models/nope", "vLLM", {}, AssertionError()))
    assert said.splitlines()[0] == "models/nope: vLLM cannot load it: AssertionError"
    assert "There is no folder 'models/nope' here" in said


def test_a_vocabulary_that_is_too_small_says_which_shape_fits() -> None:
    batch = FixedShape(1, 64, 4).to_batch()
    with pytest.raises(EngineError, match=r"FixedShape\(\.\.\., vocab=512\) stays inside"):
        check_batch(batch, engine="stub", vocab_size=512, max_positions=None)


@pytest.mark.parametrize("isolated", [False, True])
def test_a_workload_is_no_batch(isolated: bool) -> None:
    with (
        EngineSpec(FAULTY, "tiny", isolated=isolated).start() as engine,
        pytest.raises(
            UsageError, match=r"generate\(FixedShape\).*give FixedShape\(\.\.\.\)\.to_batch\(\), or"
        ),
    ):
        engine.generate(FixedShape(1, 4, 2))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"generate\(list\).*give Batch\(prompts"):
        check_batch([[5]], engine="stub", vocab_size=None, max_positions=None)  # type: ignore[arg-type]


def snapshot(cache: Path) -> Path:
    folder = cache / "models--us--tiny" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_folder_of_the_hubs_cache_is_the_model_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM goes by the folder where HF_HUB_OFFLINE is set: it must be the same key."""
    folder = snapshot(tmp_path)
    assert (model_name(str(folder)), weights_name(str(folder))) == ("us/tiny", COMMIT)
    monkeypatch.chdir(tmp_path)

    def cached(model: str, _file: str, *, revision: str | None) -> str | None:
        if "/" not in model:
            raise ValueError(model)
        return str(folder / "config.json") if revision in (None, "main") else None

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(try_to_load_from_cache=cached))
    assert (model_name("us/tiny"), weights_name("us/tiny")) == ("us/tiny", COMMIT)
    assert weights_name("us/tiny", "main") == COMMIT
    assert weights_name("us/tiny", "v2") == "v2"
    assert weights_name("tiny") == "hub"


LOG = """\
(Worker pid=23308) ERROR 11-23 00:19:42 [multiproc_executor.py:953]     return self._op(*args, **kwargs)
(Worker pid=23308) ERROR 11-23 00:19:42 [multiproc_executor.py:953] RuntimeError: no such kernel: fp8
Traceback (most recent call last):
  File "a.py", line 1, in main
    raise ValueError: not at the beginning of a line
RuntimeError: no such kernel: fp8
torch.OutOfMemoryError: CUDA out of memory
pytest_tokenpower.errors.EngineError: tiny: it failed, see above
"""


def test_the_causes_in_a_log(tmp_path: Path) -> None:
    group = ProcessGroup(["true"], log=tmp_path / "log.txt", env=dict(os.environ))
    group.end(5)
    group.log.write_text(LOG)
    said = "tiny: it failed, see above"
    assert group.raised(0, said) == [
        "RuntimeError: no such kernel: fp8",
        "torch.OutOfMemoryError: CUDA out of memory",
    ]
    assert group.raised(LOG.index("torch."), said) == ["torch.OutOfMemoryError: CUDA out of memory"]
    assert group.raised(len(LOG), said) == []


VAGUE = """
from tests.support.faulty import FaultyEngine
from pytest_tokenpower.errors import EngineError


class Vague(FaultyEngine):
    def __init__(self, model, loads=True):
        super().__init__(model, step_s=0.001)
        if not loads:
            self.fail()

    def fail(self):
        print("RuntimeError: the real reason", flush=True)
        try:
            raise OSError("see above")
        except OSError as error:
            raise EngineError(f"it failed: {error}") from error

    def generate(self, batch):
        self.fail()
"""


@pytest.mark.parametrize("loads", [False, True])
def test_an_engine_that_points_to_its_log_comes_with_what_stands_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: bool
) -> None:
    (tmp_path / "vague.py").write_text(VAGUE)
    monkeypatch.syspath_prepend(str(tmp_path))
    with (
        pytest.raises(EngineError) as found,
        EngineSpec("vague:Vague", "tiny", loads=loads).start() as engine,
    ):
        engine.generate(BATCH)
    first, where, cause = str(found.value).splitlines()
    assert (first, cause) == ("it failed: see above", "  RuntimeError: the real reason")
    log = Path(where.partition("(")[2].partition(")")[0])
    assert log.exists(), "a reader was sent there"
    log.unlink()
    log.parent.rmdir()


def test_without_a_reader_the_log_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(UsageError):
        EngineSpec(FAULTY, "tiny", quantisation="fp8").load()
    assert list(tmp_path.iterdir()) == []


MISTAKES = """
from pytest_tokenpower.engines.spec import EngineSpec
from pytest_tokenpower.workloads import FixedShape

WORK = FixedShape(1, 4, 2)


@pytest.fixture
def engine():
    with EngineSpec("tests.support.faulty:FaultyEngine", "tiny", isolated=False, fualt="load").start() as started:
        yield started


def test_fixture(energy, engine):
    energy.run(engine, WORK)


def test_call(energy):
    energy(EngineSpec("vllm", "tiny"), WORK)
"""


def test_a_mistake_is_told_without_our_frames(project: Project) -> None:
    project.tests(MISTAKES)
    result, run = project.measure()
    result.assert_outcomes(failed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "engine 'tests.support.faulty:FaultyEngine': got an unexpected keyword argument 'fualt'; its options are *",
            "*test_call: energy(EngineSpec): what it measures is called; an engine is measured by energy.run(*",
        ]
    )
    result.stdout.no_fnmatch_line("*pytest_tokenpower*.py:*")
    assert not any(each.comparable for each in run.measurements)


def test_transformers_on_a_device_that_is_not_there(models: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("the device is there")
    from pytest_tokenpower.engines.transformers import TransformersEngine
    from pytest_tokenpower.models import write_random_model

    with pytest.raises(EngineError, match=r"(?s)transformers cannot load it: .*with device='cuda'"):
        TransformersEngine(write_random_model(models / "tiny", "tiny"), device="cuda")


def test_a_comparison_of_engines_without_work_says_what_is_missing() -> None:
    spec = EngineSpec(FAULTY, "tiny")
    with pytest.raises(
        UsageError, match=r"candidate=EngineSpec.*nothing to do: give EngineSpec\(\.\.\.\)\.workload"
    ):
        CompareArgs.of("t.py::test_x", spec.workload(BATCH), spec, None, None, 1, None)
