"""`tokenpower push`: add this store's runs and blessings to a branch of a git remote."""

from __future__ import annotations

import argparse

from pytest_tokenpower.baselines.branch import BRANCH
from pytest_tokenpower.baselines.remote import Exchanged, choose_remote, push
from pytest_tokenpower.cli.access import Place, add_storage

EPILOG = f"""\
The runs go to the branch {BRANCH}, which has a history of its own. Nothing on it is changed or removed, nothing is
forced, and the work tree and the index are left alone; where others push at the same time, it merges and tries again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument(
        "remote",
        metavar="REMOTE",
        nargs="?",
        help="a git remote or its URL (default: origin, or the only one)",
    )
    add_storage(parser)


def run(arguments: argparse.Namespace) -> int:
    """Push, and say what went over."""
    place = Place.of(arguments)
    repository = place.needs_repository()
    place.entries()
    done = push(repository, place.store, choose_remote(repository, arguments.remote))
    count = len(done.files)
    if count:
        print(f"Added {count} file{'' if count == 1 else 's'} to {BRANCH} of {done.remote}.")
    else:
        print(f"{BRANCH} of {done.remote} has every run of this store.")
    print_left_out(done)
    return 0


def print_left_out(done: Exchanged) -> None:
    """Name the files that did not go over."""
    for problem in done.left_out:
        print(f"Left out: {problem.path}: {problem.reason}")
