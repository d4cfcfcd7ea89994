from __future__ import annotations

from pathlib import Path

import pytest

from pytest_tokenpower.baselines.store import Store

from .helpers import Git


@pytest.fixture(autouse=True)
def plain_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Git as it is for nobody in particular, and blind to a repository around the temporary folder."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "A Developer")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "developer@example.org")


@pytest.fixture
def git(tmp_path: Path) -> Git:
    """An empty repository on branch main."""
    return Git.init(tmp_path / "project")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store outside of any repository."""
    return Store(tmp_path / "store")
