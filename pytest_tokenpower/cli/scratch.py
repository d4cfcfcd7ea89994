"""A scratch git repository in which energy tests are run for real: the stage of the demo and of the GPU benchmarks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pytest_tokenpower.errors import TokenPowerError
from pytest_tokenpower.store.git import run_git


@dataclass(frozen=True)
class CompletedRun:
    """A pytest run that has ended."""

    code: int
    output: str
    seconds: float


class ScratchRepository:
    """A git repository in ``path`` with a branch `main`, made for this one purpose."""

    def __init__(self, path: Path) -> None:
        if shutil.which("git") is None:
            raise TokenPowerError("git is not installed: the baseline is found through git history")
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._git("init", "--quiet")
        self._git("symbolic-ref", "HEAD", "refs/heads/main")
        self._git("config", "user.name", "tokenpower demo")
        self._git("config", "user.email", "demo@localhost")
        self._git("config", "commit.gpgsign", "false")
        self.write({".gitignore": "__pycache__/\n"})

    def write(self, files: Mapping[str, str]) -> None:
        """Write files, relative to the repository."""
        for name, text in files.items():
            (self.path / name).write_text(text, encoding="utf-8")

    def commit(self, message: str) -> str:
        """Commit everything, also nothing; returns the commit's short hash."""
        self._git("add", "--all")
        self._git("commit", "--quiet", "--allow-empty", "--message", message)
        return self._git("rev-parse", "--short", "HEAD")

    def branch(self, name: str) -> None:
        """Begin a branch at ``main`` and check it out."""
        self._git("checkout", "--quiet", "--force", "-B", name, "main")

    def pytest(
        self, *arguments: str, environment: Mapping[str, str] | None = None, echo: bool = False
    ) -> CompletedRun:
        """Run pytest in the repository, in a process of its own; ``echo`` shows its output as it comes."""
        plugin = [] if _installed() else ["-p", "pytest_tokenpower.plugin"]
        command = [sys.executable, "-m", "pytest", *plugin, "-p", "no:cacheprovider", *arguments]
        began = time.monotonic()
        with subprocess.Popen(
            command,
            cwd=self.path,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            lines = []
            try:
                for line in process.stdout:
                    lines.append(line)
                    if echo:
                        print(line, end="", flush=True)
            except BaseException:
                process.terminate()
                raise
        return CompletedRun(process.returncode, "".join(lines), time.monotonic() - began)

    def _git(self, *arguments: str) -> str:
        done = run_git(self.path, *arguments)
        if done.code != 0:
            raise TokenPowerError(f"{self.path}: git {arguments[0]} failed: {done.complaint}")
        return done.stdout.strip()


def _installed() -> bool:
    # Run from a checkout that is only on the path, pytest does not find the plugin by itself.
    return any(point.name == "tokenpower" for point in metadata.entry_points(group="pytest11"))
