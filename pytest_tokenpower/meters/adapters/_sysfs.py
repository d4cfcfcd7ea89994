"""Files of the kernel's that hold one value each."""

from __future__ import annotations

from pathlib import Path

from pytest_tokenpower.errors import MeterError


def text_of(path: Path) -> str:
    """Return what a file says, without white space around it; empty where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def number_of(path: Path, what: str, denied: str = "") -> int:
    """Return the whole number in a file.

    Args:
        path: the file.
        what: who reads what of whom, for messages: ``"Jetson: reading VDD_IN"``.
        denied: the message where the file may not be read, if there is more to say then.

    Raises:
        MeterError: it cannot be read, or holds something else.
    """
    try:
        return int(path.read_text())
    except (OSError, ValueError) as error:
        if denied and isinstance(error, PermissionError):
            raise MeterError(denied) from error
        reason = error.strerror if isinstance(error, OSError) else "not a number"
        raise MeterError(f"{what} failed: {path}: {reason}") from error
