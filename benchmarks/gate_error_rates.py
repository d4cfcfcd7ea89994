"""How often the gate fails identical code, and how often it finds a true change: simulated, beside common rules.

``python benchmarks/gate_error_rates.py`` simulates runs at two noise levels, judges them with the functions
that the plugin uses, writes docs/results/gate-error-rates.md and .svg, and prints each goal with its figure.
The seed is fixed: change the rule and the tables change, in the same commit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import stdtrit
from tabulate import tabulate

from pytest_tokenpower.gate.verdict import LOOKS
from pytest_tokenpower.stats.decision import decide_codes, obrien_fleming_levels
from pytest_tokenpower.stats.moderated import (
    OCCASION_SHARE,
    Difference,
    one_sample,
    p_above,
    stored_difference,
)
from pytest_tokenpower.stats.prior import DEFAULT_PRIOR, Prior, learn_prior
from pytest_tokenpower.stats.runs import summarise_array, summarise_runs
from pytest_tokenpower.stats.temperature import shrunk_slope, within_run_slope

FloatArray = NDArray[np.float64]

SEED = 20260101
REPETITIONS = 20_000
ALPHA = 0.05
EFFECTS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.10)
STORED = 5
BATCHES = 20
OTHER_TESTS = 6
REGRESSED, PASSED, UNDECIDED = 0, 2, 3


@dataclass(frozen=True)
class Noise:
    """One noise level. SDs are of ln(J/token).

    A run has ``run_sd`` of its own, an arm of an interleaved restart ``process_sd`` (it shares the occasion
    with the other arm). Its rounds are AR(1) with SD ``round_sd`` and correlation ``lag1``. The die is warmer
    by ``celsius_sd`` between runs and by ``celsius_a_round`` from round to round, and ``slope`` turns that
    into energy.
    """

    name: str
    title: str
    rounds: int
    round_sd: float
    lag1: float
    run_sd: float
    process_sd: float
    slope: float = 0.0
    celsius_sd: float = 0.0
    celsius_a_round: float = 0.0
    celsius_error: float = 0.0
    thresholds: tuple[float, ...] = (0.01, 0.02, 0.03)


NOISY = Noise(
    name="noisy",
    title="A noisy board: window SD 1 %, lag-1 0.3, run-to-run SD 1 %, 10 windows a run",
    rounds=10,
    round_sd=0.01,
    lag1=0.3,
    run_sd=0.01,
    process_sd=0.005,
)

H100 = Noise(
    name="H100",
    title=(
        "An H100: rounds 0.5 %, lag-1 0.4, run-to-run SD 0.3 % of which temperature explains all but 0.16 %, "
        "drift 0.1 % a round, 12 rounds a run"
    ),
    rounds=12,
    round_sd=0.005,
    lag1=0.4,
    run_sd=0.0016,
    process_sd=0.0016,
    slope=0.0019,
    celsius_sd=1.336,
    celsius_a_round=0.526,
    celsius_error=0.3,
    thresholds=(0.005, 0.01, 0.02, 0.03),
)


@dataclass(frozen=True)
class Row:
    """One rule at one setting. ``failed`` answers which share of builds it fails at a true change (a fraction)."""

    rule: str
    threshold: float | None
    failed: Callable[[float], float]
    passed_identical: float | None = None
    passed_threshold: float | None = None
    warned: float | None = None


def autoregressive(rng: np.random.Generator, shape: tuple[int, ...], noise: Noise) -> FloatArray:
    """Stationary AR(1) series along the last axis with SD ``noise.round_sd``."""
    series = rng.standard_normal(shape)
    for i in range(1, shape[-1]):
        series[..., i] = noise.lag1 * series[..., i - 1] + (1 - noise.lag1**2) ** 0.5 * series[..., i]
    return series * noise.round_sd


def simulate_runs(
    rng: np.random.Generator,
    repetitions: int,
    runs: int,
    noise: Noise,
    occasions: int | None = None,
    shared: float = 0.0,
) -> tuple[FloatArray, FloatArray]:
    """ln(J/token) and read temperatures, each (repetitions, runs, rounds), of identical code.

    The runs after the first ``occasions`` ones are on one occasion: the die is as warm in all of them, and ``shared``
    of the run-to-run variance is the same.
    """
    shape = (repetitions, runs, noise.rounds)
    warmer = rng.standard_normal((*shape[:2], 1))
    own = rng.standard_normal((*shape[:2], 1))
    if occasions is not None:
        warmer[:, occasions:] = warmer[:, -1:]
        common = rng.standard_normal((repetitions, 1, 1))
        own[:, occasions:] = (1 - shared) ** 0.5 * own[:, occasions:] + shared**0.5 * common
    celsius = noise.celsius_sd * warmer + noise.celsius_a_round * np.arange(noise.rounds)
    values = noise.run_sd * own + noise.slope * celsius + autoregressive(rng, shape, noise)
    return values, celsius + noise.celsius_error * rng.standard_normal(shape)


def simulate_blocks(rng: np.random.Generator, restarts: int, blocks: int, noise: Noise) -> FloatArray:
    """ABBA differences (repetitions, restarts, blocks) of identical arms, the lead arm drawn per block."""
    lead = rng.choice([-1.0, 1.0], size=(REPETITIONS, restarts, blocks, 1))
    sign = lead * np.array([1.0, -1.0, -1.0, 1.0])
    rounds = 4 * blocks
    board = noise.slope * noise.celsius_a_round * np.arange(rounds) + autoregressive(
        rng, (REPETITIONS, restarts, rounds), noise
    )
    variants = noise.process_sd * rng.standard_normal((2, REPETITIONS, restarts, 1, 1))
    values = board.reshape(REPETITIONS, restarts, blocks, 4) + np.where(sign > 0, variants[0], variants[1])
    return np.asarray((sign * values).sum(axis=-1) / 2)


def rates(parts: Sequence[tuple[Difference, FloatArray]], threshold: float, rule: str) -> Row:
    """The row of this package's rule, from parts of the repetitions: differences and squared errors to add.

    A true change moves delta and nothing else, so one simulation serves every change.
    """
    judged = [(found, np.sqrt(found.stderr**2 + extra)) for found, extra in parts]

    def share(effect: float, code: int) -> float:
        shift = np.log1p(effect)
        codes = [
            decide_codes(found.delta + shift, stderr, found.df, threshold, alpha=ALPHA) == code
            for found, stderr in judged
        ]
        return float(np.mean(codes))

    floors = [stdtrit(found.df, 1 - ALPHA) * stderr > np.log1p(threshold) for found, stderr in judged]
    return Row(
        rule,
        threshold,
        lambda effect: share(effect, REGRESSED),
        share(0.0, PASSED),
        share(threshold, PASSED),
        float(np.mean(floors)),
    )


def plain_row(rule: str, fails: Callable[[float], FloatArray]) -> Row:
    return Row(rule, None, lambda effect: float(np.mean(fails(float(np.log1p(effect))))))


def common_rules(stored: FloatArray, new: FloatArray) -> list[Row]:
    """What most tools do: windows compared as if they were independent, or medians with a fixed margin."""
    one, pooled = stored[:, 0], stored.reshape(REPETITIONS, -1)

    def welch(old: FloatArray) -> Callable[[float], FloatArray]:
        return lambda shift: np.asarray(
            stats.ttest_ind(new + shift, old, axis=-1, equal_var=False, alternative="greater").pvalue < ALPHA
        )

    def mann_whitney(shift: float) -> FloatArray:
        wins = (new[:, :, None] + shift > one[:, None, :]).sum(axis=(1, 2))
        n = new.shape[1]
        z = (wins - n * n / 2 - 0.5) / np.sqrt(n * n * (2 * n + 1) / 12)
        return np.asarray(stats.norm.sf(z) < ALPHA)

    def medians(shift: float) -> FloatArray:
        return np.asarray(np.median(new, axis=-1) + shift - np.median(one, axis=-1) > np.log(1.05))

    return [
        plain_row("Welch on windows, 1 stored run", welch(one)),
        plain_row(f"Welch on windows pooled over {STORED} stored runs", welch(pooled)),
        plain_row("Mann-Whitney on windows, 1 stored run", mann_whitney),
        plain_row("medians differ by more than 5 %", medians),
    ]


def stored_rows(
    values: FloatArray, celsius: FloatArray, noise: Noise, prior: Prior, others: FloatArray
) -> list[Row]:
    """The moderated t on runs: 1, 3 and 5 stored runs, raw and (where there is a slope) temperature-adjusted.

    ``others`` (batches, tests, runs, rounds) are other tests' stored runs, from which each batch of the
    repetitions learns its own prior in the rows that say so.
    """
    rows = []
    for adjusted in (False, True) if noise.slope else (False,):
        for count, learned in ((1, False), (3, False), (5, False), (1, True), (5, True)):
            if learned and noise.slope and not adjusted:
                continue
            chosen = [*range(count), STORED]
            part, extra = values[:, chosen], np.zeros(REPETITIONS)
            if adjusted:
                part, extra = reduce_to_one_temperature(part, celsius[:, chosen], prior)
            priors = [learnt_prior(store, prior) for store in others] if learned else [prior]
            judged = [
                (judge(piece, own), added)
                for piece, added, own in zip(
                    np.split(part, len(priors)), np.split(extra, len(priors)), priors, strict=True
                )
            ]
            rule = (
                f"moderated t, {count} stored run{'s' * (count > 1)}"
                f"{', temperature-adjusted' * adjusted}{', learned prior' * learned}"
            )
            rows += [rates(judged, threshold, rule) for threshold in noise.thresholds]
    return rows


def judge(values: FloatArray, prior: Prior, new: int = 1) -> Difference:
    """The last ``new`` runs of (repetitions, runs, rounds) against the runs before them."""
    locations, errors = summarise_array(values, prior)
    return stored_difference(
        locations[:, :-new],
        locations[:, -new:],
        errors[:, :-new],
        errors[:, -new:],
        prior,
        occasion_share=OCCASION_SHARE,
    )


def learnt_prior(store: FloatArray, prior: Prior) -> Prior:
    """The prior that a store of other tests' runs (tests, runs, rounds) teaches."""
    return learn_prior([summarise_runs([list(run) for run in test], prior=prior) for test in store], prior)


