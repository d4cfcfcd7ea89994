"""Whether stored bytes are what was written, and whether a stored measurement can have happened."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pytest_tokenpower.core.records import Figure, MeasurementRecord, RoundRecord

_DIGEST = re.compile(rb',\s*"digest"\s*:\s*"([^"]*)"\s*\}\s*\Z')

MOST_TOKENS = 10**12
MOST_SECONDS = 1e8
MOST_WATTS = 1e7
"""Nothing that is measured here comes near these."""


def with_digest(document: bytes) -> bytes:
    """A JSON object with a last field ``digest``: the SHA-256 of the object without it."""
    return document[:-1] + b',"digest":"' + hashlib.sha256(document).hexdigest().encode() + b'"}'


def has_digest(data: bytes) -> bool:
    """Whether the bytes end in a digest, as every run does that was written since there is one."""
    return _DIGEST.search(data, max(0, len(data) - 200)) is not None


def is_damaged(data: bytes) -> bool:
    """Whether JSON that carries a digest is not what was written; white space may differ (an indented export)."""
    found = _DIGEST.search(data, max(0, len(data) - 200))
    if found is None:
        return False
    if _matches(data[: found.start()] + b"}", found[1]):
        return False
    try:
        compact = msgspec.json.format(data, indent=-1)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return True
    found = _DIGEST.search(compact, max(0, len(compact) - 200))
    return found is None or not _matches(compact[: found.start()] + b"}", found[1])


def _matches(document: bytes, digest: bytes) -> bool:
    return hashlib.sha256(document).hexdigest().encode() == digest


def impossible(measurement: MeasurementRecord) -> str:
    """What cannot be so in a measurement, in words; "" where all of it can."""
    rounds = [
        *measurement.rounds,
        *(one for variant in measurement.variants.values() for one in variant),
        *(one for restart in measurement.restarts for one in restart),
    ]
    for number, one in enumerate(rounds, 1):
        for what in _impossible_round(one):
            return f"round {number} of {measurement.test}: {what}"
    figures: list[tuple[str, Figure]] = list(measurement.figures.items())
    figures += [
        (other.scope, other.joules_per_token)
        for other in measurement.other_scopes
        if other.joules_per_token is not None
    ]
    for name, figure in figures:
        if not math.isfinite(figure.value) or math.isnan(figure.stderr) or figure.stderr < 0:
            return f"{name} of {measurement.test}: {figure.value} with standard error {figure.stderr}"
    return ""


def _impossible_round(one: RoundRecord) -> Iterator[str]:
    """A dropped round may hold what its reasons say is wrong with it, as long as its numbers are numbers."""
    good = not one.reasons
    tokens = one.prompt_tokens + one.generated_tokens
    if not 0 <= one.seconds <= MOST_SECONDS or (good and one.seconds == 0):
        yield f"{one.seconds} seconds"
    if min(one.prompt_tokens, one.generated_tokens) < 0 or tokens > MOST_TOKENS:
        yield f"{one.prompt_tokens} prompt and {one.generated_tokens} generated tokens"
    if good and tokens == 0:
        yield "no tokens"
    if one.repeats < 1 or one.responses < 0 or one.start_ns < 0:
        yield f"{one.repeats} repeats, {one.responses} responses, begun at {one.start_ns} ns"
    if one.joules is not None:
        most = MOST_WATTS * max(one.seconds, 1.0)
        if not abs(one.joules) <= most or (good and one.joules <= 0):
            yield f"{one.joules} joules in {one.seconds} seconds"
    if not _finite([one.stderr_joules], least=0):
        yield f"a standard error of {one.stderr_joules} joules"
    if not _finite(one.device_joules.values()) or not _finite(
        [one.peak_watts, one.temperature_celsius, one.sm_clock_mhz]
    ):
        yield "a reading that is no finite number"
    if not _finite(one.limited_shares.values(), least=0):
        yield "a share of time under a limit that is none"
    for name, phase in one.phases.items():
        if not _finite([phase.joules]) or not _finite([phase.seconds, phase.stderr_joules], least=0):
            yield f"{phase.joules} joules in {phase.seconds} seconds of {name}"


def _finite(values: Iterable[float | None], least: float = -math.inf) -> bool:
    return all(value is None or (math.isfinite(value) and value >= least) for value in values)
