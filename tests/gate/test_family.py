"""Several comparisons in one run: Holm's rule, several baselines, and what one test's noise learns from the others."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Sequence
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pytest_tokenpower.core.records import MeasurementRecord, VerdictRecord
from pytest_tokenpower.gate.verdict import Policy, judge, settle
from pytest_tokenpower.stats.scatter import DEFAULT_NOISE, Scatter
from pytest_tokenpower.store.baseline import ComparableRuns
from tests.support.levels import SUPPLY, supply
from tests.support.measurements import measured, stored
from tests.support.projects import Project
from tests.support.verdicts import judge_stored, text


def holm(p_values: Sequence[float]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return what statsmodels' Holm rejects at 1 %, and its adjusted p-values."""
    from statsmodels.stats.multitest import multipletests

    # It collects all garbage at every call, which takes longer than this whole file.
    with mock.patch("gc.collect"):
        rejected, adjusted, *_ = multipletests(p_values, alpha=0.01, method="holm")
    return rejected, adjusted


def test_a_larger_family_needs_more_certainty() -> None:
    baseline = stored(0.2, 0.2008, 0.1992, 0.2012, 0.1988)
    alone = judge_stored(measured("t", 0.213), baseline, 0.03)
    among = judge_stored(measured("t", 0.213), baseline, 0.03, family=200)
    assert alone.kind == "regressed"
    assert among.kind == "inconclusive"
    assert among.p_value == alone.p_value
    # What is said of what could be told is said of the family.
    assert alone.noise_floor == pytest.approx(0.03)
    assert (among.noise_floor or 0) > 0.065
    assert "among 200 comparisons a rise of J/token fails here from" in text(among)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0.00001, 0.04), st.sampled_from(["inconclusive", "passed"]), st.floats(-0.1, 0.2)
        ),
        min_size=1,
        max_size=8,
    )
)
def test_settling_is_holms_rule_over_all_comparisons(members: list[tuple[float, str, float]]) -> None:
    measurements = [
        measured(
            f"t{at}", 0.2,
            verdicts=(
                VerdictRecord(kind, "main", change=change, p_value=p, threshold=0.03, baseline_runs=("a",)),
            ),
        )
        for at, (p, kind, change) in enumerate(members)
    ]  # fmt: skip
    _, adjusted = holm([p for p, _, _ in members])
    expected = {
        (f"t{at}", "main")
        for at, (_, kind, _) in enumerate(members)
        if adjusted[at] < 0.01 and kind == "inconclusive"
    }
    settled = settle(measurements)
    assert set(settled) == expected
    assert all(verdict.kind == "regressed" for verdict in settled.values())


@pytest.mark.parametrize(("alpha", "rise"), [(0.01, 0.01), (0.001, 0.017)])
def test_a_doubtful_verdict_says_how_often_chance_would_show_it(alpha: float, rise: float) -> None:
    stored_runs = stored(1.0, 1.004, 0.997, 1.002, 0.998)
    verdict = judge(measured("t", 1 + rise), stored_runs, Policy(0.005, alpha=alpha))
    assert verdict.p_value is not None
    assert alpha < verdict.p_value < 0.05
    said = f"doubtful (chance would show this in {100 * verdict.p_value:.2g} of 100 builds)"
    assert verdict.undecided.startswith(said)


def test_the_first_step_never_contradicts_the_whole_family() -> None:
    """What a test decided by itself, with the family's size, Holm's rule over all p-values confirms."""
    baseline = stored(0.2, 0.2005, 0.1995, 0.2003, 0.1997)
    verdicts = [
        judge_stored(measured("t", level), baseline, 0.03, family=4) for level in (0.2, 0.207, 0.215, 0.25)
    ]
    rejected, _ = holm([v.p_value or math.nan for v in verdicts])
    assert [v.kind == "regressed" for v in verdicts] == [False, True, True, True]
    assert all(rejected[at] for at, v in enumerate(verdicts) if v.kind == "regressed")


TESTS = """
from pathlib import Path

from at_level import at_level

@pytest.mark.power_budget(key_ignore="generated_tokens")
def test_work(energy):
    at_level(energy, float(Path("level").read_text()))
"""


def test_two_baselines_catch_the_creep_that_each_step_hides(project: Project) -> None:
    """A rolling baseline (main) moves along with a slow rise; a pinned one (a tag) does not."""

    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=project.path, check=True)

    supply(project)
    project.tests(TESTS)
    project.file(".gitignore", "__pycache__\n")
    git("init", "--quiet", "--initial-branch=main")
    for level, tag in ((1.0, "v1"), (1.3, "v2")):
        project.file("level", str(level))
        git("add", "--all")
        git("commit", "--quiet", "--message", tag)
        git("tag", tag)
        project.run(SUPPLY, "--energy-autosave").assert_outcomes(passed=1)
    git("switch", "--quiet", "--create", "change")
    git("commit", "--quiet", "--allow-empty", "--message", "nothing")
    result = project.run(SUPPLY, "--energy-baseline=main,v1")
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines(
        [
            r"REGRESSED \+(29|30)\.\d % \(limit 3 %\): test_work takes .*; v1@\w+ took .*",
            r"baseline main@\w+, v1@\w+",
            r"test_work .* \+(29|30)\.\d % .* REGRESSED",
        ]
    )
    result.stdout.no_re_match_line(r".*REGRESSED .* test_work.* main@.*")


def test_a_list_of_baselines_with_a_hole_is_refused(project: Project) -> None:
    result = project.run("--energy-baseline=main,")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--energy-baseline=main,: must be different names, separated by commas*"])


def test_what_is_believed_is_sharpened_by_other_tests() -> None:
    from dataclasses import replace

    baseline = stored(0.2, 0.2001, 0.1999, 0.2002, 0.1998)
    alone = judge_stored(measured("t", 0.2062), baseline, 0.02)
    learned = replace(DEFAULT_NOISE, total=Scatter(0.001, 12.0), learned=True)
    sharp = judge_stored(measured("t", 0.2062), baseline, 0.02, learned)
    assert alone.change == pytest.approx(sharp.change)
    assert (sharp.change_high or 0) - (sharp.change_low or 0) < (alone.change_high or 0) - (
        alone.change_low or 0
    )


def test_a_candidate_that_throttles_more_than_the_baseline_says_so() -> None:
    from msgspec.structs import replace

    def capped(record: MeasurementRecord, share: float) -> MeasurementRecord:
        return replace(
            record, rounds=tuple(replace(one, limited_shares={"power": share}) for one in record.rounds)
        )

    baseline = ComparableRuns(
        "main", tuple(capped(measured("t", 0.2), 0.1) for _ in range(3)), ("1", "2", "3")
    )
    more = judge_stored(capped(measured("t", 0.2), 0.55), baseline, 0.03)
    same = judge_stored(capped(measured("t", 0.2), 0.15), baseline, 0.03)
    assert "At its power limit for 55 % of the time, the baseline for 10 %" in text(more)
    assert "power limit" not in text(same)
