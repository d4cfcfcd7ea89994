"""What mixed steps are divided by: the energy of a prompt token and of a generated one, by least squares. Pure.

A step is *mixed* where prompts are prefilled beside sequences that decode (chunked prefill under continuous batching).
Step energies follow E = a·(prompt tokens) + b·(generated tokens) + c·(time), with a, b and c at least 0 and common to
all steps of a measurement; a mixed step's time is shared out by a second fit, time = r·(prompt tokens) + s·(generated
tokens). A phase's weight in a step is then its tokens' a or b and its share of c·time, and the step's energy is divided
in proportion to the weights. Prompt tokens and time go nearly together where prefill is bound by computing: a and c
alone are then arbitrary, the weights are not, for what the one loses the other has.

A meter blurs steps that are shorter than its samples. The counts of tokens are sent through the very same
interpolation as the power was, so that the fit is not drawn towards the mean by it; and steps are split in blocks of
some samples, whose energy is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pytest_tokenpower.analysis.tracks import EnergyTrack, window_energy

FEWEST_STEPS = 12
"""A fit of three coefficients, with as many left to tell its spread and some to spare."""

LARGEST_CONDITION = 15.0
"""Of the (prompt, generated) columns at equal length, so of the steps' compositions: above it all steps have nearly the
same mix, and errors of their energies come out this much larger in the split."""

JACKKNIFE_GROUPS = 10


@dataclass(frozen=True)
class StepColumns:
    """Steps of all rounds as columns of one length, each round's in the order of time.

    int64 ``start_ns`` and ``end_ns``; float64 ``prompt_tokens`` and ``generated_tokens``; ``round_at``, the index of
    the step's round, which never falls.
    """

    start_ns: NDArray[np.int64]
    end_ns: NDArray[np.int64]
    prompt_tokens: NDArray[np.float64]
    generated_tokens: NDArray[np.float64]
    round_at: NDArray[np.intp]

    @property
    def mixed(self) -> NDArray[np.bool_]:
        """Which steps have tokens of both phases."""
        both: NDArray[np.bool_] = (self.prompt_tokens > 0) & (self.generated_tokens > 0)
        return both

    @property
    def prefill(self) -> NDArray[np.bool_]:
        """Which steps decode nothing; one that computed nothing new (a preempted prompt once more) is among them."""
        only: NDArray[np.bool_] = self.generated_tokens <= 0
        return only

    @property
    def seconds(self) -> NDArray[np.float64]:
        """How long each took."""
        return (self.end_ns - self.start_ns) / 1e9


@dataclass(frozen=True)
class Split:
    """What mixed steps are divided by: joules and seconds of a token of each phase, and of a second of any step.

    ``condition`` is that of the steps' compositions, ``groups`` the coefficients with each group of steps left out.
    """

    joules_per_prompt_token: float
    joules_per_generated_token: float
    watts: float
    seconds_per_prompt_token: float
    seconds_per_generated_token: float
    condition: float = 1.0
    groups: tuple[Split, ...] = ()

    def time_share(self, steps: StepColumns) -> NDArray[np.float64]:
        """Return the prefill's share of each step's time, 0 to 1; the rest is the decode's."""
        prefill = self.seconds_per_prompt_token * steps.prompt_tokens
        both = prefill + self.seconds_per_generated_token * steps.generated_tokens
        # Where the times tell nothing, or nothing was computed: what the step is by its tokens.
        share: NDArray[np.float64] = np.where(steps.prefill, 1.0, 0.0)
        return np.divide(prefill, both, out=share, where=both > 0)

    def weights(self, steps: StepColumns) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Joules of prefill and of decode that each step would take by these coefficients."""
        common, time = self.watts * steps.seconds, self.time_share(steps)
        return (
            self.joules_per_prompt_token * steps.prompt_tokens + common * time,
            self.joules_per_generated_token * steps.generated_tokens + common * (1.0 - time),
        )


def fit_split(
    tracks: Sequence[EnergyTrack], steps: StepColumns, joules: NDArray[np.float64] | None = None
) -> Split | str:
    """Return what mixed steps are split by, fitted over all steps of all rounds; or why they do not tell.

    The spread comes from a jackknife over rounds, where there are at least four, else over stretches of steps.
    """
    if joules is None:
        joules = np.sum(
            [window_energy(track, steps.start_ns, steps.end_ns).joules for track in tracks], axis=0
        )
    known = np.isfinite(joules)
    if int(known.sum()) < FEWEST_STEPS:
        return f"mixed steps cannot be split: {int(known.sum())} steps, at least {FEWEST_STEPS} are needed"
    tokens = np.column_stack([steps.prompt_tokens, steps.generated_tokens])[known]
    condition = _condition(tokens)
    if condition > LARGEST_CONDITION:
        return (
            "mixed steps cannot be split: all steps have nearly the same mix of prompt and generated tokens (condition "
            f"number {condition:.0f}, at most {LARGEST_CONDITION:.0f}): pure steps, or other mixes, would tell"
        )
    blurred = _blurred(tracks, steps)
    columns = np.column_stack([blurred, steps.seconds])[known]
    target = np.asarray(joules)[known]
    seconds = steps.seconds[known]
    group = _groups(steps.round_at[known])
    sums = []
    for mine in (group == each for each in range(int(group.max()) + 1)):
        energy, time = columns[mine].T, tokens[mine].T
        sums.append(_Sums(energy @ energy.T, energy @ target[mine], time @ time.T, time @ seconds[mine]))
    whole = _Sums(*(np.sum(parts, axis=0) for parts in zip(*sums, strict=True)))
    left_out = tuple(whole.without(each).solve() for each in sums) if len(sums) > 1 else ()
    return replace(whole.solve(), condition=condition, groups=left_out)


class _Sums(NamedTuple):
    """The normal equations of both fits, so that leaving a group out is a subtraction."""

    energy: NDArray[np.float64]
    energy_target: NDArray[np.float64]
    time: NDArray[np.float64]
    time_target: NDArray[np.float64]

    def without(self, part: _Sums) -> _Sums:
        return _Sums(*map(np.subtract, self, part))

    def solve(self) -> Split:
        a, b, c = _nonnegative(self.energy, self.energy_target)
        r, s = _nonnegative(self.time, self.time_target)
        return Split(a, b, c, r, s)


def _nonnegative(gram: NDArray[np.float64], target: NDArray[np.float64]) -> list[float]:
    """Return the x of at least 0 with the smallest ‖Ax - y‖, from AᵀA and Aᵀy (scipy.optimize.nnls)."""
    from scipy.optimize import nnls

    scale = np.sqrt(np.maximum(np.diag(gram), np.finfo(float).tiny))
    values, vectors = np.linalg.eigh(gram / np.outer(scale, scale))
    # Directions that rounding alone has filled are no information.
    kept = values > 1e-10 * values[-1]
    root = np.sqrt(values[kept])
    square = root[:, None] * vectors[:, kept].T
    solution, _ = nnls(square, (vectors[:, kept].T @ (target / scale)) / root)
    return [float(value) for value in solution / scale]


def _condition(columns: NDArray[np.float64]) -> float:
    lengths = np.linalg.norm(columns, axis=0)
    if not np.all(lengths > 0):
        return float("inf")
    values = np.linalg.svd(columns / lengths, compute_uv=False)
    return float(values[0] / values[-1]) if values[-1] > 0 else float("inf")


def _groups(round_at: NDArray[np.intp]) -> NDArray[np.intp]:
    rounds, index = np.unique(round_at, return_inverse=True)
    if len(rounds) >= 4:
        return index.astype(np.intp)
    # Mixed steps come at the beginning of a round, so that stretches are dealt out, not cut off.
    stretch = np.arange(len(round_at)) // 2
    return (stretch % JACKKNIFE_GROUPS).astype(np.intp)


def _blurred(tracks: Sequence[EnergyTrack], steps: StepColumns) -> NDArray[np.float64]:
    """Tokens of each step as a track would show them, (steps, 2): the mean over the tracks.

    Tokens flow evenly within a step; their sum is read at the track's knots and taken back by its interpolation.
    """
    origin = int(steps.start_ns[0])
    edges = np.column_stack([steps.start_ns, steps.end_ns]).ravel() - origin
    order = np.maximum.accumulate(edges).astype(np.float64)
    result = np.zeros((len(steps.start_ns), 2))
    for column, tokens in enumerate((steps.prompt_tokens, steps.generated_tokens)):
        sums = np.column_stack([np.cumsum(tokens) - tokens, np.cumsum(tokens)]).ravel()
        for track in tracks:
            knots = (track.t_ns - origin - track.lag_ns).astype(np.float64)
            flow = replace(track, joules=np.interp(knots, order, sums), scale=1.0, scale_stderr=0.0)
            result[:, column] += window_energy(flow, steps.start_ns, steps.end_ns).joules / len(tracks)
    return result
