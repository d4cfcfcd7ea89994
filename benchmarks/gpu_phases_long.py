"""Long prompts under vLLM's own token budgets against ground truths: a section of the page of gpu_phases.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from gpu_phases_truths import (
    HEAD,
    RUN_HEAD,
    accounts,
    at_common_temperature,
    compared,
    intercept,
    reduced,
    run_rows,
)
from gpu_phases_windows import Row, account, by_label, each, executions, joules, over, rounds, with_gaps
from reporting import table

Pair = tuple[list[Row], list[Row]]
"""Rounds of one batch with fewer and with more new tokens."""


def pairs_of(decode: Sequence[Row]) -> list[Pair]:
    """Return the rounds of each batch, by their two lengths."""
    found = []
    lengths = sorted({one["work"]["new"] for one in decode})
    for batch in sorted({one["work"]["batch"] for one in decode}):
        short, long = (
            [one for one in decode if (one["work"]["batch"], one["work"]["new"]) == (batch, new)]
            for new in (lengths[0], lengths[-1])
        )
        if short and long:
            found.append((short, long))
    return found


class StepTruth:
    """Joules of a decode step by its batch: a line between the batches that were measured, each a difference.

    Where one was measured, the line goes to ``weights``, the joules of a step at no sequence.
    """

    def __init__(self, pairs: Sequence[Pair], celsius: float | None, weights: float | None = None) -> None:
        self.weights = weights
        self.batches: list[float] = []
        self.joules: list[float] = []
        self.errors: list[float] = []
        for short, long in pairs:
            to = at_common_temperature([*short, *long], celsius)
            steps = long[0]["work"]["new"] - short[0]["work"]["new"]
            ends = [
                reduced(found, to, lambda one: joules(one) - account(one, "outside"))
                for found in (short, long)
            ]
            self.batches.append(float(short[0]["work"]["batch"]))
            self.joules.append((ends[1][0] - ends[0][0]) / steps)
            self.errors.append(math.hypot(ends[0][1], ends[1][1]) / steps)

    def at(self, batch: float) -> float:
        """At any batch; beyond the last the line goes on."""
        return float(self._shares(batch) @ self.joules) + self._of_weights(batch)

    @property
    def at_no_sequence(self) -> float:
        """Joules that a step takes however few sequences it has: reading the weights, and the launch."""
        return float(np.polyfit(self.batches, self.joules, 1)[1])

    def error(self, found: Sequence[Row]) -> float:
        """Relative standard error of these rounds' truth: of each batch by what it has to do with their steps."""
        batches = [step[1] for one in found for step in one["each_step"] if step[1]]
        shares = np.sum([self._shares(batch) for batch in batches], axis=0)
        total = float(shares @ self.joules) + sum(self._of_weights(batch) for batch in batches)
        return float(np.linalg.norm(shares * self.errors)) / total

    def _shares(self, batch: float) -> np.ndarray[Any, Any]:
        """Return what each measured batch counts for in a step of this one."""
        if self.weights is not None:
            return np.array([batch / self.batches[0]])
        last = len(self.batches) - 1
        right = min(max(int(np.searchsorted(self.batches, batch)), 1), last)
        shares = np.zeros(last + 1)
        along = (batch - self.batches[right - 1]) / (self.batches[right] - self.batches[right - 1])
        shares[right - 1], shares[right] = 1 - along, along
        return shares

    def _of_weights(self, batch: float) -> float:
        return 0.0 if self.weights is None else self.weights * (1 - batch / self.batches[0])


Value = tuple[float, float]
"""A figure and its standard error."""


def spaced_prefill(found: Sequence[Row], celsius: float | None) -> tuple[Value, Value]:
    """Joules of one execution without the idling after it, and the watts of idling.

    A line in the seconds of idling, of windows with two lengths of it, taken to none; what is outside of the steps and
    no idling is taken off.
    """
    to = at_common_temperature(found, celsius)
    pause = np.array([one["pauses"][1] / executions(one) for one in found])
    energy = np.array([to(one) * (joules(one) - one["outside"][0] / executions(one)) for one in found])
    columns = np.column_stack([np.ones_like(pause), pause])
    return intercept(columns, energy), intercept(columns[:, ::-1], energy)


def temperatures(found: Sequence[Row]) -> tuple[tuple[str, float | None], ...]:
    """Say what rows are called that are as read and at one GPU temperature, and that temperature."""
    return ("", None), (", at one temperature", each(found, lambda one: one["celsius"] or 0)[0])


