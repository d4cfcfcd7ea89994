from __future__ import annotations

from pathlib import Path

import pytest

from pytest_tokenpower.store.store import Store
from tests.support.repositories import Git, plain_git


@pytest.fixture(autouse=True)
def _plain_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain_git(monkeypatch, tmp_path)


@pytest.fixture
def git(tmp_path: Path) -> Git:
    """Return an empty repository on branch main."""
    return Git.init(tmp_path / "project")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Return an empty store outside of any repository."""
    return Store(tmp_path / "store")
