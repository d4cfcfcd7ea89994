"""New runs against stored ones, two variants run alternately, or a ceiling: the change and its two parts.

A run's ln(J/token) is y = level + change + board + occasion + run + error of its rounds. The units of evidence are
the means of the runs of one occasion. Three readings of every run are compared by the same rule:

- raw: as read;
- total: reduced to one GPU temperature, within one board only (leakage is a board's own);
- work: reduced to one pace as well, ln(J - P (s - s_ref)), P being the waiting watts (pace.py). As s_ref is the
  baseline's mean pace, exp(work) - 1 = (change of active joules)/J, and *pace* = P (change of seconds)/J is the rest:
  the two parts add up to the total's change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pytest_tokenpower.stats.boards import Calibration
from pytest_tokenpower.stats.change import MOST_DF, Change
from pytest_tokenpower.stats.pace import SlopeCheck, Waiting, at_pace, slope_check
from pytest_tokenpower.stats.runs import TRIM, location_squared_error, summarise_blocks, summarise_runs
from pytest_tokenpower.stats.scatter import (
    CAUTION_PER_ROUND_SD,
    CAUTION_PROCESS_SD,
    CAUTION_SD,
    DEFAULT_NOISE,
    FEWEST_DF,
    Groups,
    Noise,
    Scatter,
    scatter,
    surplus,
    widest,
)
from pytest_tokenpower.stats.temperature import (
    PRIOR_SLOPE,
    PRIOR_SLOPE_SD,
    Adjustment,
    Refusal,
    adjust_temperature,
)
from pytest_tokenpower.stats.types import DEFAULT_PRIOR, FloatArray, RunSummary

PACE_SCATTER = Scatter(0.003, 2.0)
"""Believed of the share of J/token that pace moves between runs of a test that is bound by the GPU."""

FEWEST_PACE_OCCASIONS = 3
"""How many occasions on one host tell how its pace scatters."""

FIGURE_CAUTION = 0.05
"""The run-to-run SD that speed and power are taken to have while a test's own runs do not tell."""

USUAL_SDS = 2.0

LEAST_VARIANCE = 1e-12
"""Runs that agree to the last digit weigh alike."""

OTHER_BOARD_WATTS_SD = 6.0
"""How much the waiting watts of boards of one model differ: 115 to 124 W and 120 to 134 W on eight H100s."""


@dataclass(frozen=True)
class Run:
    """One fresh process's good rounds of one test: the unit of evidence.

    ``meter_errors`` are relative standard errors of each round by the meter's own account. ``board`` names the devices
    (UUIDs), ``host`` and ``occasion`` where and when it ran (occasions.py); "" is not known. Lists that are not known
    are empty.
    """

    joules_per_token: tuple[float, ...]
    seconds_per_token: tuple[float, ...] = ()
    temperatures_celsius: tuple[float, ...] = ()
    meter_errors: tuple[float, ...] = ()
    board: str = ""
    host: str = ""
    occasion: str = ""

    def __post_init__(self) -> None:
        joules = self.joules_per_token
        if not joules or not all(math.isfinite(value) and value > 0 for value in joules):
            raise ValueError("a run needs at least one round, and every J/token positive")
        for name in ("seconds_per_token", "temperatures_celsius", "meter_errors"):
            values: tuple[float, ...] = getattr(self, name)
            if values and (len(values) != len(joules) or not all(map(math.isfinite, values))):
                raise ValueError(f"{name}: needs one finite figure per round")


@dataclass(frozen=True)
class Temperature:
    """What was done about the GPU temperature: the slope that was taken out, or ``refused``, the reason why not.

    ``slope`` ± ``stderr`` is of ln(J/token) per °C, ``shift_celsius`` how much warmer the new side was.
    """

    slope: float = 0.0
    stderr: float = 0.0
    shift_celsius: float = 0.0
    refused: str = ""


