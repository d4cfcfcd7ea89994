"""The version stands in one file; the package and its metadata both show that one."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest_tokenpower
from pytest_tokenpower._version import __version__

ROOT = Path(__file__).parents[2]


def test_the_package_shows_the_version_of_its_file() -> None:
    assert pytest_tokenpower.__version__ == __version__
    assert metadata.version("pytest-tokenpower") == __version__


def test_the_changelog_begins_with_the_version() -> None:
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert first[1] == __version__
