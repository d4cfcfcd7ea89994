"""`tokenpower push`: add the store's runs to a branch of a git remote."""

from __future__ import annotations

import argparse

from pytest_tokenpower.cli import pull
from pytest_tokenpower.core.credentials import without_credentials
from pytest_tokenpower.core.jobs import current_job
from pytest_tokenpower.core.text import plural
from pytest_tokenpower.store.access import StoreContext
from pytest_tokenpower.store.calibrations import calibration_paths
from pytest_tokenpower.store.remote import BRANCH, choose_remote, push


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the remote, the store, and whether all of it goes over."""
    pull.add_arguments(parser)
    parser.add_argument(
        "--all",
        action="store_true",
        help="also what was in the store before the last pull; not in a CI job",
    )


def run(arguments: argparse.Namespace) -> int:
    """Push, and say what went over."""
    place = StoreContext.of(arguments)
    repository = place.needs_repository()
    if not calibration_paths(place.store.path):
        place.entries()
    remote_name, job = choose_remote(repository, arguments.remote), current_job()
    done = push(repository, place.store, remote_name, job=job, everything=arguments.all)
    remote = without_credentials(done.remote)
    if done.files:
        print(f"Added {plural(len(done.files), 'file')} to {BRANCH} of {remote}.")
    elif done.held_back:
        print(f"Added nothing to {BRANCH} of {remote}.")
    else:
        print(f"{BRANCH} of {remote} has every run of this store.")
    if done.held_back:
        print(
            f"Held back: {plural(len(done.held_back), 'run')} that this job has not made, or that the store held "
            f"before the last pull{'' if job else ' (--all adds them)'}: " + ", ".join(done.held_back)
        )
    pull.say_left_out(done)
    return 0
