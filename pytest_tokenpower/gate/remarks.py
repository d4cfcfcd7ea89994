"""What the reader of a comparison must know of how it was found, a sentence each. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from pytest_tokenpower.core.text import percent, plural, signed
from pytest_tokenpower.stats.comparison import FEWEST_PACE_OCCASIONS, Comparison
from pytest_tokenpower.stats.rule import Decision
from pytest_tokenpower.stats.scatter import CAUTION_PROCESS_SD, CAUTION_SD

BOARD_SD = 0.015
"""How much boards of one model differ: four H100s by 1.6 %, eight H200s by 1.5 %."""


def of_comparison(
    found: Comparison, left_out: int, started: Sequence[float], stale: Collection[str] = ()
) -> tuple[str, ...]:
    """Return the board, the sitting, and restarts that say nothing here.

    Args:
        found: the comparison.
        left_out: how many restarts were on another board.
        started: when the stored runs of the level began.
        stale: devices whose calibration is too old.
    """
    lines = [_other_board(found, stale), _sitting(found, started), *of_waiting(found)]
    if left_out:
        lines.append(f"{plural(left_out, 'run')} of this code on another board left out.")
    return tuple(line for line in lines if line)


def of_waiting(found: Comparison) -> tuple[str, ...]:
    """Say that work and pace are told apart by a guess, where they are."""
    if found.work is None or found.waiting is None or not found.waiting.assumed:
        return ()
    return (
        f"Work and pace are estimates: the board's waiting watts are guessed from its power limit "
        f"({found.waiting.watts:.0f} ± {found.waiting.stderr:.0f} W); tokenpower calibrate measures them.",
    )


def of_step(cut: int, level: int, change: float, accept: str) -> tuple[str, ...]:
    """Say that ``cut`` stored runs lie before a step, after which the ``level`` runs come that are the baseline.

    The step is a ``change`` that the command ``accept`` accepts, where there is one.
    """
    if not cut:
        return ()
    due = (
        f"An acceptance is due, or a mend: {accept}"
        if change > 0
        else f"So that its level begins here, {accept}"
    )
    return (
        f"Compared with the newest {level} of {plural(cut + level, 'stored run')}: before them the level was "
        f"another, and nobody has accepted the step of {signed(change)} (tokenpower history shows it).",
        *([f"{due}, and commit the file that it writes."] if accept else []),
    )


def of_reason(found: Comparison, decision: Decision) -> tuple[str, ...]:
    """Return what kept a significant change from being a verdict; empty where nothing did."""
    if decision.reason == "trade":
        return (
            "A trade: the GPU does more work per token and is faster for it; which of the two counts is yours to say.",
        )
    if decision.reason == "pace":
        return (
            "The rise is not the GPU's work but a slower host, and how its pace scatters is known from "
            f"{found.pace_occasions} of {FEWEST_PACE_OCCASIONS} occasions on this host: energy.compare runs both "
            "variants alternately and tells.",
        )
    if decision.reason == "slope" and found.slope is not None and found.waiting is not None:
        return (
            f"Work decides nothing here: within runs joules rise by {found.slope.watts:.0f} W with their seconds, and "
            f"waiting watts of {found.waiting.watts:.0f} do not explain that.",
        )
    return ()


def undecided(kind: str, found: Comparison, decision: Decision, family: int, remedy: str = "") -> str:
    """Return what would decide an inconclusive verdict; empty for any other. ``remedy``: where it is no stored run."""
    if kind != "inconclusive":
        return ""
    if reason := of_reason(found, decision):
        return reason[0].rstrip(".")
    share = 100 * min(family * decision.p_failing, 1.0)
    doubtful = (
        f"doubtful (chance would show this in {share:.2g} of 100 builds); " if decision.doubtful else ""
    )
    among = f" among {plural(family, 'comparison')}" if family > 1 else ""
    part = "the GPU's work" if decision.part == "work" else "J/token"
    return (
        f"{doubtful}{among.strip() + ' ' if among else ''}a rise of {part} fails here from "
        f"{percent(decision.smallest_failing, 2)} on, and {percent(decision.resolvable, 2)} is found in four of five "
        f"cases; {remedy or _remedy(found)}"
    )


def of_restarts(found: Comparison) -> str:
    """Return what tells smaller changes where two variants ran alternately."""
    if found.known:
        return "more restarts tell smaller ones"
    return (
        f"until three restarts tell, both are taken to differ by {percent(CAUTION_PROCESS_SD)} from process to "
        "process: energy.compare(..., restarts=3) of engines in processes of their own tells smaller ones, and more "
        "ABBA blocks where those scatter by more"
    )


def _remedy(found: Comparison) -> str:
    if found.other_board and not found.calibrated:
        return "tokenpower calibrate on each board, or stored runs of this one, tell smaller ones"
    if found.known:
        return "more stored occasions, restarts (--energy-max-seconds) or energy.compare tell smaller ones"
    return (
        f"until three occasions of this test are stored its runs are taken to scatter by {percent(CAUTION_SD)}: store "
        "runs on other occasions, or use energy.compare"
    )


def _other_board(found: Comparison, stale: Collection[str]) -> str:
    if not found.other_board:
        # In a pool the reader wants to know which board it was, though its level is part of the comparison.
        others = [board for board in found.baseline_boards if board and board != found.board]
        known = bool(found.board and others)
        return f"This run is on {found.board}, stored runs also on {', '.join(others)}." if known else ""
    there = ", ".join(found.baseline_boards) or "boards that are not known"
    where = f"Another board: this run is on {found.board}, the stored runs on {there}."
    if found.calibrated:
        return f"{where} What their calibrations foretell of the difference is taken out."
    old = [
        name for name in stale if name in found.board or any(name in each for each in found.baseline_boards)
    ]
    if old:
        where += f" The calibration of {', '.join(old)} is too old."
    return (
        f"{where} Boards of one model differ by about {percent(BOARD_SD)}, which the interval counts; `tokenpower "
        "calibrate` on each takes most of that out."
    )


def _sitting(found: Comparison, started: Sequence[float]) -> str:
    # Of the sitting in which the new runs were measured, too, they are what the comparison takes.
    if found.runs < 2 or found.occasions > 1 or found.together or not started:
        return ""
    minutes = math.ceil((max(started) - min(started)) / 60)
    return (
        f"The {found.runs} stored runs are of one sitting (within {plural(minutes, 'minute')}) and count as one "
        "occasion."
    )
