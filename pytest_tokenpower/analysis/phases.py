"""Energy of each phase from an engine's steps: pure steps as they are, mixed ones as step_split divides them. Pure.

The time between two steps (scheduling and sampling on the host) belongs to neither phase and is called BETWEEN. Where
it is shorter than the meter's samples, its energy is that of the power around it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pytest_tokenpower.analysis.step_split import Split, StepColumns, fit_split
from pytest_tokenpower.analysis.tracks import EnergyTrack, window_energy
from pytest_tokenpower.core.records import PhaseRecord
from pytest_tokenpower.core.windows import BETWEEN, DECODE, MIXED, PREFILL

LARGEST_ERROR = 0.10
"""A standard error of the split beyond this share of a phase's energy says nothing of the phase."""

RESOLVED_SAMPLES = 5.0
"""So many of the meter's samples are split as one where there are steps of both phases among them: shorter ones have
power of their neighbours in their readings. It is how short a window the guards let pass."""

LARGEST_BLURRED_SHARE = 0.1
"""Pure steps are taken as they are read, unless more of the time than this is in stretches of under two samples."""


@dataclass(frozen=True)
class PhaseColumns:
    """One phase over rounds, columns of one length: joules, their variance (J²) and seconds.

    ``undivided`` joules are of mixed steps that could not be split. Half of them is in ``joules``; truly it is anything
    from none to all.
    """

    joules: NDArray[np.float64]
    variance: NDArray[np.float64]
    seconds: NDArray[np.float64]
    undivided: NDArray[np.float64]


@dataclass(frozen=True)
class StepPhases:
    """The phases of rounds, by name, and how mixed steps were split; ``refusal`` says why they could not be.

    ``mixed_share`` is the share of the steps' energy that was in mixed ones. Without mixed steps there is no split.
    A phase that undivided steps leave too uncertain is absent.
    """

    phases: dict[str, PhaseColumns]
    split: Split | None = None
    mixed_share: float = 0.0
    refusal: str | None = None


class Mark(Protocol):
    """A step, or a stretch in one phase whose tokens are not known (None)."""

    @property
    def phase(self) -> str:
        """PREFILL, DECODE or MIXED."""
        ...

    @property
    def start_ns(self) -> int:
        """On the monotonic clock."""
        ...

    @property
    def end_ns(self) -> int:
        """On the monotonic clock."""
        ...

    @property
    def prompt_tokens(self) -> int | None:
        """Prefilled in it."""
        ...

    @property
    def generated_tokens(self) -> int | None:
        """Decoded in it."""
        ...

    @property
    def estimated(self) -> bool:
        """Whether the mark comes from outside the engine."""
        ...


def phase_records(
    tracks: Sequence[EnergyTrack], rounds: Sequence[Sequence[Mark]]
) -> tuple[tuple[dict[str, PhaseRecord], ...], StepPhases]:
    """Return the phases of each round for its record, empty where they are not known; and how they were found."""
    found = step_phases(tracks, _columns(rounds), len(rounds))
    records: list[dict[str, PhaseRecord]] = []
    for at, marks in enumerate(rounds):
        estimated = any(mark.estimated for mark in marks)
        records.append(
            {
                name: PhaseRecord(
                    float(phase.joules[at]),
                    float(np.sqrt(phase.variance[at])),
                    float(phase.seconds[at]),
                    estimated,
                    float(phase.undivided[at]),
                )
                for name, phase in found.phases.items()
                if np.isfinite(phase.joules[at]) and phase.seconds[at] > 0
            }
        )
    return tuple(records), found


def _columns(rounds: Sequence[Sequence[Mark]]) -> StepColumns:
    marks = [mark for each in rounds for mark in each]

    def tokens(mark: Mark, count: int | None, phase: str) -> float:
        if mark.phase not in (phase, MIXED):
            return 0.0
        # Of a stretch whose tokens are not known it is known that there were some.
        return 1.0 if count is None else float(count)

    return StepColumns(
        np.array([mark.start_ns for mark in marks], dtype=np.int64),
        np.array([mark.end_ns for mark in marks], dtype=np.int64),
        np.array([tokens(mark, mark.prompt_tokens, PREFILL) for mark in marks]),
        np.array([tokens(mark, mark.generated_tokens, DECODE) for mark in marks]),
        np.repeat(np.arange(len(rounds)), [len(each) for each in rounds]),
    )


