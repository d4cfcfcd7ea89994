"""Prefill and decode against ground truths, in pure and in mixed batches: two sections of the page of gpu_phases.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gpu_phases_windows import (
    CONDITIONS,
    Row,
    account,
    conditions,
    each,
    executions,
    joules,
    over,
    rounds,
    with_gaps,
)
from reporting import table

from pytest_tokenpower.stats.temperature import PRIOR_SLOPE

GOAL = 0.03


# --- found against truth


def compared(name: str, found: tuple[float, float], truth: tuple[float, float], unit: float = 1.0) -> str:
    """Return a row of found against truth, both with standard errors, in ``unit`` (J per what is counted)."""
    off = found[0] / truth[0] - 1
    errors = [err / value for value, err in (found, truth) if math.isfinite(err)]
    return compared_row(
        name, found[0] * unit, truth[0] * unit, off, math.hypot(*errors) if errors else math.nan
    )


def compared_row(name: str, found: float, truth: float, off: float, error: float) -> str:
    """Return the row itself. Two standard errors on either side must be within the goal, or beyond it, to tell."""
    if not math.isfinite(error):
        return f"| {name} | {found:.4g} | {truth:.4g} | {100 * off:+.1f} % | single windows |"
    met = "not shown"
    if abs(off) + 2 * error <= GOAL:
        met = "met"
    elif abs(off) - 2 * error > GOAL:
        met = "MISSED"
    return f"| {name} | {found:.4g} | {truth:.4g} | {100 * off:+.1f} % ± {100 * error:.1f} | {met} |"


def paired(
    name: str, found: Sequence[float], truths: Sequence[float], shared_error: float = 0.0, unit: float = 1.0
) -> str:
    """Return a row of runs, each with a truth of its own; ``shared_error`` is of what all truths have in common."""
    off, error = over([one / its - 1 for one, its in zip(found, truths, strict=True)])
    inside, truth = (unit * float(np.mean(values)) for values in (found, truths))
    return compared_row(name, inside, truth, off, math.hypot(error, shared_error))


HEAD = "phase | in the run | ground truth | difference ± standard error | within 3 %"


# --- pure batches


def pure(parts: Row) -> list[str]:
    lines = ["## Prefill and decode against ground truths: pure batches", ""]
    lines += [
        "vLLM, bf16, 8 prompts of 2048 tokens. In the run: what the plugin says of whole rounds, phase by phase from "
        "the engine's steps. The truths are energies of whole windows of seconds. The host works between steps (gaps) "
        "and outside of them (taking requests, giving answers): a truth by difference holds its gaps, so those after "
        "a phase's steps are added to that phase on the left. Joules at a common GPU temperature are those as read, "
        f"less {100 * PRIOR_SLOPE:.2f} % per °C. *Within 3 %* is met or missed where two standard errors leave no "
        "doubt, else not shown.",
        "",
        "*At the power limit* is the board's own counter, which counts on for some tenths of a second after a burst. "
        "Clock and temperature are read about once a second and change within a round, so that those of a short window "
        "depend on where its one reading fell.",
        "",
    ]
    return lines + chunked(parts) + burst(parts) + spaced(parts)


def at_common_temperature(found: Sequence[Row], celsius: float | None) -> Callable[[Row], float]:
    """Factor that takes a window's joules to that temperature; 1 where none is asked for or known."""

    def factor(one: Row) -> float:
        if celsius is None or one["celsius"] is None:
            return 1.0
        return math.exp(-PRIOR_SLOPE * (one["celsius"] - celsius))

    return factor


