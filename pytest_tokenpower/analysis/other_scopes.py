"""What is measured beside the figure: other scopes' J/token, and the rest of a node. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pytest_tokenpower.analysis.figures import figures
from pytest_tokenpower.analysis.rounds import flagged_too_often, round_records
from pytest_tokenpower.core.records import Figure, RoundRecord
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.core.windows import RoundWindow
from pytest_tokenpower.telemetry.scopes import PARTS
from pytest_tokenpower.telemetry.timeline import Timeline
from pytest_tokenpower.telemetry.types import Device

FIGURE = "_joules_per_token"


"""A figure beside the test's own is named by its scope: ``cpu_joules_per_token``."""


@dataclass(frozen=True)
class Beside:
    """``figures`` of the other scopes, ``facts`` about them (why one is absent), the rounds with their joules."""

    rounds: tuple[RoundRecord, ...]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)


def whole(windows: Sequence[RoundWindow]) -> RoundWindow:
    """The measurement as one round, from the first one's start to the last one's end: what a slow meter resolves.

    What lies between the rounds is in its energy, and all tokens of the rounds are in its count; phases are not.
    """
    tokens = sum((window.tokens for window in windows[1:]), windows[0].tokens)
    return RoundWindow(
        start_ns=min(window.start_ns for window in windows),
        end_ns=max(window.end_ns for window in windows),
        tokens=tokens,
        repeats=sum(window.repeats for window in windows),
        executions=frozenset().union(*(window.executions for window in windows)),
    )


def beside(
    timeline: Timeline,
    devices: Sequence[Device],
    others: Sequence[Device],
    windows: Sequence[RoundWindow],
    rounds: Sequence[RoundRecord],
) -> Beside:
    """J/token of each scope of ``others`` over the figure's ``windows``, and of the node's rest where that is known.

    ``devices`` made the figure and ``rounds`` are its records. A quick scope's figure is that of the good rounds,
    a slow one's that of the whole measurement. A scope that fails is absent, with the reason; it spoils nothing.
    """
    if not windows:
        return Beside(tuple(rounds))
    ours = {device.provenance for device in devices}
    groups: dict[str, list[Device]] = {}
    for device in others:
        # A modelled joule beside a measured one says so in its name.
        name = device.scope if device.provenance in ours else f"{device.scope}_{device.provenance}"
        groups.setdefault(name, []).append(device)
    found: dict[str, Figure] = {}
    facts: dict[str, Fact] = {}
    kept = list(rounds)
    for name, group in groups.items():
        slow = any(device.slow for device in group)
        mine = list(_records(timeline, group, [whole(windows)] if slow else windows))
        if slow:
            facts |= _span_facts(name, windows)
        else:
            kept = [_with_joules(one, side) for one, side in zip(kept, mine, strict=True)]
            mine = [_dropped_with(side, one) for one, side in zip(rounds, mine, strict=True)]
        _take(name, mine, found, facts)
    node = [device for device in (*devices, *others) if device.scope == "node" and device.provenance in ours]
    parts = [[d for d in (*devices, *others) if d.scope == p and d.provenance in ours] for p in PARTS]
    if node and all(parts):
        over = [whole(windows)] if any(d.slow for each in (node, *parts) for d in each) else windows
        columns = [_records(timeline, each, over) for each in (node, *parts)]
        _take("other", [_rest(*row) for row in zip(*columns, strict=True)], found, facts)
    return Beside(tuple(kept), found, facts)


def _records(
    timeline: Timeline, devices: Sequence[Device], windows: Iterable[RoundWindow]
) -> tuple[RoundRecord, ...]:
    return round_records(timeline, devices, [replace(window, phases=()) for window in windows])


def _take(name: str, rounds: Sequence[RoundRecord], found: dict[str, Figure], facts: dict[str, Fact]) -> None:
    """The figure of a scope into ``found``, or into ``facts`` why there is none."""
    reasons = flagged_too_often(rounds, 1)
    if reasons:
        facts[f"beside.{name}.absent"] = "; ".join(reasons)
    else:
        found[f"{name}{FIGURE}"] = figures(rounds)["joules_per_token"]


def _span_facts(name: str, windows: Sequence[RoundWindow]) -> dict[str, Fact]:
    one = whole(windows)
    inside_ns = sum(window.end_ns - window.start_ns for window in windows)
    return {
        f"beside.{name}.span_seconds": round((one.end_ns - one.start_ns) / 1e9, 3),
        f"beside.{name}.share_in_rounds": round(min(inside_ns / (one.end_ns - one.start_ns), 1.0), 4),
    }


def _with_joules(one: RoundRecord, side: RoundRecord) -> RoundRecord:
    import msgspec

    known = {name: None if side.reasons else joules for name, joules in side.device_joules.items()}
    return msgspec.structs.replace(one, device_joules={**one.device_joules, **known})


def _dropped_with(side: RoundRecord, one: RoundRecord) -> RoundRecord:
    """A round that the figure has lost to a guard is no round for the others; nor is it held against them."""
    import msgspec

    return msgspec.structs.replace(side, joules=None) if one.reasons and not side.reasons else side


def _rest(node: RoundRecord, *parts: RoundRecord) -> RoundRecord:
    import msgspec

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