def restarted_rows(noise: Noise, prior: Prior) -> list[Row]:
    """--energy-max-seconds: what is neither certain nor surely passes at a look is restarted, up to twice.

    The new runs share their occasion: one GPU temperature, and ``shared`` of the run-to-run variance.
    """
    rows = []
    for stored in (1, STORED):
        for shared in (0.0, 0.5):
            rng = np.random.default_rng([SEED, noise.rounds, stored])
            values, celsius = simulate_runs(rng, REPETITIONS, stored + LOOKS, noise, stored, shared)
            looks = []
            for look in range(1, LOOKS + 1):
                part, extra = values[:, : stored + look], np.zeros(REPETITIONS)
                if noise.slope:
                    part, extra = reduce_to_one_temperature(
                        part, celsius[:, : stored + look], prior, new=look
                    )
                looks.append((judge(part, prior, new=look), extra))
            rule = (
                f"moderated t, {stored} stored run{'s' * (stored > 1)}{', temperature-adjusted' * bool(noise.slope)}, "
                f"up to {LOOKS - 1} restarts{f', {shared:.0%} of the run effect shared' * (shared > 0)}"
            )
            rows += [restarted_rates(looks, threshold, rule) for threshold in noise.thresholds]
    return rows


def restarted_rates(looks: Sequence[tuple[Difference, FloatArray]], threshold: float, rule: str) -> Row:
    """The row of O'Brien & Fleming's rule over ``looks``; as in the plugin, only a regression has to wait."""
    levels = obrien_fleming_levels(LOOKS, ALPHA)

    def share(effect: float, code: int) -> float:
        shift = np.log1p(effect)
        found = np.full(REPETITIONS, UNDECIDED)
        for (one, extra), level in zip(looks, levels, strict=True):
            delta, stderr = one.delta + shift, np.sqrt(one.stderr**2 + extra)
            codes = decide_codes(delta, stderr, one.df, threshold, alpha=ALPHA)
            codes = np.where(
                (codes == REGRESSED) & (p_above(delta, stderr, one.df) >= level), UNDECIDED, codes
            )
            found = np.where(found == UNDECIDED, codes, found)
        return float(np.mean(found == code))

    last, extra = looks[-1]
    floor = stdtrit(last.df, 1 - ALPHA) * np.sqrt(last.stderr**2 + extra)
    return Row(
        rule,
        threshold,
        lambda effect: share(effect, REGRESSED),
        share(0.0, PASSED),
        share(threshold, PASSED),
        float(np.mean(floor > np.log1p(threshold))),
    )


