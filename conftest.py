"""Test-suite configuration: pytester, and pytest runs that see no options or stores of the outside."""

import tempfile

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    # Each worker has a temporary folder of its own: tests look for what is left in it. Locks of boards that pass for
    # real lie under HOME, which pytester sets for each test.
    folder = str(tmp_path_factory.getbasetemp())
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    for name in ("PYTEST_ADDOPTS", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
