"""The `tokenpower` command: one module a subcommand, imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from pytest_tokenpower import __version__
from pytest_tokenpower.errors import TokenPowerError

COMMANDS = {
    "demo": "real inference, a stored baseline, and a regression that fails its build",
    "doctor": "what can be measured on this machine, and how well",
    "models": "the models that are known by name: size, memory, and whether they fit this machine",
    "sweep": "a suite of models, engines and work: a live table, claims, CSV and JSON",
    "analyse": "energy of the windows of a recording",
    "noise": "identical code again and again: how much it scatters, and the limit that this machine can hold",
    "history": "the stored runs of a test: a plot, and where its level changed",
    "compare": "two refs, saved runs or run files, test by test; exit code 1 on a regression",
    "show": "one stored run: figures, rounds, conditions, verdicts",
    "accept": "let a test rise by so much, in a file that is committed with the change",
    "list": "what is stored: tests, commits, names, boards, dates",
    "prune": "remove old runs that no baseline needs",
    "serve-meter": "hand this machine's meters out over HTTP, read-only, for tests that run elsewhere",
    "push": "add this store's runs to a branch of a git remote",
    "pull": "fetch the runs that others pushed",
}
"""Name and help of each subcommand; its module offers ``add_arguments(parser)`` and ``run(arguments) -> int``."""

_MODULES = {"serve-meter": "serve_meter", "push": "sync", "pull": "sync", "list": "contents"}
"""The module of a subcommand, where it has another name."""

_BLESS = (
    "bless is now accept, before and after a merge: tokenpower accept TEST --up-to 8% --reason TEXT [--since COMMIT]. "
    "Nothing was changed"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; the exit code is 0, what the command says, 4 for a user's mistake, 3 for ours."""
    parser = argparse.ArgumentParser(
        prog="tokenpower", description="Energy per token of LLM inference, measured."
    )
    parser.add_argument("--version", action="version", version=f"pytest-tokenpower {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an unexpected error came from")
    chosen = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    given = list(sys.argv[1:] if argv is None else argv)
    # Wherever it stands: people add it at the end of the line that has just failed.
    traced = "--traceback" in given
    given = [word for word in given if word != "--traceback"]
    for name, text in COMMANDS.items():
        command = chosen.add_parser(name, help=text, description=text)
        if name in given[:1]:
            _module(name).add_arguments(command)
    if given[:1] == ["bless"]:
        print(f"tokenpower bless: {_BLESS}", file=sys.stderr)
        return 4
    arguments = _parse(parser, given)
    try:
        code: int = _module(arguments.command).run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader has what it wanted (`| head`); Python's own flush at the end must not complain of it either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except TokenPowerError as error:
        print(f"tokenpower {arguments.command}: {error}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        print(f"tokenpower {arguments.command}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if traced:
            raise
        what = " ".join(str(error).split())
        print(
            f"tokenpower {arguments.command}: unexpected {type(error).__name__}: {what} "
            "(--traceback shows where; please report it)",
            file=sys.stderr,
        )
        return 3


def _parse(parser: argparse.ArgumentParser, given: Sequence[str]) -> argparse.Namespace:
    """Parse the words; those after ``--`` are pytest's where the command has any for it, wherever its options stand."""
    at = given.index("--") if "--" in given else len(given)
    arguments = parser.parse_args(given[:at])
    if not hasattr(arguments, "arguments"):
        return parser.parse_args(given)
    arguments.arguments += given[at + 1 :]
    return arguments


def _module(command: str) -> ModuleType:
    # Only the command that is asked for is imported; the others are known by their help.
    return importlib.import_module(f"{__name__}.{_MODULES.get(command, command)}")