def reduce_to_one_temperature(
    values: FloatArray, celsius: FloatArray, prior: Prior, new: int = 1
) -> tuple[FloatArray, FloatArray]:
    """The adjusted values and the squared error that the slope adds; the last ``new`` runs are the new ones."""
    runs, rounds = values.shape[1:]
    raw = within_run_slope(
        values.reshape(REPETITIONS, -1), celsius.reshape(REPETITIONS, -1), [rounds] * runs, prior
    )
    slope, variance = shrunk_slope(*raw)
    means = celsius.mean(axis=-1)
    shift = means[:, -new:].mean(axis=-1) - means[:, :-new].mean(axis=-1)
    reference = means.mean(axis=-1)
    return values - slope[:, None, None] * (celsius - reference[:, None, None]), shift**2 * variance


def interleaved_rows(rng: np.random.Generator, noise: Noise, prior: Prior) -> list[Row]:
    """ABBA: 1 and 3 restarts of 5 blocks, and 3 of 3 blocks, which is 36 rounds in all."""
    rows = []
    for restarts, blocks in ((1, 5), (3, 3), (3, 5)):
        differences = simulate_blocks(rng, restarts, blocks, noise)
        found = one_sample(
            *summarise_array(differences, replace(prior, lag1=0.0)), prior.tau0_interleaved, prior.nu0
        )
        rule = f"interleaved ABBA, {restarts} restart{'s' * (restarts > 1)} × {blocks} blocks"
        rows += [rates([(found, np.zeros(REPETITIONS))], threshold, rule) for threshold in noise.thresholds]
    return rows


