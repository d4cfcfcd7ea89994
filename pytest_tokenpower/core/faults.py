"""Errors that nobody foresaw: told in one line, with a file that can be attached to a report of them."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import traceback
from importlib import metadata

from pytest_tokenpower.core.credentials import without_credentials

ISSUES = "https://github.com/pytest-tokenpower/pytest-tokenpower/issues"


def describe_fault(error: Exception) -> str:
    """Say what happened in one line, and write where it did into a file that the line names."""
    what = " ".join(without_credentials(str(error)).split())
    line = f"unexpected {type(error).__name__}{f': {what}' if what else ''}"
    try:
        descriptor, path = tempfile.mkstemp(prefix="tokenpower-fault-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(_report(error))
    except OSError:
        return f"{line}; this is a fault of pytest-tokenpower: please report it at {ISSUES}"
    return f"{line}; this is a fault of pytest-tokenpower: please report it at {ISSUES} with {path}"


def trace(error: Exception) -> str:
    """Return the traceback, without credentials."""
    return without_credentials("".join(traceback.format_exception(error)))


def _report(error: Exception) -> str:
    versions = [
        f"pytest-tokenpower {_version('pytest-tokenpower')}",
        f"pytest {_version('pytest')}",
        f"Python {sys.version}",
        platform.platform(),
    ]
    return "\n".join([*versions, "", trace(error)])


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