def step_phases(tracks: Sequence[EnergyTrack], steps: StepColumns, rounds: int) -> StepPhases:
    """Joules, variance and seconds of each phase in each of so many rounds, summed over the devices' tracks.

    In a round the phases' joules add up to the energy from its first step's start to its last step's end. A round
    that a track does not cover, or that has no steps, comes out as nan. Mixed steps that cannot be split (the refusal
    says why) are half of either phase, with all of their energy as the uncertainty.
    """
    if not tracks or not len(steps.start_ns):
        return StepPhases({})
    joules = np.sum([window_energy(track, steps.start_ns, steps.end_ns).joules for track in tracks], axis=0)
    period_ns = max(track.period_ns for track in tracks)
    mixed = steps.mixed
    total = float(np.nansum(joules))
    mixed_share = float(np.nansum(joules[mixed])) / total if total else 0.0
    share = time_share = np.where(steps.prefill, 1.0, 0.0)
    spread = np.zeros(rounds)
    undivided = np.zeros_like(joules)
    split = refusal = None
    if mixed.any() or _blurred_share(steps, period_ns) > LARGEST_BLURRED_SHARE:
        found = fit_split(tracks, steps, joules)
        if not isinstance(found, str):
            blocks = _blocks(steps, RESOLVED_SAMPLES * period_ns)
            split_share = _block_share(found, steps, blocks)
            spread = _spread(found, steps, joules, blocks, rounds)
            found = _too_vague(spread, split_share, joules) or found
        if isinstance(found, str):
            spread = np.zeros(rounds)  # pure steps can do without a split
            if mixed.any():
                refusal = found
                undivided = np.abs(np.where(mixed, joules, 0.0))
                share = time_share = np.where(mixed, 0.5, share)
        else:
            split, share = found, split_share
            time_share = np.where(mixed, found.time_share(steps), time_share)
    meter = _edge_variance(tracks, steps, share, rounds)
    phases = {
        name: PhaseColumns(
            _sum(steps, part * joules, rounds),
            variance + spread,
            _sum(steps, seconds * steps.seconds, rounds),
            _sum(steps, undivided, rounds),
        )
        for name, part, seconds, variance in (
            (PREFILL, share, time_share, meter[0]),
            (DECODE, 1.0 - share, 1.0 - time_share, meter[1]),
        )
    }
    vague = {}
    for name, phase in phases.items():
        error, size = undivided_error(float(np.nansum(phase.undivided))), float(np.nansum(phase.joules))
        if not 0 <= error <= LARGEST_ERROR * size:
            vague[name] = error / size if size > 0 else math.inf
    if len(vague) == len(phases):
        return StepPhases({}, mixed_share=mixed_share, refusal=refusal)
    for name, error in vague.items():
        del phases[name]
        refusal = f"{refusal}; {name} is left out, with a standard error of {error:.0%} from them"
    phases[BETWEEN] = _between(tracks, steps, rounds)
    return StepPhases(phases, split, mixed_share, refusal)


def undivided_error(joules: float) -> float:
    """Return the standard error of a phase that has half of these joules, where none to all is as likely."""
    return joules / math.sqrt(12.0)


def _stretches(kind: NDArray[np.float64], steps: StepColumns) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the first and the last step of each stretch of steps of one kind in a round."""
    first = np.concatenate([[True], (np.diff(kind) != 0) | (np.diff(steps.round_at) != 0)])
    return first, np.concatenate([first[1:], [True]])


def _blurred_share(steps: StepColumns, period_ns: float) -> float:
    """Return the share of the time in stretches of one phase that are too short for the meter's samples."""
    first, last = _stretches(steps.prefill.astype(np.float64), steps)
    length = (steps.end_ns[last] - steps.start_ns[first]).astype(np.float64)
    return float(length[length < 2 * period_ns].sum() / length.sum())