@dataclass(frozen=True)
class Comparison:
    """A change, its parts where they can be told apart, and what the reader must know of how it was found.

    ``total``, ``raw`` and ``work`` are log ratios; ``pace`` is a share of the baseline's J/token, so that total.change
    = work.change + pace.delta. ``runs`` and ``occasions`` are of the baseline; ``pace_occasions`` those of them on the
    new runs' host. ``known`` tells whether the test's own scatter is known from at least two degrees of freedom.
    ``together``: both sides are of one occasion. ``other_board``: none of the baseline's runs was on this board.
    """

    total: Change
    raw: Change
    work: Change | None = None
    pace: Change | None = None
    runs: int = 0
    occasions: int = 0
    new_runs: int = 1
    pace_occasions: int = 0
    known: bool = True
    together: bool = False
    board: str = ""
    baseline_boards: tuple[str, ...] = ()
    calibrated: bool = False
    waiting: Waiting | None = None
    slope: SlopeCheck | None = None
    temperature: Temperature = field(default_factory=Temperature)

    @property
    def other_board(self) -> bool:
        """Whether the baseline has no run on the board of the new ones."""
        return bool(self.board) and bool(self.baseline_boards) and self.board not in self.baseline_boards


def compare(
    baseline: Sequence[Run],
    new: Sequence[Run],
    noise: Noise = DEFAULT_NOISE,
    *,
    earlier: Sequence[Sequence[Run]] = (),
    waiting: Mapping[str, Waiting] | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
    extra_squared_error: float = 0.0,
) -> Comparison:
    """Compare new runs with the runs of the present level of a baseline.

    Args:
        baseline: The runs of the present level (levels.split_levels).
        new: The run that is judged, and its restarts on the same occasion.
        noise: What is believed of the scatter, from the other tests of the store where there are any.
        earlier: The runs of earlier levels: they say how the test scatters, not where it is.
        waiting: The waiting watts by board; a board that has none takes the others' mean, with a wider error.
        calibrations: By board; used where every board of the comparison has one.
        extra_squared_error: Added to the squared error of total and work (a re-expression's, lengths.py).

    Raises:
        ValueError: A side is empty, or the new runs are on different boards.
    """
    if not baseline or not new:
        raise ValueError("a comparison needs at least one run on each side")
    if len({run.board for run in new}) > 1:
        raise ValueError("the new runs are on different boards")
    runs = [*(run for level in earlier for run in level), *baseline, *new]
    levels = [*(str(at) for at, level in enumerate(earlier) for _ in level), *["now"] * len(baseline)]
    plan = _Plan(runs, levels, len(new), noise)
    raw_rounds = [np.log(run.joules_per_token) for run in runs]
    seconds, watts = _pace_of(plan, waiting or {})
    paced = _paced(runs, seconds, watts, plan.base) if seconds is not None else None
    adjusted, temperature, leakage = _temperature(plan, paced or raw_rounds)
    offsets, board_scatter = _board_offsets(plan, calibrations or {})
    total_rounds = [values - shift for values, shift in zip(raw_rounds, adjusted, strict=True)]
    total, known = plan.contrast(
        total_rounds, noise.total, board_scatter, leakage + extra_squared_error, offsets
    )
    raw, _ = plan.contrast(raw_rounds, noise.total, board_scatter, extra_squared_error, offsets)
    found = Comparison(
        total=total,
        raw=raw,
        runs=len(baseline),
        occasions=plan.occasions(),
        new_runs=len(new),
        pace_occasions=plan.pace_occasions(),
        known=known,
        together=plan.together,
        board=new[0].board,
        baseline_boards=tuple(dict.fromkeys(run.board for run in baseline)),
        calibrated=offsets is not None,
        temperature=temperature,
    )
    if paced is None or seconds is None:
        return found
    work_rounds = [values - shift for values, shift in zip(paced, adjusted, strict=True)]
    base = plan.base
    here = watts[-1]
    joules = float(np.exp(np.mean([values.mean() for values in raw_rounds[base]])))
    means = np.array([each.mean() for each in seconds])
    doubt = (here.stderr / joules) ** 2 * _unseen_pace(means[base], means[plan.first_new :])
    work, _ = plan.contrast(
        work_rounds, noise.work, board_scatter, leakage + doubt + extra_squared_error, offsets
    )
    shares = [each * there.watts / joules for each, there in zip(seconds, watts, strict=True)]
    pace, _ = plan.contrast(shares, PACE_SCATTER, Scatter(0.0, 1.0), doubt, None, least_caution=0.003)
    own = [at for at, run in enumerate(runs) if run.board == new[0].board]
    return replace(
        found,
        work=work,
        pace=replace(pace, delta=total.change - work.change),
        waiting=here,
        slope=slope_check(
            [np.asarray(runs[at].joules_per_token) for at in own], [seconds[at] for at in own], here
        ),
    )