def decode_works(pairs: Sequence[Pair]) -> dict[str, list[Row]]:
    """Return the rounds of the decode's truth by their work."""
    return {found[0]["label"]: found for pair in pairs for found in pair}


def long_prompts(parts: Row) -> list[str]:
    """Return the section, of what was measured."""
    lines = ["## Prefill and decode against ground truths: mixed batches under vLLM's own token budgets", ""]
    kind = "vllm-long"
    prefills = rounds(parts, f"{kind} alone")
    alone = [one for one in prefills if "idle" in one["label"]]
    back = [one for one in prefills if "idle" not in one["label"]]
    decode = rounds(parts, f"{kind} decode")
    if not alone or not decode:
        return [*lines, "Not measured.", ""]
    pairs = pairs_of(decode)
    prompt = alone[0]["work"]["prompt"]
    lines += [
        f"Prompts of {prompt} tokens under a budget of 16384 tokens a step (vLLM's own offline on such a board: two "
        "steps a prompt) and of 8192 (its server's own: three), where a mixed step has thousands of prompt tokens for "
        "each decode and reads the weights once for both. Truth of the prefill: prompts alone under the same budget, "
        "with two lengths of idling between, taken to no idling by a line. Truth of the decode: rounds of 385 new "
        "tokens less rounds of 129, of one, two and four sequences, taken by a line to the batch of each step. Other "
        "terms are as above.",
        "",
        "Poisson: 8 requests, 0.4 a second on average, 257 new tokens each. All at once: 8 prompts of 8192 tokens, 257 "
        "new tokens each, in five steps of which four are mixed; truths of their own: these prompts alone with idling, "
        "and these rounds less those of 97 new tokens, for fewer sequences by a line to what a decode step takes "
        "without any.",
        "",
    ]
    rows: list[str] = []
    shares: list[str] = []
    notes: list[str] = []
    for name, celsius in temperatures(decode):
        truth = StepTruth(pairs, celsius)
        pure, mixed, share = _rows(parts, kind, alone, back, pairs, truth, celsius, name)
        rows += [*pure, *mixed]
        if celsius is None:
            shares, notes = share, _notes(truth, alone)
    works = by_label(alone) | by_label(back) | decode_works(pairs)
    together = rounds(parts, f"{kind} all at once")
    works |= by_label([one for one in together if "at once" not in one["label"]])
    return [*lines, *table(HEAD, rows), *notes, *table(RUN_HEAD, shares), *accounts(works)]


def _notes(truth: StepTruth, alone: Sequence[Row]) -> list[str]:
    steps = ", ".join(
        f"{value:.3f} ± {error:.3f} J ({batch:.0f})"
        for batch, value, error in zip(truth.batches, truth.joules, truth.errors, strict=True)
    )
    watts, error = spaced_prefill(alone, None)[1]
    return [
        f"Decode steps by their batch: {steps}. Idling between prefills draws {watts:.0f} ± {error:.0f} W.",
        "",
    ]


