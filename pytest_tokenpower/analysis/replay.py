"""Between the windows of a recording and the rounds of a test, both ways."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_tokenpower.analysis.rounds import evaluate
from pytest_tokenpower.core.records import RoundRecord
from pytest_tokenpower.core.text import listed
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.windows import MIXED, Latency, PhaseWindow, RoundWindow
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.meters.recording import RecordedWindow, Recording
from pytest_tokenpower.meters.types import Device


def recorded_windows(
    test: str, rounds: Sequence[RoundWindow], devices: Sequence[str]
) -> Iterator[RecordedWindow]:
    """Return the rounds of a test and their phases as windows of a recording, under the test's name.

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
            cached_prompt_tokens=one.tokens.cached_prompt,
            latencies=tuple((each.first_token_s, each.per_token_s) for each in one.latencies),
            reasons=one.reasons,
            executions=tuple(
                sorted(
                    (each.prompt, each.generated, each.responses, each.cached_prompt)
                    for each in one.executions
                )
            ),
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
                reasons=one.reasons,
            )


def rounds_of(recording: Recording, test: str) -> tuple[RoundWindow, ...]:
    """Return the recorded rounds of a test, in the order of the recording, with the phases that lie inside them.

    Raises UsageError where the recording has none, or does not say what a round generated.
    """
    windows = recording.windows
    inside = phases_inside(windows, test)
    if not inside:
        names = sorted({window.name for window in windows if window.phase is None})
        raise UsageError(
            f"{recording.path} has no window of {test}: a replay takes each test's rounds from the recording, by "
            f"the test's name; recorded are {listed(names, 5) or 'none'}"
        )
    if any(not windows[at].generated_tokens for at in inside):
        raise UsageError(
            f"{recording.path}: a window of {test} has no generated tokens: there is no energy per token to replay"
        )
    return tuple(_round(windows[at], [windows[each] for each in phases]) for at, phases in inside.items())


def phases_inside(windows: Sequence[RecordedWindow], name: str) -> dict[int, tuple[int, ...]]:
    """Return, by index, the rounds of that name and the phases inside each, in the order of time."""
    mine = [at for at, window in enumerate(windows) if window.name == name]
    phases = sorted((at for at in mine if windows[at].phase is not None), key=lambda at: windows[at].start_ns)
    starts = [windows[at].start_ns for at in phases]
    return {
        at: tuple(
            each
            for each in phases[
                bisect_left(starts, windows[at].start_ns) : bisect_right(starts, windows[at].end_ns)
            ]
            if windows[each].end_ns <= windows[at].end_ns
        )
        for at in mine
        if windows[at].phase is None
    }


def _round(one: RecordedWindow, phases: Sequence[RecordedWindow] = ()) -> RoundWindow:
    return RoundWindow(
        one.start_ns,
        one.end_ns,
        TokenCount(
            one.prompt_tokens or 0, one.generated_tokens or 0, one.responses, one.cached_prompt_tokens
        ),
        one.repeats,
        tuple(
            PhaseWindow(
                each.phase,
                each.start_ns,
                each.end_ns,
                each.estimated,
                each.prompt_tokens,
                each.generated_tokens,
            )
            for each in phases
            if each.phase is not None
        ),
        executions=frozenset(TokenCount(*each) for each in one.executions),
        devices=one.devices,
        latencies=tuple(Latency(*each) for each in one.latencies),
        reasons=one.reasons,
    )


def window_records(recording: Recording) -> tuple[RoundRecord, ...]:
    """Energy, conditions and reasons of every window of a recording, in its order, each as a round by itself.

    The same rules as in a live run; a window over devices that it names, or else over all.
    """
    return _evaluate(recording, [_round(window) for window in recording.windows])[0]


@dataclass(frozen=True)
class RoundPhases:
    """A round that was recorded step by step: its record with the phases of a live run.

    ``steps`` are the indices of the steps' windows; ``refusal`` says why mixed steps could not be split.
    """

    record: RoundRecord
    steps: tuple[int, ...]
    refusal: str = ""


def stepped_rounds(recording: Recording) -> dict[int, RoundPhases]:
    """Return the rounds of a recording that have several windows of one phase, or mixed ones, by their index."""
    windows = recording.windows
    found: dict[int, RoundPhases] = {}
    for name in dict.fromkeys(window.name for window in windows):
        inside = {
            at: phases for at, phases in phases_inside(windows, name).items() if _stepped(windows, phases)
        }
        rounds = [_round(windows[at], [windows[each] for each in phases]) for at, phases in inside.items()]
        records, refusal = _evaluate(recording, rounds)
        for (at, phases), record in zip(inside.items(), records, strict=True):
            found[at] = RoundPhases(record, phases, "" if record.phases else refusal)
    return found


def _stepped(windows: Sequence[RecordedWindow], phases: Sequence[int]) -> bool:
    kinds = Counter(windows[at].phase for at in phases)
    return MIXED in kinds or max(kinds.values(), default=0) > 1


def _evaluate(recording: Recording, rounds: Sequence[RoundWindow]) -> tuple[tuple[RoundRecord, ...], str]:
    """Return the rounds' records, and why their mixed steps could not be split."""
    refusal = ""
    groups: dict[tuple[str, ...] | None, list[int]] = {}
    for at, one in enumerate(rounds):
        groups.setdefault(one.devices, []).append(at)
    records: dict[int, RoundRecord] = {}
    for names, group in groups.items():
        found = evaluate(recording.timeline, _devices(recording, names), [rounds[at] for at in group])
        records |= zip(group, found.records, strict=True)
        refusal = refusal or found.split.refusal or ""
    return tuple(records[at] for at in range(len(rounds))), refusal


def _devices(recording: Recording, names: Sequence[str] | None) -> tuple[Device, ...]:
    return tuple(each for each in recording.devices if names is None or each.id in names)
