"""The figures of a measurement: what its good rounds come to, each with its unit and standard error. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from pytest_tokenpower.analysis.phases import undivided_error
from pytest_tokenpower.analysis.rounds import gated, good
from pytest_tokenpower.core.denominators import PER, figure_per
from pytest_tokenpower.core.figures import FIGURES
from pytest_tokenpower.core.records import Figure, RoundRecord
from pytest_tokenpower.core.types import Fact

_OF_ALL_JOULES = frozenset({"joules", "mean_watts"})
"""Figures whose relative error is at least that of the rounds' joules, as that of those with a denominator."""

_BOARD = re.compile(r"(GPU-)?[0-9a-f]{8}-", re.IGNORECASE)
"""A GPU's id is its UUID (NVML's with GPU- before it); other devices are called by their meter."""


def nodes_of(facts: Mapping[str, Fact]) -> dict[str, str]:
    """Return the node of each device that a measurement's facts place on one."""
    return {name.removesuffix(".node"): str(value) for name, value in facts.items() if name.endswith(".node")}


def watts_of(rounds: Sequence[RoundRecord]) -> dict[str, float]:
    """Return what each device drew on average over the good rounds; one that some round lacks is left out."""
    kept = [one.record for one in good(rounds)]
    seconds = sum(one.seconds for one in kept)
    found = {}
    for device in dict.fromkeys(name for one in kept for name in one.device_joules):
        joules = [one.device_joules.get(device) for one in kept]
        known = [each for each in joules if each is not None]
        if len(known) == len(kept):
            found[device] = sum(known) / seconds
    return found


def _imbalance(joules: Sequence[float]) -> float:
    return max(joules) / (sum(joules) / len(joules)) - 1


def round_values(
    rounds: Sequence[RoundRecord], nodes: Mapping[str, str] | None = None
) -> dict[str, list[float]]:
    """Each figure of FIGURES in each good round; a figure that some round lacks is left out.

    ``nodes`` says on which node a device is, where there are several.
    """
    kept = good(rounds)
    values: dict[str, list[float]] = {name: [] for name in FIGURES}
    for each in kept:
        one, joules = each.record, each.joules
        values["joules"].append(joules / one.repeats)
        values["mean_watts"].append(joules / one.seconds)
        if one.generated_tokens:
            values["tokens_per_second"].append(one.generated_tokens / one.seconds)
        values["seconds"].append(one.seconds / one.repeats)
        for name, value in one.latency.items():
            values[name].append(value)
        if one.peak_watts is not None:
            values["peak_watts"].append(one.peak_watts)
        if one.responses:
            values["joule_seconds_per_response"].append(joules / one.responses * one.seconds / one.repeats)
        boards = {name: value for name, value in one.device_joules.items() if _BOARD.match(name) and value}
        if len(boards) > 1:
            values["power_imbalance"].append(_imbalance([*boards.values()]))
        on_node: dict[str, float] = {}
        for name, value in boards.items():
            if node := (nodes or {}).get(name):
                on_node[node] = on_node.get(node, 0.0) + value
        if len(on_node) > 1:
            values["node_imbalance"].append(_imbalance([*on_node.values()]))
        if (prefill := one.phases.get("prefill")) is not None:
            if one.generated_tokens:
                values["prefill_joules_per_token"].append(prefill.joules / one.generated_tokens)
            values["prefill_joules"].append(prefill.joules / one.repeats)
            values["prefill_watts"].append(prefill.joules / prefill.seconds)
        if (decode := one.phases.get("decode")) is not None and one.generated_tokens:
            values["decode_joules_per_token"].append(decode.joules / one.generated_tokens)
            values["decode_joules"].append(decode.joules / one.repeats)
            values["decode_watts"].append(decode.joules / decode.seconds)
            # The first token of each response comes out of its prefill.
            decoded = one.generated_tokens - one.responses
            if decoded > 0:
                values["decode_tokens_per_second"].append(decoded / decode.seconds)
        if (between := one.phases.get("between steps")) is not None and one.generated_tokens:
            values["between_steps_joules_per_token"].append(between.joules / one.generated_tokens)
    for per in PER:
        values[figure_per(per)] = [part.joules / part.units for part in gated(rounds, per)]
    values["prefill_tokens_per_second"] = [
        part.units / part.seconds for part in gated(rounds, "prompt_token") if part.seconds > 0
    ]
    return {name: each for name, each in values.items() if each and len(each) == len(kept)}


def meter_errors(rounds: Sequence[RoundRecord], figure: str) -> list[float]:
    """Return the meter's relative standard error of a figure in each good round; empty where it is none of joules."""
    per = figure.removeprefix("joules_per_")
    if per in PER:
        return [part.stderr_joules / part.joules for part in gated(rounds, per)]
    if figure in _OF_ALL_JOULES:
        return [one.stderr_joules / one.joules for one in good(rounds)]
    return []


def _undivided(rounds: Sequence[RoundRecord], figure: str) -> float:
    """Return the relative error of a phase's figure by undivided steps: alike in all rounds, it does not average."""
    phase = "prefill" if figure == "joules_per_prompt_token" else figure.partition("_")[0]
    parts = [one.record.phases[phase] for one in good(rounds) if phase in one.record.phases]
    joules = sum(part.joules for part in parts)
    return undivided_error(sum(part.undivided_joules for part in parts)) / joules if joules > 0 else 0.0


def figures(rounds: Sequence[RoundRecord], nodes: Mapping[str, str] | None = None) -> dict[str, Figure]:
    """Each figure over the good rounds: 20 % trimmed mean and its standard error, autocorrelation included.

    ``peak_watts`` is the highest of all rounds. The standard errors are of this run's rounds; the difference
    between runs comes on top and is the verdict's business. ``nodes`` is as in :func:`round_values`.
    """
    from pytest_tokenpower.stats.runs import summarise_runs

    result = {}
    for name, values in round_values(rounds, nodes).items():
        if name == "peak_watts":
            result[name] = Figure(max(values), 0.0)
            continue
        if min(values) <= 0:
            continue
        [summary] = summarise_runs(
            [[math.log(value) for value in values]],
            meter_errors_per_run=[errors] if (errors := meter_errors(rounds, name)) else None,
        )
        value = math.exp(summary.location)
        result[name] = Figure(
            value, value * math.hypot(math.sqrt(summary.squared_error), _undivided(rounds, name))
        )
    return result
