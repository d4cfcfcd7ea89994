"""`tokenpower pull`: fetch the runs and blessings that others pushed."""

from __future__ import annotations

import argparse

from pytest_tokenpower.baselines.branch import BRANCH
from pytest_tokenpower.baselines.remote import choose_remote, pull
from pytest_tokenpower.cli.access import Place, add_storage
from pytest_tokenpower.cli.push import print_left_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where from."""
    parser.add_argument(
        "remote",
        metavar="REMOTE",
        nargs="?",
        help="a git remote or its URL (default: origin, or the only one)",
    )
    add_storage(parser)


def run(arguments: argparse.Namespace) -> int:
    """Pull, and say what came; 0 also where nothing was ever pushed, as before the first run of a CI job."""
    place = Place.of(arguments, may_be_new=True)
    repository = place.needs_repository()
    done = pull(repository, place.store, choose_remote(repository, arguments.remote))
    count = len(done.files)
    if not done.exists:
        print(f"{done.remote} has no branch {BRANCH} yet: nothing was pushed so far.")
    elif count:
        print(f"Added {count} file{'' if count == 1 else 's'} from {BRANCH} of {done.remote}.")
    else:
        print(f"This store has every run of {BRANCH} of {done.remote}.")
    print_left_out(done)
    return 0
