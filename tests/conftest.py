"""A project of energy tests in a temporary folder, blind to everything around it."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile

import pytest
from hypothesis import settings

from tests.support.projects import LATE_IMPORTS, Project
from tests.support.repositories import plain_git

# No test is about speed: a busy machine must not fail one.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


# What a test that uses them waits for: processes, threads, the wall clock.
OUTSIDE = ("multiprocessing", "socket", "subprocess", "threading", "time")
PROCESSES = frozenset({"git", "repository"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tell the kinds of tests: what runs pytest is a plugin test; what neither does so nor waits is a unit test."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if "pytester" in fixtures:
            item.add_marker("plugin")
        used = {
            getattr(each, "__name__", "") for each in vars(getattr(item, "module", None) or item).values()
        }
        told = any(item.get_closest_marker(name) for name in ("plugin", "slow", "real_engine"))
        if not (told or used.intersection(OUTSIDE) or fixtures & PROCESSES):
            item.add_marker("unit")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    # Each worker has a temporary folder of its own: tests look for what is left in it. Locks of boards that pass for
    # real lie under HOME, which pytester sets for each test.
    folder = str(tmp_path_factory.getbasetemp())
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    ours = [name for name in os.environ if name.startswith("TOKENPOWER_")]
    for name in ("PYTEST_ADDOPTS", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "XDG_CACHE_HOME", *ours):
        monkeypatch.delenv(name, raising=False)


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
