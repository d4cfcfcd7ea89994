"""The `tokenpower` command: one module a subcommand, imported only when it is asked for."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from types import ModuleType
from typing import TextIO, cast

from pytest_tokenpower import __version__
from pytest_tokenpower.core.credentials import without_credentials
from pytest_tokenpower.core.faults import describe_fault, trace
from pytest_tokenpower.core.shown import ShownStream
from pytest_tokenpower.core.signals import interrupt_when_terminated
from pytest_tokenpower.errors import TokenPowerError, UsageError

COMMANDS = {
    "demo": "real inference, a stored baseline, and a regression that fails its build",
    "doctor": "what can be measured on this machine, and how well",
    "models": "the models that are known by name: size, memory, and whether they fit this machine",
    "sweep": "a suite of models, engines and work: a live table, claims, CSV and JSON",
    "soak": "a test's work for hours without a pause: drift, steps, conditions over time",
    "analyse": "energy of the windows of a recording",
    "noise": "identical code again and again: how much it scatters, and the limit that this machine can hold",
    "calibrate": "fixed work on each board, so that runs of different boards can be compared",
    "fleet": "the boards of a pool: calibrations, offsets, drift, and which one is off",
    "history": "the stored runs of a test: a plot, and where its level changed",
    "compare": "two refs, saved runs or run files, test by test; exit code 1 on a regression",
    "show": "one stored run: figures, rounds, conditions, verdicts",
    "report": "a page, a summary or an export of stored runs",
    "accept": "let a test rise by so much, in a file that is committed with the change",
    "rename": "say what a test was called before, so that its stored runs follow it",
    "list": "what is stored: tests, commits, names, boards, dates",
    "prune": "remove old runs that no baseline needs",
    "serve-meter": "hand this machine's meters out over HTTP, read-only, for tests that run elsewhere",
    "push": "add this store's runs to a branch of a git remote",
    "pull": "fetch the runs that others pushed",
}
"""Name and help of each subcommand; its module offers ``add_arguments(parser)`` and ``run(arguments) -> int``."""

_MODULES = {"serve-meter": "serve_meter", "list": "contents"}
"""The module of a subcommand, where it has another name."""

_BLESS = (
    "bless is now accept, before and after a merge: tokenpower accept TEST --up-to 8% --reason TEXT [--since COMMIT]. "
    "Nothing was changed"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; the exit code is 0, what the command says, 4 for a user's mistake, 3 for ours."""
    # All that a command prints goes through one door: the names in it are others'.
    with (
        ExitStack() as stack,
        redirect_stdout(cast("TextIO", ShownStream(_open(sys.stdout, stack)))) as out,
        redirect_stderr(cast("TextIO", ShownStream(_open(sys.stderr, stack)))),
    ):
        stack.callback(interrupt_when_terminated())
        try:
            code = _main(list(sys.argv[1:] if argv is None else argv))
            out.flush()
            return code
        except BrokenPipeError:
            return 141  # The reader has what it wanted (`| head`).
        except OSError as error:
            print(f"tokenpower: the output: {error.strerror}: make room, and run it again", file=sys.stderr)
            return 4
        finally:
            try:
                out.flush()
            except OSError:
                # Python's own flush at the end must not complain of it either.
                os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
            sys.stderr.flush()


def _open(stream: TextIO | None, stack: ExitStack) -> TextIO:
    """Return a stream, or one into nothing where the caller has closed it (``>&-``)."""
    return stream if stream is not None else stack.enter_context(open(os.devnull, "w"))


def _main(given: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="tokenpower", description="Energy per token of LLM inference, measured."
    )
    parser.add_argument("--version", action="version", version=f"pytest-tokenpower {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an unexpected error came from")
    chosen = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # Wherever it stands: people add it at the end of the line that has just failed.
    traced = "--traceback" in given
    given = [word for word in given if word != "--traceback"]
    command = given[0] if given else ""
    try:
        for name, text in COMMANDS.items():
            subparser = chosen.add_parser(name, help=text, description=text)
            if name == command:
                _module(name).add_arguments(subparser)
                if subparser.epilog:
                    subparser.formatter_class = argparse.RawDescriptionHelpFormatter
        if command == "bless":
            _complain("bless", _BLESS)
            return 4
        arguments = _parse(parser, given)
        try:
            os.getcwd()
        except FileNotFoundError:
            raise UsageError("the current folder was removed: change into one that is there") from None
        code: int = _module(command).run(arguments)
        return code
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
            raise  # It is the output that has no room.
        return _unexpected(command, error, traced=traced)
    except TokenPowerError as error:
        _complain(command, without_credentials(str(error)))
        return 4
    except KeyboardInterrupt as error:
        _complain(command, f"interrupted{f' ({error})' if error.args else ''}")
        return 130
    except Exception as error:
        return _unexpected(command, error, traced=traced)


def _unexpected(command: str, error: Exception, *, traced: bool) -> int:
    if traced:
        print(trace(error), file=sys.stderr)
    _complain(command, f"{describe_fault(error)}{'' if traced else ' (--traceback shows it here)'}")
    return 3


def _parse(parser: argparse.ArgumentParser, given: Sequence[str]) -> argparse.Namespace:
    """Parse the words; those after ``--`` are pytest's where the command has any for it, wherever its options stand."""
    at = given.index("--") if "--" in given else len(given)
    arguments = parser.parse_args(given[:at])
    if not hasattr(arguments, "arguments"):
        return parser.parse_args(given)
    arguments.arguments += given[at + 1 :]
    return arguments


def _complain(command: str, text: str) -> None:
    print(f"tokenpower {command}: {text}", file=sys.stderr)


def _module(command: str) -> ModuleType:
    # Only the command that is asked for is imported; the others are known by their help.
    return importlib.import_module(f"{__name__}.{_MODULES.get(command, command)}")
