"""On which line of a TOML text each table and value stands. The text is known to be TOML."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping

Place = tuple[str | int, ...]
"""Where something stands: names of tables and keys, and numbers in lists, such as ``("claim", 0, "of")``."""

_TOKEN = re.compile(
    r"""
    \#[^\n]*                                                    # a comment
    | "{3}(?:\\.|[^\\])*?"{3,5} | '{3}.*?'{3,5}                 # a text of several lines
    | "(?:\\.|[^"\\])*" | '[^']*' | [\[\]{},=.\n] | [^\s\[\]{},=."'\#]+
    """,
    re.DOTALL | re.VERBOSE,
)

_Tokens = deque[tuple[str, int]]
_Lines = dict[Place, int]


def line_of(text: str, place: Place) -> int:
    """Return the line of what stands at a place, from 1; that of what it is in, where nothing does."""
    lines = lines_of(text)
    return next((lines[place[:end]] for end in range(len(place), 0, -1) if place[:end] in lines), 1)


def lines_of(text: str) -> Mapping[Place, int]:
    """Return the line of every table, key and value."""
    tokens, lines, lists = _tokens(text), _Lines(), dict[Place, int]()
    table: Place = ()
    while tokens:
        token, line = tokens[0]
        if token in "\n]":
            tokens.popleft()
            continue
        if token != "[":
            _entry(tokens, table, lines)
            continue
        listed = tokens[1][0] == "["
        names = _names(tokens, "]")
        table = ()
        for at, name in enumerate(names, 1):
            table = (*table, name)
            lines.setdefault(table, line)
            if listed and at == len(names):
                lists[table] = lists.get(table, -1) + 1
            if table in lists:
                table = (*table, lists[table])
                lines.setdefault(table, line)
        lines[table] = line
    return lines


def _tokens(text: str) -> _Tokens:
    tokens, line, at = _Tokens(), 1, 0
    for found in _TOKEN.finditer(text):
        line, at = line + text.count("\n", at, found.start()), found.start()
        if not found[0].startswith("#"):
            tokens.append((found[0], line))
    return tokens


def _names(tokens: _Tokens, end: str) -> list[str]:
    names = []
    while (token := tokens.popleft()[0]) != end:
        if token not in "[.":
            names.append(token.strip("\"'"))
    return names


def _entry(tokens: _Tokens, at: Place, lines: _Lines) -> None:
    line = tokens[0][1]
    for name in _names(tokens, "="):
        at = (*at, name)
        lines.setdefault(at, line)
    _value(tokens, at, lines)


def _value(tokens: _Tokens, at: Place, lines: _Lines) -> None:
    opened, _ = tokens.popleft()
    if opened not in "[{":
        while tokens and tokens[0][0] not in ",\n]}":
            tokens.popleft()
        return
    number = 0
    while tokens[0][0] not in "]}":
        if tokens[0][0] in ",\n":
            tokens.popleft()
        elif opened == "{":
            _entry(tokens, at, lines)
        else:
            place = (*at, number)
            lines[place] = tokens[0][1]
            _value(tokens, place, lines)
            number += 1
    tokens.popleft()
