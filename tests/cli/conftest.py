"""Real git repositories, their stores, and the command run in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_tokenpower.cli import main
from pytest_tokenpower.store.git import Repository
from pytest_tokenpower.store.store import Store, default_store_path
from tests.support.commands import Command, Ended
from tests.support.repositories import Git, plain_git


@pytest.fixture(autouse=True)
def _plain_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain_git(monkeypatch, tmp_path)


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    """Return an empty repository on branch main, which is the current folder."""
    git = Git.init(tmp_path / "project")
    monkeypatch.chdir(git.path)
    return git


@pytest.fixture
def store(git: Git) -> Store:
    """Return the repository's own store."""
    return Store(default_store_path(Repository.discover(git.path), git.path))


@pytest.fixture
def tokenpower(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process."""

    def command(*arguments: str) -> Ended:
        capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as exit:
            code = int(str(exit.code))
        written = capsys.readouterr()
        return Ended(code, written.out, written.err)

    return command