@dataclass(frozen=True)
class Blocks:
    """The ABBA blocks of one restart: (blocks, 4) arrays, and which rounds were the candidate's."""

    joules_per_token: FloatArray
    candidate: FloatArray
    seconds_per_token: FloatArray | None = None


def compare_blocks(
    restarts: Sequence[Blocks], noise: Noise = DEFAULT_NOISE, *, waiting: Waiting | None = None
) -> Comparison:
    """Compare two variants that ran alternately, restarts being the units.

    Raises:
        ValueError: There is no restart, or one without blocks.
    """
    if not restarts or any(not each.joules_per_token.size for each in restarts):
        raise ValueError("a comparison needs at least one restart, each with at least one block")
    total, known = _blocks_change([block_differences(each) for each in restarts], noise)
    found = Comparison(total, total, runs=len(restarts), occasions=1, new_runs=len(restarts), known=known)
    seconds = [each.seconds_per_token for each in restarts if each.seconds_per_token is not None]
    if waiting is None or len(seconds) < len(restarts):
        return found
    first = [each.candidate < 0.5 for each in restarts]
    reference = float(np.mean([each[mine].mean() for each, mine in zip(seconds, first, strict=True)]))
    paced = [
        at_pace(each.joules_per_token, time, waiting.watts, reference)
        for each, time in zip(restarts, seconds, strict=True)
    ]
    known_paced = [each for each in paced if each is not None]
    if len(known_paced) < len(restarts):
        return found
    candidates = [each.candidate for each in restarts]
    work, _ = _blocks_change(
        [_differences(np.log(each), mine) for each, mine in zip(known_paced, candidates, strict=True)], noise
    )
    joules = float(
        np.mean([each.joules_per_token[mine].mean() for each, mine in zip(restarts, first, strict=True)])
    )
    shares = [
        _differences(each * waiting.watts / joules, mine)
        for each, mine in zip(seconds, candidates, strict=True)
    ]
    pace, _ = _blocks_change(shares, noise)
    doubt = (pace.delta * waiting.stderr / waiting.watts) ** 2
    return replace(
        found,
        work=_widened(work, doubt),
        pace=replace(_widened(pace, doubt), delta=total.change - work.change),
        pace_occasions=FEWEST_PACE_OCCASIONS,
        waiting=waiting,
    )


def compare_ceiling(new: Sequence[Run], ceiling: float) -> Comparison:
    """Compare new runs with an absolute ceiling (positive, in the unit of the rounds' figures, not its logarithm).

    The scatter of occasions counts: the claim is about the code, not about this one run of it. Decide it with a limit
    of 0: "regressed" is over the ceiling, and "improved" surely below it.

    Raises:
        ValueError: There is no run, or the ceiling is not positive.
    """
    if not new:
        raise ValueError("a comparison needs at least one run")
    if not (math.isfinite(ceiling) and ceiling > 0):
        raise ValueError(f"the ceiling must be positive, not {ceiling!r}")
    rounds = [np.log(np.asarray(run.joules_per_token) / ceiling) for run in new]
    plan = _Plan(new, (), len(new), DEFAULT_NOISE)
    change, known = plan.contrast(rounds, DEFAULT_NOISE.total, Scatter(0.0, 1.0), 0.0, None)
    return Comparison(change, change, new_runs=len(new), known=known, board=new[0].board)


def compare_figures(
    baseline: Sequence[Run],
    new: Sequence[Run],
    values: Sequence[Sequence[float]],
    noise: Noise = DEFAULT_NOISE,
) -> Change:
    """Compare any other figure of the same runs: the logs (or shares) of each run's rounds, the baseline's runs first.

    A cause (hotter, slower, prefill, decode) is shown only where the interval of its own figure excludes no change.
    """
    # The meter's errors are those of joules.
    runs = [replace(run, meter_errors=()) for run in (*baseline, *new)]
    if len(values) != len(runs):
        raise ValueError(f"{len(values)} values for {len(runs)} runs")
    plan = _Plan(runs, ["now"] * len(baseline), len(new), noise)
    # Speed scatters by more than energy does.
    return plan.contrast(
        [np.asarray(value) for value in values],
        noise.total,
        noise.board,
        0.0,
        None,
        least_caution=FIGURE_CAUTION,
    )[0]


