"""Between the windows of a recording and the rounds of a test, both ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.measurement import PhaseWindow, RoundWindow, round_records
from pytest_tokenpower.record import RoundRecord
from pytest_tokenpower.telemetry.recording import RecordedWindow, Recording
from pytest_tokenpower.tokens import TokenCount

NO_DEVICE = "the recording has no readings of any device"


def recorded_windows(
    test: str, rounds: Sequence[RoundWindow], devices: Sequence[str]
) -> Iterator[RecordedWindow]:
    """The rounds of a test and their phases as windows of a recording, under the test's name.

    A step carries its own tokens; a phase without steps carries its round's, where the round has one window of it.
    """
    for one in rounds:
        yield RecordedWindow(
            name=test,
            start_ns=one.start_ns,
            end_ns=one.end_ns,
            prompt_tokens=one.tokens.prompt,
            generated_tokens=one.tokens.generated,
            responses=one.tokens.responses,
            repeats=one.repeats,
            devices=tuple(devices),
        )
        kinds = Counter(phase.phase for phase in one.phases)
        for phase in one.phases:
            alone = kinds[phase.phase] == 1
            prompt, generated = phase.prompt_tokens, phase.generated_tokens
            yield RecordedWindow(
                name=test,
                start_ns=phase.start_ns,
                end_ns=phase.end_ns,
                phase=phase.phase,
                prompt_tokens=one.tokens.prompt if alone and prompt is None else prompt,
                generated_tokens=one.tokens.generated if alone and generated is None else generated,
                estimated=phase.estimated,
                devices=tuple(devices),
            )


def rounds_of(recording: Recording, test: str) -> tuple[RoundWindow, ...]:
    """The recorded rounds of a test, in the order of the recording, with the phases that lie inside them.

    Raises UsageError where the recording has none, or does not say what a round generated.
    """
    mine = [window for window in recording.windows if window.name == test]
    whole = [window for window in mine if window.phase is None]
    if not whole:
        names = sorted({window.name for window in recording.windows if window.phase is None})
        known = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise UsageError(
            f"{recording.path} has no window of {test}: a replay takes each test's rounds from the recording, by "
            f"the test's name; recorded are {known or 'none'}"
        )
    return tuple(_round(recording, one, mine) for one in whole)


def _round(recording: Recording, one: RecordedWindow, mine: Sequence[RecordedWindow]) -> RoundWindow:
    if not one.generated_tokens:
        raise UsageError(
            f"{recording.path}: a window of {one.name} has no generated tokens: there is no energy per token to "
            "replay"
        )
    phases = tuple(
        PhaseWindow(
            each.phase,
            each.start_ns,
            each.end_ns,
            each.estimated,
            each.prompt_tokens,
            each.generated_tokens,
        )
        for each in mine
        if each.phase is not None and one.start_ns <= each.start_ns and each.end_ns <= one.end_ns
    )
    tokens = TokenCount(one.prompt_tokens or 0, one.generated_tokens, one.responses)
    return RoundWindow(one.start_ns, one.end_ns, tokens, one.repeats, phases)


def window_records(recording: Recording) -> tuple[RoundRecord, ...]:
    """Energy, conditions and reasons of every window of a recording, in its order, each as a round by itself.

    The same rules as in a live run; a window over devices that it names, or else over all.
    """
    groups: dict[tuple[str, ...] | None, list[int]] = {}
    for at, window in enumerate(recording.windows):
        groups.setdefault(window.devices, []).append(at)
    records: dict[int, RoundRecord] = {}
    for names, group in groups.items():
        devices = [each for each in recording.devices if names is None or each.id in names]
        rounds = [
            RoundWindow(
                window.start_ns,
                window.end_ns,
                TokenCount(window.prompt_tokens or 0, window.generated_tokens or 0, window.responses),
                window.repeats,
            )
            for window in (recording.windows[at] for at in group)
        ]
        records |= zip(group, round_records(recording.timeline, devices, rounds), strict=True)
    if not recording.devices:
        # The sum over no device is no energy of 0 J.
        nothing: dict[str, Any] = {"joules": None, "stderr_joules": None, "reasons": (NO_DEVICE,)}
        records = {at: msgspec.structs.replace(record, **nothing) for at, record in records.items()}
    return tuple(records[at] for at in range(len(recording.windows)))
