"""`tokenpower demo`: a stored baseline of main, a branch that passes and one that fails its build.

With real inference, or with ``--simulated`` on the simulated board, for which nothing but this package is needed.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pytest_tokenpower.cli.scratch import CompletedRun, ScratchRepository
from pytest_tokenpower.core.files import scratch_prefix
from pytest_tokenpower.errors import MeterUnavailable, TokenPowerError, UsageError


@dataclass(frozen=True)
class _Story:
    """What the demo plays: a project, and the change of its settings that makes it dearer."""

    project: str
    before: str
    after: str
    branch: str
    change: str
    seconds_a_run: float
    """On two idle cores, on average."""
    last_run: float
    """How many times as long as the others the run of the dearer branch takes."""


_INFERENCE = _Story("inference", '"dynamic"', '"none"', "no-kv-cache", "switches the KV cache off", 12.0, 1.7)
_SIMULATED = _Story(
    "simulated",
    '"fp8"',
    '"bfloat16"',
    "kv-cache-bf16",
    "goes back from FP8 to bfloat16 in the KV cache",
    2.0,
    1.0,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to keep the scratch repository, how many runs make the baseline, and what measures."""
    parser.add_argument(
        "--simulated",
        action="store_true",
        help="no inference: a simulated board and an engine whose time is foretold, in some seconds and without torch",
    )
    parser.add_argument(
        "--keep",
        metavar="FOLDER",
        type=Path,
        help="make the scratch repository here and keep it (default: only the page of the last run is left)",
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
    if arguments.simulated and arguments.source:
        raise UsageError("--simulated brings its own source: leave --source away")
    if arguments.runs < 1:
        raise UsageError(f"--runs={arguments.runs}: must be at least 1")
    story = _SIMULATED if arguments.simulated else _INFERENCE
    for name in () if arguments.simulated else ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise TokenPowerError(
                f"the demo runs real inference and needs {name}: pip install 'pytest-tokenpower[demo]'; "
                "`tokenpower demo --simulated` needs nothing more"
            )
    with _stage(arguments.keep) as folder:
        code = _Demo(story, folder, arguments.source, arguments.runs).play()
    page = folder / _PAGE
    if page.exists():
        print(f"The page of the last run, to open in a browser: {page}")
    if not arguments.keep:
        print("`--keep=FOLDER` keeps the repository, too.")
    return code


_PAGE = "energy.html"


@contextmanager
def _stage(keep: Path | None) -> Iterator[Path]:
    """Give the folder of the scratch repository; of one that is not kept, the page is left."""
    if keep:
        yield keep
        return
    folder = Path(tempfile.mkdtemp(prefix=scratch_prefix("demo")))
    try:
        yield folder
    finally:
        for entry in folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
        if not (folder / _PAGE).exists():
            shutil.rmtree(folder, ignore_errors=True)


class _Demo:
    def __init__(self, story: _Story, folder: Path, source: str | None, runs: int) -> None:
        self._story, self._folder, self._runs = story, folder.absolute(), runs
        self._step = 0
        self._newest_s = 0.0
        self._began = time.monotonic()
        if story is _SIMULATED:
            self._source, what = (
                "simulated:virtual",
                "a SIMULATED board: no figure of what follows is measured",
            )
        else:
            self._source, what = (source, source) if source else _best_source()
        print(f"Energy source: {what}", flush=True)
        seconds = story.seconds_a_run * (runs + 2)
        print(f"{runs + 2} runs of pytest, about {seconds:.0f} s on two idle cores.", flush=True)

    def play(self) -> int:
        """Return the story in its order."""
        story, environment = self._story, self._environment()
        repository = ScratchRepository(self._folder / "repository")

        def pytest(*arguments: str) -> CompletedRun:
            done = repository.pytest(
                *arguments, f"--energy-source={self._source}", environment=environment, echo=True
            )
            self._newest_s = done.seconds
            return done

        files = {
            name: _project_file(f"{story.project}/{name}") for name in ("engine_settings.py", "test_chat.py")
        }
        repository.write(files)
        for number in range(self._runs):
            commit = repository.commit(f"commit {number + 1} of main")
            self._say(
                f"main@{commit}: pytest --energy-autosave  (run {number + 1} of {self._runs} of the baseline)"
            )
            if pytest("-q", "--energy-autosave").code != 0:
                raise TokenPowerError("the demo's test failed on main; its output is above")
        repository.branch("unchanged")
        repository.commit("a change that leaves the engine alone")
        self._say("branch `unchanged`: pytest --energy-baseline=main")
        unchanged = pytest("--energy-baseline=main", "--no-header")
        repository.branch(story.branch)
        dearer = files["engine_settings.py"].replace(story.before, story.after)
        repository.write({"engine_settings.py": dearer})
        repository.commit(story.change)
        self._say(f"branch `{story.branch}` {story.change}: pytest --energy-baseline=main")
        page = f"--energy-report={self._folder / _PAGE}"
        regressed = pytest("--energy-baseline=main", "--no-header", page)
        return self._conclude(unchanged, regressed)

    def _environment(self) -> Mapping[str, str]:
        if self._story is _SIMULATED:
            return {}
        from pytest_tokenpower.models.random_weights import write_random_model

        print("Writing a small Llama with random weights (no download).", flush=True)
        return {"DEMO_MODEL": str(write_random_model(self._folder / "model", "small", dtype="float32"))}

    def _conclude(self, unchanged: CompletedRun, regressed: CompletedRun) -> int:
        caught = regressed.code == 1 and "REGRESSED" in regressed.output
        passed = unchanged.code == 0
        print(f"\nThe unchanged branch {'passed' if passed else 'FAILED'} (exit {unchanged.code}).")
        print(
            f"The branch that {self._story.change} "
            + (f"failed its build, as it should (exit {regressed.code})." if caught else "was NOT caught.")
        )
        if not caught and self._story is _INFERENCE:
            print(
                "The verdict above says why. The more others use this machine, the more its figures scatter: try "
                "again when it is idle, or with a longer baseline (--runs=5)."
            )
        print(f"{time.monotonic() - self._began:.0f} s in all.")
        return 0 if caught and passed else 1

    def _say(self, text: str) -> None:
        self._step += 1
        said = f"[{self._step}/{self._runs + 2}] {time.monotonic() - self._began:.0f} s"
        if self._newest_s:
            # The first run also fills the system's file cache: the newest foretells best.
            left = self._newest_s * (self._runs + 2 - self._step + self._story.last_run)
            said += f", about {left:.0f} s left"
        print(f"\n{said}: {text}", flush=True)


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
