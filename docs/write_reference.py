"""Write the pages of commands, records and scenarios from the code: ``python docs/write_reference.py``."""

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
from pytest_tokenpower.meters.simulation import power_curve, scenario

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

SCENARIOS_HEAD = """\
# Scenarios of the simulated boards

`--energy-source=simulated:board.json` plays such a file, as
[an example](tutorial.md#scenarios-of-the-simulated-board) shows: boards with what they draw over time, and faults at
given seconds. A field that does not exist, or a value that cannot be, is answered with the field and what is valid.
This page is written by `docs/write_reference.py`.
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
    # Not by argparse's own formatter, which colours in later Pythons.
    said = (action.help or "") % {**vars(action), "prog": parser.prog}
    return said.replace("|", "\\|").replace("<", "&lt;")


def structs(first: type[msgspec.Struct], known: dict[str, object]) -> Iterator[type[msgspec.Struct]]:
    """Return the structs of a file, the first and each before what it holds."""
    waiting, seen = [first], set()
    while waiting:
        struct = waiting.pop(0)
        if struct in seen:
            continue
        seen.add(struct)
        yield struct
        for field in msgspec.structs.fields(struct):
            for name in re.findall(r"\w+", str(field.type)):
                found = known.get(name)
                if isinstance(found, type) and issubclass(found, msgspec.Struct):
                    waiting.append(found)


def fields(first: type[msgspec.Struct], known: dict[str, object]) -> str:
    """Render each struct of a file with its fields."""
    parts = []
    for struct in structs(first, known):
        text, _, attributes = inspect.cleandoc(struct.__doc__ or "").partition("\n\nAttributes:\n")
        said = dict(re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", attributes, re.MULTILINE))
        lines = [
            f"## {struct.__name__}",
            "",
            _markdown(text),
            "",
            "| field | type | default | |",
            "| --- | --- | --- | --- |",
        ]
        for field in msgspec.structs.fields(struct):
            cells = [
                f"`{field.encode_name}`",
                f"`{str(struct.__annotations__[field.name]).replace(' | ', ' or ')}`",
                _default(field),
                _markdown(" ".join(said.get(field.name, "").split())),
            ]
            lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |"))
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        return f"`{field.default_factory()!r}`"
    if field.default is msgspec.NODEFAULT or isinstance(field.default, (msgspec.Struct, tuple)):
        return ""
    return f"`{field.default!r}`"


def of_records() -> str:
    """Render the stored run and all that it holds, and the names of its figures."""
    rows = [f"| `{name}` | {unit} |" for name, unit in FIGURES.items()]
    table = "\n".join(["## Figures", "", "| name in `figures` | unit |", "| --- | --- |", *rows]) + "\n"
    return "\n".join([RECORDS_HEAD, fields(records.RunRecord, vars(records)), table])


def of_scenarios() -> str:
    """Render the file that simulated boards play."""
    known = {**vars(power_curve), **vars(scenario)}
    return "\n".join([SCENARIOS_HEAD, fields(scenario.Scenario, known)])


def _markdown(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", text)


PAGES = {"commands.md": commands, "records.md": of_records, "scenarios.md": of_scenarios}

if __name__ == "__main__":
    for page, text in PAGES.items():
        (HERE / page).write_text(text(), encoding="utf-8")
