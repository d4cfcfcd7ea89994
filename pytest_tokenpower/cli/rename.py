"""`tokenpower rename`: say what a test was called before, in a file that is committed with the change."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pytest_tokenpower.cli.store_access import add_storage
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.store.access import StoreContext, choose_test
from pytest_tokenpower.store.git import RENAMED_FOLDER, Repository
from pytest_tokenpower.store.identity import file_of
from pytest_tokenpower.store.renames import EarlierNames, Rename, write_rename

EPILOG = """\
A file that git shows as renamed is followed without it. The stored runs stay as they are: where the file is in the work
tree, those of the earlier name are the test's own, in the gate, in history and in --energy-rerun-baseline.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Both names, and the store."""
    parser.epilog = EPILOG
    parser.add_argument(
        "was",
        metavar="OLD",
        help="the earlier id of a test; without its [parameters], or of a class, file or folder: of all that is in it",
    )
    parser.add_argument("test", metavar="NEW", help="its id now (path/test_file.py::test_name)")
    add_storage(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the file; raises a TokenPowerError for names that cannot be meant."""
    place = StoreContext.of(arguments, may_be_new=True)
    repository = place.needs_repository()
    test = _present(arguments.test, place, repository)
    was, is_stored = _earlier(arguments.was, place)
    if test == was:
        raise UsageError(f"{test} is both names: give the earlier one first")
    if test in EarlierNames.read(repository, None).declared(was):
        raise UsageError(f"{was} is said to have been {test} before: remove that file from {RENAMED_FOLDER}")
    file = os.path.relpath(write_rename(repository, Rename(test, was)), Path.cwd())
    print(f"{test} was {was} before: stored runs of that name are its own.")
    if not is_stored:
        print(
            f"{place.store.path} holds none: see to it that the name is right, and that it is the whole id."
        )
    print(f"Written to {file}: nothing holds yet for others. Commit it with the change (git add {file}).")
    return 0


def _present(text: str, place: StoreContext, repository: Repository) -> str:
    """Return what a test is called now, from the top level: it is given from here, or as messages give it."""
    here = place.in_repository(text)
    for name in (here, text):
        if (repository.top_level / file_of(name)).exists():
            return name
    raise UsageError(
        f"{repository.top_level / file_of(here)} does not exist: give the id that the test has now"
    )


def _earlier(text: str, place: StoreContext) -> tuple[str, bool]:
    """Return an earlier name, and whether a stored run has it; of a stored one a part will do."""
    stored, here = place.stored_tests(), place.in_repository(text)
    for name in (text, here):
        if any(Rename(name, name).earlier(test) for test in stored):
            return name, True
    bases = {test.partition("[")[0] for test in stored}
    if ends := sorted(test for test in {*stored, *bases} if test.endswith((f"/{text}", f"::{text}"))):
        return choose_test(text, ends), True
    if "::" in text or "/" in text:
        return here, False
    return choose_test(text, stored), True
