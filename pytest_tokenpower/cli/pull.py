"""`tokenpower pull`: fetch the runs that others pushed to a branch of a git remote."""

from __future__ import annotations

import argparse

from pytest_tokenpower.cli.store_access import add_storage
from pytest_tokenpower.core.credentials import without_credentials
from pytest_tokenpower.core.jobs import current_job
from pytest_tokenpower.core.text import plural
from pytest_tokenpower.store.access import StoreContext
from pytest_tokenpower.store.remote import BRANCH, SyncResult, choose_remote, pull

EPILOG = f"""\
The runs go over the branch {BRANCH}, which has a history of its own. Nothing on it is changed or removed, nothing is
forced, and the work tree and the index are left alone; where others push at the same time, it merges and tries again.
What the store held before the last pull and the branch did not is not pushed: another job, such as a pull request's,
may have left it. A job of a pull request or of a merge queue pushes nothing.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the remote and the store."""
    parser.epilog = EPILOG
    parser.add_argument(
        "remote",
        metavar="REMOTE",
        nargs="?",
        help="a git remote or its URL (default: origin, or the only one)",
    )
    add_storage(parser)


def run(arguments: argparse.Namespace) -> int:
    """Pull, and say what went over; 0 also where nothing was ever pushed, as before the first pull of a CI job."""
    place = StoreContext.of(arguments, may_be_new=True)
    repository = place.needs_repository()
    done = pull(repository, place.store, choose_remote(repository, arguments.remote), job=current_job())
    remote = without_credentials(done.remote)
    if not done.exists:
        print(f"{remote} has no branch {BRANCH} yet: nothing was pushed so far.")
    elif done.files:
        print(f"Added {plural(len(done.files), 'file')} from {BRANCH} of {remote}.")
    else:
        print(f"This store has every run of {BRANCH} of {remote}.")
    say_left_out(done)
    return 0


def say_left_out(done: SyncResult) -> None:
    """Print what could not go over."""
    for problem in done.left_out:
        print(f"Left out: {problem.path}: {problem.reason}")
