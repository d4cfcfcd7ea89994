"""What a committed acceptance does to a verdict: a higher limit, and words for it. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from pytest_tokenpower.core.records import VerdictRecord
from pytest_tokenpower.store.baseline import ComparableRuns
from pytest_tokenpower.store.explain import accept_command

ACCEPTED = "  Accepted:"
"""How the line of a message begins that tells of an acceptance."""


def allowed_change(limit: float, stored: ComparableRuns) -> float:
    """The rise over stored runs that fails a test: its own limit, or what was accepted where that is more."""
    accepted = stored.acceptance
    return limit if accepted is None else max(limit, accepted.acceptance.up_to)


def with_acceptance(verdict: VerdictRecord, stored: ComparableRuns, limit: float) -> VerdictRecord:
    """A verdict by :func:`allowed_change`, with what its reader must know of acceptances.

    Args:
        verdict: the verdict against ``stored``.
        stored: the runs, and the acceptance that holds over them.
        limit: the limit that the test has without any acceptance.

    Returns:
        The verdict. Its message tells of an acceptance that was made use of or exceeded, and where there is none,
        how a regression is accepted, and that one of the branch itself is due to be.
    """
    placed = stored.acceptance
    lines = []
    if placed is not None and verdict.change is not None and placed.acceptance.up_to > limit:
        accepted = placed.acceptance
        rise = (
            f"up to {100 * accepted.up_to:.3g} % until {accepted.expires} ({accepted.reason}; {placed.file})"
        )
        if verdict.change > limit:
            lines.append(f"{ACCEPTED} {rise}; without it the limit is {100 * limit:.3g} %.")
        if verdict.kind == "regressed":
            lines.append("  It rose by more than was accepted.")
    if verdict.kind == "regressed":
        branch = stored.label.rpartition("@")[0] or stored.label
        if stored.own:
            lines.append(
                f"  This is {branch} itself: an acceptance is due, or a mend; until then its runs fail."
            )
        # What is proposed lets the same change pass when it is measured again, and not much more.
        read = verdict.change or 0.0
        proposed = min(max(read, verdict.change_high or 0.0), 1.5 * read)
        lines.append(
            f"  Intended? {accept_command(stored.test, proposed)}, and commit the file that it writes."
        )
    elif verdict.kind == "improved" and stored.own:
        lines.append(
            f"  This is {stored.label.rpartition('@')[0] or stored.label} itself: so that its level begins here, "
            f"{accept_command(stored.test, 0.0)}, and commit the file that it writes."
        )
    if not lines:
        return verdict
    return replace(verdict, message="\n".join([verdict.message, *lines]))


def made_use(verdict: VerdictRecord) -> bool:
    """Whether a verdict owes its limit to an acceptance."""
    return f"\n{ACCEPTED}" in verdict.message
