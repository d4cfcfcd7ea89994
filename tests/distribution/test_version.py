"""The version stands in one place; the metadata and the changelog show that one."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from pytest_tokenpower import __version__

ROOT = Path(__file__).parents[2]


def test_the_metadata_show_the_version_of_the_package() -> None:
    assert metadata.version("pytest-tokenpower") == __version__


def test_the_changelog_begins_with_the_version() -> None:
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert first[1] == __version__
