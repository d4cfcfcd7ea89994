"""Claims of suites for people: a table, and a line each."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_tokenpower.core.records import NOT_MEASURED, ClaimRecord
from pytest_tokenpower.core.text import plural


def claims_table(claims: Sequence[ClaimRecord]) -> list[str]:
    """Each claim with what was found; below it what is to be known of them."""
    from tabulate import tabulate

    rows = [
        [
            claim.name,
            claim.says,
            found(claim),
            claim.paper,
            claim.word.upper() if claim.word == "refuted" else claim.word,
        ]
        for claim in claims
    ]
    head = ["claim", "says", "found [95 %]", "paper", "word"]
    used = [at for at in range(len(head)) if at != 3 or any(row[3] for row in rows)]
    lines = tabulate(
        [[row[at] for at in used] for row in rows],
        headers=[head[at] for at in used],
        tablefmt="simple",
        disable_numparse=True,
    ).splitlines()
    notes = [
        f"{claim.name}: {claim.word}: {claim.reason}"
        for claim in claims
        if claim.reason and not claim.reason.startswith(NOT_MEASURED)
    ]
    if lacking := sum(claim.reason.startswith(NOT_MEASURED) for claim in claims):
        notes.append(f"{plural(lacking, 'claim')} not testable here, as not all their cells were measured")
    return [
        *lines,
        *([""] if notes else []),
        *notes,
        *dict.fromkeys(note for claim in claims for note in claim.notes),
    ]


def found(claim: ClaimRecord) -> str:
    """The ratio with its interval; of a shape the last point's to the first's."""
    if claim.ratio is None or claim.low is None or claim.high is None:
        return ""
    return f"{claim.ratio:.3g} [{claim.low:.3g}, {claim.high:.3g}]"


def claim_line(claim: ClaimRecord) -> str:
    """What became of a claim, the news first."""
    parts = [f"{claim.word.upper()}: {claim.name} ({claim.figure} {claim.says})"]
    if text := found(claim):
        parts.append(f"found {text}")
    if claim.reason:
        parts.append(claim.reason)
    if claim.paper:
        parts.append(f"published: {claim.paper}")
    return "; ".join(parts)