def simulate(noise: Noise, prior: Prior) -> list[Row]:
    """Every rule's row at one noise level, all judging the same simulated runs."""
    rng = np.random.default_rng([SEED, noise.rounds])
    values, celsius = simulate_runs(rng, REPETITIONS, STORED + 1, noise)
    kept = replace(noise, slope=0.0)
    others, _ = simulate_runs(rng, BATCHES * OTHER_TESTS, STORED, kept)
    others = others.reshape(BATCHES, OTHER_TESTS, STORED, noise.rounds)
    return [
        *common_rules(values[:, :STORED], values[:, STORED]),
        *stored_rows(values, celsius, noise, prior, others),
        *restarted_rows(noise, prior),
        *interleaved_rows(rng, noise, prior),
    ]


@dataclass(frozen=True)
class Goal:
    """One promise with what the simulation gave for it, both as fractions."""

    text: str
    figure: float
    limit: float
    at_most: bool

    @property
    def met(self) -> bool:
        """Whether the figure keeps to the limit."""
        return self.figure <= self.limit if self.at_most else self.figure >= self.limit

    def __str__(self) -> str:
        sign = "at most" if self.at_most else "at least"
        verdict = "met" if self.met else "MISSED"
        return f"{verdict}: {self.text}: {self.figure:.2%} ({sign} {self.limit:.0%})"


def goals(tables: Mapping[Noise, Sequence[Row]]) -> list[Goal]:
    """What the gate promises, checked on the tables."""
    board = {(row.rule, row.threshold): row for row in tables[H100]}
    stored = f"moderated t, {STORED} stored runs"
    found: list[Goal] = []
    for rule, threshold, change in (
        (stored, 0.01, 0.02),
        (f"{stored}, temperature-adjusted", 0.01, 0.02),
        (f"{stored}, temperature-adjusted, learned prior", 0.01, 0.02),
        (f"{stored}, temperature-adjusted, up to 2 restarts", 0.005, 0.01),
        ("moderated t, 1 stored run, temperature-adjusted, up to 2 restarts", 0.01, 0.02),
        ("interleaved ABBA, 3 restarts × 3 blocks", 0.005, 0.01),
    ):
        row = board[rule, threshold]
        where = f"H100, {rule}, threshold {threshold:.1%}"
        found += [
            Goal(f"{where}: identical code failed", row.failed(0.0), 0.01, at_most=True),
            Goal(f"{where}: {change:+.0%} found", row.failed(change), 0.95, at_most=False),
        ]
    noise, row, share = worst_false_failures(tables, most_warned=0.5)
    where = f"worst of the thresholds above the noise floor, {noise.name}, {row.rule}, {row.threshold:.1%}"
    found.append(Goal(f"{where}: identical code failed", share, ALPHA, at_most=True))
    return found


def worst_false_failures(
    tables: Mapping[Noise, Sequence[Row]], most_warned: float
) -> tuple[Noise, Row, float]:
    """The row of ours that fails identical code most often, of those that warn ``most_warned`` of builds or fewer."""
    ours = [
        (noise, row, row.failed(0.0))
        for noise, rows in tables.items()
        for row in rows
        if row.warned is not None and row.warned <= most_warned
    ]
    return max(ours, key=lambda found: found[2])


