"""What may be shown of a source: every credential is taken out of its name before it is printed, kept or compared."""

from __future__ import annotations

import re
from collections.abc import Sequence

_URL = re.compile(r"""(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<rest>[^\s'"<>]+)""")
_VALUE = re.compile(r"(?<==)[^&;#]+")
_SECRET_OPTIONS = frozenset({"-P", "-k", "-y", "-Y", "-K"})
"""Options of ipmitool whose argument is a password or a key."""

HIDDEN = "***"


def without_credentials(text: str) -> str:
    """``text`` with its URLs as they may be shown: without user and password, and without values of a query.

    ``prometheus:https://me:secret@host/a?token=b`` becomes ``prometheus:https://host/a?token=***``. A name of a source
    without a URL stays as it is. What may be a password with a slash in it is hidden too.
    """
    return _URL.sub(_shown, text)


def _shown(match: re.Match[str]) -> str:
    address, mark, query = match["rest"].partition("?")
    authority, slash, path = address.partition("/")
    *_, host = authority.rpartition("@")
    if "@" not in authority and ("@" in path or ("@" in query and ":" in authority)):
        # "me:pass/word@host" is no URL, and is written all the same.
        return f"{match['scheme']}{HIDDEN}@{_hidden_values((path + mark + query).rpartition('@')[2])}"
    return match["scheme"] + host + slash + path.partition("#")[0] + mark + _query(query)


def _query(query: str) -> str:
    """Return a query with its names only; one without names may be a token as a whole."""
    if not query:
        return ""
    return _hidden_values(query).partition("#")[0] if "=" in query else HIDDEN


def _hidden_values(text: str) -> str:
    return _VALUE.sub(HIDDEN, text)


def shown_command(command: Sequence[str]) -> str:
    """Return a command as it may be shown: without the passwords that ipmitool takes as arguments."""
    shown: list[str] = []
    for before, argument in zip(("", *command), command, strict=False):
        attached = next((option for option in _SECRET_OPTIONS if argument.startswith(option)), None)
        if before in _SECRET_OPTIONS:
            shown.append(HIDDEN)
        elif attached is not None and argument != attached:
            shown.append(attached + HIDDEN)
        else:
            shown.append(argument)
    return " ".join(shown)
