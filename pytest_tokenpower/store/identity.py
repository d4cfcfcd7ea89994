"""A test's identity in a repository: its node id, from the repository's top level.

pytest's node ids are relative to its root directory. The packages of a monorepo share a store, and two of them may
have a test of the same node id; seen from the top level they are two.
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

from pytest_tokenpower.store.git import Repository


def root_in(repository: Repository | None, rootdir: Path) -> str | None:
    """Where pytest's root directory is, seen from the top level ("" for the top level itself); None outside git."""
    if repository is None:
        return None
    inside = os.path.relpath(os.path.realpath(rootdir), os.path.realpath(repository.top_level))
    return "" if inside == os.curdir else inside.replace(os.sep, "/")


def repository_test(root: str | None, test: str) -> str:
    """Return a node id relative to ``root``, made relative to the top level; as it is where the root is not known."""
    file, colons, name = test.partition("::")
    return posixpath.normpath(posixpath.join(root or "", file)) + colons + name


def file_of(test: str) -> str:
    """Return the file that a test is in."""
    return test.partition("::")[0]


def in_file(test: str, file: str) -> str:
    """Return the same test in another file."""
    _, colons, name = test.partition("::")
    return file + colons + name