def chunked(parts: Row) -> list[str]:
    whole, alone = (rounds(parts, "vllm-bf16 chunked", label) for label in ("whole", "prefill alone"))
    if not whole or not alone:
        return ["Prefill in small steps: not measured.", ""]
    work = whole[0]["work"]
    prompt = work["batch"] * work["prompt"]
    decoded = work["batch"] * (work["new"] - 1)
    lines = [
        f"### Prefill in steps of {work['budget']} tokens, below the power limit",
        "",
        "Truth of the prefill: the same prompts alone, back to back (their energy outside of all steps taken off). "
        f"Truth of the decode: rounds of {work['new']} new tokens less rounds of one.",
        "",
    ]
    found = []
    for name, celsius in (
        ("", None),
        (", at one temperature", each(whole, lambda one: one["celsius"] or 0)[0]),
    ):
        to = at_common_temperature(whole, celsius)
        inside = reduced(whole, to, lambda one: with_gaps(one, "prefill"))
        outside = reduced(alone, to, lambda one: joules(one) - account(one, "outside"))
        found.append(compared(f"prefill, mJ / prompt token{name}", inside, outside, 1e3 / prompt))
        inside = reduced(whole, to, lambda one: with_gaps(one, "decode"))
        long, short = (reduced(rows, to, joules) for rows in (whole, alone))
        truth = long[0] - short[0], math.hypot(long[1], short[1])
        found.append(compared(f"decode, mJ / decoded token{name}", inside, truth, 1e3 / decoded))
    lines += table(HEAD, found)
    return [*lines, *equal_time(whole, alone, prompt), *accounts({"whole": whole, "prefill alone": alone})]


def equal_time(whole: Sequence[Row], alone: Sequence[Row], prompt: int) -> list[str]:
    """Both sides' prefill at the same length of its steps: by a line of energy in time, common to both."""
    both = [*whole, *alone]
    if len(both) < 5:
        return []
    energy = np.array([with_gaps(one, "prefill") for one in both])
    seconds = np.array(
        [(one["steps"]["prefill"][1] + one["gaps"]["prefill"][1]) / executions(one) for one in both]
    )
    inside = np.arange(len(both)) < len(whole)
    columns = np.column_stack([~inside, inside, seconds - seconds.mean()]).astype(float)
    solution, *_ = np.linalg.lstsq(columns, energy, rcond=None)
    rest = energy - columns @ solution
    spare = len(both) - columns.shape[1]
    covariance = np.linalg.inv(columns.T @ columns) * float(rest @ rest) / spare
    difference = float(solution[1] - solution[0])
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    step_ms = [1e3 * one["steps"]["prefill"][1] / one["steps"]["prefill"][0] for one in both]
    row = compared_row(
        f"prefill at {1e3 * seconds.mean():.0f} ms a prompt batch, mJ / prompt token",
        1e3 * float(solution[1]) / prompt,
        1e3 * float(solution[0]) / prompt,
        difference / float(solution[0]),
        error / float(solution[0]),
    )
    return [
        "These steps are launched kernel by kernel and last as long as the host takes: "
        f"{min(step_ms):.1f} to {max(step_ms):.1f} ms a step in the {len(both)} windows, for the same work on the GPU. "
        "Both sides at the same time, by a line of the windows' prefill energy in its time, common to both: a second "
        f"more costs {solution[2]:.0f} ± {math.sqrt(covariance[2, 2]):.0f} J ({spare} degrees of freedom; this "
        "comparison was thought of when the others had been seen).",
        "",
        *table(HEAD, [row]),
    ]


def accounts(works: Mapping[str, Sequence[Row]]) -> list[str]:
    """Conditions of each work, and where the joules of an execution went."""
    names = ("prefill", "prefill gaps", "decode", "decode gaps", "outside")
    where = []
    for label, found in works.items():
        cells = [each(found, lambda one, name=name: account(one, name))[0] for name in names]  # type: ignore[misc]
        whole = each(found, joules)
        where.append(
            f"| {label} | {' | '.join(f'{cell:.1f}' for cell in cells)} | {plus_minus(whole)} | "
            f"{whole[0] - sum(cells):+.2f} |"
        )
    head = "J / execution | prefill | gaps after | decode | gaps after | outside | whole window | left over"
    return [
        *table(
            f"work | {CONDITIONS}", [f"| {label} | {conditions(found)} |" for label, found in works.items()]
        ),
        *table(head, where),
    ]


