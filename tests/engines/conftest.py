"""The engine of a contract class, and the folder that its models are written to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_tokenpower.engines.protocol import Engine
from tests.support.projects import Project
from tests.support.standins.core import standing_in, write_model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def model(models: Path) -> Path:
    """Write a checkpoint that engines' stand-ins load."""
    return write_model(models)


@pytest.fixture(scope="module")
def standins() -> Iterator[None]:
    """Have stand-ins for the packages of engines that cannot run here."""
    with standing_in():
        yield


@pytest.fixture(scope="class")
def engine(request: pytest.FixtureRequest, models: Path) -> Iterator[Engine]:
    """One engine for the tests of a contract class."""
    assert request.cls is not None
    engine: Engine = request.cls.make(models)
    yield engine
    engine.close()


@pytest.fixture
def project(project: Project) -> Project:
    """Engines live on the machine's time."""
    project.on_machine_time()
    return project