def readings(
    levels: Sequence[Sequence[Run]], waiting: Mapping[str, Waiting] | None = None
) -> tuple[Groups, Groups | None]:
    """Group the runs of a test's levels by occasion, as read and at one pace: what learning goes by."""
    runs = [run for level in levels for run in level]
    cells = [(str(at), run.board) for at, level in enumerate(levels) for run in level]
    plan = _Plan(runs, ["now"] * (len(runs) - 1), 1, DEFAULT_NOISE)
    seconds, watts = _pace_of(plan, waiting or {})
    paced = _paced(runs, seconds, watts, slice(None)) if seconds is not None else None

    def groups(rounds: Sequence[FloatArray]) -> Groups:
        summaries = _summaries(runs, rounds)
        return Groups.of(
            [each.location for each in summaries],
            [each.squared_error for each in summaries],
            cells,
            [run.occasion for run in runs],
        )

    return groups([np.log(run.joules_per_token) for run in runs]), groups(paced) if paced else None


@dataclass(frozen=True)
class _Plan:
    """The runs of a comparison, stored ones first, and how they hang together."""

    runs: Sequence[Run]
    levels: Sequence[str]
    new: int
    noise: Noise

    @property
    def first_new(self) -> int:
        return len(self.runs) - self.new

    @property
    def base(self) -> slice:
        return slice(next((at for at, level in enumerate(self.levels) if level == "now"), 0), self.first_new)

    @property
    def together(self) -> bool:
        """Whether the present level and the new runs are of one and the same occasion."""
        here = {run.occasion for run in self.runs[self.first_new :]}
        return here != {""} and {run.occasion for run in self.runs[self.base]} == here

    def occasions(self) -> int:
        named = [run.occasion for run in self.runs[self.base]]
        return len({name for name in named if name}) + named.count("")

    def pace_occasions(self) -> int:
        host = self.runs[-1].host
        named = [run.occasion for run in self.runs[: self.first_new] if run.host == host]
        return len({name for name in named if name}) + named.count("")

    def contrast(
        self,
        rounds: Sequence[FloatArray],
        believed: Scatter,
        boards: Scatter,
        extra: float,
        offsets: Sequence[float] | None,
        *,
        least_caution: float = CAUTION_SD,
    ) -> tuple[Change, bool]:
        """Return the new runs less the present level, and whether their scatter is known."""
        summaries = _summaries(self.runs, rounds)
        locations = np.array([each.location for each in summaries])
        if offsets is not None:
            locations = locations - np.asarray(offsets)
        errors = [each.squared_error for each in summaries]
        stored = slice(0, self.first_new)
        cells = [(level, run.board) for level, run in zip(self.levels, self.runs, strict=False)]
        groups = Groups.of(
            locations[stored].tolist(), errors[stored], cells, [run.occasion for run in self.runs[stored]]
        )
        fresh = locations[self.first_new :]
        fresh_error, fresh_df = _fresh_error(summaries[stored], summaries[self.first_new :])
        present = [at for at, (level, _) in enumerate(groups.cells) if level == "now"]
        rounds_sd = max((each.round_sd for each in summaries), default=0.0)
        caution = Scatter(max(least_caution, CAUTION_PER_ROUND_SD * rounds_sd), MOST_DF)
        within_squares = groups.within_squares + float(((fresh - fresh.mean()) ** 2).sum())
        within_df = groups.within_df + self.new - 1
        own_share = 1 - self.noise.occasion_share
        believed_run = Scatter(believed.sd * math.sqrt(own_share), believed.df)
        squares, df = groups.between()
        run_variance = (CAUTION_DF_RUN * believed_run.sd**2 + within_squares) / (CAUTION_DF_RUN + within_df)
        size = len(groups.means) / float((1 / groups.counts).sum()) if len(groups.means) else 1.0
        if self.together:
            # Both sides on one occasion: its effect falls out of the difference, that of another board does not.
            squares, df, belief = within_squares, within_df, believed_run
        elif size > 1:
            # Groups of several runs scatter by less than single ones.
            occasion_variance = believed.sd**2 * self.noise.occasion_share
            belief = Scatter(math.sqrt(occasion_variance + run_variance / size), believed.df)
        else:
            belief = believed
        unit = scatter(
            squares,
            df,
            belief,
            caution,
            most_believed=self.noise.most_believed(df),
            within=(0.0, 0) if self.together else (within_squares, within_df),
        )
        most = widest(unit, df, belief, caution)
        by_rounds = fresh_error / self.new
        if present:
            by_rounds += float(groups.errors[present].mean()) / len(present)
        rounds_part = 0.0
        if self.together:
            per_group = float((1 / groups.counts[present]).mean())
            variance, new_variance = unit.sd**2 * per_group, unit.sd**2 / self.new
            most = most * math.sqrt(per_group / len(present) + 1 / self.new)
            stored_error = float(np.mean(errors[self.base]))
            rounds_part = max(fresh_error - stored_error, 0.0) / self.new
        else:
            variance = unit.sd**2
            most = most * math.sqrt(1 / len(present) + 1) if present else most
            spare = min(run_variance, own_share * variance) if self.new > size else run_variance
            new_variance = variance + spare * (1 / self.new - 1 / size)
            # Fewer rounds than the stored runs had leave the new figure less certain than those.
            if len(groups.means) and self.new <= size:
                rounds_part = max(fresh_error / self.new - float(groups.errors.mean()), 0.0)
        delta, run_part, board_part = float(fresh.mean()), new_variance, 0.0
        if present:
            delta, run_part, board_part = self._difference(
                groups, present, delta, variance, new_variance, boards.sd**2
            )
        total = run_part + board_part + rounds_part + extra
        parts = ((run_part, unit.df), (board_part, boards.df), (rounds_part, fresh_df))
        # Satterthwaite 1946, Biometrics Bull. 2:110.
        shares = sum(part**2 / its_df for part, its_df in parts)
        df_total = total**2 / shares if shares > 0 else unit.df
        # A spread of boards that is known on few degrees of freedom has no such bound.
        most = math.inf if board_part > 0 else math.sqrt(most**2 + rounds_part + extra)
        return Change(
            delta,
            math.sqrt(total),
            df_total,
            math.sqrt(by_rounds + extra),
            most,
            parts=tuple((math.sqrt(part), its_df) for part, its_df in parts if 0 < part < total),
        ), df >= FEWEST_DF

    def _difference(
        self,
        groups: Groups,
        present: Sequence[int],
        fresh: float,
        variance: float,
        new_variance: float,
        board_variance: float,
    ) -> tuple[float, float, float]:
        """Return the best linear unbiased difference, and the parts of its variance from runs and from boards.

        Runs on the board of the new ones count by more, the more boards differ (Henderson 1975, Biometrics 31:423).
        """
        means = groups.means[present]
        boards = [groups.cells[at][1] for at in present]
        board = self.runs[-1].board
        count = len(means)
        if board_variance == 0 or all(each == board for each in boards):
            return fresh - float(means.mean()), new_variance + variance / count, 0.0
        same = np.array([[float(one == other) for other in boards] for one in boards])
        mine = np.array([float(each == board) for each in boards])
        inverse = np.linalg.inv(max(variance, LEAST_VARIANCE) * np.eye(count) + board_variance * same)
        ones = np.ones(count)
        multiplier = (1 - ones @ inverse @ (board_variance * mine)) / (ones @ inverse @ ones)
        weights = inverse @ (board_variance * mine + multiplier * ones)
        board_part = board_variance * float(1 - 2 * weights @ mine + weights @ same @ weights)
        run_part = new_variance + variance * float(weights @ weights)
        return fresh - float(weights @ means), run_part, max(board_part, 0.0)


