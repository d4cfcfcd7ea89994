"""Real git repositories, their stores, and the command run in them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from baselines.helpers import Git

from pytest_tokenpower.baselines.git import Repository
from pytest_tokenpower.baselines.store import Store, default_store_path
from pytest_tokenpower.cli import main

Command = Callable[..., "Ended"]


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def plain_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Git as it is for nobody in particular, and blind to a repository around the temporary folder."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "A Developer")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "developer@example.org")


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    """An empty repository on branch main, which is the current folder."""
    git = Git.init(tmp_path / "project")
    monkeypatch.chdir(git.path)
    return git


@pytest.fixture
def store(git: Git) -> Store:
    """The repository's own store."""
    return Store(default_store_path(Repository.discover(git.path), git.path))


@pytest.fixture
def tokenpower(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in this process."""

    def command(*arguments: str) -> Ended:
        capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as exit:
            code = int(str(exit.code))
        written = capsys.readouterr()
        return Ended(code, written.out, written.err)

    return command
