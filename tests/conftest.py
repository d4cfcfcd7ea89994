"""A project of energy tests in a temporary folder, blind to everything around it."""

from __future__ import annotations

import importlib
import sys

import pytest
from hypothesis import settings

from tests.support.projects import LATE_IMPORTS, Project
from tests.support.repositories import plain_git

# No test is about speed: a busy machine must not fail one.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def late_imports() -> None:
    """Import what an energy test imports before pytester remembers what there was."""
    for module in LATE_IMPORTS:
        importlib.import_module(module)


@pytest.fixture
def project(late_imports: None, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a project outside of any git repository."""
    # The same file name with other contents of the same size within a second would be read from the cache.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    plain_git(monkeypatch, pytester.path.parent)
    return Project(pytester)
