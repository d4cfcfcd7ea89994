"""`tokenpower accept`: let a test rise by so much, in a file that is committed and reviewed with the change."""

from __future__ import annotations

import argparse
import os
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

from pytest_tokenpower.cli.store_access import add_storage
from pytest_tokenpower.errors import HistoryError, UsageError
from pytest_tokenpower.store.acceptances import Acceptance, share, write_acceptance
from pytest_tokenpower.store.access import StoreContext
from pytest_tokenpower.store.git import Repository, run_git

DEFAULT_DAYS = 90

EPILOG = """\
The file holds for every run whose work tree has it: commit it with the change. The test may rise by so much over its
baseline until a run of it is stored at the commit that brought the file to a branch, or later; from that run on its
level begins there, and its own limit holds again.

After a merge that nobody accepted: --since names the commit that brought the rise. Its runs, and those after it, then
count where they rose by no more than what is accepted, and the level begins there.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which test, how far, why, and for how long."""
    parser.epilog = EPILOG
    parser.add_argument(
        "test",
        metavar="TEST",
        help="a test's id, or a part of it that fits no other; without its [parameters] it stands for all of them",
    )
    parser.add_argument(
        "--up-to",
        metavar="SHARE",
        required=True,
        help="how far the test may rise over its baseline, such as 8%%; 0%% has its level begin anew, and no more",
    )
    parser.add_argument("--reason", metavar="TEXT", required=True, help="why; the next reader will ask")
    parser.add_argument("--since", metavar="COMMIT", help="the merged commit that brought the rise")
    parser.add_argument(
        "--days",
        metavar="N",
        type=int,
        default=DEFAULT_DAYS,
        help=f"the test may rise for so many days at most (default: {DEFAULT_DAYS})",
    )
    add_storage(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the file and say when it takes effect; raises a TokenPowerError for what cannot be accepted."""
    place = StoreContext.of(arguments, may_be_new=True)
    repository = place.needs_repository()
    accepted = Acceptance(
        test=place.test_in_repository(arguments.test),
        up_to=share(arguments.up_to, "--up-to"),
        reason=_reason(arguments.reason),
        expires=_expires(arguments.days),
        since=_since(arguments.since, repository),
    )
    path = write_acceptance(repository, accepted)
    for line in as_text(accepted, path, repository):
        print(line)
    if not any(accepted.covers(test) for test in place.stored_tests()):
        print(f"{place.store.path} holds no run of it: see to it that the name is right.")
    return 0


def as_text(accepted: Acceptance, path: Path, repository: Repository) -> list[str]:
    """Return what was written, and what it does once it is committed."""
    file = os.path.relpath(path, Path.cwd())
    rise = f"{100 * accepted.up_to:.3g} %"
    may = f"may rise by up to {rise}" if accepted.up_to else "begins a new level"
    lines = [
        f"{accepted.test} {may}: {accepted.reason}",
        f"Written to {file}: nothing holds yet for others. Commit it with the change (git add {file}).",
    ]
    if accepted.since:
        lines.append(
            f"Where it is in the work tree, runs from {accepted.since[:7]} on count where they rose by no more than "
            f"{rise}, and the level begins there."
        )
    elif accepted.up_to:
        lines.append(
            f"The gate then lets the test rise by {rise}, until a run of it is stored at the commit that brings the "
            f"file to the branch, or until {accepted.expires}; its level begins at that commit."
        )
    else:
        lines.append("Its level then begins at the commit that brings the file to the branch.")
    if run_git(repository.top_level, "check-ignore", "--quiet", os.fspath(path)).code == 0:
        lines.append(f"git ignores {file}: add it with git add --force, or it is never committed.")
    return lines


def _reason(text: str) -> str:
    reason = " ".join(text.split())
    # The command that a failure proposes has three dots here.
    if not any(map(str.isalnum, reason)):
        raise UsageError(
            f"--reason is {'only ' + repr(reason) if reason else 'empty'}: say why the rise is accepted; the next "
            "reader will ask"
        )
    return reason


def _expires(days: int) -> date:
    if not 1 <= days <= 3650:
        raise UsageError(f"--days={days}: must be from 1 to 3650")
    return datetime.now(timezone.utc).date() + timedelta(days=days)


def _since(text: str | None, repository: Repository) -> str:
    if text is None:
        return ""
    commit = repository.resolve(text).commit
    if repository.head is None or not repository.is_ancestor(commit, repository.head):
        raise HistoryError(
            f"--since={text}: {commit[:7]} is not in the history of HEAD: name a merged commit"
        )
    return commit
