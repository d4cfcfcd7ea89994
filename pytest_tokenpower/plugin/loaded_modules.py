"""Loaded into the baseline's runs of --energy-rerun-baseline: tells which modules came from the candidate's tree."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pytest_tokenpower.core.settings import FOREIGN_TREE_VARIABLE, LOADED_VARIABLE
from pytest_tokenpower.runner.sources import foreign_modules


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Write the modules' names and files for the run that has started this one."""
    tree, path = os.environ.get(FOREIGN_TREE_VARIABLE), os.environ.get(LOADED_VARIABLE)
    if tree and path:
        Path(path).write_text(json.dumps(foreign_modules(Path(tree))), "utf-8")
