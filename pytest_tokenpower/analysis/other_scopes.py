"""Other scopes than the figure's: their J/token over the same rounds, and the rest of a node. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import msgspec

from pytest_tokenpower.analysis.figures import figures
from pytest_tokenpower.analysis.rounds import flagged_too_often, round_records
from pytest_tokenpower.core.records import RoundRecord, ScopeFigure
from pytest_tokenpower.core.windows import RoundWindow
from pytest_tokenpower.meters.scopes import PARTS
from pytest_tokenpower.meters.timeline import Timeline
from pytest_tokenpower.meters.types import Device


@dataclass(frozen=True)
class OtherScopes:
    """The other scopes' figures, and the rounds with those devices' joules."""

    rounds: tuple[RoundRecord, ...]
    scopes: tuple[ScopeFigure, ...] = ()


def whole(windows: Sequence[RoundWindow]) -> RoundWindow:
    """Return the measurement as one round, from the first start to the last end: what a slow meter resolves.

    What lies between the rounds is in its energy, and all tokens of the rounds are in its count; phases are not.
    """
    each = [window.latencies for window in windows]
    return replace(
        windows[0],
        start_ns=min(window.start_ns for window in windows),
        end_ns=max(window.end_ns for window in windows),
        tokens=sum((window.tokens for window in windows[1:]), windows[0].tokens),
        repeats=sum(window.repeats for window in windows),
        phases=(),
        executions=frozenset().union(*(window.executions for window in windows)),
        # Of a part of its requests they would not be the round's.
        latencies=tuple(latency for one in each for latency in one) if all(each) else (),
        reasons=tuple(dict.fromkeys(reason for window in windows for reason in window.reasons)),
    )


def other_scopes(
    timeline: Timeline,
    devices: Sequence[Device],
    others: Sequence[Device],
    windows: Sequence[RoundWindow],
    rounds: Sequence[RoundRecord],
) -> OtherScopes:
    """Evaluate the scopes of ``others`` over the figure's windows, and the node's rest where that is known.

    Args:
        timeline: what the meters have read.
        devices: those that made the figure.
        others: the other devices that were measured.
        windows: the figure's rounds.
        rounds: their records.

    Returns:
        J/token of each scope: a quick one's over the good rounds, a slow one's over the whole measurement. A scope
        that fails is absent, with the reason; it spoils nothing.
    """
    if not windows:
        return OtherScopes(tuple(rounds))
    ours = {device.provenance for device in devices}
    # A modelled joule along with a measured one is a scope of its own.
    groups: dict[tuple[str, str], list[Device]] = {}
    for device in others:
        groups.setdefault((device.scope, device.provenance), []).append(device)
    found = []
    kept = list(rounds)
    for (scope, provenance), group in groups.items():
        slow = any(device.slow for device in group)
        mine = list(_records(timeline, group, [whole(windows)] if slow else windows))
        if not slow:
            kept = [_with_joules(one, side) for one, side in zip(kept, mine, strict=True)]
            mine = [_dropped_with(side, one) for one, side in zip(rounds, mine, strict=True)]
        found.append(_figure(scope, provenance, mine, windows if slow else ()))
    node = [device for device in (*devices, *others) if device.scope == "node" and device.provenance in ours]
    parts = [[d for d in (*devices, *others) if d.scope == p and d.provenance in ours] for p in PARTS]
    if node and all(parts):
        over = [whole(windows)] if any(d.slow for each in (node, *parts) for d in each) else windows
        columns = [_records(timeline, each, over) for each in (node, *parts)]
        rest = [_rest(*row) for row in zip(*columns, strict=True)]
        found.append(_figure("other", node[0].provenance, rest, ()))
    return OtherScopes(tuple(kept), tuple(found))


def _records(
    timeline: Timeline, devices: Sequence[Device], windows: Iterable[RoundWindow]
) -> tuple[RoundRecord, ...]:
    return round_records(timeline, devices, [replace(window, phases=()) for window in windows])


def _figure(
    scope: str, provenance: str, rounds: Sequence[RoundRecord], span: Sequence[RoundWindow]
) -> ScopeFigure:
    """Return the figure of a scope, or why there is none; a slow meter cannot tell the rounds of ``span`` apart."""
    seconds = share = None
    if span:
        one = whole(span)
        inside_ns = sum(window.end_ns - window.start_ns for window in span)
        seconds = round((one.end_ns - one.start_ns) / 1e9, 3)
        share = round(min(inside_ns / (one.end_ns - one.start_ns), 1.0), 4)
    if reasons := flagged_too_often(rounds, 1):
        return ScopeFigure(scope, provenance, None, "; ".join(reasons), seconds, share)
    found = {name: figure for name, figure in figures(rounds).items() if name.startswith("joules_per_")}
    per_token = found.pop("joules_per_token", None)
    why = "" if per_token or found else "nothing is known of its joules per token, prompt token or response"
    return ScopeFigure(scope, provenance, per_token, why, seconds, share, found)


def _with_joules(one: RoundRecord, side: RoundRecord) -> RoundRecord:
    known = {name: None if side.reasons else joules for name, joules in side.device_joules.items()}
    return msgspec.structs.replace(one, device_joules={**one.device_joules, **known})


def _dropped_with(side: RoundRecord, one: RoundRecord) -> RoundRecord:
    """Return a round that the figure has lost to a guard is no round for the others; nor is it held against them."""
    return msgspec.structs.replace(side, joules=None) if one.reasons and not side.reasons else side


def _rest(node: RoundRecord, *parts: RoundRecord) -> RoundRecord:
    reasons = tuple(reason for each in (node, *parts) for reason in each.reasons)
    joules = stderr = None
    if not reasons:
        joules = (node.joules or 0.0) - sum(each.joules or 0.0 for each in parts)
        stderr = math.hypot(*(each.stderr_joules or 0.0 for each in (node, *parts)))
        if joules <= 0:
            reasons = (
                f"the node reads {node.joules:.4g} J, less than its parts together: one of the meters is wrong",
            )
    return msgspec.structs.replace(node, joules=joules, stderr_joules=stderr, reasons=reasons)