def report(tables: Mapping[Noise, Sequence[Row]], promised: Sequence[Goal]) -> str:
    """The page for docs/results."""
    noise, row, share = worst_false_failures(tables, most_warned=1.0)
    lines = [
        "# Error rates of the gate",
        "",
        "Written by `python benchmarks/gate_error_rates.py`: do not edit.",
        "",
        f"{REPETITIONS:,} simulated builds per noise level, fixed seed, judged by the functions that the plugin "
        f"uses; one-sided level {ALPHA:.0%}. Prior: {DEFAULT_PRIOR.source}: run-to-run "
        f"{DEFAULT_PRIOR.tau0:.2%} (interleaved {DEFAULT_PRIOR.tau0_interleaved:.2%}), worth "
        f"{DEFAULT_PRIOR.nu0:g} degrees of freedom. A learned prior comes from {OTHER_TESTS} other tests with "
        f"{STORED} stored runs each, drawn anew for every {REPETITIONS // BATCHES:,} builds.",
        "",
        "Figures are percentages of builds: failed when the true change is as the column says; passed when the "
        "code is identical; passed when the true change equals the threshold (the gate sleeps); warned that the "
        "threshold is below the noise floor. What neither fails nor passes is inconclusive (or improved).",
        "",
        "![Share of builds failed against the true change](gate-error-rates.svg)",
        "",
        "## Goals",
        "",
        *(f"- {goal}" for goal in promised),
        "",
        f"Below the noise floor, where the gate warns, the default prior is optimistic for a board as noisy as "
        f"the second one: identical code fails in up to {share:.1%} of builds ({noise.name}, {row.rule}, threshold "
        f"{row.threshold:.1%}), against a nominal {ALPHA:.0%}. With a prior learned from the store the stored "
        "comparisons keep to it.",
    ]
    heads = [
        "rule",
        "threshold",
        *(f"+{effect:.1%}".replace(".0%", "%").replace("%", " %") for effect in EFFECTS),
        "passes at +0",
        "passes at threshold",
        "warned",
    ]
    for level, rows in tables.items():
        cells = [
            [
                row.rule,
                "" if row.threshold is None else f"{100 * row.threshold:g} %",
                *(percent(row.failed(effect)) for effect in EFFECTS),
                percent(row.passed_identical),
                percent(row.passed_threshold),
                percent(row.warned),
            ]
            for row in rows
        ]
        lines += ["", f"## {level.name}", "", level.title + ".", ""]
        lines.append(tabulate(cells, heads, tablefmt="github", disable_numparse=True))
    return "\n".join(lines) + "\n"


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def picture(tables: Mapping[Noise, Sequence[Row]]) -> str:
    """Curves of the share of builds failed against the true change, one panel per noise level, as SVG."""
    width, height, left, top, gap = 340, 240, 46, 34, 60
    drawn = {
        ("Welch on windows, 1 stored run", None): "#b3261e",
        ("medians differ by more than 5 %", None): "#8a8a8a",
        ("moderated t, 1 stored run", 0.03): "#9ec5e8",
        ("moderated t, 5 stored runs", 0.02): "#1f6fb2",
        ("moderated t, 5 stored runs, temperature-adjusted", 0.01): "#0b3d66",
        ("interleaved ABBA, 3 restarts × 5 blocks", 0.01): "#2e7d32",
    }
    changes = np.linspace(0, 0.06, 25)
    total = left + len(tables) * (width + gap)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {top + height + 50 + 18 * len(drawn)}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for panel, (noise, rows) in enumerate(tables.items()):
        x0 = left + panel * (width + gap)
        parts.append(f'<text x="{x0}" y="{top - 12}" font-weight="bold">{noise.name}</text>')
        for share in (0, 25, 50, 75, 100):
            y = top + height * (1 - share / 100)
            parts.append(f'<path d="M{x0} {y:.1f}h{width}" stroke="#ddd"/>')
            parts.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{share}</text>')
        for tick in range(7):
            x = x0 + width * tick / 6
            parts.append(f'<text x="{x:.1f}" y="{top + height + 16}" text-anchor="middle">+{tick}</text>')
        for row in rows:
            colour = drawn.get((row.rule, row.threshold))
            if colour is None:
                continue
            points = " ".join(
                f"{x0 + width * change / 0.06:.1f},{top + height * (1 - row.failed(float(change))):.1f}"
                for change in changes
            )
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    y = top + height + 34
    parts.append(f'<text x="{left}" y="{y}">% of builds failed, against the true change in %</text>')
    for (rule, threshold), colour in drawn.items():
        y += 18
        label = rule if threshold is None else f"{rule}, threshold {100 * threshold:g} %"
        parts.append(f'<path d="M{left} {y - 4}h22" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{left + 30}" y="{y}">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, write the page and the picture, print the goals."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "docs" / "results")
    folder: Path = parser.parse_args(arguments).output
    start = time.perf_counter()
    tables = {noise: simulate(noise, DEFAULT_PRIOR) for noise in (H100, NOISY)}
    promised = goals(tables)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gate-error-rates.md").write_text(report(tables, promised), encoding="utf-8")
    (folder / "gate-error-rates.svg").write_text(picture(tables), encoding="utf-8")
    for goal in promised:
        print(goal)
    print(f"{time.perf_counter() - start:.0f} s; written to {folder}")


if __name__ == "__main__":
    main()