def reduced(
    found: Sequence[Row], to: Callable[[Row], float], value: Callable[[Row], float]
) -> tuple[float, float]:
    """Mean of a figure at the temperature that ``to`` goes to, and its standard error."""
    return each(found, lambda one: to(one) * value(one))


def plus_minus(value: tuple[float, float]) -> str:
    return f"{value[0]:.1f} ± {value[1]:.1f}" if math.isfinite(value[1]) else f"{value[0]:.1f}"


def burst(parts: Row, kind: str = "vllm-bf16") -> list[str]:
    """Prefill as a burst of one engine, if it was measured."""
    found = rounds(parts, f"{kind} burst")
    labels = list(dict.fromkeys(one["label"] for one in found))
    if len(labels) < 3:
        return ["Prefill in one step: not measured.", ""]
    work = found[0]["work"]
    prompt = work["batch"] * work["prompt"]
    by_label = {label: [one for one in found if one["label"] == label] for label in labels}
    lines = [
        "### Prefill in one step, a burst above the power limit",
        "",
        "Rounds of three lengths in turn, each after each other one equally often, so that all prefills meet the same "
        "board. Truth of the prefill: the energy of whole rounds against the time of their decode, at no time "
        "(a line; and a parabola in decode steps): that is the prefill and what is outside of all steps, which is "
        "added on the left. Truth of the decode: rounds of the longest less rounds of the middle length; beside it the "
        "decode of the longest as a whole, whose contexts are a little shorter, and the same steps as the truth's: "
        "decode of the longest less decode of the middle length (joules that cross the edge of the phases alike in "
        "each round cancel there).",
        "",
    ]
    rows = []
    for name, celsius in (
        ("", None),
        (", at one temperature", each(found, lambda one: one["celsius"] or 0)[0]),
    ):
        to = at_common_temperature(found, celsius)
        inside = reduced(found, to, lambda one: with_gaps(one, "prefill") + account(one, "outside"))
        energy = np.array([to(one) * joules(one) for one in found])
        seconds = np.array([one["steps"]["decode"][1] + one["gaps"]["decode"][1] for one in found])
        steps = np.array([float(one["steps"]["decode"][0]) for one in found])
        line = intercept(np.column_stack([np.ones_like(seconds), seconds]), energy)
        curve = intercept(np.column_stack([np.ones_like(steps), steps, steps**2]), energy)
        rows.append(compared(f"prefill, mJ / prompt token{name} (line in time)", inside, line, 1e3 / prompt))
        rows.append(compared(f"prefill, mJ / prompt token{name} (parabola)", inside, curve, 1e3 / prompt))
        middle, longest = (by_label[label] for label in labels[-2:])
        tokens = [rows_[0]["work"]["batch"] * (rows_[0]["work"]["new"] - 1) for rows_ in (middle, longest)]
        inside = reduced(longest, to, lambda one: with_gaps(one, "decode"))
        inside = inside[0] / tokens[1], inside[1] / tokens[1]
        ends = [reduced(rows_, to, joules) for rows_ in (middle, longest)]
        apart = tokens[1] - tokens[0]
        truth = (ends[1][0] - ends[0][0]) / apart, math.hypot(ends[0][1], ends[1][1]) / apart
        rows.append(compared(f"decode, mJ / decoded token{name}", inside, truth, 1e3))
        # Both sides are of the same rounds: what is left is how prefill and outside differ between the lengths.
        others = [
            reduced(rows_, to, lambda one: joules(one) - with_gaps(one, "decode"))
            for rows_ in (middle, longest)
        ]
        off = (others[0][0] - others[1][0]) / apart / truth[0]
        error = math.hypot(others[0][1], others[1][1]) / apart / truth[0]
        rows.append(
            compared_row(
                f"decode of the same steps{name}", 1e3 * truth[0] * (1 + off), 1e3 * truth[0], off, error
            )
        )
    return [*lines, *table(HEAD, rows), *accounts(by_label)]


