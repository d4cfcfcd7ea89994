"""A project of energy tests in a temporary folder, blind to everything around it."""

from __future__ import annotations

import importlib
import sys

import pytest
from projects import LATE_IMPORTS, Project


@pytest.fixture(scope="session")
def late_imports() -> None:
    """What an energy test imports, imported before pytester remembers what there was."""
    for module in LATE_IMPORTS:
        importlib.import_module(module)


@pytest.fixture
def project(late_imports: None, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project outside of any git repository."""
    # The same file name with other contents of the same size within a second would be read from the cache.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(pytester.path.parent))
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "A Developer")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "developer@example.org")
    return Project(pytester)
