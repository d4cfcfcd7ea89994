"""Drift against the baseline: clocks, power limit and GPU temperature that differ, and what becomes of the verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_tokenpower.core.records import MeasurementRecord, RoundRecord
from pytest_tokenpower.gate.operating_point import compare_conditions
from pytest_tokenpower.gate.verdict import settle
from pytest_tokenpower.stats.temperature import MOST_SHIFT_CELSIUS
from pytest_tokenpower.store.baseline import ComparableRuns
from tests.support.verdicts import judge_stored, text

H100 = Path(__file__).parents[2] / "docs/results/data/h100-gate.json"


def measured(
    joules_per_token: float = 0.2,
    *,
    clocks: Sequence[float | None] = (1980,),
    celsius: Sequence[float | None] = (60,),
    capped: float | None = 0.0,
) -> MeasurementRecord:
    """Eight rounds; clocks and temperatures are repeated to as many."""
    rounds = tuple(
        RoundRecord(
            start_ns=at,
            seconds=1.0,
            joules=joules_per_token * 1000 * math.exp(0.001 * (-1) ** at),
            stderr_joules=0.01,
            prompt_tokens=0,
            generated_tokens=1000,
            temperature_celsius=celsius[min(at, len(celsius) - 1)],
            sm_clock_mhz=clocks[at % len(clocks)],
            limited_shares={} if capped is None else {"power": capped},
        )
        for at in range(8)
    )
    return MeasurementRecord(
        test="t", key={}, provenance="simulated", scope="gpu", method="power ring", rounds=rounds, comparable=True
    )  # fmt: skip


def stored(*runs: MeasurementRecord) -> ComparableRuns:
    return ComparableRuns("main", runs, tuple(str(at) for at in range(len(runs))))


BASELINE = stored(*(measured(level) for level in (0.200, 0.2002, 0.1998)))


def test_alike_conditions_are_not_worth_a_word() -> None:
    drift = compare_conditions([measured()], BASELINE.runs)
    assert (drift.lines, drift.invalid) == ((), "")


@settings(max_examples=60, deadline=None)
@given(st.floats(0.96, 1.04), st.floats(-9.9, 9.9), st.floats(0, 0.09), st.floats(0, 0.09))
def test_what_runs_differ_by_anyway_is_no_drift(
    clock: float, warmer: float, here: float, there: float
) -> None:
    new = measured(clocks=(1980 * clock,), celsius=(60 + warmer,), capped=here)
    drift = compare_conditions([new], [measured(capped=there)])
    assert (drift.lines, drift.invalid) == ((), "")


@pytest.mark.parametrize("level", [0.190, 0.2, 0.21, 0.3])
def test_clocks_that_were_set_otherwise_make_no_comparison(level: float) -> None:
    verdict = judge_stored(measured(level, clocks=(1400, 1405)), BASELINE, 0.03)
    assert verdict.kind == "invalid"
    assert text(verdict).splitlines()[0] == (
        "INVALID: test_it: the comparison is not to be trusted: SM clock 1402 MHz, the baseline's 1980 MHz (-29 %), "
        "and no power limit explains it: clocks that were set otherwise are another operating point; set them as they "
        "were, or store new runs at these."
    )
    # The figures are told all the same.
    assert f"  test_it takes {1000 * level:.1f} mJ/token; main took" in text(verdict)
    higher = judge_stored(measured(level), stored(measured(clocks=(1400,))), 0.03)
    assert higher.kind == "invalid"
    assert "SM clock 1980 MHz, the baseline's 1400 MHz (+41 %)" in text(higher)


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (measured(0.25, clocks=(1400,), capped=0.9), "the power limit holds the slower side's clocks down"),
        (measured(0.25, clocks=(1400,), capped=None), "whether the power limit held it down is not known"),
        # A board that idles between bursts lowers its clocks now and then.
        (measured(0.25, clocks=(1980, 1500)), "not in every round"),
    ],
    ids=["capped", "unknown", "now and then"],
)
def test_clocks_that_the_load_may_have_lowered_are_a_finding(new: MeasurementRecord, said: str) -> None:
    verdict = judge_stored(new, BASELINE, 0.03)
    assert verdict.kind == "regressed"
    [line] = [line for line in text(verdict).splitlines() if "SM clock" in line]
    assert line.startswith("  SM clock 1")
    assert said in line


@pytest.mark.parametrize(
    ("new", "old"),
    [
        (measured(clocks=(None,)), measured()),
        (measured(), measured(clocks=(None,))),
        (measured(celsius=(None,)), measured()),
        (measured(), measured(celsius=(None,))),
    ],
)
def test_what_one_side_does_not_know_is_not_compared(new: MeasurementRecord, old: MeasurementRecord) -> None:
    verdict = judge_stored(new, stored(old), 0.03)
    assert verdict.kind != "invalid"
    assert "SM clock" not in text(verdict)
    assert "°C" not in text(verdict)


def test_temperatures_too_far_apart_are_said_and_what_leakage_could_be_is_uncertain() -> None:
    hot = judge_stored(measured(0.209, celsius=(72,)), BASELINE, 0.03)
    assert hot.kind == "inconclusive"
    assert (
        "  Compared as read, not at one GPU temperature: baseline 60 to 60 °C, now 72 to 72 °C: too far apart to "
        "adjust; warm the board up to where the baseline was." in text(hot).splitlines()
    )
    assert hot.raw_change == hot.change
    same = judge_stored(measured(0.209), BASELINE, 0.03)
    assert (hot.change_high or 0) - (hot.change_low or 0) > (same.change_high or 0) - (same.change_low or 0)
    # Twelve degrees explain neither a half more, nor do they hide it.
    assert judge_stored(measured(0.3, celsius=(72,)), BASELINE, 0.03).kind == "regressed"
    assert judge_stored(measured(0.12, celsius=(48,)), BASELINE, 0.03).kind == "improved"


def test_no_later_step_turns_an_invalid_comparison_into_a_failure() -> None:
    verdict = judge_stored(measured(0.3, clocks=(1400,)), BASELINE, 0.03, look=1)
    assert (verdict.kind, verdict.p_value) == ("invalid", None)
    assert settle([msgspec.structs.replace(measured(), verdicts=(verdict,))]) == {}


def test_a_cold_start_is_named_also_where_the_rounds_can_be_adjusted() -> None:
    new = measured(celsius=(60 - MOST_SHIFT_CELSIUS - 2, 55, 58, 60))
    verdict = judge_stored(new, BASELINE, 0.03)
    assert verdict.kind == "passed"
    assert (
        "  The first round was at 48 °C, the baseline's at 60 °C: more warm-up rounds would bring the board to one "
        "temperature." in text(verdict).splitlines()
    )


def h100_runs() -> Iterator[MeasurementRecord]:
    """Run of one test on an H100: plain, eager and fp8, all at clocks that nobody had set."""

    def found(value: Any) -> Iterator[MeasurementRecord]:
        if isinstance(value, dict):
            if "rounds" in value and "provenance" in value:
                yield msgspec.convert(value, MeasurementRecord)
            for each in value.values():
                yield from found(each)
        elif isinstance(value, list):
            for each in value:
                yield from found(each)

    yield from found(json.loads(H100.read_text()))


def test_runs_of_an_h100_at_its_own_clocks_are_never_refused() -> None:
    runs = list(h100_runs())
    assert len(runs) >= 5
    for at, new in enumerate(runs):
        others = [run for other, run in enumerate(runs) if other != at]
        for old in (others, *([each] for each in others)):
            drift = compare_conditions([new], old)
            assert drift.invalid == ""
            assert not any("SM clock" in line for line in drift.lines)