def intercept(columns: np.ndarray[Any, Any], energy: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Return the first coefficient of least squares by 1/energy (errors are shares), and its standard error."""
    weighted, target = columns / energy[:, None], np.ones_like(energy)
    solution, *_ = np.linalg.lstsq(weighted, target, rcond=None)
    rest = target - weighted @ solution
    variance = float(rest @ rest) / max(len(energy) - columns.shape[1], 1)
    covariance = np.linalg.inv(weighted.T @ weighted) * variance
    return float(solution[0]), float(math.sqrt(covariance[0, 0]))


def spaced(parts: Row) -> list[str]:
    found = rounds(parts, "vllm-bf16 spaced")
    burst_rounds = rounds(parts, "vllm-bf16 burst")
    works = {
        label: [one for one in found if one["label"] == label]
        for label in ("back to back", "0.8 s idle", "1.6 s idle")
    }
    if not all(works.values()) or not burst_rounds:
        return []
    work = found[0]["work"]
    prompt = work["batch"] * work["prompt"]
    short, long = (each(works[label], joules)[0] for label in ("0.8 s idle", "1.6 s idle"))
    pauses = [
        works[label][0]["pauses"][1] / executions(works[label][0]) for label in ("0.8 s idle", "1.6 s idle")
    ]
    watts = (long - short) / (pauses[1] - pauses[0])
    inside = each(burst_rounds, lambda one: with_gaps(one, "prefill") + account(one, "outside"))
    rows = [
        compared(
            "prefill, against prefills with idling between",
            inside,
            (short - watts * pauses[0], math.nan),
            1e3 / prompt,
        ),
        compared(
            "prefill, against prefills back to back",
            inside,
            each(works["back to back"], joules),
            1e3 / prompt,
        ),
    ]
    return [
        "The same prefill alone, back to back (another operating point: the board slows down at its limit), and with "
        f"idling between, taken to no idling by its two lengths (a second of idling draws {watts:.0f} J).",
        "",
        *table(HEAD, rows),
        *accounts(works),
    ]


# --- mixed batches


def mixed(parts: Row) -> list[str]:
    part = "vllm-bf16 mixed"
    alone = rounds(parts, part, "prefill alone")
    decode = {
        batch: (rounds(parts, part, f"decode {batch}"), rounds(parts, part, f"decode {batch}, prefill alone"))
        for batch in (8, 32)
    }
    lines = ["## Prefill and decode against ground truths: mixed batches", ""]
    if not alone or not all(rows for pair in decode.values() for rows in pair):
        return [*lines, "Not measured.", ""]
    work = alone[0]["work"]
    prompt = each(
        alone, lambda one: (joules(one) - account(one, "outside")) / (work["batch"] * work["prompt"])
    )
    per_step: dict[int, float] = {}
    for whole, first in decode.values():
        batch = whole[0]["work"]["batch"]
        steps = whole[0]["work"]["new"] - 1
        per_step[batch] = (each(whole, joules)[0] - each(first, joules)[0]) / steps
    small, large = sorted(per_step)
    slope = (per_step[large] - per_step[small]) / (large - small)

    def step_joules(batch: float) -> float:
        return per_step[small] + slope * (batch - small)

    lines += [
        f"Token budget {work['budget']} a step: prompts are prefilled in chunks beside sequences that decode. "
        "Poisson: 48 requests, 12 a second on average; all at once: 32 requests. Truths: prompts alone under the "
        f"same budget ({1e3 * prompt[0]:.2f} mJ / prompt token); decode steps of batches of {small} and {large} alone, "
        f"by difference of two lengths ({per_step[small]:.2f} and {per_step[large]:.2f} J a step, of single windows: ± "
        "has no share of theirs), taken by a line to the batch of each step of the run. Together: all steps and "
        "gaps of the run, so its whole window without what is outside of steps, against both truths' sum: no split of "
        "mixed steps enters. Pure decode steps: those of the run without a prompt token.",
        "",
    ]
    rows, shares = [], []
    for label in ("Poisson", "all at once", "Poisson, 257 new tokens"):
        found = rounds(parts, part, label)
        if not found:
            continue
        more, share = run_rows(label, found, prompt, step_joules)
        rows += more
        shares += share
    for whole, _ in decode.values():
        batch = whole[0]["work"]["batch"]
        count = batch * (whole[0]["work"]["new"] - 1)
        own = each(whole, lambda one, count=count: with_gaps(one, "decode") / count)  # type: ignore[misc]
        truth = per_step[batch] / batch, math.nan
        rows.append(compared(f"decode {batch} itself: decode, mJ / decoded token", own, truth, 1e3))
    others = {"prefill alone": alone} | {f"decode {batch}": pair[0] for batch, pair in decode.items()}
    others |= {f"decode {batch}, prefill alone": pair[1] for batch, pair in decode.items()}
    lines += [*table(HEAD, rows), *full_steps(rounds(parts, part, "all at once"), alone, step_joules)]
    lines += longer_outputs(parts, part)
    return [*lines, *table(RUN_HEAD, shares), *accounts(others)]


RUN_HEAD = (
    f"run | {CONDITIONS} | mixed steps | of the energy | batch of decode steps | their mJ / token, as read"
)


def run_rows(
    label: str,
    found: Sequence[Row],
    prompt: tuple[float, float],
    step_joules: Callable[[float], float],
    step_error: float = 0.0,
) -> tuple[list[str], list[str]]:
    """Rows of a run with mixed steps against both truths, and its row of RUN_HEAD.

    ``prompt`` is the truth of a prompt token with its standard error, ``step_joules`` that of a decode step by its
    batch, ``step_error`` its relative standard error.
    """
    if any("prefill" not in one["phases"] or "decode" not in one["phases"] for one in found):
        return [f"| {label} | the phases were not told apart | | | |"], []
    tokens = found[0]["work"]["batch"] * found[0]["work"]["prompt"]
    truths = [sum(step_joules(step[1]) for step in one["each_step"] if step[1]) for one in found]
    made = [sum(step[1] for step in one["each_step"]) for one in found]
    inside = [(with_gaps(one, "prefill"), with_gaps(one, "decode")) for one in found]
    expected = [t + prompt[0] * tokens for t in truths]
    shared_error = math.hypot(prompt[1] * tokens, step_error * float(np.mean(truths))) / float(
        np.mean(expected)
    )
    rows = [
        compared(f"{label}: prefill, mJ / prompt token", over([p / tokens for p, _ in inside]), prompt, 1e3),
        paired(
            f"{label}: decode, mJ / decoded token",
            [d / count for (_, d), count in zip(inside, made, strict=True)],
            [t / count for t, count in zip(truths, made, strict=True)],
            step_error,
            unit=1e3,
        ),
        paired(f"{label}: together, J", [p + d for p, d in inside], expected, shared_error),
        pure_decode_row(label, found, step_joules, step_error),
    ]
    steps = [step for one in found for step in one["each_step"]]
    both = [step for step in steps if step[0] and step[1]]
    pure_decode = [step for step in steps if not step[0]]
    share = (
        f"| {label} | {conditions(found)} | {len(both) / len(steps):.0%} | "
        f"{sum(s[3] for s in both) / sum(s[3] for s in steps):.0%} | "
        f"{sum(s[1] for s in pure_decode) / max(len(pure_decode), 1):.1f} | "
        f"{sum(s[3] for s in pure_decode) / max(sum(s[1] for s in pure_decode), 1) * 1e3:.1f} |"
    )
    return rows, [share]


def pure_decode_row(
    label: str, found: Sequence[Row], step_joules: Callable[[float], float], step_error: float = 0.0
) -> str:
    """Hold decode steps without a prompt token, and the gaps after them, against the truth at their batches."""
    inside, truths = [], []
    for one in found:
        steps = [step for step in one["each_step"] if not step[0]]
        tokens = sum(step[1] for step in steps)
        inside.append((sum(step[3] for step in steps) + account(one, "decode gaps")) / tokens)
        truths.append(sum(step_joules(step[1]) for step in steps) / tokens)
    return paired(f"{label}: pure decode steps, mJ / decoded token", inside, truths, step_error, unit=1e3)


def full_steps(
    found: Sequence[Row], alone: Sequence[Row], step_joules: Callable[[float], float]
) -> list[str]:
    """Hold steps with prompts in the run against steps of as many prompt tokens alone, at the same length of time."""
    if not found or len(alone) < 2:
        return []
    budget = found[0]["work"]["budget"]
    ms = [1e3 * one["steps"]["prefill"][1] / one["steps"]["prefill"][0] for one in alone]
    cost = [one["phases"]["prefill"][0] / one["steps"]["prefill"][0] for one in alone]
    slope, start = np.polyfit(ms, cost, 1)
    rows, more, marginal, batches = [], [], [], []
    for one in found:
        steps = [step for step in one["each_step"] if step[0]]
        here, joules_ = (float(np.mean([step[at] for step in steps])) for at in (2, 3))
        by_itself = start + slope * here / 1e3
        prompts, decoded = (float(np.mean([step[at] for step in steps])) for at in (0, 1))
        more.append(joules_ / by_itself - 1)
        marginal.append((joules_ - by_itself * prompts / budget) / decoded)
        batches.append(decoded)
        rows.append(
            f"| {len(steps)} | {prompts:.0f} + {decoded:.1f} | {here / 1e3:.1f} | {joules_:.2f} | {by_itself:.2f} | "
            f"{100 * more[-1]:+.1f} % | {1e3 * marginal[-1]:.0f} |"
        )
    batch = float(np.mean(batches))
    mean, error = over(more)
    return [
        f"Mixed steps, all at once, against steps of {budget} prompt tokens alone at the same length of time (a line "
        f"through their two windows of {min(ms):.1f} and {max(ms):.1f} ms a step: {1e3 * slope:.0f} J for each further "
        f"second): {100 * mean:+.1f} ± {100 * error:.1f} %. A decoded token adds {1e3 * over(marginal)[0]:.0f} ± "
        f"{1e3 * over(marginal)[1]:.0f} mJ to the step's prompt tokens; in a decode step of as many sequences it takes "
        f"{1e3 * step_joules(batch) / batch:.0f} mJ, as the weights are read for it alone. (± over the runs; the line "
        "has no error of its own.)",
        "",
        *table(
            "steps with prompts | prompt + decoded tokens | ms a step | J a step | J alone, at that time | "
            "difference | mJ a decoded token adds",
            rows,
        ),
    ]


def longer_outputs(parts: Row, part: str) -> list[str]:
    """Return the difference of two output lengths under arrivals, which is no truth of the shorter ones' decode."""
    short, long = rounds(parts, part, "Poisson"), rounds(parts, part, "Poisson, 257 new tokens")
    if not short or not long:
        return []
    apart = long[0]["work"]["batch"] * (long[0]["work"]["new"] - short[0]["work"]["new"])
    ends = [each(found, lambda one: joules(one) - account(one, "outside"))[0] for found in (short, long)]
    batches = [
        np.mean([step[1] for one in found for step in one["each_step"] if not step[0]])
        for found in (short, long)
    ]
    return [
        "Under arrivals the difference of two output lengths is no truth: longer outputs overlap more (decode steps of "
        f"{batches[1]:.1f} sequences, not {batches[0]:.1f}), and the further tokens cost "
        f"{1e3 * (ends[1] - ends[0]) / apart:.0f} mJ each.",
        "",
    ]
