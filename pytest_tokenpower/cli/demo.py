"""`tokenpower demo`: real inference, a stored baseline of main, a branch that passes and one that fails its build."""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from contextlib import ExitStack
from importlib import resources
from pathlib import Path

from pytest_tokenpower.cli.scratch import CompletedRun, ScratchRepository
from pytest_tokenpower.core.files import scratch_prefix
from pytest_tokenpower.errors import MeterUnavailable, TokenPowerError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to keep the scratch repository, and how many runs make the baseline."""
    parser.add_argument(
        "--keep", metavar="FOLDER", type=Path, help="make the scratch repository here and keep it"
    )
    parser.add_argument(
        "--runs", type=int, default=3, help="runs stored as the baseline of main (default: 3)"
    )
    parser.add_argument(
        "--source",
        help="what measures (default: the GPU, then RAPL, then the CPU-time model, which is no measurement)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Play the demo; 0 when the unchanged branch passed and the regression failed its build."""
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise TokenPowerError(
                f"the demo runs real inference and needs {name}: pip install 'pytest-tokenpower[demo]'"
            )
    with ExitStack() as stack:
        folder = arguments.keep or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix=scratch_prefix("demo")))
        )
        return _Demo(Path(folder), arguments.source, arguments.runs).play()


class _Demo:
    def __init__(self, folder: Path, source: str | None, runs: int) -> None:
        self._folder = folder
        self._runs = runs
        self._step = 0
        self._began = time.monotonic()
        self._source, what = (source, source) if source else _best_source()
        print(f"Energy source: {what}", flush=True)

    def play(self) -> int:
        """Return the story in its order."""
        from pytest_tokenpower.models.random_weights import write_random_model

        self._say("writing a small Llama with random weights (no download)")
        self._model = write_random_model(self._folder / "model", "small", dtype="float32")
        repository = self._repository = ScratchRepository(self._folder / "repository")
        repository.write({name: _project_file(name) for name in ("engine_settings.py", "test_chat.py")})
        for number in range(self._runs):
            commit = repository.commit(f"commit {number + 1} of main")
            self._say(
                f"main@{commit}: pytest --energy-autosave  (run {number + 1} of {self._runs} of the baseline)"
            )
            if self._pytest("-q", "--energy-autosave").code != 0:
                raise TokenPowerError("the demo's test failed on main; its output is above")
        repository.branch("unchanged")
        repository.commit("a change that leaves the engine alone")
        self._say("branch `unchanged`: pytest --energy-baseline=main")
        unchanged = self._pytest("--energy-baseline=main", "--no-header")
        repository.branch("no-kv-cache")
        repository.write(
            {"engine_settings.py": _project_file("engine_settings.py").replace('"dynamic"', '"none"')}
        )
        repository.commit("switch the KV cache off")
        self._say("branch `no-kv-cache` switches the KV cache off: pytest --energy-baseline=main")
        regressed = self._pytest("--energy-baseline=main", "--no-header")
        return self._conclude(unchanged, regressed)

    def _pytest(self, *arguments: str) -> CompletedRun:
        return self._repository.pytest(
            *arguments,
            f"--energy-source={self._source}",
            environment={"DEMO_MODEL": str(self._model)},
            echo=True,
        )

    def _conclude(self, unchanged: CompletedRun, regressed: CompletedRun) -> int:
        caught = regressed.code == 1 and "REGRESSED" in regressed.output
        passed = unchanged.code == 0
        print(f"\nThe unchanged branch {'passed' if passed else 'FAILED'} (exit {unchanged.code}).")
        print(
            "The branch without a KV cache "
            + (f"failed its build, as it should (exit {regressed.code})." if caught else "was NOT caught.")
        )
        print(f"{time.monotonic() - self._began:.0f} s in all.")
        return 0 if caught and passed else 1

    def _say(self, text: str) -> None:
        self._step += 1
        seconds = time.monotonic() - self._began
        print(f"\n[{self._step}/{self._runs + 3}] {seconds:.0f} s: {text}", flush=True)


def _best_source() -> tuple[str, str]:
    from pytest_tokenpower.meters import sources

    try:
        collector, devices = sources.start("auto")
    except MeterUnavailable:
        return (
            "model",
            "the CPU-time MODEL: this machine has no energy meter, so joules are modelled, not measured",
        )
    collector.stop()
    return "auto", f"{devices[0].meter} measures {', '.join(device.name for device in devices)}"


def _project_file(name: str) -> str:
    return (resources.files("pytest_tokenpower.cli") / "demo_project" / name).read_text(encoding="utf-8")
