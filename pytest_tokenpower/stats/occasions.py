"""Occasions: stretches of time on one host, whose runs share the state of the machine."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_SECONDS = 3600.0
"""Runs that begin within an hour of an occasion's first one belong to it: a machine's room, clocks and neighbours
change over hours. Longer stretches would make one occasion of a busy machine's whole week."""


def occasions(starts_s: Sequence[float], hosts: Sequence[str]) -> tuple[str, ...]:
    """Name the occasion of each run.

    Args:
        starts_s: When each run began, on one clock, in seconds.
        hosts: The host of each run.

    Returns:
        One name per run, in the order given; equal names are one occasion.

    Raises:
        ValueError: The lists do not match.
    """
    if len(starts_s) != len(hosts):
        raise ValueError(f"{len(starts_s)} starts for {len(hosts)} hosts")
    names = [""] * len(starts_s)
    first: dict[str, float] = {}
    for at in sorted(range(len(starts_s)), key=lambda index: starts_s[index]):
        host = hosts[at]
        if host not in first or starts_s[at] - first[host] > LONGEST_SECONDS:
            first[host] = starts_s[at]
        names[at] = f"{host}@{first[host]:.0f}"
    return tuple(names)