CAUTION_DF_RUN = 2.0
"""What the belief in the scatter of processes within one occasion is worth."""


def _summaries(runs: Sequence[Run], rounds: Sequence[FloatArray]) -> list[RunSummary]:
    errors: list[tuple[float, ...]] | None = [run.meter_errors for run in runs]
    if any(len(error) != len(values) for error, values in zip(errors or (), rounds, strict=True)):
        errors = None
    return summarise_runs([values.tolist() for values in rounds], meter_errors_per_run=errors)


def _fresh_error(stored: Sequence[RunSummary], fresh: Sequence[RunSummary]) -> tuple[float, float]:
    """Return the mean squared error of the new runs by their rounds, and its degrees of freedom.

    Few rounds hardly tell how they scatter, one not at all: those of the stored runs tell it of any number.
    """
    own = float(np.mean([each.squared_error for each in fresh]))
    own_df = max(sum(each.rounds - 1 for each in fresh), 1)
    df = sum(each.rounds - 1 for each in stored)
    if not df:
        return own, own_df
    variance = sum((each.rounds - 1) * each.round_sd**2 for each in stored) / df
    as_stored = float(
        np.mean(
            [location_squared_error(np.array(variance), np.array(each.lag1), each.rounds) for each in fresh]
        )
    )
    return (own, own_df) if own >= as_stored else (as_stored, max(df, own_df))


