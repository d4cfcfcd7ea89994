"""`tokenpower prune`: remove old runs that no baseline needs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

from pytest_tokenpower.cli.store_access import add_storage
from pytest_tokenpower.errors import StoreError, UsageError
from pytest_tokenpower.store.access import StoreContext, when
from pytest_tokenpower.store.retention import Retention, lines_of
from pytest_tokenpower.store.store import StoredFile

DEFAULT_KEEP = 20
DEFAULT_DAYS = 90.0

EPILOG = """\
Kept are, of every test and key, the newest N runs on the first-parent history of the default branch, of each other
branch (and of the point where it left the default branch) and of each tag; the newest N of every saved name; and
what is younger than DAYS. What was pushed stays on the remote, and pull brings it back.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is kept."""
    parser.epilog = EPILOG
    parser.add_argument(
        "--keep",
        metavar="N",
        type=int,
        default=DEFAULT_KEEP,
        help=f"runs of each test and key that a baseline keeps (default: {DEFAULT_KEEP})",
    )
    parser.add_argument(
        "--older-than",
        metavar="DAYS",
        type=float,
        default=DEFAULT_DAYS,
        help=f"remove only runs that are older (default: {DEFAULT_DAYS:g})",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be removed, and remove nothing"
    )
    add_storage(parser)


def run(arguments: argparse.Namespace) -> int:
    """Remove, and say what was removed."""
    if arguments.keep < 1:
        raise UsageError(f"--keep={arguments.keep}: must be at least 1, or branches lose their baselines")
    days = arguments.older_than
    if not (math.isfinite(days) and 0 <= days <= 36500):
        raise UsageError(f"--older-than={days:g}: must be days from 0 to 36500")
    place = StoreContext.of(arguments)
    entries = place.entries()
    limit = (datetime.now(timezone.utc) - timedelta(days=days)).strftime("%Y%m%dT%H%M%S.%fZ")
    old = [entry for entry in entries if entry.created < limit]
    needed: set[StoredFile] = set()
    if old:
        lines = lines_of(place.repository) if place.repository is not None else ()
        if place.repository is None and any(entry.commit for entry in old):
            # Which commits a branch needs is known only where its history is.
            place.needs_repository()
        needed = Retention(place.store, place.repository, arguments.keep).needed(entries, lines)
    gone = [entry for entry in old if entry not in needed]
    size = _remove(gone, dry=arguments.dry_run)
    verb = "would be removed" if arguments.dry_run else "removed"
    print(f"{len(gone)} of {len(entries)} runs {verb}, {size / 1e6:.1f} MB.")
    kept = len(old) - len(gone)
    print(
        f"Kept: {len(entries) - len(old)} not older than {days:g} days, {kept} older that a baseline may need"
        f"{' or that cannot be read' if place.store.problems else ''}."
    )
    return 0


def _remove(entries: Sequence[StoredFile], *, dry: bool) -> int:
    size = 0
    for entry in entries:
        try:
            size += entry.path.stat().st_size
            if not dry:
                entry.path.unlink()
        except FileNotFoundError:
            continue  # Another prune was quicker.
        except OSError as error:
            raise StoreError(f"{entry.path}: cannot be removed ({error.strerror})") from error
        commit = f"commit {entry.commit[:7]}" if entry.commit else "outside git"
        state = ", with uncommitted changes" if entry.state == "dirty" else ""
        print(f"  {entry.id8}  {when(entry.created)}  {commit}{state}")
    return size
