"""Write docs/commands.md and docs/records.md from the code: ``python docs/write_reference.py``."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pytest_tokenpower import cli
from pytest_tokenpower.core import records
from pytest_tokenpower.core.figures import FIGURES

HERE = Path(__file__).parent

COMMANDS_HEAD = """\
# Commands and their options

`tokenpower COMMAND --help` prints the same. Each command also takes `--traceback`, which shows where an unexpected
error came from. This page is written by `docs/write_reference.py`.
"""

RECORDS_HEAD = """\
# Fields of a record

What `--energy-json` writes and the store keeps, from the run down; [run.schema.json](run.schema.json) is its JSON
Schema. Fields that have their default are left out. This page is written by `docs/write_reference.py`.
"""


def commands() -> str:
    """Render every command with its arguments."""
    parts = [COMMANDS_HEAD]
    for name, text in cli.COMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"tokenpower {name}", add_help=False)
        cli._module(name).add_arguments(parser)
        rows = [
            f"| {_code(action)} | {_help(parser, action)} |"
            for action in parser._actions
            if action.help != argparse.SUPPRESS
        ]
        table = ["", "| argument | |", "| --- | --- |", *rows] if rows else []
        parts.append("\n".join([f"## tokenpower {name}", "", f"{text[0].upper()}{text[1:]}.", *table]) + "\n")
    return "\n".join(parts)


def _code(action: argparse.Action) -> str:
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    value = "" if action.nargs == 0 else f" {metavar}"
    if not action.option_strings:
        return f"`{metavar}`"
    return ", ".join(f"`{option}{value}`" for option in action.option_strings)


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    said = parser._get_formatter()._expand_help(action) if action.help else ""
    return said.replace("|", "\\|").replace("<", "&lt;")


def structs() -> Iterator[type[msgspec.Struct]]:
    """Return the records, the run first and each before what it holds."""
    waiting: list[type[msgspec.Struct]] = [records.RunRecord]
    seen = set()
    while waiting:
        struct = waiting.pop(0)
        if struct in seen:
            continue
        seen.add(struct)
        yield struct
        for field in msgspec.structs.fields(struct):
            waiting += [
                found
                for name in re.findall(r"\w+", str(field.type))
                if isinstance(found := getattr(records, name, None), type)
                and issubclass(found, msgspec.Struct)
            ]


def fields() -> str:
    """Render every record with its fields."""
    parts = [RECORDS_HEAD]
    for struct in structs():
        text, _, attributes = inspect.cleandoc(struct.__doc__ or "").partition("\n\nAttributes:\n")
        said = dict(re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", attributes, re.MULTILINE))
        lines = [
            f"## {struct.__name__}",
            "",
            _markdown(text),
            "",
            "| field | type | |",
            "| --- | --- | --- |",
        ]
        for field in msgspec.structs.fields(struct):
            kind = str(struct.__annotations__[field.name]).replace(" | ", " or ")
            lines.append(
                f"| `{field.encode_name}` | `{kind}` | {_markdown(' '.join(said.get(field.name, '').split()))} |"
            )
        parts.append("\n".join(lines).replace(" |  |", " | |") + "\n")
    rows = [f"| `{name}` | {unit} |" for name, unit in FIGURES.items()]
    parts.append("\n".join(["## Figures", "", "| name in `figures` | unit |", "| --- | --- |", *rows]) + "\n")
    return "\n".join(parts)


def _markdown(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", text)


PAGES = {"commands.md": commands, "records.md": fields}

if __name__ == "__main__":
    for page, text in PAGES.items():
        (HERE / page).write_text(text(), encoding="utf-8")