def _pace_of(plan: _Plan, waiting: Mapping[str, Waiting]) -> tuple[list[FloatArray] | None, list[Waiting]]:
    """Seconds per token and waiting watts of each run; None where a run has no seconds, or no watts are known."""
    runs = plan.runs
    if not waiting or not all(run.seconds_per_token for run in runs):
        return None, []
    values = list(waiting.values())
    weights = np.array([1 / max(each.stderr, 1e-9) ** 2 for each in values])
    mean = float((weights * [each.watts for each in values]).sum() / weights.sum())
    other = Waiting(mean, math.hypot(math.sqrt(1 / weights.sum()), OTHER_BOARD_WATTS_SD))
    watts = []
    for run in runs:
        found = waiting.get(run.board, other)
        celsius = float(np.mean(run.temperatures_celsius)) if run.temperatures_celsius else None
        watts.append(replace(found, watts=found.at(celsius if run.board == runs[-1].board else None)))
    # One temperature for all runs of this board: leakage is taken out by the temperature's own slope.
    level = [each.watts for run, each in zip(runs, watts, strict=True) if run.board == runs[-1].board]
    here = float(np.mean(level))
    watts = [
        replace(each, watts=here) if run.board == runs[-1].board else each
        for run, each in zip(runs, watts, strict=True)
    ]
    return [np.asarray(run.seconds_per_token) for run in runs], watts


def _paced(
    runs: Sequence[Run], seconds: Sequence[FloatArray], watts: Sequence[Waiting], base: slice
) -> list[FloatArray] | None:
    reference = float(np.mean([each.mean() for each in seconds[base]]))
    paced = []
    for run, each, there in zip(runs, seconds, watts, strict=True):
        values = at_pace(np.asarray(run.joules_per_token), each, there.watts, reference)
        if values is None:
            return None
        paced.append(np.asarray(np.log(values)))
    return paced


def _unseen_pace(stored: FloatArray, new: FloatArray) -> float:
    """Return the squared shift of the pace beyond what the stored runs' own scatter of it makes usual, two of its SDs.

    What waiting watts that are a little wrong make of a usual shift is in the scatter of the stored runs already.
    """
    shift = float(new.mean() - stored.mean())
    usual = float(stored.var(ddof=1)) * (1 + 1 / len(stored)) if len(stored) > FEWEST_DF else 0.0
    return max(shift**2 - USUAL_SDS**2 * usual, 0.0)