def _blocks(steps: StepColumns, length_ns: float) -> NDArray[np.intp]:
    """Return a number for each step: those that begin within so many nanoseconds of a round have the same.

    Of a block the meter knows the energy well; which of its steps took it, if they are short, it does not.
    """
    begun = steps.start_ns[np.searchsorted(steps.round_at, steps.round_at)]
    cell = ((steps.start_ns - begun) // length_ns).astype(np.int64)
    new = (np.diff(cell) != 0) | (np.diff(steps.round_at) != 0)
    return np.concatenate([[0], np.cumsum(new)]).astype(np.intp)


def _block_share(split: Split, steps: StepColumns, blocks: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the prefill's share of each step's block: all or nothing where all its steps are of one phase."""
    prefill, decode = (np.bincount(blocks, weight) for weight in split.weights(steps))
    both = prefill + decode
    share = np.divide(prefill, both, out=np.zeros_like(both), where=both > 0)
    return np.where(both[blocks] > 0, share[blocks], np.where(steps.prefill, 1.0, 0.0))


def _spread(
    split: Split, steps: StepColumns, joules: NDArray[np.float64], blocks: NDArray[np.intp], rounds: int
) -> NDArray[np.float64]:
    """Variance of the prefill in each round that the coefficients' error makes; the decode's is the same error."""
    whole = _sum(steps, _block_share(split, steps, blocks) * joules, rounds)
    total = np.zeros(rounds)
    for each in split.groups:
        total += (_sum(steps, _block_share(each, steps, blocks) * joules, rounds) - whole) ** 2
    count = len(split.groups)
    return total * (count - 1) / count if count else total


def _too_vague(
    spread: NDArray[np.float64], share: NDArray[np.float64], joules: NDArray[np.float64]
) -> str | None:
    # The coefficients are common to the rounds: their errors add up over them and do not average out.
    error = float(np.nansum(np.sqrt(spread)))
    for name, part in ((PREFILL, share), (DECODE, 1.0 - share)):
        size = float(np.nansum(part * joules))
        if error > LARGEST_ERROR * size:
            return (
                f"the split of the mixed steps leaves {name} with a standard error of {error:.2g} J of {size:.2g} J "
                f"(at most {LARGEST_ERROR:.0%}): more rounds, or more pure steps, would tell"
            )
    return None


def _edge_variance(
    tracks: Sequence[EnergyTrack], steps: StepColumns, share: NDArray[np.float64], rounds: int
) -> NDArray[np.float64]:
    """Return the meter's variance of (prefill, decode) in each round: each stretch of one kind is one window.

    Edges between steps of one kind cancel. A stretch that was split goes to both, for its edges may be anyone's.
    """
    kind = np.where(share == 0, 0.0, np.where(share == 1, 1.0, 0.5))
    first, last = _stretches(kind, steps)
    variance = np.sum(
        [window_energy(track, steps.start_ns[first], steps.end_ns[last]).stderr ** 2 for track in tracks],
        axis=0,
    )
    result = np.zeros((2, rounds))
    for at, pure in enumerate((1.0, 0.0)):
        np.add.at(
            result[at], steps.round_at[first], np.where(np.isin(kind[first], (pure, 0.5)), variance, 0.0)
        )
    return result


def _between(tracks: Sequence[EnergyTrack], steps: StepColumns, rounds: int) -> PhaseColumns:
    same = np.diff(steps.round_at) == 0
    start, end = steps.end_ns[:-1][same], steps.start_ns[1:][same]
    # Steps that touch have nothing between them, which is no window.
    apart = end > start
    start, end, at = start[apart], end[apart], steps.round_at[1:][same][apart]
    joules, variance, seconds = np.zeros(rounds), np.zeros(rounds), np.zeros(rounds)
    if len(start):
        for track in tracks:
            energy = window_energy(track, start, end)
            np.add.at(joules, at, energy.joules)
            # The edges of a gap shorter than a sample share their error: what is left of it is a share of the gap's.
            part = np.minimum((end - start) / track.period_ns, 1.0)
            np.add.at(variance, at, (energy.stderr * part) ** 2)
        np.add.at(seconds, at, (end - start) / 1e9)
    return PhaseColumns(joules, variance, seconds, np.zeros(rounds))


def _sum(steps: StepColumns, values: NDArray[np.float64], rounds: int) -> NDArray[np.float64]:
    result = np.full(rounds, np.nan)
    result[np.unique(steps.round_at)] = 0.0
    np.add.at(result, steps.round_at, values)
    return result
