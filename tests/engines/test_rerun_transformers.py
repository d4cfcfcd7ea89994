"""--energy-rerun-baseline with real inference: two commits of a repository, the transformers engine on the CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from pytest_tokenpower.core.records import decode_run
from pytest_tokenpower.models import write_random_model

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.real_engine

TEST = """
import os
import pytest
import engine_settings

# CPU time on a shared machine scatters by 10 % and more; without its cache the engine takes several times as much.
@pytest.mark.power_budget(regression="60%", min_rounds=3, max_rounds=3)
@pytest.mark.parametrize("name", ["short", "long"])
def test_chat(energy, name):
    # Imported here: the run that starts the others runs no test itself.
    from pytest_tokenpower.workloads.base import Batch
    from pytest_tokenpower.engines.transformers import TransformersEngine

    engine = TransformersEngine(
        os.environ["MODEL"], device="cpu", cache=getattr(engine_settings, name.upper()), threads=1
    )
    prompt = [10 + at % 400 for at in range(400 if name == "long" else 48)]
    energy(engine.generate, Batch(prompts=[prompt] * 2, new_tokens=32))
    engine.close()
"""

SETTINGS = 'SHORT = "dynamic"\nLONG = "{}"\n'
OPTIONS = (
    "-p", "no:hypothesispytest", "-p", "no:rerunfailures", "-p", "no:xdist", "--energy-source=model",
    "--energy-rerun-baseline", "--energy-baseline=main",
)  # fmt: skip


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=n", "-c", "user.email=e@x", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository whose main has KV caches; HEAD is a branch on top of it."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "test_chat.py").write_text(TEST)
    (folder / "engine_settings.py").write_text(SETTINGS.format("dynamic"))
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / ".gitignore").write_text("__pycache__\n")
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "with KV caches")
    git(folder, "switch", "--quiet", "--create", "change")
    return folder


class Run:
    """`pytest --energy-rerun-baseline` in the repository, with a temporary folder of its own."""

    def __init__(self, repository: Path, models: Path, *arguments: str) -> None:
        self.repository = repository
        self.temporary = repository.parent / "temporary"
        self.temporary.mkdir()
        model = write_random_model(models / "tiny-rerun", "tiny", dtype="float32")
        # From a checkout that is only on the path, pytest does not find the plugin by itself.
        found = any(point.name == "tokenpower" for point in metadata.entry_points(group="pytest11"))
        plugin = [] if found else ["-p", "pytest_tokenpower.plugin"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *plugin, *OPTIONS, *arguments],
            cwd=repository,
            env={**os.environ, "MODEL": str(model), "TMPDIR": str(self.temporary), "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A background job of a shell ignores the interrupt, and its children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )

    def end(self) -> tuple[int, str]:
        """Its exit status and output, when it has left nothing behind."""
        output, _ = self.process.communicate()
        assert git(self.repository, "worktree", "list", "--porcelain").count("worktree ") == 1
        assert git(self.repository, "status", "--porcelain") == ""
        left = {path.name for path in self.temporary.iterdir() if not path.name.startswith("torchinductor")}
        assert left <= {f"tokenpower-locks-{os.getuid()}"}
        return self.process.returncode, output


def test_a_commit_that_switches_the_cache_off_is_dearer_where_it_does(repository: Path, models: Path) -> None:
    """The cache of the long prompts is switched off; that of the short ones stays.

    How surely two runs a side tell that is the machine's affair: on a busy one the verdict may be inconclusive.
    """
    (repository / "engine_settings.py").write_text(SETTINGS.format("none"))
    git(repository, "commit", "--quiet", "--all", "--message", "no KV cache for long prompts")
    record = repository.parent / "run.json"
    code, output = Run(repository, models, f"--energy-json={record}").end()
    assert "energy: [4/4] main@" in output
    assert "MODELLED, not measured" in output
    run = decode_run(record.read_bytes(), source="the run")
    verdicts = {one.test.rpartition("[")[2]: one.verdicts[0] for one in run.measurements}
    long, short = verdicts["long]"], verdicts["short]"]
    assert (long.change or 0.0) > 2.0, output
    assert (short.change or 0.0) < (long.change or 0.0) / 2, output
    assert long.kind in ("regressed", "inconclusive"), output
    failed = "regressed" in (long.kind, short.kind)
    assert code == (pytest.ExitCode.TESTS_FAILED if failed else pytest.ExitCode.OK), output


def test_an_interrupt_leaves_nothing_behind(repository: Path, models: Path) -> None:
    git(repository, "commit", "--quiet", "--allow-empty", "--message", "the same")
    run = Run(repository, models)
    assert run.process.stdout is not None
    lines = []
    for line in iter(run.process.stdout.readline, ""):
        lines.append(line)
        if "[1/4]" in line:
            break
    assert "[1/4]" in lines[-1], lines
    # Into the child's run: it has been started, and is most likely importing torch.
    time.sleep(3.0)
    os.kill(run.process.pid, signal.SIGINT)
    code, _ = run.end()
    assert code == pytest.ExitCode.INTERRUPTED