def _temperature(plan: _Plan, rounds: Sequence[FloatArray]) -> tuple[list[FloatArray], Temperature, float]:
    """Return what temperature added to rounds, on the new runs' board only, and the squared error of taking it out."""
    none = [np.zeros(len(values)) for values in rounds]
    board = plan.runs[-1].board
    old = [
        at
        for at in range(len(plan.runs))[plan.base]
        if plan.runs[at].board == board and plan.runs[at].temperatures_celsius
    ]
    fresh = list(range(plan.first_new, len(plan.runs)))
    if not old or not all(plan.runs[at].temperatures_celsius for at in fresh):
        elsewhere = any(run.temperatures_celsius for run in plan.runs[plan.base])
        here = all(plan.runs[at].temperatures_celsius for at in fresh)
        reason = "leakage is a board's own, and no stored run is of this one" if elsewhere and here else ""
        return none, Temperature(refused=reason), 0.0
    found = adjust_temperature(
        [rounds[at].tolist() for at in old],
        [plan.runs[at].temperatures_celsius for at in old],
        [rounds[at].tolist() for at in fresh],
        [plan.runs[at].temperatures_celsius for at in fresh],
    )
    if isinstance(found, Refusal):
        # As read then, and as uncertain as the leakage that the difference may hide.
        means = [float(np.mean(plan.runs[at].temperatures_celsius)) for at in (*old, *fresh)]
        shift = float(np.mean(means[len(old) :]) - np.mean(means[: len(old)]))
        leakage = (shift * (PRIOR_SLOPE + PRIOR_SLOPE_SD)) ** 2
        return none, Temperature(shift_celsius=shift, refused=found.reason), leakage
    shifts = list(none)
    for at, run in enumerate(plan.runs):
        if run.board == board and run.temperatures_celsius:
            celsius = np.asarray(run.temperatures_celsius)
            shifts[at] = found.slope * (celsius - found.reference_celsius)
    return shifts, _used(found), found.squared_error


def _used(found: Adjustment) -> Temperature:
    return Temperature(found.slope, found.slope_stderr, found.shift_celsius)


def _board_offsets(
    plan: _Plan, calibrations: Mapping[str, Calibration]
) -> tuple[list[float] | None, Scatter]:
    concerned = {run.board for run in plan.runs[plan.base]} | {plan.runs[-1].board}
    if len(concerned) < 2 or not all(board in calibrations for board in concerned):
        return None, plan.noise.board
    left = plan.noise.calibrated_board
    errors = [calibrations[board].stderr ** 2 for board in concerned]
    scatter = Scatter(math.sqrt(left.sd**2 + float(np.mean(errors))), left.df)
    return [
        calibrations[run.board].log_joules if run.board in calibrations else 0.0 for run in plan.runs
    ], scatter


def block_differences(blocks: Blocks) -> list[float]:
    """Per block the mean ln(J/token) of the candidate less that of the baseline."""
    return _differences(np.log(blocks.joules_per_token), blocks.candidate)


def _differences(values: FloatArray, candidate: FloatArray) -> list[float]:
    mine = np.asarray(candidate) > 0.5
    here = np.where(mine, values, 0.0).sum(axis=-1) / mine.sum(axis=-1)
    there = np.where(mine, 0.0, values).sum(axis=-1) / (~mine).sum(axis=-1)
    return [float(each) for each in here - there]


def _blocks_change(differences: Sequence[Sequence[float]], noise: Noise) -> tuple[Change, bool]:
    summaries = summarise_blocks(differences)
    locations = np.array([each.location for each in summaries])
    error = float(np.mean([each.squared_error for each in summaries]))
    count = len(locations)
    squares = float(((locations - locations.mean()) ** 2).sum())
    caution = Scatter(CAUTION_PROCESS_SD, MOST_DF)
    # Drift and occasion fall out of alternating rounds: what is believed of the rest is learned from no neighbour.
    unit = scatter(squares, count - 1, noise.interleaved, caution, most_believed=surplus(count - 1))
    most = widest(unit, count - 1, noise.interleaved, caution)
    known, error_df = count > FEWEST_DF, MOST_DF
    if not known:
        # The blocks tell their own error on as many degrees of freedom as the trimmed mean keeps (Yuen 1974,
        # Biometrika 61:165); drawn to quieter blocks it would be too small.
        error_df = max(sum(each.rounds - 2 * int(TRIM * each.rounds) - 1 for each in summaries), 1)
        error *= 1 + count * DEFAULT_PRIOR.round_df / sum(max(each.rounds - 1, 1) for each in summaries)
    return Change(
        delta=float(locations.mean()),
        stderr=unit.sd / math.sqrt(count),
        df=unit.df,
        least=math.sqrt(error / count),
        most=math.hypot(most, math.sqrt(error)) / math.sqrt(count),
        least_df=error_df,
    ), known


def _widened(change: Change, squared_error: float) -> Change:
    return replace(
        change,
        stderr=math.sqrt(change.stderr**2 + squared_error),
        least=math.sqrt(change.least**2 + squared_error),
        most=math.sqrt(change.most**2 + squared_error),
    )
