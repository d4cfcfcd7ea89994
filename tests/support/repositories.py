"""Runs to store, and real git repositories to store them for."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from pytest_tokenpower.core.records import Figure, MeasurementRecord, PhaseRecord, RoundRecord, RunRecord
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.store.store import Store

TEST = "tests/energy/test_chat.py::test_chat[bf16]"
KEY: dict[str, Fact] = {
    "schema": 1,
    "provenance": "measured",
    "scope": "gpu",
    "gpu.name": "NVIDIA H100",
    "gpu.power_limit_watts": 700,
    "axis.quantization": "none",
}


def measurement(
    test: str = TEST, key: Mapping[str, Fact] = KEY, *, joules: float = 100.0, comparable: bool = True
) -> MeasurementRecord:
    rounds = tuple(
        RoundRecord(
            start_ns=10**12 + number,
            seconds=1.25,
            joules=joules + number / 7,
            stderr_joules=0.5,
            prompt_tokens=64,
            generated_tokens=256,
            phases={"decode": PhaseRecord(joules, 0.1, 1.0)},
            temperature_celsius=61.5,
        )
        for number in range(3)
    )
    figures = {"joules_per_token": Figure(joules / 256, 0.01)}
    return MeasurementRecord(test, dict(key), "measured", "gpu", "ring", rounds, comparable, figures=figures)


def run(
    number: int = 0,
    *measurements: MeasurementRecord,
    commit: str | None = None,
    dirty: bool | None = False,
    name: str | None = None,
    root: str | None = None,
) -> RunRecord:
    """Return the run that was made ``number`` minutes after midnight; its id tells the number."""
    return RunRecord(
        id=f"{number:08x}-0000-4000-8000-000000000000",
        # Two hours apart: each on an occasion of its own.
        created=(datetime(2025, 11, 22, tzinfo=timezone.utc) + timedelta(hours=2 * number)).isoformat(
            timespec="microseconds"
        ),
        measurements=measurements or (measurement(),),
        commit=commit,
        dirty=None if commit is None else dirty,
        name=name,
        root=root,
    )


CONFIG = Path(__file__).with_name("gitconfig")


def plain_git(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Git as it is for nobody in particular, and blind to a repository around a folder."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(CONFIG))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(folder))
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "A Developer")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "developer@example.org")


def numbers(run_ids: Iterable[str]) -> list[int]:
    """Return the numbers of the runs that a baseline found."""
    return [int(run_id[:8], 16) for run_id in run_ids]


def write_many(path: str, first: int, count: int) -> None:
    """Do what one writing process does."""
    store = Store(Path(path))
    for number in range(first, first + count):
        store.write(run(number, commit=f"{number:040x}"))


class Git:
    """A repository in a folder; calling it runs git there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, *arguments: str) -> str:
        command = ["git", "-C", os.fspath(self.path), "-c", "protocol.file.allow=always", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    @classmethod
    def init(cls, path: Path) -> Git:
        path.mkdir(parents=True)
        git = cls(path)
        git("-c", "init.defaultBranch=main", "init", "--quiet")
        return git

    @property
    def head(self) -> str:
        return self("rev-parse", "HEAD")

    def write(self, file: str, text: str) -> None:
        path = self.path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def commit(self, message: str, **files: str) -> str:
        """Return a commit with files ``name="text"``, named ``name.py``."""
        for name, text in (files or {"workload": message}).items():
            self.write(f"{name}.py", text)
        self("add", "--all")
        self("commit", "--quiet", "--message", message)
        return self.head

    def clone(self, path: Path, *options: str) -> Git:
        # file:// because a clone of a plain path ignores --depth.
        Git(self.path)("clone", "--quiet", *options, f"file://{self.path}", os.fspath(path))
        return Git(path)