def _rows(
    parts: Row,
    kind: str,
    alone: Sequence[Row],
    back: Sequence[Row],
    pairs: Sequence[Pair],
    truth: StepTruth,
    celsius: float | None,
    name: str,
) -> tuple[list[str], list[str], list[str]]:
    """Rows of pure rounds, of mixed ones, and the latter's conditions."""
    prompt = alone[0]["work"]["prompt"]
    by_budget = {
        budget: spaced_prefill([one for one in alone if one["work"]["budget"] == budget], celsius)[0]
        for budget in sorted({one["work"]["budget"] for one in alone}, reverse=True)
    }
    short, long = pairs[0]
    to = at_common_temperature([*short, *long], celsius)
    inside = reduced([*short, *long], to, lambda one: with_gaps(one, "prefill"))
    largest = next(iter(by_budget.values()))
    pure = [
        compared(f"one prompt, then decode: prefill, mJ / prompt token{name}", inside, largest, 1e3 / prompt)
    ]
    # The same rounds' own truth: what is left of them at no decode.
    steps = short[0]["work"]["new"] - 1
    whole = reduced(short, to, lambda one: joules(one) - account(one, "outside"))
    rest = whole[0] - steps * truth.joules[0], math.hypot(whole[1], steps * truth.errors[0])
    pure.append(
        compared(
            f"one prompt, then decode: prefill, against the rounds at no decode{name}",
            inside,
            rest,
            1e3 / prompt,
        )
    )
    if back:
        limit = at_common_temperature(back, celsius)
        truth_back = reduced(back, limit, lambda one: joules(one) - account(one, "outside"))
        pure.append(
            compared(
                f"one prompt, then decode: prefill, against back to back{name}",
                inside,
                truth_back,
                1e3 / prompt,
            )
        )
    for (_, found), batch, value, error in zip(pairs, truth.batches, truth.joules, truth.errors, strict=True):
        to = at_common_temperature(found, celsius)
        count = found[0]["work"]["new"] - 1
        own = reduced(found, to, lambda one, count=count: with_gaps(one, "decode") / count)  # type: ignore[misc]
        pure.append(
            compared(f"decode of {batch:.0f}, mJ / decoded token{name}", own, (value, error), 1e3 / batch)
        )
    mixed: list[str] = []
    shares: list[str] = []
    arriving = rounds(parts, f"{kind} Poisson")
    for label, read in by_label(arriving).items():
        found = [_at(one, celsius) for one in read]
        energy, error = by_budget.get(found[0]["work"]["budget"], (math.nan, math.nan))
        if math.isfinite(energy):
            more, share = run_rows(
                label + name, found, (energy / prompt, error / prompt), truth.at, truth.error(found)
            )
            mixed += more
            shares += share
    together = rounds(parts, f"{kind} all at once")
    found = [one for one in together if "at once" in one["label"]]
    spaced = [one for one in together if "idle" in one["label"]]
    shorter = [one for one in together if one not in found and one not in spaced]
    if found and spaced and shorter:
        tokens = found[0]["work"]["batch"] * found[0]["work"]["prompt"]
        energy, error = spaced_prefill(spaced, celsius)[0]
        own_steps = StepTruth([(shorter, found)], celsius, truth.at_no_sequence)
        more, share = run_rows(
            found[0]["label"] + name,
            [_at(one, celsius) for one in found],
            (energy / tokens, error / tokens),
            own_steps.at,
            own_steps.error(found),
        )
        mixed += more
        shares += share
    return pure, mixed, shares


def _at(one: Row, celsius: float | None) -> Row:
    """Return the window with its joules taken to that temperature."""
    factor = at_common_temperature([one], celsius)(one)
    return one | {
        "joules": factor * one["joules"],
        "phases": {name: [factor * value[0], *value[1:]] for name, value in one["phases"].items()},
        "gaps": {name: [factor * value[0], *value[1:]] for name, value in one["gaps"].items()},
        "outside": [factor * one["outside"][0], one["outside"][1]],
        "each_step": [[*step[:3], factor * step[3]] for step in one.get("each_step", [])],
    }


def arrivals(parts: Row) -> list[str]:
    """Prompts that arrive by chance; the prefill's truth is the same prompts at the same times, alone."""
    kind = "vllm-arrivals"
    found = rounds(parts, f"{kind} arrivals")
    pairs = pairs_of(rounds(parts, f"{kind} decode"))
    idle = [one for one in found if "idle" in one["label"]]
    if not idle or not pairs:
        return []
    lines = [
        "### The same arrivals with decode and without",
        "",
        "How much a prefill takes hangs on what came before it: one that follows another is held at the power limit, "
        "at lower clocks. Prompts alone are therefore a truth where they arrive just as in the run: the same "
        "requests at the same times, of one new token each. Their window is prefill and idling; the idling's watts "
        "are those of prompts with two lengths of idling between. The decode's truth is measured anew on this board.",
        "",
    ]
    rows: list[str] = []
    shares: list[str] = []
    works = by_label(found)
    for name, celsius in temperatures(found):
        truth = StepTruth(pairs, celsius)
        watts, watts_error = spaced_prefill(idle, celsius)[1]
        for label, read in works.items():
            alone = [_at(one, celsius) for one in works.get(f"{label}, prompts alone", ())]
            if not alone:
                continue
            run = [_at(one, celsius) for one in read]
            tokens = alone[0]["work"]["batch"] * alone[0]["work"]["prompt"]
            energy, error = over([joules(one) - watts * one["outside"][1] for one in alone])
            # What the idling's watts are off by is off in all of them alike.
            error = math.hypot(error, watts_error * over([one["outside"][1] for one in alone])[0])
            prompt = energy / tokens, error / tokens
            more, share = run_rows(label + name, run, prompt, truth.at, truth.error(run))
            rows += more
            shares += share if celsius is None else []
        if celsius is None:
            notes = _notes(truth, idle)
    alone_works = {label: read for label, read in works.items() if "alone" in label}
    return [
        *lines,
        *table(HEAD, rows),
        *notes,
        *table(RUN_HEAD, shares),
        *accounts(alone_works | decode_works(pairs)),
    ]
