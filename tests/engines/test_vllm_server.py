"""vLLM's server: how it is started, every way in which it can fail to, and a real one where vLLM is installed."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_tokenpower.core import progress
from pytest_tokenpower.core.subprocesses import group_members
from pytest_tokenpower.engines import Timeouts
from pytest_tokenpower.engines.execution import Execution
from pytest_tokenpower.engines.spec import EngineSpec
from pytest_tokenpower.engines.vllm.server import VllmServer, command_line
from pytest_tokenpower.errors import EngineError, UsageError
from pytest_tokenpower.models import write_random_model
from pytest_tokenpower.workloads import Concurrency, FixedShape
from pytest_tokenpower.workloads.base import Batch
from tests.support.contract import VOCAB, check_seats, prompts
from tests.support.http_stub import write_model

BATCH = Batch(prompts(3, 24), 6)

MODULE = '''
"""Stands for vLLM's server: the stub, with the host, port and key that vLLM would take."""
import os, subprocess, sys, time

print("arguments", *sys.argv[1:], flush=True)
print("multiprocessing", os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING"), flush=True)
fault = os.environ.get("STUB_FAULT", "")
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
if fault == "exit":
    sys.exit("ValueError: the model does not fit")
if fault == "module":
    import uvicorn_that_is_not_there
if fault == "hang":
    time.sleep(600)
from tests.support import http_stub

option = dict(zip(sys.argv[1:], sys.argv[2:]))
model = option["--model"]
server = http_stub.StubServer(
    model=model, root=model, key=os.environ["VLLM_API_KEY"], fault=fault, at=4, port=int(option["--port"])
)
if fault == "die":
    while len(server.bodies) < 4:
        time.sleep(0.005)
    print("CUDA error: an illegal memory access was encountered", flush=True)
    os._exit(7)
time.sleep(600)
'''


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a model's folder, and a vLLM that is the stub."""
    package = tmp_path / "site" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / "api_server.py").write_text(MODULE)
    monkeypatch.syspath_prepend(package.parents[2])
    importlib.invalidate_caches()
    return write_model(tmp_path)


def test_a_server_from_start_to_end(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    lines: list[str] = []
    hide = progress.show_on(lines.append)
    spec = EngineSpec("vllm-server", model, max_num_seqs=4, enforce_eager=True)
    with spec.start() as engine:
        assert isinstance(engine, VllmServer)
        pid = engine.pid
        assert len(group_members(pid)) > 1
        log = engine._group.log.read_text()
        identity = engine.identity
        assert engine.device_ids == ()
        assert engine.remote_host is None
        generation = Execution(engine, FixedShape(3, 24, 6, vocab=500, arrivals=Concurrency(2)))()
        assert [len(ids) for ids in generation.token_ids] == [6] * 3
        with pytest.raises(EngineError, match="prompt 0 holds token ids outside 0 to 511"):
            engine.generate(Batch([[VOCAB]], 1))
    hide()
    engine.close()
    assert group_members(pid) == ()
    assert lines[-1].startswith("vllm-server engine of tiny: started in ")
    assert f"--model {model} --host 127.0.0.1 --port " in log
    assert (
        "--no-enable-prefix-caching --disable-uvicorn-access-log --skip-tokenizer-init --max-num-seqs 4 --enforce-eager"
    ) in log
    # A server's engine core is always in a process of its own.
    assert "multiprocessing None" in log
    assert (identity.engine, identity.version, identity.model) == ("vllm-server", "0.32.0", "tiny")
    assert identity.axes["weights"] == "random"
    assert identity.facts["max_num_batched_tokens"] == 512
    assert "endpoint" not in identity.facts
    with pytest.raises(EngineError, match=r"generate\(\) after close\(\), or after its process ended"):
        engine.generate(BATCH)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (
            "exit",
            r"its process ended while starting .*exit status 1\)\nThe end of its log .*the model does not fit",
        ),
        (
            "module",
            r"its process ended while starting: uvicorn_that_is_not_there is not installed: "
            r"pip install 'pytest-tokenpower\[vllm\]' .*exit status 1\)\nThe end of its log",
        ),
        (
            "hang",
            r"starting took more than 1\.5 s, so it was ended .*\nThe end of its log .*\narguments --model",
        ),
    ],
)
def test_a_server_that_does_not_start(model: Path, fault: str, complaint: str) -> None:
    with pytest.raises(EngineError, match=f"(?s)vllm-server engine of tiny: {complaint}") as found:
        VllmServer(
            model, env={"STUB_FAULT": fault}, timeouts=Timeouts(start_s=1.5 if fault == "hang" else 20)
        )
    pid = int(str(found.value).partition("(process ")[2].partition(":")[0])
    assert group_members(pid) == ()


def test_a_server_that_dies_in_a_batch_is_gone_with_its_children(model: Path) -> None:
    engine = VllmServer(model, env={"STUB_FAULT": "die"})
    engine.generate(BATCH)
    complaint = r"(?s)/v1/completions.*exit status 7\)\nThe end of its log .*illegal memory access"
    with pytest.raises(EngineError, match=complaint):
        engine.generate(BATCH)
    assert group_members(engine.pid) == ()
    with pytest.raises(EngineError, match="after its process ended"):
        engine.generate(BATCH)
    engine.close()


def test_a_batch_that_fails_leaves_the_server_as_it_is(model: Path) -> None:
    engine = VllmServer(model, env={"STUB_FAULT": "500"})
    engine.generate(BATCH)
    with pytest.raises(EngineError, match="answered 500") as found:
        engine.generate(BATCH)
    assert "The end of its log" not in str(found.value)
    assert len(engine.generate(BATCH).token_ids) == 3
    engine.close()


def test_the_server_ends_with_the_tests(model: Path, tmp_path: Path) -> None:
    number = tmp_path / "number"
    pid = os.fork()
    if pid == 0:
        # Ends without a word, as a killed test run does; it must not come back into pytest.
        try:
            number.write_text(str(VllmServer(model).pid))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    until = time.monotonic() + 10
    while group_members(int(number.read_text())) and time.monotonic() < until:
        time.sleep(0.02)
    assert group_members(int(number.read_text())) == ()


def test_options_that_are_not_the_callers(model: Path) -> None:
    with pytest.raises(UsageError, match="port= is its own to choose"):
        VllmServer(model, port=8000)


def test_without_vllm_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        EngineError, match=r"the vllm-server engine needs .*pip install 'pytest-tokenpower\[vllm\]'"
    ):
        VllmServer(write_model(tmp_path))


def test_arguments_become_options() -> None:
    arguments: dict[str, Any] = {
        "max_model_len": 4096,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "dtype": None,
        "download_dir": Path("/models"),
        "compilation_config": {"mode": 0},
        "allowed_origins": ["a", "b"],
    }
    assert " ".join(command_line(arguments)) == (
        "--max-model-len 4096 --enforce-eager --no-enable-prefix-caching --download-dir /models "
        '--compilation-config {"mode": 0} --allowed-origins a b'
    )


def runs_a_server() -> bool:
    return all(
        importlib.util.find_spec(name) for name in ("vllm", "uvicorn", "model_hosting_container_standards")
    )


@pytest.mark.skipif(not runs_a_server(), reason="vLLM, or what its server needs, is not installed")
class TestRealServer:
    """One start of a real vLLM, which takes half a minute: everything about it in one test."""

    def test_tokens_and_steps(self, models: Path, tmp_path: Path) -> None:
        model = write_random_model(models / "tiny-float32", "tiny", dtype="float32")
        env = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_RPC_BASE_PATH": str(tmp_path),
            "HF_HUB_OFFLINE": "1",
        }
        options: dict[str, Any] = {
            "dtype": "float32",
            "max_model_len": 512,
            "max_num_seqs": 16,
            "enforce_eager": True,
        }
        work = FixedShape(4, 24, 8, vocab=500)
        with EngineSpec("vllm-server", model, env=env, **options).start() as engine:
            assert isinstance(engine, VllmServer)
            identity = engine.identity
            first, again = (Execution(engine, work)() for _ in range(2))
            arrived = engine.serve(work.to_batch(), Concurrency(1))
            device_ids, pid = engine.device_ids, engine.pid
        assert group_members(pid) == ()
        assert identity.engine == "vllm-server"
        assert identity.version[0].isdigit()
        assert identity.model == "tiny"
        assert identity.axes == {
            "dtype": "float32",
            "quantization": None,
            "kv_cache_dtype": "float32",
            "tensor_parallel": 1,
            "pipeline_parallel": 1,
            "weights": "random",
        }
        assert identity.facts["prefix_caching"] is False
        assert identity.facts["max_model_len"] == 512
        assert device_ids == ()
        assert first.token_ids == again.token_ids == arrived.token_ids
        assert [len(ids) for ids in first.token_ids] == [8] * 4
        for generation in (first, again, arrived):
            assert not generation.steps_exact
            assert sum(step.prompt_tokens for step in generation.steps) == 96
            assert sum(step.generated_tokens for step in generation.steps) == 28
        check_seats(work.to_batch(), arrived, 1)
