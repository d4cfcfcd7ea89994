"""What a committed acceptance does to a verdict: a higher limit, and words for it. Pure."""

from __future__ import annotations

import shlex

from pytest_tokenpower.core.text import percent
from pytest_tokenpower.store.baseline import ComparableRuns
from pytest_tokenpower.store.explain import accept_command


def allowed_change(limit: float, stored: ComparableRuns) -> float:
    """Return the rise over stored runs that fails a test: its own limit, or what was accepted where that is more."""
    accepted = stored.acceptance
    return limit if accepted is None else max(limit, accepted.acceptance.up_to)


def made_use(change: float, limit: float, stored: ComparableRuns) -> bool:
    """Whether a change stays within its limit thanks to an acceptance alone."""
    return limit < change <= allowed_change(limit, stored)


def acceptance_notes(kind: str, change: float, limit: float, stored: ComparableRuns) -> list[str]:
    """Say what the reader of a verdict must know of acceptances.

    Args:
        kind: the verdict's word.
        change: the change that was judged, a share.
        limit: the limit that the test has without any acceptance.
        stored: the runs it is held against, and the acceptance that holds over them.
    """
    notes = []
    placed = stored.acceptance
    if placed is not None and placed.acceptance.up_to > limit and change > limit:
        accepted = placed.acceptance
        notes.append(
            f"Accepted: up to {percent(accepted.up_to)} until {accepted.expires} ({accepted.reason}; {placed.file}); "
            f"without it the limit is {percent(limit)}."
        )
        if kind == "regressed":
            notes.append("It rose by more than was accepted.")
    branch = stored.label.rpartition("@")[0] or stored.label
    if kind == "regressed" and stored.own:
        notes.append(f"This is {branch} itself: an acceptance is due, or a mend; until then its runs fail.")
    elif kind == "improved" and stored.own:
        notes.append(
            f"This is {branch} itself: so that its level begins here, {accept_command(stored.test, 0.0)}, and commit "
            "the file that it writes."
        )
    return notes


def next_step(stored: ComparableRuns, test: str, change: float, change_high: float) -> str:
    """Return the commands that a regression leads to, each ending its line, to be copied; empty for what is none."""
    if change <= 0:
        return ""
    steps = []
    if stored.history is not None:
        steps.append(" ".join(filter(None, ("tokenpower history", stored.history, shlex.quote(test)))))
    if stored.acceptable:
        # What is proposed lets the same change pass when it is measured again, and not much more.
        proposed = min(max(change, change_high), 1.5 * change)
        command = accept_command(test, proposed)
        steps.append(f"Intended? {command}" if steps else f"intended? {command}")
    return "\n".join(steps)
