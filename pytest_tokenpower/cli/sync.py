"""`tokenpower push` and `pull`: share the store through a branch of a git remote."""

from __future__ import annotations

import argparse

from pytest_tokenpower.cli.store_access import add_storage
from pytest_tokenpower.core.credentials import without_credentials
from pytest_tokenpower.core.jobs import current_job
from pytest_tokenpower.core.text import plural
from pytest_tokenpower.store.access import StoreContext
from pytest_tokenpower.store.calibrations import calibration_paths
from pytest_tokenpower.store.remote import BRANCH, choose_remote, pull, push

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
    if parser.prog.endswith(" push"):
        parser.add_argument(
            "--all",
            action="store_true",
            help="also what was in the store before the last pull; not in a CI job",
        )
    add_storage(parser)


def run(arguments: argparse.Namespace) -> int:
    """Push or pull, and say what went over.

    The exit code is 0 also where nothing was ever pushed, as before the first pull of a CI job.
    """
    pushing = arguments.command == "push"
    place = StoreContext.of(arguments, may_be_new=not pushing)
    repository = place.needs_repository()
    if pushing and not calibration_paths(place.store.path):
        place.entries()
    remote_name, job = choose_remote(repository, arguments.remote), current_job()
    if pushing:
        done = push(repository, place.store, remote_name, job=job, everything=arguments.all)
    else:
        done = pull(repository, place.store, remote_name, job=job)
    files, remote = plural(len(done.files), "file"), without_credentials(done.remote)
    if pushing:
        print(
            f"Added {files} to {BRANCH} of {remote}."
            if done.files
            else f"Added nothing to {BRANCH} of {remote}."
            if done.held_back
            else f"{BRANCH} of {remote} has every run of this store."
        )
        if done.held_back:
            print(
                f"Held back: {plural(len(done.held_back), 'run')} that this job has not made, or that the store held "
                f"before the last pull{'' if job else ' (--all adds them)'}: " + ", ".join(done.held_back)
            )
    elif not done.exists:
        print(f"{remote} has no branch {BRANCH} yet: nothing was pushed so far.")
    else:
        print(
            f"Added {files} from {BRANCH} of {remote}."
            if done.files
            else f"This store has every run of {BRANCH} of {remote}."
        )
    for problem in done.left_out:
        print(f"Left out: {problem.path}: {problem.reason}")
    return 0
